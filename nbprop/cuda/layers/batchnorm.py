"""Batch normalization on the device; the equations and arrays are those of nbprop/layers/batchnorm.py.

Sums over the batch run in two stages: one thread per feature of each block of 64 rows; then one thread block per 8
features, which combines the blocks of rows. Float32 is not combined in float64: means are taken relative to that of the
first block of rows, so that features far from zero keep their digits, and squares about the mean of all rows.

Dimensions: n samples; rows rows a sample; size features. A block is 64 rows of the batch. x^ is x normalized; the rows
of statistics are mean, rest, r and the unbiased variance.
"""

from nbprop.cuda.functions import real_of_word, sqrt
from nbprop.cuda.groups import COLUMNS, column_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import THREADS, cuda, device_function, grid_size
from nbprop.layers.batchnorm import (
    _BLOCK,
    _MEAN,
    _R,
    _REST,
    _UNBIASED,
    _blocks,
    batchnorm_apply,
    batchnorm_backward,
    batchnorm_moments,
    batchnorm_products,
    batchnorm_running,
    batchnorm_second,
    batchnorm_second_products,
    batchnorm_statistics,
    batchnorm_tangent,
    batchnorm_totals,
    batchnorm_update,
)
from nbprop.numerics.scalars import like
from nbprop.program.sizes import Rows

_LANES = THREADS // COLUMNS


