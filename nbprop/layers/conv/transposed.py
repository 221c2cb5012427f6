"""Transposed convolutions: the linear map that is the transpose of a convolution, with a bias (Zeiler et al. 2010).

    y[stride p + dilation i - padding, ..., f] += W[i, j, f, c] x[p, ..., c],    y starting from b[f].

Its products are those of the convolution from y to x (kernels.py) with their roles exchanged: the forward pass is that
one's gradient of its input, the gradient of x is its forward pass, and dW is the same with x and dy exchanged.
Weights are (kernel rows, kernel columns, filters / groups, channels): those of the convolution from y to x.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from nbprop.layers.activation import activate
from nbprop.layers.conv.kernels import conv_backward_input, conv_backward_parameters, conv_forward
from nbprop.layers.dense.kernels import dense_transpose
from nbprop.layers.dense.layer import default_init
from nbprop.layers.dense.products import sum_of_rows
from nbprop.layers.dense.sizes import DenseSizes
from nbprop.layers.image import Border, as_image, crop_image, pad_image, shortest, spans
from nbprop.networks.layer import INITIALIZERS, Layer, Parameter
from nbprop.numerics.activations import ACTIVATIONS
from nbprop.numerics.convolution import Windows, windows_scratch
from nbprop.numerics.gemm.entry import GEMM
from nbprop.numerics.partition import share
from nbprop.program.kernel import kernel
from nbprop.program.sizes import Rows
from nbprop.validation import check_flag, named, optional, positive


@kernel(optional=("b",))
def bias_forward(y, b, n, sizes: Rows, part, parts):
    """y += b in each row; an empty b counts as 0. y INOUT (n * rows, size), b IN (size,)."""
    size = sizes.size
    start, stop = share(n * sizes.rows if b.size > 0 else 0, part, parts)
    for i in range(start, stop):
        row = y[i * size : (i + 1) * size]
        for j in range(size):
            row[j] += b[j]


@kernel(uses=(GEMM,))
def bias_backward(db, dy, n, sizes: Rows, b_accumulate, accumulate, part, parts):
    """db = the sum of dy over the rows; added to when `b_accumulate` or `accumulate` is 1.

    db OUT (size,), dy IN (n * rows, size).
    """
    sum_of_rows(db, dy, b_accumulate + accumulate > 0, n * sizes.rows, sizes.size, part, parts)


@dataclass(frozen=True, repr=False)
class TransposedConvolution(Layer):
    """What `conv_transpose2d` and `conv_transpose1d` share; a sequence is an image of one row."""

    filters: int
    kernel: tuple | int
    stride: tuple | int = 1
    padding: tuple | int = 0
    output_padding: tuple | int = 0
    dilation: tuple | int = 1
    groups: int = 1
    activation: str = "identity"
    bias: bool = True
    init: str | None = None
    axes = 2
    checks: ClassVar = {
        "filters": positive,
        "groups": positive,
        "activation": named(ACTIVATIONS),
        "bias": check_flag,
        "init": optional(named(INITIALIZERS)),
    }
    tangents = True

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("kernel", 1), ("stride", 1), ("dilation", 1), ("padding", 0), ("output_padding", 0)):
            value = spans(f"{self.kind}: {name}", getattr(self, name), self.axes, least=least)
            object.__setattr__(self, name, shortest(value))
        if self.filters % self.groups:
            raise ValueError(f"{self.kind}: groups={self.groups} must divide the {self.filters} filters")
        for extra, stride, dilation in zip(*map(self._pair, ("output_padding", "stride", "dilation")), strict=True):
            if extra and extra >= max(stride, dilation):
                raise ValueError(
                    f"{self.kind}: output_padding must be below stride or dilation, got {self.output_padding}"
                )

    def __repr__(self):
        defaults: dict[str, Any] = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
        defaults |= {"activation": "identity", "bias": True, "init": None}
        given = [
            f", {name}={getattr(self, name)!r}" for name, usual in defaults.items() if getattr(self, name) != usual
        ]
        return f"{self.kind}({self.filters}, {self.kernel!r}{''.join(given)})"

    def _pair(self, name):
        """(rows, columns) of a setting."""
        neutral = (0,) if name.endswith("padding") else (1,)
        return neutral * (2 - self.axes) + spans(name, getattr(self, name), self.axes, least=0)

    def windows(self, input_shape):
        """`Windows` of the convolution from the output, with its border, to an input of a shape."""
        height, width, channels = as_image(self.kind, input_shape, self.axes)
        if channels % self.groups:
            raise ValueError(f"groups={self.groups} must divide the input's {channels} channels")
        names = ("kernel", "stride", "dilation", "output_padding")
        (kh, kw), (sh, sw), (dh, dw), (eh, ew) = map(self._pair, names)
        whole = (height - 1) * sh + dh * (kh - 1) + 1 + eh, (width - 1) * sw + dw * (kw - 1) + 1 + ew
        return Windows(
            height=whole[0],
            width=whole[1],
            channels=self.filters,
            kernel_h=kh,
            kernel_w=kw,
            stride_h=sh,
            stride_w=sw,
            dilation_h=dh,
            dilation_w=dw,
            groups=self.groups,
            out_h=height,
            out_w=width,
        )

    def output_shape(self, input_shape):
        windows, padding = self.windows(input_shape), self._pair("padding")
        extents = windows.height - 2 * padding[0], windows.width - 2 * padding[1]
        if min(extents) < 1:
            raise ValueError(f"padding={self.padding} leaves nothing of the output; use less")
        return (*extents, self.filters)[2 - self.axes :]

    def parameters(self, input_shape):
        kernel = spans("kernel", self.kernel, self.axes)
        init = self.init or default_init(self.activation)
        weight = Parameter("weight", (*kernel, self.filters // self.groups, input_shape[-1]), init)
        return (weight, Parameter("bias", (self.filters,), "zeros")) if self.bias else (weight,)

    def flops(self, input_shape):
        return 2 * math.prod(input_shape) * math.prod(self.parameters(input_shape)[0].shape[:-1])

    def lower(self, build, x, path, names):
        weight, bias = (*names, None)[:2]
        z = self._lower_product(build, x, weight)
        if bias is not None:
            z = _lower_bias(build, z, bias)
        return activate(build, z, self.activation, overwrite=True)

    def _lower_product(self, build, x, weight):
        """Emit z = the transpose of W * , of x."""
        windows, shape = self.windows(x.shape), self.output_shape(x.shape)
        channels, w = x.shape[-1], build.parameter(weight)
        whole = build.batch * windows.height * windows.width * windows.channels
        sizes, bordered = (channels, windows), whole != build.batch * math.prod(shape)
        (height, width, filters), (top, left) = (1, *shape)[-3:], self._pair("padding")
        image = {"height": height, "width": width, "channels": filters}
        border = Border(**image, top=top, left=left, padded_h=windows.height, padded_w=windows.width)

        def scratch():
            return build.buffer(windows_scratch(build.threads))

        def transposed(matrix):
            found = build.buffer(w.size)
            build.emit(
                dense_transpose, (found,), (matrix,), DenseSizes(rows=0, n_in=w.size // channels, n_out=channels)
            )
            return found

        z = build.value(shape)
        full = build.buffer(whole) if bordered else z.buffer
        wt = transposed(w)
        build.emit(conv_backward_input, (full, scratch()), (x.buffer, wt), (*sizes, 0))
        if build.with_tangents:
            x_dot, w_dot = build.whole_tangent(x.buffer), build.direction(weight)
            wt_dot, full_dot = transposed(w_dot), build.new_tangent(full)
            build.emit(conv_backward_input, (full_dot, scratch()), (x_dot, wt), (*sizes, 0))
            build.emit(conv_backward_input, (), (x.buffer, wt_dot), (*sizes, 1), inplace=(full_dot, scratch()))
        if bordered:
            build.linear(crop_image, (z.buffer,), (full,), border)

        def rule(dz):
            source = dz
            if bordered:
                source = build.buffer(whole)
                build.linear(pad_image, (source,), (dz,), border)
            dw, accumulate = build.parameter_gradient(weight)
            build.emit(conv_backward_parameters, (dw, None), (source, x.buffer), (*sizes, accumulate, 0))
            dx = build.buffer(build.batch * x.size)
            build.emit(conv_forward, (dx, scratch()), (source, w, None), (*sizes, 0))
            if build.with_tangents:
                source_dot = build.tangent(source)
                dw, accumulate = build.parameter_tangent(weight)
                build.emit(conv_backward_parameters, (dw, None), (source_dot, x.buffer), (*sizes, accumulate, 0))
                build.emit(conv_backward_parameters, (), (source, x_dot), (*sizes, 1, 0), inplace=(dw, None))
                dx_dot = build.new_tangent(dx)
                build.emit(conv_forward, (dx_dot, scratch()), (source_dot, w, None), (*sizes, 0))
                build.emit(conv_forward, (), (source, w_dot, None), (*sizes, 1), inplace=(dx_dot, scratch()))
            build.accumulate_gradient(x, dx)

        build.on_backward(z, rule)
        return z


def _lower_bias(build, z, bias):
    """Emit z + b, in z's place."""
    sizes = Rows(rows=z.size // z.shape[-1], size=z.shape[-1])
    y = type(z)(z.shape, z.buffer)
    build.emit(bias_forward, (), (build.parameter(bias),), sizes, inplace=(z.buffer,))
    if build.with_tangents:
        build.emit(bias_forward, (), (build.direction(bias),), sizes, inplace=(build.tangent(z.buffer),))

    def rule(dy):
        db, accumulate = build.parameter_gradient(bias)
        build.emit(bias_backward, (db,), (dy,), (sizes, accumulate))
        if build.with_tangents:
            db, accumulate = build.parameter_tangent(bias)
            build.emit(bias_backward, (db,), (build.tangent(dy),), (sizes, accumulate))
        build.accumulate_gradient(z, dy)

    build.on_backward(y, rule)
    return y


class ConvTranspose2d(TransposedConvolution):
    kind = "conv_transpose2d"


class ConvTranspose1d(TransposedConvolution):
    kind, axes = "conv_transpose1d", 1


def conv_transpose2d(
    filters: int,
    kernel: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    activation: str | None = None,
    bias: bool = True,
    init: str | None = None,
) -> Layer:
    """A transposed convolution of images (height, width, channels): what undoes the shape of a convolution.

    Parameters
    ----------
    filters : int
        Output channels.
    kernel, stride, dilation : int or (rows, columns)
        Those of the convolution that would lead from the output to the input.
    padding : int or (rows, columns)
        Rows and columns cut off each side of the output, whose extent is (extent - 1) stride + dilation (kernel - 1)
        + 1 + output_padding - 2 padding.
    output_padding : int or (rows, columns)
        Rows and columns more at the end, below stride or dilation: several extents of an output have the same input.
    groups : int
        Channels and filters are cut into so many groups; each group of filters sees its channels alone.
    activation, bias, init
        As for `nbprop.dense`. The weight is (rows, columns, filters / groups, channels), the bias (filters,).

    Source: Zeiler et al. 2010, "Deconvolutional networks"; as PyTorch's ConvTranspose2d.

    >>> conv_transpose2d(8, 4, stride=2, padding=1)
    conv_transpose2d(8, 4, stride=2, padding=1)
    """
    activation = "identity" if activation is None else activation
    return ConvTranspose2d(filters, kernel, stride, padding, output_padding, dilation, groups, activation, bias, init)


def conv_transpose1d(
    filters: int,
    kernel: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    output_padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    activation: str | None = None,
    bias: bool = True,
    init: str | None = None,
) -> Layer:
    """A transposed convolution of sequences (time, channels); arguments as for `nbprop.conv_transpose2d`.

    The weight is (kernel, filters / groups, channels).

    >>> conv_transpose1d(8, 4, stride=2)
    conv_transpose1d(8, 4, stride=2)
    """
    activation = "identity" if activation is None else activation
    return ConvTranspose1d(filters, kernel, stride, padding, output_padding, dilation, groups, activation, bias, init)
