"""The device kernels of the mean squared error; the equations and arrays are those of nbprop/losses/mse.py."""

from nbprop.cuda.losses.base import cuda_elementwise
from nbprop.losses.mse import mse_kernel, squared_error, squared_error_derivative


def cuda_kernels(cuda):
    """The device kernels: those of every elementwise loss, with its value and derivative."""
    return cuda_elementwise(cuda, mse_kernel, squared_error, squared_error_derivative)
