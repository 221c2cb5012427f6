"""Batch normalization (Ioffe and Szegedy 2015, algorithm 1): y = s x^ + b with x^ = (x - m) r, for each feature.

Training: m and the biased variance v are those of the batch, over all axes but the last, and r = 1 / sqrt(v + epsilon).
The running mean and the running variance, (1 - momentum) old + momentum new, go into the layer state; as in PyTorch the
new variance is the unbiased one. In use m and v are the running ones.

Backward, over the M rows of the batch:  dx = s r (dy - p / M - x^ q / M)  with p = sum of dy, q = sum of dy x^; db = p
and ds = q. In use m and r are constants:  dx = s r dy. Along x':  x^' = k = r (x' - a / M - x^ c / M)  with a = sum of
x' and c = sum of x' x^, and r' = -r^2 c / M.

Rows are taken in blocks of 64, whatever the number of threads: in each, the mean first and then what is left of it,
while the block is in the cache; blocks are joined in float64, in order (Chan, Golub and LeVeque 1983, equation 2.1). A
mean is kept in two parts, its nearest number and the rest, so that features far from zero keep their digits.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nbprop.compiler.intrinsics import double_of_word
from nbprop.compiler.jit import njit
from nbprop.layers.layernorm import show
from nbprop.networks.layer import Layer, Parameter
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel
from nbprop.program.sizes import Rows
from nbprop.validation import number

_BLOCK = 64
# The rows of `statistics`: (4, size).
_MEAN, _REST, _R, _UNBIASED = range(4)


@njit
def _blocks(n_rows):
    return (n_rows + _BLOCK - 1) // _BLOCK


@njit
def _row(array, number, size):
    """Row `number` of a flat array of rows."""
    return array[number * size : (number + 1) * size]


@njit
def _three(array, first, size):
    """Three rows that follow each other."""
    return _row(array, first, size), _row(array, first + 1, size), _row(array, first + 2, size)


@njit
def _clear(row):
    for j in range(row.size):
        row[j] = like(row[j], 0.0)


@kernel
def batchnorm_moments(sums, x, n, sizes: Rows, part, parts):
    """Of each block of rows: its mean m as it is rounded, the sum of x - m, the sum of (x - m)^2.

    sums OUT (blocks, 3, size), x IN (n * rows, size).
    """
    rows, size = sizes.rows, sizes.size
    first, last = share(_blocks(n * rows), part, parts)
    for block in range(first, last):
        begin, end = block * _BLOCK, min(n * rows, (block + 1) * _BLOCK)
        mean, rest, squares = _three(sums, 3 * block, size)
        _clear(mean)
        _clear(rest)
        _clear(squares)
        for i in range(begin, end):
            x_row = _row(x, i, size)
            for j in range(size):
                mean[j] += x_row[j]
        inverse = like(x[0], 1.0) / like(x[0], end - begin)
        for j in range(size):
            mean[j] *= inverse
        for i in range(begin, end):
            x_row = _row(x, i, size)
            for j in range(size):
                distance = x_row[j] - mean[j]
                rest[j] += distance
                squares[j] += distance * distance


@kernel
def batchnorm_statistics(statistics, sums, n, sizes: Rows, epsilon_bits, part, parts):
    """Mean, rest, r and unbiased variance of each feature from the blocks' moments.

    statistics OUT (4, size), sums IN (blocks, 3, size).
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share(size, part, parts)
    total, epsilon = n * rows, double_of_word(epsilon_bits)
    for j in range(start, stop):
        mean, squares, count = 0.0, 0.0, 0.0
        for block in range(_blocks(total)):
            own = float(min(total, (block + 1) * _BLOCK) - block * _BLOCK)
            at = 3 * block * size + j
            rest = np.float64(sums[at + size])
            step = np.float64(sums[at]) + rest / own - mean
            squares += np.float64(sums[at + 2 * size]) - rest * rest / own + step * step * count * own / (count + own)
            mean += step * own / (count + own)
            count += own
        nearest = like(sums[0], mean)
        statistics[_MEAN * size + j] = nearest
        statistics[_REST * size + j] = like(nearest, mean - np.float64(nearest))
        statistics[_R * size + j] = like(nearest, 1.0 / math.sqrt(squares / count + epsilon))
        statistics[_UNBIASED * size + j] = like(nearest, squares / (count - 1.0))


