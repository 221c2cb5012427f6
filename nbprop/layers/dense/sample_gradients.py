"""Gradients of each sample on its own, for all samples at once: the rows of a Jacobian, and of `per_sample_grads`.

One forward pass and, for each output, one backward pass of the whole batch; where a gradient would be the sum over
samples, each sample's part goes to the sample's own row of the matrix instead (Goodfellow 2015, "Efficient per-example
gradient computations", arXiv 1510.01799).
"""

from nbprop.compiler.jit import njit
from nbprop.layers.dense.products import sum_of_rows, weight_gradient
from nbprop.layers.dense.sizes import DenseSizes
from nbprop.numerics.gemm.blocked import ACCUMULATE, ZERO, gemm_scratch
from nbprop.numerics.gemm.entry import GEMM
from nbprop.numerics.partition import share, share_blocks
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel


@njit
def _outer(dw, x, dz):
    """dw = x dz^T: dw (x.size, dz.size)."""
    if dz.size == 1:
        for i in range(x.size):
            dw[i] = x[i] * dz[0]
        return
    for i in range(x.size):
        row = dw[i * dz.size : (i + 1) * dz.size]
        for j in range(dz.size):
            row[j] = x[i] * dz[j]


@kernel(uses=(GEMM,))
def dense_sample_gradients(
    dw, db, scratch, x, dz, n, sizes: DenseSizes, stride, w_accumulate, b_accumulate, part, parts
):
    """dW = x^T dz and db = the sum of the rows of dz, over the rows of each sample.

    dw OUT (n, n_in, n_out) and db OUT (n, n_out) or empty, with `stride` elements between samples; added to where
    `w_accumulate` or `b_accumulate` is 1; x IN (n * rows, n_in), dz IN (n * rows, n_out); scratch: `gemm_scratch`
    elements, all threads together.
    """
    rows, n_in, n_out = sizes.rows, sizes.n_in, sizes.n_out
    first, last = share(n, part, parts)
    own = scratch[part * gemm_scratch(n_in, n_out, rows, 1) :]
    for i in range(first, last):
        some_dw = dw[i * stride : i * stride + n_in * n_out]
        some_x, some_dz = x[i * rows * n_in : (i + 1) * rows * n_in], dz[i * rows * n_out : (i + 1) * rows * n_out]
        if rows == 1 and w_accumulate == 0:
            _outer(some_dw, some_x, some_dz)
        else:
            start = ACCUMULATE if w_accumulate > 0 else ZERO
            weight_gradient(some_dw, some_x, some_dz, start, own, rows, n_in, n_out, 0, 1)
        if db.size > 0:
            some_db = db[i * stride : i * stride + n_out]
            if rows == 1 and b_accumulate == 0:
                some_db[:] = some_dz
            else:
                sum_of_rows(some_db, some_dz, b_accumulate > 0, rows, n_out, 0, 1)


@kernel
def repeat_row(y, row, n, size, part, parts):
    """Each sample of y = row. y OUT (n, size), row IN (size,)."""
    first, last = share(n, part, parts)
    for i in range(first, last):
        y[i * size : (i + 1) * size] = row


@kernel
def times_samples(dy, n, size, part, parts):
    """dy *= n: from the gradient of the mean loss to those of each sample's own. dy INOUT (n, size)."""
    start, stop = share_blocks(n * size, part, parts)
    dy = dy[start:stop]
    for i in range(dy.size):
        dy[i] *= like(dy[i], n)
