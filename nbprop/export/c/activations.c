/* Activations y = f(x), each element alone: the value, and d f' and d times the change of f' for derivatives.
 *
 * s is x for gelu, gelu_tanh, silu, mish, hard_swish and sine, and y for the others, whose f' can be written in y.
 * x_bend is the derivative of f' by s. ACTIVATION stands for one of the names.
 */

/* y = f(x). y OUT, x IN (n, size). */
static void ACTIVATION_forward(real *restrict y, const real *restrict x, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        y[i] = ACTIVATION_value(x[i]);
    }
}

/* y = f(y). y INOUT (n, size). */
static void ACTIVATION_inplace(real *y, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        y[i] = ACTIVATION_value(y[i]);
    }
}

/* d = d f'. d INOUT, s IN (n, size). */
static void ACTIVATION_backward(real *restrict d, const real *restrict s, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        d[i] = ACTIVATION_slope(d[i], s[i]);
    }
}

/* d_dot = d_dot f' + d (f')', then d = d f'. d_dot and d INOUT, s and s_dot IN (n, size). */
static void ACTIVATION_second(real *restrict d_dot, real *restrict d, const real *restrict s,
                              const real *restrict s_dot, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        d_dot[i] = ACTIVATION_slope(d_dot[i], s[i]) + ACTIVATION_bend(d[i] * s_dot[i], s[i]);
        d[i] = ACTIVATION_slope(d[i], s[i]);
    }
}

/* x */
static inline real identity_value(real x)
{
    return x;
}

/* d f' */
static inline real identity_slope(real d, real s)
{
    (void)s;
    return d;
}

/* 0: f' is constant. */
static inline real identity_bend(real d, real s)
{
    (void)d;
    (void)s;
    return R(0.0);
}

/* max(x, 0) */
static inline real relu_value(real x)
{
    return x <= R(0.0) ? R(0.0) : x;
}

/* d f' */
static inline real relu_slope(real d, real s)
{
    return s <= R(0.0) ? R(0.0) : d;
}

/* 0: f' is constant but for its jump. */
static inline real relu_bend(real d, real s)
{
    (void)d;
    (void)s;
    return R(0.0);
}

/* x, or x / 100 below 0 */
static inline real leaky_relu_value(real x)
{
    return x <= R(0.0) ? x * R(0.01) : x;
}

/* d f' */
static inline real leaky_relu_slope(real d, real s)
{
    return s <= R(0.0) ? d * R(0.01) : d;
}

/* 0: f' is constant but for its jump. */
static inline real leaky_relu_bend(real d, real s)
{
    (void)d;
    (void)s;
    return R(0.0);
}

/* x, or e^x - 1 below 0 */
static inline real elu_value(real x)
{
    return x <= R(0.0) ? nb_expm1(x) : x;
}

/* d f' */
static inline real elu_slope(real d, real s)
{
    return s <= R(0.0) ? d * (s + R(1.0)) : d;
}

/* d times the derivative of f' by s. */
static inline real elu_bend(real d, real s)
{
    return s > R(0.0) ? R(0.0) : d;
}

/* log(1 + e^x) */
static inline real softplus_value(real x)
{
    return nb_softplus(x);
}

/* d f' */
static inline real softplus_slope(real d, real s)
{
    return d * -nb_expm1(-s);
}

/* d times the derivative of f' by s. */
static inline real softplus_bend(real d, real s)
{
    return d * nb_exp(-s);
}

/* 1 / (1 + e^-x) */
static inline real sigmoid_value(real x)
{
    return nb_sigmoid(x);
}

/* d f' */
static inline real sigmoid_slope(real d, real s)
{
    return d * (s * (R(1.0) - s));
}

/* d times the derivative of f' by s. */
static inline real sigmoid_bend(real d, real s)
{
    return d * (R(1.0) - R(2.0) * s);
}

/* tanh(x) */
static inline real tanh_value(real x)
{
    return nb_tanh(x);
}

/* d f' */
static inline real tanh_slope(real d, real s)
{
    return d * (R(1.0) - s * s);
}

/* d times the derivative of f' by s. */
static inline real tanh_bend(real d, real s)
{
    return -d * R(2.0) * s;
}

/* x, or -1000 below it, where f is as at -infinity: 0 times infinity is no number. */
static inline real floored(real x)
{
    return x < R(-1000.0) ? R(-1000.0) : x;
}

/* x within -1000..1000, where f' and f'' are as at the infinities: no power of x overflows. */
static inline real clamped(real x)
{
    const real z = floored(x);
    return z > R(1000.0) ? R(1000.0) : z;
}

/* The chance that a standard normal variable is below x. */
static inline real gaussian_cdf(real x)
{
    return R(0.5) * (R(1.0) + nb_erf(x * R(0.7071067811865476)));
}

