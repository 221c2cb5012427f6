"""The device kernel of slicing; the equation and arrays are those of nbprop/layers/slicing.py.

Dimensions: n samples; rows rows a sample; size elements a row, of which width from first on are taken.
"""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.slicing import SlicingSizes, slicing_backward
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: one thread per element of dx."""

    @on_device(slicing_backward, blocks=lambda n, rows, size: grid_size(n * rows * size))
    def backward(dx, dy, n, sizes: SlicingSizes):
        """dx[:, first : first + width] = dy, 0 elsewhere. dx OUT (n * rows, size), dy IN (n * rows, width)."""
        rows, size, first, width = sizes.rows, sizes.size, sizes.first, sizes.width
        for i in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            row, j = i // size, i % size - first
            dx[i] = dy[row * width + j] if j >= 0 and j < width else like(dx[i], 0.0)

    return (backward,)
