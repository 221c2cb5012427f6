"""Convolutions: y[p, q, f] = b[f] + sum over i, j, c of W[i, j, c, f] x[stride p + dilation i - padding, ..., c].

x is 0 outside the image, or one of its pixels by another padding mode, and the second axis goes as the first. It is a
cross-correlation, as everywhere in the field. With groups, the filters of a group see the channels of that group alone
(Krizhevsky et al. 2012, section 3.5). LeCun et al. 1989, "Backpropagation applied to handwritten zip code recognition",
section 3.

Weights are (kernel rows, kernel columns, channels / groups, filters). The products (forward, dW, dx) are those of
numerics/convolution.py; a convolution of 1 x 1 is a dense layer over the last axis, and runs as one.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from nbprop.layers.activation import activate
from nbprop.layers.conv.kernels import (
    TurnedWeight,
    conv_backward_input,
    conv_backward_parameters,
    conv_forward,
    conv_turn,
)
from nbprop.layers.conv.pooled import PooledOutput, conv_backward_argmax, offsets_size
from nbprop.layers.dense.kernels import dense_transpose
from nbprop.layers.dense.layer import default_init, lower_dense
from nbprop.layers.dense.sizes import DenseSizes
from nbprop.layers.image import (
    PADDINGS,
    Border,
    as_image,
    check_border,
    crop_image,
    lower_padded,
    out_extent,
    pad_image,
    shortest,
    spans,
)
from nbprop.layers.pool import max_pool_backward
from nbprop.networks.layer import INITIALIZERS, Layer, Parameter
from nbprop.numerics.activations import ACTIVATIONS
from nbprop.numerics.convolution import Windows, windows_scratch
from nbprop.program.patterns import fused_pair
from nbprop.validation import check_flag, choose, named, optional, positive


@dataclass(frozen=True, repr=False)
class Convolution(Layer):
    """What `conv2d` and `conv1d` share; a sequence is an image of one row."""

    filters: int
    kernel: tuple | int
    stride: tuple | int = 1
    padding: tuple | int | str = 0
    dilation: tuple | int = 1
    groups: int = 1
    activation: str = "identity"
    bias: bool = True
    init: str | None = None
    padding_mode: str = "zeros"
    axes = 2
    checks: ClassVar = {
        "filters": positive,
        "groups": positive,
        "activation": named(ACTIVATIONS),
        "bias": check_flag,
        "init": optional(named(INITIALIZERS)),
        "padding_mode": named(PADDINGS),
    }
    tangents = True

    def __post_init__(self):
        super().__post_init__()
        for name in ("kernel", "stride", "dilation"):
            object.__setattr__(self, name, shortest(spans(f"{self.kind}: {name}", getattr(self, name), self.axes)))
        if isinstance(self.padding, str):
            choose(f"{self.kind}: padding", self.padding, ("same",))
        else:
            padding = shortest(spans(f"{self.kind}: padding", self.padding, self.axes, least=0))
            object.__setattr__(self, "padding", padding)
        if self.filters % self.groups:
            raise ValueError(f"{self.kind}: groups={self.groups} must divide the {self.filters} filters")

    def __repr__(self):
        options = "".join(
            f", {name}={getattr(self, name)!r}"
            for name, default in (
                *(("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1), ("activation", "identity")),
                *(("bias", True), ("init", None), ("padding_mode", "zeros")),
            )
            if getattr(self, name) != default
        )
        return f"{self.kind}({self.filters}, {self.kernel!r}{options})"

    def _pair(self, name):
        """(rows, columns) of a setting."""
        value = getattr(self, name)
        neutral = (0,) if name == "padding" else (1,)
        return neutral * (2 - self.axes) + spans(name, value, self.axes, least=0)

    def _borders(self, height, width):
        """((top, bottom), (left, right)) rows and columns of zeros."""
        if self.padding != "same":
            return tuple((size, size) for size in self._pair("padding"))
        borders = []
        for extent, size, stride, dilation in zip(
            (height, width), self._pair("kernel"), self._pair("stride"), self._pair("dilation"), strict=True
        ):
            total = max(0, (-(-extent // stride) - 1) * stride + dilation * (size - 1) + 1 - extent)
            borders.append((total // 2, total - total // 2))
        return tuple(borders)

    def windows(self, input_shape):
        """((top, left), `Windows`) for an input of a shape."""
        height, width, channels = as_image(self.kind, input_shape, self.axes)
        if channels % self.groups:
            raise ValueError(f"groups={self.groups} must divide the input's {channels} channels")
        (kh, kw), (sh, sw), (dh, dw) = (self._pair(name) for name in ("kernel", "stride", "dilation"))
        vertical, horizontal = self._borders(height, width)
        check_border(self.kind, self.padding_mode, height, vertical, "height")
        check_border(self.kind, self.padding_mode, width, horizontal, "width" if self.axes == 2 else "length")
        out_h = out_extent(height, kh, sh, dh, vertical, "height")
        out_w = out_extent(width, kw, sw, dw, horizontal, "width" if self.axes == 2 else "length")
        windows = Windows(
            height=height + sum(vertical),
            width=width + sum(horizontal),
            channels=channels,
            kernel_h=kh,
            kernel_w=kw,
            stride_h=sh,
            stride_w=sw,
            dilation_h=dh,
            dilation_w=dw,
            groups=self.groups,
            out_h=out_h,
            out_w=out_w,
        )
        return (vertical[0], horizontal[0]), windows

    def output_shape(self, input_shape):
        _, windows = self.windows(input_shape)
        return (windows.out_h, windows.out_w, self.filters)[2 - self.axes :]

    def parameters(self, input_shape):
        kernel = spans("kernel", self.kernel, self.axes)
        init = self.init or default_init(self.activation)
        weight = Parameter("weight", (*kernel, input_shape[-1] // self.groups, self.filters), init)
        return (weight, Parameter("bias", (self.filters,), "zeros")) if self.bias else (weight,)

    def flops(self, input_shape):
        return 2 * math.prod(self.output_shape(input_shape)) * math.prod(self.parameters(input_shape)[0].shape[:-1])

    def lower(self, build, x, path, names):
        weight, bias = (*names, None)[:2]
        corner, windows = self.windows(x.shape)
        shape = self.output_shape(x.shape)
        if self.padding_mode != "zeros" and (windows.height, windows.width) != (1, *x.shape)[-3:-1]:
            whole = (windows.height, windows.width, windows.channels)[2 - self.axes :]
            x, corner = lower_padded(build, x, whole, corner, self.padding_mode), (0, 0)
        trivial = windows.kernel_h * windows.kernel_w * windows.stride_h * windows.stride_w * windows.groups == 1
        if trivial and shape[:-1] == x.shape[:-1]:
            z = lower_dense(build, x, self.filters, weight, bias)
        else:
            z = lower_convolution(build, x, shape, corner, windows, weight, bias)
        return activate(build, z, self.activation, overwrite=True)


def lower_convolution(build, x, shape, corner, windows, weight, bias):
    """Emit z = b + W * x, with x padded so that it begins at `corner`; `weight` and `bias` are names in `views`."""
    sizes = (shape[-1], windows)
    w, b = build.parameter(weight), build.parameter(bias) if bias else None

    def scratch():
        return build.buffer(windows_scratch(build.threads))

    source = padded(build, x.buffer, x.shape, corner, windows)
    z = build.value(shape)
    build.emit(conv_forward, (z.buffer, scratch()), (source, w, b), (*sizes, 0))
    if build.with_tangents:
        # y' = W' * x + b', and then W * x' onto it: the same kernel.
        w_dot, b_dot = build.direction(weight), build.direction(bias) if bias else None
        source_dot, z_dot = build.whole_tangent(source), build.new_tangent(z.buffer)
        build.emit(conv_forward, (z_dot, scratch()), (source, w_dot, b_dot), (*sizes, 0))
        build.emit(conv_forward, (), (source_dot, w, None), (*sizes, 1), inplace=(z_dot, scratch()))

    def rule(dz):
        dw, w_accumulate = build.parameter_gradient(weight)
        db, b_accumulate = build.parameter_gradient(bias) if bias else (None, 0)
        build.emit(
            conv_backward_parameters, (dw, db), (source, dz), (*sizes, w_accumulate, b_accumulate), barrier=False
        )
        if build.with_tangents:
            dw_dot, w_accumulate = build.parameter_tangent(weight)
            db_dot, b_accumulate = build.parameter_tangent(bias) if bias else (None, 0)
            reads = (source, build.tangent(dz))
            build.emit(conv_backward_parameters, (dw_dot, db_dot), reads, (*sizes, w_accumulate, b_accumulate))
            build.emit(conv_backward_parameters, (), (source_dot, dz), (*sizes, 1, 0), inplace=(dw_dot, None))
        build.accumulate_gradient(x, lower_input_gradient(build, x, dz, corner, windows, weight))

    build.on_backward(z, rule)
    return z


@fused_pair(max_pool_backward, conv_backward_parameters)
def of_chosen_pixels(build, pool, conv):
    """dW and db from the gradient of a max pool's output, in place of the mostly zero one of its input."""
    (dw, db, source, dz), (dx, dy, argmax) = conv.operands, pool.operands
    (filters, windows, *accumulate), (pools,) = conv.sizes, pool.sizes
    alike = (pools.height, pools.width, pools.channels) == (windows.out_h, windows.out_w, filters)
    # With tangents, the product with z's tangent adds to what this writes.
    if dz is not dx or not alike or build.with_tangents:
        return None
    turned = build.buffer(dw.size)
    offsets = build.buffer(offsets_size(pools.out_h * pools.out_w * pools.channels, build.threads))
    writes, reads = (dw, db, turned, offsets), (source, dy, argmax)
    output = PooledOutput(
        pool_w=pools.kernel_w,
        pool_stride_h=pools.stride_h,
        pool_stride_w=pools.stride_w,
        top=pools.top,
        left=pools.left,
        rows=pools.out_h,
        columns=pools.out_w,
    )
    return build.op(conv_backward_argmax, writes, reads, (filters, windows, output, *accumulate), barrier=False)


