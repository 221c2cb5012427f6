"""Dense (fully connected) layers: y = f(x W + b), over the last axis of x.

Backward, with dz = dy f'(z):  dW = x^T dz,  db = the sum of dz's rows,  dx = dz W^T  (Rumelhart, Hinton and Williams
1986, Nature 323, equations 3 to 6). All three products are the one strided matrix product of numerics/gemm/blocked.py.
"""

from nbprop.layers.dense.pieces import gradient_pieces, piece_of
from nbprop.layers.dense.products import sum_of_rows, times_weight, weight_gradient
from nbprop.layers.dense.sizes import DenseSizes
from nbprop.numerics.gemm.blocked import ACCUMULATE, BIAS, ZERO, transpose
from nbprop.numerics.gemm.entry import GEMM, product
from nbprop.numerics.gemm.microkernel import pointer
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel


@kernel(uses=(GEMM,))
def dense_forward(y, scratch, x, w, b, n, sizes: DenseSizes, part, parts):
    """y = x W + b.

    y OUT (n * rows, n_out), x IN (n * rows, n_in), w IN (n_in, n_out), b IN (n_out,) or empty; scratch: `gemm_scratch`
    elements, all threads together.
    """
    start = BIAS if b.size > 0 else ZERO
    times_weight(y, x, w, start, b, scratch, n * sizes.rows, sizes.n_in, sizes.n_out, part, parts)


@kernel(uses=(GEMM,), optional=("x_dot", "w_dot", "b_dot"))
def dense_tangent(y_dot, scratch, x, x_dot, w, w_dot, b_dot, n, sizes: DenseSizes, part, parts):
    """y' = x W' + b' + x' W, the derivative of y along x' and (W', b'); an empty direction is zero.

    y_dot OUT (n * rows, n_out), x and x_dot IN (n * rows, n_in), w and w_dot IN (n_in, n_out), b_dot IN (n_out,);
    scratch: `gemm_scratch` elements, all threads together.
    """
    start = ZERO
    if w_dot.size > 0:
        start = BIAS if b_dot.size > 0 else ZERO
        times_weight(y_dot, x, w_dot, start, b_dot, scratch, n * sizes.rows, sizes.n_in, sizes.n_out, part, parts)
        start = ACCUMULATE
    if x_dot.size > 0:
        times_weight(y_dot, x_dot, w, start, y_dot, scratch, n * sizes.rows, sizes.n_in, sizes.n_out, part, parts)


@kernel(uses=(GEMM,))
def dense_backward_parameters(
    dw, db, scratch, x, dz, n, sizes: DenseSizes, w_accumulate, b_accumulate, pieces, accumulate, part, parts
):
    """dW = x^T dz, db = the sum of the rows of dz.

    dw OUT (n_in, n_out), db OUT (n_out,) or empty; added to where `w_accumulate`, `b_accumulate` or `accumulate` is
    1; x IN (n * rows, n_in), dz IN (n * rows, n_out). pieces: 1 if `dense_sum_of_pieces` follows; then, if there are
    several pieces, the gradient of each goes to scratch. scratch: `gemm_scratch` elements, all threads together.
    """
    rows, n_in, n_out = sizes.rows, sizes.n_in, sizes.n_out
    count = gradient_pieces(n * rows, n_in, n_out) if pieces == 1 else 1
    if count > 1:
        first, last = share(count, part, parts)
        for i in range(first, last):
            some_dw, some_db, some_x, some_dz, m = piece_of(scratch, i, count, x, dz, n * rows, n_in, n_out)
            weight_gradient(some_dw, some_x, some_dz, ZERO, scratch[:0], m, n_in, n_out, 0, 1)
            sum_of_rows(some_db[: db.size], some_dz, False, m, n_out, 0, 1)
        return
    start = ACCUMULATE if w_accumulate + accumulate > 0 else ZERO
    weight_gradient(dw, x, dz, start, scratch, n * rows, n_in, n_out, part, parts)
    sum_of_rows(db, dz, b_accumulate + accumulate > 0, n * rows, n_out, part, parts)


