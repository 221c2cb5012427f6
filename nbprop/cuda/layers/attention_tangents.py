"""The derivatives of attention along a direction, on the device: equations as in nbprop/layers/attention/tangents.py.

Blocks, tiles and the order of work are those of attention.py in this folder. A tile of S' is the sum of two products,
Q' K^T + Q K'^T, and so is one of dP'. Each sum runs over its terms in an order that depends on sizes and lengths alone.

Dimensions: n samples; positions (T) of each; heads; depth (D) features a head.
"""

import numpy as np

from nbprop.cuda.functions import exp, sqrt
from nbprop.cuda.groups import rows_of, team_of, team_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.layers.attention import (
    TILES,
    _amount,
    _places,
    _score_product,
    _sizes,
    _store_tile,
    _value_product,
    _work,
)
from nbprop.cuda.mma import unrolled
from nbprop.cuda.outer import lead_of, places
from nbprop.cuda.toolkit import THREADS, cuda, device_function
from nbprop.cuda.vectors import ALIGNMENT
from nbprop.layers.attention.kernels import AttentionSizes
from nbprop.layers.attention.tangents import attention_backward_tangent, attention_tangent
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at


def _options(dtype):
    return {"blocks": _amount(dtype), "dtypes": (dtype,), "resident": 1, "apart": True}


def _forward(dtype):
    tile = TILES[dtype]
    (side, _, _, each_row, each_column), (row_of, column_of) = tile, places(tile)
    size, team, lead = each_row * each_column, THREADS // side, lead_of(side)
    each = side // team
    score, add_product, store, (clear, stage) = (
        _score_product(tile),
        _value_product(tile),
        _store_tile(tile),
        _places(tile),
    )
    slice_size, tile_size = _sizes(tile)

    @device_function
    def weigh(acc, change, scale, lse, i, j, first, length, causal):
        """From S and S', both times sqrt(D): acc = P, change = P S'. Rows are queries from i on, columns keys."""
        for r in range(each_row):
            for c in range(each_column):
                query, key, at = i + row_of(r), j + column_of(c), r * each_column + c
                p = like(scale, 0.0)
                if query < length and key < length and (causal == 0 or key <= query):
                    p = exp(acc[at] * scale - lse[np.uint64(first + query)])
                    change[at] = p * change[at] * scale
                else:
                    change[at] = p
                acc[at] = p

    @device_function
    def take_away(out, totals, y, first, row, queries, columns):
        """out -= L' y in each row."""
        for r in range(each_row):
            for c in range(each_column):
                i, j = row_of(r), column_of(c)
                if i < queries and j < columns:
                    out[r * each_column + c] -= totals[np.uint64(i)] * y[np.uint64(first + i * row + j)]

    @on_device(attention_tangent, **_options(dtype))
    def tangent(
        y_dot, lse_dot, qkv, qkv_dot, y, lse, n, sizes: AttentionSizes, causal, lengths_address, lengths_code
    ):  # fmt: skip
        """O' = P S' V + P V' - L' O and L' = sum(P S') over the keys; y' = 0 from the length of a sample on.

        y_dot OUT (n, positions, heads * depth), lse_dot OUT (n, heads, positions), qkv and qkv_dot IN (n, positions,
        3 * heads * depth), y IN (n, positions, heads * depth), lse IN (n, heads, positions).
        """
        positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
        a_slice = cuda.shared.array(slice_size, y.dtype, ALIGNMENT)
        b_slice = cuda.shared.array(slice_size, y.dtype, ALIGNMENT)
        p = cuda.shared.array(tile_size, y.dtype, ALIGNMENT)
        totals = cuda.shared.array(side, y.dtype)
        space = cuda.shared.array(THREADS, y.dtype)
        acc, change = cuda.local.array(size, y.dtype), cuda.local.array(size, y.dtype)
        out, width = cuda.local.array(size, y.dtype), heads * depth
        row, scale = 3 * width, like(y[0], 1.0) / sqrt(like(y[0], depth))
        mine, lane = cuda.threadIdx.x // team, cuda.threadIdx.x % team
        pieces = (depth + side - 1) // side * ((positions + side - 1) // side)
        for at in range(cuda.blockIdx.x, n * heads * pieces, cuda.gridDim.x):
            pair, begin, column = _work(at, side, n, positions, heads, depth)
            sample, head = pair // heads, pair % heads
            length = length_at(lengths_address, lengths_code, sample, positions)
            base, count, columns = sample * positions * row + head * depth, length - begin, depth - column
            q, total = base + begin * row, like(scale, 0.0)
            clear(out)
            for key in range(0, 0 if count <= 0 else min(begin + side, length) if causal > 0 else length, side):
                keys, k, v = min(side, length - key), base + width + key * row, base + 2 * width + key * row + column
                clear(acc)
                clear(change)
                score(acc, a_slice, b_slice, qkv, q, row, count, qkv, k, row, keys, depth)
                score(change, a_slice, b_slice, qkv_dot, q, row, count, qkv, k, row, keys, depth)
                score(change, a_slice, b_slice, qkv, q, row, count, qkv_dot, k, row, keys, depth)
                weigh(acc, change, scale, lse, begin, key, pair * positions, length, causal)
                stage(p, change)
                for j in range(lane * each, (lane + 1) * each):
                    total += p[np.uint64(mine * lead + j)]
                add_product(out, p, b_slice, qkv, v, row, keys, columns)
                stage(p, acc)
                add_product(out, p, b_slice, qkv_dot, v, row, keys, columns)
            total = team_sum(space, total, lane, team)
            if lane == 0:
                totals[mine] = total
                if column == 0 and mine < count:
                    lse_dot[pair * positions + begin + mine] = total
            cuda.syncthreads()
            place = (sample * positions + begin) * width + head * depth + column
            take_away(out, totals, y, place, width, count, columns)
            store(y_dot, out, place, width, count, positions - begin, columns)

    return tangent


