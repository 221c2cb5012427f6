"""Gaussian negative log-likelihood, its gradient weighted by a power of the predicted variance (Seitzer et al. 2022).

Each target's l = v^beta (s + (t - m)^2 / v) / 2, v = exp(s), where the weight v^beta is a constant for the gradient
(stop-gradient in equation 4). So the gradient is v^beta times that of `gaussian_nll`, and not that of the value:
methods that look at both, such as line searches, do not suit it. Second derivatives take the weight as a constant, too,
as PyTorch's do: they are v^beta times those of `gaussian_nll`.
"""

from dataclasses import dataclass

import numpy as np

from nbprop.compiler.intrinsics import double_of_word
from nbprop.losses.base import Loss, row_scale, total_weight
from nbprop.losses.gaussian_nll import GaussianNLL
from nbprop.numerics.elementary import exp
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel
from nbprop.validation import number


@kernel
def beta_nll_kernel(losses, dy, y, target, weights, n, rows, size, delta_bits, part, parts):
    """l = mean over k of v^beta (s + e^2 / v) / 2, where a row of y holds k means m, then k log variances s.

    losses OUT (n * rows,), dy OUT (n * rows, 2 size) or empty, y IN (n * rows, 2 size), target IN (n * rows, size),
    weights IN (n,) or empty; size is k; delta_bits: beta as the bits of a float64. dy takes v^beta as a constant.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    beta, half, one = like(y[0], double_of_word(delta_bits)), like(y[0], 0.5), like(y[0], 1.0)
    for i in range(first, last):
        y_row, t_row = y[2 * i * size : 2 * (i + 1) * size], target[i * size : (i + 1) * size]
        total = like(half, 0.0)
        for j in range(size):
            error, s = y_row[j] - t_row[j], y_row[size + j]
            total += half * exp(beta * s) * (s + error * error * exp(-s))
        losses[i] = total / like(total, size)
        if dy.size > 0:
            factor = like(half, row_scale(weights, weight_sum, rows, i) / size)
            d_row = dy[2 * i * size : 2 * (i + 1) * size]
            for j in range(size):
                error, s = y_row[j] - t_row[j], y_row[size + j]
                own, precision = factor * exp(beta * s), exp(-s)
                d_row[j] = own * error * precision
                d_row[size + j] = own * half * (one - error * error * precision)


@kernel
def beta_nll_curvature(dy_dot, y_dot, y, target, weights, n, rows, size, delta_bits, part, parts):
    """dy_dot = v^beta H y_dot with the H of `gaussian_nll_curvature`.

    dy_dot OUT, y_dot and y IN (n * rows, 2 size), target IN (n * rows, size), weights IN (n,) or empty; size is k;
    delta_bits: beta as the bits of a float64.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    beta, half = like(y[0], double_of_word(delta_bits)), like(y[0], 0.5)
    for i in range(first, last):
        here = slice(2 * i * size, 2 * (i + 1) * size)
        y_row, change, out, t_row = y[here], y_dot[here], dy_dot[here], target[i * size : (i + 1) * size]
        factor = like(half, row_scale(weights, weight_sum, rows, i) / size)
        for j in range(size):
            error, s = y_row[j] - t_row[j], y_row[size + j]
            own, precision = factor * exp(beta * s), exp(-s)
            out[j] = own * precision * (change[j] - error * change[size + j])
            out[size + j] = own * precision * error * (half * error * change[size + j] - change[j])


@dataclass(frozen=True)
class BetaNLL(GaussianNLL):
    beta: float = 0.5
    kind = "beta_nll"
    kernel = beta_nll_kernel
    curvature = beta_nll_curvature
    fisher = None  # type: ignore[assignment]
    exact_gradient = False

    def __post_init__(self):
        object.__setattr__(self, "beta", number(0, 1, ends="[]")("beta_nll: beta", self.beta))

    def summands(self, y, target):
        m, s = np.split(y, 2, axis=1)
        own = np.exp(self.beta * s)
        return np.concatenate([own * s, own * (target - m) ** 2 * np.exp(-s)], 1) / y.shape[1]

    def sizes(self, output_shape):
        return (*super().sizes(output_shape), int(np.float64(self.beta).view(np.int64)))


def beta_nll(beta: float = 0.5) -> Loss:
    """Gaussian negative log-likelihood with gradients times variance^beta, mean over the batch and the k targets.

    beta : in 0..1; 0 is `gaussian_nll`, 1 gives means the gradient of `mse`

    The output (n, 2k) is k means, then k log variances; the target is (n, k), any finite numbers. The gradient takes
    variance^beta as a constant, so it is not that of the value: train by the optimizers of `fit`, not by line searches.

    >>> import nbprop, numpy as np
    >>> plan = nbprop.plan(nbprop.network((1,), nbprop.dense(2)), loss=nbprop.beta_nll())
    >>> x, target = np.ones((1, 1)), np.array([[2.0]])
    >>> round(nbprop.value(plan, np.zeros(4), x, target, nbprop.workspace(plan)), 6)
    2.0
    """
    return BetaNLL(beta)
