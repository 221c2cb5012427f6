"""Activations: y = f(x), elementwise, and softmax over the last axis.

f and f' are the scalar functions of numerics/activations.py; kernels choose by a code that stands in the op's row.
Where f' can be written in terms of y, dense layers overwrite their pre-activation with y and keep only that.
"""

from dataclasses import dataclass

from nbprop.compiler.jit import njit
from nbprop.networks.layer import Layer
from nbprop.numerics import activations as f
from nbprop.numerics.activations import (
    ACTIVATIONS,
    ELU,
    GELU,
    GELU_TANH,
    HARD_SIGMOID,
    HARD_SWISH,
    HARD_TANH,
    IDENTITY,
    LEAKY_RELU,
    MISH,
    MONOTONE,
    NEEDS_INPUT,
    RELU,
    SELU,
    SIGMOID,
    SILU,
    SINE,
    SOFTMAX,
    SOFTPLUS,
    SOFTSIGN,
    TANH,
)
from nbprop.numerics.copies import copy
from nbprop.numerics.elementary import exp, sigmoid, softplus, tanh
from nbprop.numerics.partition import share, share_blocks
from nbprop.numerics.reductions import row_dot, row_max, row_sum
from nbprop.numerics.scalars import like
from nbprop.numerics.streaming import PIECE, exceeds_caches, fetch, on_stack, settle, stream
from nbprop.numerics.trigonometric import scale_by_cosine, sines, subtract_times_sine
from nbprop.program.kernel import kernel
from nbprop.program.patterns import elementwise
from nbprop.validation import named


@njit
def _apply(y, x, code):
    """y = f(x) over 1-D arrays; y and x may not overlap."""
    if code == IDENTITY:
        for i in range(y.size):
            y[i] = x[i]
    elif code == RELU:
        for i in range(y.size):
            y[i] = f.relu(x[i])
    elif code == LEAKY_RELU:
        for i in range(y.size):
            y[i] = f.leaky_relu(x[i])
    elif code == ELU:
        for i in range(y.size):
            y[i] = f.elu(x[i])
    elif code == GELU:
        for i in range(y.size):
            y[i] = f.gelu(x[i])
    elif code == GELU_TANH:
        for i in range(y.size):
            y[i] = f.gelu_tanh(x[i])
    elif code == SILU:
        for i in range(y.size):
            y[i] = f.silu(x[i])
    elif code == SOFTPLUS:
        for i in range(y.size):
            y[i] = softplus(x[i])
    elif code == SIGMOID:
        for i in range(y.size):
            y[i] = sigmoid(x[i])
    elif code == TANH:
        for i in range(y.size):
            y[i] = tanh(x[i])
    elif code == MISH:
        for i in range(y.size):
            y[i] = f.mish(x[i])
    elif code == SELU:
        for i in range(y.size):
            y[i] = f.selu(x[i])
    elif code == HARD_SIGMOID:
        for i in range(y.size):
            y[i] = f.hard_sigmoid(x[i])
    elif code == HARD_TANH:
        for i in range(y.size):
            y[i] = f.hard_tanh(x[i])
    elif code == HARD_SWISH:
        for i in range(y.size):
            y[i] = f.hard_swish(x[i])
    elif code == SOFTSIGN:
        for i in range(y.size):
            y[i] = f.softsign(x[i])
    elif code == SINE:
        sines(y, x)


@njit
def apply_inplace(y, code):
    """y = f(y). A loop of its own: over two arrays that coincide, the overlap check would pick scalars."""
    if code == RELU:
        for i in range(y.size):
            y[i] = f.relu(y[i])
    elif code == LEAKY_RELU:
        for i in range(y.size):
            y[i] = f.leaky_relu(y[i])
    elif code == ELU:
        for i in range(y.size):
            y[i] = f.elu(y[i])
    elif code == SOFTPLUS:
        for i in range(y.size):
            y[i] = softplus(y[i])
    elif code == SIGMOID:
        for i in range(y.size):
            y[i] = sigmoid(y[i])
    elif code == TANH:
        for i in range(y.size):
            y[i] = tanh(y[i])
    elif code == SELU:
        for i in range(y.size):
            y[i] = f.selu(y[i])
    elif code == HARD_SIGMOID:
        for i in range(y.size):
            y[i] = f.hard_sigmoid(y[i])
    elif code == HARD_TANH:
        for i in range(y.size):
            y[i] = f.hard_tanh(y[i])
    elif code == SOFTSIGN:
        for i in range(y.size):
            y[i] = f.softsign(y[i])


