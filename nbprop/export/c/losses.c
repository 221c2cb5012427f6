/* Losses: each row's loss and its gradient; the loss of a call is the mean over the samples. */

/* The mean of the rows' losses. losses IN (n * rows,). */
static real loss_mean(const real *losses, int n, int rows)
{
    double total = 0.0;
    for (int i = 0; i < n; i++) {
        double sample = 0.0;
        for (int r = 0; r < rows; r++) {
            sample += (double)losses[i * rows + r];
        }
        total += sample;
    }
    return (real)(total / ((double)n * rows));
}

/* The mean of the losses of all positions. losses IN (n, positions, rows). */
static real loss_mean_of_positions(const real *losses, int n, int positions, int rows)
{
    return loss_mean(losses, n, positions * rows);
}

/* losses = mean (y - t)^2 of each row; dy = 2 (y - t) / (n rows size).
 * losses OUT (n * rows,), dy OUT, y and target IN (n * rows, size). */
static void mse_kernel(real *restrict losses, real *restrict dy, const real *restrict y, const real *restrict target,
                       int n, int rows, int size)
{
    const real factor = (real)(2.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows; i++) {
        real total = R(0.0);
        for (int j = i * size; j < (i + 1) * size; j++) {
            const real error = y[j] - target[j];
            total += error * error;
            dy[j] = factor * error;
        }
        losses[i] = total / (real)size;
    }
}

/* dy_dot = 2 y_dot / (n rows size). dy_dot OUT, y_dot IN (n * rows, size). */
static void mse_curvature(real *restrict dy_dot, const real *restrict y_dot, int n, int rows, int size)
{
    const real factor = (real)(2.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows * size; i++) {
        dy_dot[i] = factor * y_dot[i];
    }
}

/* losses = mean over a row of e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2), with e = y - t;
 * dy = clip(e, -delta, delta) / (n rows size). losses OUT (n * rows,), dy OUT, y and target IN (n * rows, size). */
static void huber_kernel(real *restrict losses, real *restrict dy, const real *restrict y, const real *restrict target,
                         int n, int rows, int size, real delta)
{
    const real factor = (real)(1.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows; i++) {
        real total = R(0.0);
        for (int j = i * size; j < (i + 1) * size; j++) {
            const real error = y[j] - target[j], distance = error < R(0.0) ? -error : error;
            total += distance > delta ? delta * (distance - R(0.5) * delta) : R(0.5) * error * error;
            dy[j] = factor * (error > delta ? delta : error < -delta ? -delta : error);
        }
        losses[i] = total / (real)size;
    }
}

/* dy_dot = y_dot / (n rows size) where |y - t| <= delta, else 0. Arrays as in huber_kernel. */
static void huber_curvature(real *restrict dy_dot, const real *restrict y_dot, const real *restrict y,
                            const real *restrict target, int n, int rows, int size, real delta)
{
    const real factor = (real)(1.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows * size; i++) {
        const real error = y[i] - target[i];
        dy_dot[i] = error <= delta && -error <= delta ? factor * y_dot[i] : R(0.0);
    }
}

/* losses = mean over a row of softplus(z) - t z; dy = (sigmoid(z) - t) / (n rows size), with z = y.
 * losses OUT (n * rows,), dy OUT, y and target IN (n * rows, size). */
static void binary_cross_entropy_kernel(real *restrict losses, real *restrict dy, const real *restrict y,
                                        const real *restrict target, int n, int rows, int size)
{
    const real factor = (real)(1.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows; i++) {
        real total = R(0.0);
        for (int j = i * size; j < (i + 1) * size; j++) {
            total += nb_softplus(y[j]) - target[j] * y[j];
            dy[j] = factor * (nb_sigmoid(y[j]) - target[j]);
        }
        losses[i] = total / (real)size;
    }
}

/* dy_dot = p (1 - p) y_dot / (n rows size), with p = sigmoid(y). dy_dot OUT, y_dot and y IN (n * rows, size). */
static void binary_cross_entropy_curvature(real *restrict dy_dot, const real *restrict y_dot, const real *restrict y,
                                           int n, int rows, int size)
{
    const real factor = (real)(1.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows * size; i++) {
        const real p = nb_sigmoid(y[i]);
        dy_dot[i] = factor * p * (R(1.0) - p) * y_dot[i];
    }
}

