"""The three matrix products of a convolution, without the matrix of windows.

A *window* is what one output pixel sees: kernel_h x kernel_w pixels of the padded image, one every `dilation`, with the
channels of one group. Were all windows written out as the rows of a matrix ("im2col"; Chellapilla, Puri and Simard
2006, "High performance convolutional neural networks for document processing", section 3), a convolution, its weight
gradient and its input gradient would be

    y = windows W,    dW = windows^T dy,    dx = the sum over the windows, each at its place, of dy W^T.

That matrix is kernel_h * kernel_w times the image. So only a *strip* of it exists at a time, as large as half of a
first level cache: `_gather` writes it from the image, `_panels` multiplies it with a packed part of W (or of dy), or
makes it, and `_scatter` adds it to the image. Any stride, dilation and group is a matter of these two, and the products
are the register tiles of gemm.py. Gathering costs some 5 % at 64 filters, more where there are few: a window's element
serves one multiply-add for each filter.

Windows are counted over the whole batch, in the order of the output's pixels; the elements of a window in the order of
the weight's rows: kernel row, kernel column, channel.

The bits: y and dW are sums in index order, as in gemm.py, whatever the strips and shares. An element of dx is a sum
over the taps and pixels that used it, in an order that depends on the sizes alone: threads share whole samples.
"""

from typing import NamedTuple

from nbprop.jit import njit, share
from nbprop.numerics.gemm import ACCUMULATE, ZERO
from nbprop.numerics.product import product
from nbprop.numerics.tile import HEIGHTS, add, copy, itemsize, pointer
from nbprop.numerics.vectors import VECTOR_BYTES

# Packed part of W, of its transpose or of dy: half of a second level cache of 1 MiB.
_PACKED_BYTES = 512 * 1024
_PACKED_COLUMNS = 512
# A strip: at most this many elements of a window (or pixels, for dW) deep, and this many elements in all.
_DEPTH = 256
_STRIP = 3 * 1024
_ROWS = HEIGHTS[0]
# Rows of a strip lie a cache line more apart than they are long: a power of two apart they would collide in the cache.
_PAD = 16
_STRIP_ELEMENTS = 8 * 1024


class Windows(NamedTuple):
    """The padded images (n, height, width, channels), and how the windows of (n, out_h, out_w) pixels lie in them."""

    height: int
    width: int
    channels: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    groups: int
    out_h: int
    out_w: int


