"""Focal loss on logits (Lin et al. 2017): binary cross-entropy times (1 - p)^gamma, p being the right class's chance.

With L(u) = softplus(-u) = -log p, p = sigmoid(u), q = 1 - p, the loss of a positive is f(u) = q^gamma L(u), and

    f' = -q^gamma (gamma p L + q),  f'' = q^gamma p (gamma^2 p L + 2 gamma q - gamma q L + q).

A target t between 0 and 1 has t f(y) + (1 - t) f(-y).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nbprop.losses.base import Loss
from nbprop.losses.binary_cross_entropy import BinaryCrossEntropy
from nbprop.losses.elementwise import ElementwiseLoss, kernels_of
from nbprop.numerics.elementary import exp, sigmoid, softplus
from nbprop.numerics.scalars import like, scalar_function
from nbprop.validation import number


@scalar_function
def focal_value(y, t, gamma):
    """t f(y) + (1 - t) f(-y), of one output."""
    lower, upper = softplus(-y), softplus(y)
    positive, negative = exp(-gamma * upper) * lower, exp(-gamma * lower) * upper
    return t * positive + (like(y, 1.0) - t) * negative


@scalar_function
def focal_derivative(y, t, gamma):
    """Its derivative by y."""
    lower, upper, p, q = softplus(-y), softplus(y), sigmoid(y), sigmoid(-y)
    positive = exp(-gamma * upper) * (gamma * p * lower + q)
    negative = exp(-gamma * lower) * (gamma * q * upper + p)
    return (like(y, 1.0) - t) * negative - t * positive


@scalar_function
def focal_second(y, t, gamma):
    """Its second derivative by y."""
    lower, upper, p, q = softplus(-y), softplus(y), sigmoid(y), sigmoid(-y)
    one = like(y, 1.0)
    inner = gamma * (gamma * p - q) * lower + (gamma + gamma + one) * q
    outer = gamma * (gamma * q - p) * upper + (gamma + gamma + one) * p
    return t * exp(-gamma * upper) * p * inner + (one - t) * exp(-gamma * lower) * q * outer


_KERNELS = kernels_of("focal", focal_value, focal_derivative, focal_second)


@dataclass(frozen=True, repr=False)
class Focal(ElementwiseLoss):
    gamma: float = 2.0
    kind = "focal"
    kernel, curvature = _KERNELS[:2]
    observed = _KERNELS[2:]
    target_range = (0.0, 1.0)
    applies = ("sigmoid", "softmax")
    has_classes = True
    classes_of, probabilities_of = BinaryCrossEntropy.classes_of, BinaryCrossEntropy.probabilities_of

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "gamma", number(0)("focal: gamma", self.gamma))

    @property
    def number(self):
        return self.gamma

    def summands(self, y, target):
        lower, upper = np.logaddexp(0, -y), np.logaddexp(0, y)
        positive, negative = np.exp(-self.gamma * upper) * lower, np.exp(-self.gamma * lower) * upper
        return np.concatenate([target * positive, (1 - target) * negative], 1) / y.shape[1]


def focal(gamma: float = 2.0, *, missing: str | None = None, output_weights: Any = None) -> Loss:
    """Focal loss on logits, mean over the batch and the outputs, in nats: outputs that are right already count little.

    gamma : how little; 0 is binary cross-entropy

    Targets lie in 0..1; others are refused. Weights of classes are sample weights, or output_weights. missing,
    output_weights: as of `mse`.

    >>> import nbprop, numpy as np
    >>> plan = nbprop.plan(nbprop.network((1,), nbprop.dense(1)), loss=nbprop.focal())
    >>> x, target = np.ones((1, 1)), np.array([[1.0]])
    >>> round(nbprop.value(plan, np.zeros(2), x, target, nbprop.workspace(plan)), 6)  # log 2 / 4
    0.173287
    """
    return Focal(gamma, missing=missing, output_weights=output_weights)
