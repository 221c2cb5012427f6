"""Huber's loss (Huber 1964): e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2), with e = y - t."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbprop.compiler.intrinsics import double_of_word
from nbprop.losses.base import Loss, row_scale, total_weight
from nbprop.losses.elementwise import ElementwiseLoss, observed_kernels_of
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like, scalar_function
from nbprop.program.kernel import kernel
from nbprop.validation import number


@scalar_function
def huber_value(y, t, delta):
    """Huber's loss of one output."""
    error, half = abs(y - t), like(y, 0.5)
    return delta * (error - half * delta) if error > delta else half * error * error


@scalar_function
def huber_derivative(y, t, delta):
    """Its derivative by y: clip(y - t, -delta, delta)."""
    error = y - t
    error = delta if error > delta else error
    return -delta if error < -delta else error


@kernel
def huber_kernel(losses, dy, y, target, weights, n, rows, size, delta_bits, part, parts):
    """l = mean over a row of Huber's loss; dy = clip(y - t, -delta, delta) w / (sum(w) rows size).

    losses OUT (n * rows,), dy OUT (n * rows, size) or empty, y and target IN (n * rows, size), weights IN (n,) or
    empty; delta_bits: delta as the bits of a float64.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    delta = like(y[0], double_of_word(delta_bits))
    for i in range(first, last):
        y_row, t_row = y[i * size : (i + 1) * size], target[i * size : (i + 1) * size]
        total = like(delta, 0.0)
        for j in range(size):
            total += huber_value(y_row[j], t_row[j], delta)
        losses[i] = total / like(total, size)
        if dy.size > 0:
            factor = like(delta, row_scale(weights, weight_sum, rows, i) / size)
            d_row = dy[i * size : (i + 1) * size]
            for j in range(size):
                d_row[j] = factor * huber_derivative(y_row[j], t_row[j], delta)


@kernel
def huber_curvature(dy_dot, y_dot, y, target, weights, n, rows, size, delta_bits, part, parts):
    """dy_dot = y_dot w / (sum(w) rows size) where |y - t| <= delta, else 0.

    dy_dot OUT, y_dot, y and target IN (n * rows, size), weights IN (n,) or empty; delta_bits: delta as the bits of a
    float64.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    delta = like(y[0], double_of_word(delta_bits))
    for i in range(first, last):
        factor = like(delta, row_scale(weights, weight_sum, rows, i) / size)
        for j in range(i * size, (i + 1) * size):
            dy_dot[j] = factor * y_dot[j] if abs(y[j] - target[j]) <= delta else like(delta, 0.0)


@kernel
def huber_fisher(dy_dot, y_dot, y, target, weights, n, rows, size, delta_bits, part, parts):
    """dy_dot = c y_dot w / (sum(w) rows size), c = P(|e| <= delta) under the density exp(-l(e)) / Z.

    Huber 1964, section 4; Z = sqrt(2 pi) erf(delta / sqrt 2) + 2 exp(-delta^2 / 2) / delta.

    dy_dot OUT, y_dot, y and target IN (n * rows, size), weights IN (n,) or empty; delta_bits: delta as the bits of a
    float64; target is not read.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    delta = double_of_word(delta_bits)
    inside = math.sqrt(2.0 * math.pi) * math.erf(delta * math.sqrt(0.5))
    chance = inside / (inside + 2.0 * math.exp(-0.5 * delta * delta) / delta)
    for i in range(first, last):
        factor = like(y[0], chance * row_scale(weights, weight_sum, rows, i) / size)
        for j in range(i * size, (i + 1) * size):
            dy_dot[j] = factor * y_dot[j]


@scalar_function
def huber_second(y, t, delta):
    """Its second derivative by y: 1 where |y - t| <= delta, else 0."""
    return like(y, 1.0) if abs(y - t) <= delta else like(y, 0.0)


@scalar_function
def huber_expected_second(y, t, delta):
    """The mean of the second derivative under the density exp(-l(e)) / Z, as in `huber_fisher`."""
    limit = float(delta)
    inside = math.sqrt(2.0 * math.pi) * math.erf(limit * math.sqrt(0.5))
    return like(y, inside / (inside + 2.0 * math.exp(-0.5 * limit * limit) / limit))


@dataclass(frozen=True, repr=False)
class Huber(ElementwiseLoss):
    delta: float = 1.0
    kind = "huber"
    kernel = huber_kernel
    curvature = huber_curvature
    fisher = huber_fisher
    observed = observed_kernels_of("huber", huber_value, huber_derivative, huber_second)
    observed_fisher = observed_kernels_of("huber_fisher", huber_value, huber_derivative, huber_expected_second)[1]

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "delta", number(0, ends="()")("huber: delta", self.delta))

    @property
    def number(self):
        return self.delta

    def summands(self, y, target):
        error = np.abs(y - target)
        small = np.minimum(error, self.delta)
        return small * (error - small / 2) / y.shape[1]


def huber(delta: float = 1.0, *, missing: str | None = None, output_weights: Any = None) -> Loss:
    """Huber's loss, mean over the batch and the outputs: quadratic up to |y - t| = delta, linear beyond.

    Targets are any finite numbers. missing, output_weights: as of `mse`.

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan = nbprop.plan(net, loss=nbprop.huber(delta=1.0))
    >>> nbprop.value(plan, np.zeros(2), np.ones((1, 1)), np.full((1, 1), 3.0), nbprop.workspace(plan))
    2.5
    """
    return Huber(delta, missing=missing, output_weights=output_weights)
