"""A small network on a tile of samples with tensor cores: what a warp does (see tensor_fused.py).

A warp takes 16 samples through the network. It holds the outputs of a layer in registers as bfloat16, in the layout of
the A of a product (mma.py); the C of that product, after bias and activation, is rounded into the A of the next one,
without a barrier. A copy of each layer's output goes to shared memory for the backward pass, where it is needed in
another layout: dW = x^T dz sums over the samples of all warps. There, dz overwrites y.

Shared memory, in words: the weights of all layers, row-major; then x and the outputs of all layers, (samples, width).
Widths are padded to multiples of 16 (a *unit*) with zeros, and rows by four words, so that the eight rows of an
ldmatrix lie in different banks.

With two planes ("bfloat16x3"), every number is the sum of two bfloat16, high and low, and a product of numbers that of
three: high high + high low + low high (Henry, Tang and Heinecke 2019, "Leveraging the bfloat16 artificial intelligence
datatype for higher-precision computations", section II). The plane of the low ones follows that of the high ones.

All loops over registers are unrolled; sums over a batch have an order that depends on sizes alone.
"""

from nbprop.cuda.mma import (
    fetch,
    high_of,
    ldmatrix,
    ldmatrix_turned,
    low_of,
    mma,
    pack,
    put,
    read,
    read_if,
    unrolled,
    write,
)
from nbprop.cuda.toolkit import device_function
from nbprop.numerics.activations import IDENTITY, derivative_of, value_of
from nbprop.numerics.scalars import like

UNIT = 16  # features, and samples of a warp
ONES = 0x3F803F80  # two ones


def lead_of(units):
    """Words from a row of `units` units to the next."""
    return 8 * units + 4


# -- pairs of numbers ----------------------------------------------------------------------------------------


def keeper(units, planes, most):
    """A device function keep(words, number, first, second, space, place, plane): round a pair, keep and store it.

    words OUT: registers, (planes, most); number of the pair in the order of A; (place, plane): where the lane's words
    of a row of `units` units begin in space, and words to the low plane.
    """
    lead, low = lead_of(units), 4 * most

    @device_function
    def keep(words, number, first, second, space, place, plane):
        at = place + number % 2 * 8 * lead + number // 4 * 8 + number % 4 // 2 * 4
        word = pack(first, second)
        words[number] = word
        put(space, at, word)
        if planes == 2:
            word = pack(first - low_of(word), second - high_of(word))
            words[low + number] = word
            put(space, at + plane, word)

    return keep


def place_of_c(number):
    """The first of a lane's two numbers in C that are pair `number` of A."""
    return number // 4 * 8 + number % 4 // 2 * 4 + number % 2 * 2


place_of_c = device_function(place_of_c)


# -- the products --------------------------------------------------------------------------------------------


def product(deep, units, planes, most, turned):
    """A device function add(acc, a, b, space, place, plane): acc (16, units) += A (16, deep) B.

    acc INOUT, a IN, b scratch: registers; B: `deep` rows of `units` units in shared memory, or with `turned` the
    transpose of `units` rows of `deep`; place: where this lane's first row of an ldmatrix begins.
    """
    lead, low = lead_of(deep if turned else units), 4 * most
    load = ldmatrix if turned else ldmatrix_turned

    @device_function
    def step(number, given):
        acc, a, b, space, place, plane = given
        row, col = number // units, number % units
        place += (col * 16 * lead + row * 8) if turned else (row * 16 * lead + col * 8)
        load(b, 0, space, place)
        mma(acc, 8 * col, a, 4 * row, b, 0)
        mma(acc, 8 * col + 4, a, 4 * row, b, 2)
        if planes == 2:
            mma(acc, 8 * col, a, low + 4 * row, b, 0)
            mma(acc, 8 * col + 4, a, low + 4 * row, b, 2)
            load(b, 0, space, place + plane)
            mma(acc, 8 * col, a, 4 * row, b, 0)
            mma(acc, 8 * col + 4, a, 4 * row, b, 2)

    run = unrolled(deep * units, step)

    @device_function
    def add(acc, a, b, space, place, plane):
        run((acc, a, b, space, place, plane))

    return add


def grid_of_warps(down, across, warps):
    """(rows, columns) of the grid in which warps share out a matrix of (down, across) units, one tile after another."""
    rows = 1
    while 2 * rows <= min(down, warps):
        rows *= 2
    return rows, warps // rows


