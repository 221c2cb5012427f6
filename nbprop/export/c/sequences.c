/* Sequences: tables of rows for integers, learned positions, attention. */

/* y = W[x]. y OUT (n * rows, size), w IN (vocabulary, size), x IN (n * rows,): integers. */
static void embedding_forward(real *restrict y, const real *restrict w, const int *restrict x, int n, int rows,
                              int size)
{
    for (int i = 0; i < n * rows; i++) {
        for (int j = 0; j < size; j++) {
            y[i * size + j] = w[x[i] * size + j];
        }
    }
}

/* dW[x] += dy, from 0 unless `w_accumulate`. dw OUT (vocabulary, size), of dw_size elements; dy IN (n * rows, size). */
static void embedding_backward(real *restrict dw, const real *restrict dy, const int *restrict x, int n, int rows,
                               int size, int dw_size, int w_accumulate)
{
    for (int i = 0; i < dw_size && !w_accumulate; i++) {
        dw[i] = R(0.0);
    }
    for (int i = 0; i < n * rows; i++) {
        for (int j = 0; j < size; j++) {
            dw[x[i] * size + j] += dy[i * size + j];
        }
    }
}

/* y = x + p in every sample. y OUT, x IN (n, size), p IN (size,). */
static void positions_forward(real *restrict y, const real *restrict x, const real *restrict p, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        y[i] = x[i] + p[i % size];
    }
}

/* y' = x' + p'; a direction that is NULL is zero. y_dot OUT, x_dot IN (n, size), p_dot IN (size,). */
static void positions_tangent(real *restrict y_dot, const real *restrict x_dot, const real *restrict p_dot, int n,
                              int size)
{
    for (int i = 0; i < n * size; i++) {
        y_dot[i] = (x_dot != NULL ? x_dot[i] : R(0.0)) + (p_dot != NULL ? p_dot[i % size] : R(0.0));
    }
}

/* dp = the sum of dy over the samples, from 0 unless `p_accumulate`. dp OUT (size,), dy IN (n, size). */
static void positions_backward(real *restrict dp, const real *restrict dy, int n, int size, int p_accumulate)
{
    add_row_sum(dp, dy, n, size, p_accumulate);
}

/* The sum of a b. */
static real dot(const real *a, const real *b, int size)
{
    real total = R(0.0);
    for (int i = 0; i < size; i++) {
        total += a[i] * b[i];
    }
    return total;
}

/* y += factor x. */
static void add_scaled(real *restrict y, const real *restrict x, real factor, int size)
{
    for (int i = 0; i < size; i++) {
        y[i] += factor * x[i];
    }
}

/* y = softmax(Q K^T / sqrt(depth)) V in each head; causal: a position sees itself and those before it. No matrix of
 * scores is stored: where a score raises the maximum, what was summed before is scaled down.
 * y OUT (n, positions, heads * depth), lse OUT (n, heads, positions): log(sum(exp(scores))) of each query, qkv IN
 * (n, positions, 3 * heads * depth). */
static void attention_forward(real *restrict y, real *restrict lse, const real *restrict qkv, int n, int positions,
                              int heads, int depth, int causal)
{
    const int width = heads * depth, row = 3 * width;
    const real scale = R(1.0) / SQRT((real)depth);
    for (int pair = 0; pair < n * heads; pair++) {
        const int sample = pair / heads, column = pair % heads * depth;
        const real *q = qkv + sample * positions * row + column, *k = q + width, *v = k + width;
        for (int i = 0; i < positions; i++) {
            real *out = y + (sample * positions + i) * width + column;
            real top = R(0.0), total = R(0.0);
            for (int d = 0; d < depth; d++) {
                out[d] = R(0.0);
            }
            for (int j = 0; j < (causal ? i + 1 : positions); j++) {
                const real score = scale * dot(q + i * row, k + j * row, depth);
                if (j == 0) {
                    top = score;
                } else if (score > top) {
                    const real factor = nb_exp(top - score);
                    top = score;
                    total *= factor;
                    for (int d = 0; d < depth; d++) {
                        out[d] *= factor;
                    }
                }
                const real p = nb_exp(score - top);
                total += p;
                add_scaled(out, v + j * row, p, depth);
            }
            const real normalizer = R(1.0) / total;
            for (int d = 0; d < depth; d++) {
                out[d] *= normalizer;
            }
            lse[pair * positions + i] = top + LOG(total);
        }
    }
}

/* The derivatives of y and lse along qkv': with S' = (Q' K^T + Q K'^T) / sqrt(depth) and L' = sum P S',
 * y' = P S' V + P V' - L' y. Arrays as in attention_forward, y_dot and lse_dot OUT. */
