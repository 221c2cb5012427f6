"""The derivatives of attention's forward and backward along a direction, for Jacobian- and Hessian-vector products.

With the names of attention/layer.py and ' for a derivative along the direction:

    S' = (Q' K^T + Q K'^T) / sqrt(D),   L'_i = sum_j P_ij S'_ij,   P' = P (S' - L'),   O' = P' V + P V',

and in the backward pass the derivative of each formula there: dV' = P'^T dO + P^T dO', dP' = dO' V^T + dO V'^T,
dS' = P' (dP - delta) + P (dP' - delta'), delta'_i = dO'_i . O_i + dO_i . O'_i, and dQ' and dK' by the product rule.
Forward computed L, so that P = exp(S - L) needs no maxima; O' is summed as P S' V + P V' - L' O in one pass.
"""

import math

from nbprop.compiler.jit import njit
from nbprop.layers.attention.kernels import (
    BLOCK,
    KEYS,
    QUERIES,
    AttentionSizes,
    clear_rows,
    first_query,
    over_keys,
    over_queries,
    scores,
    turn,
)
from nbprop.numerics.elementary import exp
from nbprop.numerics.gemm.blocked import ACCUMULATE, ZERO
from nbprop.numerics.gemm.entry import GEMM
from nbprop.numerics.partition import share
from nbprop.numerics.reductions import row_dot
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at
from nbprop.program.kernel import kernel


@njit
def _pieces(scratch, depth):
    """Four turned blocks, four blocks of scores, four numbers a query."""
    size = depth * QUERIES
    blocks, rest = scratch[4 * size :], scratch[4 * size + 4 * BLOCK :]
    return (
        (scratch[:size], scratch[size : 2 * size], scratch[2 * size : 3 * size], scratch[3 * size : 4 * size]),
        (blocks[:BLOCK], blocks[BLOCK : 2 * BLOCK], blocks[2 * BLOCK : 3 * BLOCK], blocks[3 * BLOCK : 4 * BLOCK]),
        (rest[:QUERIES], rest[QUERIES : 2 * QUERIES], rest[2 * QUERIES : 3 * QUERIES], rest[3 * QUERIES : 4 * QUERIES]),
    )


@njit
def _to_weighted(block, change, total, lse, scale, keys, key, begin, causal):
    """From S and S', both times sqrt(D): block = P, change = P S', total += the sum of P S' over the keys."""
    for j in range(keys):
        here, first = slice(j * QUERIES, (j + 1) * QUERIES), first_query(key + j, begin, causal)
        row, change_row = block[here], change[here]
        for i in range(QUERIES):
            p = exp(row[i] * scale - lse[i])
            row[i] = p if i >= first else like(p, 0.0)
            change_row[i] = row[i] * change_row[i] * scale
            total[i] += change_row[i]


@njit
def _attend(
    y_dot, lse_dot, scratch, qkv, qkv_dot, y, lse, sample, head, begin, length, positions, heads, depth, causal
):
    """y' and L' of one block of queries of one head."""
    width, row = heads * depth, 3 * heads * depth
    (q, q_dot, _, _), (block, change, _, _), (row_lse, total, _, _) = _pieces(scratch, depth)
    queries, base = min(QUERIES, length - begin), sample * positions * row + head * depth
    out, first = (sample * positions + begin) * width + head * depth, (sample * heads + head) * positions + begin
    scale = like(y[0], 1.0 / math.sqrt(depth))
    turn(q, qkv, base + begin * row, queries, row, depth)
    turn(q_dot, qkv_dot, base + begin * row, queries, row, depth)
    for i in range(QUERIES):
        row_lse[i], total[i] = lse[first + i] if i < queries else like(scale, 0.0), like(scale, 0.0)
    limit = begin + queries if causal else length
    for key in range(0, limit, KEYS):
        keys, k, v = min(KEYS, limit - key), base + width + key * row, base + 2 * width + key * row
        scores(block, qkv, k, row, q, keys, depth, ZERO)
        scores(change, qkv_dot, k, row, q, keys, depth, ZERO)
        scores(change, qkv, k, row, q_dot, keys, depth, ACCUMULATE)
        _to_weighted(block, change, total, row_lse, scale, keys, key, begin, causal)
        start = ACCUMULATE if key > 0 else ZERO
        over_keys(y_dot, out, width, change, qkv, v, row, queries, keys, depth, start)
        over_keys(y_dot, out, width, block, qkv_dot, v, row, queries, keys, depth, ACCUMULATE)
    for i in range(queries):
        lse_dot[first + i] = total[i]
        here = slice(out + i * width, out + i * width + depth)
        change_row, y_row = y_dot[here], y[here]
        for d in range(depth):
            change_row[d] -= total[i] * y_row[d]


@kernel(uses=(GEMM,))
def attention_tangent(
    y_dot,
    lse_dot,
    scratch,
    qkv,
    qkv_dot,
    y,
    lse,
    n,
    sizes: AttentionSizes,
    causal,
    each,
    lengths_address,
    lengths_code,
    part,
    parts,
):
    """The derivatives of y and lse along qkv'.

    y_dot OUT (n, positions, heads * depth), lse_dot OUT (n, heads, positions), qkv and qkv_dot IN (n, positions, 3 *
    heads * depth), y IN (n, positions, heads * depth), lse IN (n, heads, positions); scratch: `each` elements per
    thread.
    """
    positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
    width = heads * depth
    mine = scratch[part * each : (part + 1) * each]
    first, last = share(n * heads, part, parts)
    for pair in range(first, last):
        sample, head = pair // heads, pair % heads
        length = length_at(lengths_address, lengths_code, sample, positions)
        for begin in range(0, length, QUERIES):
            _attend(
                y_dot, lse_dot, mine, qkv, qkv_dot, y, lse, sample, head, begin, length, positions, heads, depth, causal
            )  # fmt: skip
        clear_rows(y_dot, (sample * positions + length) * width + head * depth, positions - length, width, depth)


