"""The device kernels of GRU; the equations and arrays are those of nbprop/layers/gru.py.

Dimensions: n samples; positions of each; width units, each with 3 gates.
"""

from nbprop.cuda import functions as f
from nbprop.cuda.groups import column_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.recurrence import ROWS, SHAPE, walk_backward, walk_forward
from nbprop.cuda.toolkit import THREADS, device_function
from nbprop.layers.gru import _LANES, gru_backward, gru_forward, gru_recurrent_bias
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

    return forward, backward, recurrent_bias