def padded(build, buffer, shape, corner, windows):
    """The operand of an image with the zeros around it that `windows` need, `corner` rows and columns before it."""
    image = windows.height * windows.width * windows.channels
    if image == math.prod(shape):
        return buffer
    found = build.buffer(build.batch * image)
    build.linear(pad_image, (found,), (buffer,), border(shape, corner, windows))
    return found


def border(shape, corner, windows):
    """The sizes of `pad_image` and `crop_image`."""
    (height, width, channels), (top, left) = (1, *shape)[-3:], corner
    image = {"height": height, "width": width, "channels": channels}
    return Border(**image, top=top, left=left, padded_h=windows.height, padded_w=windows.width)


def turned(shape, corner, windows, filters):
    """(corner, `Windows`) of the convolution that makes dx of dz, or None where adding windows up is better."""
    g = windows
    (height, width, _), (top, left) = (1, *shape)[-3:], corner
    above, before = g.dilation_h * (g.kernel_h - 1) - top, g.dilation_w * (g.kernel_w - 1) - left
    below, after = height - g.out_h + top, width - g.out_w + left
    # It computes every pixel of x from whole windows, zeros included.
    if g.stride_h * g.stride_w > 1 or min(above, before, below, after) < 0:
        return None
    if 10 * height * width > 11 * g.out_h * g.out_w:
        return None
    padded_h, padded_w = g.out_h + above + below, g.out_w + before + after
    return (above, before), g._replace(height=padded_h, width=padded_w, channels=filters, out_h=height, out_w=width)


