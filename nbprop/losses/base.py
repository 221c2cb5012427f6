"""What a loss is: a kernel that computes the loss l of each row together with dl/dy, and their weighted mean.

The loss of a call is sum(w l) / sum(w) over the samples, in nats for likelihoods; without weights every w is 1. Sums
run in index order in float64, so their bits do not depend on threads.

If the output is a sequence, (n, T, ...) with the T of the network's input, and the call has `lengths`, the mean runs
over the positions within lengths: the sum over samples i and positions t < length_i of w_i l_it, divided by the sum of
w_i length_i. So a sample weighs in proportion to its length. Positions beyond have neither loss nor gradient, whatever
target and output hold there (class targets must still be classes). The kernels of a loss know nothing of this:
`count_positions` converts the gradient of the mean over all positions into that over the positions within lengths.

Dimensions: n samples; rows rows a sample, each with size (or classes) outputs; positions of a sequence.
"""

import math

from nbprop.compiler.jit import njit
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at
from nbprop.program.kernel import Kernel, kernel

LOSSES: dict[str, type["Loss"]] = {}


@njit
def row_scale(weights, weight_sum, rows, row):
    """w / (sum(w) rows), the factor of the gradient of one row, where a sample has `rows` rows; float64.

    weight_sum: ``total_weight(weights, n) * rows``, which a kernel computes once, and not for each row. weights IN (n,)
    or empty.
    """
    if weights.size == 0:
        return 1.0 / weight_sum
    return weights[row // rows] / weight_sum


@njit
def total_weight(weights, n):
    """sum(w) in float64, in index order; n without weights. weights IN (n,) or empty."""
    if weights.size == 0:
        return float(n)
    total = 0.0
    for i in range(n):
        total += weights[i]
    return total


@njit
def _counted_weight(weights, n, positions, lengths_address, lengths_code):
    """sum(w length) in float64, in index order. weights IN (n,) or empty."""
    total = 0.0
    for i in range(n):
        length = float(length_at(lengths_address, lengths_code, i, positions))
        total += length if weights.size == 0 else weights[i] * length
    return total


@kernel
def loss_mean(losses, weights, n, rows):
    """sum(w l) / sum(w), where l is the mean over the rows of a sample.

    losses IN (n * rows,), weights IN (n,) or empty.
    """
    total = 0.0
    for i in range(n):
        sample = 0.0
        for r in range(rows):
            sample += losses[i * rows + r]
        total += sample * (weights[i] if weights.size > 0 else 1.0)
    return total / (total_weight(weights, n) * rows)


@kernel
def loss_mean_of_positions(losses, weights, n, positions, rows, lengths_address, lengths_code):
    """The weighted mean of the losses at all positions within lengths.

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
    """From the gradient of the mean over all positions to that over those within lengths; 0 beyond.

    dy INOUT (n, positions, size), weights IN (n,) or empty. Also for the product with the curvature.
    """
    if lengths_address == 0:
        return
    all_positions = total_weight(weights, n) * positions
    ratio = like(dy[0], all_positions / _counted_weight(weights, n, positions, lengths_address, lengths_code))
    start, stop = share(n * positions, part, parts)
    for row in range(start, stop):
        here = dy[row * size : (row + 1) * size]
        if row % positions < length_at(lengths_address, lengths_code, row // positions, positions):
            for j in range(size):
                here[j] *= ratio
        else:
            here[:] = like(ratio, 0.0)


class Loss:
    """The description of a loss, a frozen dataclass: `kernel` computes losses and gradient, `curvature` H y'.

    `fisher` computes E[H] y', the expectation over targets drawn from the model, if the loss is a negative log
    likelihood; it is `curvature` if H does not depend on the target.
    """

    kind = ""
    kernel: Kernel | None = None
    curvature: Kernel | None = None
    fisher: Kernel | None = None
    target_range = (-math.inf, math.inf)  # range of a real target, ends included; others are refused
    applies: tuple = ()  # activations that the loss applies to the output itself
    has_classes = False  # whether targets are classes (or labels, 0 and 1): it has classes_of and probabilities_of then
    exact_gradient = True  # whether the gradient is that of the value; a method may hold some of it constant

    @property
    def couples_samples(self):
        """Whether a sample's part of the gradient depends on the others' targets."""
        return False

    @property
    def ignored(self):
        """An integer target that is no class, and has no loss; 0 for none."""
        return 0

    def classes_of(self, y):
        """The likeliest target for outputs (n, *output_shape), int64 of the target's shape."""
        raise NotImplementedError(f"loss {self.kind} has no classes")

    def probabilities_of(self, y):
        """The probabilities of the classes, or of the labels, as the loss takes them from outputs; y's shape."""
        raise NotImplementedError(f"loss {self.kind} has no classes")

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if cls.kind:
            LOSSES[cls.kind] = cls

    def target(self, output_shape):
        """(shape of one sample's target, number of classes or 0 when it is real-valued)."""
        return output_shape, 0

    def counted(self, target, weights, lengths=None):
        """The weight of a chunk of samples in the mean over several: sum(w), or their number.

        lengths (n,): how many positions of each sample count, for losses that look at targets.
        """
        return len(target) if weights is None else float(weights.sum(dtype=float))

    def rows(self, output_shape):
        """The number of rows, along the last axis, of one sample."""
        return math.prod(output_shape[:-1])

    def sizes(self, output_shape):
        """The kernel's sizes after rows."""
        return (output_shape[-1] if output_shape else 1,)

    def summands(self, y, target):
        """(rows, m): the terms whose sum is the loss of each row, as computed, for `rounding_error`.

        y (rows, outputs) float64; target (rows, targets of a row) float64, or (rows,) integers for classes.
        """
        raise NotImplementedError(f"loss {self.kind} does not implement summands")

    def lower(self, build, y, dy):
        """Emit the loss of y and, unless dy is None, its gradient with respect to y into dy."""
        rows = self.rows(y.shape)
        losses = build.buffer(build.batch * rows)
        weights = build.outside("weights", build.batch)
        shape, classes = self.target(y.shape)
        target = None if classes else build.outside("target", build.batch * math.prod(shape))
        build.emit(self.kernel, (losses, dy), (y.buffer, target, weights), (rows, *self.sizes(y.shape)))
        self.lower_mean(build, y, dy, losses, weights)

    def lower_mean(self, build, y, dy, losses, weights):
        """Emit the mean of the losses of all rows; where lengths may cut them, dy becomes the gradient of that mean."""
        rows, positions = self.rows(y.shape), build.positions_of(y.shape)
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
        self.lower_positions(build, y, weights, dy_dot)

    def lower_positions(self, build, y, weights, dy_dot):
        """Emit what makes of the curvature of the mean over all positions that of those within lengths."""
        positions = build.positions_of(y.shape)
        if positions > 1:
            build.emit(count_positions, (), (weights,), (positions, y.size // positions), inplace=(dy_dot,))
