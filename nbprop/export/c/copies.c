/* Copies and sums of whole arrays. */

/* y = a + b. y OUT, a and b IN (n, size). */
static void add_forward(real *restrict y, const real *restrict a, const real *restrict b, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        y[i] = a[i] + b[i];
    }
}

/* y += x. y INOUT, x IN (n, size). */
static void add_into(real *restrict y, const real *restrict x, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        y[i] += x[i];
    }
}

/* y = x. y OUT, x IN (n, size). */
static void copy(real *restrict y, const real *restrict x, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        y[i] = x[i];
    }
}

/* y = x, or 0 where x is NULL. y OUT, x IN (n, size). */
static void copy_or_zero(real *restrict y, const real *restrict x, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        y[i] = x != NULL ? x[i] : R(0.0);
    }
}

/* y = x, or 0 where x is NULL. y OUT, x IN (n, positions, size). */
static void copy_within(real *restrict y, const real *restrict x, int n, int positions, int size)
{
    copy_or_zero(y, x, n, positions * size);
}

/* y = v, or 0 where v is NULL: a parameter's part of a direction. */
static void parameters_or_zero(real *restrict y, const real *restrict v, int y_size)
{
    copy_or_zero(y, v, 1, y_size);
}

/* y[:, y_first : y_first + width] = x[:, x_first : x_first + width].
 * y OUT (n * rows, y_width), x IN (n * rows, x_width). */
static void copy_columns(real *restrict y, const real *restrict x, int n, int rows, int y_width, int y_first,
                         int x_width, int x_first, int width)
{
    for (int i = 0; i < n * rows; i++) {
        for (int j = 0; j < width; j++) {
            y[i * y_width + y_first + j] = x[i * x_width + x_first + j];
        }
    }
}

/* dx[:, first : first + width] = dy, 0 elsewhere. dx OUT (n * rows, size), dy IN (n * rows, width). */
static void slicing_backward(real *restrict dx, const real *restrict dy, int n, int rows, int size, int first,
                             int width)
{
    for (int i = 0; i < n * rows; i++) {
        for (int j = 0; j < size; j++) {
            dx[i * size + j] = j >= first && j < first + width ? dy[i * width + j - first] : R(0.0);
        }
    }
}
