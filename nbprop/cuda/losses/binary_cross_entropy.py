"""The device kernels of binary cross-entropy; equations as in nbprop/losses/binary_cross_entropy.py."""

from nbprop.cuda.functions import sigmoid
from nbprop.cuda.losses.base import cuda_curvature, cuda_elementwise
from nbprop.losses.binary_cross_entropy import (
    binary_cross_entropy_curvature,
    binary_cross_entropy_kernel,
    cross_entropy,
    cross_entropy_derivative,
)
from nbprop.numerics.scalars import like


def cross_entropy_second(y, target, delta):
    """p (1 - p) with p = sigmoid(y)."""
    p = sigmoid(y)
    return p * (like(p, 1.0) - p)


def cuda_kernels(cuda):
    """The device kernels: those of every elementwise loss, with its value and derivatives."""
    of_value = cuda_elementwise(cuda, binary_cross_entropy_kernel, cross_entropy, cross_entropy_derivative)
    return *of_value, *cuda_curvature(cuda, binary_cross_entropy_curvature, cross_entropy_second)
