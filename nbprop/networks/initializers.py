"""Initial weights, drawn from the counter-based generator: the same on every machine and for every dtype.

With fan_in inputs and fan_out outputs, the standard deviation is sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010,
equation 16), sqrt(2 / fan_in) (He et al. 2015, equation 10) or sqrt(1 / fan_in) (LeCun et al. 1998, section 4.6);
uniform draws span sqrt(3) of it to each side. Orthogonal: Saxe et al. 2014. "normal" has a standard deviation of 1,
"small_normal" of 0.02 (Radford et al. 2018, section 4.1).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nbprop.networks.layer import INITIALIZERS, Layer, Parameter
from nbprop.networks.network import Network, views
from nbprop.numerics.random import fill_normal, fill_uniform
from nbprop.validation import as_dtype, check_seed


def init(net: Network, seed: int = 0, dtype: DTypeLike = np.float64) -> NDArray[Any]:
    """New parameters for a network: (net.n_params,) of `dtype`.

    Each named weight is keyed by `seed` and its position in the network; the float32 draw is the float64 one rounded.
    Raises ValueError for a negative seed or another dtype.

    >>> import nbprop
    >>> nbprop.init(nbprop.network((2,), nbprop.dense(3)), seed=1).shape
    (9,)
    """
    if not isinstance(net, Network):
        raise TypeError(f"init: net must be what nbprop.network(...) returns, got {type(net).__name__}")
    seed, dtype = check_seed("init: seed", seed), as_dtype(dtype)
    params = np.empty(net.n_params, np.float64)
    for index, slot in enumerate(net.slots.values()):
        draw(params[slot.offset : slot.stop], slot.parameter, seed, index)
    dependent = [node for node in net.nodes if type(node[1]).set_initial is not Layer.set_initial]
    if dependent:
        parts = views(net, params)
        for path, layer in dependent:
            own = {name.removeprefix(f"{path}."): parts[name] for name in net.parameter_names[path]}
            layer.set_initial(own, {name: part for name, part in parts.items() if name.startswith(f"{path}.")})
    return params.astype(dtype, copy=False)


def draw(out, parameter, seed, stream, start=0):
    """Fill `out` (parameter.size,) float64 with a parameter's initial values, from position `start` of the stream."""
    if isinstance(parameter.init, tuple):
        *others, width = parameter.shape
        shape = (*others, width // len(parameter.init))
        whole, block = out.reshape(-1, width), np.empty(math.prod(shape))
        for k, init in enumerate(parameter.init):
            draw(block, Parameter(parameter.name, shape, init), seed, stream, k * block.size)
            whole[:, k * shape[-1] : (k + 1) * shape[-1]] = block.reshape(-1, shape[-1])
        return
    if isinstance(parameter.init, float):
        out[:] = parameter.init
        return
    spread, distribution = INITIALIZERS[parameter.init]
    if distribution in ("zeros", "ones"):
        out[:] = distribution == "ones"
        return
    *receptive, fan_in, fan_out = parameter.shape
    area = math.prod(receptive)
    fan_in, fan_out = fan_in * area, fan_out * area
    variance = {"average": 2 / (fan_in + fan_out), "he": 2 / fan_in, "in": 1 / fan_in, "small": 4e-4, "": 1.0}[spread]
    if distribution == "uniform":
        fill_uniform(out, seed, stream, start)
        out[:] = (2 * out - 1) * math.sqrt(3 * variance)
        return
    fill_normal(out, seed, stream, start)
    if distribution == "normal":
        out *= math.sqrt(variance)
        return
    rows, columns = out.size // parameter.shape[-1], parameter.shape[-1]
    tall = out.reshape(rows, columns) if rows >= columns else out.reshape(columns, rows)
    q, r = np.linalg.qr(tall)
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)
    out[:] = (q if rows >= columns else q.T).ravel()
