"""Attention one position a call: keys and values of the positions before stay in the layer state.

Keys are kept transposed, so that a query's scores and the sum of the values are both products of one row with a matrix.
"""

import math

from nbprop.jit import kernel, share
from nbprop.numerics.functions import exp
from nbprop.numerics.gemm import ZERO
from nbprop.numerics.product import GEMM, product
from nbprop.numerics.rows import row_max, row_sum
from nbprop.numerics.scalars import like
from nbprop.numerics.tile import pointer


@kernel(uses=(GEMM,))
def attention_decode(y, scratch, cache, qkv, n, positions, heads, depth, step, part, parts):
    """One position more: store its key and value, attend over positions 0 to `step`.

    y OUT (n, heads * depth), qkv IN (n, 3 * heads * depth), cache INOUT (n, heads, 2, depth * positions): the keys,
    transposed (depth, positions), then the values, (positions, depth). scratch: `positions` elements a thread.
    """
    width, size = heads * depth, depth * positions
    p = scratch[part * positions : part * positions + step + 1]
    first, last = share(n * heads, part, parts)
    for pair in range(first, last):
        sample, head = pair // heads, pair % heads
        q, out = sample * 3 * width + head * depth, sample * width + head * depth
        keys, values = cache[2 * pair * size :], cache[(2 * pair + 1) * size :]
        for d in range(depth):
            keys[d * positions + step] = qkv[q + width + d]
            values[step * depth + d] = qkv[q + 2 * width + d]
        product(
            (
                *(pointer(p, 0), positions, pointer(qkv, q), depth, 1, pointer(keys, 0), positions),
                *(1, step + 1, depth, ZERO, pointer(p, 0), pointer(p, 0), 0, 0, 1),
            )
        )
        top, scale = row_max(p), like(p[0], 1.0 / math.sqrt(depth))
        for j in range(p.size):
            p[j] = exp((p[j] - top) * scale)
        total = row_sum(p)
        for j in range(p.size):
            p[j] /= total
        product(
            (
                *(pointer(y, out), depth, pointer(p, 0), positions, 1, pointer(values, 0), depth),
                *(1, depth, step + 1, ZERO, pointer(y, out), pointer(y, out), 0, 0, 1),
            )
        )


def cuda_kernels(cuda):
    """The device's: a block of threads a head of a sample; scores in `partials`."""
    from nbprop.cuda.functions import exp as exponential
    from nbprop.cuda.functions import sqrt
    from nbprop.cuda.groups import block_sum, column_sum, team_max, team_of
    from nbprop.cuda.kernels import on_device
    from nbprop.cuda.toolkit import THREADS, cover

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
