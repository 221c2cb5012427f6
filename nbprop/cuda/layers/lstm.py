"""The device kernels of LSTM; the equations and arrays are those of nbprop/layers/lstm.py.

Dimensions: n samples; positions of each; width units, each with 4 gates.
"""

from nbprop.cuda import functions as f
from nbprop.cuda.kernels import on_device
from nbprop.cuda.recurrence import ROWS, SHAPE, walk_backward, walk_forward
from nbprop.cuda.toolkit import device_function
from nbprop.layers.lstm import lstm_backward, lstm_forward
from nbprop.layers.recurrent import RecurrentSizes
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: one thread has all four gates of its unit."""

    @device_function
    def cell(h, c, z, a, code, sums, r, place, within):
        row, here, after, width, _ = place
        one, two, three = row + width, row + 2 * width, row + 3 * width
        z[row], z[one] = f.sigmoid(z[row] + sums[r]), f.sigmoid(z[one] + sums[ROWS + r])
        z[two], z[three] = f.tanh(z[two] + sums[2 * ROWS + r]), f.sigmoid(z[three] + sums[3 * ROWS + r])
        c[after] = z[one] * c[here] + z[row] * z[two] if within else c[here]
        h[after] = z[three] * f.tanh(c[after]) if within else h[here]

    @device_function
    def cell_backward(dz, dc, dh, c, z, q, code, place, ends):
        row, here, after, _, own, width = place
        one, two, three, whole = row + width, row + 2 * width, row + 3 * width, like(dc[0], 1.0)
        i, forget, g, o, out = z[row], z[one], z[two], z[three], f.tanh(c[after])
        d = dh[here] * o * (whole - out * out) + (like(whole, 0.0) if ends else dc[own])
        dz[row], dz[one] = d * g * i * (whole - i), d * c[here] * forget * (whole - forget)
        dz[two], dz[three] = d * i * (whole - g * g), dh[here] * out * o * (whole - o)
        dc[own] = d * forget

    walk, walk_back = walk_forward(4, cell), walk_backward(4, cell_backward)

    @on_device(lstm_forward, **SHAPE)
    def forward(h, c, z, u, n, sizes: RecurrentSizes, lengths_address, lengths_code):
        """h_t and c_t for t = 1, ..., positions; both unchanged beyond a length.

        h and c INOUT (1 + positions, n, width): the first of each in, the rest out; z INOUT (positions, n, 4 width): x
        W + b in, the gates out; u IN (width, 4 width).
        """
        walk(h, c, z, u, u, n, sizes.positions, sizes.width, 0, lengths_address, lengths_code)

    @on_device(lstm_backward, **SHAPE)
    def backward(dz, dc, dh, c, z, ut, n, sizes: RecurrentSizes):
        """dz_t, dc_t and dh_{t-1} += dz_t U^T, from the last step to the first.

        dz OUT (positions, n, 4 width); dc OUT (n, width), scratch; dh INOUT (positions, n, width): from above in, the
        total out; c IN (1 + positions, n, width), z IN (positions, n, 4 width): the gates; ut IN (4 width, width).
        """
        walk_back(dz, dc, dh, c, z, z, ut, n, sizes.positions, sizes.width, 0)

    return forward, backward
