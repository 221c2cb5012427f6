"""Weight normalization (Salimans and Kingma 2016, equation 2): w_j = g_j v_j / |v_j| for the weights of each unit j.

The parameters are the length g_j and the direction v_j, (rows, units) with a column for each unit.

Backward (equation 3), with a_j = g_j / |v_j|:  dg_j = d_j = dw_j . v_j / |v_j|;  dv_j = a_j (dw_j - v_j d_j / |v_j|).
"""

import math

import numpy as np

from nbprop.compiler.jit import njit
from nbprop.layers.reparametrized import Reparametrized
from nbprop.networks.layer import Layer, Parameter
from nbprop.numerics.partition import share_blocks
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel


@njit
def _add_products(sums, a, b, first, last, rows, units):
    """sums[j] += sum of a b over the rows, in order, of columns first..last. a and b IN (rows, units)."""
    sums = sums[first:last]
    for r in range(rows):
        a_row, b_row = a[r * units + first : r * units + last], b[r * units + first : r * units + last]
        for j in range(sums.size):
            sums[j] += a_row[j] * b_row[j]


@njit
def _clear(x):
    for j in range(x.size):
        x[j] = like(x[j], 0.0)


@kernel
def weight_norm_forward(w, norms, v, g, n, rows, units, part, parts):
    """w = g v / |v|, norms = |v|, of each column.

    w OUT, v IN (rows, units); norms OUT, g IN (units,). Threads share the columns: each sum keeps one order.
    """
    first, last = share_blocks(units, part, parts)
    _clear(norms[first:last])
    _add_products(norms, v, v, first, last, rows, units)
    for j in range(first, last):
        norms[j] = math.sqrt(norms[j])
    for r in range(rows):
        for j in range(first, last):
            w[r * units + j] = g[j] / norms[j] * v[r * units + j]


@kernel
def weight_norm_tangent(w_dot, norms_dot, v, v_dot, norms, g, g_dot, n, rows, units, part, parts):
    """|v|' = v . v' / |v|;  w' = a v' + a' v with a = g / |v|, a' = (g' - a |v|') / |v|, of each column.

    w_dot OUT, v and v_dot IN (rows, units); norms_dot OUT, norms, g and g_dot IN (units,).
    """
    first, last = share_blocks(units, part, parts)
    _clear(norms_dot[first:last])
    _add_products(norms_dot, v, v_dot, first, last, rows, units)
    for j in range(first, last):
        norms_dot[j] /= norms[j]
    for r in range(rows):
        for j in range(first, last):
            a = g[j] / norms[j]
            a_dot = (g_dot[j] - a * norms_dot[j]) / norms[j]
            w_dot[r * units + j] = a * v_dot[r * units + j] + a_dot * v[r * units + j]


@kernel
def weight_norm_along(along, dw, v, norms, n, rows, units, part, parts):
    """along = d = dw . v / |v|, of each column. along OUT, norms IN (units,); dw and v IN (rows, units)."""
    first, last = share_blocks(units, part, parts)
    _clear(along[first:last])
    _add_products(along, dw, v, first, last, rows, units)
    for j in range(first, last):
        along[j] /= norms[j]


@kernel
def weight_norm_backward(
    dv, dg, along, dw, v, norms, g, n, rows, units, v_accumulate, g_accumulate, accumulate, part, parts
):
    """dg = d;  dv = a (dw - v d / |v|) with a = g / |v|, of each column.

    dv OUT, dw and v IN (rows, units); dg OUT, along, norms and g IN (units,), along is d. dv is added to where
    `v_accumulate` or `accumulate` is 1, dg where `g_accumulate` or `accumulate` is.
    """
    first, last = share_blocks(units, part, parts)
    for j in range(first, last):
        dg[j] = along[j] + (dg[j] if g_accumulate + accumulate > 0 else like(along[j], 0.0))
    for r in range(rows):
        for j in range(first, last):
            k = r * units + j
            found = g[j] / norms[j] * (dw[k] - v[k] * (along[j] / norms[j]))
            dv[k] = found + (dv[k] if v_accumulate + accumulate > 0 else like(found, 0.0))


