"""The device kernels of attention, one position a call; equations and arrays are those of the CPU's kernels."""

import math

from nbprop.cuda.functions import exp as exponential
from nbprop.cuda.functions import sqrt
from nbprop.cuda.groups import block_sum, column_sum, team_max, team_of
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import THREADS, cover
from nbprop.layers.attention.decoding import attention_decode
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device's: a block of threads a head of a sample; scores in `partials`."""

    @on_device(
        attention_decode,
        blocks=lambda n, heads: cover(n * heads, 1),
        scratch=lambda n, positions, heads: n * heads * positions,
    )
    def decode(y, cache, partials, qkv, n, positions, heads, depth, step):
        space, me = cuda.shared.array(THREADS, y.dtype), cuda.threadIdx.x
        scale, across = like(y[0], 1.0) / sqrt(like(y[0], depth)), team_of(depth)
        for pair in range(cuda.blockIdx.x, n * heads, cuda.gridDim.x):
            q = pair // heads * 3 * heads * depth + pair % heads * depth
            keys, values = 2 * pair * depth * positions, (2 * pair + 1) * depth * positions
            for d in range(me, depth, THREADS):
                cache[keys + d * positions + step] = qkv[q + heads * depth + d]
                cache[values + step * depth + d] = qkv[q + 2 * heads * depth + d]
            cuda.syncthreads()
            # A thread a position, whose neighbours' keys lie beside its own.
            p, top, total = pair * positions, like(scale, -math.inf), like(scale, 0.0)
            for j in range(me, step + 1, THREADS):
                score = like(scale, 0.0)
                for d in range(depth):
                    score += qkv[q + d] * cache[keys + d * positions + j]
                partials[p + j] = score
                top = score if score > top or score != score else top
            top = team_max(space, top, me, THREADS)
            for j in range(me, step + 1, THREADS):
                partials[p + j] = exponential((partials[p + j] - top) * scale)
                total += partials[p + j]
            total = block_sum(space, total)
            # A thread a feature and every so-many-th position.
            for first in range(0, depth, across):
                d, weighed = first + me % across, like(scale, 0.0)
                for j in range(me // across, step + 1 if d < depth else 0, THREADS // across):
                    weighed += partials[p + j] * cache[values + j * depth + d]
                weighed = column_sum(space, weighed, across)
                if me < across and d < depth:
                    y[pair * depth + d] = weighed / total

    return (decode,)
