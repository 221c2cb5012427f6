/* Recurrent layers: walks over the positions of sequences, in time-major order (positions, n, width).
 *
 * Of h, and of lstm's c, there are 1 + positions: the first is the state before the sequence.
 */

/* xt[t, i] = x[i, t]. xt OUT (positions, n, width), x IN (n, positions, width). */
static void to_time_major(real *restrict xt, const real *restrict x, int n, int positions, int width)
{
    for (int row = 0; row < positions * n; row++) {
        for (int j = 0; j < width; j++) {
            xt[row * width + j] = x[(row % n * positions + row / n) * width + j];
        }
    }
}

/* x[i, t] = xt[skip + t, i]. x OUT (n, positions, width), xt IN (skip + positions, n, width). */
static void to_sample_major(real *restrict x, const real *restrict xt, int n, int positions, int width, int skip)
{
    for (int row = 0; row < n * positions; row++) {
        for (int j = 0; j < width; j++) {
            x[row * width + j] = xt[((skip + row % positions) * n + row / positions) * width + j];
        }
    }
}

/* dh[t, i] = dy[i] at the last position, else 0. dh OUT (positions, n, width), dy IN (n, width). */
static void from_last(real *restrict dh, const real *restrict dy, int n, int positions, int width)
{
    for (int i = 0; i < positions * n * width; i++) {
        const int first = (positions - 1) * n * width;
        dh[i] = i < first ? R(0.0) : dy[i - first];
    }
}

/* h_0 = 0. h OUT: its first n rows. */
static void begin_state(real *h, int n, int width)
{
    for (int i = 0; i < n * width; i++) {
        h[i] = R(0.0);
    }
}

/* C += A W, where A is NULL or W is: nothing. C (rows, columns) has rows c_width apart, W (inner, columns) w_width. */
static void add_product(real *restrict c, int c_width, const real *restrict a, const real *restrict w, int w_width,
                        int rows, int inner, int columns)
{
    for (int i = 0; i < rows && a != NULL && w != NULL; i++) {
        for (int k = 0; k < inner; k++) {
            for (int j = 0; j < columns; j++) {
                c[i * c_width + j] += a[i * inner + k] * w[k * w_width + j];
            }
        }
    }
}

/* h_t = f(z_t + h_{t-1} U). h INOUT (1 + positions, n, width): h_0 IN; z INOUT (positions, n, width): x W + b, then f's
 * argument; u IN (width, width). */
static void ACTIVATION_rnn_forward(real *restrict h, real *restrict z, const real *restrict u, int n, int positions,
                                   int width)
{
    const int step = n * width;
    for (int t = 0; t < positions; t++) {
        add_product(z + t * step, width, h + t * step, u, width, n, width, width);
        for (int i = t * step; i < (t + 1) * step; i++) {
            h[step + i] = ACTIVATION_value(z[i]);
        }
    }
}

/* h'_t = f' (z'_t + h_{t-1} U' + h'_{t-1} U); a U' that is NULL is zero.
 * h_dot INOUT and h IN (1 + positions, n, width), z_dot INOUT (positions, n, width), u and u_dot IN (width, width). */
static void ACTIVATION_rnn_tangent(real *restrict h_dot, real *restrict z_dot, const real *restrict h,
                                   const real *restrict u, const real *restrict u_dot, int n, int positions, int width)
{
    const int step = n * width;
    for (int t = 0; t < positions; t++) {
        add_product(z_dot + t * step, width, h + t * step, u_dot, width, n, width, width);
        add_product(z_dot + t * step, width, h_dot + t * step, u, width, n, width, width);
        for (int i = t * step; i < (t + 1) * step; i++) {
            h_dot[step + i] = ACTIVATION_slope(z_dot[i], h[step + i]);
        }
    }
}

/* dz_t = dh_t f', dh_{t-1} += dz_t U^T, from the last step to the first.
 * dz OUT, dh INOUT (positions, n, width), h IN (1 + positions, n, width), ut IN (width, width). */
