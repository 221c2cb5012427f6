"""Slicing: y = x[..., start:stop], a part of the last axis.

With `concat`, a layer sees only some of its inputs: each branch begins with its own slice. The backward pass puts dy
into its place and zeros around it; several slices of one value add up.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from nbprop.networks.layer import Layer
from nbprop.numerics.copies import Columns, copy_columns
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel
from nbprop.validation import integer


class SlicingSizes(NamedTuple):
    """A part of the rows of x (n * rows, size): y (n * rows, width)."""

    rows: int  # rows of a sample
    size: int  # elements of a row
    first: int  # the first of those that are taken
    width: int  # how many are taken


@kernel
def slicing_backward(dx, dy, n, sizes: SlicingSizes, part, parts):
    """dx[:, first : first + width] = dy, 0 elsewhere. dx OUT (n * rows, size), dy IN (n * rows, width)."""
    rows, size, first, width = sizes.rows, sizes.size, sizes.first, sizes.width
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        dx_row, dy_row = dx[i * size : (i + 1) * size], dy[i * width : (i + 1) * width]
        for j in range(size):
            dx_row[j] = like(dx_row[j], 0.0)
        inside = dx_row[first : first + width]
        for j in range(width):
            inside[j] = dy_row[j]


@dataclass(frozen=True, repr=False)
class Slicing(Layer):
    start: int
    stop: int
    kind = "slicing"
    checks: ClassVar = {"start": integer, "stop": integer}
    tangents = True

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.start < self.stop:
            raise ValueError(
                f"slicing: needs 0 <= start < stop, got start {self.start}, stop {self.stop}; count from the front"
            )

    def __repr__(self):
        return f"slicing({self.start}, {self.stop})"

    def output_shape(self, input_shape):
        if not input_shape or input_shape[-1] < self.stop:
            raise ValueError(
                f"slicing up to {self.stop} needs a last axis of at least {self.stop}, got shape {input_shape}"
            )
        return (*input_shape[:-1], self.stop - self.start)

    def lower(self, build, x, path, names):
        rows, size, width = math.prod(x.shape[:-1]), x.shape[-1], self.stop - self.start
        y = build.value((*x.shape[:-1], width))
        columns = Columns(rows=rows, y_width=width, y_first=0, x_width=size, x_first=self.start, width=width)
        build.linear(copy_columns, (y.buffer,), (x.buffer,), columns)

        def rule(dy):
            dx = build.buffer(build.batch * x.size)
            sizes = SlicingSizes(rows=rows, size=size, first=self.start, width=width)
            build.linear(slicing_backward, (dx,), (dy,), sizes)
            build.accumulate_gradient(x, dx)

        build.on_backward(y, rule)
        return y


def slicing(start: int, stop: int) -> Layer:
    """A layer that takes a part of the last axis: y = x[..., start:stop].

    Parameters
    ----------
    start, stop : int
        0 <= start < stop, at most the size of the axis.

    >>> from nbprop.layers.combine import concat
    >>> from nbprop.layers.dense.layer import dense
    >>> concat([slicing(0, 24), dense(6)], [slicing(24, 36), dense(6)])
    concat([slicing(0, 24), dense(6)], [slicing(24, 36), dense(6)])
    """
    return Slicing(start, stop)
