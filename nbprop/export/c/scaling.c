/* Scaling between the units of data and those of a network; m and s are the means and standard deviations. */

/* y = (x - m) / s. y OUT, x IN (n * rows, size); m, s IN (size,). */
static void standardize_forward(real *restrict y, const real *restrict x, const real *restrict m,
                                const real *restrict s, int n, int rows, int size)
{
    for (int k = 0; k < n * rows * size; k++) {
        y[k] = (x[k] - m[k % size]) / s[k % size];
    }
}

/* y' = (x' - m' - y s') / s; m' and s' are 0 where trained is 0, and may be NULL.
 * y_dot OUT, y, x_dot IN (n * rows, size); s, m_dot, s_dot IN (size,). */
static void standardize_tangent(real *restrict y_dot, const real *restrict y, const real *restrict x_dot,
                                const real *restrict s, const real *restrict m_dot, const real *restrict s_dot, int n,
                                int rows, int size, int trained)
{
    for (int k = 0; k < n * rows * size; k++) {
        const int j = k % size;
        const real change = trained ? m_dot[j] + y[k] * s_dot[j] : R(0.0);
        y_dot[k] = (x_dot[k] - change) / s[j];
    }
}

/* dx = dy / s. dx OUT, dy IN (n * rows, size); s IN (size,). */
static void standardize_backward(real *restrict dx, const real *restrict dy, const real *restrict s, int n, int rows,
                                 int size)
{
    for (int k = 0; k < n * rows * size; k++) {
        dx[k] = dy[k] / s[k % size];
    }
}

/* dx' = (dy' - dx s') / s; s' is 0 where trained is 0, and may be NULL.
 * dx_dot OUT, dx, dy_dot IN (n * rows, size); s, s_dot IN (size,). */
static void standardize_second(real *restrict dx_dot, const real *restrict dx, const real *restrict dy_dot,
                               const real *restrict s, const real *restrict s_dot, int n, int rows, int size,
                               int trained)
{
    for (int k = 0; k < n * rows * size; k++) {
        const real change = trained ? dx[k] * s_dot[k % size] : R(0.0);
        dx_dot[k] = (dy_dot[k] - change) / s[k % size];
    }
}

/* y = x s + m. y OUT, x IN (n * rows, size); m, s IN (size,). */
static void rescale_forward(real *restrict y, const real *restrict x, const real *restrict m, const real *restrict s,
                            int n, int rows, int size)
{
    for (int k = 0; k < n * rows * size; k++) {
        y[k] = x[k] * s[k % size] + m[k % size];
    }
}

/* y' = x' s + x s' + m'; m' and s' are 0 where trained is 0, and may be NULL.
 * y_dot OUT, x, x_dot IN (n * rows, size); s, m_dot, s_dot IN (size,). */
static void rescale_tangent(real *restrict y_dot, const real *restrict x, const real *restrict x_dot,
                            const real *restrict s, const real *restrict m_dot, const real *restrict s_dot, int n,
                            int rows, int size, int trained)
{
    for (int k = 0; k < n * rows * size; k++) {
        const int j = k % size;
        y_dot[k] = x_dot[k] * s[j] + (trained ? x[k] * s_dot[j] + m_dot[j] : R(0.0));
    }
}

/* dx = dy s. dx OUT, dy IN (n * rows, size); s IN (size,). */
static void rescale_backward(real *restrict dx, const real *restrict dy, const real *restrict s, int n, int rows,
                             int size)
{
    for (int k = 0; k < n * rows * size; k++) {
        dx[k] = dy[k] * s[k % size];
    }
}

/* dx' = dy' s + dy s'; s' is 0 where trained is 0, and may be NULL.
 * dx_dot OUT, dy, dy_dot IN (n * rows, size); s, s_dot IN (size,). */
static void rescale_second(real *restrict dx_dot, const real *restrict dy, const real *restrict dy_dot,
                           const real *restrict s, const real *restrict s_dot, int n, int rows, int size, int trained)
{
    for (int k = 0; k < n * rows * size; k++) {
        dx_dot[k] = dy_dot[k] * s[k % size] + (trained ? dy[k] * s_dot[k % size] : R(0.0));
    }
}

/* dm = sign sum of g, ds = sign sum of g h over the rows; added to where `m_accumulate` or `s_accumulate` is 1.
 * dm, ds OUT (size,), g, h IN (n * rows, size). */
static void scaling_parameters(real *restrict dm, real *restrict ds, const real *restrict g, const real *restrict h,
                               int n, int rows, int size, int sign, int m_accumulate, int s_accumulate)
{
    for (int j = 0; j < size; j++) {
        real shift = R(0.0), scale = R(0.0);
        for (int k = j; k < n * rows * size; k += size) {
            shift += (real)sign * g[k];
            scale += (real)sign * (g[k] * h[k]);
        }
        dm[j] = shift + (m_accumulate ? dm[j] : R(0.0));
        ds[j] = scale + (s_accumulate ? ds[j] : R(0.0));
    }
}

/* The tangent of scaling_parameters: dm = sign sum of g', ds = sign sum of g' h + g h'.
 * dm, ds OUT (size,), g, g_dot, h, h_dot IN (n * rows, size). */
static void scaling_parameters_tangent(real *restrict dm, real *restrict ds, const real *restrict g,
                                       const real *restrict g_dot, const real *restrict h, const real *restrict h_dot,
                                       int n, int rows, int size, int sign, int m_accumulate, int s_accumulate)
{
    for (int j = 0; j < size; j++) {
        real shift = R(0.0), scale = R(0.0);
        for (int k = j; k < n * rows * size; k += size) {
            shift += (real)sign * g_dot[k];
            scale += (real)sign * (g_dot[k] * h[k] + g[k] * h_dot[k]);
        }
        dm[j] = shift + (m_accumulate ? dm[j] : R(0.0));
        ds[j] = scale + (s_accumulate ? ds[j] : R(0.0));
    }
}

/* dm = 0 and ds = 0, unless `m_accumulate` or `s_accumulate` is 1. dm, ds OUT (size,). */
static void untrained_parameters(real *restrict dm, real *restrict ds, int size, int m_accumulate, int s_accumulate)
{
    for (int j = 0; j < size; j++) {
        dm[j] = m_accumulate ? dm[j] : R(0.0);
        ds[j] = s_accumulate ? ds[j] : R(0.0);
    }
}
