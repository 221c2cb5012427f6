"""The device kernel that turns sequences around; equation and arrays are those of nbprop/layers/bidirectional.py."""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.bidirectional import reverse_positions
from nbprop.layers.recurrent import RecurrentSizes
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at


def cuda_kernels(cuda):
    """The device kernel: one thread per element of y."""

    @on_device(reverse_positions, blocks=lambda n, positions, width: grid_size(n * positions * width))
    def reversed_positions(y, x, n, sizes: RecurrentSizes, lengths_address, lengths_code):
        """y[i, t] = x[i, length - 1 - t], 0 beyond the length. y OUT, x IN (n, positions, width)."""
        positions, size = sizes.positions, sizes.width
        for k in range(cuda.grid(1), n * positions * size, cuda.gridsize(1)):
            row, j = k // size, k % size
            i, t = row // positions, row % positions
            length = length_at(lengths_address, lengths_code, i, positions)
            y[k] = x[(i * positions + length - 1 - t) * size + j] if t < length else like(y[k], 0.0)

    return (reversed_positions,)
