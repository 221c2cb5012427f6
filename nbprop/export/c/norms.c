/* Normalizations: of each row by its own statistics, of each feature by fixed ones, of channels by their neighbours. */

/* x^ of element j: statistics are a row's mean, what rounding left of it, and r = 1 / sqrt(variance + epsilon). */
static inline real normalized(const real *x, const real *statistics, int j)
{
    return ((x[j] - statistics[0]) - statistics[1]) * statistics[2];
}

/* y = s x^ + b in each row, x^ = (x - mean) r; not `centered`: x^ = x r.
 * y OUT, x IN (n * rows, size); statistics OUT (n * rows, 3): mean, rest and r; s and b IN (size,) or NULL. */
static void layernorm_forward(real *restrict y, real *restrict statistics, const real *restrict x,
                              const real *restrict s, const real *restrict b, int n, int rows, int size, real epsilon,
                              int centered)
{
    for (int i = 0; i < n * rows; i++, y += size, x += size, statistics += 3) {
        real mean = R(0.0), rest = R(0.0), squares = R(0.0);
        for (int j = 0; j < size && centered; j++) {
            mean += x[j];
        }
        mean /= (real)size;
        for (int j = 0; j < size; j++) {
            const real distance = x[j] - mean;
            rest += distance;
            squares += distance * distance;
        }
        /* The mean of what is left keeps the digits of the differences, however far from zero x lies. */
        rest = centered ? rest / (real)size : R(0.0);
        statistics[0] = mean;
        statistics[1] = rest;
        statistics[2] = R(1.0) / SQRT(squares / (real)size - rest * rest + epsilon);
        for (int j = 0; j < size; j++) {
            y[j] = normalized(x, statistics, j) * (s != NULL ? s[j] : R(1.0)) + (b != NULL ? b[j] : R(0.0));
        }
    }
}

/* row = x^' along x_dot: r (t - x^ c), t = x_dot without its mean; returns c = the mean of x^ t. */
static real normalized_tangent(real *restrict row, const real *restrict x, const real *restrict x_dot,
                               const real *restrict statistics, int size, int centered)
{
    real mean = R(0.0), c = R(0.0);
    for (int j = 0; j < size && centered; j++) {
        mean += x_dot[j];
    }
    mean /= (real)size;
    for (int j = 0; j < size; j++) {
        row[j] = x_dot[j] - mean;
        c += normalized(x, statistics, j) * row[j];
    }
    c /= (real)size;
    for (int j = 0; j < size; j++) {
        row[j] = statistics[2] * (row[j] - normalized(x, statistics, j) * c);
    }
    return c;
}

/* y' = s x^' + s' x^ + b' in each row; a direction that is NULL is zero.
 * y_dot OUT, x and x_dot IN (n * rows, size); s, s_dot, b_dot IN (size,) or NULL. */
static void layernorm_tangent(real *restrict y_dot, const real *restrict x, const real *restrict x_dot,
                              const real *restrict statistics, const real *restrict s, const real *restrict s_dot,
                              const real *restrict b_dot, int n, int rows, int size, int centered)
{
    for (int i = 0; i < n * rows; i++, y_dot += size, x += size, x_dot += size, statistics += 3) {
        (void)normalized_tangent(y_dot, x, x_dot, statistics, size, centered);
        for (int j = 0; j < size; j++) {
            y_dot[j] = y_dot[j] * (s != NULL ? s[j] : R(1.0)) + (b_dot != NULL ? b_dot[j] : R(0.0));
            y_dot[j] += s_dot != NULL ? s_dot[j] * normalized(x, statistics, j) : R(0.0);
        }
    }
}

/* dx = r (g - m(g) - x^ m(g x^)) with g = dy s and m the mean of a row, and the sums of dy x^ and of dy.
 * dx OUT, dy and x IN (n * rows, size); sums OUT (2, size); s IN (size,) or NULL. */
