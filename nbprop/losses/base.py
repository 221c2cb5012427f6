"""What a loss is: a kernel that gives each row's loss l and dl/dy together, and their weighted mean.

The loss of a call is sum(w l) / sum(w) over the samples, in nats for likelihoods; without weights every w is 1. Sums
run in index order in float64, so their bits do not depend on threads.

Where the output is a sequence, (n, T, ...) with the T of the network's input, and the call brings `lengths`, the mean
runs over the positions that count: the sum over samples i and positions t below length_i of w_i l_it, divided by the
sum of w_i length_i. A long sample weighs as much as its positions. Positions beyond have no loss and no gradient,
whatever target and output hold there (class targets must still be classes). Nothing of this is in a loss's own kernels:
`count_positions` turns the gradient of the mean over all positions into that over those which count.
"""

import math

from nbprop.arguments import length_at
from nbprop.jit import kernel, njit, share
from nbprop.numerics.scalars import like

LOSSES: dict[str, type["Loss"]] = {}


@njit
def row_scale(weights, mass, rows, row):
    """The factor w / (sum(w) rows) of one row's gradient; `rows` rows make a sample. Returns float64.

    mass: ``total_weight(weights, n) * rows``, which a kernel computes once, and not for each row.
    """
    if weights.size == 0:
        return 1.0 / mass
    return weights[row // rows] / mass


@njit
def total_weight(weights, n):
    """sum(w) in float64, in index order; n without weights."""
    if weights.size == 0:
        return float(n)
    total = 0.0
    for i in range(n):
        total += weights[i]
    return total


@njit
def _counted_weight(weights, n, positions, lengths_address, lengths_code):
    """sum(w length) in float64, in index order."""
    total = 0.0
    for i in range(n):
        length = float(length_at(lengths_address, lengths_code, i, positions))
        total += length if weights.size == 0 else weights[i] * length
    return total


@kernel
def loss_mean(losses, weights, n, rows):
    """sum(w l) / sum(w), l being the mean of a sample's rows. losses IN (n * rows,), weights IN (n,) or empty."""
    total = 0.0
    for i in range(n):
        sample = 0.0
        for r in range(rows):
            sample += losses[i * rows + r]
        total += sample * (weights[i] if weights.size > 0 else 1.0)
    return total / (total_weight(weights, n) * rows)


@kernel
def loss_mean_of_positions(losses, weights, n, positions, rows, lengths_address, lengths_code):
    """The mean of the losses of all positions that count, weighted by their samples.

    losses IN (n, positions, rows), weights IN (n,) or empty.
    """
    total = 0.0
    for i in range(n):
        sample, first = 0.0, i * positions * rows
        for r in range(first, first + length_at(lengths_address, lengths_code, i, positions) * rows):
            sample += losses[r]
        total += sample * (weights[i] if weights.size > 0 else 1.0)
    return total / (_counted_weight(weights, n, positions, lengths_address, lengths_code) * rows)


@kernel
def count_positions(dy, weights, n, positions, size, lengths_address, lengths_code, part, parts):
    """From the gradient of the mean over all positions to that over those that count, 0 at the others.

    dy INOUT (n, positions, size), weights IN (n,) or empty. Also the curvature's product.
    """
    if lengths_address == 0:
        return
    whole = total_weight(weights, n) * positions
    ratio = like(dy[0], whole / _counted_weight(weights, n, positions, lengths_address, lengths_code))
    start, stop = share(n * positions, part, parts)
    for row in range(start, stop):
        here = dy[row * size : (row + 1) * size]
        if row % positions < length_at(lengths_address, lengths_code, row // positions, positions):
            for j in range(size):
                here[j] *= ratio
        else:
            here[:] = like(ratio, 0.0)


def cuda_kernels(cuda):
    """The device's mean: partial sums by blocks, and their sum in a second launch; sum(w) stands in partials[0]."""
    from nbprop.cuda.groups import block_sum
    from nbprop.cuda.kernels import on_device
    from nbprop.cuda.toolkit import MOST_BLOCKS, THREADS, cover

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
    from nbprop.cuda.groups import block_sum
    from nbprop.cuda.kernels import on_device
    from nbprop.cuda.toolkit import MOST_BLOCKS, THREADS, cover, device_function

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
    from nbprop.cuda.groups import block_sum
    from nbprop.cuda.kernels import on_device
    from nbprop.cuda.toolkit import THREADS

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
    from nbprop.cuda.functions import real_of_word
    from nbprop.cuda.groups import row_factor, rows_of, team_of, team_sum
    from nbprop.cuda.kernels import on_device
    from nbprop.cuda.toolkit import THREADS, device_function

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


class Loss:
    """A loss's description: a frozen dataclass; `kernel` computes losses and gradient, `curvature` H y'.

    `fisher` computes E[H] y', the expectation over targets drawn from the model, where the loss is the negative
    logarithm of a likelihood; it is `curvature` where H does not depend on the target.
    """

    kind = ""
    kernel = None
    curvature = None
    fisher = None
    target_range = (-math.inf, math.inf)  # where a real target lies, ends included: others are refused
    applies: tuple = ()  # names of activations that turn an output into what the loss itself makes of it

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        LOSSES[cls.kind] = cls

    def target(self, output_shape):
        """(shape of one sample's target, number of classes or 0 when it is real-valued)."""
        return output_shape, 0

    def rows(self, output_shape):
        """How many rows of the last axis one sample has."""
        return math.prod(output_shape[:-1])

    def sizes(self, output_shape):
        """The kernel's sizes after rows."""
        return (output_shape[-1] if output_shape else 1,)

    def summands(self, y, target):
        """(rows, m): what the losses of rows are summed up from, as computed, for `rounding_error`.

        y (rows, outputs) float64; target (rows, of one row) float64, or (rows,) integers for classes.
        """
        raise NotImplementedError(f"loss {self.kind} does not tell what it is summed up from")

    def lower(self, build, y, dy):
        """Emit the loss of y and, unless dy is None, its gradient with respect to y into dy."""
        rows = self.rows(y.shape)
        losses = build.buffer(build.batch * rows)
        weights = build.outside("weights", build.batch)
        shape, classes = self.target(y.shape)
        target = None if classes else build.outside("target", build.batch * math.prod(shape))
        positions = build.positions_of(y.shape)
        build.emit(self.kernel, (losses, dy), (y.buffer, target, weights), (rows, *self.sizes(y.shape)))
        if positions == 1:
            build.emit(loss_mean, (), (losses, weights), (rows,))
            return
        if dy is not None:
            build.emit(count_positions, (), (weights,), (positions, y.size // positions), inplace=(dy,))
        build.emit(loss_mean_of_positions, (), (losses, weights), (positions, rows // positions))

    def lower_curvature(self, build, y, y_dot, dy_dot, expected=False):
        """Emit dy_dot = H y_dot, H being the Hessian of the loss by the output, or its expectation E[H]."""
        rows = self.rows(y.shape)
        weights = build.outside("weights", build.batch)
        shape, classes = self.target(y.shape)
        target = None if classes else build.outside("target", build.batch * math.prod(shape))
        reads = (y_dot, y.buffer, target, weights)
        build.emit(self.fisher if expected else self.curvature, (dy_dot,), reads, (rows, *self.sizes(y.shape)))
        positions = build.positions_of(y.shape)
        if positions > 1:
            build.emit(count_positions, (), (weights,), (positions, y.size // positions), inplace=(dy_dot,))
