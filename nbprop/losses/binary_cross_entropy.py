"""Binary cross-entropy on logits: l = softplus(z) - t z, whose gradient is sigmoid(z) - t."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nbprop.losses.base import Loss, row_scale, total_weight
from nbprop.losses.elementwise import ElementwiseLoss, observed_kernels_of
from nbprop.numerics.elementary import sigmoid, softplus
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like, scalar_function
from nbprop.program.kernel import kernel


@scalar_function
def cross_entropy(y, t, delta):
    """softplus(y) - t y, of one output; delta is not used."""
    return softplus(y) - t * y


@scalar_function
def cross_entropy_derivative(y, t, delta):
    """Its derivative by y: sigmoid(y) - t."""
    return sigmoid(y) - t


@kernel
def binary_cross_entropy_kernel(losses, dy, y, target, weights, n, rows, size, part, parts):
    """l = mean over a row of softplus(z) - t z; dy = (sigmoid(z) - t) w / (sum(w) rows size), with z = y.

    losses OUT (n * rows,), dy OUT (n * rows, size) or empty, y and target IN (n * rows, size), weights IN (n,) or
    empty. softplus(z) - t z never overflows, and keeps its digits for large |z|.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    for i in range(first, last):
        y_row, t_row = y[i * size : (i + 1) * size], target[i * size : (i + 1) * size]
        total = like(y[0], 0.0)
        for j in range(size):
            total += cross_entropy(y_row[j], t_row[j], total)
        losses[i] = total / like(total, size)
        if dy.size > 0:
            factor = like(total, row_scale(weights, weight_sum, rows, i) / size)
            d_row = dy[i * size : (i + 1) * size]
            for j in range(size):
                d_row[j] = factor * cross_entropy_derivative(y_row[j], t_row[j], total)


@kernel
def binary_cross_entropy_curvature(dy_dot, y_dot, y, target, weights, n, rows, size, part, parts):
    """dy_dot = p (1 - p) y_dot w / (sum(w) rows size), with p = sigmoid(y).

    dy_dot OUT, y_dot, y and target IN (n * rows, size), weights IN (n,) or empty; target is not read.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    for i in range(first, last):
        factor = like(y[0], row_scale(weights, weight_sum, rows, i) / size)
        for j in range(i * size, (i + 1) * size):
            p = sigmoid(y[j])
            dy_dot[j] = factor * p * (like(p, 1.0) - p) * y_dot[j]


@scalar_function
def cross_entropy_second(y, t, delta):
    """Its second derivative by y: p (1 - p), with p = sigmoid(y)."""
    p = sigmoid(y)
    return p * (like(p, 1.0) - p)


@dataclass(frozen=True, repr=False)
class BinaryCrossEntropy(ElementwiseLoss):
    kind = "binary_cross_entropy"
    kernel = binary_cross_entropy_kernel
    curvature = binary_cross_entropy_curvature
    fisher = binary_cross_entropy_curvature
    target_range = (0.0, 1.0)
    applies = ("sigmoid", "softmax")
    observed = observed_kernels_of(
        "binary_cross_entropy", cross_entropy, cross_entropy_derivative, cross_entropy_second
    )
    observed_fisher = observed[1]
    has_classes = True

    def classes_of(self, y):
        return (y > 0).astype(np.int64)

    def probabilities_of(self, y):
        return np.exp(-np.logaddexp(0, -y))

    def sizes(self, output_shape):
        return Loss.sizes(self, output_shape)

    def summands(self, y, target):
        return np.concatenate([np.logaddexp(y, 0), target * y], 1) / y.shape[1]


def binary_cross_entropy(*, missing: str | None = None, output_weights: Any = None) -> Loss:
    """Binary cross-entropy on logits, mean over the batch and the outputs, in nats.

    Targets lie in 0..1; others are refused. missing, output_weights: as of `mse`.

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan = nbprop.plan(net, loss="binary_cross_entropy")
    >>> round(nbprop.value(plan, np.zeros(2), np.ones((1, 1)), np.ones((1, 1)), nbprop.workspace(plan)), 6)  # log 2
    0.693147
    """
    return BinaryCrossEntropy(missing=missing, output_weights=output_weights)
