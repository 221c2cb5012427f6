"""Attention on the device, block by block and without a T x T matrix: equations as in nbprop/layers/attention.

Each thread block takes one head of one sample and one block of its queries (of its keys, for dK and dV), and loops over
the blocks of the others (Dao 2023, "FlashAttention-2", sections 3.1 and 3.2). Unlike there, no thread block accumulates
into another's result: scores are recomputed for dQ, rather than dQ summed by atomics. A tile of scores is computed in
registers as in products.py, and goes to shared memory, where it is multiplied with a block of values.

If a head has more features than a tile has columns, its output columns are split over several thread blocks, each of
which recomputes the scores. Summation order depends on sizes and lengths alone.

Dimensions: n samples; positions (T) of each; heads; depth (D) features a head.
"""

import math

import numpy as np

from nbprop.cuda.functions import exp, log, sqrt
from nbprop.cuda.groups import rows_of, team_max, team_of, team_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.outer import Tile, lead_of, outer_products, places
from nbprop.cuda.toolkit import SIMULATED, THREADS, cuda, device_function, grid_size
from nbprop.cuda.vectors import ALIGNMENT
from nbprop.layers.attention.kernels import AttentionSizes, attention_backward, attention_forward
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at

# A square tile of scores for each dtype: 64 x 64 in float64 would spill registers.
TILES = {
    np.float32: Tile(4, 4, 4, 2, 1) if SIMULATED else Tile(64, 64, 16, 4, 4),
    np.float64: Tile(4, 4, 4, 2, 1) if SIMULATED else Tile(32, 32, 16, 2, 2),
}


def _sizes(tile):
    """Elements of a slice and of a tile in shared memory, each of rows lead_of(columns) apart."""
    return tile.depth * lead_of(tile.columns), tile.rows * lead_of(tile.columns)


def _score_product(tile):
    """A device function: score(acc, a_slice, b_slice, a, a_first, a_row, a_count, b, b_first, b_row, b_count, depth).

    acc += A B^T for A (a_count, depth), whose rows are a_row elements apart from a[a_first] on, and B likewise.
    """
    side, _, steps, _, _ = tile
    loads, lead, add = side * steps // THREADS, lead_of(side), outer_products(tile)

    @device_function
    def fill(turned, x, first, row_stride, count, begin, depth):
        for k in range(loads):
            number = cuda.threadIdx.x + k * THREADS
            row, step = number // steps, number % steps
            inside = row < count and begin + step < depth
            place = np.uint64(first + row * row_stride + begin + step)
            turned[np.uint64(step * lead + row)] = x[place] if inside else like(x[0], 0.0)

    @device_function
    def score(acc, a_slice, b_slice, a, a_first, a_row, a_count, b, b_first, b_row, b_count, depth):
        for begin in range(0, depth, steps):
            fill(a_slice, a, a_first, a_row, a_count, begin, depth)
            fill(b_slice, b, b_first, b_row, b_count, begin, depth)
            cuda.syncthreads()
            add(acc, acc, a_slice, 0, b_slice, 0)
            cuda.syncthreads()

    return score


def _value_product(tile):
    """A device function: add_product(acc, p, b_slice, b, first, row, count, columns).

    acc += P B for P (side, count) in shared memory, and B (count, columns), whose rows are `row` elements apart in b.
    """
    side, _, steps, _, _ = tile
    loads, lead, add = side * steps // THREADS, lead_of(side), outer_products(tile, by_rows=True)

    @device_function
    def add_product(acc, p, b_slice, b, first, row, count, columns):
        for begin in range(0, count, steps):
            for k in range(loads):
                number = cuda.threadIdx.x + k * THREADS
                step, col = number // side, number % side
                inside = begin + step < count and col < columns
                place = np.uint64(first + (begin + step) * row + col)
                b_slice[np.uint64(step * lead + col)] = b[place] if inside else like(b[0], 0.0)
            cuda.syncthreads()
            add(acc, acc, p, begin, b_slice, 0)
            cuda.syncthreads()

    return add_product


def _places(tile):
    """Device functions: clear(acc), and stage(p, acc): the accumulators to the tile p in shared memory."""
    (side, _, _, each_row, each_column), (row_of, column_of) = tile, places(tile)
    lead = lead_of(side)

    @device_function
    def clear(acc):
        for k in range(each_row * each_column):
            acc[k] = like(acc[0], 0.0)

    @device_function
    def stage(p, acc):
        for r in range(each_row):
            for c in range(each_column):
                p[np.uint64(row_of(r) * lead + column_of(c))] = acc[r * each_column + c]
        cuda.syncthreads()

    return clear, stage


