"""The matrix product on the device: C (m, n) = A (m, k) B (k, n), tile by tile through shared memory.

A thread block computes one tile of C. In steps over k it copies a slice of A and one of B to shared memory; each thread
accumulates some rows times some columns of the tile in registers, as outer products of the slices (Volkov and Demmel,
"Benchmarking GPUs to tune dense linear algebra", SC 2008, section 5). There are two slices of each: while one is
multiplied, the next is on its way from global memory to registers. A has any strides, so x W, x^T dz and dz W^T are
the same code; B is row-major.

A launch has a block for each tile (and piece), so nothing is kept in registers for the next one.

Indices are made unsigned, because Numba adds the array's size to negative ones: three instructions for each access.

A thread's rows are runs of four neighbours (fewer in small tiles), and its columns likewise, so that each run is one
128-bit load from shared memory. From global memory, too, runs of four are one load where strides and address allow it.

Summation order depends on k alone (and, where k is cut into pieces that a second launch sums, on m, n and k), so
results are bitwise the same on every run and device.
"""

import numpy as np

from nbprop.compiler.jit import njit
from nbprop.cuda.outer import Tile, lead_of, outer_products, places
from nbprop.cuda.toolkit import SIMULATED, THREADS, cuda, device_function
from nbprop.cuda.vectors import ALIGNMENT, fours, load4, runs, store4
from nbprop.numerics.activations import IDENTITY, value_of
from nbprop.numerics.scalars import like

# For few columns, for most sizes, and for large matrices in float32 (in float64 this tile would spill registers). A
# block of THREADS threads computes each.
NARROW = Tile(4, 4, 4, 2, 1) if SIMULATED else Tile(64, 16, 16, 4, 1)
MIDDLE = Tile(4, 8, 4, 2, 2) if SIMULATED else Tile(64, 64, 16, 4, 4)
LARGE = Tile(16, 16, 4, 8, 4) if SIMULATED else Tile(128, 128, 8, 8, 8)
TILES = (NARROW, MIDDLE, LARGE)
DTYPES = ((np.float32, np.float64), (np.float32, np.float64), (np.float32,))

# With fewer large tiles than this, most multiprocessors would be idle.
_MANY = 2 if SIMULATED else 96
# A product with k cut into pieces aims at _BLOCKS blocks, each with at least _LEAST of k.
_BLOCKS, _LEAST = (3, 4) if SIMULATED else (264, 128)


