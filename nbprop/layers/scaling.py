"""Scaling between the units of data and those of a network: numbers that are set from data, not learned.

standardize: y = (x - mean) / std, the first layer; rescale: y = x std + mean, its inverse, the last. Each feature (the
last axis) has a mean and a std, which lie in the parameters and so go wherever these go: into files, derivatives by x,
rollouts. `nbprop.fit_scaling` sets them.

Unless trainable, the two are constants to every derivative: their gradients and their rows and columns of a Jacobian or
a Hessian are 0, so that no search that follows derivatives moves them; `fit`, `minimize` and `least_squares` leave them
out besides (`networks.network.trainable_mask`), weight decay with them. x - mean is taken first: a feature far from
zero keeps its digits in float32.

Backward of y = (x - m) / s:  dx = dy / s,  dm = -sum of dx,  ds = -sum of dx y, over the rows;
of y = x s + m:  dx = dy s,  dm = sum of dy,  ds = sum of dy x.
"""

from dataclasses import dataclass
from typing import ClassVar

from nbprop.compiler.jit import njit
from nbprop.networks.layer import Layer, Parameter
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel
from nbprop.program.sizes import Rows
from nbprop.validation import check_flag

# -- elements ------------------------------------------------------------------------------------------------


@kernel
def standardize_forward(y, x, m, s, n, sizes: Rows, part, parts):
    """y = (x - m) / s. y OUT, x IN (n * rows, size); m, s IN (size,)."""
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        y_row, x_row = y[i * size : (i + 1) * size], x[i * size : (i + 1) * size]
        for j in range(size):
            y_row[j] = (x_row[j] - m[j]) / s[j]


@kernel
def standardize_tangent(y_dot, y, x_dot, s, m_dot, s_dot, n, sizes: Rows, trained, part, parts):
    """y' = (x' - m' - y s') / s; m' and s' are taken as 0 where trained is 0, and may be absent.

    y_dot OUT, y, x_dot IN (n * rows, size); s, m_dot, s_dot IN (size,).
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        here = slice(i * size, (i + 1) * size)
        out, y_row, change = y_dot[here], y[here], x_dot[here]
        if trained > 0:
            for j in range(size):
                out[j] = (change[j] - m_dot[j] - y_row[j] * s_dot[j]) / s[j]
        else:
            for j in range(size):
                out[j] = change[j] / s[j]


@kernel
def standardize_backward(dx, dy, s, n, sizes: Rows, part, parts):
    """dx = dy / s. dx OUT, dy IN (n * rows, size); s IN (size,)."""
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        dx_row, dy_row = dx[i * size : (i + 1) * size], dy[i * size : (i + 1) * size]
        for j in range(size):
            dx_row[j] = dy_row[j] / s[j]


@kernel
def standardize_second(dx_dot, dx, dy_dot, s, s_dot, n, sizes: Rows, trained, part, parts):
    """dx' = (dy' - dx s') / s; s' is taken as 0 where trained is 0, and may be absent.

    dx_dot OUT, dx, dy_dot IN (n * rows, size); s, s_dot IN (size,).
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        here = slice(i * size, (i + 1) * size)
        out, dx_row, change = dx_dot[here], dx[here], dy_dot[here]
        if trained > 0:
            for j in range(size):
                out[j] = (change[j] - dx_row[j] * s_dot[j]) / s[j]
        else:
            for j in range(size):
                out[j] = change[j] / s[j]


@kernel
def rescale_forward(y, x, m, s, n, sizes: Rows, part, parts):
    """y = x s + m. y OUT, x IN (n * rows, size); m, s IN (size,)."""
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        y_row, x_row = y[i * size : (i + 1) * size], x[i * size : (i + 1) * size]
        for j in range(size):
            y_row[j] = x_row[j] * s[j] + m[j]


@kernel
def rescale_tangent(y_dot, x, x_dot, s, m_dot, s_dot, n, sizes: Rows, trained, part, parts):
    """y' = x' s + x s' + m'; m' and s' are taken as 0 where trained is 0, and may be absent.

    y_dot OUT, x, x_dot IN (n * rows, size); s, m_dot, s_dot IN (size,).
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        here = slice(i * size, (i + 1) * size)
        out, x_row, change = y_dot[here], x[here], x_dot[here]
        if trained > 0:
            for j in range(size):
                out[j] = change[j] * s[j] + x_row[j] * s_dot[j] + m_dot[j]
        else:
            for j in range(size):
                out[j] = change[j] * s[j]


@kernel
def rescale_backward(dx, dy, s, n, sizes: Rows, part, parts):
    """dx = dy s. dx OUT, dy IN (n * rows, size); s IN (size,)."""
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        dx_row, dy_row = dx[i * size : (i + 1) * size], dy[i * size : (i + 1) * size]
        for j in range(size):
            dx_row[j] = dy_row[j] * s[j]


@kernel
def rescale_second(dx_dot, dy, dy_dot, s, s_dot, n, sizes: Rows, trained, part, parts):
    """dx' = dy' s + dy s'; s' is taken as 0 where trained is 0, and may be absent.

    dx_dot OUT, dy, dy_dot IN (n * rows, size); s, s_dot IN (size,).
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share(n * rows, part, parts)
    for i in range(start, stop):
        here = slice(i * size, (i + 1) * size)
        out, dy_row, change = dx_dot[here], dy[here], dy_dot[here]
        if trained > 0:
            for j in range(size):
                out[j] = change[j] * s[j] + dy_row[j] * s_dot[j]
        else:
            for j in range(size):
                out[j] = change[j] * s[j]