/* The density of a standard normal variable. */
static inline real gaussian_density(real x)
{
    return R(0.3989422804014327) * nb_exp(R(-0.5) * x * x);
}

/* x times the chance that a standard normal variable is below x */
static inline real gelu_value(real x)
{
    const real z = floored(x);
    return z * gaussian_cdf(z);
}

/* d f' */
static inline real gelu_slope(real d, real s)
{
    const real x = clamped(s);
    return d * (gaussian_cdf(x) + x * gaussian_density(x));
}

/* d f'' */
static inline real gelu_bend(real d, real s)
{
    const real x = clamped(s);
    return d * (gaussian_density(x) * (R(2.0) - x * x));
}

/* tanh(sqrt(2 / pi) (x + 0.044715 x^3)) */
static inline real gelu_tanh_inner(real x)
{
    return nb_tanh(R(0.7978845608028654) * (x + R(0.044715) * x * x * x));
}

/* gelu with tanh in the place of the error function */
static inline real gelu_tanh_value(real x)
{
    const real z = floored(x);
    return R(0.5) * z * (R(1.0) + gelu_tanh_inner(z));
}

/* d f' */
static inline real gelu_tanh_slope(real d, real s)
{
    const real x = clamped(s), t = gelu_tanh_inner(x);
    const real inner = R(0.7978845608028654) * (R(1.0) + R(0.134145) * x * x);
    return d * (R(0.5) * (R(1.0) + t) + R(0.5) * x * ((R(1.0) - t * t) * inner));
}

/* d f'' */
static inline real gelu_tanh_bend(real d, real s)
{
    const real x = clamped(s), t = gelu_tanh_inner(x);
    const real inner = R(0.7978845608028654) * (R(1.0) + R(0.134145) * x * x);
    const real bend = R(0.21406444881780048) * x;
    return d * ((R(1.0) - t * t) * (inner + R(0.5) * x * (bend - R(2.0) * t * inner * inner)));
}

/* x sigmoid(x) */
static inline real silu_value(real x)
{
    const real z = floored(x);
    return z * nb_sigmoid(z);
}

/* d f' */
static inline real silu_slope(real d, real s)
{
    const real x = clamped(s), p = nb_sigmoid(x);
    return d * (p * (R(1.0) + x * (R(1.0) - p)));
}

/* d f'' */
static inline real silu_bend(real d, real s)
{
    const real x = clamped(s), p = nb_sigmoid(x);
    return d * (p * (R(1.0) - p) * (R(2.0) + x * (R(1.0) - R(2.0) * p)));
}

/* x tanh(log(1 + e^x)) = x w / (w + 2) with w = e (e + 2) and e = e^x */
static inline real mish_value(real x)
{
    const real z = floored(x), e = nb_exp(z > R(40.0) ? R(40.0) : z), w = e * (e + R(2.0));
    return z * (w / (w + R(2.0)));
}

/* The derivative of tanh(log(1 + e^x)). */
static inline real mish_turn(real x)
{
    const real e = nb_exp(x), w = e * (e + R(2.0)) + R(2.0);
    return x > R(40.0) ? R(0.0) : R(4.0) * e * (R(1.0) + e) / (w * w);
}

/* d f' */
static inline real mish_slope(real d, real s)
{
    const real x = clamped(s), e = nb_exp(x > R(40.0) ? R(40.0) : x), w = e * (e + R(2.0));
    return d * (w / (w + R(2.0)) + x * mish_turn(x));
}

/* d f'' */
static inline real mish_bend(real d, real s)
{
    const real x = clamped(s), e = nb_exp(x > R(40.0) ? R(40.0) : x), w = e * (e + R(2.0));
    const real t = w / (w + R(2.0)), p = e / (R(1.0) + e);
    return d * (mish_turn(x) * (R(2.0) + x * (R(1.0) - p * (R(1.0) + R(2.0) * t))));
}

/* 1.0507 x, or 1.7581 (e^x - 1) below 0 */
static inline real selu_value(real x)
{
    return x <= R(0.0) ? R(1.7580993408473766) * nb_expm1(x) : R(1.0507009873554805) * x;
}

/* d f' */
static inline real selu_slope(real d, real s)
{
    return d * (s <= R(0.0) ? s + R(1.7580993408473766) : R(1.0507009873554805));
}

/* d times the derivative of f' by s. */
static inline real selu_bend(real d, real s)
{
    return s > R(0.0) ? R(0.0) : d;
}

/* x / 6 + 1 / 2, within 0..1 */
static inline real hard_sigmoid_value(real x)
{
    return x <= R(-3.0) ? R(0.0) : x >= R(3.0) ? R(1.0) : x * R(0.16666666666666666) + R(0.5);
}

