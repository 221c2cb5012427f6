"""Attention one position a call: keys and values of the positions before stay in the layer state.

Keys are kept transposed, so that a query's scores and the sum of the values are both products of one row with a matrix.
"""

import math

from nbprop.layers.attention.kernels import AttentionSizes
from nbprop.numerics.elementary import exp
from nbprop.numerics.gemm.blocked import ZERO
from nbprop.numerics.gemm.entry import GEMM, product
from nbprop.numerics.gemm.microkernel import pointer
from nbprop.numerics.partition import share
from nbprop.numerics.reductions import row_max, row_sum
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel


@kernel(uses=(GEMM,))
def attention_decode(y, scratch, cache, qkv, n, sizes: AttentionSizes, step, part, parts):
    """Decode one position: store its key and value, attend over positions 0 to `step`.

    y OUT (n, heads * depth), qkv IN (n, 3 * heads * depth), cache INOUT (n, heads, 2, depth * positions): keys,
    transposed (depth, positions), then values, (positions, depth). scratch: `positions` elements per thread.
    """
    positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
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
        maximum, scale = row_max(p), like(p[0], 1.0 / math.sqrt(depth))
        for j in range(p.size):
            p[j] = exp((p[j] - maximum) * scale)
        total = row_sum(p)
        for j in range(p.size):
            p[j] /= total
        product(
            (
                *(pointer(y, out), depth, pointer(p, 0), positions, 1, pointer(values, 0), depth),
                *(1, depth, step + 1, ZERO, pointer(y, out), pointer(y, out), 0, 0, 1),
            )
        )