# -- gradients of the numbers --------------------------------------------------------------------------------


@njit
def _add_sums(dm, ds, g, h, rows, size, sign, start, stop):
    """dm += sign sum of g, ds += sign sum of g h over the rows, in the columns start..stop - 1."""
    dm, ds, sign = dm[start:stop], ds[start:stop], like(g[0], sign)
    for i in range(rows):
        g_row, h_row = g[i * size + start : i * size + stop], h[i * size + start : i * size + stop]
        for j in range(g_row.size):
            dm[j] += sign * g_row[j]
            ds[j] += sign * (g_row[j] * h_row[j])


@kernel
def scaling_parameters(dm, ds, g, h, n, sizes: Rows, sign, m_accumulate, s_accumulate, accumulate, part, parts):
    """dm = sign sum of g, ds = sign sum of g h over the rows.

    dm, ds OUT (size,), added to where `m_accumulate`, `s_accumulate` or `accumulate` is 1; g, h IN (n * rows, size).
    Threads share the features: each sum keeps one order.
    """
    start, stop = share(sizes.size, part, parts)
    if start >= stop:
        return
    if m_accumulate + accumulate == 0:
        dm[start:stop] = like(g[0], 0.0)
    if s_accumulate + accumulate == 0:
        ds[start:stop] = like(g[0], 0.0)
    _add_sums(dm, ds, g, h, n * sizes.rows, sizes.size, sign, start, stop)


@kernel
def scaling_parameters_tangent(
    dm, ds, g, g_dot, h, h_dot, n, sizes: Rows, sign, m_accumulate, s_accumulate, accumulate, part, parts
):
    """The tangent of `scaling_parameters`: dm = sign sum of g', ds = sign sum of g' h + g h'.

    dm, ds OUT (size,), g, g_dot, h, h_dot IN (n * rows, size).
    """
    rows, size = sizes.rows, sizes.size
    start, stop = share(size, part, parts)
    sign = like(g[0], sign)
    for j in range(start, stop):
        shift, scale = like(g[0], 0.0), like(g[0], 0.0)
        for k in range(j, n * rows * size, size):
            shift += sign * g_dot[k]
            scale += sign * (g_dot[k] * h[k] + g[k] * h_dot[k])
        dm[j] = shift + (dm[j] if m_accumulate + accumulate > 0 else like(shift, 0.0))
        ds[j] = scale + (ds[j] if s_accumulate + accumulate > 0 else like(scale, 0.0))


@kernel
def scaling_sample_parameters(dm, ds, g, h, n, sizes: Rows, sign, stride, m_accumulate, s_accumulate, part, parts):
    """`scaling_parameters` of each sample apart, `stride` elements behind the one before.

    dm, ds OUT (size,) of each sample, g, h IN (n * rows, size).
    """
    rows, size = sizes.rows, sizes.size
    first, last = share(n, part, parts)
    for i in range(first, last):
        own_dm, own_ds = dm[i * stride : i * stride + size], ds[i * stride : i * stride + size]
        if m_accumulate == 0:
            own_dm[:] = like(g[0], 0.0)
        if s_accumulate == 0:
            own_ds[:] = like(g[0], 0.0)
        here = slice(i * rows * size, (i + 1) * rows * size)
        _add_sums(own_dm, own_ds, g[here], h[here], rows, size, sign, 0, size)


@kernel
def untrained_parameters(dm, ds, n, size, m_accumulate, s_accumulate, accumulate, part, parts):
    """dm = 0, ds = 0, unless there is something to add to. dm, ds OUT (size,)."""
    if part == 0 and accumulate == 0:
        for j in range(size):
            dm[j] = like(dm[j], 0.0) if m_accumulate == 0 else dm[j]
            ds[j] = like(ds[j], 0.0) if s_accumulate == 0 else ds[j]


@kernel
def untrained_sample_parameters(dm, ds, n, size, stride, m_accumulate, s_accumulate, part, parts):
    """`untrained_parameters` of each sample, `stride` elements behind the one before. dm, ds OUT (size,) of each."""
    first, last = share(n, part, parts)
    for i in range(first, last):
        for j in range(i * stride, i * stride + size):
            dm[j] = like(dm[j], 0.0) if m_accumulate == 0 else dm[j]
            ds[j] = like(ds[j], 0.0) if s_accumulate == 0 else ds[j]


# -- layers --------------------------------------------------------------------------------------------------