static void ACTIVATION_rnn_backward(real *restrict dz, real *restrict dh, const real *restrict h,
                                    const real *restrict ut, int n, int positions, int width)
{
    const int step = n * width;
    for (int t = positions - 1; t >= 0; t--) {
        for (int i = t * step; i < (t + 1) * step; i++) {
            dz[i] = ACTIVATION_slope(dh[i], h[step + i]);
        }
        if (t > 0) {
            add_product(dh + (t - 1) * step, width, dz + t * step, ut, width, n, width, width);
        }
    }
}

/* The tangent of rnn_backward: dz'_t = dh'_t f' + dh_t (f')', dh'_{t-1} += dz'_t U^T + dz_t U'^T.
 * dz_dot OUT, dh_dot INOUT, dz and dh IN (positions, n, width), h and h_dot IN (1 + positions, n, width). */
static void ACTIVATION_rnn_second(real *restrict dz_dot, real *restrict dh_dot, const real *restrict dz,
                                  const real *restrict dh, const real *restrict h, const real *restrict h_dot,
                                  const real *restrict ut, const real *restrict ut_dot, int n, int positions, int width)
{
    const int step = n * width;
    for (int t = positions - 1; t >= 0; t--) {
        for (int i = t * step; i < (t + 1) * step; i++) {
            dz_dot[i] = ACTIVATION_slope(dh_dot[i], h[step + i]);
            dz_dot[i] += ACTIVATION_bend(dh[i] * h_dot[step + i], h[step + i]);
        }
        if (t > 0) {
            add_product(dh_dot + (t - 1) * step, width, dz_dot + t * step, ut, width, n, width, width);
            add_product(dh_dot + (t - 1) * step, width, dz + t * step, ut_dot, width, n, width, width);
        }
    }
}

/* h_t = o tanh(c_t), c_t = f c_{t-1} + i g, with (i, f, g, o) = (s, s, tanh, s)(z_t + h_{t-1} U), s the sigmoid.
 * h and c INOUT (1 + positions, n, width); z INOUT (positions, n, 4 width): x W + b, then the gates; u IN (width, 4
 * width). */
static void lstm_forward(real *restrict h, real *restrict c, real *restrict z, const real *restrict u, int n,
                         int positions, int width)
{
    const int step = n * width;
    for (int t = 0; t < positions; t++) {
        add_product(z + 4 * t * step, 4 * width, h + t * step, u, 4 * width, n, width, 4 * width);
        for (int k = t * step; k < (t + 1) * step; k++) {
            real *i = z + k / width * 4 * width + k % width, *f = i + width, *g = f + width, *o = g + width;
            *i = nb_sigmoid(*i);
            *f = nb_sigmoid(*f);
            *g = nb_tanh(*g);
            *o = nb_sigmoid(*o);
            c[step + k] = *f * c[k] + *i * *g;
            h[step + k] = *o * nb_tanh(c[step + k]);
        }
    }
}

/* The derivatives h'_t and c'_t along z' and U'; a U' that is NULL is zero. h_dot and c_dot INOUT, h and c IN (1 +
 * positions, n, width); z_dot INOUT: (x W + b)', then the gates', z IN (positions, n, 4 width); u, u_dot IN (width, 4
 * width). */
static void lstm_tangent(real *restrict h_dot, real *restrict c_dot, real *restrict z_dot, const real *restrict h,
                         const real *restrict c, const real *restrict z, const real *restrict u,
                         const real *restrict u_dot, int n, int positions, int width)
{
    const int step = n * width;
    for (int t = 0; t < positions; t++) {
        add_product(z_dot + 4 * t * step, 4 * width, h + t * step, u_dot, 4 * width, n, width, 4 * width);
        add_product(z_dot + 4 * t * step, 4 * width, h_dot + t * step, u, 4 * width, n, width, 4 * width);
        for (int k = t * step; k < (t + 1) * step; k++) {
            const real *i = z + k / width * 4 * width + k % width, *f = i + width, *g = f + width, *o = g + width;
            real *di = z_dot + (i - z), *df = di + width, *dg = df + width, *d_o = dg + width;
            const real tanh_c = nb_tanh(c[step + k]);
            *di *= *i * (R(1.0) - *i);
            *df *= *f * (R(1.0) - *f);
            *dg *= R(1.0) - *g * *g;
            *d_o *= *o * (R(1.0) - *o);
            c_dot[step + k] = *df * c[k] + *f * c_dot[k] + *di * *g + *i * *dg;
            h_dot[step + k] = *d_o * tanh_c + *o * (R(1.0) - tanh_c * tanh_c) * c_dot[step + k];
        }
    }
}

