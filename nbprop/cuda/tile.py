"""A small network on a tile of samples, with all activations on the chip: its products and derivatives (see fused.py).

Shared memory holds a slice of the weight of one layer, [0, STAGE), and after it a matrix (width, samples) for the
activations of each layer: element (j, s) is at offset + j * lead + s. Samples are contiguous, so that four of them are
one load; lead = samples + 4 puts consecutive rows in different banks. Rows are padded to a multiple of 4 with zeros. z
= x W + b and y = f(z) of a layer share their memory, unless f' needs z, or the layer is the last one: there dL/dy
overwrites y. In the backward pass, the y of a layer is overwritten by f'(z), and that by dL/dz.

Each product accumulates a part of its result in the registers of a thread, as in products.py; narrow layers, where such
parts would leave most threads idle, have smaller ones. Summation order depends on sizes alone.
"""

import numpy as np
from numba import float32

from nbprop.compiler.jit import njit
from nbprop.cuda.toolkit import SIMULATED, THREADS, cuda, device_function
from nbprop.cuda.vectors import load4, store4
from nbprop.numerics.activations import derivative_of, value_of
from nbprop.numerics.scalars import like

# Widths of layers, and how many layers.
WIDEST, MOST_LAYERS = (32 if SIMULATED else 128), 16
# Words of a layer: its widths; offsets in shared memory of its input x, of z = x W + b, and of y = f(z); offsets in
# params of its weight and its bias (-1: none); the code of f; 1 if y, once computed, is also stored over z.
N_IN, N_OUT, X, Z, Y, WEIGHT, BIAS, CODE, KEEP = range(9)
LAYER_WORDS = 9
MOST_WORDS = MOST_LAYERS * LAYER_WORDS

LANES = 4 if SIMULATED else 32
WARPS = THREADS // LANES
# Loads from global memory that a thread has in flight.
BATCH = 2 if SIMULATED else 4
# (samples, columns) that a thread accumulates of a product over features; (rows, columns) of a weight gradient.
WIDE, WIDE_BACK, NARROW = (8, 4), (4, 4), (4, 1)
SQUARES = 4, 1
# A product with fewer parts than this uses smaller ones: one warp for each of the four schedulers of a multiprocessor.
FEWEST_PARTS = THREADS // 2


