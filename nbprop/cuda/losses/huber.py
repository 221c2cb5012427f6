"""The device kernels of Huber's loss; equations and arrays are those of the CPU's kernels."""

from nbprop.cuda.losses.base import cuda_elementwise
from nbprop.losses.huber import huber_kernel, huber_slope, huber_value


def cuda_kernels(cuda):
    """The device's."""
    return cuda_elementwise(cuda, huber_kernel, huber_value, huber_slope)
