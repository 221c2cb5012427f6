"""The matrix product as layers call it: compiled once per dtype, called by address (see gemm/blocked.py)."""

from numba import types

from nbprop.compiler.jit import njit
from nbprop.compiler.native import Native
from nbprop.numerics.gemm.blocked import gemm_ahead, segmented


def _signature(dtype):
    pointer, size = types.CPointer(dtype), types.int64
    return types.void(
        *(pointer, size),  # c, ldc
        *(pointer, size, size),  # a, a_row, a_col
        *(pointer, size),  # b, ldb
        *(size, size, size),  # m, n, k
        *(size, pointer),  # start, bias
        *(pointer, size, size, size),  # scratch, room, part, parts
        *(pointer, size),  # ahead, count
    )


def _segmented_signature(dtype):
    pointer, size = types.CPointer(dtype), types.int64
    return types.void(
        *(pointer, size),  # c, ldc
        *(pointer, size, size, size),  # a, a_row, a_col, a_jump
        *(pointer, size, size),  # b, b_panel, ldb
        *(size, size, size, size),  # m, n, k, segments
        *(size, pointer),  # start, bias
    )


GEMM = Native(gemm_ahead, _signature)
SEGMENTED = Native(segmented, _segmented_signature)
product_ahead = GEMM.callable()
segmented_product = SEGMENTED.callable()


@njit
def product(arguments):
    """The product without prefetching for the caller: the arguments of `product_ahead` except the last two."""
    product_ahead((*arguments, arguments[0], 0))
