"""Normalization of each row (the last axis): y = s x^ + b.

layernorm (Ba, Kiros and Hinton 2016, equations 2 to 4): x^ = (x - m(x)) r with r = 1 / sqrt(var(x) + epsilon), where m
is the mean over the row and var the biased variance. rmsnorm (Zhang and Sennrich 2019, equation 4): x^ = x r with
r = 1 / sqrt(m(x^2) + epsilon), and no shift.

Backward, with g = dy s:  dx = r (g - m(g) - x^ m(g x^)),  ds = sum of dy x^,  db = sum of dy over the rows; rmsnorm has
no m(g). Along x', with t = x' - m(x') (rmsnorm: x') and c = m(x^ t):  x^' = r (t - x^ c)  and  r' = -r^2 c.

The mean is taken twice, of x and of what is left of it: x - mean - rest has the digits of the differences in x, however
far from zero they lie. Sums over rows are taken in blocks of 32 rows first, whatever the number of threads.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nbprop.compiler.intrinsics import double_of_word
from nbprop.compiler.jit import njit
from nbprop.networks.layer import Layer, Parameter
from nbprop.numerics.partition import share, share_blocks
from nbprop.numerics.reductions import row_dot, row_dots_about, row_moments, row_scaled_dots_about, row_sum
from nbprop.numerics.scalars import like
from nbprop.numerics.streaming import AHEAD, PIECE, exceeds_caches, fetch, on_stack, settle, stream
from nbprop.program.kernel import kernel
from nbprop.program.sizes import Rows
from nbprop.validation import check_flag, number

_BLOCK = 32  # rows whose products are added up before anything else is
_STATISTICS = 3  # of a row: mean, rest, r


@njit
def _statistics(x, epsilon, centered):
    """(mean, the mean of x - mean, r) of a row."""
    size, mean = like(x[0], x.size), like(x[0], 0.0)
    if centered > 0:
        mean = row_sum(x) / size
    total, squares = row_moments(x, mean)
    rest = total / size if centered > 0 else like(mean, 0.0)
    return mean, rest, like(mean, 1.0) / np.sqrt(squares / size - rest * rest + epsilon)


@njit
def _normalized(row, x, statistics):
    """row = x^. row OUT, x IN (size,), statistics IN (3,)."""
    mean, rest, r = statistics[0], statistics[1], statistics[2]
    for j in range(x.size):
        row[j] = ((x[j] - mean) - rest) * r


@njit
def _affine(row, x, statistics, s, b):
    """row = s x^ + b; s and b may be empty: 1 and 0."""
    mean, rest, r = statistics[0], statistics[1], statistics[2]
    if s.size > 0 and b.size > 0:
        for j in range(x.size):
            row[j] = ((x[j] - mean) - rest) * r * s[j] + b[j]
        return
    _normalized(row, x, statistics)
    if s.size > 0:
        for j in range(x.size):
            row[j] *= s[j]
    if b.size > 0:
        for j in range(x.size):
            row[j] += b[j]


@njit
def _streamed_row(y, x, i, size, statistics, s, b, piece):
    """Row i of y = s x^ + b, for arrays larger than every cache; piece: scratch of `PIECE` elements."""
    y_row, x_row = y[i * size : (i + 1) * size], x[i * size : (i + 1) * size]
    for j in range(0, size, PIECE):
        here = slice(j, min(j + PIECE, size))
        row = piece[: here.stop - j]
        _affine(row, x_row[here], statistics, s[here], b[here])
        fetch(x, i * size + j + min(size, AHEAD), PIECE)
        stream(y_row[here], row)


@njit
def _scaled(row, x, s):
    """row = x s; s may be empty: 1."""
    if s.size > 0:
        for j in range(x.size):
            row[j] = x[j] * s[j]
    else:
        for j in range(x.size):
            row[j] = x[j]


@njit
def _add_product(row, x, s):
    """row += x s; an empty s is 0."""
    if s.size > 0:
        for j in range(x.size):
            row[j] += x[j] * s[j]


@njit
def _along(row, h, x_dot, r, centered):
    """row = x^' for h = x^; returns c, of which r' = -r^2 c."""
    size, mean = like(r, h.size), like(r, 0.0)
    if centered > 0:
        mean = row_sum(x_dot) / size
    for j in range(h.size):
        row[j] = x_dot[j] - mean
    c = row_dot(h, row) / size
    for j in range(h.size):
        row[j] = r * (row[j] - h[j] * c)
    return c


@kernel
def layernorm_forward(y, statistics, x, s, b, n, sizes: Rows, epsilon_bits, centered, part, parts):
    """y = s x^ + b in each row.

    y OUT, x IN (n * rows, size); statistics OUT (n * rows, 3): mean, rest and r; s and b IN (size,) or empty.
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    epsilon = like(x[0], double_of_word(epsilon_bits))
    if exceeds_caches(y, 2 * n * rows * size):
        piece = on_stack(y, PIECE)
        for i in range(start, stop):
            kept = statistics[i * _STATISTICS :]
            kept[0], kept[1], kept[2] = _statistics(x[i * size : (i + 1) * size], epsilon, centered)
            _streamed_row(y, x, i, size, kept, s, b, piece)
        settle()
        return
    for i in range(start, stop):
        y_row, x_row, kept = y[i * size : (i + 1) * size], x[i * size : (i + 1) * size], statistics[i * _STATISTICS :]
        kept[0], kept[1], kept[2] = _statistics(x_row, epsilon, centered)
        _affine(y_row, x_row, kept, s, b)


