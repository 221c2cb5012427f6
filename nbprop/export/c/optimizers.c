/* Optimizers: a step in place, so that a device can go on learning. */

/* params -= lr grads. params INOUT, grads IN (size,). */
static void sgd_step(real *restrict params, const real *restrict grads, int size, real lr)
{
    for (int i = 0; i < size; i++) {
        params[i] -= lr * grads[i];
    }
}

/* Adam (Kingma and Ba 2015, algorithm 1): m and v are running means of g and g^2; params -= lr m' / (sqrt(v') + eps),
 * m' and v' being m and v over 1 - beta^(step + 1).
 * params INOUT, grads IN (size,), state INOUT (2 size,): m, then v. */
static void adam_step(real *restrict params, const real *restrict grads, real *restrict state, int size, int step,
                      real lr, double beta1, double beta2, real eps)
{
    const real rate = (real)((double)lr / (1.0 - pow(beta1, step + 1)));
    const real root = (real)(1.0 / sqrt(1.0 - pow(beta2, step + 1)));
    const real keep1 = (real)beta1, rest1 = (real)(1.0 - beta1), keep2 = (real)beta2, rest2 = (real)(1.0 - beta2);
    real *m = state, *v = state + size;
    for (int i = 0; i < size; i++) {
        const real g = squarable(grads[i]);
        m[i] = keep1 * m[i] + rest1 * g;
        v[i] = keep2 * v[i] + rest2 * (g * g);
        params[i] -= rate * (m[i] / (SQRT(v[i]) * root + eps));
    }
}
