"""The device kernels of position embeddings; the equations and arrays are those of nbprop/layers/positions.py.

Dimensions: n samples of size elements.
"""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.positions import positions_backward, positions_forward, positions_tangent
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: one thread per element; in the backward pass, one per element of P."""

    @on_device(positions_forward, blocks=lambda n, size: grid_size(n * size))
    def forward(y, x, p, n, size, first_by_step, step):
        """y = x + P in every sample. y OUT, x IN (n, size), p IN (size,) from element first_by_step * step on."""
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            y[i] = x[i] + p[first_by_step * step + i % size]

    @on_device(positions_backward, blocks=lambda size: grid_size(size))
    def backward(dp, dy, n, size, p_accumulate, accumulate):
        """dP = the sum of dy over the samples, from 0 unless `p_accumulate` or `accumulate`.

        dp OUT (size,), dy IN (n, size).
        """
        for j in range(cuda.grid(1), size, cuda.gridsize(1)):
            total = dp[j] if p_accumulate + accumulate > 0 else like(dp[j], 0.0)
            for i in range(n):
                total += dy[i * size + j]
            dp[j] = total

    @on_device(positions_tangent, blocks=lambda n, size: grid_size(n * size))
    def tangent(y_dot, x_dot, p_dot, n, size):
        """y' = x' + P'; a direction that is empty is zero. y_dot OUT, x_dot IN (n, size), p_dot IN (size,)."""
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            change = x_dot[i] if x_dot.size > 0 else like(y_dot[0], 0.0)
            y_dot[i] = change + (p_dot[i % size] if p_dot.size > 0 else like(change, 0.0))

    return forward, backward, tangent
