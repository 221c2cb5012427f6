"""Sums over the threads of a block, in an order that depends on sizes alone: bitwise the same on every run.

A *team* is a power of two of neighbouring threads that work on one row together; a block holds THREADS / team of them.
Every thread of the block must call these functions, since they contain barriers.
"""

from nbprop.compiler.jit import njit
from nbprop.cuda.toolkit import SIMULATED, THREADS, cuda, device_function
from nbprop.numerics.scalars import like

# Columns that a thread block sums at a time: in float32, one 32-byte sector of memory.
COLUMNS = 2 if SIMULATED else 8


@njit
def team_of(size):
    """Threads for a row of `size` elements: the next power of two, at most a block."""
    team = 1
    while team < size and team < THREADS:
        team *= 2
    return team


def rows_of(rows, size):
    """Blocks for `rows` rows of `size` elements, one team per row."""
    each, team = THREADS, 1
    while team < size and team < THREADS:
        team, each = team * 2, each // 2
    return -(-rows // each)


@device_function
def team_sum(space, value, lane, team):
    """The sum of a team's values, returned to each of its threads. space: shared memory, one element per thread."""
    here = cuda.threadIdx.x
    space[here] = value
    cuda.syncthreads()
    half = team // 2
    while half > 0:
        if lane < half:
            space[here] += space[here + half]
        cuda.syncthreads()
        half //= 2
    total = space[here - lane]
    cuda.syncthreads()
    return total


@device_function
def team_max(space, value, lane, team):
    """The maximum of a team's values, NaN if one is, returned to each of its threads.

    space: shared memory, one element per thread.
    """
    here = cuda.threadIdx.x
    space[here] = value
    cuda.syncthreads()
    half = team // 2
    while half > 0:
        if lane < half:
            other = space[here + half]
            if other > space[here] or other != other:
                space[here] = other
        cuda.syncthreads()
        half //= 2
    maximum = space[here - lane]
    cuda.syncthreads()
    return maximum


@device_function
def row_max(space, x, start, size, lane, team):
    """The maximum of x[start : start + size], NaN if one is, by a team; size 0: x[0] alone."""
    maximum = x[start] if size > 0 else x[0]
    for j in range(lane, size, team):
        value = x[start + j]
        if value > maximum or value != value:
            maximum = value
    return team_max(space, maximum, lane, team)


@device_function
def block_sum(space, value):
    """The sum of a block's values, returned to each of its threads."""
    return team_sum(space, value, cuda.threadIdx.x, THREADS)


@device_function
def column_sum(space, value, width):
    """The sum over all threads whose numbers are equal modulo `width`, a power of two; returned to each of them."""
    here, half = cuda.threadIdx.x, THREADS // 2
    space[here] = value
    cuda.syncthreads()
    while half >= width:
        if here < half:
            space[here] += space[here + half]
        cuda.syncthreads()
        half //= 2
    total = space[here % width]
    cuda.syncthreads()
    return total


@device_function
def row_factor(weights, partials, n, rows, row):
    """w / (sum(w) rows): the weight of a row in the mean, where a sample has `rows` rows; sum(w) is in partials[0]."""
    if weights.size == 0:
        return like(partials[0], 1.0) / like(partials[0], n * rows)
    return weights[row // rows] / (partials[0] * like(partials[0], rows))


@device_function
def sum_of_slices(slices, at, stride, count):
    """The sum of element `at` of `count` slices, `stride` elements apart, in order."""
    total = slices[at]
    for number in range(1, count):
        total += slices[at + number * stride]
    return total