/* losses = mean over k of (s + (t - m)^2 e^-s) / 2, where a row of y holds k means m, then k log variances s.
 * losses OUT (n * rows,), dy OUT and y IN (n * rows, 2 k), target IN (n * rows, k); size is k. */
static void gaussian_nll_kernel(real *restrict losses, real *restrict dy, const real *restrict y,
                                const real *restrict target, int n, int rows, int size)
{
    const real factor = (real)(1.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows; i++, dy += 2 * size, y += 2 * size, target += size) {
        real total = R(0.0);
        for (int j = 0; j < size; j++) {
            const real error = y[j] - target[j], precision = nb_exp(-y[size + j]);
            total += R(0.5) * (y[size + j] + error * error * precision);
            dy[j] = factor * error * precision;
            dy[size + j] = factor * R(0.5) * (R(1.0) - error * error * precision);
        }
        losses[i] = total / (real)size;
    }
}

/* dy_dot = H y_dot: with e = m - t and r = exp(-s), H = [[r, -e r], [-e r, e^2 r / 2]] for each target.
 * dy_dot OUT, y_dot and y IN (n * rows, 2 k), target IN (n * rows, k); size is k. */
static void gaussian_nll_curvature(real *restrict dy_dot, const real *restrict y_dot, const real *restrict y,
                                   const real *restrict target, int n, int rows, int size)
{
    const real factor = (real)(1.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows; i++, dy_dot += 2 * size, y_dot += 2 * size, y += 2 * size, target += size) {
        for (int j = 0; j < size; j++) {
            const real error = y[j] - target[j], precision = nb_exp(-y[size + j]);
            dy_dot[j] = factor * precision * (y_dot[j] - error * y_dot[size + j]);
            dy_dot[size + j] = factor * precision * error * (R(0.5) * error * y_dot[size + j] - y_dot[j]);
        }
    }
}

/* losses = log(sum exp(z)) - z[class] of each row; dy = (softmax(z) - onehot(class)) / (n rows), with z = y.
 * losses OUT (n * rows,), dy OUT and y IN (n * rows, classes), target IN (n * rows,): classes. */
static void softmax_cross_entropy_kernel(real *restrict losses, real *restrict dy, const real *restrict y,
                                         const int *restrict target, int n, int rows, int classes)
{
    const real factor = (real)(1.0 / ((double)n * rows));
    for (int i = 0; i < n * rows; i++, dy += classes, y += classes) {
        real top = y[0], total = R(0.0);
        for (int j = 1; j < classes; j++) {
            top = y[j] > top ? y[j] : top;
        }
        for (int j = 0; j < classes; j++) {
            dy[j] = nb_exp(y[j] - top);
            total += dy[j];
        }
        const real scale = factor / total;
        for (int j = 0; j < classes; j++) {
            dy[j] *= scale;
        }
        dy[target[i]] -= factor;
        losses[i] = LOG(total) + (top - y[target[i]]);
    }
}

/* dy_dot = p (y_dot - sum(p y_dot)) / (n rows) in each row, with p = softmax(y).
 * dy_dot OUT, y_dot and y IN (n * rows, classes). */
static void softmax_cross_entropy_curvature(real *restrict dy_dot, const real *restrict y_dot, const real *restrict y,
                                            int n, int rows, int classes)
{
    const real factor = (real)(1.0 / ((double)n * rows));
    for (int i = 0; i < n * rows; i++, dy_dot += classes, y_dot += classes) {
        softmax_row(dy_dot, y + i * classes, classes);
        real along = R(0.0);
        for (int j = 0; j < classes; j++) {
            along += dy_dot[j] * y_dot[j];
        }
        for (int j = 0; j < classes; j++) {
            dy_dot[j] *= factor * (y_dot[j] - along);
        }
    }
}

/* |y - t|; delta is not used. */
static inline real mae_value(real y, real t, real delta)
{
    (void)delta;
    return y > t ? y - t : t - y;
}

/* The sign of y - t. */
static inline real mae_derivative(real y, real t, real delta)
{
    (void)delta;
    return y > t ? R(1.0) : y < t ? R(-1.0) : y - t;
}

/* 0. */
static inline real mae_second(real y, real t, real delta)
{
    (void)y, (void)t, (void)delta;
    return R(0.0);
}

