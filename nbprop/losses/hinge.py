"""The hinge loss of support vector machines: l = max(0, 1 - t y) for targets -1 and 1 (Cortes and Vapnik 1995)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nbprop.losses.base import Loss
from nbprop.losses.elementwise import ElementwiseLoss, kernels_of
from nbprop.losses.mae import zero_second
from nbprop.numerics.scalars import like, scalar_function


@scalar_function
def hinge_value(y, t, delta):
    """max(0, 1 - t y), of one output; NaN for NaN."""
    lack = like(y, 1.0) - t * y
    return like(y, 0.0) if lack < like(y, 0.0) else lack


@scalar_function
def hinge_derivative(y, t, delta):
    """Its derivative by y: -t where t y < 1, else 0; NaN for NaN."""
    lack = like(y, 1.0) - t * y
    return lack - lack if lack <= like(y, 0.0) else -t + (lack - lack)


_KERNELS = kernels_of("hinge", hinge_value, hinge_derivative, zero_second)


@dataclass(frozen=True, repr=False)
class Hinge(ElementwiseLoss):
    kind = "hinge"
    kernel, curvature = _KERNELS[:2]
    observed = _KERNELS[2:]
    target_range = (-1.0, 1.0)

    def summands(self, y, target):
        return np.maximum(0.0, 1.0 - target * y) / y.shape[1]


def hinge(*, missing: str | None = None, output_weights: Any = None) -> Loss:
    """The hinge loss max(0, 1 - t y), mean over the batch and the outputs.

    Targets are -1 and 1, whose sign an output is to have; numbers between them count less, others are refused. missing,
    output_weights: as of `mse`.

    >>> import nbprop, numpy as np
    >>> plan = nbprop.plan(nbprop.network((1,), nbprop.dense(1)), loss=nbprop.hinge())
    >>> x, target = np.ones((1, 1)), np.array([[1.0]])
    >>> round(nbprop.value(plan, np.zeros(2), x, target, nbprop.workspace(plan)), 6)
    1.0
    """
    return Hinge(missing=missing, output_weights=output_weights)
