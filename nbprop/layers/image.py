"""What the layers on images and sequences share: sizes, their checks, and borders: of zeros, or of the image's pixels.

Images are NHWC, (n, height, width, channels); sequences (n, time, channels) are images of one row.
"""

from typing import NamedTuple

from nbprop.compiler.jit import njit
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel
from nbprop.validation import check_integer, shown


def spans(argument, value, axes, *, least=1):
    """A size for each axis, from one integer or one for each; a tuple."""
    values = (value,) * axes if not isinstance(value, tuple | list) else tuple(value)
    if len(values) != axes:
        raise ValueError(f"{argument} must be an integer or {axes} of them, got {shown(value)}")
    try:
        return tuple(check_integer(argument, item, least) for item in values)
    except ValueError as error:
        if least == 1:
            raise
        wanted = str(error).partition(", got ")[0]
        raise ValueError(f"{wanted}, or {axes} of them, got {shown(value)}") from None


def shortest(values):
    """As the caller would write it: one number where all are equal."""
    return values[0] if isinstance(values, tuple) and len(set(values)) == 1 else values


def as_image(kind, shape, axes):
    """(height, width, channels) of an input of `axes` axes and channels."""
    if len(shape) != axes + 1:
        wanted = "images (height, width, channels)" if axes == 2 else "sequences (time, channels)"
        raise ValueError(f"{kind} needs {wanted}: an input of {axes + 1} axes, got {len(shape)}")
    return (1,) * (2 - axes) + tuple(shape)


def out_extent(extent, kernel, stride, dilation, padding, name):
    """Windows along one axis of a padded image."""
    reach = dilation * (kernel - 1) + 1
    padded = extent + sum(padding)
    if reach > padded:
        raise ValueError(
            f"a window of {reach} does not fit the {name} of {extent} with padding {padding[0]} + {padding[1]}; "
            "use a smaller kernel or dilation, or more padding"
        )
    return (padded - reach) // stride + 1


class Border(NamedTuple):
    """Images (n, height, width, channels), and the zeros around them, which make (n, padded_h, padded_w, channels)."""

    height: int  # of an image, in pixels
    width: int
    channels: int
    top: int  # rows of zeros above it
    left: int  # columns of zeros to its left
    padded_h: int
    padded_w: int


@njit
def clear(y):
    """y = 0, 1-D."""
    for i in range(y.size):
        y[i] = like(y[i], 0.0)


@kernel
def pad_image(y, x, n, g: Border, part, parts):
    """y = x with rows and columns of zeros around it, `top` rows above and `left` columns to the left.

    y OUT (n, padded_h, padded_w, channels), x IN (n, height, width, channels).
    """
    start, stop = share(n * g.padded_h, part, parts)
    size, before, length = g.width * g.channels, g.left * g.channels, g.padded_w * g.channels
    for i in range(start, stop):
        line, row = y[i * length : (i + 1) * length], i % g.padded_h - g.top
        if row < 0 or row >= g.height:
            clear(line)
            continue
        first = (i // g.padded_h * g.height + row) * size
        source, inside = x[first : first + size], line[before : before + size]
        clear(line[:before])
        for j in range(size):
            inside[j] = source[j]
        clear(line[before + size :])


@kernel
def crop_image(y, x, n, g: Border, part, parts):
    """The transpose of `pad_image`: y = x without its border.

    y OUT (n, height, width, channels), x IN (n, padded_h, padded_w, channels).
    """
    start, stop = share(n * g.height, part, parts)
    size = g.width * g.channels
    for i in range(start, stop):
        first = ((i // g.height * g.padded_h + i % g.height + g.top) * g.padded_w + g.left) * g.channels
        line, source = y[i * size : (i + 1) * size], x[first : first + size]
        for j in range(size):
            line[j] = source[j]


PADDINGS = ("zeros", "reflect", "replicate", "circular")
_REFLECT, _REPLICATE, _CIRCULAR = range(1, 4)


def check_border(kind, mode, extent, border, name):
    """Check that a border that is not of zeros finds its pixels in the image."""
    most = {"reflect": extent - 1, "circular": extent}.get(mode)
    if most is not None and max(border) > most:
        raise ValueError(
            f"{kind}: padding of {max(border)} is more than {mode} finds in a {name} of {extent}; use at most {most}"
        )


@njit
def pixel_behind(index, before, extent, mode):
    """The place in an image, along an axis, of what lies at `index` of the padded one, `before` pixels earlier."""
    i = index - before
    if mode == _REFLECT:
        i = -i if i < 0 else i
        return 2 * (extent - 1) - i if i >= extent else i
    if mode == _CIRCULAR:
        return i % extent
    return min(max(i, 0), extent - 1)


@kernel
def pad_by_pixels(y, x, n, g: Border, mode, part, parts):
    """y = x with a border of its own pixels, by the mode: `top` rows above and `left` columns to the left.

    y OUT (n, padded_h, padded_w, channels), x IN (n, height, width, channels).
    """
    start, stop = share(n * g.padded_h, part, parts)
    channels = g.channels
    for i in range(start, stop):
        row = i // g.padded_h * g.height + pixel_behind(i % g.padded_h, g.top, g.height, mode)
        for q in range(g.padded_w):
            to = y[(i * g.padded_w + q) * channels : (i * g.padded_w + q + 1) * channels]
            first = (row * g.width + pixel_behind(q, g.left, g.width, mode)) * channels
            of = x[first : first + channels]
            for c in range(channels):
                to[c] = of[c]


@kernel
def pad_by_pixels_backward(dx, dy, n, g: Border, mode, part, parts):
    """The transpose of `pad_by_pixels`: dx = the sum of dy over the places that each pixel went to, in their order.

    dx OUT (n, height, width, channels), dy IN (n, padded_h, padded_w, channels).
    """
    start, stop = share(n * g.height, part, parts)
    channels = g.channels
    clear(dx[start * g.width * channels : stop * g.width * channels])
    for i in range(start, stop):
        for p in range(g.padded_h):
            if pixel_behind(p, g.top, g.height, mode) != i % g.height:
                continue
            for q in range(g.padded_w):
                first = ((i // g.height * g.padded_h + p) * g.padded_w + q) * channels
                at = (i * g.width + pixel_behind(q, g.left, g.width, mode)) * channels
                to, of = dx[at : at + channels], dy[first : first + channels]
                for c in range(channels):
                    to[c] += of[c]


def lower_padded(build, x, shape, corner, mode):
    """Emit x (height, width, channels) padded to a shape by pixels of its own; `corner` rows and columns go before."""
    (height, width, channels), (top, left), y = (1, *x.shape)[-3:], corner, build.value(shape)
    padded_h, padded_w = (1, *shape)[-3:-1]
    image = {"height": height, "width": width, "channels": channels}
    sizes = Border(**image, top=top, left=left, padded_h=padded_h, padded_w=padded_w), PADDINGS.index(mode)
    build.linear(pad_by_pixels, (y.buffer,), (x.buffer,), sizes)

    def rule(dy):
        dx = build.buffer(build.batch * x.size)
        build.linear(pad_by_pixels_backward, (dx,), (dy,), sizes)
        build.accumulate_gradient(x, dx)

    build.on_backward(y, rule)
    return y
