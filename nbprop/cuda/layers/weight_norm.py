"""The device kernels of weight normalization; equations and arrays are those of nbprop/layers/weight_norm.py."""

from nbprop.cuda.functions import sqrt
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.weight_norm import (
    weight_norm_along,
    weight_norm_backward,
    weight_norm_forward,
    weight_norm_second,
    weight_norm_tangent,
)
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: one thread per column, whose neighbours read neighbouring elements of each row."""

    def columns(units):
        return grid_size(units)

    @on_device(weight_norm_forward, blocks=columns)
    def forward(w, norms, v, g, n, rows, units):
        """w = g v / |v|, norms = |v|, of each column. w OUT, v IN (rows, units); norms OUT, g IN (units,)."""
        for j in range(cuda.grid(1), units, cuda.gridsize(1)):
            total = like(v[0], 0.0)
            for k in range(j, rows * units, units):
                total += v[k] * v[k]
            norms[j] = sqrt(total)
            a = g[j] / norms[j]
            for k in range(j, rows * units, units):
                w[k] = a * v[k]

    @on_device(weight_norm_along, blocks=columns)
    def projection(along, dw, v, norms, n, rows, units):
        """along = d = dw . v / |v|, of each column. along OUT, norms IN (units,); dw and v IN (rows, units)."""
        for j in range(cuda.grid(1), units, cuda.gridsize(1)):
            total = like(v[0], 0.0)
            for k in range(j, rows * units, units):
                total += dw[k] * v[k]
            along[j] = total / norms[j]

    @on_device(weight_norm_backward, blocks=columns)
    def backward(dv, dg, along, dw, v, norms, g, n, rows, units, v_accumulate, g_accumulate, accumulate):
        """dg = d;  dv = a (dw - v d / |v|) with a = g / |v|, of each column.

        dv OUT, dw and v IN (rows, units); dg OUT, along, norms and g IN (units,), along is d.
        """
        for j in range(cuda.grid(1), units, cuda.gridsize(1)):
            a, share = g[j] / norms[j], along[j] / norms[j]
            dg[j] = along[j] + (dg[j] if g_accumulate + accumulate > 0 else like(share, 0.0))
            for k in range(j, rows * units, units):
                found = a * (dw[k] - v[k] * share)
                dv[k] = found + (dv[k] if v_accumulate + accumulate > 0 else like(found, 0.0))

    @on_device(weight_norm_tangent, blocks=columns)
    def tangent(w_dot, norms_dot, v, v_dot, norms, g, g_dot, n, rows, units):
        """|v|' = v . v' / |v|;  w' = a v' + a' v with a = g / |v|, a' = (g' - a |v|') / |v|, of each column.

        w_dot OUT, v and v_dot IN (rows, units); norms_dot OUT, norms, g and g_dot IN (units,).
        """
        for j in range(cuda.grid(1), units, cuda.gridsize(1)):
            total = like(v[0], 0.0)
            for k in range(j, rows * units, units):
                total += v[k] * v_dot[k]
            norms_dot[j] = total / norms[j]
            a = g[j] / norms[j]
            a_dot = (g_dot[j] - a * norms_dot[j]) / norms[j]
            for k in range(j, rows * units, units):
                w_dot[k] = a * v_dot[k] + a_dot * v[k]

    @on_device(weight_norm_second, blocks=columns)
    def second(
        dv_dot, dg_dot, dw, dw_dot, v, v_dot, norms, norms_dot, g, g_dot, along,
        n, rows, units, v_accumulate, g_accumulate, accumulate,
    ):  # fmt: skip
        """dg' = d' = (dw' . v + dw . v' - d |v|') / |v|;  dv' = a' dw + a dw' - b' v - b v' with b = a d / |v|,
        b' = (a' d + a d' - b |v|') / |v|.

        dv_dot OUT, dw, dw_dot, v and v_dot IN (rows, units); dg_dot OUT, norms, norms_dot, g, g_dot and along IN
        (units,).
        """
        for j in range(cuda.grid(1), units, cuda.gridsize(1)):
            total, length, change = like(v[0], 0.0), norms[j], norms_dot[j]
            for k in range(j, rows * units, units):
                total += dw_dot[k] * v[k] + dw[k] * v_dot[k]
            turn = (total - along[j] * change) / length
            dg_dot[j] = turn + (dg_dot[j] if g_accumulate + accumulate > 0 else like(turn, 0.0))
            a = g[j] / length
            a_dot = (g_dot[j] - a * change) / length
            b = a * along[j] / length
            b_dot = (a_dot * along[j] + a * turn - b * change) / length
            for k in range(j, rows * units, units):
                found = a_dot * dw[k] + a * dw_dot[k] - b_dot * v[k] - b * v_dot[k]
                dv_dot[k] = found + (dv_dot[k] if v_accumulate + accumulate > 0 else like(found, 0.0))

    return forward, projection, backward, tangent, second
