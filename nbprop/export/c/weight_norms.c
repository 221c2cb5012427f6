/* Weights that are computed: a length times a direction, or over the largest singular value. */

/* The sum of a b over a column of (rows, units). */
static real column_product(const real *a, const real *b, int rows, int units, int j)
{
    real total = R(0.0);
    for (int k = j; k < rows * units; k += units) {
        total += a[k] * b[k];
    }
    return total;
}

/* The sum of a b. a and b IN (size,). */
static real product_of(const real *a, const real *b, int size)
{
    real total = R(0.0);
    for (int k = 0; k < size; k++) {
        total += a[k] * b[k];
    }
    return total;
}

/* w = g v / |v|, norms = |v|, of each column. w OUT, v IN (rows, units); norms OUT, g IN (units,). */
static void weight_norm_forward(real *restrict w, real *restrict norms, const real *restrict v, const real *restrict g,
                                int rows, int units)
{
    for (int j = 0; j < units; j++) {
        norms[j] = SQRT(column_product(v, v, rows, units, j));
    }
    for (int k = 0; k < rows * units; k++) {
        w[k] = g[k % units] / norms[k % units] * v[k];
    }
}

/* |v|' = v . v' / |v|;  w' = a v' + a' v with a = g / |v|, a' = (g' - a |v|') / |v|, of each column.
 * w_dot OUT, v and v_dot IN (rows, units); norms_dot OUT, norms, g and g_dot IN (units,). */
static void weight_norm_tangent(real *restrict w_dot, real *restrict norms_dot, const real *restrict v,
                                const real *restrict v_dot, const real *restrict norms, const real *restrict g,
                                const real *restrict g_dot, int rows, int units)
{
    for (int j = 0; j < units; j++) {
        norms_dot[j] = column_product(v, v_dot, rows, units, j) / norms[j];
        const real a = g[j] / norms[j], a_dot = (g_dot[j] - a * norms_dot[j]) / norms[j];
        for (int k = j; k < rows * units; k += units) {
            w_dot[k] = a * v_dot[k] + a_dot * v[k];
        }
    }
}

/* along = d = dw . v / |v|, of each column. along OUT, norms IN (units,); dw and v IN (rows, units). */
static void weight_norm_along(real *restrict along, const real *restrict dw, const real *restrict v,
                              const real *restrict norms, int rows, int units)
{
    for (int j = 0; j < units; j++) {
        along[j] = column_product(dw, v, rows, units, j) / norms[j];
    }
}

/* dg = d;  dv = a (dw - v d / |v|) with a = g / |v|, of each column.
 * dv OUT, dw and v IN (rows, units); dg OUT, along, norms and g IN (units,), along is d. */
static void weight_norm_backward(real *restrict dv, real *restrict dg, const real *restrict along,
                                 const real *restrict dw, const real *restrict v, const real *restrict norms,
                                 const real *restrict g, int rows, int units, int v_accumulate, int g_accumulate)
{
    for (int j = 0; j < units; j++) {
        const real a = g[j] / norms[j];
        dg[j] = along[j] + (g_accumulate ? dg[j] : R(0.0));
        for (int k = j; k < rows * units; k += units) {
            dv[k] = a * (dw[k] - v[k] * (along[j] / norms[j])) + (v_accumulate ? dv[k] : R(0.0));
        }
    }
}

/* The tangent of weight_norm_backward: turn = d' = (dw' . v + dw . v' - d |v|') / |v|;  dg' = d';
 * dv' = a' dw + a dw' - b' v - b v' with b = a d / |v|, b' = (a' d + a d' - b |v|') / |v|.
 * dv_dot OUT, dw, dw_dot, v and v_dot IN (rows, units); dg_dot and turn OUT, norms, norms_dot, g, g_dot and along IN
 * (units,). */
static void weight_norm_second(real *restrict dv_dot, real *restrict dg_dot, real *restrict turn,
                               const real *restrict dw, const real *restrict dw_dot, const real *restrict v,
                               const real *restrict v_dot, const real *restrict norms, const real *restrict norms_dot,
                               const real *restrict g, const real *restrict g_dot, const real *restrict along,
                               int rows, int units, int v_accumulate, int g_accumulate)
{
    for (int j = 0; j < units; j++) {
        const real products = column_product(dw_dot, v, rows, units, j) + column_product(dw, v_dot, rows, units, j);
        turn[j] = (products - along[j] * norms_dot[j]) / norms[j];
        dg_dot[j] = turn[j] + (g_accumulate ? dg_dot[j] : R(0.0));
        const real a = g[j] / norms[j], a_dot = (g_dot[j] - a * norms_dot[j]) / norms[j];
        const real b = a * along[j] / norms[j];
        const real b_dot = (a_dot * along[j] + a * turn[j] - b * norms_dot[j]) / norms[j];
        for (int k = j; k < rows * units; k += units) {
            const real found = a_dot * dw[k] + a * dw_dot[k] - b_dot * v[k] - b * v_dot[k];
            dv_dot[k] = found + (v_accumulate ? dv_dot[k] : R(0.0));
        }
    }
}

