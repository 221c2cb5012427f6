"""The matrix product on the device: C (m, n) = A (m, k) B (k, n), tile by tile through shared memory.

A thread block computes one tile of C. In steps over k it copies a slice of A and one of B to shared memory; each thread
accumulates some rows times some columns of the tile in registers, as outer products of the slices (Volkov and Demmel,
"Benchmarking GPUs to tune dense linear algebra", SC 2008, section 5). A has any strides, so x W, x^T dz and dz W^T are
the same code; B is row-major.

Summation order depends on k alone (and, where k is cut into pieces that a second launch sums, on m, n and k), so
results are bitwise the same on every run and device.
"""

from typing import NamedTuple

import numpy as np

from nbprop.compiler.jit import njit
from nbprop.cuda.toolkit import SIMULATED, THREADS, cuda, device_function
from nbprop.numerics.activations import IDENTITY, value_of
from nbprop.numerics.scalars import like


class Tile(NamedTuple):
    """A tile of C: its rows and columns, the depth of a step over k, and the rows and columns of one thread."""

    rows: int
    columns: int
    depth: int
    each_row: int
    each_column: int


# For few columns, for most sizes, and for large matrices in float32 (in float64 this tile would spill registers, and so
# would 128 x 128 in float32). A block of THREADS threads computes each.
NARROW = Tile(4, 4, 4, 2, 1) if SIMULATED else Tile(64, 16, 16, 4, 1)
MIDDLE = Tile(4, 8, 4, 2, 2) if SIMULATED else Tile(64, 64, 16, 4, 4)
LARGE = Tile(8, 8, 4, 4, 2) if SIMULATED else Tile(128, 64, 8, 8, 4)
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


def outer_products(tile, *, column_sums):
    """A device function: add(acc, sums, a_slice, b_slice), one step over k of a thread's accumulators.

    acc and sums INOUT as in `multiplier`; a_slice IN (depth, rows + 1), b_slice IN (depth, columns): shared memory.
    """
    rows, columns, depth, each_row, each_column = tile
    across, down = columns // each_column, rows // each_row

    @device_function
    def add(acc, sums, a_slice, b_slice):
        mine_i, mine_j = cuda.threadIdx.x // across, cuda.threadIdx.x % across
        for step in range(depth):
            for r in range(each_row):
                left = a_slice[step, mine_i + r * down]
                for c in range(each_column):
                    acc[r * each_column + c] += left * b_slice[step, mine_j + c * across]
            if column_sums:
                for c in range(each_column):
                    sums[c] += b_slice[step, mine_j + c * across]

    return add