@kernel(uses=(GEMM,), optional=("x_dot",))
def dense_parameters_tangent(
    dw_dot, db_dot, scratch, x, x_dot, dz, dz_dot, n, sizes: DenseSizes, w_accumulate, b_accumulate, pieces, part, parts
):
    """(dW)' = x^T dz' + x'^T dz, (db)' = the sum of the rows of dz'.

    dw_dot OUT (n_in, n_out), db_dot OUT (n_out,) or empty; added to where `w_accumulate` or `b_accumulate` is 1; x IN
    (n * rows, n_in), x_dot IN (n * rows, n_in) or empty, which is zero; dz and dz_dot IN (n * rows, n_out); scratch: as
    in `dense_backward_parameters`, and pieces.
    """
    rows, n_in, n_out = sizes.rows, sizes.n_in, sizes.n_out
    count = gradient_pieces(n * rows, n_in, n_out) if pieces == 1 else 1
    if count > 1:
        first, last = share(count, part, parts)
        for i in range(first, last):
            dw, db, some_x, some_dz_dot, m = piece_of(scratch, i, count, x, dz_dot, n * rows, n_in, n_out)
            weight_gradient(dw, some_x, some_dz_dot, ZERO, scratch[:0], m, n_in, n_out, 0, 1)
            if x_dot.size > 0:
                _, _, some_x_dot, some_dz, _ = piece_of(scratch, i, count, x_dot, dz, n * rows, n_in, n_out)
                weight_gradient(dw, some_x_dot, some_dz, ACCUMULATE, scratch[:0], m, n_in, n_out, 0, 1)
            sum_of_rows(db[: db_dot.size], some_dz_dot, False, m, n_out, 0, 1)
        return
    start = ACCUMULATE if w_accumulate > 0 else ZERO
    weight_gradient(dw_dot, x, dz_dot, start, scratch, n * rows, n_in, n_out, part, parts)
    if x_dot.size > 0:
        weight_gradient(dw_dot, x_dot, dz, ACCUMULATE, scratch, n * rows, n_in, n_out, part, parts)
    sum_of_rows(db_dot, dz_dot, b_accumulate > 0, n * rows, n_out, part, parts)


@kernel(optional=("w",))
def dense_transpose(wt, w, n, sizes: DenseSizes, part, parts):
    """wt = W^T. wt OUT (n_out, n_in), w IN (n_in, n_out), or empty for a zero direction.

    Nothing is done if n * rows is 1, for readers that then use W itself; rows is 0 for all others.
    """
    if n * sizes.rows == 1:
        return
    if w.size == 0:
        start, stop = share(sizes.n_in * sizes.n_out, part, parts)
        wt[start:stop] = like(wt[0], 0.0)
        return
    transpose(pointer(wt, 0), pointer(w, 0), sizes.n_in, sizes.n_out, part, parts)


@kernel(uses=(GEMM,))
def dense_backward_input(dx, scratch, dz, wt, w, n, sizes: DenseSizes, part, parts):
    """dx = dz W^T.

    dx OUT (n * rows, n_in), dz IN (n * rows, n_out), wt IN (n_out, n_in), w IN (n_in, n_out) or empty; scratch:
    `gemm_scratch` elements, all threads together.

    For one row, wt is not read if w is given: dx^T = W dz^T. Transposing 32 x 32 took half of the backward pass of a
    sample.
    """
    rows, n_in, n_out = sizes.rows, sizes.n_in, sizes.n_out
    if n * rows == 1 and w.size > 0:
        product(
            (
                *(pointer(dx, 0), 1, pointer(w, 0), n_out, 1, pointer(dz, 0), 1, n_in, 1, n_out),
                *(ZERO, pointer(dx, 0), pointer(scratch, 0), scratch.size, part, parts),
            )
        )
        return
    times_weight(dx, dz, wt, ZERO, dx, scratch, n * rows, n_out, n_in, part, parts)


@kernel(uses=(GEMM,))
def dense_input_tangent(dx_dot, scratch, dz, dz_dot, wt, wt_dot, n, sizes: DenseSizes, part, parts):
    """(dx)' = dz' W^T + dz W'^T.

    dx_dot OUT (n * rows, n_in), dz and dz_dot IN (n * rows, n_out), wt and wt_dot IN (n_out, n_in); scratch:
    `gemm_scratch` elements, all threads together.
    """
    times_weight(dx_dot, dz_dot, wt, ZERO, dx_dot, scratch, n * sizes.rows, sizes.n_out, sizes.n_in, part, parts)
    times_weight(dx_dot, dz, wt_dot, ACCUMULATE, dx_dot, scratch, n * sizes.rows, sizes.n_out, sizes.n_in, part, parts)
