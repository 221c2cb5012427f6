"""The three matrix products of a convolution, without the matrix of windows.

A *window* is what one output pixel sees: kernel_h x kernel_w pixels of the padded image, `dilation` apart, with the
channels of one group. If all windows were written out as the rows of a matrix ("im2col"; Chellapilla, Puri and Simard
2006, "High performance convolutional neural networks for document processing", section 3), a convolution, its weight
gradient and its input gradient would be

    y = windows W,    dW = windows^T dy,    dx = the sum over the windows, each at its place, of dy W^T.

That matrix is kernel_h * kernel_w times as large as the image, and is never formed. A window consists of a few *lines*
of the image, each contiguous: kernel rows, or single pixels if dilation or groups leave gaps between them. The windows
of neighbouring pixels are at equal distances, so they are the rows of a matrix in segments, as the register tile takes
them (microkernel.py): `windows_product` multiplies them in place with packed parts of W, and `windows_gradient`,
transposed, with dy. Stride, dilation and groups only change distances.

dx is a product of the first kind if the stride is 1 and the image is not much larger than the output: then the windows
are those of the padded dy, and W is reversed. Otherwise `windows_scatter` computes, for each row of the image, one
product of all kernel rows that contribute to it, and adds the rows of the product to the image, where they overlap.

Measured at 64 channels to 64 filters, 3 x 3, on 28 x 28: 92 % of the multiply-add peak. Gathering windows into a strip
first, to multiply full tiles only, lost 9 % of the forward product and 12 % of dW to the copying.

Pixels are counted over the whole batch; the elements of a window in the order of the rows of the weight: kernel row,
kernel column, channel. y and dW are sums in index order, as in gemm/blocked.py, however the work is divided. Each
element of dx from `windows_scatter` is a sum in an order that depends on the sizes alone: threads divide whole samples.

Dimensions: n images (height, width, channels), padded; kernel_h x kernel_w taps; output (n, out_h, out_w, filters).
"""

from math import gcd
from typing import NamedTuple

from nbprop.compiler.jit import njit
from nbprop.compiler.simd import VECTOR_BYTES
from nbprop.numerics.gemm.blocked import ACCUMULATE, ZERO
from nbprop.numerics.gemm.entry import segmented_product
from nbprop.numerics.gemm.microkernel import HEIGHTS, add, copy, itemsize, pointer, transpose_square
from nbprop.numerics.partition import share

# What stays in an L2 cache of 1 MiB: a packed part of W takes a half, the part of dy that dW reads a quarter.
_PACKED_BYTES = 512 * 1024
_BLOCK_BYTES = 256 * 1024
# Maximum number of columns of a packed part of W^T.
_PACKED_COLUMNS = 512
# Maximum number of kernel rows in a packed part of W^T.
_MEETING = 32
# Elements of a strip of dy W^T.
_STRIP = 3 * 1024
_STRIP_ELEMENTS = 8 * 1024
_ROWS = HEIGHTS[0]


class Windows(NamedTuple):
    """The padded images (n, height, width, channels), and the windows of (n, out_h, out_w) pixels in them."""

    height: int  # of a padded image, in pixels
    width: int
    channels: int  # of all groups
    kernel_h: int  # pixels of a window
    kernel_w: int
    stride_h: int  # from window to window, in pixels
    stride_w: int
    dilation_h: int  # from pixel to pixel of a window; 1 for neighbours
    dilation_w: int
    groups: int
    out_h: int  # windows below each other
    out_w: int  # windows beside each other


