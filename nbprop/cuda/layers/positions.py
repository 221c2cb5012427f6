"""The device kernels of position embeddings; the equations and arrays are those of nbprop/layers/positions.py.

Dimensions: n samples of size elements.
"""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.positions import positions_backward, positions_forward
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

    return forward, backward
