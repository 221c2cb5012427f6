"""Multi-head self-attention: y = softmax(Q K^T / sqrt(D)) V in each head (Vaswani et al. 2017, section 3.2).

A layer of three parts: dense(3 C) makes queries, keys and values, (T, 3 C) with the C columns of all queries first;
the heads attend, head h with the D = C / heads columns from h D of each; dense(C) mixes the heads' outputs.

No T x T matrix is stored (Dao et al. 2022, "FlashAttention", algorithm 1; Dao 2023, "FlashAttention-2", section 3.1).
Queries are taken in blocks of 32, keys in blocks of 128; a block of scores lives in scratch, and when a later block
raises a query's maximum, what was summed before is scaled down. Forward leaves y and each query's log-sum-exp

    L_i = log sum_j exp(S_ij),  S = Q K^T / sqrt(D),

with which backward forms P = exp(S - L) anew, block by block:

    dV = P^T dO,   dP = dO V^T,   dS = P (dP - delta) with delta_i = dO_i . O_i,   dQ = dS K / sqrt(D),
    dK = dS^T Q / sqrt(D).

Blocks of scores stand transposed, keys by queries: then maxima and sums over the keys run in index order and still
fill the vectors, and every product is a call of the one strided matrix product. Threads share the (sample, head) pairs.
"""

import math
from typing import NamedTuple

import numpy as np

from nbprop.compiler.jit import njit
from nbprop.numerics.elementary import exp, log
from nbprop.numerics.gemm.blocked import ACCUMULATE, ZERO, transpose_strided
from nbprop.numerics.gemm.entry import GEMM, product
from nbprop.numerics.gemm.microkernel import pointer
from nbprop.numerics.partition import share
from nbprop.numerics.reductions import row_dot
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at
from nbprop.program.kernel import kernel

# A block of scores: keys by queries. Loops over a constant count of queries are whole vectors without a tail.
QUERIES, KEYS = 32, 128
BLOCK = KEYS * QUERIES

# The numbers of the queries, to compare with in as few bits as a score has: i itself, in 64, took twice the vectors.
LANES = np.arange(QUERIES, dtype=np.int32)
_TOGETHER = 4


class AttentionSizes(NamedTuple):
    """Queries, keys and values (n, positions, 3 * heads * depth), outputs (n, positions, heads * depth)."""

    positions: int  # T, of each sample; when decoding, those that the cache holds
    heads: int
    depth: int  # D, columns of a head


@njit
def clear_rows(x, first, rows, row, width):
    """x[first + i * row + j] = 0 for i < rows, j < width."""
    for i in range(rows):
        line = x[first + i * row : first + i * row + width]
        for j in range(width):
            line[j] = like(line[j], 0.0)


@njit
def turn(out, x, first, rows, row, depth):
    """out (depth, QUERIES) = the transposed rows of x, from element `first` on; queries that do not exist are 0."""
    if rows < QUERIES:
        clear_rows(out, 0, depth, QUERIES, QUERIES)
    transpose_strided(pointer(out, 0), QUERIES, pointer(x, first), row, rows, depth)


@njit
def scores(block, x, first, row, turned, keys, depth, start):
    """block (keys, QUERIES) = start + X turned, X being `keys` rows of x from element `first` on."""
    product(
        (
            *(pointer(block, 0), QUERIES, pointer(x, first), row, 1, pointer(turned, 0), QUERIES),
            *(keys, QUERIES, depth, start, pointer(block, 0), pointer(block, 0), 0, 0, 1),
        )
    )


@njit
def over_keys(y, y_first, y_row, block, x, x_first, x_row, queries, keys, depth, start):
    """Y (queries, depth) = start + block^T X, with X (keys, depth)."""
    product(
        (
            *(pointer(y, y_first), y_row, pointer(block, 0), 1, QUERIES, pointer(x, x_first), x_row),
            *(queries, depth, keys, start, pointer(y, y_first), pointer(block, 0), 0, 0, 1),
        )
    )


@njit
def over_queries(y, y_first, y_row, block, x, x_first, x_row, queries, keys, depth):
    """Y (keys, depth) += block X, with X (queries, depth)."""
    product(
        (
            *(pointer(y, y_first), y_row, pointer(block, 0), QUERIES, 1, pointer(x, x_first), x_row),
            *(keys, depth, queries, ACCUMULATE, pointer(y, y_first), pointer(block, 0), 0, 0, 1),
        )
    )


