"""The device kernels of scaling; equations and arrays are those of the CPU's kernels."""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.scaling import (
    rescale_backward,
    rescale_forward,
    rescale_second,
    rescale_tangent,
    scaling_parameters,
    scaling_parameters_tangent,
    scaling_sample_parameters,
    standardize_backward,
    standardize_forward,
    standardize_second,
    standardize_tangent,
    untrained_parameters,
    untrained_sample_parameters,
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

    return standardized, standardized_back, rescaled, rescaled_back, parameters, untrained, *_tangents(cuda)


def _tangents(cuda):
    """Derivatives along a direction, and sums of each sample apart."""

    def elements(n, rows, size):
        return grid_size(n * rows * size)

    @on_device(standardize_tangent, blocks=elements)
    def standardized_tangent(y_dot, y, x_dot, s, m_dot, s_dot, n, sizes: Rows, trained):
        """y' = (x' - m' - y s') / s; m' and s' are taken as 0 where trained is 0, and may be absent.

        y_dot OUT, y, x_dot IN (n * rows, size); s, m_dot, s_dot IN (size,).
        """
        rows, size = sizes.rows, sizes.size
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            j = k % size
            change = x_dot[k] - m_dot[j] - y[k] * s_dot[j] if trained > 0 else x_dot[k]
            y_dot[k] = change / s[j]

    @on_device(rescale_tangent, blocks=elements)
    def rescaled_tangent(y_dot, x, x_dot, s, m_dot, s_dot, n, sizes: Rows, trained):
        """y' = x' s + x s' + m'; m' and s' are taken as 0 where trained is 0, and may be absent.

        y_dot OUT, x, x_dot IN (n * rows, size); s, m_dot, s_dot IN (size,).
        """
        rows, size = sizes.rows, sizes.size
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            j = k % size
            y_dot[k] = x_dot[k] * s[j] + (x[k] * s_dot[j] + m_dot[j] if trained > 0 else like(s[0], 0.0))

    @on_device(standardize_second, blocks=elements)
    def standardized_second(dx_dot, dx, dy_dot, s, s_dot, n, sizes: Rows, trained):
        """dx' = (dy' - dx s') / s; s' is taken as 0 where trained is 0, and may be absent.

        dx_dot OUT, dx, dy_dot IN (n * rows, size); s, s_dot IN (size,).
        """
        rows, size = sizes.rows, sizes.size
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            j = k % size
            dx_dot[k] = (dy_dot[k] - (dx[k] * s_dot[j] if trained > 0 else like(s[0], 0.0))) / s[j]

    @on_device(rescale_second, blocks=elements)
    def rescaled_second(dx_dot, dy, dy_dot, s, s_dot, n, sizes: Rows, trained):
        """dx' = dy' s + dy s'; s' is taken as 0 where trained is 0, and may be absent.

        dx_dot OUT, dy, dy_dot IN (n * rows, size); s, s_dot IN (size,).
        """
        rows, size = sizes.rows, sizes.size
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            j = k % size
            dx_dot[k] = dy_dot[k] * s[j] + (dy[k] * s_dot[j] if trained > 0 else like(s[0], 0.0))

    @on_device(scaling_parameters_tangent, blocks=lambda size: grid_size(size))
    def parameters_tangent(dm, ds, g, g_dot, h, h_dot, n, sizes: Rows, sign, m_accumulate, s_accumulate, accumulate):
        """dm = sign sum of g', ds = sign sum of g' h + g h'.

        dm, ds OUT (size,), g, g_dot, h, h_dot IN (n * rows, size).
        """
        rows, size = sizes.rows, sizes.size
        for j in range(cuda.grid(1), size, cuda.gridsize(1)):
            shift, scale, turn = like(g[0], 0.0), like(g[0], 0.0), like(g[0], sign)
            for k in range(j, n * rows * size, size):
                shift += g_dot[k]
                scale += g_dot[k] * h[k] + g[k] * h_dot[k]
            dm[j] = turn * shift + (dm[j] if m_accumulate + accumulate > 0 else like(shift, 0.0))
            ds[j] = turn * scale + (ds[j] if s_accumulate + accumulate > 0 else like(scale, 0.0))

    @on_device(scaling_sample_parameters, blocks=lambda n, size: grid_size(n * size))
    def of_samples(dm, ds, g, h, n, sizes: Rows, sign, stride, m_accumulate, s_accumulate):
        """dm = sign sum of g, ds = sign sum of g h, of each sample apart, `stride` elements behind the one before.

        dm, ds OUT (size,) of each sample, g, h IN (n * rows, size).
        """
        rows, size = sizes.rows, sizes.size
        for item in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            sample, j = item // size, item % size
            shift, scale, turn = like(g[0], 0.0), like(g[0], 0.0), like(g[0], sign)
            for row in range(sample * rows, (sample + 1) * rows):
                shift += g[row * size + j]
                scale += g[row * size + j] * h[row * size + j]
            place = sample * stride + j
            dm[place] = turn * shift + (dm[place] if m_accumulate > 0 else like(shift, 0.0))
            ds[place] = turn * scale + (ds[place] if s_accumulate > 0 else like(scale, 0.0))

    @on_device(untrained_sample_parameters, blocks=lambda n, size: grid_size(n * size))
    def untrained_of_samples(dm, ds, n, size, stride, m_accumulate, s_accumulate):
        """dm = 0, ds = 0 of each sample, `stride` elements behind the one before. dm, ds OUT (size,) of each."""
        for item in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            place = item // size * stride + item % size
            if m_accumulate == 0:
                dm[place] = like(dm[0], 0.0)
            if s_accumulate == 0:
                ds[place] = like(ds[0], 0.0)

    seconds = standardized_second, rescaled_second, parameters_tangent
    return standardized_tangent, rescaled_tangent, *seconds, of_samples, untrained_of_samples
