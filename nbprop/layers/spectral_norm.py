"""Spectral normalization (Miyato et al. 2018): W / sigma(W), with the largest singular value by a power iteration.

The layer state keeps u, (units,), the estimate of the singular vector on the outputs' side. Of W (rows, units),

    t = W u / |u|,   sigma = |t|,   and in training, afterwards:   u = W^T t / |t|,

one step of the power iteration a call (algorithm 1; its length never counts). sigma is a function of W for a given u,
whose derivatives are exact: the loss of a call, its gradient and its products with second derivatives belong together
whether or not the iteration has converged. Where it has, sigma and its gradient are those of the singular value.

Backward, with k = sum(dw W) / sigma^3:  dW = dw / sigma - k t (u / |u|)^T.
"""

import math

import numpy as np

from nbprop.layers.reparametrized import Reparametrized
from nbprop.networks.layer import Layer
from nbprop.numerics.partition import share, share_blocks
from nbprop.numerics.reductions import row_dot
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel


@kernel
def spectral_direction(direction, u, n, units):
    """direction = u / |u|. direction OUT, u IN (units,)."""
    length = math.sqrt(row_dot(u, u))
    for j in range(units):
        direction[j] = u[j] / length


@kernel
def spectral_image(t, w, direction, n, rows, units, part, parts):
    """t = W direction. t OUT (rows,), w IN (rows, units), direction IN (units,)."""
    first, last = share(rows, part, parts)
    for r in range(first, last):
        t[r] = row_dot(w[r * units : (r + 1) * units], direction)


@kernel
def spectral_forward(y, w, t, n, rows, units, part, parts):
    """y = W / sigma, sigma = |t|. y OUT, w IN (rows, units), t IN (rows,)."""
    sigma = math.sqrt(row_dot(t, t))
    first, last = share_blocks(rows * units, part, parts)
    for k in range(first, last):
        y[k] = w[k] / sigma


@kernel
def spectral_update(u, w, t, n, rows, units, part, parts):
    """u = W^T t / |t|, one step of the power iteration. u OUT (units,), w IN (rows, units), t IN (rows,)."""
    first, last = share_blocks(units, part, parts)
    sigma, u = math.sqrt(row_dot(t, t)), u[first:last]
    for j in range(u.size):
        u[j] = like(u[j], 0.0)
    for r in range(rows):
        row, factor = w[r * units + first : r * units + last], t[r] / sigma
        for j in range(u.size):
            u[j] += factor * row[j]


@kernel
def spectral_tangent(y_dot, w, w_dot, t, t_dot, n, rows, units, part, parts):
    """y' = W' / sigma - W sigma' / sigma^2, sigma' = t . t' / sigma.

    y_dot OUT, w and w_dot IN (rows, units); t and t_dot IN (rows,).
    """
    sigma = math.sqrt(row_dot(t, t))
    change = row_dot(t, t_dot) / sigma / sigma
    first, last = share_blocks(rows * units, part, parts)
    for k in range(first, last):
        y_dot[k] = (w_dot[k] - w[k] * change) / sigma


@kernel
def spectral_products(sums, dw, w, n, rows, units, part, parts):
    """sums = the sum of dw W over each row. sums OUT (rows,), dw and w IN (rows, units)."""
    first, last = share(rows, part, parts)
    for r in range(first, last):
        here = slice(r * units, (r + 1) * units)
        sums[r] = row_dot(dw[here], w[here])


@kernel
def spectral_backward(dv, dw, sums, t, direction, n, rows, units, v_accumulate, accumulate, part, parts):
    """dv = dw / sigma - k t direction^T, k = sum(sums) / sigma^3; added to where `v_accumulate` or `accumulate` is 1.

    dv OUT, dw IN (rows, units); sums and t IN (rows,); direction IN (units,).
    """
    sigma, total = math.sqrt(row_dot(t, t)), like(t[0], 0.0)
    for r in range(rows):
        total += sums[r]
    k = total / sigma / sigma / sigma
    first, last = share(rows, part, parts)
    for r in range(first, last):
        for j in range(units):
            i = r * units + j
            found = dw[i] / sigma - k * t[r] * direction[j]
            dv[i] = found + (dv[i] if v_accumulate + accumulate > 0 else like(found, 0.0))


