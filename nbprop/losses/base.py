"""What a loss is: a kernel that gives each row's loss l and dl/dy together, and their weighted mean.

The loss of a call is sum(w l) / sum(w) over the samples, in nats for likelihoods; without weights every w is 1. Sums
run in index order in float64, so their bits do not depend on threads.
"""

import math

from nbprop.jit import kernel, njit

LOSSES: dict[str, type["Loss"]] = {}


@njit
def row_scale(weights, n, rows, row):
    """The factor w / (sum(w) * rows) of one row's gradient; `rows` rows make a sample. Returns float64."""
    if weights.size == 0:
        return 1.0 / (n * rows)
    return weights[row // rows] / (total_weight(weights, n) * rows)


@njit
def total_weight(weights, n):
    """sum(w) in float64, in index order; n without weights."""
    if weights.size == 0:
        return float(n)
    total = 0.0
    for i in range(n):
        total += weights[i]
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


class Loss:
    """A loss's description: a frozen dataclass; `kernel` computes losses and gradient, `curvature` H y'.

    `fisher` computes E[H] y', the expectation over targets drawn from the model, where the loss is the negative
    logarithm of a likelihood; it is `curvature` where H does not depend on the target.
    """

    kind = ""
    kernel = None
    curvature = None
    fisher = None

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
        build.emit(self.kernel, (losses, dy), (y.buffer, target, weights), (rows, *self.sizes(y.shape)))
        build.emit(loss_mean, (), (losses, weights), (rows,))

    def lower_curvature(self, build, y, y_dot, dy_dot, expected=False):
        """Emit dy_dot = H y_dot, H being the Hessian of the loss by the output, or its expectation E[H]."""
        rows = self.rows(y.shape)
        weights = build.outside("weights", build.batch)
        shape, classes = self.target(y.shape)
        target = None if classes else build.outside("target", build.batch * math.prod(shape))
        reads = (y_dot, y.buffer, target, weights)
        build.emit(self.fisher if expected else self.curvature, (dy_dot,), reads, (rows, *self.sizes(y.shape)))
