"""Embedding: y = W[x], a row of a table for each integer (Bengio et al. 2003, JMLR 3, section 2).

Backward: every row of dW is the sum of the dy where x named it, in the order of the positions.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from nbprop.networks.layer import INITIALIZERS, Layer, Parameter
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.elements import integer_at
from nbprop.program.kernel import kernel
from nbprop.validation import named, positive

# Threads share columns in pieces of this many: a cache line of float32, so that no two write to one line.
_COLUMNS = 16


@kernel
def embedding_forward(y, w, n, rows, size, x_address, x_code, part, parts):
    """y = W[x]. y OUT (n * rows, size), w IN (vocabulary, size); x are n * rows integers of any width at x_address."""
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        index = integer_at(x_address, x_code, i)
        y_row, w_row = y[i * size : (i + 1) * size], w[index * size : (index + 1) * size]
        for j in range(size):
            y_row[j] = w_row[j]


@kernel
def embedding_backward(dw, dy, n, rows, size, w_accumulate, accumulate, x_address, x_code, part, parts):
    """dW[x] += dy, from 0 unless `w_accumulate` or `accumulate`. dw OUT (vocabulary, size), dy IN (n * rows, size).

    Threads share the columns, so each sum is in the order of the positions on any number of them.
    """
    first, last = share((size + _COLUMNS - 1) // _COLUMNS, part, parts)
    first, last = first * _COLUMNS, min(last * _COLUMNS, size)
    if w_accumulate + accumulate == 0:
        for k in range(dw.size // size):
            row = dw[k * size + first : k * size + last]
            for j in range(row.size):
                row[j] = like(row[j], 0.0)
    for i in range(n * rows):
        index = integer_at(x_address, x_code, i)
        dw_row, dy_row = dw[index * size + first : index * size + last], dy[i * size + first : i * size + last]
        for j in range(dw_row.size):
            dw_row[j] += dy_row[j]


@dataclass(frozen=True, repr=False)
class Embedding(Layer):
    vocabulary: int
    units: int
    init: str = "normal"
    kind = "embedding"
    checks: ClassVar = {"vocabulary": positive, "units": positive, "init": named(INITIALIZERS)}
    tangents = True

    def __repr__(self):
        init = "" if self.init == "normal" else f", init={self.init!r}"
        return f"embedding({self.vocabulary}, {self.units}{init})"

    @property
    def index_limit(self):
        return self.vocabulary

    def output_shape(self, input_shape):
        return (*input_shape, self.units)

    def parameters(self, input_shape):
        return (Parameter("weight", (self.vocabulary, self.units), self.init),)

    def lower(self, build, x, path, names):
        (name,) = names
        sizes = (math.prod(x.shape), self.units)
        y = build.value((*x.shape, self.units))
        build.emit(embedding_forward, (y.buffer,), (build.parameter(name),), sizes)
        if build.with_tangents:
            build.emit(embedding_forward, (build.new_tangent(y.buffer),), (build.direction(name),), sizes)

        def rule(dy):
            dw, w_accumulate = build.parameter_gradient(name)
            build.emit(embedding_backward, (dw,), (dy,), (*sizes, w_accumulate))
            if build.with_tangents:
                dw_dot, w_accumulate = build.parameter_tangent(name)
                build.emit(embedding_backward, (dw_dot,), (build.tangent(dy),), (*sizes, w_accumulate))

        build.on_backward(y, rule)
        return y


def embedding(vocabulary: int, units: int, init: str = "normal") -> Layer:
    """An embedding: each integer of the input becomes a row of a learned table, y = W[x].

    It stands first in its network, whose x is then integers of any width, (n, *input_shape), each in 0..vocabulary - 1;
    anything outside is refused before a call writes. There is no gradient by x.

    Parameters
    ----------
    vocabulary : int
        Rows of the table; the weight is (vocabulary, units).
    units : int
        Outputs for each integer.
    init : str
        The weight's initializer (see `nbprop.dense`); "normal" is N(0, 1), "small_normal" N(0, 0.02^2) as in GPT.

    Source: Bengio, Ducharme, Vincent and Jauvin 2003, JMLR 3, section 2.

    >>> embedding(256, 64)
    embedding(256, 64)
    """
    return Embedding(vocabulary, units, init)