static void layernorm_backward(real *restrict dx, real *restrict sums, const real *restrict dy,
                               const real *restrict x, const real *restrict statistics, const real *restrict s, int n,
                               int rows, int size, int centered)
{
    for (int j = 0; j < 2 * size; j++) {
        sums[j] = R(0.0);
    }
    for (int i = 0; i < n * rows; i++, dx += size, dy += size, x += size, statistics += 3) {
        real mean = R(0.0), along = R(0.0);
        for (int j = 0; j < size; j++) {
            const real h = normalized(x, statistics, j);
            sums[j] += dy[j] * h;
            sums[size + j] += dy[j];
            dx[j] = dy[j] * (s != NULL ? s[j] : R(1.0));
            mean += dx[j];
            along += dx[j] * h;
        }
        mean = centered ? mean / (real)size : R(0.0);
        along /= (real)size;
        for (int j = 0; j < size; j++) {
            dx[j] = statistics[2] * (dx[j] - mean - normalized(x, statistics, j) * along);
        }
    }
}

/* The tangent of layernorm_backward: dx' and the sums of (dy x^)' and of dy'. With k = x^' and r' = -r^2 c,
 * dx' = r (g' - m(g') - k m(g x^) - x^ (m(g' x^) + m(g k)) - r c (g - m(g) - x^ m(g x^))), g' = dy' s + dy s'.
 * Arrays as there; dy_dot and x_dot IN (n * rows, size), s_dot IN (size,) or NULL; scratch: a row. */
static void layernorm_second(real *restrict dx_dot, real *restrict sums, real *restrict scratch,
                             const real *restrict dy, const real *restrict dy_dot, const real *restrict x,
                             const real *restrict x_dot, const real *restrict statistics, const real *restrict s,
                             const real *restrict s_dot, int n, int rows, int size, int centered)
{
    real *k = scratch;
    for (int j = 0; j < 2 * size; j++) {
        sums[j] = R(0.0);
    }
    for (int i = 0; i < n * rows; i++, dx_dot += size, dy += size, dy_dot += size, x += size, x_dot += size) {
        const real *kept = statistics + 3 * i;
        const real c = normalized_tangent(k, x, x_dot, kept, size, centered);
        real mean = R(0.0), change = R(0.0), along = R(0.0), turn = R(0.0);
        for (int j = 0; j < size; j++) {
            const real h = normalized(x, kept, j), g = dy[j] * (s != NULL ? s[j] : R(1.0));
            sums[j] += dy_dot[j] * h + dy[j] * k[j];
            sums[size + j] += dy_dot[j];
            dx_dot[j] = dy_dot[j] * (s != NULL ? s[j] : R(1.0)) + (s_dot != NULL ? dy[j] * s_dot[j] : R(0.0));
            mean += g;
            change += dx_dot[j];
            along += g * h;
            turn += dx_dot[j] * h + g * k[j];
        }
        mean = centered ? mean / (real)size : R(0.0);
        change = centered ? change / (real)size : R(0.0);
        along /= (real)size;
        turn /= (real)size;
        for (int j = 0; j < size; j++) {
            const real h = normalized(x, kept, j), g = dy[j] * (s != NULL ? s[j] : R(1.0));
            const real straight = g - mean - h * along;
            dx_dot[j] = kept[2] * (dx_dot[j] - change - k[j] * along - h * turn - kept[2] * c * straight);
        }
    }
}

/* ds and db = the sums; added to where `s_accumulate` or `b_accumulate` is 1.
 *
 * ds and db OUT (size,) or NULL, sums IN (2, size).
 */
static void layernorm_parameters(real *restrict ds, real *restrict db, const real *restrict sums, int size,
                                 int s_accumulate, int b_accumulate)
{
    if (ds != NULL) {
        add_row_sum(ds, sums, 1, size, s_accumulate);
    }
    if (db != NULL) {
        add_row_sum(db, sums + size, 1, size, b_accumulate);
    }
}

/* The statistics of each feature: the running mean, and r = 1 / sqrt(running variance + epsilon).
 * statistics OUT (4, size), of which rows 0 and 2 are used; the others IN (size,). */
static void batchnorm_running(real *restrict statistics, const real *restrict running_mean,
                              const real *restrict running_variance, int size, real epsilon)
{
    for (int j = 0; j < size; j++) {
        statistics[j] = running_mean[j];
        statistics[2 * size + j] = R(1.0) / SQRT(running_variance[j] + epsilon);
    }
}

