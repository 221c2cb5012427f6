/* Images (n, height, width, channels): borders, convolutions and pools. Sequences are images of one row. */

/* y = x with zeros around it: `top` rows above, `left` columns to the left.
 * y OUT (n, padded_h, padded_w, channels), x IN (n, height, width, channels). */
static void pad_image(real *restrict y, const real *restrict x, int n, int height, int width, int channels, int top,
                      int left, int padded_h, int padded_w)
{
    for (int i = 0; i < n * padded_h * padded_w * channels; i++) {
        y[i] = R(0.0);
    }
    for (int i = 0; i < n * height; i++) {
        real *line = y + ((i / height * padded_h + i % height + top) * padded_w + left) * channels;
        for (int j = 0; j < width * channels; j++) {
            line[j] = x[i * width * channels + j];
        }
    }
}

/* y = x without its border. y OUT (n, height, width, channels), x IN (n, padded_h, padded_w, channels). */
static void crop_image(real *restrict y, const real *restrict x, int n, int height, int width, int channels, int top,
                       int left, int padded_h, int padded_w)
{
    for (int i = 0; i < n * height; i++) {
        const real *line = x + ((i / height * padded_h + i % height + top) * padded_w + left) * channels;
        for (int j = 0; j < width * channels; j++) {
            y[i * width * channels + j] = line[j];
        }
    }
}

/* The place in an image, along an axis, of what lies at `index` of the padded one, `before` pixels earlier; modes are 1:
 * reflect, 2: replicate, 3: circular. */
static int pixel_behind(int index, int before, int extent, int mode)
{
    int i = index - before;
    if (mode == 1) {
        i = i < 0 ? -i : i;
        return i >= extent ? 2 * (extent - 1) - i : i;
    }
    if (mode == 3) {
        return (i % extent + extent) % extent;
    }
    return i < 0 ? 0 : i >= extent ? extent - 1 : i;
}

/* y = x with a border of its own pixels: `top` rows above, `left` columns to the left.
 * y OUT (n, padded_h, padded_w, channels), x IN (n, height, width, channels). */
static void pad_by_pixels(real *restrict y, const real *restrict x, int n, int height, int width, int channels,
                          int top, int left, int padded_h, int padded_w, int mode)
{
    for (int k = 0; k < n * padded_h * padded_w; k++) {
        const int image = k / (padded_h * padded_w), p = k / padded_w % padded_h, q = k % padded_w;
        const int row = image * height + pixel_behind(p, top, height, mode);
        const real *of = x + (row * width + pixel_behind(q, left, width, mode)) * channels;
        for (int c = 0; c < channels; c++) {
            y[k * channels + c] = of[c];
        }
    }
}

/* dx = the sum of dy over the places that each pixel went to, the transpose of pad_by_pixels.
 * dx OUT (n, height, width, channels), dy IN (n, padded_h, padded_w, channels). */
static void pad_by_pixels_backward(real *restrict dx, const real *restrict dy, int n, int height, int width,
                                   int channels, int top, int left, int padded_h, int padded_w, int mode)
{
    for (int i = 0; i < n * height * width * channels; i++) {
        dx[i] = R(0.0);
    }
    for (int k = 0; k < n * padded_h * padded_w; k++) {
        const int image = k / (padded_h * padded_w), p = k / padded_w % padded_h, q = k % padded_w;
        const int row = image * height + pixel_behind(p, top, height, mode);
        real *to = dx + (row * width + pixel_behind(q, left, width, mode)) * channels;
        for (int c = 0; c < channels; c++) {
            to[c] += dy[k * channels + c];
        }
    }
}

/* y = b + W * x, or y += W * x when `adding`; a w that is NULL is zero, and so is such a b.
 * y OUT (n, out_h, out_w, filters), x IN (n, height, width, channels), w IN (kernel_h, kernel_w, channels / groups,
 * filters), b IN (filters,). The filters of a group see the channels of that group. */
static void conv_forward(real *restrict y, const real *restrict x, const real *restrict w, const real *restrict b,
                         int n, int filters, int height, int width, int channels, int kernel_h, int kernel_w,
                         int stride_h, int stride_w, int dilation_h, int dilation_w, int groups, int out_h, int out_w,
                         int adding)
{
    const int depth = channels / groups, share = filters / groups;
    for (int pixel = 0; pixel < n * out_h * out_w; pixel++, y += filters) {
        const int image = pixel / (out_h * out_w), p = pixel / out_w % out_h, q = pixel % out_w;
        const real *corner = x + ((image * height + p * stride_h) * width + q * stride_w) * channels;
        for (int f = 0; f < filters && !adding; f++) {
            y[f] = w != NULL && b != NULL ? b[f] : R(0.0);
        }
        for (int tap = 0; tap < kernel_h * kernel_w && w != NULL; tap++) {
            const int row = tap / kernel_w * dilation_h, column = tap % kernel_w * dilation_w;
            const real *seen = corner + (row * width + column) * channels;
            for (int c = 0; c < channels; c++) {
                const real *weights = w + (tap * depth + c % depth) * filters;
                const int first = c / depth * share;
                for (int f = first; f < first + share; f++) {
                    y[f] += seen[c] * weights[f];
                }
            }
        }
    }
}

