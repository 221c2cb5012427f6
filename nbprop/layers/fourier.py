"""Fourier features: y = (cos z, sin z) with z = 2 pi scale x W and W drawn from N(0, 1).

Rahimi and Recht 2007, "Random features for large-scale kernel machines"; Tancik et al. 2020, "Fourier features let
networks learn high frequency functions in low dimensional domains", equation 5. A function of x that a network could
only learn slowly, since it varies fast, is a slow one of y. scale is the standard deviation of the frequencies, in
periods for each unit of x.

Backward, with c = cos z, s = sin z and d, e the parts of dy:  dz = 2 pi scale (e c - d s), for z = x W.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from nbprop.compiler.intrinsics import double_of_word
from nbprop.layers.dense.kernels import dense_backward_input, dense_forward, dense_transpose
from nbprop.layers.dense.layer import lower_dense
from nbprop.layers.dense.sizes import DenseSizes
from nbprop.networks.layer import Layer, Parameter
from nbprop.numerics.gemm.blocked import gemm_scratch
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.numerics.trigonometric import cosines, sines
from nbprop.program.kernel import kernel
from nbprop.validation import check_flag, number, positive


class FourierSizes(NamedTuple):
    """z (n * rows, units), and y (n * rows, 2 units)."""

    rows: int  # rows of a sample
    units: int  # frequencies
    scale_bits: int  # the bits of 2 pi scale, a float64


@kernel
def fourier_forward(y, z, n, sizes: FourierSizes, part, parts):
    """z = scale z, then y = (cos z, sin z) in each row. y OUT (n * rows, 2 units), z INOUT (n * rows, units)."""
    units, scale = sizes.units, like(z[0], double_of_word(sizes.scale_bits))
    start, stop = share(n * sizes.rows, part, parts)
    for i in range(start, stop):
        row = z[i * units : (i + 1) * units]
        for j in range(units):
            row[j] *= scale
        cosines(y[2 * i * units : (2 * i + 1) * units], row)
        sines(y[(2 * i + 1) * units : 2 * (i + 1) * units], row)


@kernel
def fourier_tangent(y_dot, y, z_dot, n, sizes: FourierSizes, part, parts):
    """y' = scale (-s z', c z') for y = (c, s).

    y_dot OUT, y IN (n * rows, 2 units), z_dot IN (n * rows, units).
    """
    units, scale = sizes.units, like(y[0], double_of_word(sizes.scale_bits))
    start, stop = share(n * sizes.rows, part, parts)
    for i in range(start, stop):
        first, second, end = 2 * i * units, (2 * i + 1) * units, 2 * (i + 1) * units
        c, s, change = y[first:second], y[second:end], z_dot[i * units : (i + 1) * units]
        of_c, of_s = y_dot[first:second], y_dot[second:end]
        for j in range(units):
            of_c[j] = -scale * s[j] * change[j]
            of_s[j] = scale * c[j] * change[j]


@kernel
def fourier_backward(dz, dy, y, n, sizes: FourierSizes, part, parts):
    """dz = scale (e c - d s) for y = (c, s) and dy = (d, e). dz OUT (n * rows, units), dy, y IN (n * rows, 2 units)."""
    units, scale = sizes.units, like(y[0], double_of_word(sizes.scale_bits))
    start, stop = share(n * sizes.rows, part, parts)
    for i in range(start, stop):
        first, second, end = 2 * i * units, (2 * i + 1) * units, 2 * (i + 1) * units
        c, s, d, e = y[first:second], y[second:end], dy[first:second], dy[second:end]
        out = dz[i * units : (i + 1) * units]
        for j in range(units):
            out[j] = scale * (e[j] * c[j] - d[j] * s[j])


@kernel
def fourier_second(dz_dot, dy, dy_dot, y, y_dot, n, sizes: FourierSizes, part, parts):
    """dz' = scale (e' c + e c' - d' s - d s').

    dz_dot OUT (n * rows, units), dy, dy_dot, y and y_dot IN (n * rows, 2 units).
    """
    units, scale = sizes.units, like(y[0], double_of_word(sizes.scale_bits))
    start, stop = share(n * sizes.rows, part, parts)
    for i in range(start, stop):
        first, second, end = 2 * i * units, (2 * i + 1) * units, 2 * (i + 1) * units
        c, s, d, e = y[first:second], y[second:end], dy[first:second], dy[second:end]
        c_dot, s_dot, d_dot, e_dot = y_dot[first:second], y_dot[second:end], dy_dot[first:second], dy_dot[second:end]
        out = dz_dot[i * units : (i + 1) * units]
        for j in range(units):
            out[j] = scale * (e_dot[j] * c[j] + e[j] * c_dot[j] - d_dot[j] * s[j] - d[j] * s_dot[j])


@kernel
def untrained_weight(dw, n, size, w_accumulate, accumulate, part, parts):
    """dw = 0, unless there is something to add to. dw OUT (size,)."""
    start, stop = share(size, part, parts)
    if w_accumulate + accumulate == 0:
        for j in range(start, stop):
            dw[j] = like(dw[j], 0.0)


def lower_fixed(build, x, n_out, weight):
    """Emit z = x W with a W that is not trained: `lower_dense` without the gradients and directions of W."""
    n_in, rows = x.shape[-1], math.prod(x.shape[:-1])
    sizes, w = DenseSizes(rows=rows, n_in=n_in, n_out=n_out), build.parameter(weight)
    total = build.batch * rows

    def scratch(n, k):
        size = gemm_scratch(total, n, k, build.threads)
        return build.buffer(size) if size else None

    z = build.value((*x.shape[:-1], n_out))
    build.emit(dense_forward, (z.buffer, scratch(n_out, n_in)), (x.buffer, w, None), sizes)
    if build.with_tangents:
        x_dot, z_dot = build.whole_tangent(x.buffer), build.new_tangent(z.buffer)
        build.emit(dense_forward, (z_dot, scratch(n_out, n_in)), (x_dot, w, None), sizes)

    def rule(dz):
        dw, accumulate = build.parameter_gradient(weight)
        build.emit(untrained_weight, (dw,), (), (n_in * n_out, accumulate))
        dx, wt = build.buffer(total * n_in), w
        if n_out > 1:
            wt = build.buffer(n_in * n_out)
            build.emit(dense_transpose, (wt,), (w,), sizes._replace(rows=0))
        build.emit(dense_backward_input, (dx, scratch(n_in, n_out)), (dz, wt, w), sizes)
        if build.with_tangents:
            dw, accumulate = build.parameter_tangent(weight)
            build.emit(untrained_weight, (dw,), (), (n_in * n_out, accumulate))
            writes, reads = (build.new_tangent(dx), scratch(n_in, n_out)), (build.tangent(dz), wt, w)
            build.emit(dense_backward_input, writes, reads, sizes)
        build.accumulate_gradient(x, dx)

    build.on_backward(z, rule)
    return z


@dataclass(frozen=True, repr=False)
class FourierFeatures(Layer):
    units: int
    scale: float = 1.0
    trainable: bool = False
    kind = "fourier_features"
    checks: ClassVar = {"units": positive, "scale": number(ends="()"), "trainable": check_flag}
    tangents = True

    def __repr__(self):
        options = "" if self.scale == 1.0 else f", scale={self.scale!r}"
        return f"fourier_features({self.units}{options}{', trainable=True' if self.trainable else ''})"

    def output_shape(self, input_shape):
        if not input_shape:
            raise ValueError("fourier_features needs an axis of features")
        return (*input_shape[:-1], 2 * self.units)

    def parameters(self, input_shape):
        return (Parameter("frequencies", (input_shape[-1], self.units), "normal", self.trainable),)

    def flops(self, input_shape):
        return 2 * math.prod(input_shape) * self.units

    def lower(self, build, x, path, names):
        (weight,) = names
        z = lower_dense(build, x, self.units, weight, None) if self.trainable else None
        z = z or lower_fixed(build, x, self.units, weight)
        scale = int(np.float64(2 * math.pi * self.scale).view(np.int64))
        sizes = FourierSizes(rows=math.prod(x.shape[:-1]), units=self.units, scale_bits=scale)
        y = build.value(self.output_shape(x.shape))
        build.emit(fourier_forward, (y.buffer,), (), sizes, inplace=(z.buffer,))
        if build.with_tangents:
            writes, reads = (build.new_tangent(y.buffer),), (y.buffer, build.tangent(z.buffer))
            build.emit(fourier_tangent, writes, reads, sizes)

        def rule(dy):
            dz = build.buffer(build.batch * z.size)
            build.emit(fourier_backward, (dz,), (dy, y.buffer), sizes)
            if build.with_tangents:
                reads = dy, build.tangent(dy), y.buffer, build.tangent(y.buffer)
                build.emit(fourier_second, (build.new_tangent(dz),), reads, sizes)
            build.accumulate_gradient(z, dz)

        build.on_backward(y, rule)
        return y


def fourier_features(units: int, scale: float = 1.0, trainable: bool = False) -> Layer:
    """Random Fourier features: y = (cos z, sin z) with z = 2 pi scale x W, twice as many outputs as units.

    Parameters
    ----------
    units : int
        Frequencies. The parameter "frequencies" W is (features, units), drawn from N(0, 1) by `nbprop.init`; numbers of
        one's own may be written there (`nbprop.views`).
    scale : float
        Standard deviation of the frequencies, in periods for each unit of x.
    trainable : bool
        Whether training may change W; otherwise its gradient is 0 (see `nbprop.trainable_mask`).

    Source: Rahimi and Recht 2007; Tancik et al. 2020, equation 5.

    >>> fourier_features(32, scale=2.0)
    fourier_features(32, scale=2.0)
    """
    return FourierFeatures(units, scale, trainable)
