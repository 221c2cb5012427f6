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
