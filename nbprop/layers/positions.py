"""Learned positions: y = x + P, a row of P for each position of a sequence (Gehring et al. 2017, section 3.1)."""

from dataclasses import dataclass
from typing import ClassVar

from nbprop.networks.layer import INITIALIZERS, Layer, Parameter
from nbprop.numerics.partition import share_blocks
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel
from nbprop.validation import named


@kernel
def positions_forward(y, x, p, n, size, first_by_step, step, part, parts):
    """y = x + p in every sample. y OUT, x IN (n, size), p IN (size,) from element first_by_step * step on."""
    start, stop = share_blocks(n * size, part, parts)
    while start < stop:
        begin = start % size
        count = min(size - begin, stop - start)
        offset = first_by_step * step + begin
        y_part, x_part, p_part = y[start : start + count], x[start : start + count], p[offset : offset + count]
        for j in range(count):
            y_part[j] = x_part[j] + p_part[j]
        start += count


@kernel(optional=("x_dot", "p_dot"))
def positions_tangent(y_dot, x_dot, p_dot, n, size, part, parts):
    """y' = x' + p'; a direction that is empty is zero. y_dot OUT, x_dot IN (n, size), p_dot IN (size,)."""
    zero = like(y_dot[0], 0.0)
    start, stop = share_blocks(n * size, part, parts)
    for i in range(start, stop):
        y_dot[i] = (x_dot[i] if x_dot.size > 0 else zero) + (p_dot[i % size] if p_dot.size > 0 else zero)


@kernel
def positions_backward(dp, dy, n, size, p_accumulate, accumulate, part, parts):
    """dp = the sum of dy over the samples, from 0 unless `p_accumulate` or `accumulate`.

    dp OUT (size,), dy IN (n, size).
    """
    start, stop = share_blocks(size, part, parts)
    total = dp[start:stop]
    for i in range(n):
        row = dy[i * size + start : i * size + stop]
        if i == 0 and p_accumulate + accumulate == 0:
            for j in range(total.size):
                total[j] = row[j]
        else:
            for j in range(total.size):
                total[j] += row[j]


@dataclass(frozen=True, repr=False)
class Positions(Layer):
    init: str = "small_normal"
    kind = "positions"
    checks: ClassVar = {"init": named(INITIALIZERS)}
    tangents = True

    def __repr__(self):
        return "positions()" if self.init == "small_normal" else f"positions(init={self.init!r})"

    def output_shape(self, input_shape):
        if len(input_shape) != 2:
            raise ValueError("positions needs an input of shape (positions, features)")
        return input_shape

    def parameters(self, input_shape):
        return (Parameter("weight", tuple(input_shape), self.init),)

    def lower(self, build, x, path, names):
        (name,) = names
        y = build.value(x.shape)
        by_step = x.shape[-1] if build.mode == "decoding" else 0
        build.emit(positions_forward, (y.buffer,), (x.buffer, build.parameter(name)), (x.size, by_step))
        if build.with_tangents:
            reads = (build.tangent(x.buffer), build.direction(name))
            build.emit(positions_tangent, (build.new_tangent(y.buffer),), reads, (x.size,))

        def rule(dy):
            dp, p_accumulate = build.parameter_gradient(name)
            build.emit(positions_backward, (dp,), (dy,), (x.size, p_accumulate))
            if build.with_tangents:
                dp_dot, p_accumulate = build.parameter_tangent(name)
                build.emit(positions_backward, (dp_dot,), (build.tangent(dy),), (x.size, p_accumulate))
            build.accumulate_gradient(x, dy)

        build.on_backward(y, rule)
        return y


def positions(init: str = "small_normal") -> Layer:
    """Learned positions: y = x + P for x (positions, features); P has x's shape.

    So a network knows the order of its sequence, which attention alone does not. A decoding plan adds the row of its
    `step`. init: P's initializer (see `nbprop.dense`).

    Source: Gehring et al. 2017, "Convolutional sequence to sequence learning", section 3.1.

    >>> positions()
    positions()
    """
    return Positions(init)
