"""The device kernels that recurrent layers share; the equations and arrays are those of nbprop/layers/recurrent.py.

Dimensions: n samples; positions of each; width units.
"""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.recurrent import RecurrentSizes, begin_state, from_last, keep_state, to_sample_major, to_time_major
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at


def cuda_kernels(cuda):
    """The device kernels: one thread per element."""

    def positions_and_units(n, positions, width):
        return grid_size(n * positions * width)

    def units(n, width):
        return grid_size(n * width)

    @on_device(to_time_major, blocks=positions_and_units)
    def time_major(xt, x, n, sizes: RecurrentSizes, lengths_address, lengths_code):
        """xt[t, i] = x[i, t], 0 beyond a length. xt OUT (positions, n, width), x IN (n, positions, width)."""
        positions, width = sizes.positions, sizes.width
        for k in range(cuda.grid(1), positions * n * width, cuda.gridsize(1)):
            row = k // width
            t, i = row // n, row % n
            within = t < length_at(lengths_address, lengths_code, i, positions)
            xt[k] = x[(i * positions + t) * width + k % width] if within else like(xt[0], 0.0)

    @on_device(to_sample_major, blocks=positions_and_units)
    def sample_major(x, xt, n, sizes: RecurrentSizes, skip, lengths_address, lengths_code):
        """x[i, t] = xt[skip + t, i], 0 beyond a length.

        x OUT (n, positions, width), xt IN (skip + positions, n, width).
        """
        positions, width = sizes.positions, sizes.width
        for k in range(cuda.grid(1), n * positions * width, cuda.gridsize(1)):
            row = k // width
            i, t = row // positions, row % positions
            within = t < length_at(lengths_address, lengths_code, i, positions)
            x[k] = xt[((skip + t) * n + i) * width + k % width] if within else like(x[0], 0.0)

    @on_device(from_last, blocks=positions_and_units)
    def last(dh, dy, n, sizes: RecurrentSizes, lengths_address, lengths_code):
        """dh[t, i] = dy[i] at the last position of sample i, else 0. dh OUT (positions, n, width), dy IN (n, width)."""
        positions, width = sizes.positions, sizes.width
        for k in range(cuda.grid(1), positions * n * width, cuda.gridsize(1)):
            row = k // width
            t, i = row // n, row % n
            ends = t == length_at(lengths_address, lengths_code, i, positions) - 1
            dh[k] = dy[i * width + k % width] if ends else like(dh[0], 0.0)

    @on_device(begin_state, blocks=units)
    def begin(h, state, n, width, restarts, step, first_sample):
        """h_0 = the layer's state; 0 where it has none, and at step 0 where it `restarts`.

        h OUT (1 + positions, n, width), of which the first (n, width) are written; state IN (batch, width) or empty.
        """
        zero = state.size == 0 or (restarts == 1 and step == 0)
        for k in range(cuda.grid(1), n * width, cuda.gridsize(1)):
            h[k] = like(h[0], 0.0) if zero else state[first_sample * width + k]

    @on_device(keep_state, blocks=units)
    def keep(state, h, n, sizes: RecurrentSizes, first_sample):
        """The layer's state = h_T. state OUT (batch, width), h IN (1 + positions, n, width)."""
        positions, width = sizes.positions, sizes.width
        for k in range(cuda.grid(1), n * width, cuda.gridsize(1)):
            state[first_sample * width + k] = h[positions * n * width + k]

    return time_major, sample_major, last, begin, keep