/* log(cosh(e)), e = y - t. */
static inline real log_cosh_value(real y, real t, real delta)
{
    (void)delta;
    const real error = y > t ? y - t : t - y, square = error * error;
    if (error < R(0.02)) {
        return square * (R(0.5) - square * (R(0.08333333333333333) - square * R(0.022222222222222223)));
    }
    return error + LOG(R(1.0) + nb_exp(R(-2.0) * error)) - R(0.6931471805599453);
}

/* tanh(y - t). */
static inline real log_cosh_derivative(real y, real t, real delta)
{
    (void)delta;
    return nb_tanh(y - t);
}

/* 1 - tanh(y - t)^2. */
static inline real log_cosh_second(real y, real t, real delta)
{
    (void)delta;
    const real slope = nb_tanh(y - t);
    return (R(1.0) - slope) * (R(1.0) + slope);
}

/* exp(y) - t y. */
static inline real poisson_nll_value(real y, real t, real delta)
{
    (void)delta;
    return nb_exp(y) - t * y;
}

/* exp(y) - t. */
static inline real poisson_nll_derivative(real y, real t, real delta)
{
    (void)delta;
    return nb_exp(y) - t;
}

/* exp(y). */
static inline real poisson_nll_second(real y, real t, real delta)
{
    (void)t, (void)delta;
    return nb_exp(y);
}

/* max(0, 1 - t y). */
static inline real hinge_value(real y, real t, real delta)
{
    (void)delta;
    const real lack = R(1.0) - t * y;
    return lack < R(0.0) ? R(0.0) : lack;
}

/* -t where t y < 1. */
static inline real hinge_derivative(real y, real t, real delta)
{
    (void)delta;
    return R(1.0) - t * y <= R(0.0) ? R(0.0) : -t;
}

/* 0. */
static inline real hinge_second(real y, real t, real delta)
{
    (void)y, (void)t, (void)delta;
    return R(0.0);
}

/* t f(y) + (1 - t) f(-y), f(u) = (1 - p)^gamma softplus(-u), p = sigmoid(u); delta is gamma. */
static inline real focal_value(real y, real t, real delta)
{
    const real lower = nb_softplus(-y), upper = nb_softplus(y);
    return t * nb_exp(-delta * upper) * lower + (R(1.0) - t) * nb_exp(-delta * lower) * upper;
}

/* Its derivative by y. */
static inline real focal_derivative(real y, real t, real delta)
{
    const real lower = nb_softplus(-y), upper = nb_softplus(y), p = nb_sigmoid(y), q = nb_sigmoid(-y);
    const real positive = nb_exp(-delta * upper) * (delta * p * lower + q);
    const real negative = nb_exp(-delta * lower) * (delta * q * upper + p);
    return (R(1.0) - t) * negative - t * positive;
}

/* Its second derivative by y. */
static inline real focal_second(real y, real t, real delta)
{
    const real lower = nb_softplus(-y), upper = nb_softplus(y), p = nb_sigmoid(y), q = nb_sigmoid(-y);
    const real inner = delta * (delta * p - q) * lower + (delta + delta + R(1.0)) * q;
    const real outer = delta * (delta * q - p) * upper + (delta + delta + R(1.0)) * p;
    return t * nb_exp(-delta * upper) * p * inner + (R(1.0) - t) * nb_exp(-delta * lower) * q * outer;
}

/* (y - t)^2. */
static inline real mse_value(real y, real t, real delta)
{
    (void)delta;
    return (y - t) * (y - t);
}

/* 2 (y - t). */
static inline real mse_derivative(real y, real t, real delta)
{
    (void)delta;
    return R(2.0) * (y - t);
}

/* 2. */
static inline real mse_second(real y, real t, real delta)
{
    (void)y, (void)t, (void)delta;
    return R(2.0);
}

/* Huber's loss of one output. */
static inline real huber_value(real y, real t, real delta)
{
    const real error = y > t ? y - t : t - y;
    return error > delta ? delta * (error - R(0.5) * delta) : R(0.5) * error * error;
}

/* clip(y - t, -delta, delta). */
static inline real huber_derivative(real y, real t, real delta)
{
    const real error = y - t;
    return error > delta ? delta : error < -delta ? -delta : error;
}

