"""The inner loop of the matrix products: outer products of slices in shared memory, in a thread's registers.

Written with llvmlite, since Numba's loops over constant ranges are not always unrolled, and what is left of them (a
counter, addresses that are multiplied out anew) takes as many instructions as the arithmetic. Here each step is its
loads, with constant offsets, and its multiply-adds.
"""

from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nbprop.cuda.toolkit import SIMULATED, cuda, device_function

_WORD = ir.IntType(64)


class Tile(NamedTuple):
    """A tile of C: its rows and columns, the depth of a step over k, and the rows and columns of one thread."""

    rows: int
    columns: int
    depth: int
    each_row: int
    each_column: int

    @property
    def run(self):
        """Neighbouring rows and columns of a thread."""
        return min(4, self.each_row), min(4, self.each_column)

    @property
    def across(self):
        """Threads that share a row of the tile."""
        return self.columns // self.each_column

    @property
    def down(self):
        """Threads that share a column of the tile."""
        return self.rows // self.each_row


def lead_of(width):
    """Elements between the rows of a slice in shared memory: padded, so that those of a column are in other banks."""
    return width + 4


def places(tile):
    """Device functions row(r) and column(c): where in a tile the element (r, c) of a thread's accumulators lies."""
    (row_run, column_run), across, down = tile.run, tile.across, tile.down

    @device_function
    def row(r):
        return (cuda.threadIdx.x // across + r // row_run * down) * row_run + r % row_run

    @device_function
    def column(c):
        return (cuda.threadIdx.x % across + c // column_run * across) * column_run + c % column_run

    return row, column


def outer_products(tile, *, column_sums=False, by_rows=False):
    """A device function: add(acc, sums, a_slice, a_at, b_slice, b_at), one slice of k into a thread's accumulators.

    acc INOUT (each_row * each_column,), in registers; sums INOUT (each_column,), the sums of B's columns with
    `column_sums`; a_slice IN (depth, lead_of(rows)) from a_at on, or with `by_rows` (rows, lead_of(columns)), and
    b_slice IN (depth, lead_of(columns)) from b_at on, in shared memory.
    """
    (row_run, column_run), across = tile.run, tile.across
    products = (_simulated if SIMULATED else _emitted)(tile, column_sums, by_rows)
    apart = lead_of(tile.columns) if by_rows else 1

    @device_function
    def add(acc, sums, a_slice, a_at, b_slice, b_at):
        a_at += cuda.threadIdx.x // across * (row_run * apart)
        b_at += cuda.threadIdx.x % across * column_run
        products(acc, sums, a_slice, a_at, b_slice, b_at)

    return add


def _offsets(tile):
    """Offsets of a thread's rows, and of its columns, from its first ones."""
    row_run, column_run = tile.run
    rows = [r // row_run * tile.down * row_run + r % row_run for r in range(tile.each_row)]
    return rows, [c // column_run * tile.across * column_run + c % column_run for c in range(tile.each_column)]


def _simulated(tile, column_sums, by_rows):
    rows, columns = _offsets(tile)
    a_lead, b_lead = lead_of(tile.columns if by_rows else tile.rows), lead_of(tile.columns)

    def products(acc, sums, a_slice, a_at, b_slice, b_at):
        for step in range(tile.depth):
            right = [b_slice[b_at + step * b_lead + column] for column in columns]
            for r, row in enumerate(rows):
                left = a_slice[a_at + (row * a_lead + step if by_rows else step * a_lead + row)]
                for c in range(tile.each_column):
                    acc[r * tile.each_column + c] += left * right[c]
            if column_sums:
                for c in range(tile.each_column):
                    sums[c] += right[c]

    return products


def _emitted(tile, column_sums, by_rows):
    (rows, columns), (row_run, column_run) = _offsets(tile), tile.run
    a_lead, b_lead = lead_of(tile.columns if by_rows else tile.rows), lead_of(tile.columns)

    @intrinsic
    def products(typingctx, acc, sums, a_slice, a_at, b_slice, b_at):
        def codegen(context, builder, signature, arguments):
            element = context.get_data_type(acc.dtype)

            def data(position):
                return cgutils.create_struct_proxy(signature.args[position])(context, builder, arguments[position]).data

            def vector(base, at, offset, run):
                """Neighbours, in one load."""
                place = builder.gep(base, [builder.add(at, ir.Constant(_WORD, offset))])
                width = min(16, run * context.get_abi_sizeof(element))
                if run == 1:
                    return [builder.load(place)]
                whole = builder.load(builder.bitcast(place, ir.VectorType(element, run).as_pointer()), align=width)
                return [builder.extract_element(whole, ir.Constant(ir.IntType(32), k)) for k in range(run)]

            def held(base, count):
                return [builder.gep(base, [ir.Constant(_WORD, k)]) for k in range(count)]

            a, b, a_first, b_first = data(2), data(4), arguments[3], arguments[5]
            totals, of_columns = held(data(0), len(rows) * len(columns)), held(data(1), len(columns) * column_sums)
            acc_values, sum_values = ([builder.load(place) for place in some] for some in (totals, of_columns))

            def left_of(step):
                """The thread's elements of A in a step; with by_rows, of this and the next three."""
                if by_rows:
                    four = [vector(a, a_first, row * a_lead + step, 4) for row in rows]
                    return [[of_row[k] for of_row in four] for k in range(4)]
                starts = range(0, len(rows), row_run)
                return [[v for r in starts for v in vector(a, a_first, step * a_lead + rows[r], row_run)]]

            for begin in range(0, tile.depth, 4 if by_rows else 1):
                for step, left in enumerate(left_of(begin), begin):
                    starts = range(0, len(columns), column_run)
                    right = [v for c in starts for v in vector(b, b_first, step * b_lead + columns[c], column_run)]
                    for r, x in enumerate(left):
                        for c, y in enumerate(right):
                            at = r * len(columns) + c
                            acc_values[at] = builder.fma(x, y, acc_values[at])
                    sum_values = [builder.fadd(s, y) for s, y in zip(sum_values, right, strict=False)]
            for place, value in zip(totals + of_columns, acc_values + sum_values, strict=True):
                builder.store(value, place)
            return context.get_dummy_value()

        return types.void(acc, sums, a_slice, types.int64, b_slice, types.int64), codegen

    return products
