"""The device kernels of simple recurrent layers; the equations and arrays are those of nbprop/layers/rnn.py.

Dimensions: n samples; positions of each; width units.
"""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.recurrence import SHAPE, walk_backward, walk_forward
from nbprop.cuda.toolkit import device_function
from nbprop.layers.recurrent import RecurrentSizes
from nbprop.layers.rnn import rnn_backward, rnn_forward
from nbprop.numerics.activations import derivative_of, value_of


def cuda_kernels(cuda):
    """The device kernels. The argument of f is not kept in z, since only tangents would need it."""

    @device_function
    def cell(h, none, z, a, code, sums, r, place, within):
        row, here, after, _, _ = place
        h[after] = value_of(z[row] + sums[r], code) if within else h[here]

    @device_function
    def cell_backward(dz, none, dh, h, z, q, code, place, ends):
        _, here, after, _, _, _ = place
        dz[here] = dh[here] * derivative_of(h[after], code)

    walk, walk_back = walk_forward(1, cell), walk_backward(1, cell_backward)

    @on_device(rnn_forward, **SHAPE)
    def forward(h, z, u, n, sizes: RecurrentSizes, code, lengths_address, lengths_code):
        """h_t = f(z_t + h_{t-1} U) for t = 1, ..., positions; h_t = h_{t-1} beyond a length.

        h INOUT (1 + positions, n, width): h_0 in, the rest out; z IN (positions, n, width): x W + b; u IN (width,
        width); code: which f.
        """
        walk(h, h, z, u, u, n, sizes.positions, sizes.width, code, lengths_address, lengths_code)

    @on_device(rnn_backward, **SHAPE)
    def backward(dz, dh, h, ut, n, sizes: RecurrentSizes, code):
        """dz_t = dh_t f'(z_t), dh_{t-1} += dz_t U^T, from the last step to the first.

        dz OUT (positions, n, width); dh INOUT (positions, n, width): from above in, the total out; h IN (1 + positions,
        n, width); ut IN (width, width).
        """
        walk_back(dz, dz, dh, h, h, h, ut, n, sizes.positions, sizes.width, code)

    return forward, backward