@on_device(
    attention_backward_tangent,
    blocks=lambda n, positions, heads, depth: rows_of(n * heads * positions, depth),
    scratch=lambda n, positions, heads: 2 * n * heads * positions,
)
def deltas(partials, y, y_dot, dy, dy_dot, n, sizes: AttentionSizes):
    """delta = dO . O and delta' = dO' . O + dO . O' of each query; one team of threads per query.

    partials OUT (n, heads, positions, 2); y, y_dot, dy and dy_dot IN (n, positions, heads * depth).
    """
    positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
    space, team, queries = cuda.shared.array(THREADS, y.dtype), team_of(depth), n * positions * heads
    for first in range(cuda.blockIdx.x * THREADS, queries * team, cuda.gridDim.x * THREADS):
        row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
        total, change, exists = like(y[0], 0.0), like(y[0], 0.0), row < queries
        for d in range(lane, depth if exists else 0, team):
            at = row * depth + d
            total += dy[at] * y[at]
            change += dy_dot[at] * y[at] + dy[at] * y_dot[at]
        total, change = team_sum(space, total, lane, team), team_sum(space, change, lane, team)
        if lane == 0 and exists:
            token, head = row // heads, row % heads
            to = (token // positions * heads + head) * positions + token % positions
            partials[2 * to], partials[2 * to + 1] = total, change


@device_function
def _range(own, length, causal, by_key, side):
    """The other blocks, from the first to the end, that a block of keys, with by_key, or of queries, meets."""
    if own >= length:
        return 0, 0
    if causal > 0:
        return (own, length) if by_key else (0, min(own + side, length))
    return 0, length


def _stage_turned(tile):
    """A device function: stage_turned(p, acc): the accumulators' transpose to the tile p in shared memory."""
    (_, _, _, each_row, each_column), (row_of, column_of), lead = tile, places(tile), lead_of(tile.rows)

    @device_function
    def stage_turned(p, acc):
        for r in range(each_row):
            for c in range(each_column):
                p[np.uint64(column_of(c) * lead + row_of(r))] = acc[r * each_column + c]
        cuda.syncthreads()

    return stage_turned


def _weights(tile):
    """A device function weigh(given), and seen(at, place), for tiles in registers: queries by keys."""
    (row_of, column_of), each_column = places(tile), tile.each_column

    @device_function
    def seen(at, place):
        """(whether the query of element `at` sees its key, the query)."""
        i, j, length, causal = place
        query, key = i + row_of(at // each_column), j + column_of(at % each_column)
        return query < length and key < length and (causal == 0 or key <= query), query

    @device_function
    def weigh_one(at, given):
        s, s_dot, scale, lse, lse_dot, first, place = given
        sees, query = seen(at, place)
        p = p_dot = like(scale, 0.0)
        if sees:
            p = exp(s[at] * scale - lse[np.uint64(first + query)])
            p_dot = p * (s_dot[at] * scale - lse_dot[np.uint64(first + query)])
        s[at], s_dot[at] = p, p_dot

    # S and S', both times sqrt(D), to P and P', in their places. As a loop it would leave the registers.
    return unrolled(tile.each_row * each_column, weigh_one), seen


def _values(dtype):
    tile = TILES[dtype]
    side, size = tile.rows, tile.each_row * tile.each_column
    score, add_product, store, stage_turned = (
        _score_product(tile),
        _value_product(tile),
        _store_tile(tile),
        _stage_turned(tile),
    )
    (clear, _), (weigh, _), (slice_size, tile_size) = _places(tile), _weights(tile), _sizes(tile)

    @on_device(attention_backward_tangent, **_options(dtype))
    def values(
        dqkv_dot, qkv, qkv_dot, lse, lse_dot, dy, dy_dot,
        n, sizes: AttentionSizes, causal, lengths_address, lengths_code,
    ):  # fmt: skip
        """dV' = P'^T dO + P^T dO': the columns of values; 0 from the length of a sample on.

        dqkv_dot OUT, qkv and qkv_dot IN (n, positions, 3 * heads * depth); lse and lse_dot IN (n, heads, positions); dy
        and dy_dot IN (n, positions, heads * depth).
        """
        positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
        a_slice = cuda.shared.array(slice_size, qkv.dtype, ALIGNMENT)
        b_slice = cuda.shared.array(slice_size, qkv.dtype, ALIGNMENT)
        p = cuda.shared.array(tile_size, qkv.dtype, ALIGNMENT)
        s, s_dot = cuda.local.array(size, qkv.dtype), cuda.local.array(size, qkv.dtype)
        dv, width = cuda.local.array(size, qkv.dtype), heads * depth
        row, scale = 3 * width, like(qkv[0], 1.0) / sqrt(like(qkv[0], depth))
        pieces = (depth + side - 1) // side * ((positions + side - 1) // side)
        for at in range(cuda.blockIdx.x, n * heads * pieces, cuda.gridDim.x):
            pair, key, column = _work(at, side, n, positions, heads, depth)
            sample, head = pair // heads, pair % heads
            length = length_at(lengths_address, lengths_code, sample, positions)
            base, of_y = sample * positions * row + head * depth, sample * positions * width + head * depth + column
            k, keys, columns, first = base + width + key * row, length - key, depth - column, pair * positions
            clear(dv)
            start, stop = _range(key, length, causal, True, side)
            for begin in range(start, stop, side):
                q, count, do = base + begin * row, length - begin, of_y + begin * width
                clear(s)
                clear(s_dot)
                score(s, a_slice, b_slice, qkv, q, row, count, qkv, k, row, keys, depth)
                score(s_dot, a_slice, b_slice, qkv_dot, q, row, count, qkv, k, row, keys, depth)
                score(s_dot, a_slice, b_slice, qkv, q, row, count, qkv_dot, k, row, keys, depth)
                weigh((s, s_dot, scale, lse, lse_dot, first, (begin, key, length, causal)))
                stage_turned(p, s_dot)
                add_product(dv, p, b_slice, dy, do, width, min(side, count), columns)
                stage_turned(p, s)
                add_product(dv, p, b_slice, dy_dot, do, width, min(side, count), columns)
            store(dqkv_dot, dv, k + width + column, row, keys, positions - key, columns)

    return values


def _keys_or_queries(dtype, by_key):
    """Of dK' with by_key, else of dQ'. A launch for dK' and dV' would need more registers than there are."""
    tile = TILES[dtype]
    side, size = tile.rows, tile.each_row * tile.each_column
    score, add_product, store = _score_product(tile), _value_product(tile), _store_tile(tile)
    (clear, plain), (weigh, seen), (slice_size, tile_size) = _places(tile), _weights(tile), _sizes(tile)
    stage = _stage_turned(tile) if by_key else plain

    @device_function
    def differentiate_one(at, given):
        p, p_dot, d, d_dot, scale, deltas, first, place = given
        sees, query = seen(at, place)
        ds = ds_dot = like(scale, 0.0)
        if sees:
            off = d[at] - deltas[np.uint64(2 * (first + query))]
            change = d_dot[at] - deltas[np.uint64(2 * (first + query) + 1)]
            ds, ds_dot = p[at] * off * scale, (p_dot[at] * off + p[at] * change) * scale
        d[at], d_dot[at] = ds, ds_dot

    differentiate = unrolled(size, differentiate_one)  # dP and dP' to dS / sqrt(D) and dS' / sqrt(D)

    @on_device(attention_backward_tangent, **_options(dtype))
    def keys_or_queries(
        dqkv_dot, partials, qkv, qkv_dot, lse, lse_dot, dy, dy_dot,
        n, sizes: AttentionSizes, causal, lengths_address, lengths_code,
    ):  # fmt: skip
        """dK' = dS'^T Q + dS^T Q', or dQ' = dS' K + dS K': the columns of keys, or of queries; 0 beyond a length.

        dqkv_dot OUT, qkv and qkv_dot IN (n, positions, 3 * heads * depth); partials IN (n, heads, positions, 2): delta
        and delta' of each query; lse and lse_dot IN (n, heads, positions); dy and dy_dot IN (n, positions, heads *
        depth).
        """
        positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
        a_slice = cuda.shared.array(slice_size, qkv.dtype, ALIGNMENT)
        b_slice = cuda.shared.array(slice_size, qkv.dtype, ALIGNMENT)
        p = cuda.shared.array(tile_size, qkv.dtype, ALIGNMENT)
        s, s_dot = cuda.local.array(size, qkv.dtype), cuda.local.array(size, qkv.dtype)
        d, d_dot = cuda.local.array(size, qkv.dtype), cuda.local.array(size, qkv.dtype)
        out, width = cuda.local.array(size, qkv.dtype), heads * depth
        row, scale = 3 * width, like(qkv[0], 1.0) / sqrt(like(qkv[0], depth))
        pieces = (depth + side - 1) // side * ((positions + side - 1) // side)
        for at in range(cuda.blockIdx.x, n * heads * pieces, cuda.gridDim.x):
            pair, own, column = _work(at, side, n, positions, heads, depth)
            sample, head = pair // heads, pair % heads
            length = length_at(lengths_address, lengths_code, sample, positions)
            base, of_y = sample * positions * row + head * depth, sample * positions * width + head * depth
            first, columns = pair * positions, depth - column
            clear(out)
            start, stop = _range(own, length, causal, by_key, side)
            for other in range(start, stop, side):
                begin, key = (other, own) if by_key else (own, other)
                q, count, do = base + begin * row, length - begin, of_y + begin * width
                k, keys, v = base + width + key * row, length - key, base + 2 * width + key * row
                clear(s)
                clear(s_dot)
                score(s, a_slice, b_slice, qkv, q, row, count, qkv, k, row, keys, depth)
                score(s_dot, a_slice, b_slice, qkv_dot, q, row, count, qkv, k, row, keys, depth)
                score(s_dot, a_slice, b_slice, qkv, q, row, count, qkv_dot, k, row, keys, depth)
                weigh((s, s_dot, scale, lse, lse_dot, first, (begin, key, length, causal)))
                clear(d)
                clear(d_dot)
                score(d, a_slice, b_slice, dy, do, width, count, qkv, v, row, keys, depth)
                score(d_dot, a_slice, b_slice, dy, do, width, count, qkv_dot, v, row, keys, depth)
                score(d_dot, a_slice, b_slice, dy_dot, do, width, count, qkv, v, row, keys, depth)
                differentiate((s, s_dot, d, d_dot, scale, partials, first, (begin, key, length, causal)))
                there, left = (q, count) if by_key else (k, keys)
                stage(p, d_dot)
                add_product(out, p, b_slice, qkv, there + column, row, min(side, left), columns)
                stage(p, d)
                add_product(out, p, b_slice, qkv_dot, there + column, row, min(side, left), columns)
            place = base + own * row + (width if by_key else 0) + column
            store(dqkv_dot, out, place, row, length - own, positions - own, columns)

    return keys_or_queries


CUDA_KERNELS = (
    *(_forward(np.float32), _forward(np.float64), deltas, _values(np.float32), _values(np.float64)),
    *(_keys_or_queries(dtype, by_key) for dtype in (np.float32, np.float64) for by_key in (True, False)),
)
