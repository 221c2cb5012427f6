"""The pinball loss of quantiles (Koenker and Bassett 1978): l = tau (t - y) above, (tau - 1) (t - y) below."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nbprop.losses.base import Loss, row_scale, total_weight
from nbprop.losses.elementwise import put_number
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel
from nbprop.validation import check_number


@kernel
def quantile_kernel(losses, dy, y, target, weights, taus, n, rows, size, part, parts):
    """l = mean over a row of max(tau (t - y), (tau - 1) (t - y)); dy = (-tau or 1 - tau) w / (sum(w) rows size).

    losses OUT (n * rows,), dy OUT (n * rows, size) or empty, y IN (n * rows, size), target IN (n * rows, size / q),
    weights IN (n,) or empty, taus IN (q,); q outputs in a row belong to each target.
    """
    first, last = share(n * rows, part, parts)
    weight_sum, q, zero = total_weight(weights, n) * rows, taus.size, like(y[0], 0.0)
    for i in range(first, last):
        y_row, t_row, total = y[i * size : (i + 1) * size], target[i * size // q : (i + 1) * size // q], zero
        factor = like(zero, row_scale(weights, weight_sum, rows, i) / size)
        for j in range(size):
            error, tau = t_row[j // q] - y_row[j], taus[j % q]
            slope = tau if error >= zero else tau - like(tau, 1.0)
            total += slope * error
            if dy.size > 0:
                dy[i * size + j] = -factor * (zero if error == zero else slope) + (error - error)
        losses[i] = total / like(total, size)


@kernel
def zero_curvature(dy_dot, y_dot, n, size, part, parts):
    """dy_dot = 0, the curvature of straight lines. dy_dot OUT, y_dot IN (n, size); y_dot is not read."""
    start, stop = share(n, part, parts)
    dy_dot[start * size : stop * size] = like(dy_dot[0], 0.0)


@dataclass(frozen=True)
class Quantile(Loss):
    quantiles: tuple[float, ...] = (0.1, 0.9)
    kind = "quantile"
    kernel = quantile_kernel
    curvature = zero_curvature

    def __post_init__(self):
        given = self.quantiles
        if not isinstance(given, (tuple, list)):
            given = (given,)
        found = tuple(check_number("quantile: quantiles", tau, 0.0, 1.0, "()") for tau in given)
        if not found or any(a >= b for a, b in pairwise(found)):
            raise ValueError(f"quantile: quantiles must rise, got {self.quantiles}")
        object.__setattr__(self, "quantiles", found)

    def target(self, output_shape):
        q = len(self.quantiles)
        if not output_shape or output_shape[-1] % q:
            raise ValueError(
                f"quantile: the network's last axis holds {q} quantiles of each target, so it must be a multiple of "
                f"{q}; got {output_shape}"
            )
        return (*output_shape[:-1], output_shape[-1] // q), 0

    def lower(self, build, y, dy):
        rows, size, q = self.rows(y.shape), y.shape[-1], len(self.quantiles)
        losses, weights, taus = build.buffer(build.batch * rows), build.outside("weights", build.batch), build.buffer(q)
        for at, tau in enumerate(self.quantiles):
            build.emit(put_number, (), (), (at, int(np.float64(tau).view(np.int64))), inplace=(taus,))
        target = build.outside("target", build.batch * rows * size // q)
        build.emit(quantile_kernel, (losses, dy), (y.buffer, target, weights, taus), (rows, size))
        self.lower_mean(build, y, dy, losses, weights)

    def lower_curvature(self, build, y, y_dot, dy_dot, expected=False):
        build.emit(zero_curvature, (dy_dot,), (y_dot,), (y.size,))

    def summands(self, y, target):
        taus = np.resize(self.quantiles, y.shape[1])
        error = np.repeat(target, len(self.quantiles), 1) - y
        return np.maximum(taus * error, (taus - 1) * error) / y.shape[1]


def quantile(quantiles: float | tuple[float, ...] = (0.1, 0.9)) -> Loss:
    """The pinball loss, mean over the batch and the outputs, whose minimisers are quantiles of the targets.

    quantiles : one or several rising numbers within 0..1

    The output (n, k q) is q quantiles of the first target, then of the next; the target is (n, k), any finite numbers.
    End the network in `nbprop.ascending(q)`, and they cannot cross.

    >>> import nbprop, numpy as np
    >>> plan = nbprop.plan(nbprop.network((1,), nbprop.dense(2)), loss=nbprop.quantile((0.1, 0.9)))
    >>> x, target = np.ones((1, 1)), np.array([[1.0]])
    >>> round(nbprop.value(plan, np.zeros(4), x, target, nbprop.workspace(plan)), 6)  # the mean of 0.1 and 0.9
    0.5
    """
    return Quantile(quantiles)  # type: ignore[arg-type]
