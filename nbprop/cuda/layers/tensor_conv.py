"""The products of convolutions with tensor cores; operands as in conv.py, for plans with a precision."""

import numpy as np

from nbprop.cuda.groups import sum_of_slices
from nbprop.cuda.kernels import PLANES, on_device
from nbprop.cuda.tensor_products import TILE, pieces, tiles
from nbprop.cuda.tensor_windows import convolution, input_gradient, weight_gradient
from nbprop.cuda.toolkit import cuda, grid_size
from nbprop.layers.conv.kernels import conv_backward_input, conv_backward_parameters, conv_forward
from nbprop.numerics.convolution import Windows


def _sizes(n, filters, channels, kernel_h, kernel_w, groups, out_h, out_w):
    """(m, n, k) of a group's weight gradient."""
    return kernel_h * kernel_w * (channels // groups), filters // groups, n * out_h * out_w


def _products(precision):
    """The kernels of one precision."""
    planes = PLANES[precision]
    options = {"dtypes": (np.float32,), "resident": 1, "apart": True, "threads": TILE.threads, "precision": precision}
    options |= {"shared": lambda: TILE.shared(planes), "casts": False}
    convolve, by_weight, by_input = convolution(planes), weight_gradient(planes), input_gradient(planes)

    def of_output(n, filters, groups, out_h, out_w):
        return int(tiles(n * out_h * out_w, filters // groups)) * groups

    def of_weight(n, filters, channels, kernel_h, kernel_w, groups, out_h, out_w):
        rows, columns, depth = _sizes(n, filters, channels, kernel_h, kernel_w, groups, out_h, out_w)
        return int(tiles(rows, columns) * pieces(rows, columns, depth, groups)) * groups

    def of_weight_scratch(n, filters, channels, kernel_h, kernel_w, groups, out_h, out_w):
        rows, columns, depth = _sizes(n, filters, channels, kernel_h, kernel_w, groups, out_h, out_w)
        return int(pieces(rows, columns, depth, groups)) * (rows + 1) * filters

    def of_input(n, height, width, channels, stride_h, stride_w, groups):
        pixels = n * -(-height // stride_h) * -(-width // stride_w)
        return int(tiles(pixels, channels // groups)) * groups * stride_h * stride_w

    @on_device(conv_forward, blocks=of_output, **options)
    def tensor_forward(y, x, w, b, n, filters, g: Windows):
        """y = b + W * x, a convolution in NHWC.

        y OUT (n, out_h, out_w, filters), x IN (n, height, width, channels), w IN (kernel_h, kernel_w, channels /
        groups, filters), b IN (filters,) or empty.
        """
        convolve(y, x, w, b, n, filters, g)

    @on_device(conv_backward_parameters, blocks=of_weight, **options, scratch=of_weight_scratch)
    def tensor_parameters_in_pieces(partials, x, dz, n, filters, g: Windows):
        """Pieces of dW = windows^T dz, and of db = the sum of dz over the pixels; `tensor_parameters` adds them up.

        partials OUT (pieces, taps * channels / groups + 1, filters): the weights of all pieces, then the biases; x IN
        (n, height, width, channels), dz IN (n, out_h, out_w, filters).
        """
        by_weight(partials, x, dz, n, filters, g)

    @on_device(
        conv_backward_parameters,
        blocks=lambda filters, channels, kernel_h, kernel_w, groups: grid_size(
            (kernel_h * kernel_w * (channels // groups) + 1) * filters
        ),
        dtypes=(np.float32,),
        precision=precision,
    )
    def tensor_parameters(dw, db, partials, n, filters, g: Windows, w_accumulate, b_accumulate, accumulate):
        """dw and db = the sums of their pieces, in order. One thread per element.

        dw OUT (kernel_h, kernel_w, channels / groups, filters), db OUT (filters,) or empty; added to where
        `w_accumulate` or `b_accumulate` or `accumulate` is 1; partials IN (pieces, taps * channels / groups + 1,
        filters).
        """
        depth = g.kernel_h * g.kernel_w * (g.channels // g.groups)
        size, count = depth * filters, pieces(depth, filters // g.groups, n * g.out_h * g.out_w, g.groups)
        for i in range(cuda.grid(1), size + db.size, cuda.gridsize(1)):
            if i < size:
                total = sum_of_slices(partials, i, size, count)
                dw[i] = total + dw[i] if w_accumulate + accumulate > 0 else total
            else:
                total = sum_of_slices(partials, count * size + i - size, filters, count)
                db[i - size] = total + db[i - size] if b_accumulate + accumulate > 0 else total

    @on_device(conv_backward_input, blocks=of_input, **options)
    def tensor_backward_input(dx, dz, wt, n, filters, g: Windows):
        """dx = the sum over all windows, each at its place, of dz W^T.

        dx OUT (n, height, width, channels), dz IN (n, out_h, out_w, filters), wt IN (filters, taps * channels /
        groups).
        """
        by_input(dx, dz, wt, n, filters, g)

    return tensor_forward, tensor_parameters_in_pieces, tensor_parameters, tensor_backward_input


CUDA_KERNELS = tuple(kernel for precision in PLANES for kernel in _products(precision))