@njit
def scale_by_derivative(d, s, code):
    """d *= f', where s holds x for the codes in NEEDS_INPUT and y for the others."""
    if code == RELU:
        for i in range(d.size):
            d[i] = like(d[i], 0.0) if s[i] <= 0 else d[i]
    elif code == LEAKY_RELU:
        for i in range(d.size):
            d[i] = d[i] * like(d[i], f.SLOPE) if s[i] <= 0 else d[i]
    elif code == ELU:
        for i in range(d.size):
            d[i] = d[i] * (s[i] + like(d[i], 1.0)) if s[i] <= 0 else d[i]
    elif code == GELU:
        for i in range(d.size):
            d[i] *= f.gelu_derivative(s[i])
    elif code == GELU_TANH:
        for i in range(d.size):
            d[i] *= f.gelu_tanh_derivative(s[i])
    elif code == SILU:
        for i in range(d.size):
            d[i] *= f.silu_derivative(s[i])
    elif code == SOFTPLUS:
        for i in range(d.size):
            d[i] *= f.softplus_derivative(s[i])
    elif code == SIGMOID:
        for i in range(d.size):
            d[i] *= f.sigmoid_derivative(s[i])
    elif code == TANH:
        for i in range(d.size):
            d[i] *= f.tanh_derivative(s[i])
    elif code == MISH:
        for i in range(d.size):
            d[i] *= f.mish_derivative(s[i])
    elif code == SELU:
        for i in range(d.size):
            d[i] *= f.selu_derivative(s[i])
    elif code == HARD_SIGMOID:
        for i in range(d.size):
            d[i] *= f.hard_sigmoid_derivative(s[i])
    elif code == HARD_TANH:
        for i in range(d.size):
            d[i] *= f.hard_tanh_derivative(s[i])
    elif code == HARD_SWISH:
        for i in range(d.size):
            d[i] *= f.hard_swish_derivative(s[i])
    elif code == SOFTSIGN:
        for i in range(d.size):
            d[i] *= f.softsign_derivative(s[i])
    elif code == SINE:
        scale_by_cosine(d, s)


@njit
def add_curvature(d_dot, d, s, s_dot, code):
    """d_dot += d (f')' with (f')' = the derivative of f' by s, times s_dot; s as in `scale_by_derivative`."""
    if code == ELU:
        for i in range(d.size):
            d_dot[i] = d_dot[i] if s[i] > 0 else d_dot[i] + d[i] * s_dot[i]
    elif code == GELU:
        for i in range(d.size):
            d_dot[i] += d[i] * s_dot[i] * f.gelu_second_derivative(s[i])
    elif code == GELU_TANH:
        for i in range(d.size):
            d_dot[i] += d[i] * s_dot[i] * f.gelu_tanh_second_derivative(s[i])
    elif code == SILU:
        for i in range(d.size):
            d_dot[i] += d[i] * s_dot[i] * f.silu_second_derivative(s[i])
    elif code == SOFTPLUS:
        for i in range(d.size):
            d_dot[i] += d[i] * s_dot[i] * exp(-s[i])
    elif code == SIGMOID:
        for i in range(d.size):
            d_dot[i] += d[i] * s_dot[i] * (like(d[i], 1.0) - like(d[i], 2.0) * s[i])
    elif code == TANH:
        for i in range(d.size):
            d_dot[i] -= d[i] * s_dot[i] * like(d[i], 2.0) * s[i]
    elif code == MISH:
        for i in range(d.size):
            d_dot[i] += d[i] * s_dot[i] * f.mish_second_derivative(s[i])
    elif code == SELU:
        for i in range(d.size):
            d_dot[i] = d_dot[i] if s[i] > 0 else d_dot[i] + d[i] * s_dot[i]
    elif code == HARD_SWISH:
        for i in range(d.size):
            d_dot[i] += d[i] * s_dot[i] * f.hard_swish_second_derivative(s[i])
    elif code == SOFTSIGN:
        for i in range(d.size):
            d_dot[i] += d[i] * s_dot[i] * f.softsign_bend(s[i])
    elif code == SINE:
        subtract_times_sine(d_dot, d, s_dot, s)


