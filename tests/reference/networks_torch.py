"""Losses and gradients of small networks by PyTorch, in float64: the cases of networks.npz."""

import zlib

import numpy as np
import torch
import torch.nn.functional as F

ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": torch.relu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.01),
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    # PyTorch returns z itself above its threshold; 50 is past the last bit of a float64.
    "softplus": lambda z: F.softplus(z, threshold=50),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": lambda z: torch.softmax(z, dim=-1),
    "mish": F.mish,
    "selu": F.selu,
    # PyTorch's own hardsigmoid has 1 / 6 in float32 in its backward pass, in float64 too.
    "hard_sigmoid": lambda z: F.relu6(z + 3) / 6,
    "hard_tanh": F.hardtanh,
    "hard_swish": F.hardswish,
    "softsign": F.softsign,
    "sine": torch.sin,
}

LOSSES = ("mse", "softmax_cross_entropy", "binary_cross_entropy", "huber", "gaussian_nll")
SAMPLE_WEIGHTS = {1: [0.7], 5: [0.5, 2.0, 0.0, 1.25, 3.0]}


def layer_dense(units, activation=None, tied_to=None, tied=()):
    """Describe a dense layer; `tied` names the arrays it takes from dense layer number `tied_to`."""
    layer = {"type": "dense", "units": units}
    if activation is not None:
        layer["activation"] = activation
    if tied_to is not None:
        layer |= {"tied_to": tied_to, "tied": list(tied)}
    return layer


def layer_activation(name):
    return {"type": "activation", "activation": name}


def layer_residual(*layers):
    return {"type": "residual", "layers": list(layers)}


def layer_concat(*branches):
    return {"type": "concat", "branches": [list(branch) for branch in branches]}


class Parameters:
    """Makes the parameters as the network asks for them: multiples of 1/64, every third bias exactly 0."""

    def __init__(self, rng, values=None):
        self.rng, self.values = rng, values
        self.leaves, self.dense, self.position = [], [], 0

    def take(self, *shape):
        size = int(np.prod(shape))
        if self.values is None:
            flat = np.rint(self.rng.normal(size=size) * 64 / np.sqrt(shape[0])) / 64
            if len(shape) == 1:
                flat[::3] = 0
        else:
            flat = self.values[self.position : self.position + size]
        self.position += size
        leaf = torch.tensor(flat.reshape(shape), dtype=torch.float64, requires_grad=True)
        self.leaves.append(leaf)
        return leaf

    def flat(self):
        return np.concatenate([np.empty(0), *(leaf.detach().numpy().ravel() for leaf in self.leaves)])

    def flat_grad(self):
        return np.concatenate([np.empty(0), *(leaf.grad.numpy().ravel() for leaf in self.leaves)])


def run(layers, x, parameters):
    """Return the output of a list of layers."""
    for layer in layers:
        x = LAYERS[layer["type"]](layer, x, parameters)
    return x


def run_dense(layer, x, parameters):
    tied = layer.get("tied", [])
    earlier = parameters.dense[layer["tied_to"]] if tied else {}
    arrays = {
        "weight": earlier["weight"] if "weight" in tied else parameters.take(x.shape[-1], layer["units"]),
        "bias": earlier["bias"] if "bias" in tied else parameters.take(layer["units"]),
    }
    parameters.dense.append(arrays)
    # F.linear wants (out, in); the leaf stays (in, out).
    z = F.linear(x, arrays["weight"].T, arrays["bias"])
    return ACTIVATIONS[layer.get("activation", "identity")](z)


# type -> function (layer, x, parameters) -> output; other files add theirs
LAYERS = {
    "dense": run_dense,
    "activation": lambda layer, x, parameters: ACTIVATIONS[layer["activation"]](x),
    "flatten": lambda layer, x, parameters: x.flatten(1),
    "residual": lambda layer, x, parameters: x + run(layer["layers"], x, parameters),
    "concat": lambda layer, x, parameters: torch.cat(
        [run(branch, x, parameters) for branch in layer["branches"]], dim=-1
    ),
}