@njit
def tiles(tile, m, n):
    """The number of tiles that cover C (m, n)."""
    return ((m + tile.rows - 1) // tile.rows) * ((n + tile.columns - 1) // tile.columns)


@njit
def choice(m, n, itemsize):
    """The index in TILES of the tile for C (m, n)."""
    if n <= NARROW.columns:
        return 0
    return 2 if itemsize == 4 and tiles(LARGE, m, n) >= _MANY else 1


@njit
def pieces(m, n, k, itemsize, products=1):
    """The number of pieces that k is cut into, by sizes alone; `products` products of these sizes run at once."""
    chosen = choice(m, n, itemsize)
    count = tiles(NARROW, m, n) if chosen == 0 else (tiles(MIDDLE, m, n) if chosen == 1 else tiles(LARGE, m, n))
    count *= products
    return max(1, min((_BLOCKS + count - 1) // count, k // _LEAST))


def blocks_of(number, m, n, itemsize, cuts=1):
    """Blocks for the kernel of TILES[number]; 0 if another tile is chosen."""
    return int(tiles(TILES[number], m, n)) * cuts if choice(m, n, itemsize) == number else 0


def slices(width, depth, *, along_steps):
    """(elements of a thread, fetch, put): device functions that bring a slice (depth, width) to shared memory.

    fetch(held, x, base, stride, width_left, steps_left, wide): held OUT, registers: the thread's elements of the
    slice, 0 where there is none. Element (step, position) of the slice is x[base + position * stride + step] with
    `along_steps`, else x[base + step * stride + position]; wide: whether four neighbours can be loaded at once.
    put(space, at, held): from registers to shared memory.
    """
    each, lead = width * depth // THREADS, lead_of(width)
    run = min(4, each)
    neighbours, store = (depth if along_steps else width) // run, runs(run)[1]

    @device_function
    def place(number):
        """(step, position) of the first element of run `number` of the thread."""
        at = cuda.threadIdx.x + number * THREADS
        if along_steps:
            return at % neighbours * run, at // neighbours
        return at // neighbours, at % neighbours * run

    @device_function
    def fetch(held, x, base, stride, width_left, steps_left, wide):
        for number in range(each // run):
            step, position = place(number)
            if along_steps:
                first, left, inside = base + position * stride + step, steps_left - step, position < width_left
            else:
                first, left, inside = base + step * stride + position, width_left - position, step < steps_left
            left = left if inside else 0
            if run == 4 and wide and left >= 4:
                load4(held, 4 * number, x, first)
            else:
                for k in range(run):
                    held[number * run + k] = x[np.uint64(first + k)] if k < left else like(x[0], 0.0)

    @device_function
    def put(space, at, held):
        for number in range(each // run):
            step, position = place(number)
            if along_steps:
                for k in range(run):
                    space[np.uint64(at + (step + k) * lead + position)] = held[number * run + k]
            else:
                store(space, at + step * lead + position, held, number * run)

    return each, fetch, put


def multiplier(tile, *, transposed, column_sums):
    """A device function that adds A[:, first:last] B[first:last, :] to a thread's accumulators.

    multiply(acc, sums, a, lda, b, ldb, m, n, i, j, first, last): acc INOUT (each_row * each_column,), in registers;
    sums INOUT (each_column,), the sums of B's columns with `column_sums`; a IN (m, k) with row stride lda, or with
    `transposed` (k, m); b IN (k, n) with row stride ldb; (i, j): first row and column of the tile.
    """
    (rows, columns, depth, _, _), add = tile, outer_products(tile, column_sums=column_sums)
    a_each, fetch_a, put_a = slices(rows, depth, along_steps=not transposed)
    b_each, fetch_b, put_b = slices(columns, depth, along_steps=False)
    a_size, b_size = depth * lead_of(rows), depth * lead_of(columns)
    a_both, b_both = 2 * a_size, 2 * b_size

    @device_function
    def multiply(acc, sums, a, lda, b, ldb, m, n, i, j, first, last):
        a_slices = cuda.shared.array(a_both, a.dtype, ALIGNMENT)
        b_slices = cuda.shared.array(b_both, a.dtype, ALIGNMENT)
        a_held, b_held = cuda.local.array(a_each, a.dtype), cuda.local.array(b_each, a.dtype)
        a_base, a_step = (first * lda + i, depth * lda) if transposed else (i * lda + first, depth)
        b_base, b_step = first * ldb + j, depth * ldb
        a_wide, b_wide = fours(a, lda, a_base), fours(b, ldb, b_base)
        fetch_a(a_held, a, a_base, lda, m - i, last - first, a_wide)
        fetch_b(b_held, b, b_base, ldb, n - j, last - first, b_wide)
        put_a(a_slices, 0, a_held)
        put_b(b_slices, 0, b_held)
        cuda.syncthreads()
        half = 0
        for begin in range(first, last, depth):
            a_base, b_base, left = a_base + a_step, b_base + b_step, last - begin - depth
            fetch_a(a_held, a, a_base, lda, m - i, left, a_wide)
            fetch_b(b_held, b, b_base, ldb, n - j, left, b_wide)
            add(acc, sums, a_slices, half * a_size, b_slices, half * b_size)
            half = 1 - half
            put_a(a_slices, half * a_size, a_held)
            put_b(b_slices, half * b_size, b_held)
            cuda.syncthreads()

    return multiply


def with_shift(tile):
    """A device function: store(y, acc, place, lead, b, b_at, high, wide, fast), a tile of a product plus b, to y.

    y OUT: element (row, column) of the tile at y[place + row * lead + column], for rows below `high` and columns below
    `wide`; acc INOUT (each_row * each_column,); b IN, from b_at on, or empty; fast: whether `fours` holds of y's rows.
    """
    (rows, columns, _, each_row, each_column), (row_run, run), (row_of, column_of) = tile, tile.run, places(tile)
    jump = (tile.down - 1) * row_run + 1

    @device_function
    def store(y, acc, place, lead, b, b_at, high, wide, fast):
        shift = cuda.local.array(each_column, y.dtype)
        for c in range(each_column):
            inside = b.size > 0 and column_of(c) < wide
            shift[c] = b[np.uint64(b_at + column_of(c))] if inside else like(y[0], 0.0)
        for r in range(each_row):
            for c in range(each_column):
                acc[r * each_column + c] += shift[c]
        # From row to row: the products row * lead of all of them would take more registers than there are. Two loops
        # rather than a condition within one, which is too long to be unrolled.
        at = place + row_of(0) * lead
        if run == 4 and fast and high == rows and wide == columns:
            for r in range(each_row):
                for c in range(0, each_column, 4):
                    store4(y, at + column_of(c), acc, r * each_column + c)
                at += lead * (jump if r % row_run == row_run - 1 else 1)
        else:
            for r in range(each_row):
                for c in range(each_column):
                    if row_of(r) < high and column_of(c) < wide:
                        y[np.uint64(at + column_of(c))] = acc[r * each_column + c]
                at += lead * (jump if r % row_run == row_run - 1 else 1)

    return store


def with_bias(tile):
    """A device function: a block's tile of y = f(a w + b).

    times(y, a, w, b, m, n, k, code), by `blocks_of` blocks: y OUT (m, n), a IN (m, k), w IN (k, n), b IN (n,) or empty;
    f by its code.
    """
    multiply, store = multiplier(tile, transposed=False, column_sums=False), with_shift(tile)
    (rows, columns, _, each_row, each_column), (row_of, column_of) = tile, places(tile)
    size = each_row * each_column

    @device_function
    def make(acc, none, y, a, w, b, m, n, k, code, i, j):
        multiply(acc, none, a, k, w, n, m, n, i, j, 0, k)
        # 32-bit numbers: what is needed behind the product takes registers during it.
        high, wide, place = np.int32(min(m - i, rows)), np.int32(min(n - j, columns)), i * n + j
        store(y, acc, place, n, b, j, high, wide, fours(y, n, j))
        # A separate loop: within the one above, it would prevent unrolling, and `acc` would not stay in registers.
        if code != IDENTITY:
            for number in range(size):
                row, col = row_of(number // each_column), column_of(number % each_column)
                if row < high and col < wide:
                    here = np.uint64(place + row * n + col)
                    y[here] = value_of(y[here], code)

    @device_function
    def times(y, a, w, b, m, n, k, code):
        acc, none = cuda.local.array(size, y.dtype), cuda.local.array(1, y.dtype)
        wide = (n + columns - 1) // columns
        for r in range(size):
            acc[r] = like(y[0], 0.0)
        make(acc, none, y, a, w, b, m, n, k, code, cuda.blockIdx.x // wide * rows, cuda.blockIdx.x % wide * columns)

    return times


def two_products(tile):
    """A device function: a block's tile of y = a w + a2 w2 + b, the derivative of a product along a direction.

    times(y, a, w, a2, w2, b, m, n, k), by `blocks_of` blocks: y OUT (m, n), a and a2 IN (m, k), w and w2 IN (k, n), b
    IN (n,) or empty. A product is left out, if one of its operands is empty.
    """
    multiply, store = multiplier(tile, transposed=False, column_sums=False), with_shift(tile)
    rows, columns, size = tile.rows, tile.columns, tile.each_row * tile.each_column

    @device_function
    def times(y, a, w, a2, w2, b, m, n, k):
        acc, none = cuda.local.array(size, y.dtype), cuda.local.array(1, y.dtype)
        across = (n + columns - 1) // columns
        i, j = cuda.blockIdx.x // across * rows, cuda.blockIdx.x % across * columns
        for r in range(size):
            acc[r] = like(y[0], 0.0)
        # Twice rather than in a loop: of an array that is one or the other it is not known that it is in global memory.
        if a.size > 0 and w.size > 0:
            multiply(acc, none, a, k, w, n, m, n, i, j, 0, k)
        if a2.size > 0 and w2.size > 0:
            multiply(acc, none, a2, k, w2, n, m, n, i, j, 0, k)
        high, wide = np.int32(min(m - i, rows)), np.int32(min(n - j, columns))
        store(y, acc, i * n + j, n, b, j, high, wide, fours(y, n, j))

    return times


def in_pieces(tile, second=False):
    """A device function: a block's tile of one piece of C = a^T b, and of the sums of b's columns.

    gradient(partials, a, b, a2, b2, m, n, k), by `blocks_of` blocks: a IN (k, m), b IN (k, n); partials OUT (pieces, m,
    n), and after these (pieces, n): the sums of b's columns. With `second`, C = a^T b + a2^T b2, unless a2 is empty.
    """
    multiply = multiplier(tile, transposed=True, column_sums=True)
    rows, columns, _, each_row, each_column = tile
    size, (row_of, column_of) = each_row * each_column, places(tile)

    @device_function
    def store(acc, sums, partials, m, n, i, j, piece, count):
        sums_too = i == 0 and row_of(0) == 0
        for c in range(each_column):
            col = j + column_of(c)
            for r in range(each_row):
                row = i + row_of(r)
                if row < m and col < n:
                    partials[np.uint64((piece * m + row) * n + col)] = acc[r * each_column + c]
            if sums_too and col < n:
                partials[np.uint64((count * m + piece) * n + col)] = sums[c]

    @device_function
    def gradient(partials, a, b, a2, b2, m, n, k):
        acc = cuda.local.array(size, b.dtype)
        sums, kept = cuda.local.array(each_column, b.dtype), cuda.local.array(each_column, b.dtype)
        wide, count = (n + columns - 1) // columns, pieces(m, n, k, b.itemsize)
        for r in range(size):
            acc[r] = like(b[0], 0.0)
        for c in range(each_column):
            sums[c] = like(b[0], 0.0)
        at, piece, depth = cuda.blockIdx.x // count, cuda.blockIdx.x % count, (k + count - 1) // count
        i, j, first, last = at // wide * rows, at % wide * columns, piece * depth, min(k, (piece + 1) * depth)
        multiply(acc, sums, a, m, b, n, m, n, i, j, first, last)
        for c in range(each_column):
            kept[c] = sums[c]
        if second and a2.size > 0:
            # By the same function, whose slices are there once; the sums of b2's columns are not needed.
            multiply(acc, sums, a2, m, b2, n, m, n, i, j, first, last)
        store(acc, kept, partials, m, n, i, j, piece, count)

    return gradient