@kernel
def batchnorm_update(running_mean, running_variance, statistics, n, size, momentum_bits):
    """running = (1 - momentum) running + momentum new, for mean and variance.

    running_mean and running_variance INOUT (size,), statistics IN (4, size).
    """
    new = like(statistics[0], double_of_word(momentum_bits))
    old = like(statistics[0], 1.0 - double_of_word(momentum_bits))
    mean, variance = _row(statistics, _MEAN, size), _row(statistics, _UNBIASED, size)
    for j in range(size):
        running_mean[j] = old * running_mean[j] + new * mean[j]
        running_variance[j] = old * running_variance[j] + new * variance[j]


@kernel
def batchnorm_running(statistics, running_mean, running_variance, n, size, epsilon_bits):
    """The statistics in inference: the running mean, and r of the running variance.

    statistics OUT (4, size), running_mean and running_variance IN (size,).
    """
    epsilon = like(statistics[0], double_of_word(epsilon_bits))
    mean, rest, r = _three(statistics, 0, size)
    for j in range(size):
        mean[j], rest[j] = running_mean[j], like(epsilon, 0.0)
        r[j] = like(epsilon, 1.0) / np.sqrt(running_variance[j] + epsilon)


@kernel
def batchnorm_apply(y, x, statistics, s, b, n, sizes: Rows, part, parts):
    """y = s x^ + b. y OUT, x IN (n * rows, size); statistics IN (4, size); s and b IN (size,)."""
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    mean, rest, r = _three(statistics, 0, size)
    for i in range(start, stop):
        y_row, x_row = _row(y, i, size), _row(x, i, size)
        for j in range(size):
            y_row[j] = ((x_row[j] - mean[j]) - rest[j]) * r[j] * s[j] + b[j]


@kernel
def batchnorm_products(sums, dy, x, statistics, n, sizes: Rows, part, parts):
    """sum(dy) and sum(dy x^) over each block of rows.

    sums OUT (blocks, 2, size), dy and x IN (n * rows, size), statistics IN (4, size).
    """
    rows, size = sizes.rows, sizes.size
    first, last = share(_blocks(n * rows), part, parts)
    mean, rest, r = _three(statistics, 0, size)
    for block in range(first, last):
        p, q = _row(sums, 2 * block, size), _row(sums, 2 * block + 1, size)
        _clear(p)
        _clear(q)
        for i in range(block * _BLOCK, min(n * rows, (block + 1) * _BLOCK)):
            dy_row, x_row = _row(dy, i, size), _row(x, i, size)
            for j in range(size):
                p[j] += dy_row[j]
                q[j] += dy_row[j] * (((x_row[j] - mean[j]) - rest[j]) * r[j])


@kernel
def batchnorm_totals(totals, db, ds, sums, n, sizes: Rows, b_accumulate, s_accumulate, accumulate, part, parts):
    """The blocks' sums combined: db = sum(dy), ds = sum(dy x^).

    totals OUT (2, size); db and ds OUT (size,), or empty; added to where `s_accumulate`, `b_accumulate` or `accumulate`
    is 1; sums IN (blocks, 2, size).
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share(size, part, parts)
    for j in range(start, stop):
        p, q = 0.0, 0.0
        for block in range(_blocks(n * rows)):
            p += np.float64(sums[2 * block * size + j])
            q += np.float64(sums[(2 * block + 1) * size + j])
        totals[j], totals[size + j] = like(sums[0], p), like(sums[0], q)
        if db.size > 0:
            db[j] = totals[j] + (db[j] if b_accumulate + accumulate > 0 else like(sums[0], 0.0))
            ds[j] = totals[size + j] + (ds[j] if s_accumulate + accumulate > 0 else like(sums[0], 0.0))


@njit
def _weight(x, n_rows, fixed):
    """1 / M; 0 where the statistics are fixed, and no sum over the batch enters."""
    return like(x[0], 0.0) if fixed > 0 else like(x[0], 1.0 / n_rows)


@njit
def _projected(row, d, x, mean, rest, r, s, p, q, weight):
    """row = s r (d - weight (p + x^ q)) for one row of d: dy in the backward pass, x' for a tangent."""
    for j in range(row.size):
        h = ((x[j] - mean[j]) - rest[j]) * r[j]
        row[j] = s[j] * r[j] * (d[j] - weight * (p[j] + h * q[j]))


