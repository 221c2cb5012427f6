"""The matrix product that carries the arithmetic: C (m, n) = start + A (m, k) B (k, n), in float32 or float64.

How it works
------------

A processor multiplies and adds far faster than it loads. So a *tile* of C, twelve rows by two vectors of columns with
AVX-512, stays in registers for a whole loop over k; each step loads two vectors of B, takes one number from each of
twelve rows of A, and does 24 fused multiply-adds (microkernel.py). A *block* of C is covered by such tiles, row strip
by row strip. Small matrices need nothing else: nothing is copied, nothing is allocated.

Large matrices do not fit the caches, and rows whose distance is a power of two collide there. So B is cut into parts of
256 rows by 2,048 bytes, and each is *packed*: copied so that the panels which the tiles read are contiguous, in the L2
cache; then each strip of A is copied to the L1 cache and multiplied with the whole part. The loop over k is thus cut,
and the later parts accumulate onto C. This is the algorithm of Goto and van de Geijn ("Anatomy of high-performance
matrix multiplication", ACM TOMS 34, 2008, sections 4 and 5) in the form of Van Zee and van de Geijn ("BLIS", ACM TOMS
41, 2015, section 3), with the roles of A and B exchanged because C is row-major. If A has few rows, packing would copy
B for only one or two uses: then B stays in place, in parts of 128 rows, and only A is copied (128 x 512 x 3,200: 4.6 ms
packed, 4.05 in place).

While a tile is computed, the memory bus is idle. So each step over k prefetches a cache line of what is needed next:
the next rows of A, the next part of B, or what the caller names (`gemm_ahead`); and the start of a tile prefetches the
tile of C that follows it.

The bits
--------

C[i, j] starts as 0, as C[i, j] or as bias[j], and A[i, l] * B[l, j] is added for l = 0, 1, ..., k - 1 in that order,
each with one fused multiply-add. No tile, block, packing, thread count or vector width changes that order, so results
are bitwise identical. A product with one column (n = 1, contiguous A and B) is the exception: it sums over k in the
lanes of a vector (see `dots` in microkernel.py), in an order that depends on k alone.

The calls of a dense layer, for x (n, n_in), w (n_in, n_out), y (n, n_out)
---------------------------------------------------------------------------

- y = x w + b: ``gemm(y, n_out, x, n_in, 1, w, n_out, n, n_out, n_in, BIAS, b, scratch, room, part, parts)``
- dw = x^T dy: ``gemm(dw, n_out, x, 1, n_in, dy, n_out, n_in, n_out, n, ZERO, dw, scratch, room, part, parts)``
- dx = dy w^T: ``gemm(dx, n_in, dy, n_out, 1, wt, n_in, n, n_in, n_out, ZERO, dx, scratch, room, part, parts)`` after
  ``transpose(wt, w, n_in, n_out, part, parts)``

A convolution calls it with overlapping rows of A: windows of one line of the image, a_row = stride * channels.
"""

import numba

from nbprop.compiler.jit import njit
from nbprop.compiler.simd import VECTOR_BYTES
from nbprop.numerics.gemm.microkernel import HEIGHTS, block, copy, dots, is_null, itemsize, pointer, transpose_square

# What C starts from.
ZERO, ACCUMULATE, BIAS = 0, 1, 2

# A packed part of B: 256 rows of 2,048 bytes, half of an L2 cache of 1 MiB.  Nothing from 128 to 384 rows and from 1 to
# 4 KiB was measurably faster.
_DEPTH = 256
_WIDTH_BYTES = 2048

# Up to _FEW_ROWS rows of A do not repay packing B if two of its rows share a page: B stays in place, in parts of
# _PLACED_DEPTH rows.
_FEW_ROWS = 192
_PLACED_DEPTH = 128

# Rows of B that are packed together.
_PACKED_ROWS = 16

# A copied strip of A; its rows are padded by a cache line, or they would collide in the L1 cache.
STRIP_ROWS = HEIGHTS[0]
_STRIP_STRIDE = _DEPTH + 16

# A of at least this many elements is worth prefetching: a smaller one stays in the L1 cache.
_PREFETCH_ELEMENTS = 8192

# An unpacked B of at least _LARGE_B elements is read in parts that touch _PAGES_OF_TLB pages; a transposed matrix in
# parts of _TRANSPOSED_ROWS rows.
_LARGE_B = 1 << 20
_PAGES_OF_TLB = 16
_PAGE = 4096
_TRANSPOSED_ROWS = 256

