"""The device kernels of spectral normalization; equations and arrays are those of nbprop/layers/spectral_norm.py."""

from nbprop.cuda.functions import sqrt
from nbprop.cuda.groups import block_sum, rows_of, team_of, team_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import THREADS, device_function, grid_size
from nbprop.layers.spectral_norm import (
    spectral_backward,
    spectral_direction,
    spectral_forward,
    spectral_image,
    spectral_products,
    spectral_second,
    spectral_tangent,
    spectral_update,
)
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: a team of threads per row of a matrix; every block sums up what all elements need."""

    def teams(rows, units):
        return rows_of(rows, units)

    def elements(rows, units):
        return grid_size(rows * units)

    @device_function
    def dot(space, a, b, size):
        """a . b, to each thread of the block. a and b IN (size,)."""
        total = like(a[0], 0.0)
        for r in range(cuda.threadIdx.x, size, THREADS):
            total += a[r] * b[r]
        return block_sum(space, total)

    @device_function
    def length_of(space, t, size):
        """|t|, to each thread of the block. t IN (size,)."""
        return sqrt(dot(space, t, t, size))

    @device_function
    def total_of(space, sums, size):
        """The sum of all sums, to each thread of the block. sums IN (size,)."""
        total = like(sums[0], 0.0)
        for r in range(cuda.threadIdx.x, size, THREADS):
            total += sums[r]
        return block_sum(space, total)

    @on_device(spectral_direction, blocks=lambda: 1)
    def direction(direction, u, n, units):
        """direction = u / |u|. direction OUT, u IN (units,)."""
        length = length_of(cuda.shared.array(THREADS, u.dtype), u, units)
        for j in range(cuda.threadIdx.x, units, THREADS):
            direction[j] = u[j] / length

    @on_device(spectral_image, blocks=teams)
    def image(t, w, direction, n, rows, units):
        """t = W direction. t OUT (rows,), w IN (rows, units), direction IN (units,)."""
        space, team = cuda.shared.array(THREADS, w.dtype), team_of(units)
        for first in range(cuda.blockIdx.x * THREADS, rows * team, cuda.gridDim.x * THREADS):
            row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
            total = like(w[0], 0.0)
            for j in range(lane, units if row < rows else 0, team):
                total += w[row * units + j] * direction[j]
            total = team_sum(space, total, lane, team)
            if lane == 0 and row < rows:
                t[row] = total

    @on_device(spectral_forward, blocks=elements)
    def forward(y, w, t, n, rows, units):
        """y = W / sigma, sigma = |t|. y OUT, w IN (rows, units), t IN (rows,)."""
        sigma = length_of(cuda.shared.array(THREADS, w.dtype), t, rows)
        for k in range(cuda.grid(1), rows * units, cuda.gridsize(1)):
            y[k] = w[k] / sigma

    @on_device(spectral_update, blocks=lambda units: grid_size(units))
    def update(u, w, t, n, rows, units):
        """u = W^T t / |t|. u OUT (units,), w IN (rows, units), t IN (rows,)."""
        sigma = length_of(cuda.shared.array(THREADS, w.dtype), t, rows)
        for j in range(cuda.grid(1), units, cuda.gridsize(1)):
            total = like(w[0], 0.0)
            for r in range(rows):
                total += t[r] / sigma * w[r * units + j]
            u[j] = total

    @on_device(spectral_products, blocks=teams)
    def products(sums, dw, w, n, rows, units):
        """sums = the sum of dw W over each row. sums OUT (rows,), dw and w IN (rows, units)."""
        space, team = cuda.shared.array(THREADS, w.dtype), team_of(units)
        for first in range(cuda.blockIdx.x * THREADS, rows * team, cuda.gridDim.x * THREADS):
            row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
            total = like(w[0], 0.0)
            for j in range(lane, units if row < rows else 0, team):
                total += dw[row * units + j] * w[row * units + j]
            total = team_sum(space, total, lane, team)
            if lane == 0 and row < rows:
                sums[row] = total

    @on_device(spectral_backward, blocks=elements)
    def backward(dv, dw, sums, t, direction, n, rows, units, v_accumulate, accumulate):
        """dv = dw / sigma - k t direction^T, k = sum(sums) / sigma^3.

        dv OUT, dw IN (rows, units); sums and t IN (rows,); direction IN (units,).
        """
        space = cuda.shared.array(THREADS, dw.dtype)
        sigma = length_of(space, t, rows)
        k = total_of(space, sums, rows) / sigma / sigma / sigma
        for i in range(cuda.grid(1), rows * units, cuda.gridsize(1)):
            found = dw[i] / sigma - k * t[i // units] * direction[i % units]
            dv[i] = found + (dv[i] if v_accumulate + accumulate > 0 else like(found, 0.0))

    @on_device(spectral_tangent, blocks=elements)
    def tangent(y_dot, w, w_dot, t, t_dot, n, rows, units):
        """y' = W' / sigma - W sigma' / sigma^2, sigma' = t . t' / sigma.

        y_dot OUT, w and w_dot IN (rows, units); t and t_dot IN (rows,).
        """
        space = cuda.shared.array(THREADS, w.dtype)
        sigma = length_of(space, t, rows)
        change = dot(space, t, t_dot, rows) / sigma / sigma
        for k in range(cuda.grid(1), rows * units, cuda.gridsize(1)):
            y_dot[k] = (w_dot[k] - w[k] * change) / sigma

    @on_device(spectral_second, blocks=elements)
    def second(
        dv_dot, dw, dw_dot, sums, sums_dot, more_dot, t, t_dot, direction,
        n, rows, units, v_accumulate, accumulate,
    ):  # fmt: skip
        """dv' = (dw' - dw sigma' / sigma) / sigma - (k' t + k t') direction^T;  k' = sum(sums') / sigma^3 - 3 k sigma'
        / sigma, where sums' are sums_dot + more_dot.

        dv_dot OUT, dw and dw_dot IN (rows, units); sums, sums_dot, more_dot, t and t_dot IN (rows,); direction IN
        (units,).
        """
        space = cuda.shared.array(THREADS, dw.dtype)
        sigma = length_of(space, t, rows)
        change = dot(space, t, t_dot, rows) / sigma / sigma
        k = total_of(space, sums, rows) / sigma / sigma / sigma
        k_dot = (total_of(space, sums_dot, rows) + total_of(space, more_dot, rows)) / sigma / sigma / sigma
        k_dot -= like(k, 3.0) * k * change
        for i in range(cuda.grid(1), rows * units, cuda.gridsize(1)):
            turn = k_dot * t[i // units] + k * t_dot[i // units]
            found = (dw_dot[i] - dw[i] * change) / sigma - turn * direction[i % units]
            dv_dot[i] = found + (dv_dot[i] if v_accumulate + accumulate > 0 else like(found, 0.0))

    return direction, image, forward, update, products, backward, tangent, second
