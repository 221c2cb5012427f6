"""Mean squared error: l = mean over a sample's outputs of (y - t)^2."""

from dataclasses import dataclass
from typing import Any

from nbprop.compiler.jit import njit
from nbprop.losses.base import Loss, row_scale, total_weight
from nbprop.losses.elementwise import ElementwiseLoss, observed_kernels_of
from nbprop.numerics.partition import share
from nbprop.numerics.reductions import row_squares_between
from nbprop.numerics.scalars import like, scalar_function
from nbprop.program.kernel import kernel


@scalar_function
def squared_error(y, t, delta):
    """(y - t)^2, of one output; delta is not used."""
    return (y - t) * (y - t)


@scalar_function
def squared_error_derivative(y, t, delta):
    """Its derivative by y: 2 (y - t)."""
    return like(y, 2.0) * (y - t)


# Shorter rows are summed in index order, which is faster than combining partial sums.
_LONG = 32


@njit
def _squares(y, target):
    """sum((y - t)^2) over a row. y and target IN (size,)."""
    if y.size >= _LONG:
        return row_squares_between(y, target)
    total = like(y[0], 0.0)
    for j in range(y.size):
        total += (y[j] - target[j]) * (y[j] - target[j])
    return total


@kernel
def mse_kernel(losses, dy, y, target, weights, n, rows, size, part, parts):
    """l = mean over a row of (y - t)^2; dy = 2 (y - t) w / (sum(w) rows size).

    losses OUT (n * rows,), dy OUT (n * rows, size) or empty, y and target IN (n * rows, size), weights IN (n,) or
    empty.
    """
    first, last = share(n * rows, part, parts)
    if weights.size == 0:
        _equal_weights(losses, dy, y, target, n * rows, size, first, last)
        return
    weight_sum = total_weight(weights, n) * rows
    for i in range(first, last):
        y_row, t_row = y[i * size : (i + 1) * size], target[i * size : (i + 1) * size]
        losses[i] = _squares(y_row, t_row) / like(y[0], size)
        if dy.size > 0:
            factor = like(y[0], 2.0 * row_scale(weights, weight_sum, rows, i) / size)
            d_row = dy[i * size : (i + 1) * size]
            for j in range(size):
                d_row[j] = factor * (y_row[j] - t_row[j])


@njit
def _equal_weights(losses, dy, y, target, total_rows, size, first, last):
    """Rows first to last without weights, in flat loops, since with one output a row, a loop per row is overhead.

    losses OUT (total_rows,), dy OUT (total_rows, size) or empty, y and target IN (total_rows, size).
    """
    y, target = y[first * size : last * size], target[first * size : last * size]
    if dy.size > 0:
        dy = dy[first * size : last * size]
        factor = like(losses[0], 2.0 / (total_rows * size))
        for j in range(y.size):
            dy[j] = factor * (y[j] - target[j])
    losses = losses[first:last]
    if size == 1:
        for i in range(losses.size):
            losses[i] = (y[i] - target[i]) * (y[i] - target[i])
        return
    for i in range(losses.size):
        losses[i] = _squares(y[i * size : (i + 1) * size], target[i * size : (i + 1) * size]) / like(y[0], size)


@kernel
def mse_curvature(dy_dot, y_dot, y, target, weights, n, rows, size, part, parts):
    """dy_dot = 2 y_dot w / (sum(w) rows size).

    dy_dot OUT, y_dot, y and target IN (n * rows, size), weights IN (n,) or empty; y and target are not read.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    if weights.size == 0:
        _scaled(dy_dot[first * size : last * size], y_dot[first * size : last * size], 2.0 / (weight_sum * size))
        return
    for i in range(first, last):
        here = slice(i * size, (i + 1) * size)
        _scaled(dy_dot[here], y_dot[here], 2.0 * row_scale(weights, weight_sum, rows, i) / size)


@njit
def _scaled(y, x, factor):
    """y = factor x. y OUT, x IN (size,)."""
    factor = like(y[0], factor)
    for i in range(y.size):
        y[i] = factor * x[i]


@scalar_function
def squared_error_second(y, t, delta):
    """Its second derivative by y: 2."""
    return like(y, 2.0)


@dataclass(frozen=True, repr=False)
class MeanSquaredError(ElementwiseLoss):
    kind = "mse"
    kernel = mse_kernel
    curvature = mse_curvature
    fisher = mse_curvature
    observed = observed_kernels_of("mse", squared_error, squared_error_derivative, squared_error_second)
    observed_fisher = observed[1]

    def sizes(self, output_shape):
        return Loss.sizes(self, output_shape)

    def summands(self, y, target):
        return (y - target) ** 2 / y.shape[1]


def mse(*, missing: str | None = None, output_weights: Any = None) -> Loss:
    """Mean squared error: the mean over the batch and the outputs of (y - t)^2, in the target's unit squared.

    Targets are any finite numbers.

    missing : "ignore" or None
        "ignore": targets that are NaN are missing, and the mean runs over the others, as it runs over the positions
        within lengths.
    output_weights : numbers or None
        How much each output of the last axis counts, or each output of a sample, (outputs,) or in the output's shape;
        the mean over the outputs is sum(f l) / sum(f).

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan = nbprop.plan(net, loss=nbprop.mse())  # or loss="mse"
    >>> nbprop.value(plan, np.zeros(2), np.ones((1, 1)), np.full((1, 1), 3.0), nbprop.workspace(plan))
    9.0
    >>> loss = nbprop.mse(missing="ignore", output_weights=(1.0, 0.5))
    """
    return MeanSquaredError(missing=missing, output_weights=output_weights)
