"""The device kernels of gated units; equations and arrays are those of nbprop/layers/glu.py."""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.glu import multiply, multiply_tangent


def cuda_kernels(cuda):
    """The device kernels: one thread per element."""

    @on_device(multiply, blocks=lambda n, size: grid_size(n * size))
    def product(y, a, b, n, size):
        """y = a b. y OUT, a and b IN (n, size)."""
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            y[i] = a[i] * b[i]

    @on_device(multiply_tangent, blocks=lambda n, size: grid_size(n * size))
    def tangent(y_dot, a, a_dot, b, b_dot, n, size):
        """y' = a' b + a b'. y_dot OUT, a, a_dot, b and b_dot IN (n, size)."""
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            y_dot[i] = a_dot[i] * b[i] + a[i] * b_dot[i]

    return product, tangent
