/* Units with a parameter or two inputs, and features: PReLU, gates, Fourier features; sequences turned around. */

/* y = x, or a x where x <= 0. y OUT, x IN (n * rows, size); a IN (size,). */
static void prelu_forward(real *restrict y, const real *restrict x, const real *restrict a, int n, int rows, int size)
{
    for (int k = 0; k < n * rows * size; k++) {
        y[k] = x[k] <= R(0.0) ? a[k % size] * x[k] : x[k];
    }
}

/* y' = x', or a x' + a' x where x <= 0; a' that is NULL is 0.
 * y_dot OUT, x, x_dot IN (n * rows, size); a, a_dot IN (size,). */
static void prelu_tangent(real *restrict y_dot, const real *restrict x, const real *restrict x_dot,
                          const real *restrict a, const real *restrict a_dot, int n, int rows, int size)
{
    for (int k = 0; k < n * rows * size; k++) {
        const real turn = a_dot != NULL ? a_dot[k % size] : R(0.0);
        y_dot[k] = x[k] <= R(0.0) ? a[k % size] * x_dot[k] + turn * x[k] : x_dot[k];
    }
}

/* dx = dy, or a dy where x <= 0. dx OUT, dy, x IN (n * rows, size); a IN (size,). */
static void prelu_backward(real *restrict dx, const real *restrict dy, const real *restrict x, const real *restrict a,
                           int n, int rows, int size)
{
    for (int k = 0; k < n * rows * size; k++) {
        dx[k] = x[k] <= R(0.0) ? a[k % size] * dy[k] : dy[k];
    }
}

/* dx' = dy', or a dy' + a' dy where x <= 0; a' that is NULL is 0.
 * dx_dot OUT, dy, dy_dot, x IN (n * rows, size); a, a_dot IN (size,). */
static void prelu_second(real *restrict dx_dot, const real *restrict dy, const real *restrict dy_dot,
                         const real *restrict x, const real *restrict a, const real *restrict a_dot, int n, int rows,
                         int size)
{
    for (int k = 0; k < n * rows * size; k++) {
        const real turn = a_dot != NULL ? a_dot[k % size] : R(0.0);
        dx_dot[k] = x[k] <= R(0.0) ? a[k % size] * dy_dot[k] + turn * dy[k] : dy_dot[k];
    }
}

/* da = sum of dy x over the rows where x <= 0; added to when a_accumulate is 1.
 * da OUT (size,), dy, x IN (n * rows, size). */
static void prelu_parameters(real *restrict da, const real *restrict dy, const real *restrict x, int n, int rows,
                             int size, int a_accumulate)
{
    for (int j = 0; j < size; j++) {
        real total = R(0.0);
        for (int k = j; k < n * rows * size; k += size) {
            total += x[k] <= R(0.0) ? dy[k] * x[k] : R(0.0);
        }
        da[j] = total + (a_accumulate ? da[j] : R(0.0));
    }
}

/* The tangent of prelu_parameters: da = sum of dy' x + dy x' over the rows where x <= 0.
 * da OUT (size,), dy, dy_dot, x, x_dot IN (n * rows, size). */
static void prelu_parameters_tangent(real *restrict da, const real *restrict dy, const real *restrict dy_dot,
                                     const real *restrict x, const real *restrict x_dot, int n, int rows, int size,
                                     int a_accumulate)
{
    for (int j = 0; j < size; j++) {
        real total = R(0.0);
        for (int k = j; k < n * rows * size; k += size) {
            total += x[k] <= R(0.0) ? dy_dot[k] * x[k] + dy[k] * x_dot[k] : R(0.0);
        }
        da[j] = total + (a_accumulate ? da[j] : R(0.0));
    }
}

/* y = a b. y OUT, a and b IN (n, size). */
static void multiply(real *restrict y, const real *restrict a, const real *restrict b, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        y[i] = a[i] * b[i];
    }
}