@kernel
def spectral_second(
    dv_dot, dw, dw_dot, sums, sums_dot, more_dot, t, t_dot, direction,
    n, rows, units, v_accumulate, accumulate, part, parts,
):  # fmt: skip
    """The tangent of `spectral_backward`: dv' = (dw' - dw sigma' / sigma) / sigma - (k' t + k t') direction^T;
    k' = sum(sums') / sigma^3 - 3 k sigma' / sigma, where sums' are sums_dot + more_dot.

    dv_dot OUT, dw and dw_dot IN (rows, units); sums, sums_dot, more_dot, t and t_dot IN (rows,); direction IN (units,).
    """
    sigma, total, total_dot = math.sqrt(row_dot(t, t)), like(t[0], 0.0), like(t[0], 0.0)
    for r in range(rows):
        total += sums[r]
        total_dot += sums_dot[r] + more_dot[r]
    change, k = row_dot(t, t_dot) / sigma / sigma, total / sigma / sigma / sigma
    k_dot = total_dot / sigma / sigma / sigma - like(k, 3.0) * k * change
    first, last = share(rows, part, parts)
    for r in range(first, last):
        turn = k_dot * t[r] + k * t_dot[r]
        for j in range(units):
            i = r * units + j
            found = (dw_dot[i] - dw[i] * change) / sigma - turn * direction[j]
            dv_dot[i] = found + (dv_dot[i] if v_accumulate + accumulate > 0 else like(found, 0.0))


class SpectralNorm(Reparametrized):
    kind = "spectral_norm"
    modal = True

    def computed(self, weight, own):
        """The weight that the layer inside takes, by NumPy in float64; own: the pieces of layer state by name."""
        u = own["singular_vector"].astype(np.float64)
        sigma = np.linalg.norm(weight.reshape(-1, weight.shape[-1]) @ u) / np.linalg.norm(u)
        return weight / sigma

    def lower_weight(self, build, weight, names, rows, units):
        """Emit the weight over its estimated largest singular value."""
        v, u, sizes = build.parameter(weight), build.state(units, 1.0, name="singular_vector"), (rows, units)
        w, t, direction = build.buffer(rows * units), build.buffer(rows), build.buffer(units)
        build.emit(spectral_direction, (direction,), (u,), (units,))
        build.emit(spectral_image, (t,), (v, direction), sizes)
        build.emit(spectral_forward, (w,), (v, t), sizes)
        if build.mode == "training":
            build.emit(spectral_update, (u,), (v, t), sizes)
        if build.with_tangents:
            v_dot, t_dot, w_dot = build.direction(weight), build.buffer(rows), build.new_tangent(w)
            build.emit(spectral_image, (t_dot,), (v_dot, direction), sizes)
            build.emit(spectral_tangent, (w_dot,), (v, v_dot, t, t_dot), sizes)

        def products(a, b):
            sums = build.buffer(rows)
            build.emit(spectral_products, (sums,), (a, b), sizes)
            return sums

        def rule(dw):
            sums, (dv, v_accumulate) = products(dw, v), build.parameter_gradient(weight)
            build.emit(spectral_backward, (dv,), (dw, sums, t, direction), (*sizes, v_accumulate))
            if build.with_tangents:
                dw_dot, (dv, v_accumulate) = build.tangent(dw), build.parameter_tangent(weight)
                reads = (dw, dw_dot, sums, products(dw_dot, v), products(dw, v_dot), t, t_dot, direction)
                build.emit(spectral_second, (dv,), reads, (*sizes, v_accumulate))

        build.derive(weight, w, rule)


def spectral_norm(layer: Layer) -> Layer:
    """A layer whose weight is divided by its largest singular value, so that it stretches no input.

    Parameters
    ----------
    layer : a `dense`, `conv1d` or `conv2d`
        Its weight, without the bias, is seen as a matrix (rows, units) with a column for each unit or filter.

    The singular value is estimated by a power iteration, of which each call of a plan for training takes one step: its
    vector is in the layer state (`nbprop.layer_state`), which `fit` updates and `save` keeps. After some tens of steps
    of training, the estimate follows the weight. Derivatives are exact for the vector of the call. Source: Miyato et
    al. 2018, algorithm 1; PyTorch's ``parametrizations.spectral_norm``.

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((3,), nbprop.spectral_norm(nbprop.dense(2)))
    >>> plan = nbprop.plan(net, batch=1)
    >>> state = nbprop.layer_state(plan)
    >>> state
    array([1., 1.])
    """
    return SpectralNorm(layer)
