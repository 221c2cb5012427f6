"""The device kernels of scaling; equations and arrays are those of the CPU's kernels."""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.scaling import (
    rescale_backward,
    rescale_forward,
    scaling_parameters,
    standardize_backward,
    standardize_forward,
    untrained_parameters,
)
from nbprop.numerics.scalars import like
from nbprop.program.sizes import Rows


def cuda_kernels(cuda):
    """The device's: a thread an element, for the sums over rows a thread a feature."""

    def elements(n, rows, size):
        return grid_size(n * rows * size)

    @on_device(standardize_forward, blocks=elements)
    def standardized(y, x, m, s, n, sizes: Rows):
        """y = (x - m) / s. y OUT, x IN (n * rows, size); m, s IN (size,)."""
        rows, size = sizes.rows, sizes.size
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            y[k] = (x[k] - m[k % size]) / s[k % size]

    @on_device(standardize_backward, blocks=elements)
    def standardized_back(dx, dy, s, n, sizes: Rows):
        """dx = dy / s. dx OUT, dy IN (n * rows, size); s IN (size,)."""
        for k in range(cuda.grid(1), n * sizes.rows * sizes.size, cuda.gridsize(1)):
            dx[k] = dy[k] / s[k % sizes.size]

    @on_device(rescale_forward, blocks=elements)
    def rescaled(y, x, m, s, n, sizes: Rows):
        """y = x s + m. y OUT, x IN (n * rows, size); m, s IN (size,)."""
        rows, size = sizes.rows, sizes.size
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            y[k] = x[k] * s[k % size] + m[k % size]

    @on_device(rescale_backward, blocks=elements)
    def rescaled_back(dx, dy, s, n, sizes: Rows):
        """dx = dy s. dx OUT, dy IN (n * rows, size); s IN (size,)."""
        for k in range(cuda.grid(1), n * sizes.rows * sizes.size, cuda.gridsize(1)):
            dx[k] = dy[k] * s[k % sizes.size]

    @on_device(scaling_parameters, blocks=lambda size: grid_size(size))
    def parameters(dm, ds, g, h, n, sizes: Rows, sign, m_accumulate, s_accumulate, accumulate):
        """dm = sign sum of g, ds = sign sum of g h. dm, ds OUT (size,), g, h IN (n * rows, size)."""
        rows, size = sizes.rows, sizes.size
        for j in range(cuda.grid(1), size, cuda.gridsize(1)):
            shift, scale = like(g[0], 0.0), like(g[0], 0.0)
            for i in range(n * rows):
                shift += g[i * size + j]
                scale += g[i * size + j] * h[i * size + j]
            turn = like(g[0], sign)
            dm[j] = turn * shift + (dm[j] if m_accumulate + accumulate > 0 else like(shift, 0.0))
            ds[j] = turn * scale + (ds[j] if s_accumulate + accumulate > 0 else like(scale, 0.0))

    @on_device(untrained_parameters, blocks=lambda size: grid_size(size))
    def untrained(dm, ds, n, size, m_accumulate, s_accumulate, accumulate):
        """dm = 0, ds = 0, unless there is something to add to. dm, ds OUT (size,)."""
        for j in range(cuda.grid(1), size, cuda.gridsize(1)):
            if m_accumulate + accumulate == 0:
                dm[j] = like(dm[j], 0.0)
            if s_accumulate + accumulate == 0:
                ds[j] = like(ds[j], 0.0)

    return standardized, standardized_back, rescaled, rescaled_back, parameters, untrained