/* y' = a' b + a b'. y_dot OUT, a, a_dot, b and b_dot IN (n, size). */
static void multiply_tangent(real *restrict y_dot, const real *restrict a, const real *restrict a_dot,
                             const real *restrict b, const real *restrict b_dot, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        y_dot[i] = a_dot[i] * b[i] + a[i] * b_dot[i];
    }
}

/* y[i, b, a] = x[i, a, b]. y OUT (n, inner, outer, width), x IN (n, outer, inner, width). */
static void swap_axes(real *restrict y, const real *restrict x, int n, int outer, int inner, int width)
{
    for (int row = 0; row < n * inner * outer; row++) {
        const int i = row / (inner * outer), b = row / outer % inner, a = row % outer;
        for (int j = 0; j < width; j++) {
            y[row * width + j] = x[((i * outer + a) * inner + b) * width + j];
        }
    }
}

/* z = scale z, then y = (cos z, sin z) in each row. y OUT (n * rows, 2 units), z INOUT (n * rows, units). */
static void fourier_forward(real *restrict y, real *restrict z, int n, int rows, int units, real scale)
{
    for (int k = 0; k < n * rows * units; k++) {
        real *to = y + 2 * (k / units) * units + k % units;
        z[k] *= scale;
        to[0] = COS(z[k]);
        to[units] = SIN(z[k]);
    }
}

/* y' = scale (-s z', c z') for y = (c, s). y_dot OUT, y IN (n * rows, 2 units), z_dot IN (n * rows, units). */
static void fourier_tangent(real *restrict y_dot, const real *restrict y, const real *restrict z_dot, int n, int rows,
                            int units, real scale)
{
    for (int k = 0; k < n * rows * units; k++) {
        const int at = 2 * (k / units) * units + k % units;
        y_dot[at] = -scale * y[at + units] * z_dot[k];
        y_dot[at + units] = scale * y[at] * z_dot[k];
    }
}

/* dz = scale (e c - d s) for y = (c, s) and dy = (d, e).
 * dz OUT (n * rows, units), dy, y IN (n * rows, 2 units). */
static void fourier_backward(real *restrict dz, const real *restrict dy, const real *restrict y, int n, int rows,
                             int units, real scale)
{
    for (int k = 0; k < n * rows * units; k++) {
        const int at = 2 * (k / units) * units + k % units;
        dz[k] = scale * (dy[at + units] * y[at] - dy[at] * y[at + units]);
    }
}

/* dz' = scale (e' c + e c' - d' s - d s').
 * dz_dot OUT (n * rows, units), dy, dy_dot, y and y_dot IN (n * rows, 2 units). */
static void fourier_second(real *restrict dz_dot, const real *restrict dy, const real *restrict dy_dot,
                           const real *restrict y, const real *restrict y_dot, int n, int rows, int units, real scale)
{
    for (int k = 0; k < n * rows * units; k++) {
        const int c = 2 * (k / units) * units + k % units, s = c + units;
        dz_dot[k] = scale * (dy_dot[s] * y[c] + dy[s] * y_dot[c] - dy_dot[c] * y[s] - dy[c] * y_dot[s]);
    }
}

/* dw = 0, unless w_accumulate is 1. dw OUT (size,). */
static void untrained_weight(real *restrict dw, int size, int w_accumulate)
{
    for (int j = 0; j < size; j++) {
        dw[j] = w_accumulate ? dw[j] : R(0.0);
    }
}

/* y[i, t] = x[i, positions - 1 - t]. y OUT, x IN (n, positions, width). */
static void reverse_positions(real *restrict y, const real *restrict x, int n, int positions, int width)
{
    for (int row = 0; row < n * positions; row++) {
        const int source = row / positions * positions + positions - 1 - row % positions;
        for (int j = 0; j < width; j++) {
            y[row * width + j] = x[source * width + j];
        }
    }
}
