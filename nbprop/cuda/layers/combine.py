"""The device kernels of copies and sums; the equations and arrays are those of nbprop/numerics/copies.py.

Dimensions: n samples; size elements a sample, or a position of positions; rows rows a sample.
"""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import device_function, grid_size
from nbprop.cuda.vectors import mapped
from nbprop.numerics.copies import (
    Columns,
    add_forward,
    add_into,
    copy,
    copy_columns,
    copy_or_zero,
    copy_within,
    parameters_or_zero,
)
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at


def cuda_kernels(cuda):
    """The device kernels: one thread per element; for whole arrays, per four at a time."""

    @device_function
    def same(x, _, code):
        return x

    @device_function
    def plus(a, b, code):
        return a + b

    copies, sums = mapped(same, 1), mapped(plus, 2)

    def elements(n, size):
        return grid_size(n * size)

    @on_device(add_forward, blocks=elements)
    def add(y, a, b, n, size):
        """y = a + b. y OUT, a and b IN (n, size)."""
        sums(y, a, b, n * size, 0)

    @on_device(add_into, blocks=elements)
    def add_to(y, x, n, size):
        """y += x. y INOUT, x IN (n, size)."""
        sums(y, y, x, n * size, 0)

    @on_device(copy, blocks=elements)
    def copied(y, x, n, size):
        """y = x. y OUT, x IN (n, size)."""
        copies(y, x, x, n * size, 0)

    @on_device(copy_within, blocks=lambda n, positions, size: grid_size(n * positions * size))
    def copied_within(y, x, n, positions, size, lengths_address, lengths_code):
        """y = x up to the length of each sample, 0 beyond it; 0 if x is empty. y OUT, x IN (n, positions, size)."""
        for i in range(cuda.grid(1), n * positions * size, cuda.gridsize(1)):
            row = i // size
            counts = row % positions < length_at(lengths_address, lengths_code, row // positions, positions)
            y[i] = x[i] if counts and x.size > 0 else like(y[0], 0.0)

    @on_device(copy_columns, blocks=lambda n, rows, width: grid_size(n * rows * width))
    def columns_copied(y, x, n, columns: Columns):
        """y[:, y_first : y_first + width] = x[:, x_first : x_first + width].

        y OUT (n * rows, y_width), x IN (n * rows, x_width).
        """
        width = columns.width
        for i in range(cuda.grid(1), n * columns.rows * width, cuda.gridsize(1)):
            row, j = i // width, i % width
            y[row * columns.y_width + columns.y_first + j] = x[row * columns.x_width + columns.x_first + j]

    @on_device(copy_or_zero, blocks=elements)
    def copied_or_zero(y, x, n, size):
        """y = x, or 0 if x is empty. y OUT, x IN (n, size)."""
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            y[i] = x[i] if x.size > 0 else like(y[0], 0.0)

    @on_device(parameters_or_zero, blocks=lambda y: grid_size(y))
    def direction(y, v, n):
        """y = v, or 0 if v is empty. y OUT, v IN (any,)."""
        for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
            y[i] = v[i] if v.size > 0 else like(y[0], 0.0)

    return add, add_to, copied, copied_within, columns_copied, copied_or_zero, direction
