"""The three products of a convolution on the device, tile by tile, without a matrix of windows ("implicit GEMM").

As in products.py, except for the addresses of the elements of A and the rows of B. In each product, the address of an
element of A is the sum of an offset that depends on its row and one that depends on its column: where the window of a
pixel begins, and where a tap lies within the window. The offsets of the rows of a tile, and of the columns of each step
over k, are computed once, each by one thread, and stored in shared memory; those of a step during the step before it.

    y = windows W         rows are pixels of y, steps are taps and channels
    dW = windows^T dy     rows are taps and channels, steps are pixels of y
    dx = dy's taps W^T    rows are pixels of x, steps are taps and filters

With a stride s, a pixel of x meets only those taps whose offset is congruent to the pixel modulo s. So the pixels of x
are divided into s x s classes, each a product of its own with its own taps, and nothing is multiplied by zero except at
the borders.

A launch has a block for each tile of each group (class, piece). Summation order depends on the sizes alone.
"""

import numpy as np

from nbprop.cuda.outer import lead_of, outer_products, places
from nbprop.cuda.products import pieces, with_shift
from nbprop.cuda.toolkit import THREADS, cuda, device_function
from nbprop.cuda.vectors import ALIGNMENT, fours
from nbprop.numerics.scalars import like


def gatherer(tile, row_place, step_place, *, along_rows=False, bordered=False, column_sums=False):
    """A device function that adds A[:, first:last] B[first:last, :] to a thread's accumulators.

    multiply(acc, sums, a, b, m, n, i, j, first, last, at, g): as that of `products.multiplier`; `at` and `g` are passed
    to

    row_place(row, at, g) -> (offset in a, y, x)
    step_place(step, at, g) -> (offset in a, y, x, offset in b of the row of B)

    along_rows: neighbouring elements of a belong to neighbouring rows of A, not to neighbouring steps.
    bordered: elements whose y and x, of row and step together, lie outside (g.out_h, g.out_w) are 0.
    """
    rows, columns, depth, _, _ = tile
    threads, add = THREADS, outer_products(tile, column_sums=column_sums)
    a_loads, b_loads = rows * depth // threads, columns * depth // threads
    a_lead, b_lead, rows_shape, steps_shape = lead_of(rows), lead_of(columns), (3, rows), (2, 4, depth)
    a_size, b_size = depth * a_lead, depth * b_lead

    @device_function
    def note_rows(of_rows, m, i, at, g):
        for row in range(cuda.threadIdx.x, rows, threads):
            if i + row < m:
                of_rows[0, row], of_rows[1, row], of_rows[2, row] = row_place(i + row, at, g)

    @device_function
    def note_steps(of_steps, half, first, last, at, g):
        step = cuda.threadIdx.x
        if step < depth and first + step < last:
            place, y, x, b_place = step_place(first + step, at, g)
            of_steps[half, 0, step], of_steps[half, 1, step], of_steps[half, 2, step] = place, y, x
            of_steps[half, 3, step] = b_place

    @device_function
    def load(a_slice, b_slice, of_rows, of_steps, half, a, b, rows_left, steps_left, j, n, g):
        me, zero = cuda.threadIdx.x, like(b[0], 0.0)
        for k in range(a_loads):
            number = me + k * threads
            row, step = (number % rows, number // rows) if along_rows else (number // depth, number % depth)
            inside = row < rows_left and step < steps_left
            if bordered and inside:
                y, x = of_rows[1, row] + of_steps[half, 1, step], of_rows[2, row] + of_steps[half, 2, step]
                inside = y >= 0 and y < g.out_h and x >= 0 and x < g.out_w
            value = a[np.uint64(of_rows[0, row] + of_steps[half, 0, step])] if inside else zero
            a_slice[np.uint64(step * a_lead + row)] = value
        for k in range(b_loads):
            number = me + k * threads
            step, col = number // columns, number % columns
            inside = step < steps_left and j + col < n
            value = b[np.uint64(of_steps[half, 3, step] + j + col)] if inside else zero
            b_slice[np.uint64(step * b_lead + col)] = value

    @device_function
    def multiply(acc, sums, a, b, m, n, i, j, first, last, at, g):
        # One per line: the simulator identifies shared arrays by source line.
        a_slice = cuda.shared.array(a_size, a.dtype, ALIGNMENT)
        b_slice = cuda.shared.array(b_size, a.dtype, ALIGNMENT)
        of_rows = cuda.shared.array(rows_shape, np.int64)
        of_steps = cuda.shared.array(steps_shape, np.int64)
        note_rows(of_rows, m, i, at, g)
        note_steps(of_steps, 0, first, last, at, g)
        cuda.syncthreads()
        half = 0
        for l0 in range(first, last, depth):
            note_steps(of_steps, 1 - half, l0 + depth, last, at, g)
            load(a_slice, b_slice, of_rows, of_steps, half, a, b, m - i, last - l0, j, n, g)
            cuda.syncthreads()
            add(acc, sums, a_slice, 0, b_slice, 0)
            cuda.syncthreads()
            half = 1 - half

    return multiply


# -- addresses -----------------------------------------------------------------------------------------------
# `at` is (group, filters of all groups), and for dx also the class of pixels (see `pixel_class`).


@device_function
def _window(pixel, g):
    """The offset in the images of the window of a pixel of y."""
    line = pixel // g.out_w
    image = line // g.out_h
    row = image * g.height + (line - image * g.out_h) * g.stride_h
    return (row * g.width + (pixel - line * g.out_w) * g.stride_w) * g.channels


@device_function
def _tap(k, g):
    """The offset within a window of its element k: kernel row, kernel column, channel of the group."""
    size = g.channels // g.groups
    tap = k // size
    i = tap // g.kernel_w
    return (i * g.dilation_h * g.width + (tap - i * g.kernel_w) * g.dilation_w) * g.channels + k - tap * size


@device_function
def window_of_row(pixel, at, g):
    """Rows of y's product."""
    return _window(pixel, g) + at[0] * (g.channels // g.groups), 0, 0


@device_function
def tap_of_step(k, at, g):
    """Steps of y's product; B is W."""
    return _tap(k, g), 0, 0, k * at[1] + at[0] * (at[1] // g.groups)


@device_function
def tap_of_row(k, at, g):
    """Rows of dW's product."""
    return _tap(k, g) + at[0] * (g.channels // g.groups), 0, 0


@device_function
def window_of_step(pixel, at, g):
    """Steps of dW's product; B is dy."""
    return _window(pixel, g), 0, 0, pixel * at[1] + at[0] * (at[1] // g.groups)


@device_function
def _taps(residue, kernel, stride, dilation):
    """(first, distance, count) of the taps i with dilation i = residue modulo the stride."""
    first, distance = 0, 1
    while first < stride and (dilation * first - residue) % stride != 0:
        first += 1
    while dilation * distance % stride != 0:
        distance += 1
    none = first >= min(stride, kernel)
    return first, distance, 0 if none else (kernel - 1 - first) // distance + 1


@device_function
def pixel_class(number, group, filters, g):
    """`at` for class `number` of the pixels of x: residues of row and column, then their taps."""
    top, left = number // g.stride_w, number % g.stride_w
    first_h, distance_h, count_h = _taps(top, g.kernel_h, g.stride_h, g.dilation_h)
    first_w, distance_w, count_w = _taps(left, g.kernel_w, g.stride_w, g.dilation_w)
    return group, filters, top, left, first_h, distance_h, count_h, first_w, distance_w, count_w


@device_function
def pixel_of_class(number, g):
    """(image, row, column) of a pixel within its class; rows and columns in units of strides."""
    wide, high = (g.width + g.stride_w - 1) // g.stride_w, (g.height + g.stride_h - 1) // g.stride_h
    line = number // wide
    image = line // high
    return image, line - image * high, number - line * wide


@device_function
def pixel_of_row(number, at, g):
    """Rows of dx's product."""
    image, row, col = pixel_of_class(number, g)
    return ((image * g.out_h + row) * g.out_w + col) * at[1] + at[0] * (at[1] // g.groups), row, col


@device_function
def filter_of_step(k, at, g):
    """Steps of dx's product; B is W^T, (filters, taps and channels)."""
    group, filters, top, left, first_h, distance_h, _, first_w, distance_w, count_w = at
    size, channels = filters // g.groups, g.channels // g.groups
    tap = k // size
    f, down = k - tap * size, tap // count_w
    i, j = first_h + down * distance_h, first_w + (tap - down * count_w) * distance_w
    y, x = (top - g.dilation_h * i) // g.stride_h, (left - g.dilation_w * j) // g.stride_w
    in_w = (group * size + f) * g.kernel_h * g.kernel_w * channels + (i * g.kernel_w + j) * channels
    return (y * g.out_w + x) * filters + f, y, x, in_w


# -- the products --------------------------------------------------------------------------------------------


@device_function
def _clear(acc, size):
    for r in range(size):
        acc[r] = like(acc[0], 0.0)


def convolution(tile):
    """A device function: a block's tiles of y = b + windows W. convolve(y, x, w, b, n, filters, adding, g).

    With `adding`, y += windows W; an empty w counts as zero.
    """
    multiply, store = gatherer(tile, window_of_row, tap_of_step), with_shift(tile)
    (rows, columns, _, each_row, each_column), (row_of, column_of) = tile, places(tile)
    size = each_row * each_column

    @device_function
    def make(acc, none, y, x, w, b, n, filters, adding, g, group, i, j):
        m, own = n * g.out_h * g.out_w, filters // g.groups
        depth = g.kernel_h * g.kernel_w * (g.channels // g.groups)
        _clear(acc, size)
        if adding > 0:
            for r in range(each_row):
                for c in range(each_column):
                    if i + row_of(r) < m and j + column_of(c) < own:
                        place = np.uint64((i + row_of(r)) * filters + group * own + j + column_of(c))
                        acc[r * each_column + c] = y[place]
        if w.size > 0:
            multiply(acc, none, x, w, m, own, i, j, 0, depth, (group, filters), g)
        high, wide, place = np.int32(min(m - i, rows)), np.int32(min(own - j, columns)), group * own + j
        store(y, acc, i * filters + place, filters, b, place, high, wide, fours(y, filters, place))

    @device_function
    def convolve(y, x, w, b, n, filters, adding, g):
        acc, none = cuda.local.array(size, y.dtype), cuda.local.array(1, y.dtype)
        wide = (filters // g.groups + columns - 1) // columns
        at, group = cuda.blockIdx.x // g.groups, cuda.blockIdx.x % g.groups
        make(acc, none, y, x, w, b, n, filters, adding, g, group, at // wide * rows, at % wide * columns)

    return convolve


def weight_gradient(tile):
    """A device function: a block's tiles of pieces of dW = windows^T dy, and of the sums of dy over the pixels.

    differentiate(partials, x, dy, n, filters, g): partials OUT as that of `products.in_pieces`, for all groups.
    """
    multiply = gatherer(tile, tap_of_row, window_of_step, along_rows=True, column_sums=True)
    rows, columns, _, each_row, each_column = tile
    size, (row_of, column_of) = each_row * each_column, places(tile)

    @device_function
    def make(acc, sums, partials, x, dy, n, filters, g, group, i, j, piece, count):
        m, own, k = g.kernel_h * g.kernel_w * (g.channels // g.groups), filters // g.groups, n * g.out_h * g.out_w
        depth = (k + count - 1) // count
        _clear(acc, size)
        _clear(sums, each_column)
        first, last = piece * depth, min(k, (piece + 1) * depth)
        multiply(acc, sums, x, dy, m, own, i, j, first, last, (group, filters), g)
        sums_too = i == 0 and row_of(0) == 0
        for c in range(each_column):
            col = j + column_of(c)
            for r in range(each_row):
                row = i + row_of(r)
                if row < m and col < own:
                    partials[np.uint64((piece * m + row) * filters + group * own + col)] = acc[r * each_column + c]
            if sums_too and col < own:
                partials[(count * m + piece) * filters + group * own + col] = sums[c]

    @device_function
    def differentiate(partials, x, dy, n, filters, g):
        acc, sums = cuda.local.array(size, x.dtype), cuda.local.array(each_column, x.dtype)
        depth, own = g.kernel_h * g.kernel_w * (g.channels // g.groups), filters // g.groups
        count, wide = pieces(depth, own, n * g.out_h * g.out_w, x.itemsize, g.groups), (own + columns - 1) // columns
        at, group = cuda.blockIdx.x // (count * g.groups), cuda.blockIdx.x // count % g.groups
        i, j = at // wide * rows, at % wide * columns
        make(acc, sums, partials, x, dy, n, filters, g, group, i, j, cuda.blockIdx.x % count, count)

    return differentiate


def input_gradient(tile):
    """A device function: a block's tiles of dx, added to with `adding`; wt is W^T.

    differentiate(dx, dy, wt, n, filters, adding, g)
    """
    multiply = gatherer(tile, pixel_of_row, filter_of_step, bordered=True)
    rows, columns, _, each_row, each_column = tile
    size, (row_of, column_of) = each_row * each_column, places(tile)

    @device_function
    def place(number, m, at, g):
        """Where in dx the group's channels of pixel `number` of a class begin; -1 beyond the image."""
        image, row, col = pixel_of_class(number, g)
        row, col = row * g.stride_h + at[2], col * g.stride_w + at[3]
        inside = number < m and row < g.height and col < g.width
        return (
            ((image * g.height + row) * g.width + col) * g.channels + at[0] * (g.channels // g.groups) if inside else -1
        )

    @device_function
    def make(acc, none, dx, dy, wt, m, adding, g, i, j, at):
        own = g.channels // g.groups
        _clear(acc, size)
        multiply(acc, none, dy, wt, m, own, i, j, 0, at[6] * at[9] * (at[1] // g.groups), at, g)
        # Two short loops, which are unrolled; one that chose for each element would index the registers of acc.
        if adding > 0:
            for r in range(each_row):
                pixel = place(i + row_of(r), m, at, g)
                for c in range(each_column):
                    if pixel >= 0 and j + column_of(c) < own:
                        acc[r * each_column + c] += dx[np.uint64(pixel + j + column_of(c))]
        for r in range(each_row):
            pixel = place(i + row_of(r), m, at, g)
            for c in range(each_column):
                if pixel >= 0 and j + column_of(c) < own:
                    dx[np.uint64(pixel + j + column_of(c))] = acc[r * each_column + c]

    @device_function
    def differentiate(dx, dy, wt, n, filters, adding, g):
        acc, none = cuda.local.array(size, dx.dtype), cuda.local.array(1, dx.dtype)
        m = n * ((g.width + g.stride_w - 1) // g.stride_w) * ((g.height + g.stride_h - 1) // g.stride_h)
        wide, many = (g.channels // g.groups + columns - 1) // columns, g.groups * g.stride_h * g.stride_w
        place, number = cuda.blockIdx.x // many, cuda.blockIdx.x % many
        at = pixel_class(number // g.groups, number % g.groups, filters, g)
        make(acc, none, dx, dy, wt, m, adding, g, place // wide * rows, place % wide * columns, at)

    return differentiate
