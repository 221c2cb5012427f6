"""The three products of a convolution with tensor cores: those of windows.py, in the tiles of tensor_products.py.

The address of an element of A is the sum of an offset of its row and one of its step, as there, which are noted in
shared memory: of a step, two slices ahead, while the one before is read and the one before that multiplied.
"""

import numpy as np
from numba import float32, uint32

from nbprop.cuda.mma import read, read_if, unrolled, write
from nbprop.cuda.tensor_products import (
    COLUMNS,
    REGISTERS,
    ROWS,
    TILE,
    clear_all,
    filler,
    pieces,
    place_of,
    slice_product,
    storer_of_sums,
)
from nbprop.cuda.toolkit import cuda, device_function
from nbprop.cuda.warps import thread_again
from nbprop.cuda.windows import (
    filter_of_step,
    pixel_class,
    pixel_of_class,
    pixel_of_row,
    tap_of_row,
    tap_of_step,
    window_of_row,
    window_of_step,
)
from nbprop.numerics.scalars import like


def gatherer(planes, row_place, step_place, *, along_rows=False, bordered=False, column_sums=False):
    """A device function that adds A[:, first:last] B[first:last, :] to the accumulators of a block's threads.

    multiply(acc, sums, space, a, b, m, n, i, j, first, last, at, g): acc, sums and space as those of
    `tensor_products.multiplier`, the rest as that of `windows.gatherer`.
    """
    depth, threads, size = TILE.depth, TILE.threads, planes * (TILE.a_words(along_rows) + TILE.b_words)
    a_wide, b_wide = (ROWS if along_rows else depth) // 2, COLUMNS // 2
    a_count, b_count = ROWS * depth // 2, COLUMNS * depth // 2
    _, put_a, a_held = filler(TILE.a_lead(along_rows), a_wide, a_count, planes, TILE.a_words(along_rows))
    _, put_b, b_held = filler(TILE.b_lead, b_wide, b_count, planes, TILE.b_words)
    all_held, left_size, add = a_held + b_held, 4 * planes * TILE.units_down, slice_product(planes, along_rows)
    rows_shape, steps_shape, b_begin = (3, ROWS), (2, 4, depth), planes * TILE.a_words(along_rows)

    @device_function
    def note_rows(of_rows, m, i, at, g):
        for row in range(cuda.threadIdx.x, ROWS, threads):
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
    def element(a, of_rows, of_steps, half, row, step, rows_left, steps_left, g):
        inside = row < rows_left and step < steps_left
        if bordered and inside:
            y, x = of_rows[1, row] + of_steps[half, 1, step], of_rows[2, row] + of_steps[half, 2, step]
            inside = y >= 0 and y < g.out_h and x >= 0 and x < g.out_w
        return read_if(inside, a, of_rows[0, row] + of_steps[half, 0, step] if inside else 0)

    @device_function
    def get_a(number, given):
        held, a, of_rows, of_steps, half, rows_left, steps_left, g, me = given
        word = me + number * threads
        first, second = word // a_wide, word % a_wide * 2
        for k in range(2):
            row, step = (second + k, first) if along_rows else (first, second + k)
            held[2 * number + k] = element(a, of_rows, of_steps, half, row, step, rows_left, steps_left, g)

    @device_function
    def get_b(number, given):
        held, sums, b, of_steps, half, steps_left, columns_left, j, me = given
        word = me + number * threads
        step, col = word // b_wide, word % b_wide * 2
        for k in range(2):
            inside = step < steps_left and col + k < columns_left
            value = read_if(inside, b, of_steps[half, 3, step] + j + col + k if inside else 0)
            held[a_held + 2 * number + k] = value
            if column_sums:
                sums[k] += value

    get_all_a, get_all_b = unrolled(a_held // 2, get_a), unrolled(b_held // 2, get_b)

    @device_function
    def get(held, sums, a, b, of_rows, of_steps, half, rows_left, steps_left, columns_left, j, g):
        get_all_a((held, a, of_rows, of_steps, half, rows_left, steps_left, g, thread_again()))
        get_all_b((held, sums, b, of_steps, half, steps_left, columns_left, j, thread_again()))

    @device_function
    def fill(held, space, half):
        put_a(held, 0, space, half * size)
        put_b(held, a_held, space, half * size + b_begin)

    @device_function
    def multiply(acc, sums, space, a, b, m, n, i, j, first, last, at, g):
        of_rows = cuda.shared.array(rows_shape, np.int64)
        of_steps = cuda.shared.array(steps_shape, np.int64)
        held = cuda.local.array(all_held, float32)
        left, right = cuda.local.array(left_size, uint32), cuda.local.array(4, uint32)
        note_rows(of_rows, m, i, at, g)
        note_steps(of_steps, 0, first, last, at, g)
        note_steps(of_steps, 1, first + depth, last, at, g)
        cuda.syncthreads()
        get(held, sums, a, b, of_rows, of_steps, 0, m - i, last - first, n - j, j, g)
        fill(held, space, 0)
        cuda.syncthreads()
        half = 0
        for here in range(first, last, depth):
            more = here + depth < last
            if more:
                get(held, sums, a, b, of_rows, of_steps, 1 - half, m - i, last - here - depth, n - j, j, g)
                note_steps(of_steps, half, here + 2 * depth, last, at, g)
            add(acc, left, right, space, half * size, half * size + b_begin)
            half = 1 - half
            if more:
                fill(held, space, half)
            cuda.syncthreads()

    return multiply


def convolution(planes):
    """A device function: a block's tiles of y = b + windows W. convolve(y, x, w, b, n, filters, g)."""
    multiply = gatherer(planes, window_of_row, tap_of_step)

    @device_function
    def store_one(number, given):
        y, acc, b, m, own, filters, group, i, j = given
        row, col = place_of(number)
        if i + row < m and j + col < own:
            f = group * own + j + col
            write(y, (i + row) * filters + f, acc[number] + (read(b, f) if b.size > 0 else like(acc[0], 0.0)))

    store = unrolled(REGISTERS, store_one)

    @device_function
    def convolve(y, x, w, b, n, filters, g):
        space, acc = cuda.shared.array(0, uint32), cuda.local.array(REGISTERS, float32)
        none = cuda.local.array(2, float32)
        own, m = filters // g.groups, n * g.out_h * g.out_w
        wide, depth = (own + COLUMNS - 1) // COLUMNS, g.kernel_h * g.kernel_w * (g.channels // g.groups)
        for block in range(cuda.blockIdx.x, g.groups * ((m + ROWS - 1) // ROWS) * wide, cuda.gridDim.x):
            at, group = block // g.groups, block % g.groups
            i, j = at // wide * ROWS, at % wide * COLUMNS
            clear_all(acc)
            multiply(acc, none, space, x, w, m, own, i, j, 0, depth, (group, filters), g)
            store((y, acc, b, m, own, filters, group, i, j))

    return convolve


def weight_gradient(planes):
    """A device function: a block's tiles of pieces of dW = windows^T dy, and of the sums of dy over the pixels.

    differentiate(partials, x, dy, n, filters, g): partials OUT as that of `tensor_products.in_pieces`, for all groups.
    """
    multiply = gatherer(planes, tap_of_row, window_of_step, along_rows=True, column_sums=True)
    store_sums = storer_of_sums(2)

    @device_function
    def store_one(number, given):
        partials, acc, m, own, filters, group, i, j, piece = given
        row, col = place_of(number)
        if i + row < m and j + col < own:
            write(partials, (piece * m + i + row) * filters + group * own + j + col, acc[number])

    store = unrolled(REGISTERS, store_one)

    @device_function
    def differentiate(partials, x, dy, n, filters, g):
        space, reals = cuda.shared.array(0, uint32), cuda.shared.array(0, float32)
        acc, sums = cuda.local.array(REGISTERS, float32), cuda.local.array(2, float32)
        m, own, k = g.kernel_h * g.kernel_w * (g.channels // g.groups), filters // g.groups, n * g.out_h * g.out_w
        wide, tall, count = (own + COLUMNS - 1) // COLUMNS, (m + ROWS - 1) // ROWS, pieces(m, own, k, g.groups)
        depth = (k + count - 1) // count
        for block in range(cuda.blockIdx.x, g.groups * tall * wide * count, cuda.gridDim.x):
            at, group, piece = block // (count * g.groups), block // count % g.groups, block % count
            i, j, first, last = at // wide * ROWS, at % wide * COLUMNS, piece * depth, min(k, (piece + 1) * depth)
            clear_all(acc)
            sums[0], sums[1] = like(acc[0], 0.0), like(acc[0], 0.0)
            multiply(acc, sums, space, x, dy, m, own, i, j, first, last, (group, filters), g)
            store((partials, acc, m, own, filters, group, i, j, piece))
            if i == 0:
                store_sums(partials, sums, reals, (count * m + piece) * filters + group * own, own, j)

    return differentiate


def input_gradient(planes):
    """A device function: a block's tiles of dx. differentiate(dx, dy, wt, n, filters, g); wt is W^T."""
    multiply = gatherer(planes, pixel_of_row, filter_of_step, bordered=True)

    @device_function
    def store_one(number, given):
        dx, acc, m, own, i, j, at, g = given
        row, col = place_of(number)
        image, y, x = pixel_of_class(i + row, g)
        y, x = y * g.stride_h + at[2], x * g.stride_w + at[3]
        if i + row < m and y < g.height and x < g.width and j + col < own:
            place = ((image * g.height + y) * g.width + x) * g.channels + at[0] * own + j + col
            write(dx, place, acc[number])

    store_all = unrolled(REGISTERS, store_one)

    @device_function
    def differentiate(dx, dy, wt, n, filters, g):
        space, acc = cuda.shared.array(0, uint32), cuda.local.array(REGISTERS, float32)
        none = cuda.local.array(2, float32)
        m = n * ((g.width + g.stride_w - 1) // g.stride_w) * ((g.height + g.stride_h - 1) // g.stride_h)
        own, many = g.channels // g.groups, g.groups * g.stride_h * g.stride_w
        wide, tall = (own + COLUMNS - 1) // COLUMNS, (m + ROWS - 1) // ROWS
        for block in range(cuda.blockIdx.x, many * tall * wide, cuda.gridDim.x):
            place, number = block // many, block % many
            at = pixel_class(number // g.groups, number % g.groups, filters, g)
            i, j = place // wide * ROWS, place % wide * COLUMNS
            clear_all(acc)
            multiply(acc, none, space, dy, wt, m, own, i, j, 0, at[6] * at[9] * (filters // g.groups), at, g)
            store_all((dx, acc, m, own, i, j, at, g))

    return differentiate