def lower_input_gradient(build, x, dz, corner, windows, weight):
    """Emit dx, from the gradient dz; its buffer."""
    *taps, channels, filters = build.net.slots[weight].parameter.shape
    back = turned(x.shape, corner, windows, filters)

    def matrix(w):
        found = build.buffer(w.size)
        if back is None:
            build.emit(dense_transpose, (found,), (w,), DenseSizes(rows=0, n_in=w.size // filters, n_out=filters))
        else:
            shape = {"taps": math.prod(taps), "channels": channels, "filters": filters}
            build.emit(conv_turn, (found,), (w,), TurnedWeight(**shape, groups=windows.groups))
        return found

    if back is None:
        kernel, source, others = conv_backward_input, dz, []
        dx, sizes = build.buffer(build.batch * windows.height * windows.width * windows.channels), (filters, windows)
    else:
        kernel, others = conv_forward, [None]
        source = padded(build, dz, (windows.out_h, windows.out_w, filters), *back)
        dx, sizes = build.buffer(build.batch * x.size), (windows.channels, back[1])
    wt = matrix(build.parameter(weight))

    def scratch():
        return build.buffer(windows_scratch(build.threads))

    build.emit(kernel, (dx, scratch()), (source, wt, *others), (*sizes, 0))
    if build.with_tangents:
        wt_dot, dx_dot = matrix(build.direction(weight)), build.new_tangent(dx)
        build.emit(kernel, (dx_dot, scratch()), (build.tangent(source), wt, *others), (*sizes, 0))
        build.emit(kernel, (), (source, wt_dot, *others), (*sizes, 1), inplace=(dx_dot, scratch()))
    if dx.size == build.batch * x.size:
        return dx
    cropped = build.buffer(build.batch * x.size)
    build.linear(crop_image, (cropped,), (dx,), border(x.shape, corner, windows))
    return cropped


class Conv2d(Convolution):
    kind = "conv2d"


class Conv1d(Convolution):
    kind, axes = "conv1d", 1


def conv2d(
    filters: int,
    kernel: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | Literal["same"] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    activation: str | None = None,
    bias: bool = True,
    init: str | None = None,
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
) -> Layer:
    """A convolution of images (height, width, channels) to (out height, out width, filters).

    Parameters
    ----------
    filters : int
        Output channels.
    kernel, stride, dilation : int or (rows, columns)
        The window's pixels, the step from window to window, the step from pixel to pixel inside one.
    padding : int, (rows, columns) or "same"
        Zeros on each side. "same": as many as make the output ceil(extent / stride), an odd one at the end.
    groups : int
        Channels and filters are cut into so many groups; each group of filters sees its channels alone.
    activation, bias, init
        As for `nbprop.dense`. The weight is (rows, columns, channels / groups, filters), the bias (filters,).
    padding_mode : "zeros", "reflect", "replicate" or "circular"
        What lies in the padding, as in PyTorch: zeros, the image mirrored at its outermost pixels, these pixels, or the
        image's other side.

    >>> conv2d(16, 5, padding=2, activation="relu")
    conv2d(16, 5, padding=2, activation='relu')
    """
    activation = "identity" if activation is None else activation
    return Conv2d(filters, kernel, stride, padding, dilation, groups, activation, bias, init, padding_mode)


def conv1d(
    filters: int,
    kernel: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] | Literal["same"] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
    activation: str | None = None,
    bias: bool = True,
    init: str | None = None,
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
) -> Layer:
    """A convolution of sequences (time, channels) to (out time, filters); arguments as for `nbprop.conv2d`.

    The weight is (kernel, channels / groups, filters).

    >>> conv1d(8, 3, padding="same", dilation=2)
    conv1d(8, 3, padding='same', dilation=2)
    """
    activation = "identity" if activation is None else activation
    return Conv1d(filters, kernel, stride, padding, dilation, groups, activation, bias, init, padding_mode)
