"""The device kernels of dropout; equations and arrays are those of the CPU's kernels."""

from nbprop.cuda.functions import real_of_word
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import cover
from nbprop.layers.dropout import _key, dropout_mask, dropped
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device's: the same mask, a thread an element."""

    @on_device(dropout_mask, blocks=lambda n, size: cover(n * size))
    def mask(y, x, n, size, number, seed, threshold, scale_bits, step, first_sample):
        key, scale = _key(number, step), real_of_word(x[0], scale_bits)
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            drop = dropped(seed, key, first_sample * size + i, threshold)
            y[i] = x[i] * (like(x[i], 0.0) if drop else scale)

    return (mask,)