@kernel
def activation_forward(y, x, n, size, code, part, parts):
    """y = f(x). y OUT (n, size), x IN (n, size)."""
    start, stop = share_blocks(n * size, part, parts)
    _apply(y[start:stop], x[start:stop], code)


@kernel
def activation_inplace(y, n, size, code, part, parts):
    """y = f(y). y INOUT (n, size)."""
    start, stop = share_blocks(n * size, part, parts)
    apply_inplace(y[start:stop], code)


@kernel
def activation_backward(d, s, n, size, code, part, parts):
    """d = d f'. d INOUT (n, size): dy, then dx; s IN (n, size): x for the codes in NEEDS_INPUT, else y."""
    start, stop = share_blocks(n * size, part, parts)
    scale_by_derivative(d[start:stop], s[start:stop], code)


@kernel
def activation_second(d_dot, d, s, s_dot, n, size, code, part, parts):
    """The tangent of `activation_backward`, and it: d_dot = d_dot f' + d (f')', then d = d f'.

    d_dot and d INOUT (n, size); s and s_dot IN (n, size): x and x' for the codes in NEEDS_INPUT, else y and y'.
    """
    start, stop = share_blocks(n * size, part, parts)
    d_dot, d, s, s_dot = d_dot[start:stop], d[start:stop], s[start:stop], s_dot[start:stop]
    if code == TANH:
        # One pass, since little but memory limits it; three over 512 elements at a time took half as long again.
        for i in range(d.size):
            slope = f.tanh_derivative(s[i])
            d_dot[i] = d_dot[i] * slope - d[i] * s_dot[i] * like(slope, 2.0) * s[i]
            d[i] *= slope
        return
    scale_by_derivative(d_dot, s, code)
    add_curvature(d_dot, d, s, s_dot, code)
    scale_by_derivative(d, s, code)


def _never_falls(size, code):
    return code in MONOTONE


elementwise(activation_inplace, activation_backward, activation_second, never_falls=_never_falls)


# Rows up to this size are taken in groups of about _GROUP elements: exp of ten elements at a time would not vectorise.
_SHORT, _GROUP = 128, 1024
# Rows up to this size can be streamed.
_LONGEST = 2048


@njit
def _normalize(y):
    """y /= its sum."""
    scale = like(y[0], 1.0) / row_sum(y)
    for j in range(y.size):
        y[j] *= scale


@njit
def _exp_of_difference(y, x, maximum):
    """y = e^(x - maximum)."""
    for j in range(x.size):
        y[j] = exp(x[j] - maximum)


@njit
def softmax_row(y, x):
    """y = softmax(x) of one row, shifted by its maximum so that nothing overflows."""
    _exp_of_difference(y, x, row_max(x))
    _normalize(y)


@njit
def _streamed_row(y, x, i, size, row):
    """Row i of y = softmax(x), for arrays larger than every cache; row: scratch of its size."""
    here = slice(i * size, (i + 1) * size)
    y_row, x_row = y[here], x[here]
    maximum = row_max(x_row)
    for j in range(0, size, PIECE):
        fetch(x, (i + 1) * size + j, PIECE)
        part = slice(j, min(j + PIECE, size))
        _exp_of_difference(row[part], x_row[part], maximum)
    _normalize(row)
    stream(y_row, row)


@njit
def _softmax_short_rows(y, x, size):
    """y = softmax(x) of several rows of `size` elements, each step on all of them."""
    for first in range(0, x.size, size):
        y_row, x_row = y[first : first + size], x[first : first + size]
        maximum = row_max(x_row)
        for j in range(size):
            y_row[j] = x_row[j] - maximum
    for i in range(y.size):
        y[i] = exp(y[i])
    for first in range(0, y.size, size):
        _normalize(y[first : first + size])