@njit
def first_query(key, begin, causal):
    """The first query of the block beginning at query `begin` that a key answers; those before it come too early."""
    return np.int32(max(0, key - begin) if causal else 0)


@njit
def _key_row(block, keys, j, key, begin, causal):
    """The scores of key j, or of the last one, and its first query."""
    j = min(j, keys - 1)
    return block[j * QUERIES : (j + 1) * QUERIES], first_query(key + j, begin, causal)


@njit
def _raise_maxima(maxima, block, keys, key, begin, causal):
    """maxima = the largest of it and each query's scores. Four keys at once: one by one, each waited for the last."""
    for j in range(0, keys, _TOGETHER):
        a, a_first = _key_row(block, keys, j, key, begin, causal)
        b, b_first = _key_row(block, keys, j + 1, key, begin, causal)
        c, c_first = _key_row(block, keys, j + 2, key, begin, causal)
        d, d_first = _key_row(block, keys, j + 3, key, begin, causal)
        for i in range(QUERIES):
            t = a[i] if a[i] > maxima[i] and LANES[i] >= a_first else maxima[i]
            t = b[i] if b[i] > t and LANES[i] >= b_first else t
            t = c[i] if c[i] > t and LANES[i] >= c_first else t
            maxima[i] = d[i] if d[i] > t and LANES[i] >= d_first else t


@njit
def _exponentiate(total, block, maxima, scale, keys, key, begin, causal):
    """block = exp((block - maxima) scale), 0 where a query comes too early; total += the sum over the keys."""
    for j in range(keys):
        row, first = block[j * QUERIES : (j + 1) * QUERIES], first_query(key + j, begin, causal)
        for i in range(QUERIES):
            p = exp((row[i] - maxima[i]) * scale)
            row[i] = p if LANES[i] >= first else like(p, 0.0)
            total[i] += row[i]


@njit
def _scale_rows(y, first, rows, row, width, factor):
    for i in range(rows):
        line = y[first + i * row : first + i * row + width]
        for j in range(width):
            line[j] *= factor[i]


@njit
def _attend(y, lse, qkv, scratch, sample, head, begin, length, positions, heads, depth, causal):
    """y and the log-sum-exps of one block of queries of one head."""
    width, row = heads * depth, 3 * heads * depth
    turned, block = scratch[: depth * QUERIES], scratch[depth * QUERIES : depth * QUERIES + BLOCK]
    rest = scratch[depth * QUERIES + BLOCK :]
    maxima, total, factor = rest[:QUERIES], rest[QUERIES : 2 * QUERIES], rest[2 * QUERIES : 3 * QUERIES]
    queries, base = min(QUERIES, length - begin), sample * positions * row + head * depth
    out = (sample * positions + begin) * width + head * depth
    scale = like(y[0], 1.0 / math.sqrt(depth))
    turn(turned, qkv, base + begin * row, queries, row, depth)
    for i in range(QUERIES):
        maxima[i], total[i] = like(scale, -np.inf), like(scale, 0.0)
    limit = begin + queries if causal else length
    for key in range(0, limit, KEYS):
        keys = min(KEYS, limit - key)
        scores(block, qkv, base + width + key * row, row, turned, keys, depth, ZERO)
        for i in range(QUERIES):
            factor[i] = maxima[i]
        _raise_maxima(maxima, block, keys, key, begin, causal)
        if key > 0:
            for i in range(QUERIES):
                factor[i] = exp((factor[i] - maxima[i]) * scale)
                total[i] *= factor[i]
            _scale_rows(y, out, queries, width, depth, factor)
        _exponentiate(total, block, maxima, scale, keys, key, begin, causal)
        start = ACCUMULATE if key > 0 else ZERO
        over_keys(y, out, width, block, qkv, base + 2 * width + key * row, row, queries, keys, depth, start)
    for i in range(QUERIES):
        factor[i] = like(scale, 1.0) / total[i]
        total[i] = maxima[i] * scale + log(total[i])
    _scale_rows(y, out, queries, width, depth, factor)
    first = (sample * heads + head) * positions + begin
    for i in range(queries):
        lse[first + i] = total[i]


