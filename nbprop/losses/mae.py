"""Mean absolute error: l = mean over a sample's outputs of |y - t|, whose minimiser is the median."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nbprop.losses.base import Loss
from nbprop.losses.elementwise import ElementwiseLoss, kernels_of
from nbprop.numerics.scalars import like, scalar_function


@scalar_function
def absolute_error(y, t, delta):
    """|y - t|, of one output; delta is not used."""
    return abs(y - t)


@scalar_function
def absolute_error_derivative(y, t, delta):
    """Its derivative by y: the sign of y - t, 0 at 0; NaN for NaN."""
    error = y - t
    return like(y, 1.0) if error > like(y, 0.0) else (like(y, -1.0) if error < like(y, 0.0) else error)


@scalar_function
def zero_second(y, t, delta):
    """The second derivative by y of a function that consists of straight lines: 0."""
    return like(y, 0.0)


_KERNELS = kernels_of("mae", absolute_error, absolute_error_derivative, zero_second)


@dataclass(frozen=True, repr=False)
class MeanAbsoluteError(ElementwiseLoss):
    kind = "mae"
    kernel, curvature = _KERNELS[:2]
    observed = _KERNELS[2:]

    def summands(self, y, target):
        return np.abs(y - target) / y.shape[1]


def mae(*, missing: str | None = None, output_weights: Any = None) -> Loss:
    """Mean absolute error: the mean over the batch and the outputs of |y - t|, in the target's unit.

    Targets are any finite numbers. missing, output_weights: as of `mse`.

    >>> import nbprop, numpy as np
    >>> plan = nbprop.plan(nbprop.network((1,), nbprop.dense(1)), loss=nbprop.mae())
    >>> x, target = np.ones((1, 1)), np.array([[3.0]])
    >>> round(nbprop.value(plan, np.zeros(2), x, target, nbprop.workspace(plan)), 6)
    3.0
    """
    return MeanAbsoluteError(missing=missing, output_weights=output_weights)