@kernel
def batchnorm_backward(dx, dy, x, statistics, s, totals, n, sizes: Rows, fixed, part, parts):
    """dx = s r (dy - p / M - x^ q / M), M = n * rows; fixed: dx = s r dy.

    dx OUT, dy and x IN (n * rows, size); statistics IN (4, size); s IN (size,); totals IN (2, size): p and q.
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    mean, rest, r = _three(statistics, 0, size)
    p, q, weight = _row(totals, 0, size), _row(totals, 1, size), _weight(x, n * rows, fixed)
    for i in range(start, stop):
        dx_row, dy_row, x_row = _row(dx, i, size), _row(dy, i, size), _row(x, i, size)
        _projected(dx_row, dy_row, x_row, mean, rest, r, s, p, q, weight)


@kernel(optional=("s_dot", "b_dot"))
def batchnorm_tangent(y_dot, x, x_dot, statistics, along, s, s_dot, b_dot, n, sizes: Rows, fixed, part, parts):
    """y' = s k + s' x^ + b'; an empty direction is zero.

    y_dot OUT, x and x_dot IN (n * rows, size); statistics IN (4, size); along IN (2, size): a and c; s, s_dot and b_dot
    IN (size,).
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    mean, rest, r = _three(statistics, 0, size)
    a, c, weight = _row(along, 0, size), _row(along, 1, size), _weight(x, n * rows, fixed)
    for i in range(start, stop):
        y_row, x_row, d_row = _row(y_dot, i, size), _row(x, i, size), _row(x_dot, i, size)
        _projected(y_row, d_row, x_row, mean, rest, r, s, a, c, weight)
        if s_dot.size > 0:
            for j in range(size):
                y_row[j] += s_dot[j] * (((x_row[j] - mean[j]) - rest[j]) * r[j]) + b_dot[j]


@kernel
def batchnorm_second_products(sums, dy, dy_dot, x, x_dot, statistics, along, n, sizes: Rows, fixed, part, parts):
    """The tangent of `batchnorm_products`: sum(dy') and sum(dy' x^ + dy k) over each block.

    sums OUT (blocks, 2, size); dy, dy_dot, x and x_dot IN (n * rows, size); statistics IN (4, size); along IN (2,
    size): a and c.
    """
    rows, size = sizes.rows, sizes.size
    first, last = share(_blocks(n * rows), part, parts)
    mean, rest, r = _three(statistics, 0, size)
    a, c, weight = _row(along, 0, size), _row(along, 1, size), _weight(x, n * rows, fixed)
    for block in range(first, last):
        p, q = _row(sums, 2 * block, size), _row(sums, 2 * block + 1, size)
        _clear(p)
        _clear(q)
        for i in range(block * _BLOCK, min(n * rows, (block + 1) * _BLOCK)):
            dy_row, t_row, x_row, d_row = (
                _row(dy, i, size),
                _row(dy_dot, i, size),
                _row(x, i, size),
                _row(x_dot, i, size),
            )
            for j in range(size):
                h = ((x_row[j] - mean[j]) - rest[j]) * r[j]
                k = r[j] * (d_row[j] - weight * (a[j] + h * c[j]))
                p[j] += t_row[j]
                q[j] += t_row[j] * h + dy_row[j] * k