@kernel
def weight_norm_second(
    dv_dot, dg_dot, turn, dw, dw_dot, v, v_dot, norms, norms_dot, g, g_dot, along,
    n, rows, units, v_accumulate, g_accumulate, accumulate, part, parts,
):  # fmt: skip
    """The tangent of `weight_norm_backward`: turn = d' = (dw' . v + dw . v' - d |v|') / |v|;  dg' = d';
    dv' = a' dw + a dw' - b' v - b v' with b = a d / |v|, b' = (a' d + a d' - b |v|') / |v|.

    dv_dot OUT, dw, dw_dot, v and v_dot IN (rows, units); dg_dot and turn OUT, norms, norms_dot, g, g_dot and along IN
    (units,).
    """
    first, last = share_blocks(units, part, parts)
    _clear(turn[first:last])
    _add_products(turn, dw_dot, v, first, last, rows, units)
    _add_products(turn, dw, v_dot, first, last, rows, units)
    for j in range(first, last):
        turn[j] = (turn[j] - along[j] * norms_dot[j]) / norms[j]
        dg_dot[j] = turn[j] + (dg_dot[j] if g_accumulate + accumulate > 0 else like(turn[j], 0.0))
    for r in range(rows):
        for j in range(first, last):
            k = r * units + j
            a = g[j] / norms[j]
            a_dot = (g_dot[j] - a * norms_dot[j]) / norms[j]
            b = a * along[j] / norms[j]
            b_dot = (a_dot * along[j] + a * turn[j] - b * norms_dot[j]) / norms[j]
            found = a_dot * dw[k] + a * dw_dot[k] - b_dot * v[k] - b * v_dot[k]
            dv_dot[k] = found + (dv_dot[k] if v_accumulate + accumulate > 0 else like(found, 0.0))


class WeightNorm(Reparametrized):
    kind = "weight_norm"

    def parameters(self, input_shape):
        return (Parameter("scale", self.weight(input_shape).shape[-1:], "ones"),)

    def set_initial(self, own, parts):
        """Begin with the lengths of the directions, so that the weight is what the layer inside would begin with."""
        (weight,) = (part for name, part in parts.items() if name.endswith(".weight"))
        own["scale"][:] = np.linalg.norm(weight.reshape(-1, weight.shape[-1]), axis=0)

    def computed(self, weight, own):
        """The weight that the layer inside takes, by NumPy in float64; own: the layer's parameters by name."""
        columns = weight.reshape(-1, weight.shape[-1]).astype(np.float64)
        return (own["scale"] / np.linalg.norm(columns, axis=0) * columns).reshape(weight.shape)

    def lower_weight(self, build, weight, names, rows, units):
        """Emit the weight in the place of its direction."""
        (scale,) = names
        v, g, sizes = build.parameter(weight), build.parameter(scale), (rows, units)
        w, norms = build.buffer(rows * units), build.buffer(units)
        build.emit(weight_norm_forward, (w, norms), (v, g), sizes)
        if build.with_tangents:
            v_dot, g_dot = build.direction(weight), build.direction(scale)
            w_dot, norms_dot = build.new_tangent(w), build.buffer(units)
            build.emit(weight_norm_tangent, (w_dot, norms_dot), (v, v_dot, norms, g, g_dot), sizes)

        def rule(dw):
            (dv, v_accumulate), (dg, g_accumulate) = build.parameter_gradient(weight), build.parameter_gradient(scale)
            along, given = build.buffer(units), (*sizes, v_accumulate, g_accumulate)
            build.emit(weight_norm_along, (along,), (dw, v, norms), sizes)
            build.emit(weight_norm_backward, (dv, dg), (along, dw, v, norms, g), given)
            if build.with_tangents:
                (dv, v_accumulate), (dg, g_accumulate) = build.parameter_tangent(weight), build.parameter_tangent(scale)
                reads = (dw, build.tangent(dw), v, v_dot, norms, norms_dot, g, g_dot, along)
                given = (*sizes, v_accumulate, g_accumulate)
                build.emit(weight_norm_second, (dv, dg, build.buffer(units)), reads, given)

        build.derive(weight, w, rule)


def weight_norm(layer: Layer) -> Layer:
    """A layer whose weights are a length times a direction, w = g v / |v| for each output unit or filter.

    Parameters
    ----------
    layer : a `dense`, `conv1d` or `conv2d`
        Its parameter "weight" holds the directions v; another one, "scale" (units,), the lengths g, which begin as |v|:
        at first, the network computes what it would without.

    Penalties, weight decay and masks see v and g. Source: Salimans and Kingma 2016, equations 2 and 3; PyTorch's
    ``parametrizations.weight_norm``.

    >>> import nbprop
    >>> net = nbprop.network((3,), nbprop.weight_norm(nbprop.dense(2, activation="tanh")))
    >>> {name: part.shape for name, part in nbprop.views(net, nbprop.init(net)).items()}
    {'0.weight_norm.scale': (2,), '0.weight_norm.dense.weight': (3, 2), '0.weight_norm.dense.bias': (2,)}
    """
    return WeightNorm(layer)
