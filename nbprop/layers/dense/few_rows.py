"""The input gradient of a large dense layer for few samples: dx^T = W dz^T, which reads W once, where it lies.

The general form, dx = dz W^T with a transposed copy of W, moves a weight of 151 MB three times and needs its memory
twice; for the sixteen samples of AlexNet's batch that took four times as long.
"""

from nbprop.compiler.jit import njit
from nbprop.compiler.simd import VECTOR_BYTES
from nbprop.layers.dense.sizes import DenseSizes
from nbprop.numerics.gemm.blocked import ACCUMULATE, STRIP_ROWS, ZERO, transpose_strided
from nbprop.numerics.gemm.entry import GEMM, SEGMENTED, product, segmented_product
from nbprop.numerics.gemm.microkernel import copy, itemsize, pointer
from nbprop.numerics.partition import share
from nbprop.program.kernel import kernel

# Rows of dz up to which, and elements of W from which it pays: a transposed copy of W would not stay in a cache.
_MOST_ROWS, _LEAST_ELEMENTS = 64, 1 << 19
# A strip of W is copied together, since its rows collide in the first level cache: so many columns, and a cache line.
_DEPTH, _STRIDE = 256, 256 + 16
# Rows of dx^T that are made before they are turned.
_BLOCK = 4 * STRIP_ROWS


def is_few(rows, n_in, n_out):
    """Whether `dense_backward_few` serves a product of these sizes."""
    return rows <= _MOST_ROWS and n_in * n_out >= _LEAST_ELEMENTS and n_out >= _DEPTH


@njit
def few_scratch(rows, n_out, threads):
    """Elements of scratch that `dense_backward_few` needs."""
    return threads * (rows * (n_out + _BLOCK) + STRIP_ROWS * _STRIDE)


@kernel(uses=(GEMM, SEGMENTED))
def dense_backward_few(dx, scratch, dz, w, n, sizes: DenseSizes, part, parts):
    """dx = dz W^T.

    dx OUT (n * rows, n_in), dz IN (n * rows, n_out), w IN (n_in, n_out); scratch: `few_scratch` elements.
    """
    rows, n_in, n_out = sizes.rows, sizes.n_in, sizes.n_out
    m = n * rows
    if m == 1:
        product(
            (
                *(pointer(dx, 0), 1, pointer(w, 0), n_out, 1, pointer(dz, 0), 1, n_in, 1, n_out),
                *(ZERO, pointer(dx, 0), pointer(scratch, 0), scratch.size, part, parts),
            )
        )
        return
    turned = pointer(scratch, part * few_scratch(m, n_out, 1))
    block, strip = pointer(turned, m * n_out), pointer(turned, m * (n_out + _BLOCK))
    transpose_strided(turned, m, pointer(dz, 0), n_out, m, n_out)
    panel = 2 * (VECTOR_BYTES // itemsize(turned))
    first, stop = share((n_in + _BLOCK - 1) // _BLOCK, part, parts)
    for i in range(first * _BLOCK, min(stop * _BLOCK, n_in), _BLOCK):
        height = min(_BLOCK, n_in - i)
        for k in range(0, n_out, _DEPTH):
            depth, start = min(_DEPTH, n_out - k), ZERO if k == 0 else ACCUMULATE
            for row in range(0, height, STRIP_ROWS):
                count, target = min(STRIP_ROWS, height - row), pointer(block, row * m)
                copy(strip, _STRIDE, pointer(w, (i + row) * n_out + k), n_out, count, depth)
                segmented_product(
                    (
                        *(target, m, strip, _STRIDE, 1, 0, pointer(turned, k * m), panel, m),
                        *(count, m, depth, 1, start, target),
                    )
                )
        transpose_strided(pointer(dx, i), n_in, block, m, height, m)
