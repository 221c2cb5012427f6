"""The device kernels of binary cross-entropy; equations as in nbprop/losses/binary_cross_entropy.py."""

from nbprop.cuda.losses.base import cuda_elementwise
from nbprop.losses.binary_cross_entropy import binary_cross_entropy_kernel, cross_entropy, cross_entropy_derivative


def cuda_kernels(cuda):
    """The device kernels: those of every elementwise loss, with its value and derivative."""
    return cuda_elementwise(cuda, binary_cross_entropy_kernel, cross_entropy, cross_entropy_derivative)
