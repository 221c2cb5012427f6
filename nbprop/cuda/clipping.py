"""Gradient clipping on the device, by value and by global norm; equations as in nbprop/optimizers/clipping.py.

Dimensions: n gradients. trainable: address of n bytes, 0 for all; limit_bits: the bits of the limit.
"""

import numpy as np

from nbprop.cuda import functions as f
from nbprop.cuda import memory, toolkit
from nbprop.cuda.groups import block_sum, team_max
from nbprop.cuda.kernels import on_device
from nbprop.cuda.sequence import Sequence
from nbprop.cuda.toolkit import MOST_BLOCKS, THREADS, cuda, grid_size
from nbprop.numerics.scalars import like
from nbprop.program.elements import integer_at


def _elements(n):
    return grid_size(n)


@on_device(blocks=_elements)
def clip_value(g, n, trainable, limit_bits):
    """g = min(max(g, -limit), limit); NaN stays NaN. g INOUT (n,)."""
    limit = f.real_of_word(g[0], limit_bits)
    for i in range(cuda.grid(1), n, cuda.gridsize(1)):
        value = limit if g[i] > limit else g[i]
        g[i] = -limit if value < -limit else value


@on_device(blocks=_elements)
def squares(g, partials, n, trainable, limit_bits):
    """partials[1 + block] = the sum of g^2 over the trainable gradients of a thread block.

    g IN (n,), partials OUT (1 + blocks,).
    """
    total = like(g[0], 0.0)
    for i in range(cuda.grid(1), n, cuda.gridsize(1)):
        total += g[i] * g[i] if trainable == 0 or integer_at(trainable, 1, i) != 0 else like(total, 0.0)
    total = block_sum(cuda.shared.array(THREADS, g.dtype), total)
    if cuda.threadIdx.x == 0:
        partials[1 + cuda.blockIdx.x] = total


@on_device(blocks=lambda: 1)
def norm(g, partials, n, trainable, limit_bits):
    """partials[0] = sqrt(sum of the partial sums); if that overflows, the norm of g / max|g|, times max|g|.

    g IN (n,), partials INOUT (1 + blocks,).
    """
    total, count = like(partials[0], 0.0), min((n + THREADS - 1) // THREADS, MOST_BLOCKS)
    for i in range(cuda.threadIdx.x, count, THREADS):
        total += partials[1 + i]
    space = cuda.shared.array(THREADS, partials.dtype)
    total, largest = block_sum(space, total), like(total, 1.0)
    if not total < like(total, np.inf):
        largest = like(total, 0.0)
        for i in range(cuda.threadIdx.x, n, THREADS):
            counts = trainable == 0 or integer_at(trainable, 1, i) != 0
            largest = max(largest, abs(g[i]) if counts else like(largest, 0.0))
        largest = team_max(space, largest, cuda.threadIdx.x, THREADS)
        total = like(largest, 0.0)
        for i in range(cuda.threadIdx.x, n, THREADS):
            counts = trainable == 0 or integer_at(trainable, 1, i) != 0
            total += (g[i] / largest) * (g[i] / largest) if counts else like(largest, 0.0)
        total = block_sum(space, total)
    if cuda.threadIdx.x == 0:
        partials[0] = f.sqrt(total) * largest


@on_device(blocks=_elements)
def scale(g, partials, n, trainable, limit_bits):
    """g *= limit / (norm + 1e-6), where that is below 1. g INOUT (n,), partials IN (1,): the norm."""
    factor = f.real_of_word(g[0], limit_bits) / (partials[0] + like(g[0], 1e-6))
    if not factor >= like(factor, 1.0):
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            g[i] *= factor


KERNELS = {"clip_value": (clip_value,), "clip_norm": (squares, norm, scale)}


def clip(name, grads, limit, trainable=None):
    """The launches that clip gradients on the device: "clip_value" or "clip_norm"."""
    partials = memory.empty(MOST_BLOCKS + 1, grads.dtype)
    arrays = {"g": grads, "partials": partials}
    bits = toolkit.bits_of(limit, grads.dtype)
    mask, sequence = 0 if trainable is None else trainable.address, Sequence()
    for kernel in KERNELS[name]:
        sequence.add(kernel, grads.dtype, arrays, grads.size, trainable=mask, limit_bits=bits)
    return sequence.place()
