"""`bounds`: within which limits a network's outputs lie, for all inputs of a box, and how far rounding moves them."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from nbprop.analysis.enclosures import Enclosure
from nbprop.arrays import check_array, check_kinds
from nbprop.layers.pool import Pools
from nbprop.lowering.programs import state_layout
from nbprop.networks.network import Network, check_flat, views

_PADS: dict[str, Any] = {
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}  # NumPy's names
_MOST = 2**28  # numbers of an affine form: 2 GB


class Bounds(NamedTuple):
    """What `bounds` returns: arrays of the output's shape, in float64.

    low, high : the exact outputs for every x of the box lie within them
    rounding : how far an output that nbprop or its exported C computes may lie from the exact one, in the parameters'
        dtype

    >>> import nbprop, numpy as np
    >>> net, edge = nbprop.network((1,), nbprop.dense(1)), np.array([1.0])
    >>> found = nbprop.bounds(net, np.array([2.0, 0.0]), -edge, edge)
    >>> bool(found.low[0] <= -2 and 2 <= found.high[0]), bool(found.rounding[0] < 1e-14)
    (True, True)
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    rounding: NDArray[np.float64]


def bounds(
    net: Network,
    params: NDArray[Any],
    low: NDArray[Any],
    high: NDArray[Any],
    state: NDArray[Any] | None = None,
) -> Bounds:
    """Rigorous bounds of a network's outputs over a box of inputs, in use (dropout passes through).

    Parameters
    ----------
    net : Network
        Of dense and convolutional layers, pools, activations, scaling, batch normalization, reshapes, residual blocks
        and concatenations.
    params : (net.n_params,) float32 or float64 array
        Its dtype is that of the computation whose rounding is bounded.
    low, high : (*net.input_shape) float32 or float64 arrays
        The box: every x with low <= x <= high, in every element.
    state : array of `layer_state`'s layout, of the dtype of params, or None
        Running statistics, where the network has some.

    Returns
    -------
    Bounds : (low, high, rounding), of the output's shape. An exact output lies in [low, high], a computed one in
        [low - rounding, high + rounding]; rounding is infinite where a number may overflow.

    The bounds are proven, not sampled: each step's own rounding is added to them. They are exact to rounding for linear
    networks, and wider the more activations a large box bends. Time and memory are those of a batch with a sample for
    each input.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, a box that is empty, numbers that are not finite, and layers that have no
        bounds, by name.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((2,), nbprop.dense(1))
    >>> found = nbprop.bounds(net, np.array([1.0, -2.0, 0.5]), np.array([-1.0, 0.0]), np.array([1.0, 1.0]))
    >>> np.round([found.low, found.high], 12)
    array([[-2.5],
           [ 1.5]])
    """
    if not isinstance(net, Network):
        raise TypeError(f"bounds: net must be what nbprop.network(...) returns, got {type(net).__name__}")
    params = check_flat("bounds: params", params, net.n_params)
    check_kinds("bounds: params", params, (np.float32, np.float64))
    low, high = (
        check_array(f"bounds: {name}", array, net.input_shape, (np.float32, np.float64))
        for name, array in (("low", low), ("high", high))
    )
    for name, array in zip(("params", "low", "high"), (params, low, high), strict=True):
        if not np.isfinite(array).all():
            raise ValueError(f"bounds: {name} must be finite")
    if net.layers[0].index_limit:
        raise ValueError("bounds: low and high are numbers, but x holds integers here; leave the embedding out")
    above = np.flatnonzero(low.ravel() > high.ravel())
    if above.size:
        raise ValueError(f"bounds: low must not be above high, got it at element {above[0]}")
    if math.prod(net.input_shape) * max(map(math.prod, net.shapes)) > _MOST:
        raise ValueError("bounds: net takes more than 2 GB of generators; bound a smaller part of it")
    walk = _Walk(net, params, _statistics(net, state, params.dtype))
    found = walk.chain(net.layers, Enclosure.of_box(low, high, params.dtype), "")
    return Bounds(found.low, found.high, found.rounding)


def _statistics(net, state, dtype):
    layout, _ = state_layout(net)
    if not layout:
        if state is not None:
            raise ValueError("bounds: state is for networks with running statistics; leave it out")
        return {}
    if state is None:
        raise ValueError("bounds: the network has running statistics; give state, which training has updated")
    state = check_flat("bounds: state", state, max(offset + size for offset, size in layout.values()))
    check_kinds("bounds: state", state, dtype)
    return {name: state[offset : offset + size].astype(np.float64) for name, (offset, size) in layout.items()}


class _Walk:
    """Enclosures through the layers of a network."""

    def __init__(self, net, params, statistics):
        self.net, self.statistics = net, statistics
        self.parts = {name: part.astype(np.float64) for name, part in views(net, params).items()}

    def chain(self, layers, x, prefix):
        for index, layer in enumerate(layers):
            path = f"{prefix}{index}.{layer.kind}"
            through = _LAYERS.get(layer.kind)
            if through is None:
                raise ValueError(f"bounds: net has layer {path}, which has no bounds")
            try:
                x = through(self, x, layer, path)
            except ValueError as error:
                raise (
                    error if str(error).startswith("bounds") else ValueError(f"bounds: net: {path}: {error}")
                ) from None
        return x


def _activated(x, name):
    return x.softmaxed() if name == "softmax" else x.activated(name)


def _activation(walk, x, layer, path):
    return _activated(x, layer.name)


