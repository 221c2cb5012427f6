"""The device kernels of layer normalization; the equations and arrays are those of nbprop/layers/layernorm.py.

Dimensions: n samples; rows rows a sample; size features a row. A block is 32 rows of the batch. x^ is x normalized.
"""

from nbprop.cuda.functions import real_of_word, sqrt
from nbprop.cuda.groups import COLUMNS, column_sum, rows_of, team_of, team_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import THREADS, device_function, grid_size
from nbprop.layers.layernorm import (
    _BLOCK,
    _STATISTICS,
    layernorm_backward,
    layernorm_forward,
    layernorm_parameters,
    layernorm_second,
    layernorm_tangent,
)
from nbprop.numerics.scalars import like
from nbprop.program.sizes import Rows


def cuda_kernels(cuda):
    """The device kernels: one team of threads per row; sums over rows in two stages, the second a tree per column."""

    def teams(n, rows, size):
        return rows_of(n * rows, size)

    @on_device(layernorm_forward, blocks=teams)
    def forward(y, statistics, x, s, b, n, sizes: Rows, epsilon_bits, centered):
        """y = s x^ + b in each row.

        y OUT, x IN (n * rows, size); statistics OUT (n * rows, 3): mean, rest and r; s and b IN (size,) or empty.
        """
        rows, size = sizes.rows, sizes.size
        space, team = cuda.shared.array(THREADS, x.dtype), team_of(size)
        for first in range(cuda.blockIdx.x * THREADS, n * rows * team, cuda.gridDim.x * THREADS):
            row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
            start, stop, width = row * size, size if row < n * rows else 0, like(x[0], size)
            mean = like(width, 0.0)
            if centered > 0:
                for j in range(lane, stop, team):
                    mean += x[start + j]
                mean = team_sum(space, mean, lane, team) / width
            rest, squares = like(mean, 0.0), like(mean, 0.0)
            for j in range(lane, stop, team):
                distance = x[start + j] - mean
                rest += distance
                squares += distance * distance
            rest, squares = team_sum(space, rest, lane, team) / width, team_sum(space, squares, lane, team) / width
            rest = rest if centered > 0 else like(rest, 0.0)
            r = like(rest, 1.0) / sqrt(squares - rest * rest + real_of_word(x[0], epsilon_bits))
            if lane == 0 and stop > 0:
                kept = row * _STATISTICS
                statistics[kept], statistics[kept + 1], statistics[kept + 2] = mean, rest, r
            for j in range(lane, stop, team):
                value = ((x[start + j] - mean) - rest) * r
                value = value * s[j] if s.size > 0 else value
                y[start + j] = value + b[j] if b.size > 0 else value

    @on_device(layernorm_backward, blocks=teams)
    def backward(dx, dy, x, statistics, s, n, sizes: Rows, centered):
        """dx = r (g - m(g) - x^ m(g x^)) with g = dy s, m the mean over a row.

        dx OUT, dy and x IN (n * rows, size); statistics IN (n * rows, 3); s IN (size,) or empty.
        """
        rows, size = sizes.rows, sizes.size
        space, team, width = cuda.shared.array(THREADS, x.dtype), team_of(size), like(x[0], size)
        for first in range(cuda.blockIdx.x * THREADS, n * rows * team, cuda.gridDim.x * THREADS):
            row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
            start, stop, kept = row * size, size if row < n * rows else 0, row * _STATISTICS if row < n * rows else 0
            mean, rest, r = statistics[kept], statistics[kept + 1], statistics[kept + 2]
            total, along = like(r, 0.0), like(r, 0.0)
            for j in range(lane, stop, team):
                g = dy[start + j] * s[j] if s.size > 0 else dy[start + j]
                total += g
                along += g * (((x[start + j] - mean) - rest) * r)
            total, along = team_sum(space, total, lane, team) / width, team_sum(space, along, lane, team) / width
            total = total if centered > 0 else like(r, 0.0)
            for j in range(lane, stop, team):
                g = dy[start + j] * s[j] if s.size > 0 else dy[start + j]
                dx[start + j] = r * (g - total - ((x[start + j] - mean) - rest) * r * along)

    @on_device(layernorm_backward, blocks=lambda n, rows, size: grid_size((n * rows + _BLOCK - 1) // _BLOCK * size))
    def block_sums(sums, dy, x, statistics, n, sizes: Rows):
        """sum(dy x^) and sum(dy) over the rows of each block.

        sums OUT (blocks, 2, size), dy and x IN (n * rows, size); statistics IN (n * rows, 3).
        """
        rows, size = sizes.rows, sizes.size
        for k in range(cuda.grid(1), (n * rows + _BLOCK - 1) // _BLOCK * size, cuda.gridsize(1)):
            block, j, ds, db = k // size, k % size, like(dy[0], 0.0), like(dy[0], 0.0)
            for i in range(block * _BLOCK, min(n * rows, (block + 1) * _BLOCK)):
                kept, given = i * _STATISTICS, dy[i * size + j]
                ds += given * (((x[i * size + j] - statistics[kept]) - statistics[kept + 1]) * statistics[kept + 2])
                db += given
            sums[2 * block * size + j], sums[(2 * block + 1) * size + j] = ds, db

    @on_device(layernorm_parameters, blocks=lambda size: grid_size(size, COLUMNS))
    def parameters(ds, db, sums, n, sizes: Rows, s_accumulate, b_accumulate, accumulate):
        """ds and db = the totals of the blocks' sums, a thread block for COLUMNS features at a time.

        ds and db OUT (size,) or empty; added to where `s_accumulate`, `b_accumulate` or `accumulate` is 1; sums IN
        (blocks, 2, size).
        """
        rows, size = sizes.rows, sizes.size
        space = cuda.shared.array(THREADS, sums.dtype)
        lane, lanes = cuda.threadIdx.x // COLUMNS, THREADS // COLUMNS
        for first in range(cuda.blockIdx.x * COLUMNS, size, cuda.gridDim.x * COLUMNS):
            feature = first + cuda.threadIdx.x % COLUMNS
            j, scale, shift = min(feature, size - 1), like(sums[0], 0.0), like(sums[0], 0.0)
            for block in range(lane, (n * rows + _BLOCK - 1) // _BLOCK, lanes):
                scale += sums[2 * block * size + j]
                shift += sums[(2 * block + 1) * size + j]
            scale, shift = column_sum(space, scale, COLUMNS), column_sum(space, shift, COLUMNS)
            if lane == 0 and feature < size:
                if ds.size > 0:
                    ds[j] = scale + ds[j] if s_accumulate + accumulate > 0 else scale
                if db.size > 0:
                    db[j] = shift + db[j] if b_accumulate + accumulate > 0 else shift

    return forward, backward, block_sums, parameters, *_cuda_tangents(cuda)


def _cuda_tangents(cuda):
    """The derivatives along a direction. A row of x^' is r (t - x^ c), t = x' - m(x') and c = m(x^ t)."""

    def teams(n, rows, size):
        return rows_of(n * rows, size)

    @device_function
    def shift_and_turn(space, x, x_dot, start, stop, statistics, kept, lane, team, size, centered):
        """(m(x'), c) of a row, to each thread of its team; rmsnorm has no m(x')."""
        mean, rest, r = statistics[kept], statistics[kept + 1], statistics[kept + 2]
        width, shift, c = like(r, size), like(r, 0.0), like(r, 0.0)
        if centered > 0:
            for j in range(start + lane, start + stop, team):
                shift += x_dot[j]
            shift = team_sum(space, shift, lane, team) / width
        for j in range(start + lane, start + stop, team):
            c += ((x[j] - mean) - rest) * r * (x_dot[j] - shift)
        return shift, team_sum(space, c, lane, team) / width

    @on_device(layernorm_tangent, blocks=teams, resident=2)  # with three, as LTO-IR it spills in float64
    def tangent(y_dot, x, x_dot, statistics, s, s_dot, b_dot, n, sizes: Rows, centered):
        """y' = s x^' + s' x^ + b' in each row; an empty direction is zero.

        y_dot OUT, x and x_dot IN (n * rows, size); statistics IN (n * rows, 3); s, s_dot and b_dot IN (size,) or empty.
        """
        rows, size = sizes.rows, sizes.size
        space, team = cuda.shared.array(THREADS, x.dtype), team_of(size)
        for first in range(cuda.blockIdx.x * THREADS, n * rows * team, cuda.gridDim.x * THREADS):
            row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
            start, stop, kept = row * size, size if row < n * rows else 0, row * _STATISTICS if row < n * rows else 0
            shift, c = shift_and_turn(space, x, x_dot, start, stop, statistics, kept, lane, team, size, centered)
            mean, rest, r = statistics[kept], statistics[kept + 1], statistics[kept + 2]
            for j in range(lane, stop, team):
                h = ((x[start + j] - mean) - rest) * r
                value = r * (x_dot[start + j] - shift - h * c)
                value = value * s[j] if s.size > 0 else value
                value = value + h * s_dot[j] if s_dot.size > 0 else value
                y_dot[start + j] = value + b_dot[j] if b_dot.size > 0 else value

    @on_device(layernorm_second, blocks=teams, scratch=lambda n, rows: 2 * n * rows)
    def second(dx_dot, partials, dy, dy_dot, x, x_dot, statistics, s, s_dot, n, sizes: Rows, centered):
        """dx' = r (g' - m(g') - x^' m(g x^) - x^ (m(g' x^) + m(g x^')) - r c (g - m(g) - x^ m(g x^))).

        dx_dot OUT, dy, dy_dot, x and x_dot IN (n * rows, size); partials OUT (n * rows, 2): m(x') and c; statistics IN
        (n * rows, 3); s and s_dot IN (size,) or empty; g = dy s, g' = dy' s + dy s'.
        """
        rows, size = sizes.rows, sizes.size
        space, team, width = cuda.shared.array(THREADS, x.dtype), team_of(size), like(x[0], size)
        for first in range(cuda.blockIdx.x * THREADS, n * rows * team, cuda.gridDim.x * THREADS):
            row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
            start, stop, kept = row * size, size if row < n * rows else 0, row * _STATISTICS if row < n * rows else 0
            shift, c = shift_and_turn(space, x, x_dot, start, stop, statistics, kept, lane, team, size, centered)
            mean, rest, r = statistics[kept], statistics[kept + 1], statistics[kept + 2]
            if lane == 0 and stop > 0:
                partials[2 * row], partials[2 * row + 1] = shift, c
            total, change, along, turn = like(r, 0.0), like(r, 0.0), like(r, 0.0), like(r, 0.0)
            for j in range(lane, stop, team):
                h = ((x[start + j] - mean) - rest) * r
                g, g_dot = dy[start + j], dy_dot[start + j]
                if s.size > 0:
                    g, g_dot = g * s[j], g_dot * s[j] + (g * s_dot[j] if s_dot.size > 0 else like(r, 0.0))
                total += g
                change += g_dot
                along += g * h
                turn += g_dot * h + g * r * (x_dot[start + j] - shift - h * c)
            total, change = team_sum(space, total, lane, team) / width, team_sum(space, change, lane, team) / width
            along, turn = team_sum(space, along, lane, team) / width, team_sum(space, turn, lane, team) / width
            total, change = total if centered > 0 else like(r, 0.0), change if centered > 0 else like(r, 0.0)
            for j in range(lane, stop, team):
                h = ((x[start + j] - mean) - rest) * r
                k = r * (x_dot[start + j] - shift - h * c)
                g, g_dot = dy[start + j], dy_dot[start + j]
                if s.size > 0:
                    g, g_dot = g * s[j], g_dot * s[j] + (g * s_dot[j] if s_dot.size > 0 else like(r, 0.0))
                straight = g - total - h * along
                dx_dot[start + j] = r * (g_dot - change - k * along - h * turn - r * c * straight)

    @on_device(layernorm_second, blocks=lambda n, rows, size: grid_size((n * rows + _BLOCK - 1) // _BLOCK * size))
    def block_sums(sums, dy, dy_dot, x, x_dot, statistics, partials, n, sizes: Rows):
        """sum(dy' x^ + dy x^') and sum(dy') over the rows of each block.

        sums OUT (blocks, 2, size), dy, dy_dot, x and x_dot IN (n * rows, size); statistics IN (n * rows, 3); partials
        IN (n * rows, 2): m(x') and c of each row.
        """
        rows, size = sizes.rows, sizes.size
        for k in range(cuda.grid(1), (n * rows + _BLOCK - 1) // _BLOCK * size, cuda.gridsize(1)):
            block, j, ds, db = k // size, k % size, like(dy[0], 0.0), like(dy[0], 0.0)
            for i in range(block * _BLOCK, min(n * rows, (block + 1) * _BLOCK)):
                at, kept, r = i * size + j, i * _STATISTICS, statistics[i * _STATISTICS + 2]
                h = ((x[at] - statistics[kept]) - statistics[kept + 1]) * r
                ds += dy_dot[at] * h + dy[at] * r * (x_dot[at] - partials[2 * i] - h * partials[2 * i + 1])
                db += dy_dot[at]
            sums[2 * block * size + j], sums[(2 * block + 1) * size + j] = ds, db

    return tangent, second, block_sums
