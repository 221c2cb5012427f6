"""The device kernels of the mean squared error; equations and arrays are those of the CPU's kernels."""

from nbprop.cuda.losses.base import cuda_elementwise
from nbprop.losses.mse import mse_kernel, squared_error, squared_error_slope


def cuda_kernels(cuda):
    """The device's."""
    return cuda_elementwise(cuda, mse_kernel, squared_error, squared_error_slope)
