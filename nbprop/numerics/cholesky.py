"""The Cholesky factor of a symmetric positive definite matrix, in blocks: nearly all of it is the matrix product.

A = L L^T, one block of columns after the other (Golub and Van Loan 2013, "Matrix Computations", section 4.2.6, in its
outer product form): factor the block on the diagonal, solve for the rows below it, subtract their products from what
remains.

The bits are those of the plain loop over i, j and k: L[i, j] starts as A[i, j], loses L[i, k] L[j, k] for k = 0, 1, ...
in that order, each with one fused multiply-add, and is divided by L[j, j]. The products subtract by adding the negated
panel, which rounds the same.
"""

import numpy as np

from nbprop.compiler.jit import njit
from nbprop.numerics.gemm.blocked import ACCUMULATE, gemm_scratch
from nbprop.numerics.gemm.entry import product
from nbprop.numerics.gemm.microkernel import pointer

# Columns of a block. At 1,441 columns 32, 64, 96 and 128 were within 10 % of each other.
BLOCK = 64

# A panel is solved so many rows at a time, which stay in the second level cache.
_ROWS = 256


@njit
def _panel_stride(n):
    """Elements between the rows of a transposed panel: whole cache lines; never 1, which `product` sums in lanes."""
    return (max(n - BLOCK, 0) + 7) // 8 * 8


@njit
def cholesky_scratch(n):
    """Elements of scratch that `cholesky` needs for (n, n)."""
    return BLOCK * _panel_stride(n) + gemm_scratch(BLOCK, n, BLOCK, 1)


@njit
def _factor_block(lower, first, size, n):
    """Factor the block on the diagonal at (first, first); False where it is not positive definite."""
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
    """Solve L21 L11^T = A21 for the rows below a block; L21 into lower, and -L21^T into panel (size, stride).

    The panel is transposed so that the loop over the rows of A21, which do not wait for each other, fills the vectors.
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
    """Factor in place; False where the matrix is not positive definite, and lower then holds no factor.

    lower INOUT (n, n) row-major: the matrix, then its factor; nothing above the diagonal's blocks is read or written.
    scratch: `cholesky_scratch(n)` elements.
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
