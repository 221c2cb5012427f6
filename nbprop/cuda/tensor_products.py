"""The matrix product with tensor cores: C (m, n) = A (m, k) B (k, n) in float32, with factors rounded to bfloat16.

A thread block computes one tile of C, and each of its warps some rows times some columns of it in registers (mma.py).
In steps over k the block reads a slice of A and one of B, and rounds them into shared memory while it multiplies the
ones before, so that a step has one barrier. Where the rows of both arrays allow it, a thread reads four numbers in one
load of 128 bits. A is (m, k), or with `turned` the transpose of a (k, m): x W, dz W^T (with
W^T stored) and x^T dz are the same code. With two planes, every factor is the sum of two bfloat16 (see tensor_tile.py).

Summation order depends on the sizes alone.
"""

from typing import NamedTuple

from numba import float32, uint32

from nbprop.compiler.jit import njit
from nbprop.cuda.mma import (
    high_of,
    ldmatrix,
    ldmatrix_turned,
    low_of,
    mma,
    pack,
    put,
    put2,
    read,
    read4_if,
    read_if,
    unrolled,
    write,
)
from nbprop.cuda.tensor_tile import UNIT, clear
from nbprop.cuda.toolkit import SIMULATED, cuda, device_function
from nbprop.cuda.vectors import fours
from nbprop.cuda.warps import LANES, thread_again
from nbprop.numerics.activations import IDENTITY, value_of
from nbprop.numerics.scalars import like


class TensorTile(NamedTuple):
    """A tile of C: the grid of warps, the units of rows and columns of a warp, and of a step over k."""

    down: int
    across: int
    units_down: int
    units_across: int
    deep: int

    @property
    def rows(self):
        return self.down * self.units_down * UNIT

    @property
    def columns(self):
        return self.across * self.units_across * UNIT

    @property
    def depth(self):
        return self.deep * UNIT

    @property
    def threads(self):
        return self.down * self.across * LANES

    @property
    def registers(self):
        """Of a thread, for C."""
        return 8 * self.units_down * self.units_across

    def a_lead(self, turned):
        """Words from a row of A's slice to the next; an odd multiple of four, so that eight are in different banks."""
        return (self.rows if turned else self.depth) // 2 + 4

    @property
    def b_lead(self):
        """Words from a row of B's slice to the next."""
        return self.columns // 2 + 4

    def a_words(self, turned):
        """Words of A's slice, a plane."""
        return (self.depth if turned else self.rows) * self.a_lead(turned)

    @property
    def b_words(self):
        """Words of B's slice, a plane."""
        return self.depth * self.b_lead

    def shared(self, planes):
        """Bytes of shared memory: two slices of each factor, one being multiplied, the other being filled."""
        return 4 * 2 * planes * (max(self.a_words(True), self.a_words(False)) + self.b_words)


TILE = TensorTile(2, 1, 1, 1, 1) if SIMULATED else TensorTile(4, 2, 2, 2, 2)
ROWS, COLUMNS, REGISTERS, THREADS_OF_TILE = TILE.rows, TILE.columns, TILE.registers, TILE.threads
WARPS_DOWN, UNITS_DOWN, UNITS_ACROSS = TILE.down, TILE.units_down, TILE.units_across
clear_all = clear(REGISTERS)

# A product with k cut into pieces aims at _BLOCKS blocks, each with at least _LEAST of k. Not measured.
_BLOCKS, _LEAST = (3, 16) if SIMULATED else (264, 256)