/* 1 where |y - t| <= delta, else 0. */
static inline real huber_second(real y, real t, real delta)
{
    return y - t <= delta && t - y <= delta ? R(1.0) : R(0.0);
}

/* softplus(y) - t y. */
static inline real binary_cross_entropy_value(real y, real t, real delta)
{
    (void)delta;
    return nb_softplus(y) - t * y;
}

/* sigmoid(y) - t. */
static inline real binary_cross_entropy_derivative(real y, real t, real delta)
{
    (void)delta;
    return nb_sigmoid(y) - t;
}

/* p (1 - p), p = sigmoid(y). */
static inline real binary_cross_entropy_second(real y, real t, real delta)
{
    (void)t, (void)delta;
    const real p = nb_sigmoid(y);
    return p * (R(1.0) - p);
}

/* losses = mean over a row of value(y, t); dy = its derivative / (n rows size).
 * losses OUT (n * rows,), dy OUT, y and target IN (n * rows, size). */
static void PLAIN_LOSS_kernel(real *restrict losses, real *restrict dy, const real *restrict y,
                              const real *restrict target, int n, int rows, int size, real delta)
{
    const real factor = (real)(1.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows; i++) {
        real total = R(0.0);
        for (int j = i * size; j < (i + 1) * size; j++) {
            total += PLAIN_LOSS_value(y[j], target[j], delta);
            dy[j] = factor * PLAIN_LOSS_derivative(y[j], target[j], delta);
        }
        losses[i] = total / (real)size;
    }
}

/* dy_dot = the second derivative y_dot / (n rows size). Arrays (n * rows, size). */
static void PLAIN_LOSS_curvature(real *restrict dy_dot, const real *restrict y_dot, const real *restrict y,
                                 const real *restrict target, int n, int rows, int size, real delta)
{
    const real factor = (real)(1.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows * size; i++) {
        dy_dot[i] = factor * PLAIN_LOSS_second(y[i], target[i], delta) * y_dot[i];
    }
}

/* The same, each output times its factor; with `missing`, 0 where the target is NaN.
 * losses OUT (n * rows,), dy OUT, y and target IN (n * rows, size), factors IN (rows * size,) or NULL. */
static void OBSERVED_LOSS_observed_kernel(real *restrict losses, real *restrict dy, const real *restrict y,
                                          const real *restrict target, const real *restrict factors, int n, int rows,
                                          int size, real delta, int missing)
{
    const real factor = (real)(1.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows; i++) {
        real total = R(0.0);
        for (int j = 0; j < size; j++) {
            const int k = i * size + j, absent = missing && target[k] != target[k];
            const real own = factors ? factors[i % rows * size + j] : R(1.0), t = absent ? y[k] : target[k];
            total += absent ? R(0.0) : own * OBSERVED_LOSS_value(y[k], t, delta);
            dy[k] = absent ? R(0.0) : factor * own * OBSERVED_LOSS_derivative(y[k], t, delta);
        }
        losses[i] = total / (real)size;
    }
}

/* dy_dot = the second derivative y_dot / (n rows size), each times its factor; 0 where the target is missing. */
static void OBSERVED_LOSS_observed_curvature(real *restrict dy_dot, const real *restrict y_dot,
                                             const real *restrict y, const real *restrict target,
                                             const real *restrict factors, int n, int rows, int size, real delta,
                                             int missing)
{
    const real factor = (real)(1.0 / ((double)n * rows * size));
    for (int k = 0; k < n * rows * size; k++) {
        const int absent = missing && target[k] != target[k];
        const real own = factors ? factors[k % (rows * size)] : R(1.0), t = absent ? y[k] : target[k];
        dy_dot[k] = absent ? R(0.0) : factor * own * OBSERVED_LOSS_second(y[k], t, delta) * y_dot[k];
    }
}

/* numbers[at] = value. */
static void put_number(real *numbers, int at, real value)
{
    numbers[at] = value;
}

/* ratio = the weight of all targets over that of those that are not NaN.
 * ratio OUT (1,), target IN (n, positions, size), factors IN (positions * size,) or NULL. */
