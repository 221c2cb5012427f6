"""Layers made of layers: residual blocks (He et al. 2016: y = x + f(x)) and concatenation of branches.

Their backward rules are those of a sum and of a slice; a value that several layers read collects its gradient in
`Builder.accumulate_gradient`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from nbprop.networks.layer import Layer
from nbprop.numerics.copies import Columns, add_forward, copy, copy_columns
from nbprop.validation import shown


def lower_sequence(build, layers, x, path):
    """Emit layers one after another; their paths end in their positions."""
    for index, layer in enumerate(layers):
        x = build.layer(f"{path}.{index}.{layer.kind}", layer, x)
    return x


def _shapes(layers, shape):
    shapes = [shape]
    for layer in layers:
        shapes.append(tuple(layer.output_shape(shapes[-1])))
    return shapes


def _layers(argument, layers):
    """Check a sequence of layers."""
    kind = argument.partition(":")[0]
    if not isinstance(layers, (tuple, list)):
        raise TypeError(f"{kind} takes layers, got {shown(layers)}")
    for layer in layers:
        if not isinstance(layer, Layer):
            raise TypeError(f"{kind} takes layers, got {type(layer).__name__}")
    return tuple(layers)


def _branches(argument, branches):
    """Check a sequence of sequences of layers."""
    if not isinstance(branches, (tuple, list)):
        raise TypeError(f"{argument} must be lists of layers, got {shown(branches)}")
    return tuple(_layers(argument, branch) for branch in branches)


@dataclass(frozen=True, repr=False)
class Residual(Layer):
    layers: tuple = ()
    kind = "residual"
    checks: ClassVar = {"layers": _layers}
    tangents = True

    def __post_init__(self):
        super().__post_init__()
        if not self.layers:
            raise ValueError("residual needs at least one layer")

    def __repr__(self):
        return f"residual({', '.join(map(repr, self.layers))})"

    def output_shape(self, input_shape):
        inner = _shapes(self.layers, input_shape)[-1]
        if inner != input_shape:
            raise ValueError(f"its layers turn shape {input_shape} into {inner}; they must keep it, to be added to x")
        return input_shape

    def children(self, input_shape):
        shapes = _shapes(self.layers, input_shape)
        return [(f"{k}.{layer.kind}", layer, shapes[k]) for k, layer in enumerate(self.layers)]

    def lower(self, build, x, path, names):
        f = lower_sequence(build, self.layers, x, path)
        y = build.value(x.shape)
        build.linear(add_forward, (y.buffer,), (x.buffer, f.buffer), (x.size,))

        def rule(dy):
            # dy is both contributions; f's rules may overwrite theirs, so x gets a copy.
            dx = build.buffer(build.batch * x.size)
            build.linear(copy, (dx,), (dy,), (x.size,))
            build.accumulate_gradient(x, dx)
            build.accumulate_gradient(f, dy)

        build.on_backward(y, rule)
        return y


def residual(*layers: Layer) -> Layer:
    """A residual block: y = x + f(x), where f is the given layers in order and keeps x's shape.

    >>> from nbprop.layers.dense.layer import dense
    >>> residual(dense(16, activation="relu"), dense(8))
    residual(dense(16, activation='relu'), dense(8))
    """
    return Residual(tuple(layers))


def lower_joined(build, values):
    """Emit values side by side along the last axis."""
    y = build.value((*values[0].shape[:-1], sum(value.shape[-1] for value in values)))
    rows, width, places, first = math.prod(y.shape[:-1]), y.shape[-1], [], 0
    for value in values:
        own = value.shape[-1]
        places.append((value, first))
        columns = Columns(rows=rows, y_width=width, y_first=first, x_width=own, x_first=0, width=own)
        build.linear(copy_columns, (), (value.buffer,), columns, inplace=(y.buffer,))
        first += own

    def rule(dy):
        for value, start in places:
            dx, own = build.buffer(build.batch * value.size), value.shape[-1]
            columns = Columns(rows=rows, y_width=own, y_first=0, x_width=width, x_first=start, width=own)
            build.linear(copy_columns, (dx,), (dy,), columns)
            build.accumulate_gradient(value, dx)

    build.on_backward(y, rule)
    return y


@dataclass(frozen=True, repr=False)
class Concat(Layer):
    branches: tuple = ()
    kind = "concat"
    checks: ClassVar = {"branches": _branches}
    tangents = True

    def __post_init__(self):
        super().__post_init__()
        if len(self.branches) < 2:
            raise ValueError("concat needs at least two branches")

    def __repr__(self):
        return f"concat({', '.join(repr(list(branch)) for branch in self.branches)})"

    def output_shape(self, input_shape):
        shapes = [_shapes(branch, input_shape)[-1] for branch in self.branches]
        if any(not shape or shape[:-1] != shapes[0][:-1] for shape in shapes):
            raise ValueError(f"branches give shapes {shapes}; all axes but the last must agree")
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def children(self, input_shape):
        found = []
        for b, branch in enumerate(self.branches):
            shapes = _shapes(branch, input_shape)
            found += [(f"{b}.{k}.{layer.kind}", layer, shapes[k]) for k, layer in enumerate(branch)]
        return found

    def lower(self, build, x, path, names):
        outputs = [lower_sequence(build, branch, x, f"{path}.{b}") for b, branch in enumerate(self.branches)]
        return lower_joined(build, outputs)


def concat(*branches: Layer | Sequence[Layer]) -> Layer:
    """Branches side by side: each takes the same x, their outputs are joined along the last axis.

    A branch is a layer or a list of layers; an empty list passes x through.

    >>> from nbprop.layers.dense.layer import dense
    >>> concat(dense(3), [dense(4, activation="relu"), dense(2)])
    concat([dense(3)], [dense(4, activation='relu'), dense(2)])
    """
    return Concat(tuple((branch,) if isinstance(branch, Layer) else branch for branch in branches))
