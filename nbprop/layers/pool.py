"""Pooling: the largest number, or the mean, of each window, channel by channel.

Windows may overlap (stride below kernel; Krizhevsky et al. 2012, section 3.4) or leave gaps. As in PyTorch: windows
that would cross the far edge are left out; padding counts as minus infinity for the maximum and as zeros for the mean;
of equal numbers the first in row-major order is the maximum, and gets the gradient; a NaN is the maximum wherever it
is, and of several the last.

Means: LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II.B (there with a trained
weight). Maxima: Ranzato et al. 2007, "Unsupervised learning of invariant feature hierarchies", section 2.
"""

from dataclasses import dataclass
from typing import NamedTuple

from nbprop.compiler.intrinsics import address_of
from nbprop.compiler.jit import njit
from nbprop.compiler.simd import VECTOR_BYTES
from nbprop.layers.image import as_image, clear, out_extent, shortest, spans
from nbprop.networks.layer import Layer
from nbprop.numerics.gemm.microkernel import pointer
from nbprop.numerics.partition import share
from nbprop.numerics.pooling import place_argmax, spread, spread_argmax, stream_argmax, window_max, window_sum
from nbprop.numerics.scalars import like
from nbprop.numerics.streaming import exceeds_caches, settle
from nbprop.program.kernel import kernel
from nbprop.program.patterns import selection

# A window's pixels are numbered in row-major order, those that lie in the padding too.


class Pools(NamedTuple):
    """The sizes of all kernels here: images (n, height, width, channels), and how their windows lie in them."""

    height: int  # of an image, in pixels
    width: int
    channels: int
    kernel_h: int  # of a window, in pixels
    kernel_w: int
    stride_h: int  # from window to window, in pixels
    stride_w: int
    top: int  # rows of padding above the image
    left: int  # columns of padding to its left
    out_h: int  # windows below each other
    out_w: int  # windows beside each other


@njit
def _inside(pixel, stride, before, kernel, extent):
    """The window of an output pixel along one axis: where it begins, and the range of it that lies in the image."""
    first = pixel * stride - before
    return first, max(0, -first), min(kernel, extent - first)


