"""The device kernels of slicing; equations and arrays are those of the CPU's kernels."""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import cover
from nbprop.layers.slicing import slicing_backward
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device's: a thread an element of dx."""

    @on_device(slicing_backward, blocks=lambda n, rows, size: cover(n * rows * size))
    def backward(dx, dy, n, rows, size, first, width):
        for i in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            row, j = i // size, i % size - first
            dx[i] = dy[row * width + j] if j >= 0 and j < width else like(dx[i], 0.0)

    return (backward,)
