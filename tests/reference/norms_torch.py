"""Losses and gradients of normalization layers by PyTorch, in float64: the cases of norms.npz.

Batch normalization runs in training mode; what it leaves in its running statistics, and the output in evaluation mode
that follows from them, are stored beside the rest.
"""

import numpy as np
import torch
import torch.nn.functional as F
from networks_torch import LAYERS, Parameters, generated, layer_dense, run


def run_layernorm(layer, x, parameters):
    size = x.shape[-1:]
    s = parameters.take(*size) if layer.get("scale", True) else None
    b = parameters.take(*size) if layer.get("shift", True) else None
    return F.layer_norm(x, size, s, b, layer.get("epsilon", 1e-5))


def run_rmsnorm(layer, x, parameters):
    size = x.shape[-1:]
    s = parameters.take(*size) if layer.get("scale", True) else None
    return F.rms_norm(x, size, s, layer.get("epsilon", 1e-5))


class Running:
    """The running statistics of the batch normalizations of a network, in order, and whether to use them."""

    def __init__(self):
        self.pairs, self.evaluation, self.position = [], False, 0

    def take(self, size):
        if self.position == len(self.pairs):
            self.pairs.append((torch.zeros(size, dtype=torch.float64), torch.ones(size, dtype=torch.float64)))
        self.position += 1
        return self.pairs[self.position - 1]


def run_batchnorm(layer, x, parameters):
    s, b = parameters.take(x.shape[-1]), parameters.take(x.shape[-1])
    mean, variance = parameters.running.take(x.shape[-1])
    y = F.batch_norm(
        x.movedim(-1, 1),
        mean,
        variance,
        s,
        b,
        not parameters.running.evaluation,
        layer.get("momentum", 0.1),
        layer.get("epsilon", 1e-5),
    )
    return y.movedim(1, -1)


LAYERS |= {"layernorm": run_layernorm, "rmsnorm": run_rmsnorm, "batchnorm": run_batchnorm}


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


def batch_networks():
    """{name: (input shape, layers)} of layers that normalize features over the batch."""
    dense, batch = layer_dense, layer("batchnorm")
    return {
        "batchnorm/alone": ((7,), [batch]),
        "batchnorm/images": ((3, 5, 2), [batch, dense(4)]),
        "batchnorm/wide": ((5,), [dense(35, "tanh"), layer("batchnorm", momentum=0.3, epsilon=1e-3), dense(3)]),
        "batchnorm/twice": ((3,), [dense(5), batch, dense(4, "relu"), batch, dense(2)]),
        "batchnorm/residual": ((5,), [layer("residual", layers=[batch, dense(5, "gelu")]), dense(2)]),
    }


def batch_case(name, network, n):
    """A case of `generated`, with the running statistics it leaves and the output that these give afterwards."""
    Parameters.running = Running()
    description, fields = generated(name, *network, "mse", n, n == 5)
    running = Parameters.running
    fields["state"] = np.concatenate([part.numpy() for pair in running.pairs for part in pair])
    running.evaluation, running.position = True, 0
    parameters = Parameters(None, fields["params"])
    fields["output_in_use"] = run(network[1], torch.tensor(fields["x"]), parameters).detach().numpy()
    return description, fields


def cases():
    """Return {case: (description, arrays)}."""
    result = {}
    for number, (name, network) in enumerate(row_networks().items()):
        for n in (1, 5) if number % 3 == 0 else (5,):
            result[f"{name}/mse/{n}"] = generated(name, *network, "mse", n, n == 5 and number % 2 == 0)
    for name, network in batch_networks().items():
        for n in (1, 5) if name == "batchnorm/images" else (5,):
            result[f"{name}/mse/{n}"] = batch_case(name, network, n)
    return result