@kernel
def softmax_forward(y, x, n, rows, size, part, parts):
    """y = softmax(x) over the last axis. y OUT, x IN (n * rows, size)."""
    start, stop = share(n * rows, part, parts)
    group = 1 if size > _SHORT else max(1, _GROUP // size)
    if _SHORT < size <= _LONGEST and exceeds_caches(y, 2 * n * rows * size):
        row = on_stack(y, _LONGEST)[:size]
        for i in range(start, stop):
            _streamed_row(y, x, i, size, row)
        settle()
        return
    for i in range(start, stop, group):
        here = slice(i * size, min(i + group, stop) * size)
        if size > _SHORT:
            softmax_row(y[here], x[here])
        else:
            _softmax_short_rows(y[here], x[here], size)


@kernel
def softmax_backward(d, y, n, rows, size, part, parts):
    """d = y (d - sum(d y)) in each row. d INOUT: dy, then dx; y IN (n * rows, size)."""
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        d_row, y_row = d[i * size : (i + 1) * size], y[i * size : (i + 1) * size]
        along = row_dot(d_row, y_row)
        for j in range(size):
            d_row[j] = y_row[j] * (d_row[j] - along)


@kernel
def softmax_second(d_dot, d, y, y_dot, n, rows, size, part, parts):
    """The tangent of `softmax_backward`, and it. d_dot and d INOUT, y and y_dot IN (n * rows, size)."""
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        here = slice(i * size, (i + 1) * size)
        e_row, d_row, y_row, t_row = d_dot[here], d[here], y[here], y_dot[here]
        along = row_dot(d_row, y_row)
        change = row_dot(e_row, y_row) + row_dot(d_row, t_row)
        for j in range(size):
            e_row[j] = t_row[j] * (d_row[j] - along) + y_row[j] * (e_row[j] - change)
            d_row[j] = y_row[j] * (d_row[j] - along)


def activate(build, x, name, *, overwrite):
    """Emit y = f(x). overwrite: x's buffer may become y's (nobody else reads x)."""

    code = ACTIVATIONS[name]
    if code == IDENTITY:
        return x
    if code == SOFTMAX:
        y = build.value(x.shape)
        sizes = (x.size // x.shape[-1], x.shape[-1])
        build.emit(softmax_forward, (y.buffer,), (x.buffer,), sizes)
        back, back_second, back_sizes, saved = softmax_backward, softmax_second, sizes, y.buffer
    else:
        if overwrite and code not in NEEDS_INPUT:
            y = type(x)(x.shape, x.buffer)
            build.emit(activation_inplace, (), (), (x.size, code), inplace=(x.buffer,))
        else:
            y = build.value(x.shape)
            build.emit(activation_forward, (y.buffer,), (x.buffer,), (x.size, code))
        back, back_second, back_sizes = activation_backward, activation_second, (x.size, code)
        saved = x.buffer if code in NEEDS_INPUT else y.buffer

    if build.with_tangents:
        # y' = f' x': the same elementwise product as in the backward pass.
        if y.buffer is not x.buffer:
            x_dot = build.whole_tangent(x.buffer)
            build.emit(copy, (build.new_tangent(y.buffer),), (x_dot,), (x.size,))
        build.emit(back, (), (saved,), back_sizes, inplace=(build.tangent(y.buffer),))

    def rule(dy):
        if build.with_tangents:
            pair = (build.tangent(dy), dy)
            build.emit(back_second, (), (saved, build.tangent(saved)), back_sizes, inplace=pair)
        else:
            build.emit(back, (), (saved,), back_sizes, inplace=(dy,))
        build.accumulate_gradient(x, dy)

    build.on_backward(y, rule)
    return y


@dataclass(frozen=True, repr=False)
class Activation(Layer):
    name: str = "identity"
    kind = "activation"
    tangents = True

    def __post_init__(self):
        object.__setattr__(self, "name", named(ACTIVATIONS)("activation", self.name))

    def __repr__(self):
        return f"activation({self.name!r})"

    def output_shape(self, input_shape):
        if self.name == "softmax" and not input_shape:
            raise ValueError("softmax needs an axis to run over")
        return input_shape

    def lower(self, build, x, path, names):
        return activate(build, x, self.name, overwrite=False)


def activation(name: str) -> Layer:
    """A layer that applies an activation to each element ("softmax": over the last axis).

    `name`: "identity", "relu", "leaky_relu", "elu", "gelu" (exact), "gelu_tanh", "silu", "softplus", "sigmoid", "tanh",
    "softmax", "mish", "selu", "hard_sigmoid", "hard_tanh", "hard_swish", "softsign" or "sine". Those with parameters or
    two inputs are layers of their own: `nbprop.prelu`, `nbprop.glu`.

    >>> activation("relu")
    activation('relu')
    """
    return Activation(name)