@kernel(uses=(GEMM,))
def attention_forward(
    y, lse, scratch, qkv, n, sizes: AttentionSizes, causal, each, lengths_address, lengths_code, part, parts
):
    """y = softmax(Q K^T / sqrt(depth)) V in each head; y = 0 from the length of a sample on.

    y OUT (n, positions, heads * depth), lse OUT (n, heads, positions): the log-sum-exp of each row of scores; qkv IN
    (n, positions, 3 * heads * depth); scratch: `each` elements per thread.
    """
    positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
    width = heads * depth
    mine = scratch[part * each : (part + 1) * each]
    first, last = share(n * heads, part, parts)
    for pair in range(first, last):
        sample, head = pair // heads, pair % heads
        length = length_at(lengths_address, lengths_code, sample, positions)
        for begin in range(0, length, QUERIES):
            _attend(y, lse, qkv, mine, sample, head, begin, length, positions, heads, depth, causal)
        clear_rows(y, (sample * positions + length) * width + head * depth, positions - length, width, depth)


@njit
def _to_score_gradients(block, change, lse, delta, scale, keys, key, begin, causal):
    """From S sqrt(D) and dP: block = P, change = dS / sqrt(D)."""
    for j in range(keys):
        here, first = slice(j * QUERIES, (j + 1) * QUERIES), first_query(key + j, begin, causal)
        row, d_row = block[here], change[here]
        for i in range(QUERIES):
            p = exp(row[i] * scale - lse[i])
            p = p if i >= first else like(p, 0.0)
            row[i] = p
            d_row[i] = p * (d_row[i] - delta[i]) * scale


@njit
def _attend_back(dqkv, qkv, y, lse, dy, scratch, sample, head, begin, length, positions, heads, depth, causal):
    """What one block of queries of one head adds to dqkv."""
    width, row = heads * depth, 3 * heads * depth
    size = depth * QUERIES
    q, do, block, change = scratch[:size], scratch[size : 2 * size], scratch[2 * size :], scratch[2 * size + BLOCK :]
    rest = scratch[2 * size + 2 * BLOCK :]
    row_lse, delta = rest[:QUERIES], rest[QUERIES : 2 * QUERIES]
    queries, base = min(QUERIES, length - begin), sample * positions * row + head * depth
    out = (sample * positions + begin) * width + head * depth
    scale = like(y[0], 1.0 / math.sqrt(depth))
    turn(q, qkv, base + begin * row, queries, row, depth)
    turn(do, dy, out, queries, width, depth)
    first = (sample * heads + head) * positions + begin
    for i in range(QUERIES):
        row_lse[i], delta[i] = like(scale, 0.0), like(scale, 0.0)
    for i in range(queries):
        here = slice(out + i * width, out + i * width + depth)
        row_lse[i], delta[i] = lse[first + i], row_dot(dy[here], y[here])
    limit = begin + queries if causal else length
    for key in range(0, limit, KEYS):
        keys, k, v = min(KEYS, limit - key), base + width + key * row, base + 2 * width + key * row
        scores(block, qkv, k, row, q, keys, depth, ZERO)
        scores(change, qkv, v, row, do, keys, depth, ZERO)
        _to_score_gradients(block, change, row_lse, delta, scale, keys, key, begin, causal)
        over_queries(dqkv, v, row, block, dy, out, width, queries, keys, depth)
        over_queries(dqkv, k, row, change, qkv, base + begin * row, row, queries, keys, depth)
        start = ACCUMULATE if key > 0 else ZERO
        over_keys(dqkv, base + begin * row, row, change, qkv, k, row, queries, keys, depth, start)


@kernel(uses=(GEMM,))
def attention_backward(
    dqkv, scratch, qkv, y, lse, dy, n, sizes: AttentionSizes, causal, each, lengths_address, lengths_code, part, parts
):
    """The gradient dqkv by queries, keys and values.

    dqkv OUT (n, positions, 3 * heads * depth), qkv IN (n, positions, 3 * heads * depth), y and dy IN (n, positions,
    heads * depth), lse IN (n, heads, positions); scratch: `each` elements per thread.
    """
    positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
    width, row = heads * depth, 3 * heads * depth
    mine = scratch[part * each : (part + 1) * each]
    first, last = share(n * heads, part, parts)
    for pair in range(first, last):
        sample, head = pair // heads, pair % heads
        length = length_at(lengths_address, lengths_code, sample, positions)
        base = sample * positions * row + head * depth
        clear_rows(dqkv, base + length * row, positions - length, row, depth)
        clear_rows(dqkv, base + width, positions, row, depth)
        clear_rows(dqkv, base + 2 * width, positions, row, depth)
        for begin in range(0, length, QUERIES):
            _attend_back(
                dqkv, qkv, y, lse, dy, mine, sample, head, begin, length, positions, heads, depth, causal
            )  # fmt: skip