def tiles_of_warp(down, across, warps):
    """(rows, columns) of tiles, a unit square each, that a warp has of a matrix."""
    rows, columns = grid_of_warps(down, across, warps)
    return -(-down // rows), -(-across // columns)


def weight_product(down, across, warps, planes):
    """A device function add(sums, at, x, b, space, x_place, dz_place, x_plane, dz_plane, warp, bounds, end): dW.

    sums INOUT: registers, 8 a tile of this warp's from `at` on; dW (down, across) += x^T dz over the samples of all
    warps. A tile beyond the matrix repeats the last one, and is not stored. x, b: scratch registers. bounds[end]: the
    number of warps, read again each time, so that the compiler does not unroll the loop.
    """
    rows, columns = grid_of_warps(down, across, warps)
    mine_down, mine_across = tiles_of_warp(down, across, warps)
    x_lead, dz_lead = lead_of(down), lead_of(across)

    @device_function
    def column(number, given):
        sums, at, x, b, space, dz_place, dz_plane, warp = given
        place = dz_place + min(warp // rows + number * columns, across - 1) * 8
        at += 8 * number
        ldmatrix_turned(b, 0, space, place)
        mma(sums, at, x, 0, b, 0)
        mma(sums, at + 4, x, 0, b, 2)
        if planes == 2:
            mma(sums, at, x, 4, b, 0)
            mma(sums, at + 4, x, 4, b, 2)
            ldmatrix_turned(b, 0, space, place + dz_plane)
            mma(sums, at, x, 0, b, 0)
            mma(sums, at + 4, x, 0, b, 2)

    all_columns = unrolled(mine_across, column)

    @device_function
    def row(number, given):
        sums, at, x, b, space, x_place, dz_place, x_plane, dz_plane, warp = given
        place = x_place + min(warp % rows + number * rows, down - 1) * 8
        ldmatrix_turned(x, 0, space, place)
        if planes == 2:
            ldmatrix_turned(x, 4, space, place + x_plane)
        all_columns((sums, at + 8 * mine_across * number, x, b, space, dz_place, dz_plane, warp))

    all_rows = unrolled(mine_down, row)

    @device_function
    def add(sums, at, x, b, space, x_place, dz_place, x_plane, dz_plane, warp, bounds, end):
        s = 0
        while s < bounds[end]:
            all_rows((sums, at, x, b, space, x_place, dz_place, x_plane, dz_plane, warp))
            x_place += 16 * x_lead
            dz_place += 16 * dz_lead
            s += 1

    return add


def weight_store(down, across, warps):
    """A device function store(slices, sums, at, place, n_in, n_out, adds, warp, lane): a warp's tiles of dW to a slice.

    slices OUT: dW (n_in, n_out) from `place` on, added to what it holds with `adds`.
    """
    rows, columns = grid_of_warps(down, across, warps)
    mine_down, mine_across = tiles_of_warp(down, across, warps)

    @device_function
    def element(k, given):
        slices, sums, at, here, rows_left, columns_left, n_out, adds = given
        i, j = k % 4 // 2 * 8, k // 4 * 8 + k % 2
        if i < rows_left and j < columns_left:
            place = here + i * n_out + j
            write(slices, place, read(slices, place) + sums[at + k] if adds else sums[at + k])

    elements = unrolled(8, element)

    @device_function
    def one(tile, given):
        slices, sums, at, place, n_in, n_out, adds, warp, lane = given
        tile_row, tile_col = warp % rows + tile // mine_across * rows, warp // rows + tile % mine_across * columns
        i, j = tile_row * 16 + lane // 4, tile_col * 16 + lane % 4 * 2
        if tile_row < down and tile_col < across:
            elements((slices, sums, at + 8 * tile, place + i * n_out + j, n_in - i, n_out - j, n_out, adds))

    run = unrolled(mine_down * mine_across, one)

    @device_function
    def store(slices, sums, at, place, n_in, n_out, adds, warp, lane):
        run((slices, sums, at, place, n_in, n_out, adds, warp, lane))

    return store


def bias_product(across, warps, planes):
    """A device function add(reals, place, acc, ones, b, space, dz_place, dz_plane, warp, lane, bounds, end): db.

    reals INOUT: db += the sums of dz, in shared memory, (16 across,) from `place` on; acc, b: scratch registers; ones
    IN: registers. Each unit of columns belongs to a warp, which sums it over the samples of all warps as a product with
    ones. bounds[end]: as in `weight_product`.
    """
    lead = lead_of(across)

    @device_function
    def add(reals, place, acc, ones, b, space, dz_place, dz_plane, warp, lane, bounds, end):
        for unit in range(warp, across, warps):
            for k in range(8):
                acc[k] = like(acc[0], 0.0)
            s = 0
            while s < bounds[end]:
                for plane in range(planes):
                    ldmatrix_turned(b, 0, space, dz_place + unit * 8 + s * 16 * lead + plane * dz_plane)
                    mma(acc, 0, ones, 0, b, 0)
                    mma(acc, 4, ones, 0, b, 2)
                s += 1
            if lane < 4:  # all rows are the same
                for k in range(4):
                    at = place + unit * 16 + k // 2 * 8 + lane * 2 + k % 2
                    put(reals, at, fetch(reals, at) + acc[k // 2 * 4 + k % 2])

    return add


# -- layers, one sample row a lane ---------------------------------------------------------------------------


def load_samples(units, planes, most):
    """A device function load(words, x, first, n, n_in, space, place, plane, lane): 16 rows of x as A and in memory.

    x IN (n, n_in); first: this warp's first sample; beyond n, the last one is repeated.
    """
    keep = keeper(units, planes, most)

    @device_function
    def one(number, given):
        words, x, first, n, n_in, space, place, plane, lane = given
        row = min(first + lane // 4 + number % 2 * 8, n - 1)
        col = number // 4 * 16 + number % 4 // 2 * 8 + lane % 4 * 2
        left = read_if(col < n_in, x, row * n_in + col)
        right = read_if(col + 1 < n_in, x, row * n_in + col + 1)
        keep(words, number, left, right, space, place, plane)

    run = unrolled(4 * units, one)

    @device_function
    def load(words, x, first, n, n_in, space, place, plane, lane):
        run((words, x, first, n, n_in, space, place, plane, lane))

    return load


def start_sums(units):
    """A device function start(acc, reals, place, lane): acc (16, units) = the bias in each row."""

    @device_function
    def one(number, given):
        acc, reals, place, lane = given
        acc[number] = fetch(reals, place + number // 4 * 8 + lane % 4 * 2 + number % 2)

    run = unrolled(8 * units, one)

    @device_function
    def start(acc, reals, place, lane):
        run((acc, reals, place, lane))

    return start


def clear(count):
    """A device function: the first `count` registers are zero."""

    @device_function
    def one(number, given):
        given[0][number] = like(given[0][0], 0.0)

    run = unrolled(count, one)

    @device_function
    def run_all(acc):
        run((acc,))

    return run_all


def activate(units, planes, most, code):
    """A device function value(words, acc, space, place, plane): y = f(z) in acc, rounded as A and in memory."""
    keep = keeper(units, planes, most)

    @device_function
    def one(number, given):
        words, acc, space, place, plane = given
        at = place_of_c(number)
        if code != IDENTITY:
            acc[at] = value_of(acc[at], code)
            acc[at + 1] = value_of(acc[at + 1], code)
        keep(words, number, acc[at], acc[at + 1], space, place, plane)

    run = unrolled(4 * units, one)

    @device_function
    def value(words, acc, space, place, plane):
        run((words, acc, space, place, plane))

    return value


def differentiate(units, planes, most, code):
    """A device function back(words, acc, space, place, plane): dz = acc f'(z), which is made of the y in memory.

    dz overwrites y, and is the A of the next product.
    """
    keep, lead = keeper(units, planes, most), lead_of(units)

    @device_function
    def one(number, given):
        words, acc, space, place, plane = given
        c, at = place_of_c(number), place + number % 2 * 8 * lead + number // 4 * 8 + number % 4 // 2 * 4
        left, right = acc[c], acc[c + 1]
        if code != IDENTITY:
            word = fetch(space, at)
            y_left, y_right = low_of(word), high_of(word)
            if planes == 2:
                word = fetch(space, at + plane)
                y_left += low_of(word)
                y_right += high_of(word)
            left *= derivative_of(y_left, code)
            right *= derivative_of(y_right, code)
        keep(words, number, left, right, space, place, plane)

    run = unrolled(4 * units, one)

    @device_function
    def back(words, acc, space, place, plane):
        run((words, acc, space, place, plane))

    return back


# -- the output, in float32 ----------------------------------------------------------------------------------


def outputs(units, lead, code):
    """Device functions: y = f(z) in acc and to memory as (width, lead); dz = dL/dy f'(z) from there.

    show(acc, reals, place, lane); take(acc, reals, place, lane, width): place, of the warp's first sample.
    """

    @device_function
    def here(number, place, lane):
        col = number // 4 * 8 + lane % 4 * 2 + number % 2
        return place + col * lead + lane // 4 + number % 4 // 2 * 8

    @device_function
    def show_one(number, given):
        acc, reals, place, lane = given
        if code != IDENTITY:
            acc[number] = value_of(acc[number], code)
        put(reals, here(number, place, lane), acc[number])

    @device_function
    def take_one(number, given):
        acc, reals, place, lane, width = given
        col = number // 4 * 8 + lane % 4 * 2 + number % 2
        found = fetch(reals, here(number, place, lane)) if col < width else like(acc[0], 0.0)
        acc[number] = found * derivative_of(acc[number], code) if code != IDENTITY else found

    show_all, take_all = unrolled(8 * units, show_one), unrolled(8 * units, take_one)

    @device_function
    def show(acc, reals, place, lane):
        show_all((acc, reals, place, lane))

    @device_function
    def take(acc, reals, place, lane, width):
        take_all((acc, reals, place, lane, width))

    return show, take