@njit
def _to_second(blocks, numbers, scale, keys, key, begin, causal):
    """From S, S', dP and dP' (S and S' times sqrt(D)): P, P', dS / sqrt(D) and dS' / sqrt(D), in their places."""
    lse, lse_dot, delta, delta_dot = numbers
    for j in range(keys):
        here, first = slice(j * QUERIES, (j + 1) * QUERIES), first_query(key + j, begin, causal)
        s, s_dot, d, d_dot = blocks[0][here], blocks[1][here], blocks[2][here], blocks[3][here]
        for i in range(QUERIES):
            p = exp(s[i] * scale - lse[i])
            p = p if i >= first else like(p, 0.0)
            p_dot, off = p * (s_dot[i] * scale - lse_dot[i]), d[i] - delta[i]
            s[i], s_dot[i] = p, p_dot
            d_dot[i] = (p_dot * off + p * (d_dot[i] - delta_dot[i])) * scale
            d[i] = p * off * scale


@njit
def _attend_back(dqkv_dot, scratch, given, sample, head, begin, length, positions, heads, depth, causal):
    """What one block of queries of one head adds to dqkv'; `given`: qkv, qkv', y, y', lse, lse', dy and dy'."""
    qkv, qkv_dot, y, y_dot, lse, lse_dot, dy, dy_dot = given
    width, row = heads * depth, 3 * heads * depth
    (q, q_dot, do, do_dot), blocks, numbers = _pieces(scratch, depth)
    p, p_dot, ds, ds_dot = blocks
    queries, base = min(QUERIES, length - begin), sample * positions * row + head * depth
    out, first = (sample * positions + begin) * width + head * depth, (sample * heads + head) * positions + begin
    scale = like(y[0], 1.0 / math.sqrt(depth))
    here = base + begin * row
    turn(q, qkv, here, queries, row, depth)
    turn(q_dot, qkv_dot, here, queries, row, depth)
    turn(do, dy, out, queries, width, depth)
    turn(do_dot, dy_dot, out, queries, width, depth)
    clear_rows(scratch, 4 * depth * QUERIES + 4 * BLOCK, 4, QUERIES, QUERIES)
    for i in range(queries):
        line = slice(out + i * width, out + i * width + depth)
        numbers[0][i], numbers[1][i] = lse[first + i], lse_dot[first + i]
        numbers[2][i] = row_dot(dy[line], y[line])
        numbers[3][i] = row_dot(dy_dot[line], y[line]) + row_dot(dy[line], y_dot[line])
    limit = begin + queries if causal else length
    for key in range(0, limit, KEYS):
        keys, k, v = min(KEYS, limit - key), base + width + key * row, base + 2 * width + key * row
        scores(p, qkv, k, row, q, keys, depth, ZERO)
        scores(p_dot, qkv_dot, k, row, q, keys, depth, ZERO)
        scores(p_dot, qkv, k, row, q_dot, keys, depth, ACCUMULATE)
        scores(ds, qkv, v, row, do, keys, depth, ZERO)
        scores(ds_dot, qkv_dot, v, row, do, keys, depth, ZERO)
        scores(ds_dot, qkv, v, row, do_dot, keys, depth, ACCUMULATE)
        _to_second(blocks, numbers, scale, keys, key, begin, causal)
        over_queries(dqkv_dot, v, row, p_dot, dy, out, width, queries, keys, depth)
        over_queries(dqkv_dot, v, row, p, dy_dot, out, width, queries, keys, depth)
        over_queries(dqkv_dot, k, row, ds_dot, qkv, here, row, queries, keys, depth)
        over_queries(dqkv_dot, k, row, ds, qkv_dot, here, row, queries, keys, depth)
        start = ACCUMULATE if key > 0 else ZERO
        over_keys(dqkv_dot, here, row, ds_dot, qkv, k, row, queries, keys, depth, start)
        over_keys(dqkv_dot, here, row, ds, qkv_dot, k, row, queries, keys, depth, ACCUMULATE)


@kernel(uses=(GEMM,))
def attention_backward_tangent(
    dqkv_dot,
    scratch,
    qkv,
    qkv_dot,
    y,
    y_dot,
    lse,
    lse_dot,
    dy,
    dy_dot,
    n,
    sizes: AttentionSizes,
    causal,
    each,
    lengths_address,
    lengths_code,
    part,
    parts,
):
    """The derivative of dqkv, from `attention_backward`, along the direction.

    dqkv_dot OUT (n, positions, 3 * heads * depth), qkv and qkv_dot IN (n, positions, 3 * heads * depth), y, y_dot, dy
    and dy_dot IN (n, positions, heads * depth), lse and lse_dot IN (n, heads, positions); scratch: `each` elements per
    thread.
    """
    positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
    width, row = heads * depth, 3 * heads * depth
    mine, given = scratch[part * each : (part + 1) * each], (qkv, qkv_dot, y, y_dot, lse, lse_dot, dy, dy_dot)
    first, last = share(n * heads, part, parts)
    for pair in range(first, last):
        sample, head = pair // heads, pair % heads
        length = length_at(lengths_address, lengths_code, sample, positions)
        base = sample * positions * row + head * depth
        clear_rows(dqkv_dot, base + length * row, positions - length, row, depth)
        clear_rows(dqkv_dot, base + width, positions, row, depth)
        clear_rows(dqkv_dot, base + 2 * width, positions, row, depth)
        for begin in range(0, length, QUERIES):
            _attend_back(dqkv_dot, mine, given, sample, head, begin, length, positions, heads, depth, causal)