class _Scaling(Layer):
    """What the two share: the numbers, and how their gradients are emitted."""

    trainable: bool
    checks: ClassVar = {"trainable": check_flag}
    tangents = True
    sample_gradients = True

    def __repr__(self):
        return f"{self.kind}({'trainable=True' if self.trainable else ''})"

    def output_shape(self, input_shape):
        if not input_shape:
            raise ValueError(f"{self.kind} needs an axis of features")
        return input_shape

    def parameters(self, input_shape):
        features, trained = input_shape[-1:], self.trainable
        return Parameter("mean", features, "zeros", trained), Parameter("std", features, "ones", trained)

    def directions(self, build, names):
        """The directions of mean and std, which are constants unless trainable."""
        return tuple(build.direction(name) if self.trainable else None for name in names)

    def emit_gradients(self, build, names, sizes, sign, g, h):
        """Emit the gradients of mean and std from the sums of g and of g h over the rows, and their tangents."""

        def both(operand):
            (dm, m_accumulate), (ds, s_accumulate) = map(operand, names)
            return (dm, ds), (m_accumulate, s_accumulate)

        stride = (build.stride,) if build.stride else ()
        writes, flags = both(build.parameter_gradient)
        if not self.trainable:
            kernel = untrained_sample_parameters if stride else untrained_parameters
            build.emit(kernel, writes, (), (sizes.size, *stride, *flags))
        else:
            kernel = scaling_sample_parameters if stride else scaling_parameters
            build.emit(kernel, writes, (g, h), (sizes, sign, *stride, *flags))
        if build.with_tangents:
            writes, flags = both(build.parameter_tangent)
            if not self.trainable:
                build.emit(untrained_parameters, writes, (), (sizes.size, *flags))
            else:
                reads = g, build.tangent(g), h, build.whole_tangent(h)
                build.emit(scaling_parameters_tangent, writes, reads, (sizes, sign, *flags))


@dataclass(frozen=True, repr=False)
class Standardize(_Scaling):
    trainable: bool = False
    kind = "standardize"

    def lower(self, build, x, path, names):
        sizes, trained = Rows(rows=x.size // x.shape[-1], size=x.shape[-1]), int(self.trainable)
        m, s = map(build.parameter, names)
        y = build.value(x.shape)
        build.emit(standardize_forward, (y.buffer,), (x.buffer, m, s), sizes)
        if build.with_tangents:
            m_dot, s_dot = self.directions(build, names)
            reads = (y.buffer, build.whole_tangent(x.buffer), s, m_dot, s_dot)
            build.emit(standardize_tangent, (build.new_tangent(y.buffer),), reads, (sizes, trained))

        def rule(dy):
            dx = build.buffer(build.batch * x.size)
            build.emit(standardize_backward, (dx,), (dy, s), sizes)
            if build.with_tangents:
                writes, reads = (build.new_tangent(dx),), (dx, build.tangent(dy), s, s_dot)
                build.emit(standardize_second, writes, reads, (sizes, trained))
            self.emit_gradients(build, names, sizes, -1, dx, y.buffer)
            build.accumulate_gradient(x, dx)

        build.on_backward(y, rule)
        return y


@dataclass(frozen=True, repr=False)
class Rescale(_Scaling):
    trainable: bool = False
    kind = "rescale"

    def lower(self, build, x, path, names):
        sizes, trained = Rows(rows=x.size // x.shape[-1], size=x.shape[-1]), int(self.trainable)
        m, s = map(build.parameter, names)
        y = build.value(x.shape)
        build.emit(rescale_forward, (y.buffer,), (x.buffer, m, s), sizes)
        if build.with_tangents:
            m_dot, s_dot = self.directions(build, names)
            reads = (x.buffer, build.whole_tangent(x.buffer), s, m_dot, s_dot)
            build.emit(rescale_tangent, (build.new_tangent(y.buffer),), reads, (sizes, trained))

        def rule(dy):
            dx = build.buffer(build.batch * x.size)
            build.emit(rescale_backward, (dx,), (dy, s), sizes)
            if build.with_tangents:
                writes, reads = (build.new_tangent(dx),), (dy, build.tangent(dy), s, s_dot)
                build.emit(rescale_second, writes, reads, (sizes, trained))
            self.emit_gradients(build, names, sizes, 1, dy, x.buffer)
            build.accumulate_gradient(x, dx)

        build.on_backward(y, rule)
        return y


def standardize(trainable: bool = False) -> Layer:
    """A network's first layer: y = (x - mean) / std for each feature (the last axis), from x as it was measured.

    Parameters
    ----------
    trainable : bool
        Whether training changes mean and std. Unless it does, they are constants to every derivative: their gradients
        are 0, and `fit`, `minimize` and `least_squares` leave them as they are, weight decay included.

    The parameters "mean" and "std", (features,) each, start as 0 and 1; `nbprop.fit_scaling` sets them from data.

    >>> standardize()
    standardize()
    """
    return Standardize(trainable)


def rescale(trainable: bool = False) -> Layer:
    """A network's last layer: y = x std + mean for each output (the last axis), into the units of the target.

    Parameters
    ----------
    trainable : bool
        As of `nbprop.standardize`.

    The parameters "mean" and "std", (outputs,) each, start as 0 and 1; `nbprop.fit_scaling` sets them from data.

    >>> rescale()
    rescale()
    """
    return Rescale(trainable)
