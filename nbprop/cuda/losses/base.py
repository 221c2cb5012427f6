"""The device kernels that losses share; the equations and arrays are those of nbprop/losses/base.py.

Dimensions: n samples; rows rows a sample, of size elements; positions of a sequence.
"""

from nbprop.compiler.jit import njit
from nbprop.cuda.functions import real_of_word
from nbprop.cuda.groups import block_sum, row_factor, rows_of, team_of, team_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import MOST_BLOCKS, THREADS, device_function, grid_size
from nbprop.losses.base import count_positions, loss_mean, loss_mean_of_positions
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at


def cuda_kernels(cuda):
    """The mean of a loss: partial sums of the thread blocks, then their sum in a second launch.

    sum(w) is in partials[0].
    """

    def elements(n, rows):
        return grid_size(n * rows)

    @on_device(loss_mean, blocks=elements, scratch=lambda: MOST_BLOCKS + 1)
    def partial_sums(losses, weights, partials, n, rows):
        """partials[1 + block] = the sum of w l over the rows of a thread block.

        losses IN (n * rows,), weights IN (n,) or empty; partials OUT (1 + blocks,).
        """
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
        """result = sum(w l) / (sum(w) rows), from the partial sums.

        result OUT (1,), weights IN (n,) or empty; partials IN (1 + blocks,): sum(w), then the partial sums.
        """
        total, count = like(result[0], 0.0), min((n * rows + THREADS - 1) // THREADS, MOST_BLOCKS)
        for i in range(cuda.threadIdx.x, count, THREADS):
            total += partials[1 + i]
        total = block_sum(cuda.shared.array(THREADS, result.dtype), total)
        if cuda.threadIdx.x == 0:
            weight_sum = partials[0] if weights.size > 0 else like(total, n)
            result[0] = total / (weight_sum * like(total, rows))

    return partial_sums, mean, *_cuda_positions(cuda)


def _cuda_positions(cuda):
    """The same over the positions within lengths; every thread block that needs sum(w length) computes it itself."""

    @device_function
    def counted_weight(space, weights, n, positions, lengths_address, lengths_code):
        """sum(w length). weights IN (n,) or empty; space: shared memory, one element per thread."""
        total = like(space[0], 0.0)
        for i in range(cuda.threadIdx.x, n, THREADS):
            length = like(total, length_at(lengths_address, lengths_code, i, positions))
            total += length if weights.size == 0 else weights[i] * length
        return block_sum(space, total)

    @on_device(
        count_positions, blocks=lambda n, positions, size, lengths: grid_size(n * positions * size) if lengths else 0
    )
    def count(dy, weights, partials, n, positions, size, lengths_address, lengths_code):
        """From the gradient of the mean over all positions to that over those within lengths; 0 beyond.

        dy INOUT (n, positions, size), weights IN (n,) or empty; partials IN (1,): sum(w).
        """
        space = cuda.shared.array(THREADS, dy.dtype)
        counted = counted_weight(space, weights, n, positions, lengths_address, lengths_code)
        total_weight = partials[0] if weights.size > 0 else like(counted, n)
        ratio = total_weight * like(total_weight, positions) / counted
        for k in range(cuda.grid(1), n * positions * size, cuda.gridsize(1)):
            row = k // size
            counts = row % positions < length_at(lengths_address, lengths_code, row // positions, positions)
            dy[k] = dy[k] * ratio if counts else like(ratio, 0.0)

    @on_device(
        loss_mean_of_positions,
        blocks=lambda n, positions, rows: grid_size(n * positions * rows),
        scratch=lambda: MOST_BLOCKS + 1,
    )
    def partial_sums_of_positions(losses, weights, partials, n, positions, rows, lengths_address, lengths_code):
        """As `partial_sums`, of the losses at positions within lengths.

        losses IN (n, positions, rows), weights IN (n,) or empty; partials OUT (1 + blocks,).
        """
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
        """result = sum(w l) / (sum(w length) rows), from the partial sums.

        result OUT (1,), weights IN (n,) or empty; partials IN (1 + blocks,), of which the first is not read.
        """
        space, total = cuda.shared.array(THREADS, result.dtype), like(result[0], 0.0)
        for i in range(cuda.threadIdx.x, min((n * positions * rows + THREADS - 1) // THREADS, MOST_BLOCKS), THREADS):
            total += partials[1 + i]
        total = block_sum(space, total)
        weight_sum = counted_weight(space, weights, n, positions, lengths_address, lengths_code)
        if cuda.threadIdx.x == 0:
            result[0] = total / (weight_sum * like(weight_sum, rows))

    return count, partial_sums_of_positions, mean_of_positions


def cuda_weight_sum(cuda, loss):
    """The launch before a loss's others: sum(w) to partials[0], where there are weights."""

    @on_device(loss, blocks=lambda weights: 1 if weights else 0, scratch=lambda: 1)
    def weight_sum(weights, partials, n):
        """partials[0] = sum(w). weights IN (n,), partials OUT (1,)."""
        total = like(partials[0], 0.0)
        for i in range(cuda.threadIdx.x, n, THREADS):
            total += weights[i]
        total = block_sum(cuda.shared.array(THREADS, partials.dtype), total)
        if cuda.threadIdx.x == 0:
            partials[0] = total

    return weight_sum


def cuda_curvature(cuda, curvature, second):
    """The device kernels of dy' = second(y, t, d) y' w / (sum(w) rows size); d as in `cuda_elementwise`."""

    second = njit(second)

    @device_function
    def work(dy_dot, y_dot, y, target, weights, partials, n, rows, size, delta):
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            factor = row_factor(weights, partials, n, rows, k // size) / like(y[0], size)
            dy_dot[k] = factor * second(y[k], target[k], delta) * y_dot[k]

    if "delta_bits" in curvature.words:

        @on_device(curvature, blocks=lambda n, rows, size: grid_size(n * rows * size))
        def curved(dy_dot, y_dot, y, target, weights, partials, n, rows, size, delta_bits):
            """dy' = H y'.

            dy_dot OUT, y_dot, y and target IN (n * rows, size), weights IN (n,) or empty; partials IN (1,): sum(w).
            """
            work(dy_dot, y_dot, y, target, weights, partials, n, rows, size, real_of_word(y[0], delta_bits))

    else:

        @on_device(curvature, blocks=lambda n, rows, size: grid_size(n * rows * size))
        def curved(dy_dot, y_dot, y, target, weights, partials, n, rows, size):
            """dy' = H y'.

            dy_dot OUT, y_dot, y and target IN (n * rows, size), weights IN (n,) or empty; partials IN (1,): sum(w).
            """
            work(dy_dot, y_dot, y, target, weights, partials, n, rows, size, like(y[0], 0.0))

    return cuda_weight_sum(cuda, curvature), curved


def cuda_elementwise(cuda, loss, value, derivative):
    """The device kernels of a loss that is a mean over each row of value(y, t, d); derivative is d value / dy.

    d is the number that the row holds as delta_bits, 0 where it holds none.
    """

    value, derivative = njit(value), njit(derivative)

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
                        dy[j] = factor * derivative(y[j], target[j], delta)

    def teams(n, rows, size):
        return rows_of(n * rows, size)

    if "delta_bits" in loss.words:

        @on_device(loss, blocks=teams)
        def losses_and_gradient(losses, dy, y, target, weights, partials, n, rows, size, delta_bits):
            """l = mean over a row of value; dy = derivative w / (sum(w) rows size).

            losses OUT (n * rows,), dy OUT (n * rows, size) or empty, y and target IN (n * rows, size), weights IN (n,)
            or empty; partials IN (1,): sum(w).
            """
            work(losses, dy, y, target, weights, partials, n, rows, size, real_of_word(y[0], delta_bits))

    else:

        @on_device(loss, blocks=teams)
        def losses_and_gradient(losses, dy, y, target, weights, partials, n, rows, size):
            """l = mean over a row of value; dy = derivative w / (sum(w) rows size).

            losses OUT (n * rows,), dy OUT (n * rows, size) or empty, y and target IN (n * rows, size), weights IN (n,)
            or empty; partials IN (1,): sum(w).
            """
            work(losses, dy, y, target, weights, partials, n, rows, size, like(y[0], 0.0))

    return cuda_weight_sum(cuda, loss), losses_and_gradient
