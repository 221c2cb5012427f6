"""The Cholesky factor of a symmetric positive definite matrix, in blocks, so that nearly all of it is a matrix product.

A = L L^T, one block of columns at a time (Golub and Van Loan 2013, "Matrix Computations", section 4.2.6, in outer
product form): factor the diagonal block, solve for the rows below it, and subtract their products from the remaining
matrix.

The result is bitwise that of the plain loop over i, j and k: L[i, j] starts as A[i, j], L[i, k] L[j, k] is subtracted
for k = 0, 1, ... in order, each with one fused multiply-add, and the result is divided by L[j, j]. The products
subtract by adding the negated panel, which rounds identically.
"""

import numpy as np

from nbprop.compiler.jit import njit
from nbprop.numerics.gemm.blocked import ACCUMULATE, gemm_scratch
from nbprop.numerics.gemm.entry import product
from nbprop.numerics.gemm.microkernel import pointer

# Columns of a block. At 1,441 columns 32, 64, 96 and 128 were within 10 % of each other.
BLOCK = 64

# Rows of a panel that are solved at a time, which stay in the L2 cache.
_ROWS = 256


@njit
def _panel_stride(n):
    """Row stride of a transposed panel: whole cache lines; never 1, where `product` sums in another order."""
    return (max(n - BLOCK, 0) + 7) // 8 * 8


@njit
def cholesky_scratch(n):
    """Elements of scratch that `cholesky` needs for a matrix (n, n)."""
    return BLOCK * _panel_stride(n) + gemm_scratch(BLOCK, n, BLOCK, 1)


@njit
def _factor_block(lower, first, size, n):
    """Factor the diagonal block at (first, first); False if it is not positive definite. lower INOUT (n, n)."""
    for i in range(first, first + size):
        row_i = lower[i * n : i * n + n]
        for j in range(first, i + 1):
            row_j = lower[j * n : j * n + n]
            total = row_i[j]
            for k in range(first, j):
                total -= row_i[k] * row_j[k]
            if i > j:
                row_i[j] = total / row_j[j]
            elif total > 0:
                row_i[i] = np.sqrt(total)
            else:
                return False
    return True


@njit
def _solve_panel(panel, stride, lower, first, size, n):
    """Solve L21 L11^T = A21 for the rows below a block.

    lower INOUT (n, n): A21 in, L21 out; panel OUT (size, stride): -L21^T, transposed so that the inner loop runs over
    the rows of A21, which are independent and vectorise.
    """
    begin = first + size
    for chunk in range(begin, n, _ROWS):
        rows, at = min(_ROWS, n - chunk), chunk - begin
        for j in range(size):
            line = panel[j * stride + at : j * stride + at + rows]
            for i in range(rows):
                line[i] = lower[(chunk + i) * n + first + j]
            for k in range(j):
                factor = lower[(first + j) * n + first + k]
                solved = panel[k * stride + at : k * stride + at + rows]
                for i in range(rows):
                    line[i] -= solved[i] * factor
            pivot = lower[(first + j) * n + first + j]
            for i in range(rows):
                line[i] /= pivot
        for i in range(rows):
            for j in range(size):
                lower[(chunk + i) * n + first + j] = panel[j * stride + at + i]
        for j in range(size):
            line = panel[j * stride + at : j * stride + at + rows]
            for i in range(rows):
                line[i] = -line[i]


@njit
def cholesky(lower, scratch, n):
    """Factor A = L L^T in place; False if A is not positive definite, and then lower holds no factor.

    lower INOUT (n, n), row-major: A in, L out; nothing above the diagonal blocks is read or written. scratch:
    `cholesky_scratch(n)` elements.
    """
    stride = _panel_stride(n)
    panel, rest = scratch[: BLOCK * stride], scratch[BLOCK * stride :]
    for first in range(0, n, BLOCK):
        size = min(BLOCK, n - first)
        if not _factor_block(lower, first, size, n):
            return False
        begin = first + size
        _solve_panel(panel, stride, lower, first, size, n)
        for row in range(begin, n, BLOCK):
            rows = min(BLOCK, n - row)
            target = pointer(lower, row * n + begin)
            product(
                (
                    *(target, n, pointer(lower, row * n + first), n, 1, pointer(panel, 0), stride),
                    *(rows, row + rows - begin, size, ACCUMULATE, target, pointer(rest, 0), rest.size, 0, 1),
                )
            )
    return True