def multiplier(tile, *, column_sums):
    """A device function that adds A[:, first:last] B[first:last, :] to a thread's accumulators.

    multiply(acc, sums, a, a_row, a_col, b, ldb, m, n, i, j, first, last): acc INOUT (each_row * each_column,), in
    registers; sums INOUT (each_column,), the sums of B's columns with `column_sums`; a IN (m, k) with strides a_row and
    a_col, b IN (k, n) with row stride ldb; (i, j): first row and column of the tile. A thread has every (rows /
    each_row)-th row from i on, and columns likewise, so that the threads of a warp read different banks.
    """
    rows, columns, depth, _, _ = tile
    threads, add = THREADS, outer_products(tile, column_sums=column_sums)
    a_loads, b_loads = rows * depth // threads, columns * depth // threads
    # One column of padding puts neighbours in a column in different banks.
    a_shape, b_shape = (depth, rows + 1), (depth, columns)

    @device_function
    def multiply(acc, sums, a, a_row, a_col, b, ldb, m, n, i, j, first, last):
        a_slice = cuda.shared.array(a_shape, a.dtype)
        b_slice = cuda.shared.array(b_shape, a.dtype)
        me, zero = cuda.threadIdx.x, like(b[0], 0.0)
        for l0 in range(first, last, depth):
            for load in range(a_loads):
                # Neighbouring threads read neighbouring elements, whichever axis of A is contiguous.
                at = me + load * threads
                row, col = (at // depth, at % depth) if a_col == 1 else (at % rows, at // rows)
                inside = i + row < m and l0 + col < last
                a_slice[col, row] = a[(i + row) * a_row + (l0 + col) * a_col] if inside else zero
            for load in range(b_loads):
                at = me + load * threads
                row, col = at // columns, at % columns
                inside = l0 + row < last and j + col < n
                b_slice[row, col] = b[(l0 + row) * ldb + j + col] if inside else zero
            cuda.syncthreads()
            add(acc, sums, a_slice, b_slice)
            cuda.syncthreads()

    return multiply


def with_bias(tile):
    """A device function: a block's tile of y = f(a w + b).

    times(y, a, w, b, m, n, k, code): y OUT (m, n), a IN (m, k), w IN (k, n), b IN (n,) or empty; f by its code.
    """
    multiply, (rows, columns, _, each_row, each_column) = multiplier(tile, column_sums=False), tile
    size, across, down = each_row * each_column, columns // each_column, rows // each_row

    @device_function
    def make(acc, none, y, a, w, b, m, n, k, code, i, j):
        multiply(acc, none, a, k, 1, w, n, m, n, i, j, 0, k)
        i, j = i + cuda.threadIdx.x // across, j + cuda.threadIdx.x % across
        for r in range(each_row):
            for c in range(each_column):
                row, col = i + r * down, j + c * across
                if row < m and col < n:
                    y[row * n + col] = acc[r * each_column + c] + (b[col] if b.size > 0 else like(y[0], 0.0))
        # A separate loop: within the one above, it would prevent unrolling, and `acc` would not stay in registers.
        if code != IDENTITY:
            for r in range(each_row * each_column):
                row, col = i + r // each_column * down, j + r % each_column * across
                if row < m and col < n:
                    y[row * n + col] = value_of(y[row * n + col], code)

    @device_function
    def times(y, a, w, b, m, n, k, code):
        acc, none = cuda.local.array(size, y.dtype), cuda.local.array(1, y.dtype)
        wide = (n + columns - 1) // columns
        for at in range(cuda.blockIdx.x, (m + rows - 1) // rows * wide, cuda.gridDim.x):
            for r in range(size):
                acc[r] = like(y[0], 0.0)
            make(acc, none, y, a, w, b, m, n, k, code, at // wide * rows, at % wide * columns)

    return times


def in_pieces(tile):
    """A device function: a block's tile of one piece of C = a^T b, and of the sums of b's columns.

    gradient(partials, a, b, m, n, k): a IN (k, m), b IN (k, n); partials OUT (pieces, m, n), and after these
    (pieces, n): the sums of b's columns.
    """
    multiply, (rows, columns, _, each_row, each_column) = multiplier(tile, column_sums=True), tile
    size, across, down = each_row * each_column, columns // each_column, rows // each_row

    @device_function
    def make(acc, sums, partials, a, b, m, n, k, i, j, piece, count):
        depth = (k + count - 1) // count
        multiply(acc, sums, a, 1, m, b, n, m, n, i, j, piece * depth, min(k, (piece + 1) * depth))
        first_row, mine_i, mine_j = i == 0, cuda.threadIdx.x // across, cuda.threadIdx.x % across
        for c in range(each_column):
            col = j + mine_j + c * across
            for r in range(each_row):
                row = i + mine_i + r * down
                if row < m and col < n:
                    partials[(piece * m + row) * n + col] = acc[r * each_column + c]
            if first_row and mine_i == 0 and col < n:
                partials[(count * m + piece) * n + col] = sums[c]

    @device_function
    def gradient(partials, a, b, m, n, k):
        acc, sums = cuda.local.array(size, a.dtype), cuda.local.array(each_column, a.dtype)
        wide, count = (n + columns - 1) // columns, pieces(m, n, k, a.itemsize)
        for block in range(cuda.blockIdx.x, (m + rows - 1) // rows * wide * count, cuda.gridDim.x):
            for r in range(size):
                acc[r] = like(a[0], 0.0)
            for c in range(each_column):
                sums[c] = like(a[0], 0.0)
            at, piece = block // count, block % count
            make(acc, sums, partials, a, b, m, n, k, at // wide * rows, at % wide * columns, piece, count)

    return gradient