def windows_scratch(threads):
    """Elements of scratch that the products below need, for either dtype."""
    return threads * (_PACKED_BYTES // 4 + _STRIP_ELEMENTS)


@njit
def _even(total, most):
    """The length of the fewest pieces of at most `most` that divide `total`, as equal as possible."""
    pieces = (total + most - 1) // most
    return (total + pieces - 1) // pieces


@njit
def lines_of(g):
    """The lines of a window as two nested loops: (count, distance, outer count, outer distance).

    The kernel rows, with an outer count of 1; or the pixels of a kernel row, for each of the kernel rows.
    """
    below = g.dilation_h * g.width * g.channels
    if g.dilation_w == 1 and g.groups == 1:
        return g.kernel_h, below, 1, 0
    return g.kernel_w, g.dilation_w * g.channels, g.kernel_h, below


@njit
def line_size(g):
    """Elements of a line."""
    size = g.channels // g.groups
    return size * g.kernel_w if g.dilation_w == 1 and g.groups == 1 else size


@njit
def _corner(pixel, group, g):
    """The offset in the images of the window of an output pixel."""
    row, column = pixel // g.out_w, pixel % g.out_w
    row = row // g.out_h * g.height + row % g.out_h * g.stride_h
    return (row * g.width + column * g.stride_w) * g.channels + group * (g.channels // g.groups)


@njit
def _scatter(x, strip, ld, pixels, k_first, depth, g):
    """Add strip[i, l] to the row x of an image, where element k_first + l of a kernel row of window i is."""
    length, column = line_size(g), g.stride_w * g.channels
    done = 0
    while done < depth:
        line, inside = (k_first + done) // length, (k_first + done) % length
        part = min(length - inside, depth - done)
        target = pointer(x, line * g.dilation_w * g.channels + inside)
        add(target, column, pointer(strip, done), ld, pixels, part)
        done += part


@njit
def _pack(packed, source, ld, rows, columns):
    """Copy a matrix (rows, columns) so that each panel of two vectors of columns is contiguous."""
    panel = 2 * (VECTOR_BYTES // itemsize(packed))
    j = 0
    while j < columns:
        copy(pointer(packed, j * rows), panel, pointer(source, j), ld, rows, min(panel, columns - j))
        j += panel


@njit
def _packed_part(columns, lines, length, c):
    """(lines of a window, elements of a line, columns) of a packed part of W."""
    panel = 2 * (VECTOR_BYTES // itemsize(c))
    room = _PACKED_BYTES // itemsize(c)
    length = _even(length, room // (2 * panel))
    lines = _even(lines, max(1, room // (length * 2 * panel)))
    most = room // (lines * length) // panel * panel
    return lines, length, (_even(columns, most) + panel - 1) // panel * panel


@njit
def windows_product(y, x, w, bias, scratch, n, filters, g, start, part, parts):
    """y = start + windows W, or the share of one thread: some of the rows of pixels.

    y : OUT (INOUT to accumulate), address of (n * out_h * out_w, filters)
    x : IN, address of (n, height, width, channels)
    w : IN, address of (kernel_h * kernel_w * channels / groups, filters)
    bias : IN, address of (filters,), read when start is BIAS
    scratch : `windows_scratch(parts)` elements
    """
    count, distance, repeats, below = lines_of(g)
    length, columns = line_size(g), filters // g.groups
    first, stop = share(n * g.out_h, part, parts)
    if first >= stop:
        return
    packed = pointer(scratch, part * (_PACKED_BYTES // 4 + _STRIP_ELEMENTS))
    lines, depth, width = _packed_part(columns, count, length, y)
    for group in range(g.groups):
        for j in range(group * columns, (group + 1) * columns, width):
            cut = min(width, (group + 1) * columns - j)
            begin = start
            for repeat in range(repeats):
                for line in range(0, count, lines):
                    for inside in range(0, length, depth):
                        # With depth < length, a part is a piece of one line.
                        segments, size = min(lines, count - line), min(depth, length - inside)
                        row = (repeat * count + line) * length + inside
                        _pack(packed, pointer(w, row * filters + j), filters, segments * size, cut)
                        source = pointer(x, repeat * below + line * distance + inside)
                        _rows_of_pixels(
                            *(pointer(y, j), source, packed, pointer(bias, j), filters, group, first, stop, size),
                            *(segments, distance - size, cut, g, begin),
                        )
                        begin = ACCUMULATE


@njit
def _rows_of_pixels(y, x, packed, bias, filters, group, first, stop, size, segments, jump, columns, g, start):
    """The contribution to `windows_product` of one packed part of W.

    If the rest of a row of pixels has too few for the height of a tile, tiles run down the columns of pixels instead.
    """
    panel = 2 * (VECTOR_BYTES // itemsize(y))
    whole = g.out_w - g.out_w % _ROWS if g.out_w % _ROWS < 4 else g.out_w
    row = first
    while row < stop:
        rows = min(stop - row, g.out_h - row % g.out_h)
        for p in range(0, columns, panel):
            b, width = pointer(packed, p * segments * size), min(panel, columns - p)
            for i in range(row, row + rows if whole > 0 else row):
                source = pointer(x, _corner(i * g.out_w, group, g))
                segmented_product(
                    (
                        *(pointer(y, i * g.out_w * filters + p), filters, source, g.stride_w * g.channels, 1, jump),
                        *(b, panel, panel, whole, width, size, segments, start, pointer(bias, p)),
                    )
                )
            for q in range(whole, g.out_w):
                source = pointer(x, _corner(row * g.out_w + q, group, g))
                below = g.stride_h * g.width * g.channels
                segmented_product(
                    (
                        *(pointer(y, (row * g.out_w + q) * filters + p), g.out_w * filters, source, below, 1, jump),
                        *(b, panel, panel, rows, width, size, segments, start, pointer(bias, p)),
                    )
                )
        row += rows


@njit
def windows_gradient(dw, x, dy, n, filters, g, start, part, parts):
    """dW = start + windows^T dy, or the share of one thread: some of the rows.

    dw : OUT (INOUT to accumulate), address of (kernel_h * kernel_w * channels / groups, filters)
    x : IN, address of (n, height, width, channels)
    dy : IN, address of (n * out_h * out_w, filters)
    """
    count, distance, _, below = lines_of(g)
    length, columns = line_size(g), filters // g.groups
    depth = g.kernel_h * g.kernel_w * (g.channels // g.groups)
    first, stop = share((depth + 3) // 4, part, parts)
    first, stop = first * 4, min(stop * 4, depth)
    step, jump = g.stride_w * g.channels, (g.stride_h * g.width - g.out_w * g.stride_w) * g.channels
    panel = 2 * (VECTOR_BYTES // itemsize(dw))
    height = max(1, _BLOCK_BYTES // itemsize(dw) // (g.out_w * filters))
    row = 0
    while row < n * g.out_h:
        # Rows of pixels of one image, at equal distances, whose part of dy stays in the cache.
        rows = min(min(height, n * g.out_h - row), g.out_h - row % g.out_h)
        begin = start if row == 0 else ACCUMULATE
        for group in range(g.groups):
            corner, b = _corner(row * g.out_w, group, g), pointer(dy, row * g.out_w * filters + group * columns)
            k = first
            while k < stop:
                line, inside = k // length, k % length
                size = min(length - inside, stop - k)
                source = pointer(x, corner + line // count * below + line % count * distance + inside)
                target = pointer(dw, k * filters + group * columns)
                segmented_product(
                    (
                        *(target, filters, source, 1, step, jump, b, panel, filters),
                        *(size, columns, g.out_w, rows, begin, target),
                    )
                )
                k += size
        row += rows


@njit
def windows_scatter(dx, dy, wt, scratch, n, filters, g, part, parts):
    """dx += the sum over the windows, each at its place, of dy W^T, or the share of one thread: some of the samples.

    dx : INOUT, address of (n, height, width, channels)
    dy : IN, address of (n * out_h * out_w, filters)
    wt : IN, address of (filters, kernel_h * kernel_w * channels / groups)
    scratch : `windows_scratch(parts)` elements
    """
    first, stop = share(n, part, parts)
    if first >= stop:
        return
    packed = pointer(scratch, part * (_PACKED_BYTES // 4 + _STRIP_ELEMENTS))
    length, columns = g.kernel_w * (g.channels // g.groups), filters // g.groups
    # Kernel rows at multiples of `apart` contribute to the same rows of the image; consecutive ones of these read rows
    # of dy that are `above` apart.
    common = gcd(g.stride_h, g.dilation_h)
    apart, above = g.stride_h // common, g.dilation_h // common
    # A part of W^T: kernel rows that contribute to the same rows, some filters, some elements of a kernel row; whole
    # lines, unless a line is longer than a part.
    width = _PACKED_COLUMNS
    if line_size(g) <= width:
        width = _even(length // line_size(g), width // line_size(g)) * line_size(g)
    meeting = min((g.kernel_h + apart - 1) // apart, _MEETING)
    panel = 2 * (VECTOR_BYTES // itemsize(dx))
    depth = _even(columns, _PACKED_BYTES // itemsize(dx) // (meeting * ((width + panel - 1) // panel * panel)))
    for kernel_row in range(min(apart, g.kernel_h)):
        for group in range(g.groups):
            for k in range(0, length, width):
                for f in range(0, columns, depth):
                    for i in range(kernel_row, g.kernel_h, apart * meeting):
                        rows = min(meeting, (g.kernel_h - i + apart - 1) // apart)
                        cut, filters_cut = min(width, length - k), min(depth, columns - f)
                        source = pointer(wt, ((group * columns + f) * g.kernel_h + i) * length + k)
                        _pack_rows(packed, source, apart * length, g.kernel_h * length, rows, filters_cut, cut)
                        _rows_of_image(
                            *(pointer(dx, group * (g.channels // g.groups)), pointer(dy, group * columns + f), packed),
                            *(filters, first, stop, i, rows, above, filters_cut, k, cut, g),
                        )


@njit
def _pack_rows(packed, source, row, ld, rows, depth, columns):
    """As `_pack`, of a matrix (rows * depth, columns) whose rows are `rows` blocks, `row` elements apart."""
    panel = 2 * (VECTOR_BYTES // itemsize(packed))
    for j in range(0, columns, panel):
        for i in range(rows):
            target = pointer(packed, (j * rows + i * panel) * depth)
            copy(target, panel, pointer(source, i * row + j), ld, depth, min(panel, columns - j))


@njit
def _rows_of_image(dx, dy, packed, filters, first, stop, kernel_row, rows, above, depth, k, columns, g):
    """The contribution to `windows_scatter` of one packed part of W^T, a row of the image at a time.

    Several kernel rows contribute to a row, each with its own row of dy. Their sum is one product, whose rows are then
    added to the image, instead of adding kernel row by kernel row.
    """
    panel = 2 * (VECTOR_BYTES // itemsize(dx))
    strip = pointer(packed, _PACKED_BYTES // 4)
    height = max(1, _STRIP // columns // _ROWS) * _ROWS
    line = g.out_w * filters
    for image in range(first, stop):
        for p in range(g.out_h + (rows - 1) * above):
            # Kernel row number r reads row p - r * above of dy.
            r_first, r_stop = max(0, (p - g.out_h) // above + 1), min(rows, p // above + 1)
            if r_first >= r_stop:
                continue
            source = pointer(dy, (image * g.out_h + p - r_first * above) * line)
            row = image * g.height + p * g.stride_h + kernel_row * g.dilation_h
            target, b = pointer(dx, row * g.width * g.channels), pointer(packed, r_first * depth * panel)
            for q in range(0, g.out_w, height):
                pixels = min(height, g.out_w - q)
                segmented_product(
                    (
                        *(strip, columns, pointer(source, q * filters), filters, 1, -above * line - depth),
                        *(b, panel * rows * depth, panel, pixels, columns, depth, r_stop - r_first, ZERO, strip),
                    )
                )
                _scatter(pointer(target, q * g.stride_w * g.channels), strip, columns, pixels, k, columns, g)


@njit
def turn_around(wt, w, taps, channels, filters, groups, part, parts):
    """wt[taps - 1 - t, f, g channels + c] = w[t, c, g filters / groups + f], or the share of one thread.

    wt : OUT, address of (taps, filters / groups, groups * channels)
    w : IN, address of (taps, channels, filters)
    """
    lanes, columns = VECTOR_BYTES // itemsize(wt), filters // groups
    first, stop = share(taps * groups, part, parts)
    for index in range(first, stop):
        tap, group = index // groups, index % groups
        source = pointer(w, tap * channels * filters + group * columns)
        target = pointer(wt, (taps - 1 - tap) * filters * channels + group * channels)
        for c in range(0, channels, lanes):
            for f in range(0, columns, lanes):
                transpose_square(
                    *(pointer(target, f * groups * channels + c), groups * channels),
                    *(pointer(source, c * filters + f), filters, min(lanes, channels - c), min(lanes, columns - f)),
                )