def _rows_and_features(n, rows, size):
    return grid_size(-(-n * rows // _BLOCK) * size)


def _features(size):
    return grid_size(size)


def _elements(n, rows, size):
    return grid_size(n * rows * size)


@on_device(batchnorm_moments, blocks=_rows_and_features)
def moments(sums, x, n, sizes: Rows):
    """Of each block of rows: its rounded mean m, sum(x - m), sum((x - m)^2). One thread per feature of a block.

    sums OUT (blocks, 3, size), x IN (n * rows, size).
    """
    rows, size = sizes.rows, sizes.size
    for k in range(cuda.grid(1), _blocks(n * rows) * size, cuda.gridsize(1)):
        block, j = k // size, k % size
        begin, end = block * _BLOCK, min(n * rows, (block + 1) * _BLOCK)
        mean, rest, squares = like(x[0], 0.0), like(x[0], 0.0), like(x[0], 0.0)
        for i in range(begin, end):
            mean += x[i * size + j]
        mean /= like(mean, end - begin)
        for i in range(begin, end):
            distance = x[i * size + j] - mean
            rest += distance
            squares += distance * distance
        at = 3 * block * size + j
        sums[at], sums[at + size], sums[at + 2 * size] = mean, rest, squares


@device_function
def _own(sums, block, total):
    """Rows of a block of rows, as a number of the type of sums."""
    return like(sums[0], min(total, (block + 1) * _BLOCK) - block * _BLOCK)


@on_device(batchnorm_statistics, blocks=lambda size: grid_size(size, COLUMNS), resident=2)
def statistics(statistics, sums, n, sizes: Rows, epsilon_bits):
    """Mean, rest, r and unbiased variance of each feature, from the blocks' moments, in two passes.

    statistics OUT (4, size), sums IN (blocks, 3, size).
    """
    rows, size = sizes.rows, sizes.size
    space = cuda.shared.array(THREADS, sums.dtype)
    lane, total, count = cuda.threadIdx.x // COLUMNS, n * rows, like(sums[0], n * rows)
    for first in range(cuda.blockIdx.x * COLUMNS, size, cuda.gridDim.x * COLUMNS):
        feature = first + cuda.threadIdx.x % COLUMNS
        j = min(feature, size - 1)
        base, moved, squares = sums[j], like(sums[0], 0.0), like(sums[0], 0.0)
        for block in range(lane, _blocks(total), _LANES):
            at = 3 * block * size + j
            moved += _own(sums, block, total) * (sums[at] - base) + sums[at + size]
        moved = column_sum(space, moved, COLUMNS) / count
        for block in range(lane, _blocks(total), _LANES):
            at, own = 3 * block * size + j, _own(sums, block, total)
            rest = sums[at + size]
            step = (sums[at] - base) + rest / own - moved
            squares += (sums[at + 2 * size] - rest * rest / own) + own * step * step
        squares = column_sum(space, squares, COLUMNS)
        if lane == 0 and feature < size:
            nearest = base + moved
            statistics[_MEAN * size + j], statistics[_REST * size + j] = nearest, moved - (nearest - base)
            variance = squares / count + real_of_word(base, epsilon_bits)
            statistics[_R * size + j] = like(base, 1.0) / sqrt(variance)
            statistics[_UNBIASED * size + j] = squares / (count - like(count, 1.0))


@on_device(batchnorm_update, blocks=_features)
def update(running_mean, running_variance, statistics, n, size, momentum_bits):
    """running = (1 - momentum) running + momentum new, for mean and variance. One thread per feature.

    running_mean and running_variance INOUT (size,), statistics IN (4, size).
    """
    new = real_of_word(statistics[0], momentum_bits)
    old = like(new, 1.0) - new
    for j in range(cuda.grid(1), size, cuda.gridsize(1)):
        running_mean[j] = old * running_mean[j] + new * statistics[_MEAN * size + j]
        running_variance[j] = old * running_variance[j] + new * statistics[_UNBIASED * size + j]


@on_device(batchnorm_running, blocks=_features)
def running(statistics, running_mean, running_variance, n, size, epsilon_bits):
    """The statistics in inference: the running mean, and r of the running variance. One thread per feature.

    statistics OUT (4, size), running_mean and running_variance IN (size,).
    """
    epsilon = real_of_word(statistics[0], epsilon_bits)
    for j in range(cuda.grid(1), size, cuda.gridsize(1)):
        statistics[_MEAN * size + j], statistics[_REST * size + j] = running_mean[j], like(epsilon, 0.0)
        statistics[_R * size + j] = like(epsilon, 1.0) / sqrt(running_variance[j] + epsilon)


@device_function
def _normalized(x, statistics, i, j, size):
    """x^ of element i, of feature j."""
    mean, rest = statistics[_MEAN * size + j], statistics[_REST * size + j]
    return ((x[i] - mean) - rest) * statistics[_R * size + j]


@on_device(batchnorm_apply, blocks=_elements)
def apply(y, x, statistics, s, b, n, sizes: Rows):
    """y = s x^ + b. One thread per element.

    y OUT, x IN (n * rows, size); statistics IN (4, size); s and b IN (size,).
    """
    rows, size = sizes.rows, sizes.size
    for i in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
        j = i % size
        y[i] = _normalized(x, statistics, i, j, size) * s[j] + b[j]


@on_device(batchnorm_products, blocks=_rows_and_features)
def products(sums, dy, x, statistics, n, sizes: Rows):
    """sum(dy) and sum(dy x^) over each block of rows. One thread per feature of a block.

    sums OUT (blocks, 2, size); dy and x IN (n * rows, size); statistics IN (4, size).
    """
    rows, size = sizes.rows, sizes.size
    for k in range(cuda.grid(1), _blocks(n * rows) * size, cuda.gridsize(1)):
        block, j, p, q = k // size, k % size, like(x[0], 0.0), like(x[0], 0.0)
        for row in range(block * _BLOCK, min(n * rows, (block + 1) * _BLOCK)):
            i = row * size + j
            p += dy[i]
            q += dy[i] * _normalized(x, statistics, i, j, size)
        sums[2 * block * size + j], sums[(2 * block + 1) * size + j] = p, q


@on_device(batchnorm_totals, blocks=lambda size: grid_size(size, COLUMNS))
def totals(totals, db, ds, sums, n, sizes: Rows, b_accumulate, s_accumulate, accumulate):
    """The blocks' sums combined: db = sum(dy), ds = sum(dy x^).

    totals OUT (2, size); db and ds OUT (size,), or empty; added to where `s_accumulate`, `b_accumulate` or `accumulate`
    is 1; sums IN (blocks, 2, size).
    """
    rows, size = sizes.rows, sizes.size
    space = cuda.shared.array(THREADS, sums.dtype)
    lane = cuda.threadIdx.x // COLUMNS
    for first in range(cuda.blockIdx.x * COLUMNS, size, cuda.gridDim.x * COLUMNS):
        feature = first + cuda.threadIdx.x % COLUMNS
        j, p, q = min(feature, size - 1), like(sums[0], 0.0), like(sums[0], 0.0)
        for block in range(lane, _blocks(n * rows), _LANES):
            p += sums[2 * block * size + j]
            q += sums[(2 * block + 1) * size + j]
        p, q = column_sum(space, p, COLUMNS), column_sum(space, q, COLUMNS)
        if lane == 0 and feature < size:
            totals[j], totals[size + j] = p, q
            if db.size > 0:
                db[j] = p + db[j] if b_accumulate + accumulate > 0 else p
                ds[j] = q + ds[j] if s_accumulate + accumulate > 0 else q


@device_function
def _weight(x, count, fixed):
    """1 / M; 0 where the statistics are fixed, and no sum over the batch enters."""
    return like(x[0], 0.0) if fixed > 0 else like(x[0], 1.0) / like(x[0], count)


@on_device(batchnorm_backward, blocks=_elements)
def backward(dx, dy, x, statistics, s, totals, n, sizes: Rows, fixed):
    """dx = s r (dy - p / M - x^ q / M), M = n * rows; fixed: dx = s r dy. One thread per element.

    dx OUT, dy and x IN (n * rows, size); statistics IN (4, size); s IN (size,); totals IN (2, size): p and q.
    """
    rows, size = sizes.rows, sizes.size
    weight = _weight(x, n * rows, fixed)
    for i in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
        j = i % size
        straight = dy[i] - weight * (totals[j] + _normalized(x, statistics, i, j, size) * totals[size + j])
        dx[i] = s[j] * statistics[_R * size + j] * straight


@device_function
def _normalized_tangent(x_dot, h, statistics, along, weight, i, j, size):
    """k = x^' of element i, of feature j, whose x^ is h."""
    return statistics[_R * size + j] * (x_dot[i] - weight * (along[j] + h * along[size + j]))


@on_device(batchnorm_tangent, blocks=_elements)
def tangent(y_dot, x, x_dot, statistics, along, s, s_dot, b_dot, n, sizes: Rows, fixed):
    """y' = s k + s' x^ + b'; an empty direction is zero. One thread per element.

    y_dot OUT, x and x_dot IN (n * rows, size); statistics IN (4, size); along IN (2, size): a and c; s, s_dot and b_dot
    IN (size,).
    """
    rows, size = sizes.rows, sizes.size
    weight = _weight(x, n * rows, fixed)
    for i in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
        j = i % size
        h = _normalized(x, statistics, i, j, size)
        value = s[j] * _normalized_tangent(x_dot, h, statistics, along, weight, i, j, size)
        y_dot[i] = value + s_dot[j] * h + b_dot[j] if s_dot.size > 0 else value


@on_device(batchnorm_second_products, blocks=_rows_and_features)
def second_products(sums, dy, dy_dot, x, x_dot, statistics, along, n, sizes: Rows, fixed):
    """sum(dy') and sum(dy' x^ + dy k) over each block of rows. One thread per feature of a block.

    sums OUT (blocks, 2, size); dy, dy_dot, x and x_dot IN (n * rows, size); statistics IN (4, size); along IN (2,
    size): a and c.
    """
    rows, size = sizes.rows, sizes.size
    weight = _weight(x, n * rows, fixed)
    for k in range(cuda.grid(1), _blocks(n * rows) * size, cuda.gridsize(1)):
        block, j, p, q = k // size, k % size, like(x[0], 0.0), like(x[0], 0.0)
        for row in range(block * _BLOCK, min(n * rows, (block + 1) * _BLOCK)):
            i = row * size + j
            h = _normalized(x, statistics, i, j, size)
            p += dy_dot[i]
            q += dy_dot[i] * h + dy[i] * _normalized_tangent(x_dot, h, statistics, along, weight, i, j, size)
        sums[2 * block * size + j], sums[(2 * block + 1) * size + j] = p, q


@on_device(batchnorm_second, blocks=_elements)
def second(dx_dot, dy, dy_dot, x, x_dot, statistics, s, s_dot, along, totals, totals_dot, n, sizes: Rows, fixed):
    """dx' = (s' r + s r') (dy - (p + x^ q) / M) + s r (dy' - (p' + k q + x^ q') / M),  r' = -r^2 c / M.

    One thread per element. dx_dot OUT, dy, dy_dot, x and x_dot IN (n * rows, size); statistics IN (4, size); s and
    s_dot IN (size,); along, totals and totals_dot IN (2, size): a and c, p and q, p' and q'.
    """
    rows, size = sizes.rows, sizes.size
    weight = _weight(x, n * rows, fixed)
    for i in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
        j = i % size
        h, r, q = _normalized(x, statistics, i, j, size), statistics[_R * size + j], totals[size + j]
        k = _normalized_tangent(x_dot, h, statistics, along, weight, i, j, size)
        turn = s_dot[j] * r - s[j] * r * r * along[size + j] * weight
        straight = dy[i] - weight * (totals[j] + h * q)
        change = dy_dot[i] - weight * (totals_dot[j] + k * q + h * totals_dot[size + j])
        dx_dot[i] = turn * straight + s[j] * r * change


CUDA_KERNELS = (
    *(moments, statistics, update, running, apply, products, totals, backward),
    *(tangent, second_products, second),
)