/* dW = the sum over the pixels of window^T dz, db = that of dz; added to where `w_accumulate` or `b_accumulate` is 1.
 * dw OUT as w in conv_forward, db OUT (filters,) or NULL, x IN as there, dz IN (n, out_h, out_w, filters). */
static void conv_backward_parameters(real *restrict dw, real *restrict db, const real *restrict x,
                                     const real *restrict dz, int n, int filters, int height, int width, int channels,
                                     int kernel_h, int kernel_w, int stride_h, int stride_w, int dilation_h,
                                     int dilation_w, int groups, int out_h, int out_w, int w_accumulate,
                                     int b_accumulate)
{
    const int depth = channels / groups, share = filters / groups;
    for (int k = 0; k < kernel_h * kernel_w * depth * filters && !w_accumulate; k++) {
        dw[k] = R(0.0);
    }
    for (int pixel = 0; pixel < n * out_h * out_w; pixel++) {
        const int image = pixel / (out_h * out_w), p = pixel / out_w % out_h, q = pixel % out_w;
        const real *corner = x + ((image * height + p * stride_h) * width + q * stride_w) * channels;
        for (int tap = 0; tap < kernel_h * kernel_w; tap++) {
            const int row = tap / kernel_w * dilation_h, column = tap % kernel_w * dilation_w;
            const real *seen = corner + (row * width + column) * channels;
            for (int c = 0; c < channels; c++) {
                real *weights = dw + (tap * depth + c % depth) * filters;
                const int first = c / depth * share;
                for (int f = first; f < first + share; f++) {
                    weights[f] += seen[c] * dz[pixel * filters + f];
                }
            }
        }
    }
    if (db != NULL) {
        add_row_sum(db, dz, n * out_h * out_w, filters, b_accumulate);
    }
}

/* dx = the sum over the windows, each at its place, of dz W^T; added to what dx holds when `adding`.
 * dx OUT (n, height, width, channels), dz IN (n, out_h, out_w, filters), wt IN the matrix w (.., filters),
 * transposed. */
static void conv_backward_input(real *restrict dx, const real *restrict dz, const real *restrict wt, int n,
                                int filters, int height, int width, int channels, int kernel_h, int kernel_w,
                                int stride_h, int stride_w, int dilation_h, int dilation_w, int groups, int out_h,
                                int out_w, int adding)
{
    const int depth = channels / groups, share = filters / groups, taps = kernel_h * kernel_w;
    for (int i = 0; i < n * height * width * channels && !adding; i++) {
        dx[i] = R(0.0);
    }
    for (int pixel = 0; pixel < n * out_h * out_w; pixel++) {
        const int image = pixel / (out_h * out_w), p = pixel / out_w % out_h, q = pixel % out_w;
        real *corner = dx + ((image * height + p * stride_h) * width + q * stride_w) * channels;
        for (int tap = 0; tap < taps; tap++) {
            const int row = tap / kernel_w * dilation_h, column = tap % kernel_w * dilation_w;
            for (int f = 0; f < filters; f++) {
                real *seen = corner + (row * width + column) * channels + f / share * depth;
                for (int c = 0; c < depth; c++) {
                    seen[c] += dz[pixel * filters + f] * wt[(f * taps + tap) * depth + c];
                }
            }
        }
    }
}

/* y += b in each row; a b that is NULL is 0. y INOUT (n * rows, size), b IN (size,). */
static void bias_forward(real *restrict y, const real *restrict b, int n, int rows, int size)
{
    for (int k = 0; k < n * rows * size && b != NULL; k++) {
        y[k] += b[k % size];
    }
}

/* db = the sum of dy over the rows; added to when b_accumulate is 1. db OUT (size,), dy IN (n * rows, size). */
static void bias_backward(real *restrict db, const real *restrict dy, int n, int rows, int size, int b_accumulate)
{
    add_row_sum(db, dy, n * rows, size, b_accumulate);
}

/* The weight of the convolution that makes dx of dz: taps in reverse, channels and filters exchanged.
 * wt OUT (taps, filters / groups, groups * channels), w IN (taps, channels, filters); `channels` are a group's. */
static void conv_turn(real *restrict wt, const real *restrict w, int taps, int channels, int filters, int groups)
{
    const int share = filters / groups;
    for (int tap = 0; tap < taps; tap++) {
        for (int c = 0; c < channels; c++) {
            for (int f = 0; f < filters; f++) {
                const int row = (taps - 1 - tap) * share + f % share, column = f / share * channels + c;
                wt[row * groups * channels + column] = w != NULL ? w[(tap * channels + c) * filters + f] : R(0.0);
            }
        }
    }
}

/* y = the largest number of each window, the first of equal ones, argmax = the number of its pixel in the window; NaN
 * is the largest. y and argmax OUT (n, out_h, out_w, channels), x IN (n, height, width, channels). */