static void observed_ratio(real *restrict ratio, const real *restrict target, const real *restrict factors, int n,
                           int positions, int size)
{
    double observed = 0.0;
    for (int k = 0; k < n * positions * size; k++) {
        observed += target[k] == target[k] ? (factors ? (double)factors[k % (positions * size)] : 1.0) : 0.0;
    }
    ratio[0] = (real)(observed > 0.0 ? (double)n * positions * size / observed : 0.0);
}

/* dy *= ratio. dy INOUT (n, positions, size), ratio IN (1,). */
static void keep_observed(real *restrict dy, const real *restrict ratio, int n, int positions, int size)
{
    for (int i = 0; i < n * positions * size; i++) {
        dy[i] *= ratio[0];
    }
}

/* The mean of the losses of observed targets. losses IN (n, positions, rows), ratio IN (1,). */
static real mean_of_observed(const real *losses, const real *ratio, int n, int positions, int rows)
{
    double total = 0.0;
    for (int i = 0; i < n * positions * rows; i++) {
        total += (double)losses[i];
    }
    return (real)(total / ((double)n * positions * rows) * (double)ratio[0]);
}

/* losses = mean over k of (s + (nu + 1) log(1 + a)) / 2, a = (m - t)^2 exp(-s) / nu; delta is nu.
 * losses OUT (n * rows,), dy OUT and y IN (n * rows, 2 k), target IN (n * rows, k); size is k. */
static void student_t_nll_kernel(real *restrict losses, real *restrict dy, const real *restrict y,
                                 const real *restrict target, int n, int rows, int size, real delta)
{
    const real factor = (real)(1.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows; i++, dy += 2 * size, y += 2 * size, target += size) {
        real total = R(0.0);
        for (int j = 0; j < size; j++) {
            const real error = y[j] - target[j], r = nb_exp(-y[size + j]), a = error * error * r / delta;
            total += R(0.5) * (y[size + j] + (delta + R(1.0)) * LOG(R(1.0) + a));
            dy[j] = factor * (delta + R(1.0)) / (delta * (R(1.0) + a)) * error * r;
            dy[size + j] = factor * R(0.5) * (R(1.0) - (delta + R(1.0)) * (a / (R(1.0) + a)));
        }
        losses[i] = total / (real)size;
    }
}

/* dy_dot = H y_dot, H = b [[(1 - a) r / nu, -e r / nu], [-e r / nu, a / 2]], b = (nu + 1) / (1 + a)^2.
 * dy_dot OUT, y_dot and y IN (n * rows, 2 k), target IN (n * rows, k); size is k. */
static void student_t_nll_curvature(real *restrict dy_dot, const real *restrict y_dot, const real *restrict y,
                                    const real *restrict target, int n, int rows, int size, real delta)
{
    const real factor = (real)(1.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows; i++, dy_dot += 2 * size, y_dot += 2 * size, y += 2 * size, target += size) {
        for (int j = 0; j < size; j++) {
            const real error = y[j] - target[j], r = nb_exp(-y[size + j]), a = error * error * r / delta;
            const real b = factor * (delta + R(1.0)) / ((R(1.0) + a) * (R(1.0) + a)), across = -error * r / delta;
            dy_dot[j] = b * ((R(1.0) - a) * r / delta * y_dot[j] + across * y_dot[size + j]);
            dy_dot[size + j] = b * (across * y_dot[j] + R(0.5) * a * y_dot[size + j]);
        }
    }
}

/* losses = mean over k of v^beta (s + e^2 / v) / 2, v = exp(s); dy takes v^beta as a constant; delta is beta.
 * losses OUT (n * rows,), dy OUT and y IN (n * rows, 2 k), target IN (n * rows, k); size is k. */
static void beta_nll_kernel(real *restrict losses, real *restrict dy, const real *restrict y,
                            const real *restrict target, int n, int rows, int size, real delta)
{
    const real factor = (real)(1.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows; i++, dy += 2 * size, y += 2 * size, target += size) {
        real total = R(0.0);
        for (int j = 0; j < size; j++) {
            const real error = y[j] - target[j], own = nb_exp(delta * y[size + j]), precision = nb_exp(-y[size + j]);
            total += R(0.5) * own * (y[size + j] + error * error * precision);
            dy[j] = factor * own * error * precision;
            dy[size + j] = factor * own * R(0.5) * (R(1.0) - error * error * precision);
        }
        losses[i] = total / (real)size;
    }
}

