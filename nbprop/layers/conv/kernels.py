"""The kernels of convolutions: forward, the gradients of weight and input, and the weight turned around."""

from nbprop.layers.dense.products import sum_of_rows
from nbprop.layers.image import clear
from nbprop.numerics.convolution import Windows, turn_around, windows_gradient, windows_product, windows_scatter
from nbprop.numerics.gemm.blocked import ACCUMULATE, BIAS, ZERO
from nbprop.numerics.gemm.entry import GEMM, SEGMENTED
from nbprop.numerics.gemm.microkernel import pointer
from nbprop.numerics.partition import share
from nbprop.program.kernel import kernel

# The sizes of all three kernels: filters, the fields of `Windows`, then what to add to. height and width are the padded
# image's.


@kernel(uses=(SEGMENTED,), optional=("w", "b"))
def conv_forward(
    y, scratch, x, w, b, n, filters, height, width, channels, kernel_h, kernel_w, stride_h, stride_w, dilation_h,
    dilation_w, groups, out_h, out_w, adding, part, parts
):  # fmt: skip
    """y = b + W * x, or y += W * x with `adding`; an empty w counts as zero, and so does an empty b.

    y OUT (n, out_h, out_w, filters), x IN (n, height, width, channels), w IN (kernel_h, kernel_w, channels / groups,
    filters), b IN (filters,); scratch: `windows_scratch(threads)` elements.
    """
    if w.size == 0:
        start, stop = share(n * out_h * out_w * filters if adding == 0 else 0, part, parts)
        clear(y[start:stop])
        return
    windows = Windows(
        height, width, channels, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, groups, out_h, out_w
    )
    start = ACCUMULATE if adding > 0 else BIAS if b.size > 0 else ZERO
    windows_product(
        *(pointer(y, 0), pointer(x, 0), pointer(w, 0), pointer(b, 0), pointer(scratch, 0), n, filters, windows),
        *(start, part, parts),
    )


@kernel(uses=(GEMM, SEGMENTED))
def conv_backward_parameters(
    dw, db, x, dz, n, filters, height, width, channels, kernel_h, kernel_w, stride_h, stride_w, dilation_h,
    dilation_w, groups, out_h, out_w, w_again, b_again, accumulate, part, parts
):  # fmt: skip
    """dW = the sum over the pixels of window^T dz, db = the sum of dz.

    dw OUT (kernel_h, kernel_w, channels / groups, filters), db OUT (filters,) or empty; accumulated into with their
    `again`, or with `accumulate`; x IN (n, height, width, channels), dz IN (n, out_h, out_w, filters).
    """
    windows = Windows(
        height, width, channels, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, groups, out_h, out_w
    )
    start = ACCUMULATE if w_again + accumulate > 0 else ZERO
    windows_gradient(*(pointer(dw, 0), pointer(x, 0), pointer(dz, 0), n, filters, windows, start, part, parts))
    sum_of_rows(db, dz, b_again + accumulate > 0, n * out_h * out_w, filters, part, parts)


@kernel(uses=(SEGMENTED,))
def conv_backward_input(
    dx, scratch, dz, wt, n, filters, height, width, channels, kernel_h, kernel_w, stride_h, stride_w, dilation_h,
    dilation_w, groups, out_h, out_w, adding, part, parts
):  # fmt: skip
    """dx = the sum over the windows, each at its place, of dz W^T; accumulated with `adding`.

    dx OUT (n, height, width, channels), dz IN (n, out_h, out_w, filters), wt IN (filters, kernel_h * kernel_w *
    channels / groups); scratch: `windows_scratch(threads)` elements.
    """
    windows = Windows(
        height, width, channels, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, groups, out_h, out_w
    )
    if adding == 0:
        start, stop = share(n, part, parts)
        clear(dx[start * height * width * channels : stop * height * width * channels])
    windows_scatter(
        *(pointer(dx, 0), pointer(dz, 0), pointer(wt, 0), pointer(scratch, 0), n, filters, windows, part, parts)
    )


@kernel
def conv_turn(wt, w, n, taps, channels, filters, groups, part, parts):
    """The weight of the convolution that makes dx of dz: taps reversed, channels and filters exchanged.

    wt OUT (taps, filters / groups, groups * channels), w IN (taps, channels, filters); channels: of one group.
    """
    turn_around(pointer(wt, 0), pointer(w, 0), taps, channels, filters, groups, part, parts)