static void attention_tangent(real *restrict y_dot, real *restrict lse_dot, const real *restrict qkv,
                              const real *restrict qkv_dot, const real *restrict y, const real *restrict lse, int n,
                              int positions, int heads, int depth, int causal)
{
    const int width = heads * depth, row = 3 * width;
    const real scale = R(1.0) / SQRT((real)depth);
    for (int pair = 0; pair < n * heads; pair++) {
        const int sample = pair / heads, column = pair % heads * depth;
        const real *q = qkv + sample * positions * row + column, *k = q + width, *v = k + width;
        const real *q_dot = qkv_dot + sample * positions * row + column, *k_dot = q_dot + width, *v_dot = k_dot + width;
        for (int i = 0; i < positions; i++) {
            const int here = (sample * positions + i) * width + column;
            real total = R(0.0);
            for (int d = 0; d < depth; d++) {
                y_dot[here + d] = R(0.0);
            }
            for (int j = 0; j < (causal ? i + 1 : positions); j++) {
                const real score = scale * dot(q + i * row, k + j * row, depth);
                const real change = scale * (dot(q_dot + i * row, k + j * row, depth)
                                             + dot(q + i * row, k_dot + j * row, depth));
                const real p = nb_exp(score - lse[pair * positions + i]);
                total += p * change;
                add_scaled(y_dot + here, v + j * row, p * change, depth);
                add_scaled(y_dot + here, v_dot + j * row, p, depth);
            }
            add_scaled(y_dot + here, y + here, -total, depth);
            lse_dot[pair * positions + i] = total;
        }
    }
}

/* The gradient by queries, keys and values: with P = exp(S - lse) and delta = dy . y of each query,
 * dV = P^T dy, dS = P (dy V^T - delta), dQ = dS K / sqrt(depth), dK = dS^T Q / sqrt(depth).
 * Arrays as in attention_forward, dqkv OUT like qkv, dy IN like y. */
static void attention_backward(real *restrict dqkv, const real *restrict qkv, const real *restrict y,
                               const real *restrict lse, const real *restrict dy, int n, int positions, int heads,
                               int depth, int causal)
{
    const int width = heads * depth, row = 3 * width;
    const real scale = R(1.0) / SQRT((real)depth);
    for (int i = 0; i < n * positions * row; i++) {
        dqkv[i] = R(0.0);
    }
    for (int pair = 0; pair < n * heads; pair++) {
        const int sample = pair / heads, first = sample * positions * row + pair % heads * depth;
        const real *q = qkv + first, *k = q + width, *v = k + width;
        real *dq = dqkv + first, *dk = dq + width, *dv = dk + width;
        for (int i = 0; i < positions; i++) {
            const int here = (sample * positions + i) * width + pair % heads * depth;
            const real delta = dot(dy + here, y + here, depth);
            for (int j = 0; j < (causal ? i + 1 : positions); j++) {
                const real score = scale * dot(q + i * row, k + j * row, depth);
                const real p = nb_exp(score - lse[pair * positions + i]);
                const real ds = scale * p * (dot(dy + here, v + j * row, depth) - delta);
                add_scaled(dv + j * row, dy + here, p, depth);
                add_scaled(dq + i * row, k + j * row, ds, depth);
                add_scaled(dk + j * row, q + i * row, ds, depth);
            }
        }
    }
}

/* The derivative of attention_backward's dqkv along the direction; dqkv_dot OUT like qkv. */
static void attention_backward_tangent(real *restrict dqkv_dot, const real *restrict qkv, const real *restrict qkv_dot,
                                       const real *restrict y, const real *restrict y_dot, const real *restrict lse,
                                       const real *restrict lse_dot, const real *restrict dy,
                                       const real *restrict dy_dot, int n, int positions, int heads, int depth,
                                       int causal)
{
    const int width = heads * depth, row = 3 * width;
    const real scale = R(1.0) / SQRT((real)depth);
    for (int i = 0; i < n * positions * row; i++) {
        dqkv_dot[i] = R(0.0);
    }
    for (int pair = 0; pair < n * heads; pair++) {
        const int sample = pair / heads, first = sample * positions * row + pair % heads * depth;
        const real *q = qkv + first, *k = q + width, *v = k + width;
        const real *q_dot = qkv_dot + first, *k_dot = q_dot + width, *v_dot = k_dot + width;
        real *dq_dot = dqkv_dot + first, *dk_dot = dq_dot + width, *dv_dot = dk_dot + width;
        for (int i = 0; i < positions; i++) {
            const int here = (sample * positions + i) * width + pair % heads * depth, query = pair * positions + i;
            const real delta = dot(dy + here, y + here, depth);
            const real delta_dot = dot(dy_dot + here, y + here, depth) + dot(dy + here, y_dot + here, depth);
            for (int j = 0; j < (causal ? i + 1 : positions); j++) {
                const real score = scale * dot(q + i * row, k + j * row, depth);
                const real change = scale * (dot(q_dot + i * row, k + j * row, depth)
                                             + dot(q + i * row, k_dot + j * row, depth));
                const real p = nb_exp(score - lse[query]), p_dot = p * (change - lse_dot[query]);
                const real off = dot(dy + here, v + j * row, depth) - delta;
                const real off_dot = dot(dy_dot + here, v + j * row, depth) + dot(dy + here, v_dot + j * row, depth)
                    - delta_dot;
                const real ds = scale * p * off, ds_dot = scale * (p_dot * off + p * off_dot);
                add_scaled(dv_dot + j * row, dy + here, p_dot, depth);
                add_scaled(dv_dot + j * row, dy_dot + here, p, depth);
                add_scaled(dq_dot + i * row, k + j * row, ds_dot, depth);
                add_scaled(dq_dot + i * row, k_dot + j * row, ds, depth);
                add_scaled(dk_dot + j * row, q + i * row, ds_dot, depth);
                add_scaled(dk_dot + j * row, q_dot + i * row, ds, depth);
            }
        }
    }
}
