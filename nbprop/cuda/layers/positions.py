"""The device kernels of position embeddings; equations and arrays are those of the CPU's kernels."""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import cover
from nbprop.layers.positions import positions_backward, positions_forward
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device's: a thread an element, and on the way back an element of P."""

    @on_device(positions_forward, blocks=lambda n, size: cover(n * size))
    def forward(y, x, p, n, size, first_by_step, step):
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            y[i] = x[i] + p[first_by_step * step + i % size]

    @on_device(positions_backward, blocks=lambda size: cover(size))
    def backward(dp, dy, n, size, again, accumulate):
        for j in range(cuda.grid(1), size, cuda.gridsize(1)):
            total = dp[j] if again + accumulate > 0 else like(dp[j], 0.0)
            for i in range(n):
                total += dy[i * size + j]
            dp[j] = total

    return forward, backward
