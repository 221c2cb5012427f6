"""The device kernels of what losses share; equations and arrays are those of the CPU's kernels."""

from nbprop.compiler.jit import njit
from nbprop.cuda.functions import real_of_word
from nbprop.cuda.groups import block_sum, row_factor, rows_of, team_of, team_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import MOST_BLOCKS, THREADS, cover, device_function
from nbprop.losses.base import count_positions, loss_mean, loss_mean_of_positions
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at


def cuda_kernels(cuda):
    """The device's mean: partial sums by blocks, and their sum in a second launch; sum(w) stands in partials[0]."""

    def elements(n, rows):
        return cover(n * rows)

    @on_device(loss_mean, blocks=elements, scratch=lambda: MOST_BLOCKS + 1)
    def partial_sums(losses, weights, partials, n, rows):
        space, count = cuda.shared.array(THREADS, losses.dtype), min((n * rows + THREADS - 1) // THREADS, MOST_BLOCKS)
        for block in range(cuda.blockIdx.x, count, cuda.gridDim.x):
            total = like(losses[0], 0.0)
            for i in range(block * THREADS + cuda.threadIdx.x, n * rows, count * THREADS):
                total += losses[i] * (weights[i // rows] if weights.size > 0 else like(losses[0], 1.0))
            total = block_sum(space, total)
            if cuda.threadIdx.x == 0:
                partials[1 + block] = total

    @on_device(loss_mean, blocks=lambda: 1)
    def mean(result, weights, partials, n, rows):
        total, count = like(result[0], 0.0), min((n * rows + THREADS - 1) // THREADS, MOST_BLOCKS)
        for i in range(cuda.threadIdx.x, count, THREADS):
            total += partials[1 + i]
        total = block_sum(cuda.shared.array(THREADS, result.dtype), total)
        if cuda.threadIdx.x == 0:
            mass = partials[0] if weights.size > 0 else like(total, n)
            result[0] = total / (mass * like(total, rows))

    return partial_sums, mean, *_cuda_positions(cuda)


def _cuda_positions(cuda):
    """The same over the positions that count; every block that needs sum(w length) sums it up by itself."""

    @device_function
    def counted_weight(space, weights, n, positions, lengths_address, lengths_code):
        total = like(space[0], 0.0)
        for i in range(cuda.threadIdx.x, n, THREADS):
            length = like(total, length_at(lengths_address, lengths_code, i, positions))
            total += length if weights.size == 0 else weights[i] * length
        return block_sum(space, total)

    @on_device(
        count_positions, blocks=lambda n, positions, size, lengths: cover(n * positions * size) if lengths else 0
    )
    def count(dy, weights, partials, n, positions, size, lengths_address, lengths_code):
        space = cuda.shared.array(THREADS, dy.dtype)
        counted = counted_weight(space, weights, n, positions, lengths_address, lengths_code)
        whole = partials[0] if weights.size > 0 else like(counted, n)
        ratio = whole * like(whole, positions) / counted
        for k in range(cuda.grid(1), n * positions * size, cuda.gridsize(1)):
            row = k // size
            counts = row % positions < length_at(lengths_address, lengths_code, row // positions, positions)
            dy[k] = dy[k] * ratio if counts else like(ratio, 0.0)

    @on_device(
        loss_mean_of_positions,
        blocks=lambda n, positions, rows: cover(n * positions * rows),
        scratch=lambda: MOST_BLOCKS + 1,
    )
    def partial_sums_of_positions(losses, weights, partials, n, positions, rows, lengths_address, lengths_code):
        space, each = cuda.shared.array(THREADS, losses.dtype), positions * rows
        count = min((n * each + THREADS - 1) // THREADS, MOST_BLOCKS)
        for block in range(cuda.blockIdx.x, count, cuda.gridDim.x):
            total = like(losses[0], 0.0)
            for i in range(block * THREADS + cuda.threadIdx.x, n * each, count * THREADS):
                sample = i // each
                if i - sample * each < length_at(lengths_address, lengths_code, sample, positions) * rows:
                    total += losses[i] * (weights[sample] if weights.size > 0 else like(total, 1.0))
            total = block_sum(space, total)
            if cuda.threadIdx.x == 0:
                partials[1 + block] = total

    @on_device(loss_mean_of_positions, blocks=lambda: 1)
    def mean_of_positions(result, weights, partials, n, positions, rows, lengths_address, lengths_code):
        space, total = cuda.shared.array(THREADS, result.dtype), like(result[0], 0.0)
        for i in range(cuda.threadIdx.x, min((n * positions * rows + THREADS - 1) // THREADS, MOST_BLOCKS), THREADS):
            total += partials[1 + i]
        total = block_sum(space, total)
        mass = counted_weight(space, weights, n, positions, lengths_address, lengths_code)
        if cuda.threadIdx.x == 0:
            result[0] = total / (mass * like(mass, rows))

    return count, partial_sums_of_positions, mean_of_positions


def cuda_weight_sum(cuda, loss):
    """The launch before a loss's others: sum(w) to partials[0], where there are weights."""

    @on_device(loss, blocks=lambda weights: 1 if weights else 0, scratch=lambda: 1)
    def weight_sum(weights, partials, n):
        total = like(partials[0], 0.0)
        for i in range(cuda.threadIdx.x, n, THREADS):
            total += weights[i]
        total = block_sum(cuda.shared.array(THREADS, partials.dtype), total)
        if cuda.threadIdx.x == 0:
            partials[0] = total

    return weight_sum


def cuda_elementwise(cuda, loss, value, slope):
    """The device's kernels of a loss that is a mean over a row of value(y, t, d), with the slope d value / dy.

    d is the number that the row carries as delta_bits, 0 where it carries none.
    """

    value, slope = njit(value), njit(slope)

    @device_function
    def work(losses, dy, y, target, weights, partials, n, rows, size, delta):
        space, team = cuda.shared.array(THREADS, y.dtype), team_of(size)
        for first in range(cuda.blockIdx.x * THREADS, n * rows * team, cuda.gridDim.x * THREADS):
            row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
            start, stop, total = row * size, size if row < n * rows else 0, like(y[0], 0.0)
            for j in range(start + lane, start + stop, team):
                total += value(y[j], target[j], delta)
            total = team_sum(space, total, lane, team)
            if lane < stop:
                if lane == 0:
                    losses[row] = total / like(total, size)
                if dy.size > 0:
                    factor = row_factor(weights, partials, n, rows, row) / like(total, size)
                    for j in range(start + lane, start + stop, team):
                        dy[j] = factor * slope(y[j], target[j], delta)

    def teams(n, rows, size):
        return rows_of(n * rows, size)

    if "delta_bits" in loss.sizes:

        @on_device(loss, blocks=teams)
        def losses_and_gradient(losses, dy, y, target, weights, partials, n, rows, size, delta_bits):
            work(losses, dy, y, target, weights, partials, n, rows, size, real_of_word(y[0], delta_bits))

    else:

        @on_device(loss, blocks=teams)
        def losses_and_gradient(losses, dy, y, target, weights, partials, n, rows, size):
            work(losses, dy, y, target, weights, partials, n, rows, size, like(y[0], 0.0))

    return cuda_weight_sum(cuda, loss), losses_and_gradient