/* dz_t, dc_t and dh_{t-1} += dz_t U^T, from the last step to the first. dz OUT (positions, n, 4 width); dc OUT (n,
 * width), used up; dh INOUT (positions, n, width); c IN (1 + positions, n, width), z the gates, ut IN (4 width,
 * width). */
static void lstm_backward(real *restrict dz, real *restrict dc, real *restrict dh, const real *restrict c,
                          const real *restrict z, const real *restrict ut, int n, int positions, int width)
{
    const int step = n * width;
    for (int k = 0; k < step; k++) {
        dc[k] = R(0.0);
    }
    for (int t = positions - 1; t >= 0; t--) {
        for (int k = t * step; k < (t + 1) * step; k++) {
            const real *i = z + k / width * 4 * width + k % width, *f = i + width, *g = f + width, *o = g + width;
            real *di = dz + (i - z), *df = di + width, *dg = df + width, *d_o = dg + width;
            const real tanh_c = nb_tanh(c[step + k]);
            const real through = dc[k - t * step] + dh[k] * *o * (R(1.0) - tanh_c * tanh_c);
            *di = through * *g * *i * (R(1.0) - *i);
            *df = through * c[k] * *f * (R(1.0) - *f);
            *dg = through * *i * (R(1.0) - *g * *g);
            *d_o = dh[k] * tanh_c * *o * (R(1.0) - *o);
            dc[k - t * step] = through * *f;
        }
        if (t > 0) {
            add_product(dh + (t - 1) * step, width, dz + 4 * t * step, ut, width, n, 4 * width, width);
        }
    }
}

/* The tangent of lstm_backward: dz'_t, dc'_t, dc_t again, and dh'_{t-1} += dz'_t U^T + dz_t U'^T. Arrays as there and
 * in lstm_tangent; dz_dot OUT, dc_dot and dc OUT (n, width), used up, dh_dot INOUT. */
static void lstm_second(real *restrict dz_dot, real *restrict dc_dot, real *restrict dc, real *restrict dh_dot,
                        const real *restrict dz, const real *restrict dh, const real *restrict c,
                        const real *restrict c_dot, const real *restrict z, const real *restrict z_dot,
                        const real *restrict ut, const real *restrict ut_dot, int n, int positions, int width)
{
    const int step = n * width;
    for (int k = 0; k < step; k++) {
        dc[k] = R(0.0);
        dc_dot[k] = R(0.0);
    }
    for (int t = positions - 1; t >= 0; t--) {
        for (int k = t * step; k < (t + 1) * step; k++) {
            const int at = k / width * 4 * width + k % width, sample = k - t * step;
            const real i = z[at], f = z[at + width], g = z[at + 2 * width], o = z[at + 3 * width];
            const real i_dot = z_dot[at], f_dot = z_dot[at + width], g_dot = z_dot[at + 2 * width];
            const real o_dot = z_dot[at + 3 * width];
            const real tanh_c = nb_tanh(c[step + k]), rest = R(1.0) - tanh_c * tanh_c;
            const real tanh_c_dot = rest * c_dot[step + k];
            const real through = dc[sample] + dh[k] * o * rest;
            const real through_dot = dc_dot[sample] + (dh_dot[k] * o + dh[k] * o_dot) * rest
                - R(2.0) * dh[k] * o * tanh_c * tanh_c_dot;
            dz_dot[at] = (through_dot * g + through * g_dot) * (i * (R(1.0) - i))
                + through * g * (i_dot * (R(1.0) - R(2.0) * i));
            dz_dot[at + width] = (through_dot * c[k] + through * c_dot[k]) * (f * (R(1.0) - f))
                + through * c[k] * (f_dot * (R(1.0) - R(2.0) * f));
            dz_dot[at + 2 * width] = (through_dot * i + through * i_dot) * (R(1.0) - g * g)
                - R(2.0) * through * i * g * g_dot;
            dz_dot[at + 3 * width] = dh_dot[k] * tanh_c * (o * (R(1.0) - o))
                + dh[k] * (tanh_c_dot * (o * (R(1.0) - o)) + tanh_c * (o_dot * (R(1.0) - R(2.0) * o)));
            dc_dot[sample] = through_dot * f + through * f_dot;
            dc[sample] = through * f;
        }
        if (t > 0) {
            add_product(dh_dot + (t - 1) * step, width, dz_dot + 4 * t * step, ut, width, n, 4 * width, width);
            add_product(dh_dot + (t - 1) * step, width, dz + 4 * t * step, ut_dot, width, n, 4 * width, width);
        }
    }
}