/* y = s x^ + b with x^ = (x - mean) r. y OUT, x IN (n * rows, size); statistics as above; s and b IN (size,). */
static void batchnorm_apply(real *restrict y, const real *restrict x, const real *restrict statistics,
                            const real *restrict s, const real *restrict b, int n, int rows, int size)
{
    const real *mean = statistics, *r = statistics + 2 * size;
    for (int i = 0; i < n * rows; i++, y += size, x += size) {
        for (int j = 0; j < size; j++) {
            y[j] = (x[j] - mean[j]) * r[j] * s[j] + b[j];
        }
    }
}

/* The sums of dy and of dy x^ over all rows. sums OUT (2, size), dy and x IN (n * rows, size). */
static void batchnorm_products(real *restrict sums, const real *restrict dy, const real *restrict x,
                               const real *restrict statistics, int n, int rows, int size)
{
    const real *mean = statistics, *r = statistics + 2 * size;
    for (int j = 0; j < 2 * size; j++) {
        sums[j] = R(0.0);
    }
    for (int i = 0; i < n * rows; i++, dy += size, x += size) {
        for (int j = 0; j < size; j++) {
            sums[j] += dy[j];
            sums[size + j] += dy[j] * ((x[j] - mean[j]) * r[j]);
        }
    }
}

/* db and ds = the sums; added to where `b_accumulate` or `s_accumulate` is 1.
 *
 * db and ds OUT (size,), sums IN (2, size).
 */
static void batchnorm_totals(real *restrict db, real *restrict ds, const real *restrict sums, int size,
                             int b_accumulate, int s_accumulate)
{
    add_row_sum(db, sums, 1, size, b_accumulate);
    add_row_sum(ds, sums + size, 1, size, s_accumulate);
}

/* dx = s r dy. dx OUT, dy IN (n * rows, size). */
static void batchnorm_backward(real *restrict dx, const real *restrict dy, const real *restrict statistics,
                               const real *restrict s, int n, int rows, int size)
{
    for (int i = 0; i < n * rows * size; i++) {
        dx[i] = s[i % size] * statistics[2 * size + i % size] * dy[i];
    }
}

/* y' = s r x' + s' x^ + b'; a direction that is NULL is zero. y_dot OUT, x and x_dot IN (n * rows, size). */
static void batchnorm_tangent(real *restrict y_dot, const real *restrict x, const real *restrict x_dot,
                              const real *restrict statistics, const real *restrict s, const real *restrict s_dot,
                              const real *restrict b_dot, int n, int rows, int size)
{
    const real *mean = statistics, *r = statistics + 2 * size;
    for (int i = 0; i < n * rows; i++, y_dot += size, x += size, x_dot += size) {
        for (int j = 0; j < size; j++) {
            y_dot[j] = s[j] * r[j] * x_dot[j];
            y_dot[j] += s_dot != NULL ? s_dot[j] * ((x[j] - mean[j]) * r[j]) + b_dot[j] : R(0.0);
        }
    }
}

/* The tangent of batchnorm_products: the sums of dy' and of dy' x^ + dy r x'. */
static void batchnorm_second_products(real *restrict sums, const real *restrict dy, const real *restrict dy_dot,
                                      const real *restrict x, const real *restrict x_dot,
                                      const real *restrict statistics, int n, int rows, int size)
{
    const real *mean = statistics, *r = statistics + 2 * size;
    for (int j = 0; j < 2 * size; j++) {
        sums[j] = R(0.0);
    }
    for (int i = 0; i < n * rows; i++, dy += size, dy_dot += size, x += size, x_dot += size) {
        for (int j = 0; j < size; j++) {
            sums[j] += dy_dot[j];
            sums[size + j] += dy_dot[j] * ((x[j] - mean[j]) * r[j]) + dy[j] * (r[j] * x_dot[j]);
        }
    }
}

/* dx' = s' r dy + s r dy': the tangent of batchnorm_backward. */
static void batchnorm_second(real *restrict dx_dot, const real *restrict dy, const real *restrict dy_dot,
                             const real *restrict statistics, const real *restrict s, const real *restrict s_dot,
                             int n, int rows, int size)
{
    for (int i = 0; i < n * rows * size; i++) {
        const int j = i % size;
        dx_dot[i] = statistics[2 * size + j] * (s_dot[j] * dy[i] + s[j] * dy_dot[i]);
    }
}

