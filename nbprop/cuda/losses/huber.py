"""The device kernels of Huber's loss; the equations and arrays are those of nbprop/losses/huber.py."""

from nbprop.cuda.losses.base import cuda_elementwise
from nbprop.losses.huber import huber_derivative, huber_kernel, huber_value


def cuda_kernels(cuda):
    """The device kernels: those of every elementwise loss, with its value and derivative."""
    return cuda_elementwise(cuda, huber_kernel, huber_value, huber_derivative)
