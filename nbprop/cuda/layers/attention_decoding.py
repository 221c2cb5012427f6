"""The device kernel of attention, one position per call; the equations are those of nbprop/layers/attention.

Dimensions: n samples; positions that a cache holds; heads; depth features a head.
"""

import math

from nbprop.cuda.functions import exp as exponential
from nbprop.cuda.functions import sqrt
from nbprop.cuda.groups import block_sum, column_sum, team_max, team_of
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import THREADS, grid_size
from nbprop.layers.attention.decoding import attention_decode
from nbprop.layers.attention.kernels import AttentionSizes
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: one thread block per head of a sample; scores go through `partials`."""

    @on_device(
        attention_decode,
        blocks=lambda n, heads: grid_size(n * heads, 1),
        scratch=lambda n, positions, heads: n * heads * positions,
    )
    def decode(y, cache, partials, qkv, n, sizes: AttentionSizes, step):
        """Store the key and value of position `step`, and attend over positions 0 to `step`.

        y OUT (n, heads * depth), qkv IN (n, 3 * heads * depth); cache INOUT (n, heads, 2, depth * positions): keys,
        transposed (depth, positions), then values, (positions, depth); partials OUT (n, heads, positions): the scores.
        """
        positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
        space, me = cuda.shared.array(THREADS, y.dtype), cuda.threadIdx.x
        scale, across = like(y[0], 1.0) / sqrt(like(y[0], depth)), team_of(depth)
        for pair in range(cuda.blockIdx.x, n * heads, cuda.gridDim.x):
            q = pair // heads * 3 * heads * depth + pair % heads * depth
            keys, values = 2 * pair * depth * positions, (2 * pair + 1) * depth * positions
            for d in range(me, depth, THREADS):
                cache[keys + d * positions + step] = qkv[q + heads * depth + d]
                cache[values + step * depth + d] = qkv[q + 2 * heads * depth + d]
            cuda.syncthreads()
            # One thread per position: neighbouring threads read neighbouring keys.
            p, maximum, total = pair * positions, like(scale, -math.inf), like(scale, 0.0)
            for j in range(me, step + 1, THREADS):
                score = like(scale, 0.0)
                for d in range(depth):
                    score += qkv[q + d] * cache[keys + d * positions + j]
                partials[p + j] = score
                maximum = score if score > maximum or score != score else maximum
            maximum = team_max(space, maximum, me, THREADS)
            for j in range(me, step + 1, THREADS):
                partials[p + j] = exponential((partials[p + j] - maximum) * scale)
                total += partials[p + j]
            total = block_sum(space, total)
            # One thread per feature and per residue of the position, modulo THREADS / across.
            for first in range(0, depth, across):
                d, weighed = first + me % across, like(scale, 0.0)
                for j in range(me // across, step + 1 if d < depth else 0, THREADS // across):
                    weighed += partials[p + j] * cache[values + j * depth + d]
                weighed = column_sum(space, weighed, across)
                if me < across and d < depth:
                    y[pair * depth + d] = weighed / total

    return (decode,)