/* The products of a gru's step: h U's blocks r and z are added to g, its block n to q; rows are those of step t. */
static void gru_products(real *restrict g, real *restrict q, const real *restrict h, const real *restrict u, int n,
                         int width)
{
    add_product(g, 3 * width, h, u, 3 * width, n, width, 2 * width);
    add_product(q, width, h, u != NULL ? u + 2 * width : NULL, 3 * width, n, width, width);
}

/* h_t = (1 - z) m + z h_{t-1}, m = tanh(m + r q), with (r, z) = s(x W + b + h_{t-1} U), q = h_{t-1} U + a.
 * h INOUT (1 + positions, n, width); g INOUT (positions, n, 3 width): x W + b, then the gates r, z and m; q OUT
 * (positions, n, width); u IN (width, 3 width), a IN (width,). */
static void gru_forward(real *restrict h, real *restrict g, real *restrict q, const real *restrict u,
                        const real *restrict a, int n, int positions, int width)
{
    const int step = n * width;
    for (int t = 0; t < positions; t++) {
        for (int k = t * step; k < (t + 1) * step; k++) {
            q[k] = a[k % width];
        }
        gru_products(g + 3 * t * step, q + t * step, h + t * step, u, n, width);
        for (int k = t * step; k < (t + 1) * step; k++) {
            real *r = g + k / width * 3 * width + k % width, *z = r + width, *m = z + width;
            *r = nb_sigmoid(*r);
            *z = nb_sigmoid(*z);
            *m = nb_tanh(*m + *r * q[k]);
            h[step + k] = *m + *z * (h[k] - *m);
        }
    }
}

/* The derivative h'_t along g', U' and a'; a U' that is NULL is zero.
 * h_dot INOUT, h IN (1 + positions, n, width); g_dot INOUT: (x W + b)', then the gates', g IN (positions, n,
 * 3 width); q_dot OUT, q IN (positions, n, width); a_dot IN (width,). */
static void gru_tangent(real *restrict h_dot, real *restrict g_dot, real *restrict q_dot, const real *restrict h,
                        const real *restrict g, const real *restrict q, const real *restrict u,
                        const real *restrict u_dot, const real *restrict a_dot, int n, int positions, int width)
{
    const int step = n * width;
    for (int t = 0; t < positions; t++) {
        for (int k = t * step; k < (t + 1) * step; k++) {
            q_dot[k] = a_dot[k % width];
        }
        gru_products(g_dot + 3 * t * step, q_dot + t * step, h + t * step, u_dot, n, width);
        gru_products(g_dot + 3 * t * step, q_dot + t * step, h_dot + t * step, u, n, width);
        for (int k = t * step; k < (t + 1) * step; k++) {
            const real *r = g + k / width * 3 * width + k % width, *z = r + width, *m = z + width;
            real *r_dot = g_dot + (r - g), *z_dot = r_dot + width, *m_dot = z_dot + width;
            *r_dot *= *r * (R(1.0) - *r);
            *z_dot *= *z * (R(1.0) - *z);
            *m_dot = (*m_dot + *r_dot * q[k] + *r * q_dot[k]) * (R(1.0) - *m * *m);
            h_dot[step + k] = *m_dot + *z_dot * (h[k] - *m) + *z * (h_dot[k] - *m_dot);
        }
    }
}

