"""Kernels that copy and add, which lowering itself needs beside the layers' own.

Dimensions: n samples; size elements of each, or of each position; rows rows a sample.
"""

from typing import NamedTuple

from nbprop.numerics.partition import share, share_blocks
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at
from nbprop.program.kernel import kernel


@kernel
def add_forward(y, a, b, n, size, part, parts):
    """y = a + b. y OUT, a and b IN (n, size)."""
    start, stop = share_blocks(n * size, part, parts)
    y, a, b = y[start:stop], a[start:stop], b[start:stop]
    for i in range(y.size):
        y[i] = a[i] + b[i]


@kernel
def add_into(y, x, n, size, part, parts):
    """y += x. y INOUT, x IN (n, size)."""
    start, stop = share_blocks(n * size, part, parts)
    y, x = y[start:stop], x[start:stop]
    for i in range(y.size):
        y[i] += x[i]


@kernel
def copy(y, x, n, size, part, parts):
    """y = x. y OUT, x IN (n, size)."""
    start, stop = share_blocks(n * size, part, parts)
    y, x = y[start:stop], x[start:stop]
    for i in range(y.size):
        y[i] = x[i]


@kernel(optional=("x",))
def copy_or_zero(y, x, n, size, part, parts):
    """y = x, or 0 if x is empty. y OUT, x IN (n, size)."""
    start, stop = share_blocks(n * size, part, parts)
    y = y[start:stop]
    if x.size == 0:
        for i in range(y.size):
            y[i] = like(y[i], 0.0)
        return
    x = x[start:stop]
    for i in range(y.size):
        y[i] = x[i]


@kernel(optional=("v",))
def parameters_or_zero(y, v, n, part, parts):
    """y = v, or 0 if v is empty, for one parameter's part of a direction. y OUT, v IN (any,)."""
    start, stop = share_blocks(y.size, part, parts)
    for i in range(start, stop):
        y[i] = v[i] if v.size > 0 else like(y[i], 0.0)


class Columns(NamedTuple):
    """Columns of x (n * rows, x_width), and where they go in y (n * rows, y_width)."""

    rows: int  # rows of a sample
    y_width: int
    y_first: int
    x_width: int
    x_first: int
    width: int  # how many columns


@kernel
def copy_columns(y, x, n, columns: Columns, part, parts):
    """y[:, y_first : y_first + width] = x[:, x_first : x_first + width].

    y OUT (n * rows, y_width), x IN (n * rows, x_width).
    """
    start, stop = share(n * columns.rows, part, parts)
    for i in range(start, stop):
        to, source = y[i * columns.y_width + columns.y_first :], x[i * columns.x_width + columns.x_first :]
        for j in range(columns.width):
            to[j] = source[j]


@kernel(optional=("x",))
def copy_within(y, x, n, positions, size, lengths_address, lengths_code, part, parts):
    """y = x up to the length of each sample, 0 beyond it whatever x holds there; 0 if x is empty.

    y OUT, x IN (n, positions, size).
    """
    start, stop = share(n * positions, part, parts)
    if x.size > 0 and lengths_address == 0:
        y, x = y[start * size : stop * size], x[start * size : stop * size]
        for i in range(y.size):
            y[i] = x[i]
        return
    for row in range(start, stop):
        counts = row % positions < length_at(lengths_address, lengths_code, row // positions, positions)
        to, source = y[row * size : (row + 1) * size], x[row * size : (row + 1) * size]
        if x.size > 0 and counts:
            for j in range(size):
                to[j] = source[j]
        else:
            for j in range(size):
                to[j] = like(to[j], 0.0)