def _store_tile(tile):
    """A device function: store(y, acc, first, row, length, rows, columns).

    The first `length` rows of a tile to y, whose rows are `row` elements apart from y[first] on; zeros up to `rows`.
    """
    (_, _, _, each_row, each_column), (row_of, column_of) = tile, places(tile)

    @device_function
    def store(y, acc, first, row, length, rows, columns):
        for r in range(each_row):
            i = row_of(r)
            for c in range(each_column):
                j = column_of(c)
                if i < rows and j < columns:
                    value = acc[r * each_column + c] if i < length else like(y[0], 0.0)
                    y[np.uint64(first + i * row + j)] = value

    return store


@device_function
def _work(at, side, n, positions, heads, depth):
    """(pair of sample and head, first position, first column) of a work item; the last positions come first."""
    parts, blocks = (depth + side - 1) // side, (positions + side - 1) // side
    block = at // parts
    return block % (n * heads), (blocks - 1 - block // (n * heads)) * side, at % parts * side


def _amount(dtype):
    """Blocks of a launch of a kernel for one dtype, 0 in the other."""
    side, size = TILES[dtype].rows, np.dtype(dtype).itemsize

    def blocks(n, positions, heads, depth, itemsize):
        return grid_size(n * heads * -(-positions // side) * -(-depth // side), 1) if itemsize == size else 0

    return blocks


# -- forward -------------------------------------------------------------------------------------------------


def _softmax(tile):
    """A device function: one step of the online softmax along the rows of a tile of scores, one team per row.

    row_max, total = update(p, space, factor, row_max, total, scale, key, seen): p INOUT, the tile: scores in,
    exponentials out; factor OUT (side,): factors for the sums over earlier blocks. A row sees the keys below `seen`.
    """
    side = tile.rows
    team, lead = THREADS // side, lead_of(side)
    width = side // team

    @device_function
    def update(p, space, factor, row_max, total, scale, key, seen):
        row, lane = cuda.threadIdx.x // team, cuda.threadIdx.x % team
        first, highest, fresh = lane * width, row_max, like(scale, 0.0)
        for j in range(first, min(first + width, seen - key)):
            if p[np.uint64(row * lead + j)] > highest or p[np.uint64(row * lead + j)] != p[np.uint64(row * lead + j)]:
                highest = p[np.uint64(row * lead + j)]
        highest = team_max(space, highest, lane, team)
        for j in range(first, first + width):
            e = exp((p[np.uint64(row * lead + j)] - highest) * scale) if key + j < seen else like(scale, 0.0)
            p[np.uint64(row * lead + j)] = e
            fresh += e
        change = exp((row_max - highest) * scale) if key > 0 else like(scale, 0.0)
        if lane == 0:
            factor[row] = change
        return highest, total * change + team_sum(space, fresh, lane, team)

    return update


def _forward(dtype):
    tile = TILES[dtype]
    (side, _, _, each_row, each_column), row_of = tile, places(tile)[0]
    size, team = each_row * each_column, THREADS // side
    score, add_product, update, store = _score_product(tile), _value_product(tile), _softmax(tile), _store_tile(tile)
    (clear, stage), (slice_size, tile_size) = _places(tile), _sizes(tile)

    @device_function
    def scale_rows(acc, factor):
        for r in range(each_row):
            for c in range(each_column):
                acc[r * each_column + c] *= factor[np.uint64(row_of(r))]

    @device_function
    def attend(acc, out, a_slice, b_slice, p, factor, space, qkv, base, begin, column, length, width, depth, causal):
        """The unscaled sums over all keys in `out`, their factors in `factor`; returns the log-sum-exp of a row."""
        row, scale = 3 * width, like(out[0], 1.0) / sqrt(like(out[0], depth))
        query = begin + cuda.threadIdx.x // team
        seen = query + 1 if causal > 0 else length
        row_max, total = like(scale, -math.inf), like(scale, 0.0)
        clear(out)
        for key in range(0, min(begin + side, length) if causal > 0 else length, side):
            keys, k, v = min(side, length - key), base + width + key * row, base + 2 * width + key * row + column
            clear(acc)
            score(acc, a_slice, b_slice, qkv, base + begin * row, row, length - begin, qkv, k, row, keys, depth)
            stage(p, acc)
            row_max, total = update(p, space, factor, row_max, total, scale, key, seen)
            scale_rows(out, factor)
            add_product(out, p, b_slice, qkv, v, row, keys, depth - column)
        if cuda.threadIdx.x % team == 0:
            factor[cuda.threadIdx.x // team] = like(scale, 1.0) / total
        cuda.syncthreads()
        return row_max * scale + log(total)

    @on_device(attention_forward, blocks=_amount(dtype), dtypes=(dtype,), resident=1, apart=True)
    def forward(y, lse, qkv, n, sizes: AttentionSizes, causal, lengths_address, lengths_code):
        """y = softmax(Q K^T / sqrt(depth)) V in each head; y = 0 from the length of a sample on.

        y OUT (n, positions, heads * depth), lse OUT (n, heads, positions): log-sum-exp of each row of scores; qkv IN
        (n, positions, 3 * heads * depth).
        """
        positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
        a_slice = cuda.shared.array(slice_size, y.dtype, ALIGNMENT)
        b_slice = cuda.shared.array(slice_size, y.dtype, ALIGNMENT)
        p = cuda.shared.array(tile_size, y.dtype, ALIGNMENT)
        factor = cuda.shared.array(side, y.dtype)
        space = cuda.shared.array(THREADS, y.dtype)
        acc, out, width = cuda.local.array(size, y.dtype), cuda.local.array(size, y.dtype), heads * depth
        pieces = (depth + side - 1) // side * ((positions + side - 1) // side)
        for at in range(cuda.blockIdx.x, n * heads * pieces, cuda.gridDim.x):
            pair, begin, column = _work(at, side, n, positions, heads, depth)
            sample, head = pair // heads, pair % heads
            length = length_at(lengths_address, lengths_code, sample, positions)
            base = sample * positions * 3 * width + head * depth
            if begin < length:
                sums = attend(
                    *(acc, out, a_slice, b_slice, p, factor, space, qkv, base, begin, column),
                    *(length, width, depth, causal),
                )
                scale_rows(out, factor)
                query = begin + cuda.threadIdx.x // team
                if column == 0 and cuda.threadIdx.x % team == 0 and query < length:
                    lse[pair * positions + query] = sums
            place = (sample * positions + begin) * width + head * depth + column
            store(y, out, place, width, length - begin, positions - begin, depth - column)

    return forward


# -- backward ------------------------------------------------------------------------------------------------


@on_device(
    attention_backward,
    blocks=lambda n, positions, heads, depth: rows_of(n * heads * positions, depth),
    scratch=lambda n, positions, heads: n * heads * positions,
)
def deltas(partials, y, dy, n, sizes: AttentionSizes):
    """delta = dO . O of each query; one team of threads per query.

    partials OUT (n, heads, positions); y and dy IN (n, positions, heads * depth).
    """
    positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
    space, team = cuda.shared.array(THREADS, y.dtype), team_of(depth)
    for first in range(cuda.blockIdx.x * THREADS, n * positions * heads * team, cuda.gridDim.x * THREADS):
        row, lane, total = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team, like(y[0], 0.0)
        exists = row < n * positions * heads
        for d in range(lane, depth if exists else 0, team):
            total += dy[row * depth + d] * y[row * depth + d]
        total = team_sum(space, total, lane, team)
        if lane == 0 and exists:
            token, head = row // heads, row % heads
            partials[(token // positions * heads + head) * positions + token % positions] = total


def _backward(dtype):
    tile = TILES[dtype]
    (side, _, _, each_row, each_column), (row_of, column_of) = tile, places(tile)
    size = each_row * each_column
    score, add_product, store, (clear, stage) = (
        _score_product(tile),
        _value_product(tile),
        _store_tile(tile),
        _places(tile),
    )
    slice_size, tile_size = _sizes(tile)
    options = {"blocks": _amount(dtype), "dtypes": (dtype,), "resident": 1, "apart": True}

    @device_function
    def differentiate(acc, change, scale, lse, delta, i, j, queries_first, length, causal, by_key):
        """From S sqrt(D) and dP: acc = P, change = dS / sqrt(D). Rows are keys with by_key, else queries."""
        for r in range(each_row):
            for c in range(each_column):
                row, col = i + row_of(r), j + column_of(c)
                query, key = (col, row) if by_key else (row, col)
                at, p = r * each_column + c, like(scale, 0.0)
                if query < length and key < length and (causal == 0 or key <= query):
                    place = np.uint64(queries_first + query)
                    p = exp(acc[at] * scale - lse[place])
                    change[at] = p * (change[at] - delta[place]) * scale
                else:
                    change[at] = p
                acc[at] = p

    @on_device(attention_backward, **options)
    def keys_and_values(dqkv, partials, qkv, lse, dy, n, sizes: AttentionSizes, causal, lengths_address, lengths_code):
        """dK and dV: the columns of keys and values of dqkv; 0 from the length of a sample on.

        dqkv OUT, qkv IN (n, positions, 3 * heads * depth); partials IN (n, heads, positions): delta of each query; lse
        IN (n, heads, positions); dy IN (n, positions, heads * depth).
        """
        positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
        a_slice = cuda.shared.array(slice_size, qkv.dtype, ALIGNMENT)
        b_slice = cuda.shared.array(slice_size, qkv.dtype, ALIGNMENT)
        p = cuda.shared.array(tile_size, qkv.dtype, ALIGNMENT)
        acc, change = cuda.local.array(size, qkv.dtype), cuda.local.array(size, qkv.dtype)
        dk, dv = cuda.local.array(size, qkv.dtype), cuda.local.array(size, qkv.dtype)
        width, scale = heads * depth, like(qkv[0], 1.0) / sqrt(like(qkv[0], depth))
        row, pieces = 3 * width, (depth + side - 1) // side * ((positions + side - 1) // side)
        for at in range(cuda.blockIdx.x, n * heads * pieces, cuda.gridDim.x):
            pair, key, column = _work(at, side, n, positions, heads, depth)
            sample, head = pair // heads, pair % heads
            length = length_at(lengths_address, lengths_code, sample, positions)
            base, of_y = sample * positions * row + head * depth, sample * positions * width + head * depth
            k, v, columns = base + width + key * row, base + 2 * width + key * row, depth - column
            clear(dk)
            clear(dv)
            # If key is at or beyond the length, the range of queries is empty.
            for begin in range(key if causal > 0 else 0, length if key < length else 0, side):
                count, q, do = length - begin, base + begin * row, of_y + begin * width
                clear(acc)
                clear(change)
                score(acc, a_slice, b_slice, qkv, k, row, length - key, qkv, q, row, count, depth)
                score(change, a_slice, b_slice, qkv, v, row, length - key, dy, do, width, count, depth)
                differentiate(acc, change, scale, lse, partials, key, begin, pair * positions, length, causal, True)
                stage(p, acc)
                add_product(dv, p, b_slice, dy, do + column, width, min(side, count), columns)
                stage(p, change)
                add_product(dk, p, b_slice, qkv, q + column, row, min(side, count), columns)
            store(dqkv, dk, k + column, row, length - key, positions - key, columns)
            store(dqkv, dv, v + column, row, length - key, positions - key, columns)

    @on_device(attention_backward, **options)
    def queries(dqkv, partials, qkv, lse, dy, n, sizes: AttentionSizes, causal, lengths_address, lengths_code):
        """dQ: the columns of queries of dqkv; 0 from the length of a sample on.

        dqkv OUT, qkv IN (n, positions, 3 * heads * depth); partials IN (n, heads, positions): delta of each query; lse
        IN (n, heads, positions); dy IN (n, positions, heads * depth).
        """
        positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
        a_slice = cuda.shared.array(slice_size, qkv.dtype, ALIGNMENT)
        b_slice = cuda.shared.array(slice_size, qkv.dtype, ALIGNMENT)
        p = cuda.shared.array(tile_size, qkv.dtype, ALIGNMENT)
        acc, change = cuda.local.array(size, qkv.dtype), cuda.local.array(size, qkv.dtype)
        dq = cuda.local.array(size, qkv.dtype)
        width, scale = heads * depth, like(qkv[0], 1.0) / sqrt(like(qkv[0], depth))
        row, pieces = 3 * width, (depth + side - 1) // side * ((positions + side - 1) // side)
        for at in range(cuda.blockIdx.x, n * heads * pieces, cuda.gridDim.x):
            pair, begin, column = _work(at, side, n, positions, heads, depth)
            sample, head = pair // heads, pair % heads
            length = length_at(lengths_address, lengths_code, sample, positions)
            base, of_y = sample * positions * row + head * depth, sample * positions * width + head * depth
            q, do, count = base + begin * row, of_y + begin * width, length - begin
            clear(dq)
            for key in range(0, 0 if count <= 0 else min(begin + side, length) if causal > 0 else length, side):
                keys, k, v = length - key, base + width + key * row, base + 2 * width + key * row
                clear(acc)
                clear(change)
                score(acc, a_slice, b_slice, qkv, q, row, count, qkv, k, row, keys, depth)
                score(change, a_slice, b_slice, dy, do, width, count, qkv, v, row, keys, depth)
                differentiate(acc, change, scale, lse, partials, begin, key, pair * positions, length, causal, False)
                stage(p, change)
                add_product(dq, p, b_slice, qkv, k + column, row, min(side, keys), depth - column)
            store(dqkv, dq, q + column, row, count, positions - begin, depth - column)

    return keys_and_values, queries


CUDA_KERNELS = _forward(np.float32), _forward(np.float64), deltas, *_backward(np.float32), *_backward(np.float64)
