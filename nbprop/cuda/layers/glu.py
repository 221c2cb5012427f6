"""The device kernel of gated units; equation and arrays are those of nbprop/layers/glu.py."""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.glu import multiply


def cuda_kernels(cuda):
    """The device kernel: one thread per element."""

    @on_device(multiply, blocks=lambda n, size: grid_size(n * size))
    def product(y, a, b, n, size):
        """y = a b. y OUT, a and b IN (n, size)."""
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            y[i] = a[i] * b[i]

    return (product,)
