"""The device kernels of Huber's loss; the equations and arrays are those of nbprop/losses/huber.py."""

import math

from nbprop.cuda.functions import erf, exp
from nbprop.cuda.losses.base import cuda_curvature, cuda_elementwise
from nbprop.losses.huber import huber_curvature, huber_derivative, huber_fisher, huber_kernel, huber_value
from nbprop.numerics.scalars import like


def huber_second(y, target, delta):
    """1 where |y - t| <= delta, else 0."""
    return like(y, 1.0) if abs(y - target) <= delta else like(y, 0.0)


def huber_chance(y, target, delta):
    """P(|e| <= delta) under the density exp(-l(e)) / Z; see huber_fisher."""
    inside = like(y, math.sqrt(2.0 * math.pi)) * erf(delta * like(y, math.sqrt(0.5)))
    return inside / (inside + like(y, 2.0) * exp(like(y, -0.5) * delta * delta) / delta)


def cuda_kernels(cuda):
    """The device kernels: those of every elementwise loss, with its value and derivatives."""
    return (
        *cuda_elementwise(cuda, huber_kernel, huber_value, huber_derivative),
        *cuda_curvature(cuda, huber_curvature, huber_second),
        *cuda_curvature(cuda, huber_fisher, huber_chance),
    )
