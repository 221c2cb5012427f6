"""The matrix products of a dense layer, for kernels: x W, x^T dz and the sum of dz's rows."""

from nbprop.compiler.intrinsics import pointer_to_one
from nbprop.compiler.jit import njit
from nbprop.numerics.gemm.blocked import ACCUMULATE, ZERO
from nbprop.numerics.gemm.entry import product
from nbprop.numerics.gemm.gemv import sums_of_columns
from nbprop.numerics.gemm.microkernel import pointer
from nbprop.numerics.partition import share


@njit
def times_weight(y, x, w, start, b, scratch, m, n_in, n_out, part, parts):
    """y = start + x W: y (m, n_out), x (m, n_in), w (n_in, n_out); b is read when start is BIAS."""
    product(
        (
            *(pointer(y, 0), n_out, pointer(x, 0), n_in, 1, pointer(w, 0), n_out, m, n_out, n_in),
            *(start, pointer(b, 0), pointer(scratch, 0), scratch.size, part, parts),
        )
    )


@njit
def weight_gradient(dw, x, dz, start, scratch, m, n_in, n_out, part, parts):
    """dw = start + x^T dz: dw (n_in, n_out), x (m, n_in), dz (m, n_out)."""
    product(
        (
            *(pointer(dw, 0), n_out, pointer(x, 0), 1, n_in, pointer(dz, 0), n_out, n_in, n_out, m),
            *(start, pointer(dw, 0), pointer(scratch, 0), scratch.size, part, parts),
        )
    )


# Up to so many elements of dz, which a cache holds, columns are read from top to bottom.
_FEW = 1 << 14


@njit
def sum_of_rows(db, dz, adding, m, n_out, part, parts):
    """db = the sum of dz's m rows, added to what db holds when `adding`; db (n_out,) or empty.

    Of a large dz it is a product with a row of ones, which reads rows as wide as it can. The sizes alone decide.
    """
    if db.size > 0 and m * n_out <= _FEW:
        first, last = share(n_out, part, parts)
        if last > first:
            sums_of_columns(pointer(db, first), pointer(dz, first), m, last - first, n_out, adding)
    elif db.size > 0:
        start = ACCUMULATE if adding else ZERO
        product(
            (
                *(pointer(db, 0), n_out, pointer_to_one(db), 0, 0, pointer(dz, 0), n_out, 1, n_out, m),
                *(start, pointer(db, 0), pointer(db, 0), 0, part, parts),
            )
        )