@kernel
def batchnorm_second(
    dx_dot, dy, dy_dot, x, x_dot, statistics, s, s_dot, along, totals, totals_dot, n, sizes: Rows, fixed, part, parts
):
    """The tangent of `batchnorm_backward`.

    dx' = (s' r + s r') (dy - (p + x^ q) / M) + s r (dy' - (p' + k q + x^ q') / M),  r' = -r^2 c / M.

    dx_dot OUT, dy, dy_dot, x and x_dot IN (n * rows, size); statistics IN (4, size); s and s_dot IN (size,); along,
    totals and totals_dot IN (2, size): a and c, p and q, p' and q'.
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    mean, rest, r = _three(statistics, 0, size)
    a, c, weight = _row(along, 0, size), _row(along, 1, size), _weight(x, n * rows, fixed)
    p, q = _row(totals, 0, size), _row(totals, 1, size)
    p_dot, q_dot = _row(totals_dot, 0, size), _row(totals_dot, 1, size)
    for i in range(start, stop):
        e_row, x_row, d_row = _row(dx_dot, i, size), _row(x, i, size), _row(x_dot, i, size)
        dy_row, t_row = _row(dy, i, size), _row(dy_dot, i, size)
        for j in range(size):
            h = ((x_row[j] - mean[j]) - rest[j]) * r[j]
            k = r[j] * (d_row[j] - weight * (a[j] + h * c[j]))
            turn = s_dot[j] * r[j] - s[j] * r[j] * r[j] * c[j] * weight
            straight = dy_row[j] - weight * (p[j] + h * q[j])
            e_row[j] = turn * straight + s[j] * r[j] * (t_row[j] - weight * (p_dot[j] + k * q[j] + h * q_dot[j]))


@dataclass(frozen=True, repr=False)
class BatchNorm(Layer):
    momentum: float = 0.1
    epsilon: float = 1e-5
    kind = "batchnorm"
    checks: ClassVar = {"momentum": number(0, 1, "[]"), "epsilon": number(0, ends="()")}
    tangents = True
    modal = True

    def __repr__(self):
        return show(self, momentum=0.1, epsilon=1e-5)

    def output_shape(self, input_shape):
        if not input_shape:
            raise ValueError("batchnorm needs an axis of features")
        return input_shape

    def parameters(self, input_shape):
        return Parameter("scale", input_shape[-1:], "ones"), Parameter("shift", input_shape[-1:], "zeros")

    def lower(self, build, x, path, names):
        scale, shift = names
        size, fixed = x.shape[-1], int(build.mode != "training")
        rows = x.size // size
        sizes, blocks = Rows(rows=rows, size=size), -(-build.batch * rows // _BLOCK)
        s, b, y = build.parameter(scale), build.parameter(shift), build.value(x.shape)
        statistics = self._statistics(build, x, sizes, blocks)
        build.emit(batchnorm_apply, (y.buffer,), (x.buffer, statistics, s, b), sizes)

        def totals(kernel, reads, given, db=None, ds=None, b_accumulate=0, s_accumulate=0):
            """The sums of a kernel over all blocks; into parameters' gradients too."""
            sums, found = build.buffer(2 * blocks * size), build.buffer(2 * size)
            build.emit(kernel, (sums,), reads, given)
            build.emit(batchnorm_totals, (found, db, ds), (sums,), (sizes, b_accumulate, s_accumulate))
            return found

        if build.with_tangents:
            x_dot, s_dot, b_dot = build.whole_tangent(x.buffer), build.direction(scale), build.direction(shift)
            along = totals(batchnorm_products, (x_dot, x.buffer, statistics), sizes)
            reads = (x.buffer, x_dot, statistics, along, s, s_dot, b_dot)
            build.emit(batchnorm_tangent, (build.new_tangent(y.buffer),), reads, (sizes, fixed))

        def rule(dy):
            (db, b_accumulate), (ds, s_accumulate) = build.parameter_gradient(shift), build.parameter_gradient(scale)
            sums = totals(batchnorm_products, (dy, x.buffer, statistics), sizes, db, ds, b_accumulate, s_accumulate)
            dx = build.buffer(build.batch * x.size)
            build.emit(batchnorm_backward, (dx,), (dy, x.buffer, statistics, s, sums), (sizes, fixed))
            if build.with_tangents:
                dy_dot = build.tangent(dy)
                (db, b_accumulate), (ds, s_accumulate) = build.parameter_tangent(shift), build.parameter_tangent(scale)
                reads = (dy, dy_dot, x.buffer, x_dot, statistics, along)
                sums_dot = totals(batchnorm_second_products, reads, (sizes, fixed), db, ds, b_accumulate, s_accumulate)
                all_reads = (*reads[:5], s, s_dot, along, sums, sums_dot)
                build.emit(batchnorm_second, (build.new_tangent(dx),), all_reads, (sizes, fixed))
            build.accumulate_gradient(x, dx)

        build.on_backward(y, rule)
        return y

    def _statistics(self, build, x, sizes, blocks):
        """Emit the mean, its rest and r: the batch's, which the running ones follow, or the running ones."""
        size, statistics = sizes.size, build.buffer(4 * sizes.size)
        running = build.state(size, 0.0, name="running_mean"), build.state(size, 1.0, name="running_variance")
        epsilon_bits, momentum_bits = (int(np.float64(v).view(np.int64)) for v in (self.epsilon, self.momentum))
        if build.mode == "training":
            build.mark_batch_coupled(sizes.rows)
            sums = build.buffer(3 * blocks * size)
            build.emit(batchnorm_moments, (sums,), (x.buffer,), sizes)
            build.emit(batchnorm_statistics, (statistics,), (sums,), (sizes, epsilon_bits))
            build.emit(batchnorm_update, (), (statistics,), (size, momentum_bits), inplace=running)
        else:
            build.emit(batchnorm_running, (statistics,), running, (size, epsilon_bits))
        return statistics


def batchnorm(momentum: float = 0.1, epsilon: float = 1e-5) -> Layer:
    """Batch normalization: each feature (the last axis) minus its mean over the batch, over its standard deviation.

    Scaled (from 1) and shifted (from 0) by learned numbers. In training the statistics are those of the batch, over all
    axes but the last, and at least two rows are needed; running ones are kept in the layer state and take the batch's
    place in plans made with mode="inference" or "decoding".

    Parameters
    ----------
    momentum : float in [0, 1]
        How much of the batch's statistics the running ones take up at each call.
    epsilon : float
        Added to the variance.

    Source: Ioffe and Szegedy 2015.

    >>> batchnorm()
    batchnorm()
    """
    return BatchNorm(momentum, epsilon)
