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

from nbprop.compiler.jit import njit
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at
from nbprop.program.kernel import kernel

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
