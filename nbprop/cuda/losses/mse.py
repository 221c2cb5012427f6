"""The device kernels of the mean squared error; the equations and arrays are those of nbprop/losses/mse.py."""

from nbprop.cuda.losses.base import cuda_curvature, cuda_elementwise
from nbprop.losses.mse import mse_curvature, mse_kernel, squared_error, squared_error_derivative
from nbprop.numerics.scalars import like


def squared_error_second(y, target, delta):
    """The second derivative of (y - t)^2."""
    return like(y, 2.0)


def cuda_kernels(cuda):
    """The device kernels: those of every elementwise loss, with its value and derivatives."""
    of_value = cuda_elementwise(cuda, mse_kernel, squared_error, squared_error_derivative)
    return *of_value, *cuda_curvature(cuda, mse_curvature, squared_error_second)
