"""Convolutions on the device: the products of nbprop/cuda/windows.py, with the operands of nbprop/layers/conv.

Dimensions: n samples (n, height, width, channels) to (n, out_h, out_w, filters); taps = kernel_h * kernel_w.
"""

from nbprop.cuda.groups import sum_of_slices
from nbprop.cuda.kernels import on_device
from nbprop.cuda.products import DTYPES, TILES, blocks_of, pieces
from nbprop.cuda.toolkit import cuda, grid_size
from nbprop.cuda.windows import convolution, input_gradient, weight_gradient
from nbprop.layers.conv.kernels import (
    TurnedWeight,
    conv_backward_input,
    conv_backward_parameters,
    conv_forward,
    conv_turn,
)
from nbprop.numerics.convolution import Windows


def _weight_sizes(n, filters, channels, kernel_h, kernel_w, groups, out_h, out_w):
    """(m, n, k) of a group's weight gradient."""
    return kernel_h * kernel_w * (channels // groups), filters // groups, n * out_h * out_w


def _weight_scratch(n, filters, channels, kernel_h, kernel_w, groups, out_h, out_w, itemsize):
    rows, columns, depth = _weight_sizes(n, filters, channels, kernel_h, kernel_w, groups, out_h, out_w)
    return int(pieces(rows, columns, depth, itemsize, groups)) * (rows + 1) * filters


def _products(number):
    """The three products, in tiles of one shape."""
    tile = TILES[number]
    convolve, by_weight, by_input = convolution(tile), weight_gradient(tile), input_gradient(tile)
    options = {"dtypes": DTYPES[number], "resident": 1, "apart": True}

    def of_output(n, filters, groups, out_h, out_w, itemsize):
        return blocks_of(number, n * out_h * out_w, filters // groups, itemsize, groups)

    def of_weight(n, filters, channels, kernel_h, kernel_w, groups, out_h, out_w, itemsize):
        rows, columns, depth = _weight_sizes(n, filters, channels, kernel_h, kernel_w, groups, out_h, out_w)
        cuts = int(pieces(rows, columns, depth, itemsize, groups)) * groups
        return blocks_of(number, rows, columns, itemsize, cuts)

    def of_input(n, height, width, channels, stride_h, stride_w, groups, itemsize):
        pixels = n * -(-height // stride_h) * -(-width // stride_w)
        return blocks_of(number, pixels, channels // groups, itemsize, groups * stride_h * stride_w)

    @on_device(conv_forward, blocks=of_output, **options)
    def forward(y, x, w, b, n, filters, g: Windows, adding):
        """y = b + W * x, a convolution in NHWC, or y += W * x with `adding`; an empty w counts as zero.

        y OUT (n, out_h, out_w, filters), x IN (n, height, width, channels), w IN (kernel_h, kernel_w, channels /
        groups, filters), b IN (filters,) or empty.
        """
        convolve(y, x, w, b, n, filters, adding, g)

    @on_device(conv_backward_parameters, blocks=of_weight, **options, scratch=_weight_scratch)
    def parameters_in_pieces(partials, x, dz, n, filters, g: Windows):
        """Pieces of dW = windows^T dz, and of db = the sum of dz over the pixels; `parameters` adds them up.

        partials OUT (pieces, taps * channels / groups + 1, filters): the weights of all pieces, then the biases; x IN
        (n, height, width, channels), dz IN (n, out_h, out_w, filters).
        """
        by_weight(partials, x, dz, n, filters, g)

    @on_device(conv_backward_input, blocks=of_input, **options)
    def backward_input(dx, dz, wt, n, filters, g: Windows, adding):
        """dx = the sum over all windows, each at its place, of dz W^T; added to with `adding`.

        dx OUT (n, height, width, channels), dz IN (n, out_h, out_w, filters), wt IN (filters, taps * channels /
        groups).
        """
        by_input(dx, dz, wt, n, filters, adding, g)

    return forward, parameters_in_pieces, backward_input


@on_device(
    conv_backward_parameters,
    blocks=lambda filters, channels, kernel_h, kernel_w, groups: grid_size(
        (kernel_h * kernel_w * (channels // groups) + 1) * filters
    ),
)
def parameters(dw, db, partials, n, filters, g: Windows, w_accumulate, b_accumulate, accumulate):
    """dw and db = the sums of their pieces, in order. One thread per element.

    dw OUT (kernel_h, kernel_w, channels / groups, filters), db OUT (filters,) or empty; added to where `w_accumulate`,
    `b_accumulate` or `accumulate` is 1; partials IN (pieces, taps * channels / groups + 1, filters), from
    `parameters_in_pieces`.
    """
    depth = g.kernel_h * g.kernel_w * (g.channels // g.groups)
    size, count = depth * filters, pieces(depth, filters // g.groups, n * g.out_h * g.out_w, dw.itemsize, g.groups)
    for i in range(cuda.grid(1), size + db.size, cuda.gridsize(1)):
        if i < size:
            total = sum_of_slices(partials, i, size, count)
            dw[i] = total + dw[i] if w_accumulate + accumulate > 0 else total
        else:
            total = sum_of_slices(partials, count * size + i - size, filters, count)
            db[i - size] = total + db[i - size] if b_accumulate + accumulate > 0 else total


@on_device(conv_turn, blocks=lambda taps, channels, filters: grid_size(taps * channels * filters))
def turn(wt, w, n, sizes: TurnedWeight):
    """The weight of the convolution that makes dx of dz: taps reversed, channels and filters exchanged.

    wt OUT (taps, filters / groups, groups * channels), w IN (taps, channels, filters); channels: of one group. One
    thread per element of w.
    """
    channels, filters, groups = sizes.channels, sizes.filters, sizes.groups
    own = filters // groups
    for i in range(cuda.grid(1), sizes.taps * channels * filters, cuda.gridsize(1)):
        row, f = i // filters, i % filters
        tap, c = row // channels, row % channels
        wt[(((sizes.taps - 1 - tap) * own + f % own) * groups + f // own) * channels + c] = w[i]


CUDA_KERNELS = (*(kernel for number in range(len(TILES)) for kernel in _products(number)), parameters, turn)