/* dy_dot = v^beta H y_dot with the H of gaussian_nll_curvature. Arrays as there. */
static void beta_nll_curvature(real *restrict dy_dot, const real *restrict y_dot, const real *restrict y,
                               const real *restrict target, int n, int rows, int size, real delta)
{
    const real factor = (real)(1.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows; i++, dy_dot += 2 * size, y_dot += 2 * size, y += 2 * size, target += size) {
        for (int j = 0; j < size; j++) {
            const real error = y[j] - target[j], own = factor * nb_exp((delta - R(1.0)) * y[size + j]);
            dy_dot[j] = own * (y_dot[j] - error * y_dot[size + j]);
            dy_dot[size + j] = own * error * (R(0.5) * error * y_dot[size + j] - y_dot[j]);
        }
    }
}

/* losses = sum(t (log(sum exp(z)) - z)), plus sum(t log t) if `entropy`; dy = (sum(t) softmax(z) - t) / (n rows).
 * losses OUT (n * rows,), dy OUT, y and target IN (n * rows, size). */
static void soft_cross_entropy_kernel(real *restrict losses, real *restrict dy, const real *restrict y,
                                      const real *restrict target, int n, int rows, int size, int entropy)
{
    const real factor = (real)(1.0 / ((double)n * rows));
    for (int i = 0; i < n * rows; i++, dy += size, y += size, target += size) {
        real top = y[0], total = R(0.0), whole = R(0.0), loss = R(0.0);
        for (int j = 0; j < size; j++) {
            top = y[j] > top ? y[j] : top;
            whole += target[j];
        }
        for (int j = 0; j < size; j++) {
            total += nb_exp(y[j] - top);
        }
        for (int j = 0; j < size; j++) {
            const real own = LOG(total) + (top - y[j]);
            loss += target[j] * (entropy && target[j] > R(0.0) ? own + LOG(target[j]) : own);
            dy[j] = factor * (whole * (nb_exp(y[j] - top) / total) - target[j]);
        }
        losses[i] = loss;
    }
}

/* dy_dot = sum(t) p (y_dot - sum(p y_dot)) / (n rows) in each row, p = softmax(y). Arrays (n * rows, size). */
static void soft_cross_entropy_curvature(real *restrict dy_dot, const real *restrict y_dot, const real *restrict y,
                                         const real *restrict target, int n, int rows, int size)
{
    const real factor = (real)(1.0 / ((double)n * rows));
    for (int i = 0; i < n * rows; i++, dy_dot += size, y_dot += size, target += size) {
        softmax_row(dy_dot, y + i * size, size);
        real along = R(0.0), whole = R(0.0);
        for (int j = 0; j < size; j++) {
            along += dy_dot[j] * y_dot[j];
            whole += target[j];
        }
        for (int j = 0; j < size; j++) {
            dy_dot[j] *= factor * whole * (y_dot[j] - along);
        }
    }
}

/* losses = 1 - c, c = y.t / S, S = sqrt(A B), A = |y|^2 + 1e-12, B = |t|^2 + 1e-12; dy = (c y / A - t / S) / (n rows).
 * losses OUT (n * rows,), dy OUT, y and target IN (n * rows, size). */
static void cosine_kernel(real *restrict losses, real *restrict dy, const real *restrict y,
                          const real *restrict target, int n, int rows, int size)
{
    const real factor = (real)(1.0 / ((double)n * rows));
    for (int i = 0; i < n * rows; i++, dy += size, y += size, target += size) {
        real a = R(1e-12), b = R(1e-12), c = R(0.0);
        for (int j = 0; j < size; j++) {
            a += y[j] * y[j];
            b += target[j] * target[j];
            c += y[j] * target[j];
        }
        const real s = SQRT(a) * SQRT(b);
        c /= s;
        losses[i] = R(1.0) - c;
        for (int j = 0; j < size; j++) {
            dy[j] = factor * (c / a * y[j] - target[j] / s);
        }
    }
}