def sample_losses(loss, y, target):
    """Return the loss of each sample: the mean over its outputs (or positions)."""
    if loss == "mse":
        each = F.mse_loss(y, target, reduction="none")
    elif loss == "softmax_cross_entropy":
        each = F.cross_entropy(y.movedim(-1, 1), target, reduction="none")
    elif loss == "binary_cross_entropy":
        each = F.binary_cross_entropy_with_logits(y, target, reduction="none")
    elif loss == "huber":
        each = F.huber_loss(y, target, reduction="none", delta=1.0)
    elif loss == "gaussian_nll":
        mean, log_variance = y.chunk(2, dim=-1)
        each = F.gaussian_nll_loss(mean, target, log_variance.exp(), full=False, eps=1e-30, reduction="none")
    else:
        raise ValueError(f"no such loss: {loss}")
    return each.reshape(len(y), -1).mean(dim=1)


def make_target(loss, rng, output_shape, n):
    if loss == "softmax_cross_entropy":
        return rng.integers(0, output_shape[-1], size=(n, *output_shape[:-1]))
    if loss == "binary_cross_entropy":
        return rng.choice([0.0, 1.0, 0.25], size=(n, *output_shape))
    if loss == "gaussian_nll":
        output_shape = (*output_shape[:-1], output_shape[-1] // 2)
    return np.rint(rng.normal(size=(n, *output_shape)) * 16) / 16


def make_input(rng, shape, n):
    """Multiples of 1/8; about a quarter of them 0, one of those -0.0; row 2, where there is one, all 0."""
    x = np.rint(rng.normal(size=(n, *shape)) * 8) / 8
    x[rng.random(x.shape) < 0.25] = 0.0
    x.reshape(n, -1)[0, 0] = -0.0
    if n > 2:
        x[2] = 0.0
    return x


def solve(layers, loss, x, target, weights=None, params=None, rng=None):
    """Return a case: its description and its arrays."""
    parameters = Parameters(rng, params)
    inputs = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    output = run(layers, inputs, parameters)
    if target is None:
        target = make_target(loss, rng, output.shape[1:], len(x))
    losses = sample_losses(loss, output, torch.tensor(target))
    w = torch.ones(len(x), dtype=torch.float64) if weights is None else torch.tensor(weights, dtype=torch.float64)
    value = (w * losses).sum() / w.sum()
    value.backward()
    fields = {
        "params": parameters.flat(),
        "x": x,
        "target": target,
        "output": output.detach().numpy(),
        "loss": value.item(),
        "grad": parameters.flat_grad(),
        "x_grad": inputs.grad.numpy(),
    }
    if weights is not None:
        fields["weights"] = np.asarray(weights, dtype=np.float64)
    return {"input_shape": list(x.shape[1:]), "layers": layers, "loss": loss}, fields


def generated(name, input_shape, layers, loss, n, weighted):
    """Draw a case of a network, whose name is the seed: its cases share their parameters."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    x = make_input(np.random.default_rng(n), input_shape, n)
    weights = SAMPLE_WEIGHTS[n] if weighted else None
    return solve(layers, loss, x, None, weights, rng=rng)


def activation_networks():
    networks = {}
    for name in ACTIVATIONS:
        networks[f"{name}_hidden"] = (3,), [layer_dense(7, name), layer_dense(5)]
        networks[f"{name}_last"] = (3,), [layer_dense(7), layer_dense(5, name)]
        networks[f"{name}_alone"] = (3,), [layer_activation(name), layer_dense(5)]
    return networks


def loss_networks(outputs):
    return {
        f"tanh_to_{outputs}": ((3,), [layer_dense(7, "tanh"), layer_dense(outputs)]),
        f"relu_to_{outputs}": ((3,), [layer_dense(7, "relu"), layer_dense(outputs)]),
    }


def structure_networks():
    """Ways to join layers, and odd sizes on both sides of a vector's 4, 8 and 16 numbers."""
    dense, residual, concat = layer_dense, layer_residual, layer_concat
    tie_weight, tie_both = {"tied_to": 1, "tied": ["weight"]}, {"tied_to": 1, "tied": ["weight", "bias"]}
    flatten = {"type": "flatten"}
    return {
        "smallest": ((1,), [dense(2)]),
        "narrow": ((1,), [dense(1, "tanh"), dense(1, "sigmoid"), dense(2)]),
        "wide": ((17,), [dense(33, "relu"), dense(9)]),
        "deep": ((3,), [dense(5, "tanh"), dense(5, "silu"), dense(5, "elu"), dense(5, "relu"), dense(4)]),
        "residual": ((3,), [dense(6, "tanh"), residual(dense(5, "relu"), dense(6)), dense(4)]),
        "residual_first": ((3,), [residual(dense(7, "gelu"), dense(3)), dense(4)]),
        "residual_nested": ((3,), [residual(dense(3, "tanh"), residual(dense(3, "silu"))), dense(4)]),
        "residual_last": ((4,), [dense(4, "tanh"), residual(dense(4, "softplus"))]),
        "concat": ((3,), [concat([dense(4, "tanh")], [dense(3, "relu"), dense(5)]), dense(4)]),
        "concat_last": ((3,), [dense(7, "tanh"), concat([dense(3)], [dense(2, "sigmoid")])]),
        "concat_three": (
            (3,),
            [concat([dense(1)], [layer_activation("identity")], [dense(2, "elu")]), dense(4)],
        ),
        "concat_in_residual": ((5,), [residual(concat([dense(2, "tanh")], [dense(3, "relu")])), dense(4)]),
        "residual_in_concat": ((3,), [concat([residual(dense(3, "tanh"))], [dense(2, "relu")]), dense(4)]),
        "tied_weight": ((3,), [dense(4, "tanh"), dense(4, "relu"), dense(4, "tanh", **tie_weight), dense(4)]),
        "tied_both": ((3,), [dense(4), dense(4, "tanh"), dense(4, "tanh", **tie_both), dense(4)]),
        "tied_twice": (
            (3,),
            [dense(4), dense(4, "silu"), dense(4, "relu", **tie_both), dense(4, "tanh", **tie_weight)],
        ),
        "flatten": ((2, 3), [flatten, dense(7, "tanh"), dense(4)]),
        "flatten_after": ((2, 3), [dense(5, "relu"), flatten, dense(4)]),
        "positions": ((3, 4), [dense(7, "tanh"), dense(4)]),
        "positions_concat": (
            (3, 4),
            [concat([dense(3, "relu")], [dense(2)]), residual(dense(5, "gelu")), dense(4)],
        ),
    }


def special_cases():
    """Differences of exactly 0 and of exactly huber's 1; logits that overflow a naive exponential."""
    linear, eye = [layer_dense(5)], np.concatenate([np.eye(5).ravel(), np.zeros(5)])
    x = np.array([[0.0, 1.0, -1.0, 2.0, 0.5], [0.25, -0.25, 0.0, -0.0, 3.0]])
    offset = np.array([[0.0, 1.0, -1.0, 1.5, 0.25], [1.0, 0.0, -1.0, 1.0, 1.0]])
    logits = np.array([[0.0, 40.0, -40.0, 800.0, -800.0], [-0.0, 1e-9, -1e-9, 36.0, -750.0]])
    answers = np.array([[1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 1.0]])
    cases = {
        "ties_mse": solve(linear, "mse", x, x - offset, params=eye),
        "ties_huber": solve(linear, "huber", x, x - offset, params=eye),
        "large_binary_cross_entropy": solve(linear, "binary_cross_entropy", logits, answers, params=eye),
        "large_softmax_cross_entropy": solve(
            linear,
            "softmax_cross_entropy",
            np.concatenate([logits, np.full((1, 5), 900.0)]),
            np.array([3, 1, 4]),
            params=eye,
        ),
        "tied_logits": solve(linear, "softmax_cross_entropy", np.zeros((1, 5)), np.array([2]), params=eye),
    }
    return {f"special/{name}": case for name, case in cases.items()}


def cases():
    """Return {case: (description, arrays)}."""
    result = special_cases()
    for name, network in activation_networks().items():
        for n, weighted in ((1, False), (5, True)):
            result[f"{name}/mse/{n}"] = generated(name, *network, "mse", n, weighted)
    for loss in LOSSES:
        for name, network in loss_networks(6 if loss == "gaussian_nll" else 5).items():
            for n in (1, 5):
                for weighted in (False, True):
                    case = f"{name}/{loss}/{n}{'_weighted' if weighted else ''}"
                    result[case] = generated(name, *network, loss, n, weighted)
    for number, (name, network) in enumerate(structure_networks().items()):
        losses = ("mse", "softmax_cross_entropy")
        runs = [(1, losses[number % 2]), (5, losses[0]), (5, losses[1])]
        if name in ("wide", "residual", "concat"):
            runs.append((13, losses[0]))
        for n, loss in runs:
            case = f"{name}/{loss}/{n}"
            result[case] = generated(name, *network, loss, n, weighted=n == 5 and number % 3 == 0)
    return result