@njit
def _windows_over(row, stride, before, kernel, out):
    """The range of output pixels whose windows hold a row of the image."""
    return max(0, (row + before - kernel) // stride + 1), min(out, (row + before) // stride + 1)


@njit
def _alike(q, stride, before, kernel, extent, out):
    """How many windows from output pixel q on have the same pixels inside the image: all whole ones, or one."""
    if q * stride < before:
        return 1
    return max(1, min(out, (extent - kernel + before) // stride + 1) - q)


@kernel
def max_pool_forward(y, argmax, x, n, g: Pools, part, parts):
    """y = the maximum of each window, argmax = the index of its pixel within the window.

    y and argmax OUT (n, out_h, out_w, channels), x IN (n, height, width, channels).
    """
    start, stop = share(n * g.out_h, part, parts)
    for row in range(start, stop):
        y_first, i_first, i_stop = _inside(row % g.out_h, g.stride_h, g.top, g.kernel_h, g.height)
        image = (row // g.out_h * g.height + y_first) * g.width
        q = 0
        while q < g.out_w:
            x_first, j_first, j_stop = _inside(q, g.stride_w, g.left, g.kernel_w, g.width)
            count, here = _alike(q, g.stride_w, g.left, g.kernel_w, g.width, g.out_w), (row * g.out_w + q) * g.channels
            window_max(
                *(pointer(y, here), pointer(argmax, here), pointer(x, (image + x_first) * g.channels)),
                *(g.width * g.channels, g.channels, i_first, i_stop, j_first, j_stop, g.kernel_w, g.channels, count),
                g.stride_w * g.channels,
            )
            q += count


@kernel
def max_pool_tangent(y, argmax, x, n, g: Pools, part, parts):
    """y = the element of x at the argmax of each window.

    y OUT, argmax IN (n, out_h, out_w, channels), x IN (n, height, width, channels).
    """
    start, stop = share(n * g.out_h, part, parts)
    for row in range(start, stop):
        image = (row // g.out_h * g.height + row % g.out_h * g.stride_h - g.top) * g.width
        for q in range(g.out_w):
            corner = image + q * g.stride_w - g.left
            here = (row * g.out_w + q) * g.channels
            for c in range(g.channels):
                tap = int(argmax[here + c])
                y[here + c] = x[(corner + tap // g.kernel_w * g.width + tap % g.kernel_w) * g.channels + c]


@kernel
def max_pool_backward(dx, dy, argmax, n, g: Pools, part, parts):
    """dx = the sum of dy over the windows whose maximum the pixel is.

    dx OUT (n, height, width, channels), dy and argmax IN (n, out_h, out_w, channels).
    """
    start, stop = share(n * g.height, part, parts)
    apart = g.stride_h >= g.kernel_h and g.stride_w >= g.kernel_w
    covered = apart and g.kernel_h * g.out_h == g.height and g.kernel_w * g.out_w == g.width
    vectors = (address_of(dx) | (g.channels * dx.itemsize)) % VECTOR_BYTES == 0
    large = covered and vectors and exceeds_caches(dx, n * (g.height * g.width + 2 * g.out_h * g.out_w) * g.channels)
    for row in range(start, stop):
        line = dx[row * g.width * g.channels : (row + 1) * g.width * g.channels]
        if not covered:
            clear(line)
        p_first, p_stop = _windows_over(row % g.height, g.stride_h, g.top, g.kernel_h, g.out_h)
        for p in range(p_first, p_stop):
            i = row % g.height - p * g.stride_h + g.top
            q = 0
            while q < g.out_w:
                x_first, j_first, j_stop = _inside(q, g.stride_w, g.left, g.kernel_w, g.width)
                count = _alike(q, g.stride_w, g.left, g.kernel_w, g.width, g.out_w)
                here, step = ((row // g.height * g.out_h + p) * g.out_w + q) * g.channels, g.stride_w * g.channels
                target = pointer(line, x_first * g.channels)
                given, number, tap = pointer(dy, here), pointer(argmax, here), i * g.kernel_w
                if large:
                    stream_argmax(target, given, number, g.channels, j_first, j_stop, tap, g.channels, count, step)
                elif apart:
                    place_argmax(target, given, number, g.channels, j_first, j_stop, tap, g.channels, count, step)
                else:
                    spread_argmax(target, given, number, g.channels, j_first, j_stop, tap, g.channels, count, step)
                q += count
    if large:
        settle()


@kernel
def avg_pool_forward(y, x, n, g: Pools, part, parts):
    """y = the mean of each window. y OUT (n, out_h, out_w, channels), x IN (n, height, width, channels)."""
    start, stop = share(n * g.out_h, part, parts)
    scale = like(y[0], 1.0) / like(y[0], g.kernel_h * g.kernel_w)
    for row in range(start, stop):
        y_first, i_first, i_stop = _inside(row % g.out_h, g.stride_h, g.top, g.kernel_h, g.height)
        image = (row // g.out_h * g.height + y_first) * g.width
        q = 0
        while q < g.out_w:
            x_first, j_first, j_stop = _inside(q, g.stride_w, g.left, g.kernel_w, g.width)
            count = _alike(q, g.stride_w, g.left, g.kernel_w, g.width, g.out_w)
            window_sum(
                *(pointer(y, (row * g.out_w + q) * g.channels), pointer(x, (image + x_first) * g.channels)),
                *(g.width * g.channels, g.channels, i_first, i_stop, j_first, j_stop, scale, g.channels, count),
                g.stride_w * g.channels,
            )
            q += count


@kernel
def avg_pool_backward(dx, dy, n, g: Pools, part, parts):
    """dx = the sum over the windows of a pixel of dy / window size, the transpose of `avg_pool_forward`.

    dx OUT (n, height, width, channels), dy IN (n, out_h, out_w, channels).
    """
    start, stop = share(n * g.height, part, parts)
    scale = like(dx[0], 1.0) / like(dx[0], g.kernel_h * g.kernel_w)
    for row in range(start, stop):
        line = dx[row * g.width * g.channels : (row + 1) * g.width * g.channels]
        clear(line)
        p_first, p_stop = _windows_over(row % g.height, g.stride_h, g.top, g.kernel_h, g.out_h)
        for p in range(p_first, p_stop):
            q = 0
            while q < g.out_w:
                x_first, j_first, j_stop = _inside(q, g.stride_w, g.left, g.kernel_w, g.width)
                count = _alike(q, g.stride_w, g.left, g.kernel_w, g.width, g.out_w)
                here = ((row // g.height * g.out_h + p) * g.out_w + q) * g.channels
                spread(
                    *(pointer(line, x_first * g.channels), pointer(dy, here), g.channels, j_first, j_stop, scale),
                    *(g.channels, count, g.stride_w * g.channels),
                )
                q += count


# The largest of f(x) is f of the largest x where f does not fall: so f runs over fewer numbers, and its derivative.
selection(max_pool_forward, max_pool_tangent, max_pool_backward)


def lower_pool(build, x, shape, pools, largest):
    """Emit the pooling of x, an image as `pools` says, into a value of a shape."""
    y = build.value(shape)
    if not largest:
        build.linear(avg_pool_forward, (y.buffer,), (x.buffer,), pools)
    else:
        argmax = build.buffer(build.batch * y.size)
        build.emit(max_pool_forward, (y.buffer, argmax), (x.buffer,), pools)
        if build.with_tangents:
            x_dot = build.whole_tangent(x.buffer)
            build.emit(max_pool_tangent, (build.new_tangent(y.buffer),), (argmax, x_dot), pools)

    def rule(dy):
        dx = build.buffer(build.batch * x.size)
        if not largest:
            build.linear(avg_pool_backward, (dx,), (dy,), pools)
        else:
            build.emit(max_pool_backward, (dx,), (dy, argmax), pools)
            if build.with_tangents:
                build.emit(max_pool_backward, (build.new_tangent(dx),), (build.tangent(dy), argmax), pools)
        build.accumulate_gradient(x, dx)

    build.on_backward(y, rule)
    return y


@dataclass(frozen=True, repr=False)
class Pool(Layer):
    kernel: tuple | int
    stride: tuple | int | None = None
    padding: tuple | int = 0
    axes, largest = 2, True
    tangents = True

    def __post_init__(self):
        kernel = spans(f"{self.kind}: kernel", self.kernel, self.axes)
        stride = kernel if self.stride is None else spans(f"{self.kind}: stride", self.stride, self.axes)
        padding = spans(f"{self.kind}: padding", self.padding, self.axes, least=0)
        for name, values in (("kernel", kernel), ("stride", stride), ("padding", padding)):
            object.__setattr__(self, name, shortest(values))
        if any(2 * size > extent for size, extent in zip(padding, kernel, strict=True)):
            raise ValueError(f"{self.kind}: padding {self.padding} must be at most half of the kernel {self.kernel}")

    def __repr__(self):
        stride = "" if self.stride == self.kernel else f", stride={self.stride!r}"
        padding = "" if self.padding == 0 else f", padding={self.padding!r}"
        return f"{self.kind}({self.kernel!r}{stride}{padding})"

    def pools(self, input_shape):
        """The `Pools` of an input's shape."""
        height, width, channels = as_image(self.kind, input_shape, self.axes)
        missing = 2 - self.axes
        kh, kw = (1,) * missing + spans("kernel", self.kernel, self.axes)
        sh, sw = (1,) * missing + spans("stride", self.stride, self.axes)
        top, left = (0,) * missing + spans("padding", self.padding, self.axes, least=0)
        out_h = out_extent(height, kh, sh, 1, (top, top), "height")
        out_w = out_extent(width, kw, sw, 1, (left, left), "width" if self.axes == 2 else "length")
        return Pools(
            height=height,
            width=width,
            channels=channels,
            kernel_h=kh,
            kernel_w=kw,
            stride_h=sh,
            stride_w=sw,
            top=top,
            left=left,
            out_h=out_h,
            out_w=out_w,
        )

    def output_shape(self, input_shape):
        pools = self.pools(input_shape)
        return (pools.out_h, pools.out_w, pools.channels)[2 - self.axes :]

    def lower(self, build, x, path, names):
        return lower_pool(build, x, self.output_shape(x.shape), self.pools(x.shape), self.largest)


class MaxPool2d(Pool):
    kind = "max_pool2d"


class MaxPool1d(Pool):
    kind, axes = "max_pool1d", 1


class AvgPool2d(Pool):
    kind, largest = "avg_pool2d", False


class AvgPool1d(Pool):
    kind, axes, largest = "avg_pool1d", 1, False


@dataclass(frozen=True, repr=False)
class GlobalPool(Layer):
    tangents, largest = True, True

    def __repr__(self):
        return f"{self.kind}()"

    def output_shape(self, input_shape):
        if len(input_shape) not in (2, 3):
            raise ValueError(
                f"{self.kind} needs images (height, width, channels) or sequences (time, channels), got {input_shape}"
            )
        return input_shape[-1:]

    def lower(self, build, x, path, names):
        height, width, channels = (1, *x.shape)[-3:]
        pools = Pools(
            height=height,
            width=width,
            channels=channels,
            kernel_h=height,
            kernel_w=width,
            stride_h=height,
            stride_w=width,
            top=0,
            left=0,
            out_h=1,
            out_w=1,
        )
        return lower_pool(build, x, (channels,), pools, self.largest)


class GlobalMaxPool(GlobalPool):
    kind = "global_max_pool"


class GlobalAvgPool(GlobalPool):
    kind, largest = "global_avg_pool", False


def max_pool2d(
    kernel: int | tuple[int, ...], stride: int | tuple[int, ...] | None = None, padding: int | tuple[int, ...] = 0
) -> Layer:
    """The largest number of each window of an image (height, width, channels).

    Parameters
    ----------
    kernel : int or (rows, columns)
        The window.
    stride : int, (rows, columns) or None
        From window to window; None: the kernel, so that windows touch.
    padding : int or (rows, columns)
        Pixels of minus infinity on each side, at most half of the kernel.

    The first of equal numbers gets the gradient; a NaN is the largest.

    >>> max_pool2d(3, stride=2)
    max_pool2d(3, stride=2)
    """
    return MaxPool2d(kernel, stride, padding)


def max_pool1d(
    kernel: int | tuple[int, ...], stride: int | tuple[int, ...] | None = None, padding: int | tuple[int, ...] = 0
) -> Layer:
    """The largest number of each window of a sequence (time, channels); see `nbprop.max_pool2d`.

    >>> max_pool1d(2)
    max_pool1d(2)
    """
    return MaxPool1d(kernel, stride, padding)


def avg_pool2d(
    kernel: int | tuple[int, ...], stride: int | tuple[int, ...] | None = None, padding: int | tuple[int, ...] = 0
) -> Layer:
    """The mean of each window of an image (height, width, channels); see `nbprop.max_pool2d`.

    Padding is zeros that count in the mean.

    >>> avg_pool2d((2, 3))
    avg_pool2d((2, 3))
    """
    return AvgPool2d(kernel, stride, padding)


def avg_pool1d(
    kernel: int | tuple[int, ...], stride: int | tuple[int, ...] | None = None, padding: int | tuple[int, ...] = 0
) -> Layer:
    """The mean of each window of a sequence (time, channels); see `nbprop.avg_pool2d`.

    >>> avg_pool1d(2)
    avg_pool1d(2)
    """
    return AvgPool1d(kernel, stride, padding)


def global_max_pool() -> Layer:
    """The largest number of each channel of an image or a sequence: (..., channels) becomes (channels,).

    >>> global_max_pool()
    global_max_pool()
    """
    return GlobalMaxPool()


def global_avg_pool() -> Layer:
    """The mean of each channel of an image or a sequence: (..., channels) becomes (channels,).

    >>> global_avg_pool()
    global_avg_pool()
    """
    return GlobalAvgPool()
