"""The logarithm of the hyperbolic cosine of the error: about e^2 / 2 near 0 and |e| - log 2 far away, and smooth."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nbprop.losses.base import Loss
from nbprop.losses.elementwise import ElementwiseLoss, kernels_of
from nbprop.numerics.elementary import exp, log1p, tanh
from nbprop.numerics.scalars import like, scalar_function


@scalar_function
def log_cosh_value(y, t, delta):
    """log(cosh(e)) with e = y - t, of one output: |e| + log(1 + (exp(-2 |e|) - 1) / 2), exact for small e, too."""
    error = abs(y - t)
    # Below, the terms of the other formula cancel; the next one of this is e^8 17 / 2520.
    square = error * error
    series = square * (like(y, 0.5) - square * (like(y, 1.0 / 12.0) - square * like(y, 1.0 / 45.0)))
    return series if error < like(y, 0.02) else error + log1p(exp(like(y, -2.0) * error)) - like(y, 0.6931471805599453)


@scalar_function
def log_cosh_derivative(y, t, delta):
    """Its derivative by y: tanh(y - t)."""
    return tanh(y - t)


@scalar_function
def log_cosh_second(y, t, delta):
    """Its second derivative by y: 1 - tanh(y - t)^2."""
    slope = tanh(y - t)
    return (like(y, 1.0) - slope) * (like(y, 1.0) + slope)


@scalar_function
def expected_second(y, t, delta):
    """The mean of the second derivative under the density 1 / (pi cosh(e)): 1 / 2."""
    return like(y, 0.5)


_KERNELS = kernels_of("log_cosh", log_cosh_value, log_cosh_derivative, log_cosh_second)
_FISHER = kernels_of("log_cosh_fisher", log_cosh_value, log_cosh_derivative, expected_second)


@dataclass(frozen=True, repr=False)
class LogCosh(ElementwiseLoss):
    kind = "log_cosh"
    kernel, curvature = _KERNELS[:2]
    fisher = _FISHER[1]
    observed, observed_fisher = _KERNELS[2:], _FISHER[3]

    def summands(self, y, target):
        error = np.abs(y - target)
        return (error + np.log1p(np.exp(-2 * error)) - np.log(2)) / y.shape[1]


def log_cosh(*, missing: str | None = None, output_weights: Any = None) -> Loss:
    """log(cosh(y - t)), mean over the batch and the outputs: quadratic near 0, linear far away, smooth everywhere.

    Targets are any finite numbers. missing, output_weights: as of `mse`.

    >>> import nbprop, numpy as np
    >>> plan = nbprop.plan(nbprop.network((1,), nbprop.dense(1)), loss=nbprop.log_cosh())
    >>> x, target = np.ones((1, 1)), np.array([[3.0]])
    >>> round(nbprop.value(plan, np.zeros(2), x, target, nbprop.workspace(plan)), 6)
    2.309329
    """
    return LogCosh(missing=missing, output_weights=output_weights)