def windows_scratch(threads):
    """Elements of scratch that the products below need, for either dtype."""
    return threads * (_PACKED_BYTES // 4 + _STRIP_ELEMENTS)


@njit
def _even(total, most):
    """The length of pieces, at most `most` long, that cut `total` into as few and as equal ones as possible."""
    pieces = (total + most - 1) // most
    return (total + pieces - 1) // pieces


@njit
def _run(g):
    """Elements of a window that lie side by side in the image: a kernel row, or a pixel if there are gaps between."""
    size = g.channels // g.groups
    return size * g.kernel_w if g.dilation_w == 1 and g.groups == 1 else size


@njit
def _place(run_index, g):
    """Where a window's run begins, counted from the window's first element."""
    row, column = run_index, 0
    if g.dilation_w > 1 or g.groups > 1:
        row, column = run_index // g.kernel_w, run_index % g.kernel_w
    return (row * g.dilation_h * g.width + column * g.dilation_w) * g.channels


@njit
def _corner(pixel, group, g):
    """Where the window of an output pixel begins in the images."""
    row, column = pixel // g.out_w, pixel % g.out_w
    row = row // g.out_h * g.height + row % g.out_h * g.stride_h
    return (row * g.width + column * g.stride_w) * g.channels + group * (g.channels // g.groups)


@njit
def _gather(strip, ld, x, group, first, pixels, k_first, depth, g):
    """strip[i, l] = element k_first + l of the window of pixel first + i; rows `ld` apart."""
    run = _run(g)
    i = 0
    while i < pixels:
        # Windows of one row of pixels lie at equal distances.
        count = min(pixels - i, g.out_w - (first + i) % g.out_w)
        corner = _corner(first + i, group, g)
        done = 0
        while done < depth:
            index, inside = (k_first + done) // run, (k_first + done) % run
            length = min(run - inside, depth - done)
            source = pointer(x, corner + _place(index, g) + inside)
            copy(pointer(strip, i * ld + done), ld, source, g.stride_w * g.channels, count, length)
            done += length
        i += count


@njit
def _scatter(x, strip, ld, group, first, pixels, k_first, depth, g):
    """Add strip[i, l] to the image where element k_first + l of the window of pixel first + i lies."""
    run = _run(g)
    # Runs at equal distances, of which one call takes several: kernel rows, or the pixels of one.
    merged = g.dilation_w == 1 and g.groups == 1
    lines = g.kernel_h if merged else g.kernel_w
    distance = (g.dilation_h * g.width if merged else g.dilation_w) * g.channels
    for i in range(pixels):
        corner = _corner(first + i, group, g)
        done = 0
        while done < depth:
            index, inside = (k_first + done) // run, (k_first + done) % run
            length, count = min(run - inside, depth - done), 1
            if length == run:
                count = min((depth - done) // run, lines - index % lines)
            target = pointer(x, corner + _place(index, g) + inside)
            add(target, distance, pointer(strip, i * ld + done), run, count, length)
            done += count * length


@njit
def _pack(packed, source, ld, rows, columns):
    """Copy a matrix (rows, columns) so that each panel of two vectors of columns lies in one piece."""
    panel = 2 * (VECTOR_BYTES // itemsize(packed))
    j = 0
    while j < columns:
        copy(pointer(packed, j * rows), panel, pointer(source, j), ld, rows, min(panel, columns - j))
        j += panel


@njit
def _panels(c, ldc, a, a_row, a_col, packed, packed_rows, row, m, columns, depth, start, bias):
    """C (m, columns) = start + A (m, depth) B, where B is `depth` rows, from `row` on, of a packed matrix."""
    panel = 2 * (VECTOR_BYTES // itemsize(c))
    j = 0
    while j < columns:
        b, width = pointer(packed, j * packed_rows + row * panel), min(panel, columns - j)
        product((pointer(c, j), ldc, a, a_row, a_col, b, panel, m, width, depth, start, pointer(bias, j), packed, 0, 1))
        j += panel


@njit
def _packed_size(columns, most_columns, c):
    """(columns, rows) of a packed part."""
    panel = 2 * (VECTOR_BYTES // itemsize(c))
    width = _even(columns, most_columns)
    return width, _PACKED_BYTES // itemsize(c) // ((width + panel - 1) // panel * panel)


@njit
def windows_product(y, x, w, bias, scratch, n, filters, g, start, part, parts):
    """y = start + windows W, or one share of it: some of the pixels.

    y : OUT (INOUT to accumulate), address of (n * out_h * out_w, filters)
    x : IN, address of the padded images
    w : IN, address of (kernel_h * kernel_w * channels / groups, filters)
    bias : IN, address of (filters,), read when start is BIAS
    scratch : `windows_scratch(parts)` elements
    """
    depth, columns = g.kernel_h * g.kernel_w * (g.channels // g.groups), filters // g.groups
    pixels = n * g.out_h * g.out_w
    first, stop = share((pixels + _ROWS - 1) // _ROWS, part, parts)
    first, stop = first * _ROWS, min(stop * _ROWS, pixels)
    if first >= stop:
        return
    packed = pointer(scratch, part * (_PACKED_BYTES // 4 + _STRIP_ELEMENTS))
    strip = pointer(packed, _PACKED_BYTES // 4)
    width, most = _packed_size(columns, _PACKED_COLUMNS, y)
    deep = _even(depth, most)
    for group in range(g.groups):
        for j in range(group * columns, (group + 1) * columns, width):
            cut = min(width, (group + 1) * columns - j)
            for k in range(0, depth, deep):
                rows = min(deep, depth - k)
                _pack(packed, pointer(w, k * filters + j), filters, rows, cut)
                begin = start if k == 0 else ACCUMULATE
                _strips(
                    *(pointer(y, j), x, packed, strip, pointer(bias, j), filters, group, first, stop, k, rows, cut),
                    *(g, begin),
                )


@njit
def _strips(y, x, packed, strip, bias, filters, group, first, stop, k_first, rows, columns, g, start):
    """The part of `windows_product` that one packed part of W makes."""
    deep = _even(rows, _DEPTH)
    height = max(1, _STRIP // (deep + _PAD) // _ROWS) * _ROWS
    for i in range(first, stop, height):
        pixels = min(height, stop - i)
        for k in range(0, rows, deep):
            depth = min(deep, rows - k)
            _gather(strip, depth + _PAD, x, group, i, pixels, k_first + k, depth, g)
            target, begin = pointer(y, i * filters), start if k == 0 else ACCUMULATE
            _panels(target, filters, strip, depth + _PAD, 1, packed, rows, k, pixels, columns, depth, begin, bias)


@njit
def windows_gradient(dw, x, dy, scratch, n, filters, g, start, part, parts):
    """dW = start + windows^T dy, or one share of it: some of the rows. Addresses as in `windows_product`; dw OUT."""
    depth, columns = g.kernel_h * g.kernel_w * (g.channels // g.groups), filters // g.groups
    first, stop = share((depth + 3) // 4, part, parts)
    first, stop = first * 4, min(stop * 4, depth)
    if first >= stop:
        return
    packed = pointer(scratch, part * (_PACKED_BYTES // 4 + _STRIP_ELEMENTS))
    strip = pointer(packed, _PACKED_BYTES // 4)
    width, _ = _packed_size(columns, _PACKED_COLUMNS, dw)
    pixels = n * g.out_h * g.out_w
    wide = 2 * _ROWS
    for group in range(g.groups):
        for j in range(group * columns, (group + 1) * columns, width):
            cut = min(width, (group + 1) * columns - j)
            for i in range(0, pixels, _DEPTH):
                count = min(_DEPTH, pixels - i)
                _pack(packed, pointer(dy, i * filters + j), filters, count, cut)
                begin = start if i == 0 else ACCUMULATE
                for k in range(first, stop, wide):
                    rows = min(wide, stop - k)
                    _gather(strip, wide, x, group, i, count, k, rows, g)
                    target = pointer(dw, k * filters + j)
                    _panels(target, filters, strip, 1, wide, packed, count, 0, rows, cut, count, begin, target)


@njit
def windows_scatter(dx, dy, wt, scratch, n, filters, g, part, parts):
    """dx += the sum over the windows, each at its place, of dy W^T, or one share of it: some of the samples.

    dx : INOUT, address of the padded images
    dy : IN, address of (n * out_h * out_w, filters)
    wt : IN, address of (filters, kernel_h * kernel_w * channels / groups)
    scratch : `windows_scratch(parts)` elements
    """
    elements, depth = g.kernel_h * g.kernel_w * (g.channels // g.groups), filters // g.groups
    first, stop = share(n, part, parts)
    first, stop = first * g.out_h * g.out_w, stop * g.out_h * g.out_w
    if first >= stop:
        return
    packed = pointer(scratch, part * (_PACKED_BYTES // 4 + _STRIP_ELEMENTS))
    strip = pointer(packed, _PACKED_BYTES // 4)
    # Parts of whole runs, where a run is no longer than a part.
    run = _run(g)
    width = _even(elements // run, max(1, _PACKED_COLUMNS // run)) * run if run <= _PACKED_COLUMNS else _PACKED_COLUMNS
    height = max(1, _STRIP // width // _ROWS) * _ROWS
    for group in range(g.groups):
        for k in range(0, elements, width):
            cut = min(width, elements - k)
            for f in range(0, depth, _DEPTH):
                rows = min(_DEPTH, depth - f)
                _pack(packed, pointer(wt, (group * depth + f) * elements + k), elements, rows, cut)
                for i in range(first, stop, height):
                    pixels = min(height, stop - i)
                    source = pointer(dy, i * filters + group * depth + f)
                    _panels(strip, cut, source, filters, 1, packed, rows, 0, pixels, cut, rows, ZERO, strip)
                    _scatter(dx, strip, cut, group, i, pixels, k, cut, g)