@kernel(optional=("s_dot", "b_dot"))
def layernorm_tangent(
    y_dot, scratch, x, x_dot, statistics, s, s_dot, b_dot, n, sizes: Rows, centered, affine, part, parts
):
    """y' = s x^' + s' x^ + b' in each row; an empty direction is zero; affine: whether there is an s.

    y_dot OUT, x and x_dot IN (n * rows, size); statistics IN (n * rows, 3); s, s_dot and b_dot IN (size,) or empty;
    scratch: one row per thread.
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    h = scratch[part * size : (part + 1) * size]
    for i in range(start, stop):
        here, kept = slice(i * size, (i + 1) * size), statistics[i * _STATISTICS :]
        y_row = y_dot[here]
        _normalized(h, x[here], kept)
        _along(y_row, h, x_dot[here], kept[2], centered)
        if affine > 0:
            for j in range(size):
                y_row[j] *= s[j]
        _add_product(y_row, h, s_dot)
        if b_dot.size > 0:
            for j in range(size):
                y_row[j] += b_dot[j]


@njit
def _block_of_sums(sums, block, size):
    """(ds, db) of a block of rows, set to 0."""
    both = sums[2 * block * size : 2 * (block + 1) * size]
    for j in range(both.size):
        both[j] = like(both[j], 0.0)
    return both[:size], both[size:]


@njit
def _backward_row(dx, ds, db, dy, x, statistics, s, centered):
    """dx of one row, and its products added to ds and db."""
    mean, rest, r = statistics[0], statistics[1], statistics[2]
    for j in range(x.size):
        ds[j] += dy[j] * (((x[j] - mean) - rest) * r)
        db[j] += dy[j]
    size = like(r, x.size)
    if s.size > 0:
        total, along = row_scaled_dots_about(dy, s, x, mean)
    else:
        total, along = row_dots_about(dy, x, mean)
    # The mean of g x^ from the sum of g (x - mean).
    along = (along - rest * total) * r / size
    total = total / size if centered > 0 else like(r, 0.0)
    if s.size > 0:
        for j in range(x.size):
            dx[j] = r * (dy[j] * s[j] - total - ((x[j] - mean) - rest) * r * along)
    else:
        for j in range(x.size):
            dx[j] = r * (dy[j] - total - ((x[j] - mean) - rest) * r * along)


@kernel
def layernorm_backward(dx, sums, dy, x, statistics, s, n, sizes: Rows, centered, part, parts):
    """dx = r (g - m(g) - x^ m(g x^)) with g = dy s, and the sums of dy x^ and of dy over each block.

    dx OUT, dy and x IN (n * rows, size); sums OUT (blocks of 32 rows, 2, size); statistics IN (n * rows, 3); s IN
    (size,) or empty.
    """
    rows, size = sizes.rows, sizes.size
    first, last = share((n * rows + _BLOCK - 1) // _BLOCK, part, parts)
    for block in range(first, last):
        ds, db = _block_of_sums(sums, block, size)
        for i in range(block * _BLOCK, min(n * rows, (block + 1) * _BLOCK)):
            here = slice(i * size, (i + 1) * size)
            _backward_row(dx[here], ds, db, dy[here], x[here], statistics[i * _STATISTICS :], s, centered)


@kernel
def layernorm_second(
    dx_dot, sums, scratch, dy, dy_dot, x, x_dot, statistics, s, s_dot, n, sizes: Rows, centered, part, parts
):
    """The tangent of `layernorm_backward`: dx', and the sums of (dy x^)' and of dy' over each block.

    dx' = r (g' - m(g') - x^' m(g x^) - x^ (m(g' x^) + m(g x^')) - r c (g - m(g) - x^ m(g x^))), g' = dy' s + dy s'.

    dx_dot OUT, dy, dy_dot, x and x_dot IN (n * rows, size); sums OUT (blocks of 32 rows, 2, size); statistics IN (n *
    rows, 3); s and s_dot IN (size,) or empty; scratch: three rows per thread.
    """
    rows, size = sizes.rows, sizes.size
    first, last = share((n * rows + _BLOCK - 1) // _BLOCK, part, parts)
    width = like(dy[0], size)
    mine = scratch[3 * part * size : 3 * (part + 1) * size]
    h, k, g = mine[:size], mine[size : 2 * size], mine[2 * size :]
    for block in range(first, last):
        ds, db = _block_of_sums(sums, block, size)
        for i in range(block * _BLOCK, min(n * rows, (block + 1) * _BLOCK)):
            here, kept = slice(i * size, (i + 1) * size), statistics[i * _STATISTICS :]
            e_row, dy_row, t_row, r = dx_dot[here], dy[here], dy_dot[here], kept[2]
            _normalized(h, x[here], kept)
            c = _along(k, h, x_dot[here], r, centered)
            for j in range(size):
                ds[j] += t_row[j] * h[j] + dy_row[j] * k[j]
                db[j] += t_row[j]
            _scaled(g, dy_row, s)
            _scaled(e_row, t_row, s)
            _add_product(e_row, dy_row, s_dot)
            mean, change = like(width, 0.0), like(width, 0.0)
            if centered > 0:
                mean, change = row_sum(g) / width, row_sum(e_row) / width
            along = row_dot(g, h) / width
            turn = (row_dot(e_row, h) + row_dot(g, k)) / width
            for j in range(size):
                straight = g[j] - mean - h[j] * along
                e_row[j] = r * (e_row[j] - change - k[j] * along - h[j] * turn - r * c * straight)


@njit
def _total(out, sums, which, blocks, size, adding, start, stop):
    """out[start:stop] = the blocks' sums number `which`, added to what it holds when `adding`; out may be empty."""
    if out.size == 0:
        return
    out = out[start:stop]
    if not adding:
        for j in range(out.size):
            out[j] = like(sums[0], 0.0)
    for block in range(blocks):
        row = sums[(2 * block + which) * size + start : (2 * block + which) * size + stop]
        for j in range(out.size):
            out[j] += row[j]