static void max_pool_forward(real *restrict y, real *restrict argmax, const real *restrict x, int n, int height,
                             int width, int channels, int kernel_h, int kernel_w, int stride_h, int stride_w, int top,
                             int left, int out_h, int out_w)
{
    for (int i = 0; i < n * out_h * out_w * channels; i++) {
        const int c = i % channels, pixel = i / channels;
        const int image = pixel / (out_h * out_w), p = pixel / out_w % out_h, q = pixel % out_w;
        int chosen = -1;
        for (int tap = 0; tap < kernel_h * kernel_w; tap++) {
            const int row = p * stride_h - top + tap / kernel_w, column = q * stride_w - left + tap % kernel_w;
            if (row < 0 || row >= height || column < 0 || column >= width) {
                continue;
            }
            const real value = x[((image * height + row) * width + column) * channels + c];
            if (chosen < 0 || value > y[i] || value != value) {
                y[i] = value;
                chosen = tap;
            }
        }
        argmax[i] = (real)chosen;
    }
}

/* y = the number of x at the argmax of each window. y OUT, argmax and x IN as in max_pool_forward. */
static void max_pool_tangent(real *restrict y, const real *restrict argmax, const real *restrict x, int n, int height,
                             int width, int channels, int kernel_w, int stride_h, int stride_w, int top, int left,
                             int out_h, int out_w)
{
    for (int i = 0; i < n * out_h * out_w * channels; i++) {
        const int c = i % channels, pixel = i / channels, tap = (int)argmax[i];
        const int image = pixel / (out_h * out_w), p = pixel / out_w % out_h, q = pixel % out_w;
        const int row = p * stride_h - top + tap / kernel_w, column = q * stride_w - left + tap % kernel_w;
        y[i] = x[((image * height + row) * width + column) * channels + c];
    }
}

/* dx = the sum of dy over the windows whose largest number it was.
 * dx OUT as x, dy and argmax IN as y of max_pool_forward. */
static void max_pool_backward(real *restrict dx, const real *restrict dy, const real *restrict argmax, int n,
                              int height, int width, int channels, int kernel_w, int stride_h, int stride_w, int top,
                              int left, int out_h, int out_w)
{
    for (int i = 0; i < n * height * width * channels; i++) {
        dx[i] = R(0.0);
    }
    for (int i = 0; i < n * out_h * out_w * channels; i++) {
        const int c = i % channels, pixel = i / channels, tap = (int)argmax[i];
        const int image = pixel / (out_h * out_w), p = pixel / out_w % out_h, q = pixel % out_w;
        const int row = p * stride_h - top + tap / kernel_w, column = q * stride_w - left + tap % kernel_w;
        dx[((image * height + row) * width + column) * channels + c] += dy[i];
    }
}

/* y = the mean of each window, zeros around the image included.
 * y OUT (n, out_h, out_w, channels), x IN (n, height, width, channels). */
static void avg_pool_forward(real *restrict y, const real *restrict x, int n, int height, int width, int channels,
                             int kernel_h, int kernel_w, int stride_h, int stride_w, int top, int left, int out_h,
                             int out_w)
{
    const real scale = R(1.0) / (real)(kernel_h * kernel_w);
    for (int i = 0; i < n * out_h * out_w * channels; i++) {
        const int c = i % channels, pixel = i / channels;
        const int image = pixel / (out_h * out_w), p = pixel / out_w % out_h, q = pixel % out_w;
        real total = R(0.0);
        for (int tap = 0; tap < kernel_h * kernel_w; tap++) {
            const int row = p * stride_h - top + tap / kernel_w, column = q * stride_w - left + tap % kernel_w;
            if (row >= 0 && row < height && column >= 0 && column < width) {
                total += x[((image * height + row) * width + column) * channels + c];
            }
        }
        y[i] = scale * total;
    }
}

/* The transpose of avg_pool_forward. dx OUT as x, dy IN as y there. */
static void avg_pool_backward(real *restrict dx, const real *restrict dy, int n, int height, int width, int channels,
                              int kernel_h, int kernel_w, int stride_h, int stride_w, int top, int left, int out_h,
                              int out_w)
{
    const real scale = R(1.0) / (real)(kernel_h * kernel_w);
    for (int i = 0; i < n * height * width * channels; i++) {
        dx[i] = R(0.0);
    }
    for (int i = 0; i < n * out_h * out_w * channels; i++) {
        const int c = i % channels, pixel = i / channels;
        const int image = pixel / (out_h * out_w), p = pixel / out_w % out_h, q = pixel % out_w;
        for (int tap = 0; tap < kernel_h * kernel_w; tap++) {
            const int row = p * stride_h - top + tap / kernel_w, column = q * stride_w - left + tap % kernel_w;
            if (row >= 0 && row < height && column >= 0 && column < width) {
                dx[((image * height + row) * width + column) * channels + c] += scale * dy[i];
            }
        }
    }
}