/* direction = u / |u|. direction OUT, u IN (units,). */
static void spectral_direction(real *restrict direction, const real *restrict u, int units)
{
    const real length = SQRT(product_of(u, u, units));
    for (int j = 0; j < units; j++) {
        direction[j] = u[j] / length;
    }
}

/* t = W direction. t OUT (rows,), w IN (rows, units), direction IN (units,). */
static void spectral_image(real *restrict t, const real *restrict w, const real *restrict direction, int rows, int units)
{
    for (int r = 0; r < rows; r++) {
        t[r] = product_of(w + r * units, direction, units);
    }
}

/* y = W / sigma, sigma = |t|. y OUT, w IN (rows, units), t IN (rows,). */
static void spectral_forward(real *restrict y, const real *restrict w, const real *restrict t, int rows, int units)
{
    const real sigma = SQRT(product_of(t, t, rows));
    for (int k = 0; k < rows * units; k++) {
        y[k] = w[k] / sigma;
    }
}

/* u = W^T t / |t|, one step of the power iteration. u OUT (units,), w IN (rows, units), t IN (rows,). */
static void spectral_update(real *restrict u, const real *restrict w, const real *restrict t, int rows, int units)
{
    const real sigma = SQRT(product_of(t, t, rows));
    for (int j = 0; j < units; j++) {
        u[j] = R(0.0);
        for (int r = 0; r < rows; r++) {
            u[j] += t[r] / sigma * w[r * units + j];
        }
    }
}

/* y' = W' / sigma - W sigma' / sigma^2, sigma' = t . t' / sigma.
 * y_dot OUT, w and w_dot IN (rows, units); t and t_dot IN (rows,). */
static void spectral_tangent(real *restrict y_dot, const real *restrict w, const real *restrict w_dot,
                             const real *restrict t, const real *restrict t_dot, int rows, int units)
{
    const real sigma = SQRT(product_of(t, t, rows)), change = product_of(t, t_dot, rows) / sigma / sigma;
    for (int k = 0; k < rows * units; k++) {
        y_dot[k] = (w_dot[k] - w[k] * change) / sigma;
    }
}

/* sums = the sum of dw W over each row. sums OUT (rows,), dw and w IN (rows, units). */
static void spectral_products(real *restrict sums, const real *restrict dw, const real *restrict w, int rows, int units)
{
    for (int r = 0; r < rows; r++) {
        sums[r] = product_of(dw + r * units, w + r * units, units);
    }
}

/* dv = dw / sigma - k t direction^T, k = sum(sums) / sigma^3.
 * dv OUT, dw IN (rows, units); sums and t IN (rows,); direction IN (units,). */
static void spectral_backward(real *restrict dv, const real *restrict dw, const real *restrict sums,
                              const real *restrict t, const real *restrict direction, int rows, int units,
                              int v_accumulate)
{
    const real sigma = SQRT(product_of(t, t, rows));
    real total = R(0.0);
    for (int r = 0; r < rows; r++) {
        total += sums[r];
    }
    const real k = total / sigma / sigma / sigma;
    for (int i = 0; i < rows * units; i++) {
        dv[i] = dw[i] / sigma - k * t[i / units] * direction[i % units] + (v_accumulate ? dv[i] : R(0.0));
    }
}

/* The tangent of spectral_backward: dv' = (dw' - dw sigma' / sigma) / sigma - (k' t + k t') direction^T;
 * k' = sum(sums') / sigma^3 - 3 k sigma' / sigma, where sums' are sums_dot + more_dot.
 * dv_dot OUT, dw and dw_dot IN (rows, units); sums, sums_dot, more_dot, t and t_dot IN (rows,); direction IN (units,). */
static void spectral_second(real *restrict dv_dot, const real *restrict dw, const real *restrict dw_dot,
                            const real *restrict sums, const real *restrict sums_dot, const real *restrict more_dot,
                            const real *restrict t, const real *restrict t_dot, const real *restrict direction,
                            int rows, int units, int v_accumulate)
{
    const real sigma = SQRT(product_of(t, t, rows)), change = product_of(t, t_dot, rows) / sigma / sigma;
    real total = R(0.0), total_dot = R(0.0);
    for (int r = 0; r < rows; r++) {
        total += sums[r];
        total_dot += sums_dot[r] + more_dot[r];
    }
    const real k = total / sigma / sigma / sigma;
    const real k_dot = total_dot / sigma / sigma / sigma - R(3.0) * k * change;
    for (int i = 0; i < rows * units; i++) {
        const int r = i / units;
        const real turn = (k_dot * t[r] + k * t_dot[r]) * direction[i % units];
        dv_dot[i] = (dw_dot[i] - dw[i] * change) / sigma - turn + (v_accumulate ? dv_dot[i] : R(0.0));
    }
}
