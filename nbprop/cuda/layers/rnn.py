"""The device kernels of simple recurrent layers; equations and arrays are those of the CPU's kernels."""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.recurrence import SHAPE, walk_backward, walk_forward
from nbprop.cuda.toolkit import device_function
from nbprop.layers.rnn import rnn_backward, rnn_forward
from nbprop.numerics.activations import slope_of, value_of


def cuda_kernels(cuda):
    """The device's. f's argument is not kept in z, which only tangents would need."""

    @device_function
    def cell(h, none, z, a, code, sums, r, place, within):
        row, here, after, _, _ = place
        h[after] = value_of(z[row] + sums[r], code) if within else h[here]

    @device_function
    def cell_backward(dz, none, dh, h, z, q, code, place, ends):
        _, here, after, _, _, _ = place
        dz[here] = dh[here] * slope_of(h[after], code)

    walk, walk_back = walk_forward(1, cell), walk_backward(1, cell_backward)

    @on_device(rnn_forward, **SHAPE)
    def forward(h, z, u, n, positions, width, code, lengths_address, lengths_code):
        walk(h, h, z, u, u, n, positions, width, code, lengths_address, lengths_code)

    @on_device(rnn_backward, **SHAPE)
    def backward(dz, dh, h, ut, n, positions, width, code):
        walk_back(dz, dz, dh, h, h, h, ut, n, positions, width, code)

    return forward, backward
