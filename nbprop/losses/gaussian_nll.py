"""Negative log-likelihood of a Gaussian with predicted mean and log variance (Nix and Weigend 1994)."""

from dataclasses import dataclass

import numpy as np

from nbprop.losses.base import Loss, row_scale, total_weight
from nbprop.numerics.elementary import exp
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel


@kernel
def gaussian_nll_kernel(losses, dy, y, target, weights, n, rows, size, part, parts):
    """l = mean over k of (s + (t - m)^2 e^-s) / 2, where a row of y holds k means m, then k log variances s.

    losses OUT (n * rows,), dy OUT (n * rows, 2 size) or empty, y IN (n * rows, 2 size), target IN (n * rows, size),
    weights IN (n,) or empty; size is k. The constant log(2 pi) / 2 is left out.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    half = like(y[0], 0.5)
    for i in range(first, last):
        y_row, t_row = y[2 * i * size : 2 * (i + 1) * size], target[i * size : (i + 1) * size]
        total = like(half, 0.0)
        for j in range(size):
            error = y_row[j] - t_row[j]
            total += half * (y_row[size + j] + error * error * exp(-y_row[size + j]))
        losses[i] = total / like(total, size)
        if dy.size > 0:
            factor = like(half, row_scale(weights, weight_sum, rows, i) / size)
            d_row = dy[2 * i * size : 2 * (i + 1) * size]
            for j in range(size):
                error = y_row[j] - t_row[j]
                precision = exp(-y_row[size + j])
                d_row[j] = factor * error * precision
                d_row[size + j] = factor * half * (like(half, 1.0) - error * error * precision)


@kernel
def gaussian_nll_curvature(dy_dot, y_dot, y, target, weights, n, rows, size, part, parts):
    """dy_dot = H y_dot: with e = m - t and r = exp(-s), H = [[r, -e r], [-e r, e^2 r / 2]] for each target.

    dy_dot OUT, y_dot and y IN (n * rows, 2 size), target IN (n * rows, size), weights IN (n,) or empty; size is k.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    half = like(y[0], 0.5)
    for i in range(first, last):
        here = slice(2 * i * size, 2 * (i + 1) * size)
        y_row, change, out, t_row = y[here], y_dot[here], dy_dot[here], target[i * size : (i + 1) * size]
        factor = like(half, row_scale(weights, weight_sum, rows, i) / size)
        for j in range(size):
            error, precision = y_row[j] - t_row[j], exp(-y_row[size + j])
            out[j] = factor * precision * (change[j] - error * change[size + j])
            out[size + j] = factor * precision * error * (half * error * change[size + j] - change[j])


@kernel
def gaussian_nll_fisher(dy_dot, y_dot, y, target, weights, n, rows, size, part, parts):
    """dy_dot = E[H] y_dot: with r = exp(-s), E[H] = [[r, 0], [0, 1 / 2]], since E[e] = 0 and E[e^2] = 1 / r.

    dy_dot OUT, y_dot and y IN (n * rows, 2 size), target IN (n * rows, size), weights IN (n,) or empty; size is k;
    target is not read.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    half = like(y[0], 0.5)
    for i in range(first, last):
        here = slice(2 * i * size, 2 * (i + 1) * size)
        y_row, change, out = y[here], y_dot[here], dy_dot[here]
        factor = like(half, row_scale(weights, weight_sum, rows, i) / size)
        for j in range(size):
            out[j] = factor * exp(-y_row[size + j]) * change[j]
            out[size + j] = factor * half * change[size + j]


@dataclass(frozen=True)
class GaussianNLL(Loss):
    kind = "gaussian_nll"
    kernel = gaussian_nll_kernel
    curvature = gaussian_nll_curvature
    fisher = gaussian_nll_fisher

    def target(self, output_shape):
        if not output_shape or output_shape[-1] % 2:
            raise ValueError(
                f"{self.kind}: the network's last axis holds k means and k log variances, so it must be even; "
                f"got {output_shape}"
            )
        return (*output_shape[:-1], output_shape[-1] // 2), 0

    def summands(self, y, target):
        mean, log_variance = np.split(y, 2, axis=1)
        return np.concatenate([log_variance, (target - mean) ** 2 * np.exp(-log_variance)], 1) / y.shape[1]

    def sizes(self, output_shape):
        return (output_shape[-1] // 2,)


def gaussian_nll() -> Loss:
    """Gaussian negative log-likelihood, mean over the batch and the k targets, in nats without log(2 pi) / 2.

    The output (n, 2k) is k means, then k log variances; the target is (n, k), any finite numbers.

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(2))  # a mean and the logarithm of a variance
    >>> plan = nbprop.plan(net, loss="gaussian_nll")
    >>> round(nbprop.value(plan, np.zeros(4), np.ones((1, 1)), np.zeros((1, 1)), nbprop.workspace(plan)), 6)
    0.0
    """
    return GaussianNLL()
