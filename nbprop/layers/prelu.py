"""PReLU: y = x, or a x where x is not positive, with a slope a of each feature (He et al. 2015, equation 1).

Backward:  dx = dy, or a dy where x is not positive;  da = sum of dy x over the rows where x is not positive.
"""

from dataclasses import dataclass
from typing import ClassVar

from nbprop.networks.layer import Layer, Parameter
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel
from nbprop.program.sizes import Rows
from nbprop.validation import number


@kernel
def prelu_forward(y, x, a, n, sizes: Rows, part, parts):
    """y = x, or a x where x <= 0. y OUT, x IN (n * rows, size); a IN (size,)."""
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        y_row, x_row = y[i * size : (i + 1) * size], x[i * size : (i + 1) * size]
        for j in range(size):
            y_row[j] = a[j] * x_row[j] if x_row[j] <= 0 else x_row[j]


@kernel
def prelu_tangent(y_dot, x, x_dot, a, a_dot, n, sizes: Rows, part, parts):
    """y' = x', or a x' + a' x where x <= 0. y_dot OUT, x, x_dot IN (n * rows, size); a, a_dot IN (size,)."""
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        here = slice(i * size, (i + 1) * size)
        out, x_row, change = y_dot[here], x[here], x_dot[here]
        for j in range(size):
            out[j] = a[j] * change[j] + a_dot[j] * x_row[j] if x_row[j] <= 0 else change[j]


@kernel
def prelu_backward(dx, dy, x, a, n, sizes: Rows, part, parts):
    """dx = dy, or a dy where x <= 0. dx OUT, dy, x IN (n * rows, size); a IN (size,)."""
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        here = slice(i * size, (i + 1) * size)
        out, given, x_row = dx[here], dy[here], x[here]
        for j in range(size):
            out[j] = a[j] * given[j] if x_row[j] <= 0 else given[j]


@kernel
def prelu_second(dx_dot, dy, dy_dot, x, a, a_dot, n, sizes: Rows, part, parts):
    """dx' = dy', or a dy' + a' dy where x <= 0.

    dx_dot OUT, dy, dy_dot, x IN (n * rows, size); a, a_dot IN (size,).
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        here = slice(i * size, (i + 1) * size)
        out, given, change, x_row = dx_dot[here], dy[here], dy_dot[here], x[here]
        for j in range(size):
            out[j] = a[j] * change[j] + a_dot[j] * given[j] if x_row[j] <= 0 else change[j]


@kernel
def prelu_parameters(da, dy, x, n, sizes: Rows, a_accumulate, accumulate, part, parts):
    """da = sum of dy x over the rows where x <= 0; added to when `a_accumulate` or `accumulate` is 1.

    da OUT (size,), dy, x IN (n * rows, size). Threads share the features: each sum keeps one order.
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share(size, part, parts)
    da = da[start:stop]
    if a_accumulate + accumulate == 0:
        for j in range(da.size):
            da[j] = like(da[j], 0.0)
    for i in range(n * rows):
        given, x_row = dy[i * size + start : i * size + stop], x[i * size + start : i * size + stop]
        for j in range(da.size):
            da[j] = da[j] + given[j] * x_row[j] if x_row[j] <= 0 else da[j]


@kernel
def prelu_parameters_tangent(da, dy, dy_dot, x, x_dot, n, sizes: Rows, a_accumulate, accumulate, part, parts):
    """The tangent of `prelu_parameters`: da = sum of dy' x + dy x' over the rows where x <= 0.

    da OUT (size,), dy, dy_dot, x, x_dot IN (n * rows, size).
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share(size, part, parts)
    for j in range(start, stop):
        total = like(dy[0], 0.0)
        for k in range(j, n * rows * size, size):
            total = total + (dy_dot[k] * x[k] + dy[k] * x_dot[k]) if x[k] <= 0 else total
        da[j] = total + (da[j] if a_accumulate + accumulate > 0 else like(total, 0.0))


@dataclass(frozen=True, repr=False)
class PReLU(Layer):
    slope: float = 0.25
    kind = "prelu"
    checks: ClassVar = {"slope": number()}
    tangents = True

    def __repr__(self):
        return f"prelu({'' if self.slope == 0.25 else repr(self.slope)})"

    def output_shape(self, input_shape):
        if not input_shape:
            raise ValueError("prelu needs an axis of features")
        return input_shape

    def parameters(self, input_shape):
        return (Parameter("slope", input_shape[-1:], self.slope),)

    def lower(self, build, x, path, names):
        (slope,) = names
        sizes = Rows(rows=x.size // x.shape[-1], size=x.shape[-1])
        a, y = build.parameter(slope), build.value(x.shape)
        build.emit(prelu_forward, (y.buffer,), (x.buffer, a), sizes)
        if build.with_tangents:
            x_dot, a_dot = build.whole_tangent(x.buffer), build.direction(slope)
            build.emit(prelu_tangent, (build.new_tangent(y.buffer),), (x.buffer, x_dot, a, a_dot), sizes)

        def rule(dy):
            dx = build.buffer(build.batch * x.size)
            build.emit(prelu_backward, (dx,), (dy, x.buffer, a), sizes)
            da, accumulate = build.parameter_gradient(slope)
            build.emit(prelu_parameters, (da,), (dy, x.buffer), (sizes, accumulate))
            if build.with_tangents:
                dy_dot = build.tangent(dy)
                build.emit(prelu_second, (build.new_tangent(dx),), (dy, dy_dot, x.buffer, a, a_dot), sizes)
                da, accumulate = build.parameter_tangent(slope)
                build.emit(prelu_parameters_tangent, (da,), (dy, dy_dot, x.buffer, x_dot), (sizes, accumulate))
            build.accumulate_gradient(x, dx)

        build.on_backward(y, rule)
        return y


def prelu(slope: float = 0.25) -> Layer:
    """A rectifier whose slope below 0 is learned: y = x, or a x where x is not positive.

    Parameters
    ----------
    slope : float
        The initial a of each feature (the last axis). The parameter "slope" is (features,).

    Source: He et al. 2015, "Delving deep into rectifiers", equation 1.

    >>> prelu()
    prelu()
    """
    return PReLU(slope)
