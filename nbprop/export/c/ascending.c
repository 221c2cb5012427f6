/* Outputs that rise within each group: y_1 = x_1, y_k = y_(k-1) + softplus(x_k). */

/* y OUT, x IN (n * groups, size). */
static void ascending_forward(real *restrict y, const real *restrict x, int n, int groups, int size)
{
    for (int i = 0; i < n * groups; i++, y += size, x += size) {
        y[0] = x[0];
        for (int k = 1; k < size; k++) {
            y[k] = y[k - 1] + nb_softplus(x[k]);
        }
    }
}

/* y'_1 = x'_1, y'_k = y'_(k-1) + sigmoid(x_k) x'_k. y_dot OUT, x and x_dot IN (n * groups, size). */
static void ascending_tangent(real *restrict y_dot, const real *restrict x, const real *restrict x_dot, int n,
                              int groups, int size)
{
    for (int i = 0; i < n * groups; i++, y_dot += size, x += size, x_dot += size) {
        y_dot[0] = x_dot[0];
        for (int k = 1; k < size; k++) {
            y_dot[k] = y_dot[k - 1] + nb_sigmoid(x[k]) * x_dot[k];
        }
    }
}

/* dx_1 = s_1, dx_k = s_k sigmoid(x_k), s_k the sum of dy_k .. dy_q. dx OUT, dy and x IN (n * groups, size). */
static void ascending_backward(real *restrict dx, const real *restrict dy, const real *restrict x, int n, int groups,
                               int size)
{
    for (int i = 0; i < n * groups; i++, dx += size, dy += size, x += size) {
        real behind = R(0.0);
        for (int k = size - 1; k > 0; k--) {
            behind += dy[k];
            dx[k] = behind * nb_sigmoid(x[k]);
        }
        dx[0] = behind + dy[0];
    }
}

/* The tangent of ascending_backward. dx_dot OUT, dy, dy_dot, x and x_dot IN (n * groups, size). */
static void ascending_second(real *restrict dx_dot, const real *restrict dy, const real *restrict dy_dot,
                             const real *restrict x, const real *restrict x_dot, int n, int groups, int size)
{
    for (int i = 0; i < n * groups; i++, dx_dot += size, dy += size, dy_dot += size, x += size, x_dot += size) {
        real behind = R(0.0), behind_dot = R(0.0);
        for (int k = size - 1; k > 0; k--) {
            const real p = nb_sigmoid(x[k]);
            behind += dy[k];
            behind_dot += dy_dot[k];
            dx_dot[k] = p * (behind_dot + behind * (R(1.0) - p) * x_dot[k]);
        }
        dx_dot[0] = behind_dot + dy_dot[0];
    }
}
