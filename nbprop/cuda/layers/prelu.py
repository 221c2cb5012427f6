"""The device kernels of PReLU; equations and arrays are those of nbprop/layers/prelu.py."""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.prelu import (
    prelu_backward,
    prelu_forward,
    prelu_parameters,
    prelu_parameters_tangent,
    prelu_second,
    prelu_tangent,
)
from nbprop.numerics.scalars import like
from nbprop.program.sizes import Rows


def cuda_kernels(cuda):
    """The device kernels: one thread per element; for the sums over rows, one per feature."""

    def elements(n, rows, size):
        return grid_size(n * rows * size)

    @on_device(prelu_forward, blocks=elements)
    def forward(y, x, a, n, sizes: Rows):
        """y = x, or a x where x <= 0. y OUT, x IN (n * rows, size); a IN (size,)."""
        rows, size = sizes.rows, sizes.size
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            y[k] = a[k % size] * x[k] if x[k] <= 0 else x[k]

    @on_device(prelu_backward, blocks=elements)
    def backward(dx, dy, x, a, n, sizes: Rows):
        """dx = dy, or a dy where x <= 0. dx OUT, dy, x IN (n * rows, size); a IN (size,)."""
        rows, size = sizes.rows, sizes.size
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            dx[k] = a[k % size] * dy[k] if x[k] <= 0 else dy[k]

    @on_device(prelu_parameters, blocks=lambda size: grid_size(size))
    def parameters(da, dy, x, n, sizes: Rows, a_accumulate, accumulate):
        """da = sum of dy x over the rows where x <= 0. da OUT (size,), dy, x IN (n * rows, size)."""
        rows, size = sizes.rows, sizes.size
        for j in range(cuda.grid(1), size, cuda.gridsize(1)):
            total = like(dy[0], 0.0)
            for i in range(n * rows):
                k = i * size + j
                total += dy[k] * x[k] if x[k] <= 0 else like(total, 0.0)
            da[j] = total + (da[j] if a_accumulate + accumulate > 0 else like(total, 0.0))

    return forward, backward, parameters, *_cuda_tangents(cuda)


def _cuda_tangents(cuda):
    """The derivatives along a direction."""

    def elements(n, rows, size):
        return grid_size(n * rows * size)

    @on_device(prelu_tangent, blocks=elements)
    def tangent(y_dot, x, x_dot, a, a_dot, n, sizes: Rows):
        """y' = x', or a x' + a' x where x <= 0. y_dot OUT, x, x_dot IN (n * rows, size); a, a_dot IN (size,)."""
        rows, size = sizes.rows, sizes.size
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            y_dot[k] = a[k % size] * x_dot[k] + a_dot[k % size] * x[k] if x[k] <= 0 else x_dot[k]

    @on_device(prelu_second, blocks=elements)
    def second(dx_dot, dy, dy_dot, x, a, a_dot, n, sizes: Rows):
        """dx' = dy', or a dy' + a' dy where x <= 0.

        dx_dot OUT, dy, dy_dot, x IN (n * rows, size); a, a_dot IN (size,).
        """
        rows, size = sizes.rows, sizes.size
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            dx_dot[k] = a[k % size] * dy_dot[k] + a_dot[k % size] * dy[k] if x[k] <= 0 else dy_dot[k]

    @on_device(prelu_parameters_tangent, blocks=lambda size: grid_size(size))
    def parameters_tangent(da, dy, dy_dot, x, x_dot, n, sizes: Rows, a_accumulate, accumulate):
        """da = sum of dy' x + dy x' over the rows where x <= 0.

        da OUT (size,), dy, dy_dot, x, x_dot IN (n * rows, size).
        """
        rows, size = sizes.rows, sizes.size
        for j in range(cuda.grid(1), size, cuda.gridsize(1)):
            total = like(dy[0], 0.0)
            for k in range(j, n * rows * size, size):
                total += dy_dot[k] * x[k] + dy[k] * x_dot[k] if x[k] <= 0 else like(total, 0.0)
            da[j] = total + (da[j] if a_accumulate + accumulate > 0 else like(total, 0.0))

    return tangent, second, parameters_tangent