def _dense(walk, x, layer, path):
    weight, bias = layer._paths(path)
    w = walk.parts[weight].T if layer._transposed else walk.parts[weight]
    magnitude = np.abs(w)
    y = x.linear(lambda v: v @ w, lambda v: v @ magnitude, len(w), walk.parts[bias] if bias else 0.0)
    return _activated(y, layer.activation)


def _conv(walk, x, layer, path):
    axes, shape = layer.axes, x.shape
    borders = layer._borders(*(1, *shape)[-3:-1])
    settings = [layer._pair(name) for name in ("stride", "dilation")]
    weight = walk.parts[f"{path}.weight"]
    weight = weight.reshape((1,) * (2 - axes) + weight.shape)
    out = layer.output_shape(shape)

    def apply(v, w=weight):
        v = v.reshape(len(v), *(1, *shape)[-3:])
        padded = np.pad(v, ((0, 0), *borders, (0, 0)), mode=_PADS[layer.padding_mode])
        windows = _windows(padded, w.shape[:2], *settings)
        channels, filters = w.shape[2], w.shape[3] // layer.groups
        parts = []
        for group in range(layer.groups):
            taken = windows[..., group * channels : (group + 1) * channels, :, :]
            columns = w[..., group * filters : (group + 1) * filters]
            parts.append(np.einsum("nhwcij,ijcf->nhwf", taken, columns, optimize=True))
        return np.concatenate(parts, axis=-1).reshape(len(v), *out)

    magnitude = np.abs(weight)
    bias = walk.parts[f"{path}.bias"] if layer.bias else 0.0
    y = x.linear(apply, lambda v: apply(v, magnitude), math.prod(weight.shape[:3]), bias)
    return _activated(y, layer.activation)


def _windows(v, kernel, strides, dilations):
    """(n, out_h, out_w, channels, kernel_h, kernel_w) of padded images."""
    reach = [dilation * (size - 1) + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    found = sliding_window_view(v, reach, axis=(1, 2))
    return found[:, :: strides[0], :: strides[1], :, :: dilations[0], :: dilations[1]]


def _pool_windows(v, pools, fill):
    v = v.reshape(len(v), pools.height, pools.width, pools.channels)
    padding = (0, 0), (pools.top,) * 2, (pools.left,) * 2, (0, 0)
    return _windows(np.pad(v, padding, constant_values=fill), pools[3:5], (pools.stride_h, pools.stride_w), (1, 1))


def _pool(walk, x, layer, path):
    return _pooled(x, layer.pools(x.shape), layer.output_shape(x.shape), layer.largest)


def _global_pool(walk, x, layer, path):
    height, width, channels = (1, *x.shape)[-3:]
    pools = Pools(height, width, channels, height, width, height, width, 0, 0, 1, 1)
    return _pooled(x, pools, (channels,), layer.largest)


def _pooled(x, pools, shape, largest):
    size = pools.kernel_h * pools.kernel_w

    def mean(v):
        return _pool_windows(v, pools, 0.0).sum(axis=(-1, -2)).reshape(len(v), *shape) / size

    if not largest:
        return x.linear(mean, mean, size + 1)
    low, high, rounding = (
        _pool_windows(array[None], pools, fill).max(axis=(-1, -2)).reshape(shape)
        for array, fill in ((x.low, -np.inf), (x.high, -np.inf), (x.rounding, 0.0))
    )
    return x.forgotten(low, high, rounding)


def _residual(walk, x, layer, path):
    return x.plus(walk.chain(layer.layers, x, f"{path}."))


def _concat(walk, x, layer, path):
    first, *others = (walk.chain(branch, x, f"{path}.{k}.") for k, branch in enumerate(layer.branches))
    return first.joined(others)


def _reshape(walk, x, layer, path):
    shape = layer.output_shape(x.shape)
    return x.moved(lambda v: v.reshape(len(v), *shape))


def _slicing(walk, x, layer, path):
    return x.moved(lambda v: v[..., layer.start : layer.stop])


def _dropout(walk, x, layer, path):
    return x


def _standardize(walk, x, layer, path):
    mean, std = walk.parts[f"{path}.mean"], walk.parts[f"{path}.std"]
    if not std.all():
        raise ValueError(f"bounds: params: layer {path} divides by a std of 0")
    return x.linear(lambda v: v / std, lambda v: v / np.abs(std), 4, -mean / std)


def _rescale(walk, x, layer, path):
    mean, std = walk.parts[f"{path}.mean"], walk.parts[f"{path}.std"]
    return x.linear(lambda v: v * std, lambda v: v * np.abs(std), 2, mean)


def _batchnorm(walk, x, layer, path):
    mean, variance = (walk.statistics[f"{path}.{name}"] for name in ("running_mean", "running_variance"))
    factor = walk.parts[f"{path}.scale"] / np.sqrt(variance + layer.epsilon)
    # (x - m) r s + b: what the difference loses counts with m.
    y = x.linear(lambda v: v * factor, lambda v: v * np.abs(factor), 12, -mean * factor)
    return y.linear(lambda v: v, lambda v: v, 2, walk.parts[f"{path}.shift"])


_LAYERS = {
    "activation": _activation,
    "avg_pool1d": _pool,
    "avg_pool2d": _pool,
    "batchnorm": _batchnorm,
    "concat": _concat,
    "conv1d": _conv,
    "conv2d": _conv,
    "dense": _dense,
    "dropout": _dropout,
    "flatten": _reshape,
    "global_avg_pool": _global_pool,
    "global_max_pool": _global_pool,
    "max_pool1d": _pool,
    "max_pool2d": _pool,
    "rescale": _rescale,
    "reshape": _reshape,
    "residual": _residual,
    "slicing": _slicing,
    "standardize": _standardize,
}
