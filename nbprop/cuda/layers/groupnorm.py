"""The device kernel that exchanges two axes; equation and arrays are those of nbprop/layers/groupnorm.py."""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.groupnorm import SwappedAxes, swap_axes


def cuda_kernels(cuda):
    """The device kernel: one thread per element of y."""

    @on_device(swap_axes, blocks=lambda n, outer, inner, width: grid_size(n * outer * inner * width))
    def swapped(y, x, n, sizes: SwappedAxes):
        """y[i, b, a] = x[i, a, b]. y OUT (n, inner, outer, width), x IN (n, outer, inner, width)."""
        outer, inner, width = sizes.outer, sizes.inner, sizes.width
        for k in range(cuda.grid(1), n * outer * inner * width, cuda.gridsize(1)):
            row, j = k // width, k % width
            i, b, a = row // (inner * outer), row // outer % inner, row % outer
            y[k] = x[((i * outer + a) * inner + b) * width + j]

    return (swapped,)
