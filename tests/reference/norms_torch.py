"""Losses and gradients of normalization layers by PyTorch, in float64: the cases of norms.npz.

Batch normalization runs in training mode; what it leaves in its running statistics, and the output in evaluation mode
that follows from them, are stored beside the rest.
"""

import torch.nn.functional as F
from networks_torch import LAYERS, generated, layer_dense


def run_layernorm(layer, x, parameters):
    size = x.shape[-1:]
    s = parameters.take(*size) if layer.get("scale", True) else None
    b = parameters.take(*size) if layer.get("shift", True) else None
    return F.layer_norm(x, size, s, b, layer.get("epsilon", 1e-5))


def run_rmsnorm(layer, x, parameters):
    size = x.shape[-1:]
    s = parameters.take(*size) if layer.get("scale", True) else None
    return F.rms_norm(x, size, s, layer.get("epsilon", 1e-5))


LAYERS |= {"layernorm": run_layernorm, "rmsnorm": run_rmsnorm}


def layer(kind, **options):
    return {"type": kind, **options}


def row_networks():
    """{name: (input shape, layers)} of layers that normalize rows."""
    dense = layer_dense
    return {
        "layernorm/alone": ((7,), [layer("layernorm")]),
        "layernorm/one_feature": ((1,), [layer("layernorm"), dense(2)]),
        "layernorm/wide": ((67,), [layer("layernorm", epsilon=1e-3), dense(3)]),
        "layernorm/positions": ((3, 5), [dense(9, "tanh"), layer("layernorm"), dense(4)]),
        "layernorm/scale": ((5,), [dense(7), layer("layernorm", shift=False), dense(2)]),
        "layernorm/shift": ((5,), [dense(7), layer("layernorm", scale=False), dense(2)]),
        "layernorm/plain": ((5,), [dense(7), layer("layernorm", scale=False, shift=False), dense(2)]),
        "layernorm/residual": ((5,), [layer("residual", layers=[layer("layernorm"), dense(5, "gelu")]), dense(2)]),
        "rmsnorm/alone": ((7,), [layer("rmsnorm")]),
        "rmsnorm/wide": ((67,), [layer("rmsnorm", epsilon=1e-3), dense(3)]),
        "rmsnorm/positions": ((3, 5), [dense(9, "tanh"), layer("rmsnorm"), dense(4)]),
        "rmsnorm/plain": ((5,), [dense(7), layer("rmsnorm", scale=False), dense(2)]),
    }


def cases():
    """Return {case: (description, arrays)}."""
    result = {}
    for number, (name, network) in enumerate(row_networks().items()):
        for n in (1, 5) if number % 3 == 0 else (5,):
            result[f"{name}/mse/{n}"] = generated(name, *network, "mse", n, n == 5 and number % 2 == 0)
    return result
