import numba

from nbprop.jit import njit
from nbprop.numerics.tile import HEIGHTS, STRIPS, VECTOR_BYTES, copy, dots, itemsize, pointer

ZERO, ACCUMULATE, BIAS = 0, 1, 2

_KC = 256
_PANEL_BYTES = 2048
_TALL, _MIDDLE, _LOW, _ = HEIGHTS
_tall, _middle, _low, _single = STRIPS

inline = numba.njit(inline="always")


@inline
def _block(c, ldc, a, a_row, a_col, b, b_panel, ldb, m, n, k, start, start_row, from_zero):
    i = 0
    while i < m:
        left = m - i
        c_now = pointer(c, i * ldc)
        a_now = pointer(a, i * a_row)
        s_now = pointer(start, i * start_row)
        if left >= _TALL:
            _tall(c_now, ldc, a_now, a_row, a_col, b, b_panel, ldb, n, k, s_now, start_row, from_zero)
            i += _TALL
        elif left >= _MIDDLE:
            _middle(c_now, ldc, a_now, a_row, a_col, b, b_panel, ldb, n, k, s_now, start_row, from_zero)
            i += _MIDDLE
        elif left >= _LOW:
            _low(c_now, ldc, a_now, a_row, a_col, b, b_panel, ldb, n, k, s_now, start_row, from_zero)
            i += _LOW
        else:
            _single(c_now, ldc, a_now, a_row, a_col, b, b_panel, ldb, n, k, s_now, start_row, from_zero)
            i += 1


@inline
def _begin(total, grain, part, parts):
    return min(total, (total + grain - 1) // grain * part // parts * grain)


@inline
def _large(m, n, k):
    return m >= 48 and n * k >= 128 * 1024


@njit
def gemm_scratch(m, n, k, parts):
    if not _large(m, n, k):
        return 0
    return parts * (_KC * _PANEL_BYTES // 4 + _TALL * (_KC + 16))


@njit
def gemm(c, ldc, a, a_row, a_col, b, ldb, m, n, k, start, bias, scratch, part, parts):
    if m <= 0 or n <= 0:
        return
    lanes = VECTOR_BYTES // itemsize(c)
    if n == 1 and a_col == 1 and ldb == 1 and ldc == 1:
        first = _begin(m, 8, part, parts)
        initial = bias[0] if start == BIAS else 0.0
        rows = _begin(m, 8, part + 1, parts) - first
        dots(pointer(c, first), pointer(a, first * a_row), a_row, b, rows, k, initial, start == ACCUMULATE)
        return
    if n == 1 and a_row == 1 and ldc == 1 and start != BIAS:
        b, a = a, b
        a_col, ldb = ldb, a_col
        n, m = m, n
    i_begin = j_begin = 0
    i_end = m
    j_end = n
    if parts > 1:
        if -(-m // (4 * parts)) * 4 * n <= -(-n // (lanes * parts)) * lanes * m:
            i_begin = _begin(m, 4, part, parts)
            i_end = _begin(m, 4, part + 1, parts)
        else:
            j_begin = _begin(n, lanes, part, parts)
            j_end = _begin(n, lanes, part + 1, parts)
    i_step = m
    j_step = n
    l_step = max(k, 1)
    b_panel = 2 * lanes
    ldb_now = ldb
    a_row_now = a_row
    a_col_now = a_col
    large = _large(m, n, k) and (a_col == 1 or a_row == 1)
    b_scratch = a_scratch = scratch
    if large:
        b_scratch = pointer(scratch, part * (_KC * (_PANEL_BYTES // 4) + _TALL * (_KC + 16)))
        a_scratch = pointer(b_scratch, _KC * (_PANEL_BYTES // 4))
        i_step = _TALL
        j_step = _PANEL_BYTES // itemsize(c)
        l_step = _KC
        ldb_now = 2 * lanes
        if a_col == 1:
            a_row_now = _KC + 16
        else:
            a_col_now = _TALL
    j = j_begin
    while j < j_end:
        nc = min(j_step, j_end - j)
        l = 0
        while l == 0 or l < k:
            kc = min(l_step, k - l)
            b_now = pointer(b, l * ldb + j)
            if large:
                b_panel = 2 * lanes * kc
                p = 0
                while p < nc:
                    copy(pointer(b_scratch, p * kc), 2 * lanes, pointer(b_now, p), ldb, kc, min(2 * lanes, nc - p))
                    p += 2 * lanes
                b_now = b_scratch
            from_zero = start == ZERO and l == 0
            s = c
            s_row = ldc
            if start == BIAS and l == 0:
                s = bias
                s_row = 0
            i = i_begin
            while i < i_end:
                rows = min(i_step, i_end - i)
                a_now = pointer(a, i * a_row + l * a_col)
                if large:
                    if a_col == 1:
                        copy(a_scratch, a_row_now, a_now, a_row, rows, kc)
                    else:
                        copy(a_scratch, a_col_now, a_now, a_col, kc, rows)
                    a_now = a_scratch
                _block(
                    pointer(c, i * ldc + j), ldc, a_now, a_row_now, a_col_now, b_now, b_panel, ldb_now,
                    rows, nc, kc, pointer(s, i * s_row + j), s_row, from_zero
                )
                i += i_step
            l += l_step
        j += j_step


@njit
def transpose(out, w, rows, cols, part, parts):
    """out (cols, rows) = w (rows, cols) transposed."""
    for i in range(rows):
        for j in range(cols):
            out[j * rows + i] = w[i * cols + j]
