"""The weight gradient of a convolution whose output goes into a max pool.

The gradient of its output is zero but where the pool took a number, and those places are known: dW is a sum over the
pool's windows (numerics/pooled_gradient.py) instead of over all pixels, and the gradient of the pixels is not even
written where nobody wants the input's. Ties go to one pixel, overlapping windows add up, as in `max_pool_backward`.
"""

from typing import NamedTuple

from nbprop.compiler.jit import njit
from nbprop.compiler.simd import VECTOR_BYTES
from nbprop.layers.dense.products import sum_of_rows
from nbprop.layers.image import clear
from nbprop.numerics.convolution import Windows, line_size, lines_of
from nbprop.numerics.gemm.blocked import transpose_strided
from nbprop.numerics.gemm.entry import GEMM
from nbprop.numerics.gemm.microkernel import pointer
from nbprop.numerics.partition import share
from nbprop.numerics.pooled_gradient import argmax_offsets, sum_of_argmax_windows
from nbprop.program.kernel import kernel


@njit
def offsets_size(outputs, threads):
    """Elements of scratch for the places of what a pool has chosen in an image, `outputs` of them."""
    return threads * (outputs + VECTOR_BYTES)


class PooledOutput(NamedTuple):
    """How the windows of a max pool lie in the output of the convolution."""

    pool_w: int  # columns of a window
    pool_stride_h: int  # from window to window, in pixels
    pool_stride_w: int
    top: int  # rows of padding above the output
    left: int  # columns of padding to its left
    rows: int  # windows below each other
    columns: int  # windows beside each other


@kernel(uses=(GEMM,))
def conv_backward_argmax(
    dw, db, turned, offsets, x, dy, argmax, n, filters, g: Windows, pool: PooledOutput, w_accumulate, b_accumulate,
    accumulate, part, parts
):  # fmt: skip
    """dW = the sum over the windows of the pool of (window of the argmax)^T dy, db = the sum of dy.

    dw OUT (kernel_h, kernel_w, channels / groups, filters), db OUT (filters,) or empty; added to where `w_accumulate`,
    `b_accumulate` or `accumulate` is 1; turned OUT (kernel_h, kernel_w, channels / groups, filters), offsets OUT
    (`offsets_size`,): scratch; x IN (n, height, width, channels); dy and argmax IN (n, rows, columns, filters): the
    gradient of the output of the pool, and its argmax from `max_pool_forward`.
    """
    first, stop = share(filters, part, parts)
    depth = g.kernel_h * g.kernel_w * (g.channels // g.groups)
    if first < stop:
        mine = turned[first * depth : stop * depth]
        if w_accumulate + accumulate > 0:
            transpose_strided(pointer(mine, 0), depth, pointer(dw, first), filters, depth, stop - first)
        else:
            clear(mine)
        length, (lines, distance, repeats, below) = line_size(g), lines_of(g)
        row, pixel = g.stride_h * g.width * g.channels, g.stride_w * g.channels
        count = pool.rows * pool.columns * filters
        places = pointer(offsets, part * offsets_size(count, 1))
        for image in range(n):
            argmax_offsets(places, pointer(argmax, image * count), count, pool.pool_w, row, pixel)
            corner = image * g.height * g.width * g.channels - pool.top * row - pool.left * pixel
            for f in range(first, stop):
                inside = corner + f // (filters // g.groups) * (g.channels // g.groups)
                given = pointer(dy, image * count + f)
                for repeat in range(repeats):
                    sum_of_argmax_windows(
                        *(pointer(mine, (f - first) * depth + repeat * lines * length), pointer(x, inside)),
                        *(distance, lines, length, given, pointer(places, f), filters, pool.rows, pool.columns),
                        *(pool.pool_stride_h * row, pool.pool_stride_w * pixel),
                    )
                    inside += below
        transpose_strided(pointer(dw, first), filters, pointer(mine, 0), depth, stop - first, depth)
    sum_of_rows(db, dy, b_accumulate + accumulate > 0, n * pool.rows * pool.columns, filters, part, parts)
