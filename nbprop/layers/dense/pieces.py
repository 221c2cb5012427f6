"""The gradient of a narrow weight over many rows, in pieces: each sums some of the rows, and then the pieces add up.

So threads share the rows, as they do in every other op of a dense layer. If they shared the gradient's elements, each
would read all of x or of dz, half of which lies in another core's cache: for 32 x 32 that took two threads as long as
one.
"""

from nbprop.compiler.jit import njit
from nbprop.layers.dense.sizes import DenseSizes
from nbprop.numerics.gemm.blocked import gemm_scratch
from nbprop.numerics.partition import share, share_blocks
from nbprop.program.kernel import kernel

# The most elements of a narrow weight, the fewest rows of a piece, the most pieces. Their number is a power of two.
_NARROW, _PIECE_ROWS, _MOST_PIECES = 64 * 64, 128, 16


@njit
def gradient_pieces(total, n_in, n_out):
    """In how many pieces the rows of a weight gradient are summed: the sizes alone decide, and so the bits."""
    count = 1
    if n_in * n_out <= _NARROW and gemm_scratch(n_in, n_out, total // _MOST_PIECES, 1) == 0:
        while count < _MOST_PIECES and 2 * count * _PIECE_ROWS <= total:
            count *= 2
    return count


@njit
def piece_of(partials, i, count, x, dz, total, n_in, n_out):
    """(dW, db, x, dz, rows) of piece i of so many."""
    first, last = share(total, i, count)
    dw = partials[i * (n_in + 1) * n_out : (i + 1) * (n_in + 1) * n_out]
    return dw[: n_in * n_out], dw[n_in * n_out :], x[first * n_in :], dz[first * n_out :], last - first


@njit
def _sum_pieces(out, partials, size, count, adding):
    """out = the sum of `count` pieces that lie `size` apart, two at a time; count is even."""
    for k in range(0, count, 2):
        a, b = partials[k * size :][: out.size], partials[(k + 1) * size :][: out.size]
        if adding or k > 0:
            for i in range(out.size):
                out[i] += a[i] + b[i]
        else:
            for i in range(out.size):
                out[i] = a[i] + b[i]


@kernel
def dense_sum_of_pieces(dw, db, partials, n, sizes: DenseSizes, w_accumulate, b_accumulate, accumulate, part, parts):
    """dW and db = the sums of their pieces, where there are several; added to as `dense_backward_parameters` does.

    dw OUT (n_in, n_out), db OUT (n_out,) or empty, partials IN: (n_in + 1, n_out) for each piece.
    """
    rows, n_in, n_out = sizes.rows, sizes.n_in, sizes.n_out
    count, size = gradient_pieces(n * rows, n_in, n_out), (n_in + 1) * n_out
    if count == 1:
        return
    start, stop = share_blocks(n_in * n_out, part, parts)
    _sum_pieces(dw[start:stop], partials[start:], size, count, w_accumulate + accumulate > 0)
    if part == parts - 1 and db.size > 0:
        _sum_pieces(db, partials[n_in * n_out :], size, count, b_accumulate + accumulate > 0)
