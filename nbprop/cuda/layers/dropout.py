"""The device kernel of dropout; the equation and arrays are those of nbprop/layers/dropout.py.

Dimensions: n samples of size elements.
"""

from nbprop.cuda.functions import real_of_word
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.dropout import Mask, _key, dropout_mask, dropped
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: the CPU's mask, one thread per element."""

    @on_device(dropout_mask, blocks=lambda n, size: grid_size(n * size))
    def mask(y, x, n, size, mask: Mask, step, first_sample):
        """y = x m / (1 - rate), the mask m by (seed, number, step, position in the batch); also dx from dy.

        y OUT, x IN (n, size).
        """
        key, scale = _key(mask.number, step), real_of_word(x[0], mask.scale_bits)
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            drop = dropped(mask.seed, key, first_sample * size + i, mask.threshold)
            y[i] = x[i] * (like(x[i], 0.0) if drop else scale)

    return (mask,)
