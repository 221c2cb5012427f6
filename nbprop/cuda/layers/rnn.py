"""The device kernels of simple recurrent layers; the equations and arrays are those of nbprop/layers/rnn.py.

Dimensions: n samples; positions of each; width units.
"""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.layers.activation import curvature
from nbprop.cuda.recurrence import SHAPE, walk_backward, walk_forward, walk_second, walk_tangent
from nbprop.cuda.toolkit import device_function
from nbprop.layers.recurrent import RecurrentSizes
from nbprop.layers.rnn import rnn_backward, rnn_forward, rnn_second, rnn_tangent
from nbprop.numerics.activations import derivative_of, value_of


def cuda_kernels(cuda):
    """The device kernels. The argument of f is not kept in z, since nothing needs it."""

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

    return forward, backward, *_cuda_tangents(cuda)


def _cuda_tangents(cuda):
    """The derivatives of both along a direction."""

    @device_function
    def cell(given, code, sums, r, place, within):
        (h_dot, z_dot, h), (row, here, after, _, _) = given, place
        h_dot[after] = (z_dot[row] + sums[r]) * derivative_of(h[after], code) if within else h_dot[here]

    @device_function
    def cell_second(given, code, place, ends):
        (dz_dot, dh_dot, dh, h, h_dot), (_, here, after, _, _, _) = given, place
        bent = dh[here] * h_dot[after] * curvature(h[after], code)
        dz_dot[here] = dh_dot[here] * derivative_of(h[after], code) + bent

    walk, walk_back = walk_tangent(1, cell), walk_second(1, cell_second)

    @on_device(rnn_tangent, **SHAPE)
    def tangent(h_dot, z_dot, h, u, u_dot, n, sizes: RecurrentSizes, code, lengths_address, lengths_code):
        """h'_t = f'(z_t) (z'_t + h_{t-1} U' + h'_{t-1} U).

        h_dot INOUT (1 + positions, n, width): h'_0 in, the rest out; z_dot IN (positions, n, width); h IN (1 +
        positions, n, width); u IN (width, width), u_dot IN (width, width) or empty; code: which f.
        """
        positions, width, given = sizes.positions, sizes.width, (h_dot, z_dot, h)
        walk(given, h, h_dot, u, u_dot, n, positions, width, code, lengths_address, lengths_code)

    @on_device(rnn_second, **SHAPE)
    def second(dz_dot, dh_dot, dz, dh, h, h_dot, ut, ut_dot, n, sizes: RecurrentSizes, code):
        """dz'_t = dh'_t f' + dh_t f'' h'_t, dh'_{t-1} += dz'_t U^T + dz_t U'^T, from the last step to the first.

        dz_dot OUT (positions, n, width), dh_dot INOUT (positions, n, width); dz IN (positions, n, width); dh IN
        (positions, n, width): the total; h and h_dot IN (1 + positions, n, width); ut and ut_dot IN (width, width).
        """
        given = dz_dot, dh_dot, dh, h, h_dot
        walk_back(given, dz, dz_dot, dh_dot, ut, ut_dot, n, sizes.positions, sizes.width, code)

    return tangent, second