/* The gradients dg by x W + b and du by h U, and dh_{t-1}, from the last step to the first.
 * dg and du OUT (positions, n, 3 width); dh INOUT (positions, n, width); h, g and q IN as in gru_forward; ut IN
 * (3 width, width). */
static void gru_backward(real *restrict dg, real *restrict du, real *restrict dh, const real *restrict h,
                         const real *restrict g, const real *restrict q, const real *restrict ut, int n, int positions,
                         int width)
{
    const int step = n * width;
    for (int t = positions - 1; t >= 0; t--) {
        for (int k = t * step; k < (t + 1) * step; k++) {
            const int at = k / width * 3 * width + k % width;
            const real r = g[at], z = g[at + width], m = g[at + 2 * width];
            const real dm = dh[k] * (R(1.0) - z) * (R(1.0) - m * m);
            dg[at] = du[at] = dm * q[k] * r * (R(1.0) - r);
            dg[at + width] = du[at + width] = dh[k] * (h[k] - m) * z * (R(1.0) - z);
            dg[at + 2 * width] = dm;
            du[at + 2 * width] = dm * r;
            if (t > 0) {
                dh[k - step] += dh[k] * z;
            }
        }
        if (t > 0) {
            add_product(dh + (t - 1) * step, width, du + 3 * t * step, ut, width, n, 3 * width, width);
        }
    }
}

/* The tangent of gru_backward. dg_dot and du_dot OUT, dh_dot INOUT, the others IN, as there and in gru_tangent. */
static void gru_second(real *restrict dg_dot, real *restrict du_dot, real *restrict dh_dot, const real *restrict du,
                       const real *restrict dh, const real *restrict h, const real *restrict h_dot,
                       const real *restrict g, const real *restrict g_dot, const real *restrict q,
                       const real *restrict q_dot, const real *restrict ut, const real *restrict ut_dot, int n,
                       int positions, int width)
{
    const int step = n * width;
    for (int t = positions - 1; t >= 0; t--) {
        for (int k = t * step; k < (t + 1) * step; k++) {
            const int at = k / width * 3 * width + k % width;
            const real r = g[at], z = g[at + width], m = g[at + 2 * width];
            const real r_dot = g_dot[at], z_dot = g_dot[at + width], m_dot = g_dot[at + 2 * width];
            const real dm = dh[k] * (R(1.0) - z) * (R(1.0) - m * m);
            const real dm_dot = (dh_dot[k] * (R(1.0) - z) - dh[k] * z_dot) * (R(1.0) - m * m)
                - R(2.0) * dh[k] * (R(1.0) - z) * m * m_dot;
            const real apart = h[k] - m, apart_dot = h_dot[k] - m_dot;
            dg_dot[at] = du_dot[at] = (dm_dot * q[k] + dm * q_dot[k]) * (r * (R(1.0) - r))
                + dm * q[k] * (r_dot * (R(1.0) - R(2.0) * r));
            dg_dot[at + width] = du_dot[at + width] = (dh_dot[k] * apart + dh[k] * apart_dot) * (z * (R(1.0) - z))
                + dh[k] * apart * (z_dot * (R(1.0) - R(2.0) * z));
            dg_dot[at + 2 * width] = dm_dot;
            du_dot[at + 2 * width] = dm_dot * r + dm * r_dot;
            if (t > 0) {
                dh_dot[k - step] += dh_dot[k] * z + dh[k] * z_dot;
            }
        }
        if (t > 0) {
            add_product(dh_dot + (t - 1) * step, width, du_dot + 3 * t * step, ut, width, n, 3 * width, width);
            add_product(dh_dot + (t - 1) * step, width, du + 3 * t * step, ut_dot, width, n, 3 * width, width);
        }
    }
}

/* da = the sum of the last block of du's rows, added to when `a_accumulate`.
 * da OUT (width,), du IN (positions * n, 3 width). */
static void gru_recurrent_bias(real *restrict da, const real *restrict du, int n, int positions, int width,
                               int a_accumulate)
{
    for (int j = 0; j < width; j++) {
        real total = a_accumulate ? da[j] : R(0.0);
        for (int i = 0; i < positions * n; i++) {
            total += du[i * 3 * width + 2 * width + j];
        }
        da[j] = total;
    }
}