@njit
def lead_of_weight(n_out):
    """Row stride of a staged weight: an odd multiple of four, so that rows are in different banks."""
    return 4 * (((n_out + 3) // 4) | 1)


# Room for 64 rows of 64 weights, or 32 of 128; at least 4 of the widest.
STAGE = int(lead_of_weight(WIDEST)) * 4 if SIMULATED else 64 * 68


@njit
def rows_of_stage(n_out):
    """Rows of a weight that are staged at a time, a multiple of 4."""
    return STAGE // lead_of_weight(n_out) // 4 * 4


@device_function
def stage(space, params, weight, n_out, first, rows):
    """Rows `first` to first + rows of a weight to shared memory, padded with zeros to multiples of 4."""
    held, lead, me = cuda.local.array(BATCH, float32), lead_of_weight(n_out), cuda.threadIdx.x
    padded, zero = (rows + 3) // 4 * 4, like(space[0], 0.0)
    for col in range(me % LANES, (n_out + 3) // 4 * 4, LANES):
        for begin in range(me // LANES, padded, BATCH * WARPS):
            for k in range(BATCH):
                row = begin + k * WARPS
                inside = row < rows and col < n_out
                held[k] = params[weight + (first + row) * n_out + col] if inside else zero
            for k in range(BATCH):
                row = begin + k * WARPS
                if row < padded:
                    space[row * lead + col] = held[k]


def forward_product(samples, part_shape):
    """A device function: z = x W + b for a tile; a thread computes parts of (samples, columns)."""
    (rows, columns), lead = part_shape, samples + 4
    size, down = rows * columns, samples // rows

    @device_function
    def accumulate(acc, space, x, w, lead_w, depth):
        left, right = cuda.local.array(rows, float32), cuda.local.array(4, float32)
        for _ in range(depth):
            for r in range(0, rows, 4):
                load4(left, r, space, x + r * down)
            if columns == 4:
                load4(right, 0, space, w)
            else:
                right[0] = space[w]
            for r in range(rows):
                for c in range(columns):
                    acc[r * columns + c] += left[r] * right[c]
            x += lead
            w += lead_w

    @device_function
    def finish(acc, four, space, params, z, bias, n_out, first_col, first_sample):
        for c in range(columns):
            col = first_col + c
            if col < n_out:
                shift = params[bias + col] if bias >= 0 else like(acc[0], 0.0)
                for r in range(0, rows, 4):
                    for k in range(4):
                        four[k] = acc[(r + k) * columns + c] + shift
                    store4(space, z + col * lead + first_sample + r * down, four, 0)

    @device_function
    def forward(space, params, layers, layer):
        """Ends with a barrier."""
        n_in, n_out, x = layers[layer + N_IN], layers[layer + N_OUT], layers[layer + X]
        acc, four = cuda.local.array(size, float32), cuda.local.array(4, float32)
        lead_w, depth = lead_of_weight(n_out), rows_of_stage(n_out)
        parts = down * ((n_out + columns - 1) // columns)
        for begin in range(0, parts, THREADS):
            mine = begin + cuda.threadIdx.x
            first_sample, first_col = mine % down * 4, mine // down * columns
            for at in range(size):
                acc[at] = like(space[0], 0.0)
            for first in range(0, n_in, depth):
                deep = min(depth, n_in - first)
                stage(space, params, layers[layer + WEIGHT], n_out, first, deep)
                cuda.syncthreads()
                if mine < parts:
                    accumulate(acc, space, x + first * lead + first_sample, first_col, lead_w, deep)
                cuda.syncthreads()
            if mine < parts:
                z, bias = layers[layer + Z], layers[layer + BIAS]
                finish(acc, four, space, params, z, bias, n_out, first_col, first_sample)
        cuda.syncthreads()

    return forward


def backward_product(samples, part_shape):
    """A device function: x *= dz W^T, where x holds f'(z) of the layer below, and then its dL/dz."""
    (rows, columns), lead = part_shape, samples + 4
    size, down, four_columns = rows * columns, samples // rows, 4 * columns

    @device_function
    def accumulate(acc, space, dz, w, across, lead_w, depth):
        """Four columns of dz at a time, so that four elements of w are one load."""
        left, right = cuda.local.array(rows, float32), cuda.local.array(four_columns, float32)
        for _ in range(0, depth, 4):
            for c in range(columns):
                load4(right, 4 * c, space, w + c * across * lead_w)
            for k in range(4):
                for r in range(0, rows, 4):
                    load4(left, r, space, dz + k * lead + r * down)
                for r in range(rows):
                    for c in range(columns):
                        acc[r * columns + c] += left[r] * right[4 * c + k]
            dz += 4 * lead
            w += 4

    @device_function
    def finish(acc, four, space, place, first_row, across, stop, first_sample):
        for c in range(columns):
            row = first_row + c * across
            if row < stop:
                for r in range(0, rows, 4):
                    here = place + row * lead + first_sample + r * down
                    load4(four, 0, space, here)
                    for k in range(4):
                        four[k] *= acc[(r + k) * columns + c]
                    store4(space, here, four, 0)

    @device_function
    def backward(space, params, layers, layer):
        """Ends with a barrier, and has one before it reads x."""
        n_in, n_out, dz = layers[layer + N_IN], layers[layer + N_OUT], layers[layer + Y]
        acc, four = cuda.local.array(size, float32), cuda.local.array(4, float32)
        lead_w, depth = lead_of_weight(n_out), rows_of_stage(n_out)
        for first in range(0, n_in, depth):
            wide = min(depth, n_in - first)
            stage(space, params, layers[layer + WEIGHT], n_out, first, wide)
            cuda.syncthreads()
            across = (wide + columns - 1) // columns
            for mine in range(cuda.threadIdx.x, down * across, THREADS):
                first_sample, col = mine % down * 4, mine // down
                for at in range(size):
                    acc[at] = like(space[0], 0.0)
                accumulate(acc, space, dz + first_sample, col * lead_w, across, lead_w, n_out)
                finish(acc, four, space, layers[layer + X], first + col, across, first + wide, first_sample)
            cuda.syncthreads()

    return backward


def activation(samples):
    """Device functions over the (n_out, samples) of a layer: y = f(z); y = f'(z), or with `times` y *= f'(z)."""
    lead = samples + 4

    @device_function
    def value(space, layers, layer):
        """y = f(z); where z is stored apart, it keeps the argument of f'."""
        z, y, code, keep = layers[layer + Z], layers[layer + Y], layers[layer + CODE], layers[layer + KEEP]
        for at in range(cuda.threadIdx.x, layers[layer + N_OUT] * samples, THREADS):
            here = at // samples * lead + at % samples
            found = value_of(space[z + here], code)
            space[y + here] = found
            if keep != 0:
                space[z + here] = found

    @device_function
    def derivative(space, layers, layer, times):
        z, y, code = layers[layer + Z], layers[layer + Y], layers[layer + CODE]
        for at in range(cuda.threadIdx.x, layers[layer + N_OUT] * samples, THREADS):
            here = at // samples * lead + at % samples
            found = derivative_of(space[z + here], code)
            space[y + here] = space[y + here] * found if times else found

    return value, derivative


def weight_gradient(samples, each):
    """A device function: dW = x^T dz of a tile, to global memory; a thread computes parts of (each, each)."""
    lead, square, four_each = samples + 4, each * each, 4 * each

    @device_function
    def accumulate(acc, space, x, down, dz, across):
        left, right = cuda.local.array(four_each, float32), cuda.local.array(four_each, float32)
        for s in range(0, samples, 4):
            for r in range(each):
                load4(left, 4 * r, space, x + r * down * lead + s)
            for c in range(each):
                load4(right, 4 * c, space, dz + c * across * lead + s)
            for r in range(each):
                for c in range(each):
                    for k in range(4):
                        acc[r * each + c] += left[4 * r + k] * right[4 * c + k]

    @device_function
    def gradient(slices, space, layers, layer, base, adds):
        """slices[base + ...] = dW, added to what they hold when `adds`."""
        n_in, n_out = layers[layer + N_IN], layers[layer + N_OUT]
        x, dz, place = layers[layer + X], layers[layer + Y], base + layers[layer + WEIGHT]
        acc, held = cuda.local.array(square, float32), cuda.local.array(square, float32)
        down, across = (n_in + each - 1) // each, (n_out + each - 1) // each
        for mine in range(cuda.threadIdx.x, down * across, THREADS):
            row, col = mine // across, mine % across
            # All loads of the slice before the product, which hides how long they take.
            for at in range(each * each):
                i, j = row + at // each * down, col + at % each * across
                inside = adds and i < n_in and j < n_out
                acc[at] = like(space[0], 0.0)
                held[at] = slices[place + i * n_out + j] if inside else acc[at]
            accumulate(acc, space, x + row * lead, down, dz + col * lead, across)
            for r in range(each):
                for c in range(each):
                    i, j = row + r * down, col + c * across
                    if i < n_in and j < n_out:
                        slices[place + i * n_out + j] = held[r * each + c] + acc[r * each + c]

    return gradient


def bias_gradient(samples):
    """A device function: db = the sum of dz over a tile; one thread per column, the last threads first."""
    lead = samples + 4

    @device_function
    def gradient(slices, space, layers, layer, base, adds):
        four, total = cuda.local.array(4, float32), cuda.local.array(4, float32)
        for j in range(THREADS - 1 - cuda.threadIdx.x, layers[layer + N_OUT], THREADS):
            for k in range(4):
                total[k] = like(space[0], 0.0)
            for s in range(0, samples, 4):
                load4(four, 0, space, layers[layer + Y] + j * lead + s)
                for k in range(4):
                    total[k] += four[k]
            whole, at = (total[0] + total[1]) + (total[2] + total[3]), base + layers[layer + BIAS] + j
            slices[at] = slices[at] + whole if adds else whole

    return gradient


def load_samples(samples):
    """A device function: rows of x to shared memory, (n_in, samples); beyond n, the last sample is repeated."""
    lead = samples + 4

    @device_function
    def load(space, x, place, first, n, n_in):
        held, me = cuda.local.array(BATCH, float32), cuda.threadIdx.x
        # Eight neighbouring numbers of a sample and four samples in a warp: whole sectors, and 32 different banks.
        total = (n_in + 7) // 8 * 8 * samples
        for begin in range(me, total, BATCH * THREADS):
            for k in range(BATCH):
                at = begin + k * THREADS
                col, row = at // (8 * samples) * 8 + at % 8, first + at // 8 % samples
                row = min(row, n - 1)
                held[k] = x[row * n_in + col] if col < n_in and at < total else like(space[0], 0.0)
            for k in range(BATCH):
                at = begin + k * THREADS
                col = at // (8 * samples) * 8 + at % 8
                if col < n_in and at < total:
                    space[place + col * lead + at // 8 % samples] = held[k]

    return load


def shared_floats(samples, widths):
    """Elements of shared memory for values of these widths."""
    return STAGE + sum(-(-width // 4) * 4 for width in widths) * (samples + 4)


def shared_bytes(samples, widths):
    """Bytes of shared memory for values of these widths, with the layers' words."""
    words = np.dtype(np.int64).itemsize * MOST_WORDS
    return np.dtype(np.float32).itemsize * shared_floats(samples, widths) + words
