"""The device kernels of LSTM; the equations and arrays are those of nbprop/layers/lstm.py.

Dimensions: n samples; positions of each; width units, each with 4 gates.
"""

from nbprop.cuda import functions as f
from nbprop.cuda.kernels import on_device
from nbprop.cuda.recurrence import ROWS, SHAPE, walk_backward, walk_forward, walk_second, walk_tangent
from nbprop.cuda.toolkit import device_function
from nbprop.layers.lstm import lstm_backward, lstm_forward, lstm_second, lstm_tangent
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

    return forward, backward, *_cuda_tangents(cuda)


def _cuda_tangents(cuda):
    """The derivatives of both along a direction."""

    @device_function
    def cell(given, code, sums, r, place, within):
        (h_dot, c_dot, z_dot, c, z), (row, here, after, width, _) = given, place
        one, two, three, whole = row + width, row + 2 * width, row + 3 * width, like(c[0], 1.0)
        i, forget, g, o = z[row], z[one], z[two], z[three]
        z_dot[row] = (z_dot[row] + sums[r]) * i * (whole - i)
        z_dot[one] = (z_dot[one] + sums[ROWS + r]) * forget * (whole - forget)
        z_dot[two] = (z_dot[two] + sums[2 * ROWS + r]) * (whole - g * g)
        z_dot[three] = (z_dot[three] + sums[3 * ROWS + r]) * o * (whole - o)
        out, change = f.tanh(c[after]), z_dot[one] * c[here] + forget * c_dot[here] + z_dot[row] * g + i * z_dot[two]
        c_dot[after] = change if within else c_dot[here]
        h_dot[after] = z_dot[three] * out + o * (whole - out * out) * change if within else h_dot[here]

    @device_function
    def cell_second(given, code, place, ends):
        (dz_dot, dc_dot, dc, dh_dot, dh, c, c_dot, z, z_dot), (row, here, after, _, own, width) = given, place
        one, two, three = row + width, row + 2 * width, row + 3 * width
        whole, twice = like(dc[0], 1.0), like(dc[0], 2.0)
        i, forget, g, o = z[row], z[one], z[two], z[three]
        i_dot, forget_dot, g_dot, o_dot = z_dot[row], z_dot[one], z_dot[two], z_dot[three]
        out, d, d_dot = f.tanh(c[after]), dh[here], dh_dot[here]
        rest = whole - out * out
        out_dot, slope, slope_dot = rest * c_dot[after], o * (whole - o), o_dot * (whole - twice * o)
        dz_dot[three] = d_dot * out * slope + d * (out_dot * slope + out * slope_dot)
        a, a_dot = d * o * rest, (d_dot * o + d * o_dot) * rest - twice * d * o * out * out_dot
        if not ends:
            a, a_dot = a + dc[own], a_dot + dc_dot[own]
        slope, slope_dot = i * (whole - i), i_dot * (whole - twice * i)
        dz_dot[row] = (a_dot * g + a * g_dot) * slope + a * g * slope_dot
        slope, slope_dot = forget * (whole - forget), forget_dot * (whole - twice * forget)
        dz_dot[one] = (a_dot * c[here] + a * c_dot[here]) * slope + a * c[here] * slope_dot
        dz_dot[two] = (a_dot * i + a * i_dot) * (whole - g * g) - twice * a * i * g * g_dot
        dc[own], dc_dot[own] = a * forget, a_dot * forget + a * forget_dot

    walk, walk_back = walk_tangent(4, cell), walk_second(4, cell_second)

    @on_device(lstm_tangent, **SHAPE)
    def tangent(h_dot, c_dot, z_dot, h, c, z, u, u_dot, n, sizes: RecurrentSizes, lengths_address, lengths_code):
        """The derivatives h'_t and c'_t along z' and U'.

        h_dot and c_dot INOUT (1 + positions, n, width): the first of each in, the rest out; z_dot INOUT (positions, n,
        4 width): (x W + b)' in, those of the gates out; h and c IN (1 + positions, n, width), z IN (positions, n, 4
        width): the gates; u IN (width, 4 width), u_dot IN (width, 4 width) or empty.
        """
        positions, width, given = sizes.positions, sizes.width, (h_dot, c_dot, z_dot, c, z)
        walk(given, h, h_dot, u, u_dot, n, positions, width, 0, lengths_address, lengths_code)

    @on_device(lstm_second, **SHAPE | {"resident": 1})  # with two resident blocks it would spill in float64
    def second(dz_dot, dc_dot, dc, dh_dot, dz, dh, c, c_dot, z, z_dot, ut, ut_dot, n, sizes: RecurrentSizes):
        """dz'_t, dc'_t (and dc_t again) and dh'_{t-1} += dz'_t U^T + dz_t U'^T, from the last step to the first.

        dz_dot OUT (positions, n, 4 width), dc_dot and dc OUT (n, width), scratch; dh_dot INOUT (positions, n, width);
        dz IN (positions, n, 4 width); dh IN (positions, n, width): the total; c and c_dot IN (1 + positions, n, width);
        z and z_dot IN (positions, n, 4 width): the gates; ut and ut_dot IN (4 width, width).
        """
        given = dz_dot, dc_dot, dc, dh_dot, dh, c, c_dot, z, z_dot
        walk_back(given, dz, dz_dot, dh_dot, ut, ut_dot, n, sizes.positions, sizes.width, 0)

    return tangent, second
