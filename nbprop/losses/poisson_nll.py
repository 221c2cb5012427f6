"""Negative log-likelihood of a Poisson distribution with predicted log rate: l = exp(y) - t y."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbprop.losses.base import Loss
from nbprop.losses.elementwise import ElementwiseLoss, kernels_of
from nbprop.numerics.elementary import exp
from nbprop.numerics.scalars import scalar_function


@scalar_function
def poisson_nll_value(y, t, delta):
    """exp(y) - t y, of one output; delta is not used."""
    return exp(y) - t * y


@scalar_function
def poisson_nll_derivative(y, t, delta):
    """Its derivative by y: exp(y) - t."""
    return exp(y) - t


@scalar_function
def poisson_nll_second(y, t, delta):
    """Its second derivative by y: exp(y)."""
    return exp(y)


_KERNELS = kernels_of("poisson_nll", poisson_nll_value, poisson_nll_derivative, poisson_nll_second)


@dataclass(frozen=True, repr=False)
class PoissonNLL(ElementwiseLoss):
    kind = "poisson_nll"
    kernel, curvature = _KERNELS[:2]
    fisher = curvature
    observed = _KERNELS[2:]
    observed_fisher = observed[1]
    target_range = (0.0, math.inf)

    def summands(self, y, target):
        return np.concatenate([np.exp(y), target * y], 1) / y.shape[1]


def poisson_nll(*, missing: str | None = None, output_weights: Any = None) -> Loss:
    """Poisson negative log-likelihood, mean over the batch and the outputs, in nats without log(t!).

    The outputs are logarithms of rates; targets are counts, or any numbers of at least 0; others are refused. missing,
    output_weights: as of `mse`.

    >>> import nbprop, numpy as np
    >>> plan = nbprop.plan(nbprop.network((1,), nbprop.dense(1)), loss=nbprop.poisson_nll())
    >>> x, target = np.ones((1, 1)), np.array([[3.0]])
    >>> round(nbprop.value(plan, np.zeros(2), x, target, nbprop.workspace(plan)), 6)  # a rate of 1
    1.0
    """
    return PoissonNLL(missing=missing, output_weights=output_weights)
