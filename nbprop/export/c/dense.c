/* Dense layers: y = x W + b over the last axis, with each row's sums in the order of the inputs. */

/* y = x W + b. y OUT (n * rows, n_out), x IN (n * rows, n_in), w IN (n_in, n_out), b IN (n_out,) or NULL. */
static void dense_forward(real *restrict y, const real *restrict x, const real *restrict w, const real *restrict b,
                          int n, int rows, int n_in, int n_out)
{
    for (int i = 0; i < n * rows; i++, y += n_out, x += n_in) {
        for (int j = 0; j < n_out; j++) {
            y[j] = b != NULL ? b[j] : R(0.0);
        }
        for (int k = 0; k < n_in; k++) {
            for (int j = 0; j < n_out; j++) {
                y[j] += x[k] * w[k * n_out + j];
            }
        }
    }
}

/* y' = x W' + b' + x' W; a direction that is NULL is zero.
 * y_dot OUT (n * rows, n_out), x and x_dot IN (n * rows, n_in), w and w_dot IN (n_in, n_out), b_dot IN (n_out,). */
static void dense_tangent(real *restrict y_dot, const real *restrict x, const real *restrict x_dot,
                          const real *restrict w, const real *restrict w_dot, const real *restrict b_dot,
                          int n, int rows, int n_in, int n_out)
{
    for (int i = 0; i < n * rows; i++, y_dot += n_out) {
        for (int j = 0; j < n_out; j++) {
            y_dot[j] = b_dot != NULL ? b_dot[j] : R(0.0);
        }
        for (int k = 0; w_dot != NULL && k < n_in; k++) {
            for (int j = 0; j < n_out; j++) {
                y_dot[j] += x[i * n_in + k] * w_dot[k * n_out + j];
            }
        }
        for (int k = 0; x_dot != NULL && k < n_in; k++) {
            for (int j = 0; j < n_out; j++) {
                y_dot[j] += x_dot[i * n_in + k] * w[k * n_out + j];
            }
        }
    }
}

/* dw = x^T dz, or dw += where add. dw OUT (n_in, n_out), x IN (rows, n_in), dz IN (rows, n_out). */
static void add_weight_gradient(real *restrict dw, const real *restrict x, const real *restrict dz,
                                int rows, int n_in, int n_out, int add)
{
    for (int k = 0; k < n_in * n_out && !add; k++) {
        dw[k] = R(0.0);
    }
    for (int i = 0; i < rows; i++) {
        for (int k = 0; k < n_in; k++) {
            for (int j = 0; j < n_out; j++) {
                dw[k * n_out + j] += x[i * n_in + k] * dz[i * n_out + j];
            }
        }
    }
}

/* db = the sum of dz's rows, or db += where add. db OUT (n_out,), dz IN (rows, n_out). */
static void add_row_sum(real *restrict db, const real *restrict dz, int rows, int n_out, int add)
{
    for (int j = 0; j < n_out && !add; j++) {
        db[j] = R(0.0);
    }
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < n_out; j++) {
            db[j] += dz[i * n_out + j];
        }
    }
}

/* dW = x^T dz, db = the sum of dz's rows; added to where `w_accumulate` or `b_accumulate` is 1.
 * dw OUT (n_in, n_out), db OUT (n_out,) or NULL, x IN (n * rows, n_in), dz IN (n * rows, n_out). */
static void dense_backward_parameters(real *dw, real *db, const real *x, const real *dz,
                                      int n, int rows, int n_in, int n_out, int w_accumulate, int b_accumulate)
{
    add_weight_gradient(dw, x, dz, n * rows, n_in, n_out, w_accumulate);
    if (db != NULL) {
        add_row_sum(db, dz, n * rows, n_out, b_accumulate);
    }
}

/* (dW)' = x^T dz' + x'^T dz, (db)' = the sum of the rows of dz'; added to where `w_accumulate` or `b_accumulate` is 1.
 * dw_dot OUT (n_in, n_out), db_dot OUT (n_out,) or NULL, x IN (n * rows, n_in), x_dot the same or NULL (zero), dz and
 * dz_dot IN (n * rows, n_out). */
static void dense_parameters_tangent(real *dw_dot, real *db_dot, const real *x, const real *x_dot, const real *dz,
                                     const real *dz_dot, int n, int rows, int n_in, int n_out, int w_accumulate,
                                     int b_accumulate)
{
    add_weight_gradient(dw_dot, x, dz_dot, n * rows, n_in, n_out, w_accumulate);
    if (x_dot != NULL) {
        add_weight_gradient(dw_dot, x_dot, dz, n * rows, n_in, n_out, 1);
    }
    if (db_dot != NULL) {
        add_row_sum(db_dot, dz_dot, n * rows, n_out, b_accumulate);
    }
}

/* wt = W^T. wt OUT (n_out, n_in), w IN (n_in, n_out), or NULL: zero. */
static void dense_transpose(real *restrict wt, const real *restrict w, int n_in, int n_out)
{
    for (int j = 0; j < n_out; j++) {
        for (int k = 0; k < n_in; k++) {
            wt[j * n_in + k] = w != NULL ? w[k * n_out + j] : R(0.0);
        }
    }
}

/* dx = dz W^T. dx OUT (n * rows, n_in), dz IN (n * rows, n_out), w IN (n_in, n_out). */
static void dense_backward_input(real *restrict dx, const real *restrict dz, const real *restrict w,
                                 int n, int rows, int n_in, int n_out)
{
    for (int i = 0; i < n * rows; i++) {
        for (int k = 0; k < n_in; k++) {
            real total = R(0.0);
            for (int j = 0; j < n_out; j++) {
                total += dz[i * n_out + j] * w[k * n_out + j];
            }
            dx[i * n_in + k] = total;
        }
    }
}

/* dx = dz E for a layer that takes the transpose of another's weight E.
 * dx OUT (n * rows, n_in), dz IN (n * rows, n_out), wt IN (n_out, n_in): E. */
static void tied_backward_input(real *restrict dx, const real *restrict dz, const real *restrict wt,
                                int n, int rows, int n_in, int n_out)
{
    dense_forward(dx, dz, wt, NULL, n, rows, n_out, n_in);
}

/* db = the sum of dz's rows, added to what db holds when `b_accumulate`. db OUT (n_out,), dz IN (n * rows, n_out). */
static void tied_backward_bias(real *restrict db, const real *restrict dz, int n, int rows, int n_out, int b_accumulate)
{
    add_row_sum(db, dz, n * rows, n_out, b_accumulate);
}

/* (dx)' = dz' W^T + dz W'^T.
 * dx_dot OUT (n * rows, n_in), dz and dz_dot IN (n * rows, n_out), wt and wt_dot IN (n_out, n_in). */
static void dense_input_tangent(real *restrict dx_dot, const real *restrict dz, const real *restrict dz_dot,
                                const real *restrict wt, const real *restrict wt_dot, int n, int rows, int n_in,
                                int n_out)
{
    dense_tangent(dx_dot, dz, dz_dot, wt, wt_dot, NULL, n, rows, n_out, n_in);
}