@kernel
def layernorm_parameters(ds, db, sums, n, sizes: Rows, s_accumulate, b_accumulate, accumulate, part, parts):
    """ds and db = the totals of the blocks' sums; added to where `s_accumulate`, `b_accumulate` or `accumulate` is 1.

    ds, db OUT (size,) or empty; sums IN (blocks of 32 rows, 2, size).
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share_blocks(size, part, parts)
    blocks = (n * rows + _BLOCK - 1) // _BLOCK
    _total(ds, sums, 0, blocks, size, s_accumulate + accumulate > 0, start, stop)
    _total(db, sums, 1, blocks, size, b_accumulate + accumulate > 0, start, stop)


class _Normalization(Layer):
    """What layernorm and rmsnorm share."""

    epsilon: float
    centered = 1

    def output_shape(self, input_shape):
        if not input_shape:
            raise ValueError(f"{self.kind} needs an axis to run over")
        return input_shape

    def lower(self, build, x, path, names):
        owned = {name.rsplit(".", 1)[1]: name for name in names}
        scale, shift = owned.get("scale"), owned.get("shift")
        rows, size = x.size // x.shape[-1], x.shape[-1]
        sizes, blocks = Rows(rows=rows, size=size), -(-build.batch * rows // _BLOCK)
        s, b = (build.parameter(name) if name else None for name in (scale, shift))
        y, kept = build.value(x.shape), build.buffer(build.batch * rows * _STATISTICS)
        epsilon_bits = int(np.float64(self.epsilon).view(np.int64))
        build.emit(layernorm_forward, (y.buffer, kept), (x.buffer, s, b), (sizes, epsilon_bits, self.centered))
        if build.with_tangents:
            x_dot = build.whole_tangent(x.buffer)
            s_dot, b_dot = (build.direction(name) if name else None for name in (scale, shift))
            writes = build.new_tangent(y.buffer), build.buffer(build.threads * size)
            reads = (x.buffer, x_dot, kept, s, s_dot, b_dot)
            build.emit(layernorm_tangent, writes, reads, (sizes, self.centered, int(scale is not None)))

        def totals(operand, sums):
            """Emit the gradients of the parameters that there are; `operand` names them."""
            ds, s_accumulate = operand(scale) if scale else (None, 0)
            db, b_accumulate = operand(shift) if shift else (None, 0)
            if scale or shift:
                build.emit(layernorm_parameters, (ds, db), (sums,), (sizes, s_accumulate, b_accumulate))

        def rule(dy):
            dx, sums = build.buffer(build.batch * x.size), build.buffer(2 * blocks * size)
            build.emit(layernorm_backward, (dx, sums), (dy, x.buffer, kept, s), (sizes, self.centered))
            totals(build.parameter_gradient, sums)
            if build.with_tangents:
                sums_dot = build.buffer(2 * blocks * size)
                writes = build.new_tangent(dx), sums_dot, build.buffer(3 * build.threads * size)
                reads = (dy, build.tangent(dy), x.buffer, x_dot, kept, s, s_dot)
                build.emit(layernorm_second, writes, reads, (sizes, self.centered))
                totals(build.parameter_tangent, sums_dot)
            build.accumulate_gradient(x, dx)

        build.on_backward(y, rule)
        return y


def show(layer, **defaults):
    """A description's text: its arguments that are not the default."""
    given = [f"{name}={getattr(layer, name)!r}" for name, usual in defaults.items() if getattr(layer, name) != usual]
    return f"{layer.kind}({', '.join(given)})"


