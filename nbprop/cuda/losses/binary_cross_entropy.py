"""The device kernels of binary cross-entropy; equations and arrays are those of the CPU's kernels."""

from nbprop.cuda.losses.base import cuda_elementwise
from nbprop.losses.binary_cross_entropy import binary_cross_entropy_kernel, cross_entropy, cross_entropy_slope


def cuda_kernels(cuda):
    """The device's."""
    return cuda_elementwise(cuda, binary_cross_entropy_kernel, cross_entropy, cross_entropy_slope)
