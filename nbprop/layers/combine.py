"""Layers made of layers: residual blocks (He et al. 2016: y = x + f(x)) and concatenation of branches.

Their backward rules are those of a sum and of a slice; a value that several layers read collects its gradient in
`Builder.contribute`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from nbprop.arguments import length_at
from nbprop.fields import shown
from nbprop.jit import kernel, share, share_blocks
from nbprop.network import Layer
from nbprop.numerics.scalars import like


@kernel
def add_forward(y, a, b, n, size, part, parts):
    """y = a + b. y OUT, a IN, b IN: (n, size)."""
    start, stop = share_blocks(n * size, part, parts)
    y, a, b = y[start:stop], a[start:stop], b[start:stop]
    for i in range(y.size):
        y[i] = a[i] + b[i]


@kernel
def add_into(y, x, n, size, part, parts):
    """y += x. y INOUT, x IN: (n, size)."""
    start, stop = share_blocks(n * size, part, parts)
    y, x = y[start:stop], x[start:stop]
    for i in range(y.size):
        y[i] += x[i]


@kernel
def copy(y, x, n, size, part, parts):
    """y = x. y OUT, x IN: (n, size)."""
    start, stop = share_blocks(n * size, part, parts)
    y, x = y[start:stop], x[start:stop]
    for i in range(y.size):
        y[i] = x[i]


@kernel(optional=("x",))
def copy_or_zero(y, x, n, size, part, parts):
    """y = x, or 0 where x is empty. y OUT, x IN: (n, size)."""
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
    """y = v, or 0 where v is empty. y OUT, v IN: a parameter's part of a direction, of any size."""
    start, stop = share_blocks(y.size, part, parts)
    for i in range(start, stop):
        y[i] = v[i] if v.size > 0 else like(y[i], 0.0)


@kernel(optional=("x",))
def copy_within(y, x, n, positions, size, lengths_address, lengths_code, part, parts):
    """y = x where a position counts, else 0, whatever x holds there; 0 where x is empty.

    y OUT, x IN: (n, positions, size).
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


@kernel
def copy_columns(y, x, n, rows, y_width, y_first, x_width, x_first, width, part, parts):
    """y[:, y_first : y_first + width] = x[:, x_first : x_first + width].

    y OUT (n * rows, y_width), x IN (n * rows, x_width).
    """
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        to, source = y[i * y_width + y_first :], x[i * x_width + x_first :]
        for j in range(width):
            to[j] = source[j]


def cuda_kernels(cuda):
    """The device's: a thread an element."""
    from nbprop.cuda.kernels import on_device
    from nbprop.cuda.toolkit import cover

    def elements(n, size):
        return cover(n * size)

    @on_device(add_forward, blocks=elements)
    def add(y, a, b, n, size):
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            y[i] = a[i] + b[i]

    @on_device(add_into, blocks=elements)
    def add_to(y, x, n, size):
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            y[i] += x[i]

    @on_device(copy, blocks=elements)
    def copied(y, x, n, size):
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            y[i] = x[i]

    @on_device(copy_within, blocks=lambda n, positions, size: cover(n * positions * size))
    def copied_within(y, x, n, positions, size, lengths_address, lengths_code):
        for i in range(cuda.grid(1), n * positions * size, cuda.gridsize(1)):
            row = i // size
            counts = row % positions < length_at(lengths_address, lengths_code, row // positions, positions)
            y[i] = x[i] if counts else like(y[0], 0.0)

    @on_device(copy_columns, blocks=lambda n, rows, width: cover(n * rows * width))
    def columns_copied(y, x, n, rows, y_width, y_first, x_width, x_first, width):
        for i in range(cuda.grid(1), n * rows * width, cuda.gridsize(1)):
            row, j = i // width, i % width
            y[row * y_width + y_first + j] = x[row * x_width + x_first + j]

    return add, add_to, copied, copied_within, columns_copied


def lower_sequence(build, layers, x, path):
    """Emit layers one after another; their paths end in their positions."""
    from nbprop.lowering import lower_layer

    for index, layer in enumerate(layers):
        x = lower_layer(build, f"{path}.{index}.{layer.kind}", layer, x)
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
            build.contribute(x, dx)
            build.contribute(f, dy)

        build.on_backward(y, rule)
        return y


def residual(*layers):
    """A residual block: y = x + f(x), where f is the given layers in order and keeps x's shape.

    >>> from nbprop.layers.dense import dense
    >>> residual(dense(16, activation="relu"), dense(8))
    residual(dense(16, activation='relu'), dense(8))
    """
    return Residual(tuple(layers))


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
        parts = [lower_sequence(build, branch, x, f"{path}.{b}") for b, branch in enumerate(self.branches)]
        y = build.value((*parts[0].shape[:-1], sum(value.shape[-1] for value in parts)))
        rows, width, places, first = math.prod(y.shape[:-1]), y.shape[-1], [], 0
        for value in parts:
            places.append((value, first))
            sizes = (rows, width, first, value.shape[-1], 0, value.shape[-1])
            build.linear(copy_columns, (), (value.buffer,), sizes, inplace=(y.buffer,))
            first += value.shape[-1]

        def rule(dy):
            for value, start in places:
                dx = build.buffer(build.batch * value.size)
                sizes = (rows, value.shape[-1], 0, width, start, value.shape[-1])
                build.linear(copy_columns, (dx,), (dy,), sizes)
                build.contribute(value, dx)

        build.on_backward(y, rule)
        return y


def concat(*branches):
    """Branches side by side: each takes the same x, their outputs are joined along the last axis.

    A branch is a layer or a list of layers; an empty list passes x through.

    >>> from nbprop.layers.dense import dense
    >>> concat(dense(3), [dense(4, activation="relu"), dense(2)])
    concat([dense(3)], [dense(4, activation='relu'), dense(2)])
    """
    return Concat(tuple((branch,) if isinstance(branch, Layer) else branch for branch in branches))
