"""The device kernels of GRU; the equations and arrays are those of nbprop/layers/gru.py.

Dimensions: n samples; positions of each; width units, each with 3 gates.
"""

from nbprop.cuda import functions as f
from nbprop.cuda.groups import column_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.recurrence import ROWS, SHAPE, walk_backward, walk_forward, walk_second, walk_tangent
from nbprop.cuda.toolkit import THREADS, device_function
from nbprop.layers.gru import _LANES, gru_backward, gru_forward, gru_recurrent_bias, gru_second, gru_tangent
from nbprop.layers.recurrent import RecurrentSizes
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: one thread has all three gates of its unit."""

    @device_function
    def cell(h, q, g, a, code, sums, r, place, within):
        row, here, after, width, j = place
        one, two = row + width, row + 2 * width
        g[row], g[one] = f.sigmoid(g[row] + sums[r]), f.sigmoid(g[one] + sums[ROWS + r])
        q[here] = a[j] + sums[2 * ROWS + r]
        g[two] = f.tanh(g[two] + g[row] * q[here])
        h[after] = g[two] + g[one] * (h[here] - g[two]) if within else h[here]

    @device_function
    def cell_backward(du, dg, dh, h, g, q, code, place, ends):
        row, here, _, before, _, width = place
        one, two, whole, d = row + width, row + 2 * width, like(dh[0], 1.0), dh[here]
        r, z, new = g[row], g[one], g[two]
        dn = d * (whole - z) * (whole - new * new)
        dr, dz = dn * q[here] * r * (whole - r), d * (h[here] - new) * z * (whole - z)
        dg[row], dg[one], dg[two] = dr, dz, dn
        du[row], du[one], du[two] = dr, dz, dn * r
        if before >= 0:
            dh[before] += d * z

    walk, walk_back, across = walk_forward(3, cell), walk_backward(3, cell_backward), THREADS // _LANES

    @on_device(gru_forward, **SHAPE)
    def forward(h, g, q, u, a, n, sizes: RecurrentSizes, lengths_address, lengths_code):
        """h_t for t = 1, ..., positions; unchanged beyond a length.

        h INOUT (1 + positions, n, width): h_0 in, the rest out; g INOUT (positions, n, 3 width): x W + b in, the gates
        out; q OUT (positions, n, width); u IN (width, 3 width), a IN (width,).
        """
        walk(h, q, g, u, a, n, sizes.positions, sizes.width, 0, lengths_address, lengths_code)

    @on_device(gru_backward, **SHAPE)
    def backward(dg, du, dh, h, g, q, ut, n, sizes: RecurrentSizes):
        """The gradients dg by x W + b and du by h U, and dh_{t-1}, from the last step to the first.

        dg and du OUT (positions, n, 3 width); dh INOUT (positions, n, width): from above in, the total out; h IN (1 +
        positions, n, width), g IN (positions, n, 3 width), q IN (positions, n, width), ut IN (3 width, width).
        """
        walk_back(du, dg, dh, h, g, q, ut, n, sizes.positions, sizes.width, 0)

    @on_device(gru_recurrent_bias, blocks=lambda width: -(-width // across))
    def recurrent_bias(da, du, n, sizes: RecurrentSizes, a_accumulate, accumulate):
        """da = the sum over the rows of the last third of du; accumulated with `a_accumulate` or `accumulate`.

        da OUT (width,), du IN (positions * n, 3 width).
        """
        positions, width = sizes.positions, sizes.width
        space, lane = cuda.shared.array(THREADS, du.dtype), cuda.threadIdx.x // across
        for j0 in range(cuda.blockIdx.x * across, width, cuda.gridDim.x * across):
            j, total = j0 + cuda.threadIdx.x % across, like(du[0], 0.0)
            for row in range(lane, positions * n if j < width else 0, _LANES):
                total += du[(3 * row + 2) * width + j]
            total = column_sum(space, total, across)
            if lane == 0 and j < width:
                da[j] = total + da[j] if a_accumulate + accumulate > 0 else total

    return forward, backward, recurrent_bias, *_cuda_tangents(cuda)


def _cuda_tangents(cuda):
    """The derivatives of the loops along a direction."""

    @device_function
    def cell(given, code, sums, r, place, within):
        (h_dot, g_dot, q_dot, h, g, q, a_dot), (row, here, after, width, j) = given, place
        one, two, whole = row + width, row + 2 * width, like(h[0], 1.0)
        reset, z, new = g[row], g[one], g[two]
        reset_dot = (g_dot[row] + sums[r]) * reset * (whole - reset)
        z_dot = (g_dot[one] + sums[ROWS + r]) * z * (whole - z)
        q_dot[here] = a_dot[j] + sums[2 * ROWS + r]
        new_dot = (g_dot[two] + reset_dot * q[here] + reset * q_dot[here]) * (whole - new * new)
        g_dot[row], g_dot[one], g_dot[two] = reset_dot, z_dot, new_dot
        change = new_dot + z_dot * (h[here] - new) + z * (h_dot[here] - new_dot)
        h_dot[after] = change if within else h_dot[here]

    @device_function
    def cell_second(given, code, place, ends):
        (dg_dot, du_dot, dh_dot, dh, h, h_dot, g, g_dot, q, q_dot), (row, here, _, before, _, width) = given, place
        one, two, whole, twice = row + width, row + 2 * width, like(dh[0], 1.0), like(dh[0], 2.0)
        r, z, new, d, d_dot = g[row], g[one], g[two], dh[here], dh_dot[here]
        r_dot, z_dot, new_dot = g_dot[row], g_dot[one], g_dot[two]
        rest, through, through_dot = whole - new * new, d * (whole - z), d_dot * (whole - z) - d * z_dot
        dn, dn_dot = through * rest, through_dot * rest - twice * through * new * new_dot
        slope, slope_dot = r * (whole - r), r_dot * (whole - twice * r)
        dr_dot = (dn_dot * q[here] + dn * q_dot[here]) * slope + dn * q[here] * slope_dot
        slope, slope_dot = z * (whole - z), z_dot * (whole - twice * z)
        apart, apart_dot = h[here] - new, h_dot[here] - new_dot
        dz_dot = (d_dot * apart + d * apart_dot) * slope + d * apart * slope_dot
        dg_dot[row], dg_dot[one], dg_dot[two] = dr_dot, dz_dot, dn_dot
        du_dot[row], du_dot[one], du_dot[two] = dr_dot, dz_dot, dn_dot * r + dn * r_dot
        if before >= 0:
            dh_dot[before] += d_dot * z + d * z_dot

    walk, walk_back = walk_tangent(3, cell), walk_second(3, cell_second)

    @on_device(gru_tangent, **SHAPE)
    def tangent(
        h_dot, g_dot, q_dot, h, g, q, u, u_dot, a_dot, n, sizes: RecurrentSizes, lengths_address, lengths_code
    ):  # fmt: skip
        """The derivative h'_t along (x W + b)', U' and a'.

        h_dot INOUT (1 + positions, n, width): h'_0 in, the rest out; g_dot INOUT (positions, n, 3 width): (x W + b)'
        in, those of the gates out; q_dot OUT (positions, n, width); h IN (1 + positions, n, width), g IN (positions, n,
        3 width): the gates; q IN (positions, n, width); u IN (width, 3 width), u_dot IN (width, 3 width) or empty,
        a_dot IN (width,).
        """
        positions, width, given = sizes.positions, sizes.width, (h_dot, g_dot, q_dot, h, g, q, a_dot)
        walk(given, h, h_dot, u, u_dot, n, positions, width, 0, lengths_address, lengths_code)

    @on_device(gru_second, **SHAPE)
    def second(dg_dot, du_dot, dh_dot, du, dh, h, h_dot, g, g_dot, q, q_dot, ut, ut_dot, n, sizes: RecurrentSizes):
        """The derivatives of dg, du and dh_{t-1}, from the last step to the first.

        dg_dot and du_dot OUT (positions, n, 3 width); dh_dot INOUT (positions, n, width); du IN (positions, n, 3
        width); dh IN (positions, n, width): the total; h and h_dot IN (1 + positions, n, width); g and g_dot IN
        (positions, n, 3 width): the gates; q and q_dot IN (positions, n, width); ut and ut_dot IN (3 width, width).
        """
        given = dg_dot, du_dot, dh_dot, dh, h, h_dot, g, g_dot, q, q_dot
        walk_back(given, du, du_dot, dh_dot, ut, ut_dot, n, sizes.positions, sizes.width, 0)

    return tangent, second