/* dy_dot = H y_dot / (n rows). Arrays (n * rows, size). */
static void cosine_curvature(real *restrict dy_dot, const real *restrict y_dot, const real *restrict y,
                             const real *restrict target, int n, int rows, int size)
{
    const real factor = (real)(1.0 / ((double)n * rows));
    for (int i = 0; i < n * rows; i++, dy_dot += size, y_dot += size, y += size, target += size) {
        real a = R(1e-12), b = R(1e-12), c = R(0.0), d = R(0.0), e = R(0.0);
        for (int j = 0; j < size; j++) {
            a += y[j] * y[j];
            b += target[j] * target[j];
            c += y[j] * target[j];
            d += y[j] * y_dot[j];
            e += target[j] * y_dot[j];
        }
        const real s = SQRT(a) * SQRT(b);
        c /= s;
        d /= a;
        e /= s;
        for (int j = 0; j < size; j++) {
            dy_dot[j] = factor * (c / a * y_dot[j] + (e - R(3.0) * c * d) / a * y[j] + d / s * target[j]);
        }
    }
}

/* losses = mean over a row of max(tau (t - y), (tau - 1) (t - y)); dy = its derivative / (n rows size).
 * losses OUT (n * rows,), dy OUT and y IN (n * rows, size), target IN (n * rows, size / q), taus IN (q,). */
static void quantile_kernel(real *restrict losses, real *restrict dy, const real *restrict y,
                            const real *restrict target, const real *restrict taus, int taus_size, int n, int rows,
                            int size)
{
    const real factor = (real)(1.0 / ((double)n * rows * size));
    for (int i = 0; i < n * rows; i++) {
        real total = R(0.0);
        for (int j = 0; j < size; j++) {
            const int k = i * size + j;
            const real tau = taus[j % taus_size], error = target[k / taus_size] - y[k];
            const real slope = error >= R(0.0) ? tau : tau - R(1.0);
            total += slope * error;
            dy[k] = error == R(0.0) ? R(0.0) : -factor * slope;
        }
        losses[i] = total / (real)size;
    }
}

/* dy_dot = 0. dy_dot OUT (n, size). */
static void zero_curvature(real *restrict dy_dot, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        dy_dot[i] = R(0.0);
    }
}

/* losses = log(sum exp(z)) - (1 - e) z[class] - e mean(z), e the smoothing; 0 in rows of an ignored class.
 * losses OUT (n * rows,), dy OUT and y IN (n * rows, classes), target IN (n * rows,): classes. */
static void smoothed_cross_entropy_kernel(real *restrict losses, real *restrict dy, const real *restrict y,
                                          const int *restrict target, int n, int rows, int classes, real smoothing,
                                          int ignored)
{
    const real factor = (real)(1.0 / ((double)n * rows)), each = smoothing / (real)classes;
    for (int i = 0; i < n * rows; i++, dy += classes, y += classes) {
        const int kept = ignored == 0 || target[i] != ignored;
        real top = y[0], total = R(0.0), spread = R(0.0);
        for (int j = 1; j < classes; j++) {
            top = y[j] > top ? y[j] : top;
        }
        for (int j = 0; j < classes; j++) {
            total += nb_exp(y[j] - top);
            spread += top - y[j];
        }
        for (int j = 0; j < classes; j++) {
            dy[j] = kept ? factor * (nb_exp(y[j] - top) / total - each) : R(0.0);
        }
        losses[i] = R(0.0);
        if (kept) {
            dy[target[i]] -= factor * (R(1.0) - smoothing);
            losses[i] = LOG(total) + (R(1.0) - smoothing) * (top - y[target[i]]) + each * spread;
        }
    }
}

/* dy = 0 in rows of an ignored class. dy INOUT (n * rows, classes), target IN (n * rows,): classes. */
static void keep_classes(real *restrict dy, const int *restrict target, int n, int rows, int classes, int ignored)
{
    for (int i = 0; i < n * rows * classes; i++) {
        dy[i] = target[i / classes] == ignored ? R(0.0) : dy[i];
    }
}

/* ratio = the number of all rows over that of those whose class is not ignored.
 * ratio OUT (1,), target IN (n, positions, rows): classes. */
static void classes_ratio(real *restrict ratio, const int *restrict target, int n, int positions, int rows,
                          int ignored)
{
    double observed = 0.0;
    for (int i = 0; i < n * positions * rows; i++) {
        observed += target[i] == ignored ? 0.0 : 1.0;
    }
    ratio[0] = (real)(observed > 0.0 ? (double)n * positions * rows / observed : 0.0);
}