@njit
def tiles(m, n):
    """The number of tiles that cover C (m, n)."""
    return ((m + ROWS - 1) // ROWS) * ((n + COLUMNS - 1) // COLUMNS)


@njit
def pieces(m, n, k, products=1):
    """The number of pieces that k is cut into, by sizes alone; `products` products of these sizes run at once."""
    count = tiles(m, n) * products
    return max(1, min((_BLOCKS + count - 1) // count, k // _LEAST))


def filler(lead, wide, words, planes, plane, threads=THREADS_OF_TILE):
    """Device functions: a thread's words of a slice of `words` words, `wide` to a row, from memory and to the slice.

    get(held, at, x, first, row_stride, rows, columns): held OUT: pairs of floats from `at` on; the slice begins at
    x[first], and has `rows` rows of `columns` numbers, zeros beyond. put_all(held, at, space, place): round and store.
    """
    each = words // threads
    assert each * threads == words

    @device_function
    def get_one(number, given):
        held, at, x, first, row_stride, rows, columns, me = given
        word = me + number * threads
        row, col = word // wide, word % wide * 2
        here = first + row * row_stride + col
        held[at + 2 * number] = read_if(row < rows and col < columns, x, here)
        held[at + 2 * number + 1] = read_if(row < rows and col + 1 < columns, x, here + 1)

    @device_function
    def put_one(number, given):
        held, at, space, place, me = given
        word = me + number * threads
        here, left, right = place + word // wide * lead + word % wide, held[at + 2 * number], held[at + 2 * number + 1]
        rounded = pack(left, right)
        put(space, here, rounded)
        if planes == 2:
            put(space, here + plane, pack(left - low_of(rounded), right - high_of(rounded)))

    get_each, put_each = unrolled(each, get_one), unrolled(each, put_one)

    @device_function
    def get(held, at, x, first, row_stride, rows, columns):
        get_each((held, at, x, first, row_stride, rows, columns, thread_again()))

    @device_function
    def put_all(held, at, space, place):
        put_each((held, at, space, place, thread_again()))

    return get, put_all, 2 * each


def filler_of_fours(lead, wide, words, planes, plane):
    """As `filler`, for runs of four numbers, which with a last argument `fast` are one load each.

    That needs `fours` of x with this stride and first, and `columns` that are a multiple of 4.
    """
    each, across = words // 2 // THREADS_OF_TILE, wide // 2
    assert 2 * each * THREADS_OF_TILE == words

    @device_function
    def get_fast(number, given):
        held, at, x, first, row_stride, rows, columns, me = given
        run = me + number * THREADS_OF_TILE
        row, col = run // across, run % across * 4
        read4_if(held, at + 4 * number, row < rows and col < columns, x, first + row * row_stride + col)

    @device_function
    def get_slowly(number, given):
        held, at, x, first, row_stride, rows, columns, me = given
        run = me + number // 4 * THREADS_OF_TILE
        row, col = run // across, run % across * 4 + number % 4
        held[at + number] = read_if(row < rows and col < columns, x, first + row * row_stride + col)

    @device_function
    def put_one(number, given):
        held, at, space, place, me = given
        run, at = me + number * THREADS_OF_TILE, at + 4 * number
        here = place + run // across * lead + run % across * 2
        left, right = pack(held[at], held[at + 1]), pack(held[at + 2], held[at + 3])
        put2(space, here, left, right)
        if planes == 2:
            left_low = pack(held[at] - low_of(left), held[at + 1] - high_of(left))
            put2(space, here + plane, left_low, pack(held[at + 2] - low_of(right), held[at + 3] - high_of(right)))

    get_all_fast, get_all_slowly, put_each = (
        unrolled(each, get_fast),
        unrolled(4 * each, get_slowly),
        unrolled(each, put_one),
    )

    @device_function
    def get(held, at, x, first, row_stride, rows, columns, fast):
        if fast:
            get_all_fast((held, at, x, first, row_stride, rows, columns, thread_again()))
        else:
            get_all_slowly((held, at, x, first, row_stride, rows, columns, thread_again()))

    @device_function
    def put_all(held, at, space, place):
        put_each((held, at, space, place, thread_again()))

    return get, put_all, 4 * each


def slice_product(planes, turned):
    """A device function add(acc, left, right, space, a_place, b_place): a warp's C += A B for slices in shared memory.

    acc INOUT, left, right scratch: registers.
    """
    a_lead, b_lead, a_plane, b_plane = TILE.a_lead(turned), TILE.b_lead, TILE.a_words(turned), TILE.b_words
    load_a, units, row_words = ldmatrix_turned if turned else ldmatrix, UNITS_ACROSS, 4 * planes

    @device_function
    def load_row(row, given):
        left, space, place = given
        place += row * 8 if turned else row * 16 * a_lead
        load_a(left, row_words * row, space, place)
        if planes == 2:
            load_a(left, row_words * row + 4, space, place + a_plane)

    @device_function
    def high_row(row, given):
        acc, left, right, col = given
        at = 8 * (units * row + col)
        mma(acc, at, left, row_words * row, right, 0)
        mma(acc, at + 4, left, row_words * row, right, 2)
        if planes == 2:
            mma(acc, at, left, row_words * row + 4, right, 0)
            mma(acc, at + 4, left, row_words * row + 4, right, 2)

    @device_function
    def low_row(row, given):
        acc, left, right, col = given
        at = 8 * (units * row + col)
        mma(acc, at, left, row_words * row, right, 0)
        mma(acc, at + 4, left, row_words * row, right, 2)

    load_rows, high_rows, low_rows = (unrolled(UNITS_DOWN, each) for each in (load_row, high_row, low_row))

    @device_function
    def column(col, given):
        acc, left, right, space, place = given
        ldmatrix_turned(right, 0, space, place + 8 * col)
        high_rows((acc, left, right, col))
        if planes == 2:
            ldmatrix_turned(right, 0, space, place + 8 * col + b_plane)
            low_rows((acc, left, right, col))

    columns = unrolled(units, column)

    @device_function
    def step(deep, given):
        acc, left, right, space, a_place, b_place = given
        load_rows((left, space, a_place + (deep * 16 * a_lead if turned else deep * 8)))
        columns((acc, left, right, space, b_place + deep * 16 * b_lead))

    steps = unrolled(TILE.deep, step)

    @device_function
    def add(acc, left, right, space, a_place, b_place):
        warp, lane = thread_again() // 32, thread_again() % 32
        row, col = warp % WARPS_DOWN * UNITS_DOWN * 16, warp // WARPS_DOWN * units * 8
        if turned:  # rows in memory are those of k
            a_place += (lane // 16 * 8 + lane % 8) * a_lead + lane // 8 % 2 * 4 + row // 2
        else:
            a_place += (row + lane % 16) * a_lead + lane // 16 * 4
        steps((acc, left, right, space, a_place, b_place + lane % 16 * b_lead + lane // 16 * 4 + col))

    return add


def multiplier(planes, turned, *, column_sums):
    """A device function that adds A[:, first:last] B[first:last, :] to the accumulators of a block's threads.

    multiply(acc, sums, space, a, b, m, n, k, i, j, first, last): acc INOUT: registers, in the layout of mma.py by units
    of rows and columns; sums INOUT (4,): with column_sums, of B's columns j + 4 (thread % (columns / 4)) and the next
    three, over this thread's rows; space: dynamic shared memory; a IN (m, k), with `turned` (k, m), b IN (k, n); (i,
    j): first row and column of the tile.
    """
    a_wide = (TILE.rows if turned else TILE.depth) // 2
    a_rows, depth = (TILE.depth if turned else TILE.rows), TILE.depth
    a_size, b_size = planes * TILE.a_words(turned), planes * TILE.b_words
    get_a, put_a, a_held = filler_of_fours(TILE.a_lead(turned), a_wide, a_rows * a_wide, planes, TILE.a_words(turned))
    get_b, put_b, b_held = filler_of_fours(TILE.b_lead, COLUMNS // 2, depth * COLUMNS // 2, planes, TILE.b_words)
    all_held, left_size, add = a_held + b_held, 4 * planes * UNITS_DOWN, slice_product(planes, turned)

    @device_function
    def sum_one(number, given):
        sums, held = given
        sums[number % 4] += held[a_held + number]

    sum_all = unrolled(b_held, sum_one)

    @device_function
    def get(held, sums, a, b, m, n, k, i, j, at, last, fast):
        if turned:
            get_a(held, 0, a, at * m + i, m, last - at, m - i, fast)
        else:
            get_a(held, 0, a, i * k + at, k, m - i, last - at, fast)
        get_b(held, a_held, b, at * n + j, n, last - at, n - j, fast)
        if column_sums:
            sum_all((sums, held))

    @device_function
    def fill(held, space, half):
        put_a(held, 0, space, half * (a_size + b_size))
        put_b(held, a_held, space, half * (a_size + b_size) + a_size)

    @device_function
    def multiply(acc, sums, space, a, b, m, n, k, i, j, first, last):
        held = cuda.local.array(all_held, float32)
        left, right = cuda.local.array(left_size, uint32), cuda.local.array(4, uint32)
        # Tiles and steps begin at multiples of 4. So do rows then, and no run is partly beyond the end of one.
        fast = fours(b, n, 0) and (fours(a, m, 0) if turned else fours(a, k, first) and (last - first) % 4 == 0)
        get(held, sums, a, b, m, n, k, i, j, first, last, fast)
        fill(held, space, 0)
        cuda.syncthreads()
        half = 0
        for at in range(first, last, depth):
            more = at + depth < last
            if more:
                get(held, sums, a, b, m, n, k, i, j, at + depth, last, fast)
            add(acc, left, right, space, half * (a_size + b_size), half * (a_size + b_size) + a_size)
            half = 1 - half
            if more:
                fill(held, space, half)
            cuda.syncthreads()

    return multiply


@device_function
def place_of(number):
    """(row, column) within a block's tile of register `number` of this thread."""
    thread, tile, k = cuda.threadIdx.x, number // 8, number % 8
    warp, lane = thread // 32, thread % 32
    row = (warp % WARPS_DOWN * UNITS_DOWN + tile // UNITS_ACROSS) * 16 + lane // 4 + k % 4 // 2 * 8
    return row, (warp // WARPS_DOWN * UNITS_ACROSS + tile % UNITS_ACROSS) * 16 + k // 4 * 8 + lane % 4 * 2 + k % 2


def with_bias(planes):
    """A device function: a block's tiles of y = f(a w + b).

    times(y, a, w, b, m, n, k, code): y OUT (m, n), a IN (m, k), w IN (k, n), b IN (n,) or empty; f by its code.
    """
    multiply = multiplier(planes, False, column_sums=False)

    @device_function
    def store_one(number, given):
        y, acc, b, m, n, i, j = given
        row, col = place_of(number)
        if i + row < m and j + col < n:
            shift = read(b, j + col) if b.size > 0 else like(acc[0], 0.0)
            write(y, (i + row) * n + j + col, acc[number] + shift)

    store = unrolled(REGISTERS, store_one)

    @device_function
    def times(y, a, w, b, m, n, k, code):
        space, acc = cuda.shared.array(0, uint32), cuda.local.array(REGISTERS, float32)
        none = cuda.local.array(4, float32)
        wide = (n + COLUMNS - 1) // COLUMNS
        for at in range(cuda.blockIdx.x, (m + ROWS - 1) // ROWS * wide, cuda.gridDim.x):
            i, j = at // wide * ROWS, at % wide * COLUMNS
            clear_all(acc)
            multiply(acc, none, space, a, w, m, n, k, i, j, 0, k)
            store((y, acc, b, m, n, i, j))
            if code != IDENTITY:
                for number in range(REGISTERS):
                    row, col = place_of(number)
                    if i + row < m and j + col < n:
                        here = (i + row) * n + j + col
                        write(y, here, value_of(read(y, here), code))

    return times


def storer_of_sums(each):
    """A device function: store_sums(partials, sums, reals, first, n, j), for sums of `each` neighbouring columns.

    The sums of B's columns (see `multiplier`) of all threads, in order, to partials[first + j] and on, up to n. reals:
    shared memory, `each` numbers a thread. Begins behind a barrier, and ends with one.
    """

    @device_function
    def store_sums(partials, sums, reals, first, n, j):
        me = cuda.threadIdx.x
        for k in range(each):
            reals[each * me + k] = sums[k]
        cuda.syncthreads()
        if me < COLUMNS and j + me < n:
            total = like(sums[0], 0.0)
            for other in range(me // each, THREADS_OF_TILE, COLUMNS // each):
                total += reals[each * other + me % each]
            write(partials, first + j + me, total)
        cuda.syncthreads()

    return store_sums


def in_pieces(planes):
    """A device function: a block's tile of one piece of C = a^T b, and of the sums of b's columns, which are float32's.

    gradient(partials, a, b, m, n, k): a IN (k, m), b IN (k, n); partials OUT (pieces, m, n), and after these
    (pieces, n): the sums of b's columns.
    """
    multiply, store_sums = multiplier(planes, True, column_sums=True), storer_of_sums(4)

    @device_function
    def store_one(number, given):
        partials, acc, m, n, i, j, piece = given
        row, col = place_of(number)
        if i + row < m and j + col < n:
            write(partials, (piece * m + i + row) * n + j + col, acc[number])

    store = unrolled(REGISTERS, store_one)

    @device_function
    def gradient(partials, a, b, m, n, k):
        space, reals = cuda.shared.array(0, uint32), cuda.shared.array(0, float32)
        acc, sums = cuda.local.array(REGISTERS, float32), cuda.local.array(4, float32)
        wide, count = (n + COLUMNS - 1) // COLUMNS, pieces(m, n, k)
        depth = (k + count - 1) // count
        for block in range(cuda.blockIdx.x, (m + ROWS - 1) // ROWS * wide * count, cuda.gridDim.x):
            at, piece = block // count, block % count
            i, j = at // wide * ROWS, at % wide * COLUMNS
            clear_all(acc)
            for column in range(4):
                sums[column] = like(acc[0], 0.0)
            multiply(acc, sums, space, a, b, m, n, k, i, j, piece * depth, min(k, (piece + 1) * depth))
            store((partials, acc, m, n, i, j, piece))
            if i == 0:
                store_sums(partials, sums, reals, (count * m + piece) * n, n, j)

    return gradient