/* The sum of a_j b_j over the channels j from i + first to i + last that exist. */
static real nearby(const real *a, const real *b, int i, int first, int last, int channels)
{
    real total = R(0.0);
    for (int j = i + first < 0 ? 0 : i + first; j < channels && j <= i + last; j++) {
        total += a[j] * b[j];
    }
    return total;
}

/* d = k + alpha times the sum of x^2 nearby, y = x / d^beta. y and d OUT, x IN (n, pixels, channels). */
static void norm_forward(real *restrict y, real *restrict d, const real *restrict x, int n, int pixels, int channels,
                         int size, real alpha, real beta, real k)
{
    for (int p = 0; p < n * pixels; p++, y += channels, d += channels, x += channels) {
        for (int i = 0; i < channels; i++) {
            d[i] = k + alpha * nearby(x, x, i, -(size / 2), (size - 1) / 2, channels);
            y[i] = x[i] * POW(d[i], -beta);
        }
    }
}

/* d' = 2 alpha times the sum of x x' nearby, y' = (x' - beta x d' / d) / d^beta. Arrays as in norm_forward. */
static void norm_tangent(real *restrict y_dot, real *restrict d_dot, const real *restrict x,
                         const real *restrict x_dot, const real *restrict d, int n, int pixels, int channels, int size,
                         real alpha, real beta)
{
    for (int p = 0; p < n * pixels; p++) {
        for (int i = 0; i < channels; i++) {
            d_dot[i] = R(2.0) * alpha * nearby(x, x_dot, i, -(size / 2), (size - 1) / 2, channels);
            y_dot[i] = (x_dot[i] - beta * x[i] * d_dot[i] / d[i]) * POW(d[i], -beta);
        }
        y_dot += channels;
        d_dot += channels;
        x += channels;
        x_dot += channels;
        d += channels;
    }
}

/* dx = dy / d^beta - 2 alpha beta x times the sum of dy q nearby, with q = y / d.
 * dx OUT, dy, x, y, d IN (n, pixels, channels); scratch: a row of channels. */
static void norm_backward(real *restrict dx, real *restrict scratch, const real *restrict dy, const real *restrict x,
                          const real *restrict y, const real *restrict d, int n, int pixels, int channels, int size,
                          real alpha, real beta)
{
    real *q = scratch;
    for (int p = 0; p < n * pixels; p++, dx += channels, dy += channels, x += channels, y += channels, d += channels) {
        for (int i = 0; i < channels; i++) {
            q[i] = y[i] / d[i];
        }
        for (int i = 0; i < channels; i++) {
            const real sum = nearby(dy, q, i, -((size - 1) / 2), size / 2, channels);
            dx[i] = dy[i] * POW(d[i], -beta) - R(2.0) * alpha * beta * x[i] * sum;
        }
    }
}

/* The tangent of norm_backward, with q' = (y' - q d') / d.
 * dx_dot OUT, all others IN (n, pixels, channels); scratch: two rows of channels. */
static void norm_second(real *restrict dx_dot, real *restrict scratch, const real *restrict dy,
                        const real *restrict dy_dot, const real *restrict x, const real *restrict x_dot,
                        const real *restrict y, const real *restrict y_dot, const real *restrict d,
                        const real *restrict d_dot, int n, int pixels, int channels, int size, real alpha, real beta)
{
    real *q = scratch, *q_dot = scratch + channels;
    const int first = -((size - 1) / 2), last = size / 2;
    for (int p = 0; p < n * pixels; p++) {
        const int at = p * channels;
        for (int i = 0; i < channels; i++) {
            q[i] = y[at + i] / d[at + i];
            q_dot[i] = (y_dot[at + i] - q[i] * d_dot[at + i]) / d[at + i];
        }
        for (int i = 0; i < channels; i++) {
            const real sum = nearby(dy + at, q, i, first, last, channels);
            const real sum_dot = nearby(dy_dot + at, q, i, first, last, channels)
                + nearby(dy + at, q_dot, i, first, last, channels);
            const real change = dy_dot[at + i] - beta * dy[at + i] * d_dot[at + i] / d[at + i];
            dx_dot[at + i] = change * POW(d[at + i], -beta)
                - R(2.0) * alpha * beta * (x_dot[at + i] * sum + x[at + i] * sum_dot);
        }
    }
}