@dataclass(frozen=True, repr=False)
class LayerNorm(_Normalization):
    epsilon: float = 1e-5
    scale: bool = True
    shift: bool = True
    kind = "layernorm"
    checks: ClassVar = {"epsilon": number(0, ends="()"), "scale": check_flag, "shift": check_flag}
    tangents = True

    def __repr__(self):
        return show(self, epsilon=1e-5, scale=True, shift=True)

    def parameters(self, input_shape):
        scale = (Parameter("scale", input_shape[-1:], "ones"),) if self.scale else ()
        return (*scale, Parameter("shift", input_shape[-1:], "zeros")) if self.shift else scale


@dataclass(frozen=True, repr=False)
class RMSNorm(_Normalization):
    epsilon: float = 1e-5
    scale: bool = True
    kind = "rmsnorm"
    checks: ClassVar = {"epsilon": number(0, ends="()"), "scale": check_flag}
    tangents = True
    centered = 0

    def __repr__(self):
        return show(self, epsilon=1e-5, scale=True)

    def parameters(self, input_shape):
        return (Parameter("scale", input_shape[-1:], "ones"),) if self.scale else ()


def layernorm(epsilon: float = 1e-5, scale: bool = True, shift: bool = True) -> Layer:
    """Layer normalization: each row (the last axis) minus its mean, over its standard deviation, scaled and shifted.

    Parameters
    ----------
    epsilon : float
        Added to the variance.
    scale, shift : bool
        Whether there is a learned scale (from 1), and a learned shift (from 0), of each feature.

    Source: Ba, Kiros and Hinton 2016.

    >>> layernorm()
    layernorm()
    """
    return LayerNorm(epsilon, scale, shift)


def rmsnorm(epsilon: float = 1e-5, scale: bool = True) -> Layer:
    """Each row (the last axis) over the root of its mean square, scaled by a learned factor for each feature.

    epsilon : added to the mean square; scale : whether there is a learned scale. Source: Zhang and Sennrich 2019.

    >>> rmsnorm(1e-6)
    rmsnorm(epsilon=1e-06)
    """
    return RMSNorm(epsilon, scale)
