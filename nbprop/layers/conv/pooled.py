"""The weight gradient of a convolution whose output goes into a max pool.

The gradient of its output is zero but where the pool took a number, and those places are known: dW is a sum over the
pool's windows (numerics/pooled_gradient.py) instead of over all pixels, and the gradient of the pixels is not even
written where nobody wants the input's. Ties go to one pixel, overlapping windows add up, as in `max_pool_backward`.
"""

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


@kernel(uses=(GEMM,))
def conv_backward_argmax(
    dw, db, turned, offsets, x, dy, argmax, n, filters, height, width, channels, kernel_h, kernel_w, stride_h, stride_w,
    dilation_h, dilation_w, groups, out_h, out_w, pool_w, pool_stride_h, pool_stride_w, top, left, rows, columns,
    w_again, b_again, accumulate, part, parts
):  # fmt: skip
    """dW = the sum over the windows of the pool of (window of the argmax)^T dy, db = the sum of dy.

    dw OUT (kernel_h, kernel_w, channels / groups, filters), db OUT (filters,) or empty; accumulated into with their
    `again`, or with `accumulate`; turned OUT (kernel_h, kernel_w, channels / groups, filters), offsets OUT
    (`offsets_size`,): scratch; x IN (n, height, width, channels); dy and argmax IN (n, rows, columns, filters): the
    gradient of the output of the pool, and its argmax from `max_pool_forward`.
    """
    windows = Windows(
        height, width, channels, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, groups, out_h, out_w
    )
    first, stop = share(filters, part, parts)
    depth = kernel_h * kernel_w * (channels // groups)
    if first < stop:
        mine = turned[first * depth : stop * depth]
        if w_again + accumulate > 0:
            transpose_strided(pointer(mine, 0), depth, pointer(dw, first), filters, depth, stop - first)
        else:
            clear(mine)
        length, (lines, distance, repeats, below) = line_size(windows), lines_of(windows)
        row, pixel = stride_h * width * channels, stride_w * channels
        count = rows * columns * filters
        places = pointer(offsets, part * offsets_size(count, 1))
        for image in range(n):
            argmax_offsets(places, pointer(argmax, image * count), count, pool_w, row, pixel)
            corner = image * height * width * channels - top * row - left * pixel
            for f in range(first, stop):
                inside = corner + f // (filters // groups) * (channels // groups)
                given = pointer(dy, image * count + f)
                for repeat in range(repeats):
                    sum_of_argmax_windows(
                        *(pointer(mine, (f - first) * depth + repeat * lines * length), pointer(x, inside)),
                        *(distance, lines, length, given, pointer(places, f), filters, rows, columns),
                        *(pool_stride_h * row, pool_stride_w * pixel),
                    )
                    inside += below
        transpose_strided(pointer(dw, first), filters, pointer(mine, 0), depth, stop - first, depth)
    sum_of_rows(db, dy, b_again + accumulate > 0, n * rows * columns, filters, part, parts)