/* d f' */
static inline real hard_sigmoid_slope(real d, real s)
{
    return s > R(0.0) && s < R(1.0) ? d * R(0.16666666666666666) : R(0.0);
}

/* 0: f' is constant but for its jumps. */
static inline real hard_sigmoid_bend(real d, real s)
{
    (void)d;
    (void)s;
    return R(0.0);
}

/* x, within -1..1 */
static inline real hard_tanh_value(real x)
{
    return x <= R(-1.0) ? R(-1.0) : x >= R(1.0) ? R(1.0) : x;
}

/* d f' */
static inline real hard_tanh_slope(real d, real s)
{
    return s > R(-1.0) && s < R(1.0) ? d : R(0.0);
}

/* 0: f' is constant but for its jumps. */
static inline real hard_tanh_bend(real d, real s)
{
    (void)d;
    (void)s;
    return R(0.0);
}

/* x hard_sigmoid(x) */
static inline real hard_swish_value(real x)
{
    return x <= R(-3.0) ? R(0.0) : x >= R(3.0) ? x : x * (x + R(3.0)) * R(0.16666666666666666);
}

/* d f' */
static inline real hard_swish_slope(real d, real s)
{
    return s <= R(-3.0) ? R(0.0) : s >= R(3.0) ? d : d * (s * R(0.3333333333333333) + R(0.5));
}

/* d f'' */
static inline real hard_swish_bend(real d, real s)
{
    return s > R(-3.0) && s < R(3.0) ? d * R(0.3333333333333333) : R(0.0);
}

/* |x| */
static inline real magnitude(real x)
{
    return x < R(0.0) ? -x : x;
}

/* x / (1 + |x|), 1 at infinity */
static inline real softsign_value(real x)
{
    const real z = x > R(1e18) ? R(1e18) : x < R(-1e18) ? R(-1e18) : x;
    return z / (R(1.0) + magnitude(z));
}

/* d f' */
static inline real softsign_slope(real d, real s)
{
    const real rest = R(1.0) - magnitude(s);
    return d * (rest * rest);
}

/* d times the derivative of f' by s. */
static inline real softsign_bend(real d, real s)
{
    const real rest = R(2.0) * (R(1.0) - magnitude(s));
    return s > R(0.0) ? -d * rest : s < R(0.0) ? d * rest : d * s;
}

/* sin(x) */
static inline real sine_value(real x)
{
    return SIN(x);
}

/* d f' */
static inline real sine_slope(real d, real s)
{
    return d * COS(s);
}

/* d f'' */
static inline real sine_bend(real d, real s)
{
    return -d * SIN(s);
}

/* y = softmax(x) of one row, shifted by its maximum so that nothing overflows. */
static void softmax_row(real *restrict y, const real *restrict x, int size)
{
    real top = x[0], total = R(0.0);
    for (int j = 1; j < size; j++) {
        top = x[j] > top ? x[j] : top;
    }
    for (int j = 0; j < size; j++) {
        y[j] = nb_exp(x[j] - top);
        total += y[j];
    }
    const real scale = R(1.0) / total;
    for (int j = 0; j < size; j++) {
        y[j] *= scale;
    }
}

/* y = softmax(x) over the last axis. y OUT, x IN (n * rows, size). */
static void softmax_forward(real *restrict y, const real *restrict x, int n, int rows, int size)
{
    for (int i = 0; i < n * rows; i++) {
        softmax_row(y + i * size, x + i * size, size);
    }
}

/* d = y (d - sum(d y)) in each row. d INOUT, y IN (n * rows, size). */
static void softmax_backward(real *restrict d, const real *restrict y, int n, int rows, int size)
{
    for (int i = 0; i < n * rows; i++, d += size, y += size) {
        real along = R(0.0);
        for (int j = 0; j < size; j++) {
            along += d[j] * y[j];
        }
        for (int j = 0; j < size; j++) {
            d[j] = y[j] * (d[j] - along);
        }
    }
}

/* The tangent of softmax_backward, and it. d_dot and d INOUT, y and y_dot IN (n * rows, size). */
static void softmax_second(real *restrict d_dot, real *restrict d, const real *restrict y, const real *restrict y_dot,
                           int n, int rows, int size)
{
    for (int i = 0; i < n * rows; i++, d_dot += size, d += size, y += size, y_dot += size) {
        real along = R(0.0), change = R(0.0);
        for (int j = 0; j < size; j++) {
            along += d[j] * y[j];
            change += d_dot[j] * y[j] + d[j] * y_dot[j];
        }
        for (int j = 0; j < size; j++) {
            d_dot[j] = y_dot[j] * (d[j] - along) + y[j] * (d_dot[j] - change);
            d[j] = y[j] * (d[j] - along);
        }
    }
}
