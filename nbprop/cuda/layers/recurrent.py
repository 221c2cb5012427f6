"""The device kernels of what recurrent layers share; equations and arrays are those of the CPU's kernels."""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import cover
from nbprop.layers.recurrent import begin_state, from_last, keep_state, to_sample_major, to_time_major
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at


def cuda_kernels(cuda):
    """The device's: a thread an element."""

    def positions_and_units(n, positions, width):
        return cover(n * positions * width)

    def units(n, width):
        return cover(n * width)

    @on_device(to_time_major, blocks=positions_and_units)
    def time_major(xt, x, n, positions, width, lengths_address, lengths_code):
        for k in range(cuda.grid(1), positions * n * width, cuda.gridsize(1)):
            row = k // width
            t, i = row // n, row % n
            within = t < length_at(lengths_address, lengths_code, i, positions)
            xt[k] = x[(i * positions + t) * width + k % width] if within else like(xt[0], 0.0)

    @on_device(to_sample_major, blocks=positions_and_units)
    def sample_major(x, xt, n, positions, width, skip, lengths_address, lengths_code):
        for k in range(cuda.grid(1), n * positions * width, cuda.gridsize(1)):
            row = k // width
            i, t = row // positions, row % positions
            within = t < length_at(lengths_address, lengths_code, i, positions)
            x[k] = xt[((skip + t) * n + i) * width + k % width] if within else like(x[0], 0.0)

    @on_device(from_last, blocks=positions_and_units)
    def last(dh, dy, n, positions, width, lengths_address, lengths_code):
        for k in range(cuda.grid(1), positions * n * width, cuda.gridsize(1)):
            row = k // width
            t, i = row // n, row % n
            ends = t == length_at(lengths_address, lengths_code, i, positions) - 1
            dh[k] = dy[i * width + k % width] if ends else like(dh[0], 0.0)

    @on_device(begin_state, blocks=units)
    def begin(h, state, n, width, restarts, step, first_sample):
        zero = state.size == 0 or (restarts == 1 and step == 0)
        for k in range(cuda.grid(1), n * width, cuda.gridsize(1)):
            h[k] = like(h[0], 0.0) if zero else state[first_sample * width + k]

    @on_device(keep_state, blocks=units)
    def keep(state, h, n, positions, width, first_sample):
        for k in range(cuda.grid(1), n * width, cuda.gridsize(1)):
            state[first_sample * width + k] = h[positions * n * width + k]

    return time_major, sample_major, last, begin, keep
