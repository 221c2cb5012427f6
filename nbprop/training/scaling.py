"""`fit_scaling`: the numbers of a network's `standardize` and `rescale` layers, from data.

The one way in which mean and standard deviation are taken, in float64 whatever the data: with u a power of two near
half the distance between a feature's smallest and largest value, t = x / u spreads over -2..2, however large or small x
is. With a = mean of t, first about the middle of its values, mean = u (a + mean of (t - a)) and std = u sqrt(mean of
(t - a)^2 - (mean of (t - a))^2): the corrected two-pass algorithm (Chan, Golub and LeVeque 1983). It is the
population's std, over all samples and positions. NaN counts as missing.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbprop.arrays import check_vector
from nbprop.layers.scaling import Rescale, Standardize
from nbprop.lowering.plan import plan
from nbprop.networks.network import Network, positions_that_count, views
from nbprop.runtime.datasets import PIECE, check_column, check_form, check_lengths, check_weights

# Values that differ by no more than so many units in the last place of the parameters' type are one value: the mean
# itself is rounded by half of one, so that a "standardized" feature would be that rounding.
_ULPS = 8


def fit_scaling(
    net: Network,
    params: NDArray[Any],
    x: NDArray[Any],
    target: NDArray[Any] | None = None,
    weights: NDArray[Any] | None = None,
    lengths: NDArray[Any] | None = None,
) -> None:
    """Set the numbers of a network's `standardize` and `rescale` layers from data, in place.

    Parameters
    ----------
    net : Network
        Its first layer a `standardize`, its last a `rescale`, or one of the two
    params : (net.n_params,) float32 or float64 array; the two layers' means and standard deviations are overwritten,
        nothing else
    x : (n, *net.input_shape) array of the same dtype, as measured; may be a np.memmap. NaN is left out
    target : (n, *net.output_shape) array of the same dtype, for a network that ends in `rescale`
    weights : (n,) array of the same dtype, or None
        Sample weights: sums over samples are sums of w times what is summed. A sample of weight 0 is not looked at
    lengths : (n,) integers or None
        How many positions of each sample count: the first axis of x, and of a target over positions. What lies beyond
        is not looked at

    The mean and the population's standard deviation of each feature (the last axis), taken in float64 over samples and
    positions (training/scaling.py says how) and rounded once. A feature that is constant, but for rounding, keeps std
    1, so that it becomes 0; one without any value keeps mean 0 and std 1.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, a network without such layers or with one that data cannot set, infinities.
        Nothing has been written then.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((2,), nbprop.standardize(), nbprop.dense(1), nbprop.rescale())
    >>> params, x = nbprop.init(net), np.array([[1.0, 50.0], [3.0, 50.0]])
    >>> nbprop.fit_scaling(net, params, x, 1000 * x[:, :1])
    >>> nbprop.views(net, params)["0.standardize.mean"], nbprop.views(net, params)["2.rescale.std"]
    (array([ 2., 50.]), array([1000.]))
    """
    if not isinstance(net, Network):
        raise TypeError(f"fit_scaling: net must be what nbprop.network(...) returns, got {type(net).__name__}")
    params = check_vector("fit_scaling: params", params, net.n_params, (np.float32, np.float64), True)
    data, n = {}, None
    for path in _scaling_layers(net):
        first = path == "0.standardize"
        name, array, shape = ("x", x, net.input_shape) if first else ("target", target, net.output_shape)
        if array is None:
            raise TypeError(f"fit_scaling: {name} is needed to set layer {path}, got None")
        array = check_form("fit_scaling", name, array, n, shape, params.dtype, None)
        data[path], n = (name, array), len(array)
    if weights is not None:
        weights = check_column("fit_scaling", "weights", weights, n, (), params.dtype)
        check_weights("fit_scaling: weights", weights)
    if lengths is not None:
        lengths = check_lengths("fit_scaling", "lengths", plan(net, dtype=params.dtype), lengths, n)
    found = {}
    for path, (name, array) in data.items():
        cut = lengths is not None and positions_that_count(net.max_length, array.shape[1:]) > 1
        found[path] = _mean_and_std(name, array, weights, lengths if cut else None)
    parts = views(net, params)
    for path, (mean, std) in found.items():
        parts[f"{path}.mean"][:], parts[f"{path}.std"][:] = mean, std


def _scaling_layers(net):
    """The path of a `standardize` in front, of a `rescale` at the end."""
    paths = [path for path, layer in net.nodes if isinstance(layer, (Standardize, Rescale))]
    if not paths:
        raise ValueError(
            "fit_scaling: the network has no scaling; put nbprop.standardize() first, nbprop.rescale() last"
        )
    settable = {"0.standardize", f"{len(net.layers) - 1}.rescale"}
    for path in paths:
        if path not in settable:
            raise ValueError(
                f"fit_scaling: layer {path} sees neither x nor the target, so that data cannot set it; standardize "
                "belongs first, rescale last"
            )
    return paths


def _mean_and_std(name, data, weights, lengths):
    """(mean, std) of each feature, of the data's dtype."""
    features, each = data.shape[-1], max(1, PIECE // (8 * data[0].size))

    def pieces():
        """The data as (rows, features) float64 with weights, a piece at a time; what does not count is NaN."""
        for start in range(0, len(data), each):
            piece = data[start : start + each].astype(np.float64)
            w = np.ones(len(piece)) if weights is None else weights[start : start + each].astype(np.float64)
            piece[w == 0] = np.nan
            if lengths is not None:
                piece[np.arange(piece.shape[1]) >= lengths[start : start + each, None]] = np.nan
            rows = piece.reshape(-1, features)
            yield rows, np.repeat(w, len(rows) // len(w))[:, None]

    low, high, weight_sum = np.full(features, np.inf), np.full(features, -np.inf), np.zeros(features)
    for piece, w in pieces():
        low, high = np.fmin(low, np.fmin.reduce(piece)), np.fmax(high, np.fmax.reduce(piece))
        weight_sum += np.where(np.isnan(piece), 0.0, w).sum(axis=0)
    low[weight_sum == 0] = high[weight_sum == 0] = 0.0
    infinite = np.flatnonzero(np.isinf(low) | np.isinf(high))
    if infinite.size:
        raise ValueError(f"fit_scaling: {name} holds infinity in feature {infinite[0]}; leave such samples out")
    center, half = low / 2 + high / 2, high / 2 - low / 2
    constant = half <= _ULPS / 2 * np.finfo(data.dtype).eps * np.maximum(np.abs(low), np.abs(high))
    unit = np.exp2(np.floor(np.log2(half, where=half > 0, out=np.zeros(features))))

    def mean_of(made):
        """The mean over the rows of what `made` makes of t."""
        return sum(np.nansum(w * made(piece / unit), axis=0) for piece, w in pieces()) / np.where(
            weight_sum == 0, 1, weight_sum
        )

    about = center / unit
    about = about + mean_of(lambda t: t - about)
    rest = mean_of(lambda t: t - about)
    std = unit * np.sqrt(mean_of(lambda t: (t - about) ** 2) - rest * rest)
    mean, std = (unit * (about + rest)).astype(data.dtype), std.astype(data.dtype)
    std[constant | (std == 0)] = 1
    return mean, std
