"""The device kernels of Fourier features; equations and arrays are those of nbprop/layers/fourier.py.

The sine and cosine of arguments beyond `trigonometric.LIMIT` are NaN on the device.
"""

from nbprop.cuda.functions import real_of_word
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.fourier import (
    FourierSizes,
    fourier_backward,
    fourier_forward,
    fourier_second,
    fourier_tangent,
    untrained_weight,
)
from nbprop.numerics.activations import SINE, derivative_of, value_of
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: one thread per frequency of a row, or per element."""

    def elements(n, rows, units):
        return grid_size(n * rows * units)

    @on_device(fourier_forward, blocks=elements)
    def forward(y, z, n, sizes: FourierSizes):
        """z = scale z, y = (cos z, sin z) in each row. y OUT (n * rows, 2 units), z INOUT (n * rows, units)."""
        rows, units, scale = sizes.rows, sizes.units, real_of_word(z[0], sizes.scale_bits)
        for k in range(cuda.grid(1), n * rows * units, cuda.gridsize(1)):
            z[k] *= scale
            to = 2 * (k // units) * units + k % units
            y[to], y[to + units] = derivative_of(z[k], SINE), value_of(z[k], SINE)

    @on_device(fourier_backward, blocks=elements)
    def backward(dz, dy, y, n, sizes: FourierSizes):
        """dz = scale (e c - d s) for y = (c, s), dy = (d, e).

        dz OUT (n * rows, units), dy, y IN (n * rows, 2 units).
        """
        rows, units, scale = sizes.rows, sizes.units, real_of_word(y[0], sizes.scale_bits)
        for k in range(cuda.grid(1), n * rows * units, cuda.gridsize(1)):
            of = 2 * (k // units) * units + k % units
            dz[k] = scale * (dy[of + units] * y[of] - dy[of] * y[of + units])

    @on_device(fourier_tangent, blocks=elements)
    def tangent(y_dot, y, z_dot, n, sizes: FourierSizes):
        """y' = scale (-s z', c z') for y = (c, s).

        y_dot OUT, y IN (n * rows, 2 units), z_dot IN (n * rows, units).
        """
        rows, units, scale = sizes.rows, sizes.units, real_of_word(y[0], sizes.scale_bits)
        for k in range(cuda.grid(1), n * rows * units, cuda.gridsize(1)):
            to = 2 * (k // units) * units + k % units
            y_dot[to], y_dot[to + units] = -scale * y[to + units] * z_dot[k], scale * y[to] * z_dot[k]

    @on_device(fourier_second, blocks=elements)
    def second(dz_dot, dy, dy_dot, y, y_dot, n, sizes: FourierSizes):
        """dz' = scale (e' c + e c' - d' s - d s') for y = (c, s), dy = (d, e).

        dz_dot OUT (n * rows, units), dy, dy_dot, y and y_dot IN (n * rows, 2 units).
        """
        rows, units, scale = sizes.rows, sizes.units, real_of_word(y[0], sizes.scale_bits)
        for k in range(cuda.grid(1), n * rows * units, cuda.gridsize(1)):
            c = 2 * (k // units) * units + k % units
            s = c + units
            of_s, of_c = dy_dot[s] * y[c] + dy[s] * y_dot[c], dy_dot[c] * y[s] + dy[c] * y_dot[s]
            dz_dot[k] = scale * (of_s - of_c)

    @on_device(untrained_weight, blocks=lambda size: grid_size(size))
    def untrained(dw, n, size, w_accumulate, accumulate):
        """dw = 0, unless there is something to add to. dw OUT (size,)."""
        for j in range(cuda.grid(1), size, cuda.gridsize(1)):
            if w_accumulate + accumulate == 0:
                dw[j] = like(dw[j], 0.0)

    return forward, backward, tangent, second, untrained
