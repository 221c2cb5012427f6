"""Attention with tensor cores, for plans with a precision; equations as in nbprop/layers/attention.

Blocks and recomputed scores are those of attention.py. A warp takes 16 rows of a block of scores (queries; for dK and
dV, keys) and all of its columns, in registers (mma.py): what becomes of the scores, rounded in place, is the first
operand of the next product. So the softmax of a row is made by the four lanes that hold it. Blocks of q, k, v and dy
are rounded into shared memory; maxima, sums, the softmax and all accumulators are float32.

Summation order depends on sizes and lengths alone. Dimensions: n samples; positions (T) of each; heads; depth (D)
features a head.
"""

import math

import numpy as np
from numba import float32, uint32

from nbprop.cuda.functions import exp, log, sqrt
from nbprop.cuda.kernels import PLANES, on_device
from nbprop.cuda.layers.attention import deltas
from nbprop.cuda.mma import high_of, ldmatrix, low_of, pack, read, unrolled, write
from nbprop.cuda.tensor_products import filler
from nbprop.cuda.tensor_tile import UNIT, clear, lead_of, place_of_c, product
from nbprop.cuda.toolkit import SIMULATED, cuda, device_function, grid_size
from nbprop.cuda.warps import LANES, thread_again, xor_lane
from nbprop.layers.attention.kernels import AttentionSizes, attention_backward, attention_forward
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at

# Warps of a block, with 16 rows of scores each; units of its columns, and of the features that are taken at a time.
WARPS, OTHERS, UNITS = (2, 1, 1) if SIMULATED else (4, 2, 4)
ROWS, COLUMNS, FEATURES, THREADS = WARPS * UNIT, OTHERS * UNIT, UNITS * UNIT, WARPS * LANES
# A block is staged in so many parts, each of which goes through registers.
PARTS = 2 if SIMULATED else 8
LEAD, SCORES, SUMS = lead_of(UNITS), 8 * OTHERS, 8 * UNITS