# Shares of threads are cut at multiples of this many rows (eight for one column), or of a vector of columns.
_ROW_GRAIN = 4

# Inlined before types are inferred: the tiles are then compiled into one library, once.
_inline = numba.njit(inline="always")


@_inline
def _begin(total, grain, part, parts):
    """The beginning of share `part` of `total`, cut at multiples of `grain`; it ends where share part + 1 begins."""
    return min(total, (total + grain - 1) // grain * part // parts * grain)


@_inline
def _packs(m, n, k):
    """Whether packing pays: B is used often enough, and is larger than half of an L2 cache."""
    return m >= 48 and n * k >= 128 * 1024


@_inline
def _packed_elements(n, k):
    """Elements of a packed part of B, for either dtype."""
    return min(_DEPTH, k) * min(_WIDTH_BYTES // 4, (n + 31) // 32 * 32)


@njit
def gemm_scratch(m, n, k, parts):
    """Elements of scratch for a product of this size, all threads together; 0 if it is small.

    It never decreases when a size or `parts` grows, so scratch for the largest batch serves smaller ones.
    """
    return parts * (_packed_elements(n, k) + STRIP_ROWS * _STRIP_STRIDE) if _packs(m, n, k) else 0


@_inline
def gemm(c, ldc, a, a_row, a_col, b, ldb, m, n, k, start, bias, scratch, room, part, parts):
    """C (m, n) = start + A (m, k) B (k, n), or the share of one thread.

    c, ldc : OUT (INOUT to accumulate), address of (m, n), and row stride in elements; unit column stride
    a, a_row, a_col : IN, address of (m, k), and both strides; A[i, l] = a[i * a_row + l * a_col]; rows may overlap
    b, ldb : IN, address of (k, n), and row stride; unit column stride
    start : ZERO, ACCUMULATE or BIAS
    bias : IN, address of (n,), read for BIAS alone
    scratch, room : address of `room` elements, the same for all threads; each uses its own piece.  With fewer than
        `gemm_scratch(m, n, k, parts)`, for example none, nothing is packed: large sizes are slower, the bits the same
    part, parts : compute share `part` of `parts`; shares write disjoint pieces of C and do not synchronise

    Addresses come from `pointer(array, offset)`. C overlaps neither A, B nor scratch. If A or B is null (the address of
    an empty array), it counts as zeros: C = start.
    """
    gemm_ahead(c, ldc, a, a_row, a_col, b, ldb, m, n, k, start, bias, scratch, room, part, parts, c, 0)


@njit
def gemm_ahead(c, ldc, a, a_row, a_col, b, ldb, m, n, k, start, bias, scratch, room, part, parts, ahead, count):
    """`gemm`, while what the caller needs next is prefetched into the L2 cache.

    c OUT (m, n), a IN (m, k), b IN (k, n), bias IN (n,), scratch: as in `gemm`, all addresses
    ahead, count : address of `count` elements, 0 for none; a hint, which products that pack or copy ignore
    """
    if m <= 0 or n <= 0:
        return
    if is_null(a) or is_null(b):
        k = 0
        count = 0
    lanes = VECTOR_BYTES // itemsize(c)
    if n == 1 and a_col == 1 and ldb == 1 and ldc == 1:
        first = _begin(m, 8, part, parts)
        rows = _begin(m, 8, part + 1, parts) - first
        initial = bias[0] if start == BIAS else 0.0
        dots(pointer(c, first), pointer(a, first * a_row), a_row, b, rows, k, initial, start == ACCUMULATE)
        return
    if n == 1 and a_row == 1 and ldc == 1 and start != BIAS:
        # A narrow weight gradient: its transpose is a single row, which vectorises.
        a, b = b, a
        a_col, ldb = ldb, a_col
        m, n = n, m
    s = c
    s_row = ldc
    if start == BIAS:
        s = bias
        s_row = 0
    packs = _packs(m, n, k) and (a_col == 1 or a_row == 1) and room >= gemm_scratch(m, n, k, parts)
    if parts == 1 and not packs:
        _unpacked(c, ldc, a, a_row, a_col, b, ldb, m, n, k, s, s_row, start == ZERO, lanes, ahead, count)
        return
    i, j, rows, columns = _share(m, n, lanes, part, parts)
    c = pointer(c, i * ldc + j)
    a = pointer(a, i * a_row)
    b = pointer(b, j)
    s = pointer(s, i * s_row + j)
    if packs:
        scratch = pointer(scratch, part * (_packed_elements(n, k) + STRIP_ROWS * _STRIP_STRIDE))
        strip = pointer(scratch, _packed_elements(n, k))
        _packed(c, ldc, a, a_row, a_col, b, ldb, rows, columns, k, s, s_row, start == ZERO, scratch, strip)
    else:
        _unpacked(c, ldc, a, a_row, a_col, b, ldb, rows, columns, k, s, s_row, start == ZERO, lanes, ahead, count)


@_inline
def _unpacked(c, ldc, a, a_row, a_col, b, ldb, m, n, k, start, start_row, from_zero, lanes, ahead, count):
    """The product of small matrices, or of few rows with a large B, which is read in parts of some rows.

    A panel of B touches a page of memory per row; with many rows, hardware prefetching stops, and the pages exceed
    the TLB (16 rows times 9,216 x 4,096: all rows at once 62 ms, 128 rows 33, 16 rows 19). If the caller names nothing
    to prefetch, the next rows of A are prefetched.
    """
    depth = k
    if n * k >= _LARGE_B:
        depth = _PAGES_OF_TLB * max(1, _PAGE // max(1, ldb * itemsize(b)))
    ahead_row = 0
    pace = 0
    once = False
    if count > 0:
        ahead_row = count // m
        steps = (n + 2 * lanes - 1) // (2 * lanes) * k
        pace = (STRIP_ROWS * ahead_row + steps - 1) // steps
    elif m * k >= _PREFETCH_ELEMENTS and a_row == 1:
        ahead = pointer(a, 2 * STRIP_ROWS - 1)
        ahead_row = 1
        pace = a_col
        once = True
    elif m * k >= _PREFETCH_ELEMENTS and a_row == k:
        ahead = pointer(a, STRIP_ROWS * a_row)
        ahead_row = a_row
        pace = (STRIP_ROWS * 2 * lanes + n - 1) // n
    first = 0
    while first < k or first == 0:
        rows = min(depth, k - first)
        zero = from_zero and first == 0
        s = c
        s_row = ldc
        if first == 0:
            s = start
            s_row = start_row
        block(
            *(c, ldc, pointer(a, first * a_col), a_row, a_col, 0, pointer(b, first * ldb), 2 * lanes, ldb),
            *(m, n, rows, 1, s, s_row, zero, ahead, ahead_row, pace, once),
        )
        first += max(1, rows)


@_inline
def _share(m, n, lanes, part, parts):
    """First row, first column, rows and columns of a share of C (m, n).

    C is cut along the dimension that makes the largest share smaller; if there is no difference, along the longer one,
    so that shares read less data twice.
    """
    by_rows = (m + _ROW_GRAIN * parts - 1) // (_ROW_GRAIN * parts) * _ROW_GRAIN * n
    by_columns = (n + lanes * parts - 1) // (lanes * parts) * lanes * m
    i = j = 0
    rows = m
    columns = n
    if by_rows < by_columns or (by_rows == by_columns and m >= n):
        i = _begin(m, _ROW_GRAIN, part, parts)
        rows = _begin(m, _ROW_GRAIN, part + 1, parts) - i
    else:
        j = _begin(n, lanes, part, parts)
        columns = _begin(n, lanes, part + 1, parts) - j
    return i, j, rows, columns


@_inline
def _packed(c, ldc, a, a_row, a_col, b, ldb, m, n, k, start, start_row, from_zero, packed, strip):
    """The product of large matrices; A has unit stride along its rows or its columns, and so do its copies."""
    panel = 2 * (VECTOR_BYTES // itemsize(c))
    width = _WIDTH_BYTES // itemsize(c)
    strip_row, strip_col = (_STRIP_STRIDE, 1) if a_col == 1 else (1, STRIP_ROWS)
    in_place = m <= _FEW_ROWS and 2 * ldb * itemsize(b) <= _PAGE
    most = _PLACED_DEPTH if in_place else _DEPTH
    tiles = (min(width, n) + panel - 1) // panel
    j = 0
    while j < n:
        columns = min(width, n - j)
        first = 0
        while first < k:
            depth = min(most, k - first)
            panels = packed
            panel_stride = panel * depth
            panel_row = panel
            if in_place:
                panels = pointer(b, first * ldb + j)
                panel_stride = panel
                panel_row = ldb
            else:
                _pack(packed, pointer(b, first * ldb + j), ldb, depth, columns, panel)
            s = pointer(c, j)
            s_row = ldc
            if first == 0:
                s = pointer(start, j)
                s_row = start_row
            zero = from_zero and first == 0
            i = 0
            while i < m:
                rows = min(STRIP_ROWS, m - i)
                source = pointer(a, i * a_row + first * a_col)
                if a_col == 1:
                    copy(strip, strip_row, source, a_row, rows, depth)
                else:
                    copy(strip, strip_col, source, a_col, depth, rows)
                # Prefetched: the next part of B, or the columns of A that are copied next (the processor prefetches
                # whole rows by itself).
                ahead = pointer(source, 2 * STRIP_ROWS - 1)
                pace = 0 if a_col == 1 else a_col
                if in_place:
                    ahead = pointer(b, (first + depth + i * depth // m) * ldb + j)
                    pace = (STRIP_ROWS * ldb + m * tiles - 1) // (m * tiles) if first + depth < k else 0
                target = pointer(c, i * ldc + j)
                begin = pointer(s, i * s_row)
                block(
                    *(target, ldc, strip, strip_row, strip_col, 0, panels, panel_stride, panel_row),
                    *(rows, columns, depth, 1, begin, s_row, zero, ahead, 0, pace, not in_place),
                )
                i += rows
            first += depth
        j += columns


@_inline
def _pack(packed, b, ldb, depth, columns, panel):
    """Copy a part of B (depth, columns) into panels, some rows at a time, so that reads are almost contiguous."""
    row = 0
    while row < depth:
        rows = min(_PACKED_ROWS, depth - row)
        p = 0
        while p < columns:
            source = pointer(b, row * ldb + p)
            copy(pointer(packed, p * depth + row * panel), panel, source, ldb, rows, min(panel, columns - p))
            p += panel
        row += rows


@njit
def segmented(c, ldc, a, a_row, a_col, a_jump, b, b_panel, ldb, m, n, k, segments, start, bias):
    """C (m, n) = start + A (m, segments * k) B (segments * k, n), where the rows of A are in segments.

    c OUT (m, n), a IN (m, segments * k), b IN (segments * k, n), bias IN (n,): addresses

    As `gemm`, except that A[i, s * k + l] = a[i * a_row + s * (k * a_col + a_jump) + l * a_col], and B is cut into
    panels of two vectors of columns, `b_panel` elements apart (two vectors if it is not packed). Nothing is packed
    here, and the work is not divided.
    """
    s = c
    s_row = ldc
    if start == BIAS:
        s = bias
        s_row = 0
    block(c, ldc, a, a_row, a_col, a_jump, b, b_panel, ldb, m, n, k, segments, s, s_row, start == ZERO, c, 0, 0, False)


@njit
def transpose(out, w, rows, cols, part, parts):
    """out (cols, rows) = w (rows, cols) transposed, or the share of one thread.

    out : OUT, address of (cols, rows), row-major and contiguous
    w : IN, address of (rows, cols), row-major and contiguous
    part, parts : compute share `part` of `parts`, some rows of out
    """
    lanes = VECTOR_BYTES // itemsize(out)
    j = _begin(cols, lanes, part, parts)
    end = _begin(cols, lanes, part + 1, parts)
    transpose_strided(pointer(out, j * rows), rows, pointer(w, j), cols, rows, end - j)


@njit
def transpose_strided(out, out_row, w, w_row, rows, cols):
    """out = w transposed. out OUT, address of (cols, rows); w IN, address of (rows, cols).

    out_row, w_row: row strides in elements.
    """
    lanes = VECTOR_BYTES // itemsize(out)
    first = 0
    while first < rows:
        # Some rows at a time: each is in a page of its own, and all of them exceed the TLB (9,216 x 4,096: 43 ms, 25 in
        # parts).
        last = min(first + _TRANSPOSED_ROWS, rows)
        j = 0
        while j < cols:
            columns = min(lanes, cols - j)
            i = first
            while i < last:
                square = pointer(w, i * w_row + j)
                transpose_square(pointer(out, j * out_row + i), out_row, square, w_row, min(lanes, last - i), columns)
                i += lanes
            j += lanes
        first = last
