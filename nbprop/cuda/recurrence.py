"""The time loops of recurrent layers on the device, forward and backward; a layer provides the step of one unit.

A thread block takes some samples through all steps, so no block waits for another. Its threads form groups, each for
ROWS of the samples; a thread of a group has one unit (in a layer wider than a block, every team-th unit) and
accumulates its gates for all ROWS samples in registers. What a step multiplies (h in the forward pass, dz in the
backward pass) is staged in shared memory, a slice at a time; U is read through the caches, each number once for ROWS
samples.

Each sum runs over its terms in order, in one thread, so its bits depend on the numbers alone.
"""

from nbprop.compiler.jit import njit
from nbprop.cuda.groups import team_of
from nbprop.cuda.mma import unrolled
from nbprop.cuda.toolkit import MULTIPROCESSORS, THREADS, cuda, device_function
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at

ROWS = 4  # samples of a group: each loaded number of U is used this many times
_SLICE = ROWS * THREADS


@njit
def samples_of_block(n, team):
    """Samples of a block whose groups have `team` threads: few enough to give every multiprocessor some."""
    groups = min(THREADS // team, (n + ROWS * MULTIPROCESSORS - 1) // (ROWS * MULTIPROCESSORS))
    return ROWS * groups


SHAPE = {
    "blocks": lambda n, width: -(-n // int(samples_of_block(n, team_of(width)))),
    "resident": 2,
    "apart": True,
}


@njit
def samples_of_group(n, team, first, thread):
    """(first sample, number of samples) of a thread's group, in the block of the samples from `first` on."""
    mine, stop = first + ROWS * (thread // team), min(n, first + samples_of_block(n, team))
    return mine, max(0, min(ROWS, stop - mine))


def step_product(columns):
    """Device functions: sums = A W, and sums += A W, for the ROWS samples of a group and `columns` columns of W.

    multiply(sums, staged, a, a_first, width, count, w, w_width, column, apart, team): sums OUT (columns * ROWS,), in
    registers; staged: shared memory, _SLICE elements; a IN: A (count, width) from element a_first on; w IN (width,
    w_width), whose first column used is `column`, and whose columns used are `apart` apart. All threads of the block
    call it, and see what they wrote before. The second function takes the same arguments, sums INOUT.
    """

    @device_function
    def add(sums, staged, a, a_first, width, count, w, w_width, column, apart, team):
        zero = like(a[0], 0.0)
        lane, group, across = cuda.threadIdx.x % team, cuda.threadIdx.x // team, ROWS * (THREADS // team)
        for k0 in range(0, width, team):
            cuda.syncthreads()
            for r in range(ROWS):
                inside = r < count and k0 + lane < width
                staged[lane * across + group * ROWS + r] = a[a_first + r * width + k0 + lane] if inside else zero
            cuda.syncthreads()
            for k in range(min(team, width - k0) if count > 0 else 0):
                here, row = k * across + group * ROWS, (k0 + k) * w_width + column
                for c in range(columns):
                    weight = w[row + c * apart]
                    for r in range(ROWS):
                        sums[c * ROWS + r] += staged[here + r] * weight

    @device_function
    def multiply(sums, staged, a, a_first, width, count, w, w_width, column, apart, team):
        for s in range(columns * ROWS):
            sums[s] = like(a[0], 0.0)
        add(sums, staged, a, a_first, width, count, w, w_width, column, apart, team)

    return multiply, add


def walk_forward(gates, cell):
    """A device function: the forward pass over the positions of all samples.

    walk(h, more, z, u, a, n, positions, width, code, lengths_address, lengths_code): h INOUT (1 + positions, n, width),
    z INOUT (positions, n, gates * width): x W + b, u IN (width, gates * width); more, a and code are passed to the
    cell. cell(h, more, z, a, code, sums, r, place, within) computes a step of unit j of a sample, whose h U are
    sums[r], sums[ROWS + r], ... of its gates; place: (its index in z, in h before and after the step, width, j);
    within: whether the step is within the length.
    """
    (multiply, _), size = step_product(gates), gates * ROWS

    @device_function
    def walk(h, more, z, u, a, n, positions, width, code, lengths_address, lengths_code):
        sums, staged, team = cuda.local.array(size, z.dtype), cuda.shared.array(_SLICE, z.dtype), team_of(width)
        samples = samples_of_block(n, team)
        for first in range(cuda.blockIdx.x * samples, n, cuda.gridDim.x * samples):
            mine, count = samples_of_group(n, team, first, cuda.threadIdx.x)
            for t in range(positions):
                at = (t * n + mine) * width
                for j0 in range(0, width, team):
                    j = j0 + cuda.threadIdx.x % team
                    multiply(sums, staged, h, at, width, count, u, gates * width, min(j, width - 1), width, team)
                    for r in range(ROWS):
                        if r < count and j < width:
                            here, row = at + r * width + j, gates * (at + r * width) + j
                            within = t < length_at(lengths_address, lengths_code, mine + r, positions)
                            cell(h, more, z, a, code, sums, r, (row, here, here + n * width, width, j), within)

    return walk


def walk_backward(gates, cell):
    """A device function: the backward pass over the positions of all samples.

    walk(dz, more, dh, kept, z, q, ut, n, positions, width, code): dz OUT (positions, n, gates * width), the gradient by
    h U; dh INOUT (positions, n, width): from above in, the total out; ut IN (gates * width, width); the rest is passed
    to the cell. cell(dz, more, dh, kept, z, q, code, place, ends) computes a step of a unit of a sample, except dz U^T;
    place: (its index in z; in dh; in arrays of 1 + positions steps, after this step; in dh before this step, negative
    at the first; in arrays without steps; width); ends: whether this is the last step, where the pass begins.
    """
    multiply, _ = step_product(1)

    @device_function
    def walk(dz, more, dh, kept, z, q, ut, n, positions, width, code):
        sums, staged, team = cuda.local.array(ROWS, dz.dtype), cuda.shared.array(_SLICE, dz.dtype), team_of(width)
        samples, step = samples_of_block(n, team), n * width
        for first in range(cuda.blockIdx.x * samples, n, cuda.gridDim.x * samples):
            mine, count = samples_of_group(n, team, first, cuda.threadIdx.x)
            for t in range(positions - 1, -1, -1):
                at = (t * n + mine) * width
                for j in range(cuda.threadIdx.x % team, width, team):
                    for r in range(count):
                        here, row = at + r * width + j, gates * (at + r * width) + j
                        place = row, here, here + step, here - step, here - t * step, width
                        cell(dz, more, dh, kept, z, q, code, place, t == positions - 1)
                for j0 in range(0, width if t > 0 else 0, team):
                    j = j0 + cuda.threadIdx.x % team
                    multiply(sums, staged, dz, gates * at, gates * width, count, ut, width, min(j, width - 1), 0, team)
                    for r in range(ROWS):
                        if r < count and j < width:
                            dh[at - step + r * width + j] += sums[r]

    return walk


def walk_tangent(gates, cell):
    """A device function: the derivative of `walk_forward`'s along a direction.

    walk(given, h, h_dot, u, u_dot, n, positions, width, code, lengths_address, lengths_code): h IN and h_dot INOUT (1 +
    positions, n, width), u and u_dot IN (width, gates * width), u_dot may be empty for zeros. cell(given, code, sums,
    r, place, within) computes a step of unit j of a sample, for which h' U + h U' are sums[r], sums[ROWS + r], ... of
    its gates; given: the layer's arrays; place and within as in `walk_forward`.
    """
    (multiply, add), size = step_product(gates), gates * ROWS

    @device_function
    def step(r, everything):
        given, code, sums, place, lengths_address, lengths_code = everything
        t, at, mine, count, j, n, positions, width = place
        if r < count:
            here, row = at + r * width + j, gates * (at + r * width) + j
            within = t < length_at(lengths_address, lengths_code, mine + r, positions)
            cell(given, code, sums, r, (row, here, here + n * width, width, j), within)

    steps = unrolled(ROWS, step)  # cells are too long for LLVM to do so, and `sums` would be in memory

    @device_function
    def walk(given, h, h_dot, u, u_dot, n, positions, width, code, lengths_address, lengths_code):
        sums, staged, team = cuda.local.array(size, h.dtype), cuda.shared.array(_SLICE, h.dtype), team_of(width)
        samples, across = samples_of_block(n, team), gates * width
        for first in range(cuda.blockIdx.x * samples, n, cuda.gridDim.x * samples):
            mine, count = samples_of_group(n, team, first, cuda.threadIdx.x)
            for t in range(positions):
                at = (t * n + mine) * width
                for j0 in range(0, width, team):
                    j = j0 + cuda.threadIdx.x % team
                    column = min(j, width - 1)
                    multiply(sums, staged, h_dot, at, width, count, u, across, column, width, team)
                    if u_dot.size > 0:
                        add(sums, staged, h, at, width, count, u_dot, across, column, width, team)
                    place = t, at, mine, count if j < width else 0, j, n, positions, width
                    steps((given, code, sums, place, lengths_address, lengths_code))

    return walk


def walk_second(gates, cell):
    """A device function: the derivative of `walk_backward`'s along a direction.

    walk(given, dz, dz_dot, dh_dot, ut, ut_dot, n, positions, width, code): dz IN and dz_dot OUT (positions, n, gates *
    width), the gradients by h U; dh_dot INOUT (positions, n, width): from above in, the total out; ut and ut_dot IN
    (gates * width, width). cell(given, code, place, ends) computes a step of a unit of a sample, except dz' U^T + dz
    U'^T; given: the layer's arrays; place and ends as in `walk_backward`.
    """
    multiply, add = step_product(1)

    @device_function
    def walk(given, dz, dz_dot, dh_dot, ut, ut_dot, n, positions, width, code):
        sums, staged, team = cuda.local.array(ROWS, dz.dtype), cuda.shared.array(_SLICE, dz.dtype), team_of(width)
        samples, step, across = samples_of_block(n, team), n * width, gates * width
        for first in range(cuda.blockIdx.x * samples, n, cuda.gridDim.x * samples):
            mine, count = samples_of_group(n, team, first, cuda.threadIdx.x)
            for t in range(positions - 1, -1, -1):
                at = (t * n + mine) * width
                for j in range(cuda.threadIdx.x % team, width, team):
                    for r in range(count):
                        here, row = at + r * width + j, gates * (at + r * width) + j
                        place = row, here, here + step, here - step, here - t * step, width
                        cell(given, code, place, t == positions - 1)
                for j0 in range(0, width if t > 0 else 0, team):
                    j = j0 + cuda.threadIdx.x % team
                    column = min(j, width - 1)
                    multiply(sums, staged, dz_dot, gates * at, across, count, ut, width, column, 0, team)
                    add(sums, staged, dz, gates * at, across, count, ut_dot, width, column, 0, team)
                    for r in range(ROWS):
                        if r < count and j < width:
                            dh_dot[at - step + r * width + j] += sums[r]

    return walk