class _Parts:
    """The device functions that the kernels of one precision are made of."""

    def __init__(self, precision):
        self.planes = PLANES[precision]
        planes = self.planes
        self.words = 4 * UNITS * planes
        # Places in shared memory of two blocks of rows and two of columns.
        self.rows_plane, self.columns_plane = ROWS * LEAD, COLUMNS * LEAD
        self.first, self.second = 0, planes * self.rows_plane
        self.third = 2 * planes * self.rows_plane
        self.fourth = self.third + planes * self.columns_plane
        self.shared = 4 * (self.fourth + planes * self.columns_plane)
        self.stage_rows = self._stage(ROWS, self.rows_plane)
        self.stage_columns = self._stage(COLUMNS, self.columns_plane)
        self.score, self.add_product = self._score(), self._add_product()

    def _stage(self, count, plane):
        """stage(held, space, place, x, first, row_stride, rows, columns): (count, FEATURES) of x, zeros beyond."""
        some = count // PARTS
        get, put_all, _ = filler(LEAD, FEATURES // 2, some * FEATURES // 2, self.planes, plane, THREADS)

        @device_function
        def stage(held, space, place, x, first, row_stride, rows, columns):
            for begin in range(0, count, some):
                get(held, 0, x, first + begin * row_stride, row_stride, rows - begin, columns)
                put_all(held, 0, space, place + begin * LEAD)

        return stage

    def _score(self):
        """score(acc, words, b, space, a_place, b_place): acc (16, COLUMNS) += A B^T, blocks in shared memory."""
        planes, a_plane, b_plane = self.planes, self.rows_plane, self.columns_plane
        times, low = product(UNITS, OTHERS, planes, UNITS, True), 4 * UNITS

        @device_function
        def load_one(number, given):
            words, space, place = given
            ldmatrix(words, 4 * number, space, place + 8 * number)
            if planes == 2:
                ldmatrix(words, low + 4 * number, space, place + 8 * number + a_plane)

        load = unrolled(UNITS, load_one)

        @device_function
        def score(acc, words, b, space, a_place, b_place):
            warp, lane = thread_again() // 32, thread_again() % 32
            load((words, space, a_place + (16 * warp + lane % 16) * LEAD + lane // 16 * 4))
            times(acc, words, b, space, b_place + (lane // 16 * 8 + lane % 8) * LEAD + lane // 8 % 2 * 4, b_plane)

        return score

    def _add_product(self):
        """add_product(out, acc, words, b, space, place): out (16, FEATURES) += acc rounded, times a block of rows."""
        planes, plane = self.planes, self.columns_plane
        times, low = product(OTHERS, UNITS, planes, UNITS, False), 4 * UNITS

        @device_function
        def round_one(number, given):
            words, acc = given
            at = place_of_c(number)
            word = pack(acc[at], acc[at + 1])
            words[number] = word
            if planes == 2:
                words[low + number] = pack(acc[at] - low_of(word), acc[at + 1] - high_of(word))

        round_all = unrolled(4 * OTHERS, round_one)

        @device_function
        def add_product(out, acc, words, b, space, place):
            lane = thread_again() % 32
            round_all((words, acc))
            times(out, words, b, space, place + lane % 16 * LEAD + lane // 16 * 4, plane)

        return add_product


clear_scores, clear_sums = clear(SCORES), clear(SUMS)


@device_function
def place_of(number):
    """(row, column) within a block of scores of register `number` of this thread."""
    warp, lane = thread_again() // 32, thread_again() % 32
    return 16 * warp + lane // 4 + number % 4 // 2 * 8, number // 4 * 8 + lane % 4 * 2 + number % 2


@device_function
def _store_one(number, given):
    y, out, first, stride, length, rows, columns = given
    row, col = place_of(number)
    if row < rows and col < columns:
        write(y, first + row * stride + col, out[number] if row < length else like(out[0], 0.0))


_store_all = unrolled(SUMS, _store_one)


@device_function
def store(y, out, first, stride, length, rows, columns):
    """The first `length` rows of a block to y, `stride` elements apart from y[first] on; zeros up to `rows`."""
    _store_all((y, out, first, stride, length, rows, columns))


@device_function
def _work(at, n, positions, heads, depth):
    """(pair of sample and head, first row, first column) of a work item; the last positions come first."""
    parts, blocks = (depth + FEATURES - 1) // FEATURES, (positions + ROWS - 1) // ROWS
    block = at // parts
    return block % (n * heads), (blocks - 1 - block // (n * heads)) * ROWS, at % parts * FEATURES


def _amount(n, positions, heads, depth):
    return grid_size(n * heads * -(-positions // ROWS) * -(-depth // FEATURES), 1)


# -- forward -------------------------------------------------------------------------------------------------


@device_function
def _max_one(number, given):
    acc, highest, left = given
    half = number % 4 // 2
    _, col = place_of(number)
    value = acc[number]
    if col < left[half] and (value > highest[half] or value != value):
        highest[half] = value


@device_function
def _exp_one(number, given):
    acc, highest, left, fresh, scale = given
    half = number % 4 // 2
    _, col = place_of(number)
    acc[number] = exp((acc[number] - highest[half]) * scale) if col < left[half] else like(scale, 0.0)
    fresh[half] += acc[number]


@device_function
def _scale_one(number, given):
    out, factor = given
    out[number] *= factor[number % 4 // 2]


_max_all, _exp_all, _scale_all = unrolled(SCORES, _max_one), unrolled(SCORES, _exp_one), unrolled(SUMS, _scale_one)


@device_function
def _softmax(acc, out, row_max, total, left, scale, first):
    """A step of the online softmax: exponentials in acc; out and total scaled to the new maxima. A row's four lanes.

    left: how many of the block's columns each of the two rows sees.
    """
    highest, fresh, factor = cuda.local.array(2, float32), cuda.local.array(2, float32), cuda.local.array(2, float32)
    for half in range(2):
        highest[half], fresh[half] = row_max[half], like(scale, 0.0)
    _max_all((acc, highest, left))
    for half in range(2):
        for bit in range(1, 3):
            other = xor_lane(highest[half], bit)
            if other > highest[half] or other != other:
                highest[half] = other
    _exp_all((acc, highest, left, fresh, scale))
    for half in range(2):
        fresh[half] += xor_lane(fresh[half], 1)
        fresh[half] += xor_lane(fresh[half], 2)
        factor[half] = like(scale, 0.0) if first else exp((row_max[half] - highest[half]) * scale)
        total[half] = total[half] * factor[half] + fresh[half]
        row_max[half] = highest[half]
    _scale_all((out, factor))


def _forward(precision):
    parts = _Parts(precision)
    score, add_product, words_size = parts.score, parts.add_product, parts.words
    stage_rows, stage_columns = parts.stage_rows, parts.stage_columns
    q_place, k_place, v_place, shared = parts.first, parts.third, parts.fourth, parts.shared
    held_size = max(ROWS, COLUMNS) * FEATURES // PARTS // THREADS

    @on_device(
        attention_forward,
        blocks=_amount,
        dtypes=(np.float32,),
        resident=1,
        apart=True,
        threads=THREADS,
        shared=lambda: shared,
        precision=precision,
        casts=False,
    )
    def tensor_forward(y, lse, qkv, n, sizes: AttentionSizes, causal, lengths_address, lengths_code):
        """y = softmax(Q K^T / sqrt(depth)) V in each head; y = 0 from the length of a sample on.

        y OUT (n, positions, heads * depth), lse OUT (n, heads, positions): log-sum-exp of each row of scores; qkv IN
        (n, positions, 3 * heads * depth).
        """
        positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
        space, held = cuda.shared.array(0, uint32), cuda.local.array(held_size, float32)
        acc, out = cuda.local.array(SCORES, float32), cuda.local.array(SUMS, float32)
        words, b = cuda.local.array(words_size, uint32), cuda.local.array(4, uint32)
        row_max, total, left = cuda.local.array(2, float32), cuda.local.array(2, float32), cuda.local.array(2, np.int64)
        width, scale = heads * depth, like(qkv[0], 1.0) / sqrt(like(qkv[0], depth))
        row, pieces = 3 * width, (depth + FEATURES - 1) // FEATURES * ((positions + ROWS - 1) // ROWS)
        for at in range(cuda.blockIdx.x, n * heads * pieces, cuda.gridDim.x):
            pair, begin, column = _work(at, n, positions, heads, depth)
            sample, head = pair // heads, pair % heads
            length = length_at(lengths_address, lengths_code, sample, positions)
            base = sample * positions * row + head * depth
            clear_sums(out)
            for half in range(2):
                row_max[half], total[half] = like(scale, -math.inf), like(scale, 0.0)
            last = 0 if begin >= length else min(begin + ROWS, length) if causal > 0 else length
            for key in range(0, last, COLUMNS):
                keys, k, v = length - key, base + width + key * row, base + 2 * width + key * row
                clear_scores(acc)
                for d in range(0, depth, FEATURES):
                    cuda.syncthreads()
                    if key == 0 or depth > FEATURES:
                        stage_rows(held, space, q_place, qkv, base + begin * row + d, row, length - begin, depth - d)
                    stage_columns(held, space, k_place, qkv, k + d, row, keys, depth - d)
                    if d == 0:
                        stage_columns(held, space, v_place, qkv, v + column, row, keys, depth - column)
                    cuda.syncthreads()
                    score(acc, words, b, space, q_place, k_place)
                for half in range(2):
                    query = begin + place_of(2 * half)[0]
                    left[half] = (query + 1 if causal > 0 else length) - key
                _softmax(acc, out, row_max, total, left, scale, key == 0)
                add_product(out, acc, words, b, space, v_place)
            if begin < length:
                for half in range(2):
                    query = begin + place_of(2 * half)[0]
                    if column == 0 and thread_again() % 4 == 0 and query < length:
                        write(lse, pair * positions + query, row_max[half] * scale + log(total[half]))
                    total[half] = like(scale, 1.0) / total[half]
                _scale_all((out, total))
            place = (sample * positions + begin) * width + head * depth + column
            store(y, out, place, width, length - begin, positions - begin, depth - column)
            cuda.syncthreads()

    return tensor_forward


# -- backward ------------------------------------------------------------------------------------------------


@device_function
def _differentiate_one(number, given):
    acc, change, scale, lse, delta, i, j, first, length, causal, by_key = given
    row, col = place_of(number)
    query, key = (j + col, i + row) if by_key else (i + row, j + col)
    p = like(scale, 0.0)
    if query < length and key < length and (causal == 0 or key <= query):
        p = exp(acc[number] * scale - read(lse, first + query))
        change[number] = p * (change[number] - read(delta, first + query)) * scale
    else:
        change[number] = p
    acc[number] = p


_differentiate_all = unrolled(SCORES, _differentiate_one)


@device_function
def differentiate(acc, change, scale, lse, delta, i, j, first, length, causal, by_key):
    """From S sqrt(D) and dP: acc = P, change = dS / sqrt(D). Rows are keys with by_key, else queries."""
    _differentiate_all((acc, change, scale, lse, delta, i, j, first, length, causal, by_key))


def _backward(precision):
    parts = _Parts(precision)
    score, add_product, words_size = parts.score, parts.add_product, parts.words
    stage_rows, stage_columns = parts.stage_rows, parts.stage_columns
    first, second, third, fourth, shared = parts.first, parts.second, parts.third, parts.fourth, parts.shared
    held_size = max(ROWS, COLUMNS) * FEATURES // PARTS // THREADS
    options = {"blocks": _amount, "dtypes": (np.float32,), "resident": 1, "apart": True, "threads": THREADS}
    options |= {"shared": lambda: shared, "precision": precision, "casts": False}

    @device_function
    def both_scores(acc, change, words, b, held, space, rows, columns, depth):
        """acc = the products of the rows and columns of q and k, change = those of dy and v; ends behind a barrier.

        rows, columns: (array, place, stride) of each of the two factors, and how many there are.
        """
        x, x_first, x_stride, y, y_first, y_stride, x_count = rows
        z, z_first, z_stride, w, w_first, w_stride, z_count = columns
        clear_scores(acc)
        clear_scores(change)
        for d in range(0, depth, FEATURES):
            cuda.syncthreads()
            stage_rows(held, space, first, x, x_first + d, x_stride, x_count, depth - d)
            stage_rows(held, space, second, y, y_first + d, y_stride, x_count, depth - d)
            stage_columns(held, space, third, z, z_first + d, z_stride, z_count, depth - d)
            stage_columns(held, space, fourth, w, w_first + d, w_stride, z_count, depth - d)
            cuda.syncthreads()
            score(acc, words, b, space, first, third)
            score(change, words, b, space, second, fourth)

    @device_function
    def columns_again(held, space, place, x, at, stride, count, column, depth):
        """Stage the features of a block's columns that this work item sums, where they are not those staged last."""
        if depth > FEATURES:
            cuda.syncthreads()
            stage_columns(held, space, place, x, at + column, stride, count, depth - column)
            cuda.syncthreads()

    @on_device(attention_backward, **options)
    def tensor_keys_and_values(
        dqkv, partials, qkv, lse, dy, n, sizes: AttentionSizes, causal, lengths_address, lengths_code
    ):
        """dK and dV: the columns of keys and values of dqkv; 0 from the length of a sample on.

        dqkv OUT, qkv IN (n, positions, 3 * heads * depth); partials IN (n, heads, positions): delta of each query; lse
        IN (n, heads, positions); dy IN (n, positions, heads * depth).
        """
        positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
        space, held = cuda.shared.array(0, uint32), cuda.local.array(held_size, float32)
        acc, change = cuda.local.array(SCORES, float32), cuda.local.array(SCORES, float32)
        dk, dv = cuda.local.array(SUMS, float32), cuda.local.array(SUMS, float32)
        words, b = cuda.local.array(words_size, uint32), cuda.local.array(4, uint32)
        width, scale = heads * depth, like(qkv[0], 1.0) / sqrt(like(qkv[0], depth))
        row, pieces = 3 * width, (depth + FEATURES - 1) // FEATURES * ((positions + ROWS - 1) // ROWS)
        for at in range(cuda.blockIdx.x, n * heads * pieces, cuda.gridDim.x):
            pair, key, column = _work(at, n, positions, heads, depth)
            sample, head = pair // heads, pair % heads
            length = length_at(lengths_address, lengths_code, sample, positions)
            base, of_y = sample * positions * row + head * depth, sample * positions * width + head * depth
            k, v, columns = base + width + key * row, base + 2 * width + key * row, depth - column
            clear_sums(dk)
            clear_sums(dv)
            # If key is at or beyond the length, the range of queries is empty.
            for begin in range(key if causal > 0 else 0, length if key < length else 0, COLUMNS):
                count, q, do = length - begin, base + begin * row, of_y + begin * width
                of_rows, of_columns = (qkv, k, row, qkv, v, row, length - key), (qkv, q, row, dy, do, width, count)
                both_scores(acc, change, words, b, held, space, of_rows, of_columns, depth)
                differentiate(acc, change, scale, lse, partials, key, begin, pair * positions, length, causal, True)
                columns_again(held, space, third, qkv, q, row, count, column, depth)
                columns_again(held, space, fourth, dy, do, width, count, column, depth)
                add_product(dv, acc, words, b, space, fourth)
                add_product(dk, change, words, b, space, third)
            store(dqkv, dk, k + column, row, length - key, positions - key, columns)
            store(dqkv, dv, v + column, row, length - key, positions - key, columns)

    @on_device(attention_backward, **options)
    def tensor_queries(dqkv, partials, qkv, lse, dy, n, sizes: AttentionSizes, causal, lengths_address, lengths_code):
        """dQ: the columns of queries of dqkv; 0 from the length of a sample on.

        dqkv OUT, qkv IN (n, positions, 3 * heads * depth); partials IN (n, heads, positions): delta of each query; lse
        IN (n, heads, positions); dy IN (n, positions, heads * depth).
        """
        positions, heads, depth = sizes.positions, sizes.heads, sizes.depth
        space, held = cuda.shared.array(0, uint32), cuda.local.array(held_size, float32)
        acc, change = cuda.local.array(SCORES, float32), cuda.local.array(SCORES, float32)
        dq = cuda.local.array(SUMS, float32)
        words, b = cuda.local.array(words_size, uint32), cuda.local.array(4, uint32)
        width, scale = heads * depth, like(qkv[0], 1.0) / sqrt(like(qkv[0], depth))
        row, pieces = 3 * width, (depth + FEATURES - 1) // FEATURES * ((positions + ROWS - 1) // ROWS)
        for at in range(cuda.blockIdx.x, n * heads * pieces, cuda.gridDim.x):
            pair, begin, column = _work(at, n, positions, heads, depth)
            sample, head = pair // heads, pair % heads
            length = length_at(lengths_address, lengths_code, sample, positions)
            base, of_y = sample * positions * row + head * depth, sample * positions * width + head * depth
            q, do, count = base + begin * row, of_y + begin * width, length - begin
            clear_sums(dq)
            for key in range(0, 0 if count <= 0 else min(begin + ROWS, length) if causal > 0 else length, COLUMNS):
                keys, k, v = length - key, base + width + key * row, base + 2 * width + key * row
                of_rows, of_columns = (qkv, q, row, dy, do, width, count), (qkv, k, row, qkv, v, row, keys)
                both_scores(acc, change, words, b, held, space, of_rows, of_columns, depth)
                differentiate(acc, change, scale, lse, partials, begin, key, pair * positions, length, causal, False)
                columns_again(held, space, third, qkv, k, row, keys, column, depth)
                add_product(dq, change, words, b, space, third)
            store(dqkv, dq, q + column, row, count, positions - begin, depth - column)

    return tensor_keys_and_values, tensor_queries


def _all(precision):
    return _forward(precision), deltas.with_precision(precision), *_backward(precision)


CUDA_KERNELS = tuple(kernel for precision in PLANES for kernel in _all(precision))
