"""The kernels of convolutions: forward, the gradients of weight and input, and the weight turned around."""

from typing import NamedTuple

from nbprop.layers.dense.products import sum_of_rows
from nbprop.layers.image import clear
from nbprop.numerics.convolution import Windows, turn_around, windows_gradient, windows_product, windows_scatter
from nbprop.numerics.gemm.blocked import ACCUMULATE, BIAS, ZERO
from nbprop.numerics.gemm.entry import GEMM, SEGMENTED
from nbprop.numerics.gemm.microkernel import pointer
from nbprop.numerics.partition import share
from nbprop.program.kernel import kernel

# A convolution's sizes are its filters and `Windows`, whose height and width are the padded image's.


class TurnedWeight(NamedTuple):
    """The weight (taps, channels, filters) that `conv_turn` turns around."""

    taps: int  # kernel rows times kernel columns
    channels: int  # of a group
    filters: int  # of all groups
    groups: int


@kernel(uses=(SEGMENTED,), optional=("w", "b"))
def conv_forward(y, scratch, x, w, b, n, filters, g: Windows, adding, part, parts):
    """y = b + W * x, or y += W * x with `adding`; an empty w counts as zero, and so does an empty b.

    y OUT (n, out_h, out_w, filters), x IN (n, height, width, channels), w IN (kernel_h, kernel_w, channels / groups,
    filters), b IN (filters,); scratch: `windows_scratch(threads)` elements.
    """
    if w.size == 0:
        start, stop = share(n * g.out_h * g.out_w * filters if adding == 0 else 0, part, parts)
        clear(y[start:stop])
        return
    start = ACCUMULATE if adding > 0 else BIAS if b.size > 0 else ZERO
    windows_product(
        *(pointer(y, 0), pointer(x, 0), pointer(w, 0), pointer(b, 0), pointer(scratch, 0), n, filters, g),
        *(start, part, parts),
    )


@kernel(uses=(GEMM, SEGMENTED))
def conv_backward_parameters(
    dw, db, x, dz, n, filters, g: Windows, w_accumulate, b_accumulate, accumulate, part, parts
):
    """dW = the sum over the pixels of window^T dz, db = the sum of dz.

    dw OUT (kernel_h, kernel_w, channels / groups, filters), db OUT (filters,) or empty; added to where `w_accumulate`,
    `b_accumulate` or `accumulate` is 1; x IN (n, height, width, channels), dz IN (n, out_h, out_w, filters).
    """
    start = ACCUMULATE if w_accumulate + accumulate > 0 else ZERO
    windows_gradient(*(pointer(dw, 0), pointer(x, 0), pointer(dz, 0), n, filters, g, start, part, parts))
    sum_of_rows(db, dz, b_accumulate + accumulate > 0, n * g.out_h * g.out_w, filters, part, parts)


@kernel(uses=(SEGMENTED,))
def conv_backward_input(dx, scratch, dz, wt, n, filters, g: Windows, adding, part, parts):
    """dx = the sum over the windows, each at its place, of dz W^T; accumulated with `adding`.

    dx OUT (n, height, width, channels), dz IN (n, out_h, out_w, filters), wt IN (filters, kernel_h * kernel_w *
    channels / groups); scratch: `windows_scratch(threads)` elements.
    """
    if adding == 0:
        start, stop = share(n, part, parts)
        image = g.height * g.width * g.channels
        clear(dx[start * image : stop * image])
    windows_scatter(*(pointer(dx, 0), pointer(dz, 0), pointer(wt, 0), pointer(scratch, 0), n, filters, g, part, parts))


@kernel
def conv_turn(wt, w, n, sizes: TurnedWeight, part, parts):
    """The weight of the convolution that makes dx of dz: taps reversed, channels and filters exchanged.

    wt OUT (taps, filters / groups, groups * channels), w IN (taps, channels, filters); channels: of one group.
    """
    turn_around(pointer(wt, 0), pointer(w, 0), sizes.taps, sizes.channels, sizes.filters, sizes.groups, part, parts)
