"""PyTorch's modules, functions and methods as layers: a function for each, of the step and what it was called with."""

import dataclasses
import math

import numpy as np

from nbprop.interchange.orders import BATCH, Value, images_first
from nbprop.interchange.torch_steps import TorchStep
from nbprop.layers.embedding import Embedding
from nbprop.layers.gru import GRU
from nbprop.layers.layernorm import LayerNorm, RMSNorm
from nbprop.layers.local_response_norm import LocalResponseNorm
from nbprop.layers.lstm import LSTM
from nbprop.layers.rnn import RNN


def _pair(value, axes):
    return (value,) * axes if isinstance(value, int) else tuple(value)


def _images(step, value):
    axes = len(value.order) - 2
    if axes not in (1, 2) or value.order != images_first(axes):
        raise step.fail("needs images or sequences with the channels before the pixels, in one batch")
    return axes


# -- modules -----------------------------------------------------------------------------------------------------------


def linear(step, module, x):
    return step.dense(x, step.weight(module.weight).T, step.weight(module.bias))


def conv(step, module, x):
    axes = _images(step, x)
    if module.padding_mode != "zeros":
        raise step.fail(f"pads with padding_mode={module.padding_mode!r}; nbprop pads with zeros")
    weight = step.weight(module.weight).transpose(*range(2, axes + 2), 1, 0)
    padding = (0,) * axes if module.padding == "valid" else module.padding
    pads = "same" if padding == "same" else [(size, size) for size in _pair(padding, axes)]
    return step.conv(x, weight, step.weight(module.bias), module.stride, pads, module.dilation, module.groups)


def _pool(step, x, largest, kernel, stride, padding, ceil, counts=True, dilation=1):
    axes = _images(step, x)
    if set(_pair(dilation, axes)) != {1}:
        raise step.fail(f"has dilation={dilation}; nbprop's pools have 1")
    kernel = _pair(kernel, axes)
    return step.pool(x, largest, kernel, _pair(stride or kernel, axes), _pair(padding, axes), ceil, counts)


def max_pool(step, module, x):
    if module.return_indices:
        raise step.fail("returns indices")
    sizes = module.kernel_size, module.stride, module.padding
    return _pool(step, x, True, *sizes, module.ceil_mode, dilation=module.dilation)


def avg_pool(step, module, x):
    if getattr(module, "divisor_override", None):
        raise step.fail("has a divisor of its own")
    sizes = module.kernel_size, module.stride, module.padding
    return _pool(step, x, False, *sizes, module.ceil_mode, module.count_include_pad)


def _adaptive(largest):
    def read(step, x, output_size):
        axes = _images(step, x)
        if set(_pair(output_size, axes)) != {1}:
            raise step.fail(f"has output_size={output_size}; nbprop's global pools have 1")
        return step.global_pool(x, largest, range(2, axes + 2), keep=True)

    return read


def batchnorm(step, module, x):
    if module.running_mean is None:
        raise step.fail("keeps no running statistics")
    if x.order[1] != len(step.sample(x)):
        raise step.fail("normalizes an axis that is not the last one in nbprop")
    statistics = step.weight(module.running_mean), step.weight(module.running_var)
    return step.batchnorm(x, *statistics, module.eps, step.weight(module.weight), step.weight(module.bias))


def layernorm(step, module, x):
    if len(module.normalized_shape) != 1:
        raise step.fail(f"normalizes axes of shape {tuple(module.normalized_shape)}; nbprop's runs over the last")
    bias = getattr(module, "bias", None)
    arrays = [step.weight(part) for part in (module.weight, bias) if part is not None]
    if type(module).__name__ == "RMSNorm":
        eps = float(np.finfo(np.float32).eps) if module.eps is None else module.eps
        return step.normalized(x, RMSNorm(eps, module.weight is not None), arrays)
    return step.normalized(x, LayerNorm(module.eps, module.weight is not None, bias is not None), arrays)


def local_response_norm(step, module, x):
    _images(step, x)
    return step.layer(x, LocalResponseNorm(module.size, module.alpha / module.size, module.beta, module.k))


def embedding(step, module, x):
    if module.max_norm is not None:
        raise step.fail("has max_norm, which changes its weights as it is called")
    weight = step.weight(module.weight)
    return step.layer(x, Embedding(*weight.shape), [weight], (*x.order, len(step.sample(x)) + 1))


@dataclasses.dataclass(frozen=True)
class States:
    """The final states of stacked recurrent layers, of which the last one's is a value."""

    last: Value
    layers: int


def recurrent(step, module, x):
    kind = type(module).__name__
    if module.bidirectional or getattr(module, "proj_size", 0):
        raise step.fail("is bidirectional, or projects its states; nbprop's layers run forward")
    if x.order != ((0, 1, 2) if module.batch_first else (1, 0, 2)):
        raise step.fail("needs sequences in one batch")
    units = module.hidden_size
    layer = RNN(units, module.nonlinearity) if kind == "RNN" else {"LSTM": LSTM, "GRU": GRU}[kind](units)
    for index in range(module.num_layers):
        parts = {
            name: step.weight(getattr(module, f"{name}_l{index}")) if module.bias or "weight" in name else None
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        arrays, before = recurrent_arrays(kind, units, parts), x
        x = step.layer(x, layer, arrays)
    last = step.layer(before, dataclasses.replace(layer, output="last"), arrays, (None, 0, 1))
    states = States(last, module.num_layers)
    return x, ((states, None) if kind == "LSTM" else states)


def recurrent_arrays(kind, units, parts):
    """nbprop's arrays of a recurrent layer from PyTorch's, {"weight_ih": ..., "weight_hh": ...}, biases or None."""
    weight, recurrent_weight = parts["weight_ih"], parts["weight_hh"]
    zeros = np.zeros(weight.shape[0], weight.dtype)
    bias, other = (zeros if parts[name] is None else parts[name] for name in ("bias_ih", "bias_hh"))
    if kind != "GRU":
        return [weight.T, recurrent_weight.T, bias + other]
    joined = bias + np.where(np.arange(bias.size) < 2 * units, other, 0).astype(bias.dtype)
    return [weight.T, recurrent_weight.T, joined, other[2 * units :]]


# -- activations, of modules and functions -----------------------------------------------------------------------------


def _with(step, got, wanted, setting):
    if abs(got - wanted) > 1e-12:
        raise step.fail(f"has {setting}={got}; nbprop has {wanted}")


def gelu(step, x, approximate="none"):
    return step.activation(x, "gelu_tanh" if approximate == "tanh" else "gelu")


def leaky_relu(step, x, negative_slope=0.01, inplace=False):
    _with(step, negative_slope, 0.01, "negative_slope")
    return step.activation(x, "leaky_relu")


def elu(step, x, alpha=1.0, inplace=False):
    _with(step, alpha, 1.0, "alpha")
    return step.activation(x, "elu")


def softplus(step, x, beta=1, threshold=20):
    _with(step, beta, 1, "beta")
    if threshold < 20:
        raise step.fail(f"has threshold={threshold}, above which it is the identity; nbprop's softplus has none")
    return step.activation(x, "softplus")


def softmax(step, x, dim=None, _stacklevel=3, dtype=None):
    if dim is None or dim % len(x.order) != len(x.order) - 1:
        raise step.fail(f"runs over axis {dim}, which is not the last")
    return step.activation(x, "softmax")


def _plain(name):
    def read(step, x, inplace=False):
        return step.activation(x, name)

    return read


def same(step, x, *settings, **more):
    return x


relu, silu, sigmoid, tanh = (_plain(name) for name in ("relu", "silu", "sigmoid", "tanh"))


# -- functions and methods ---------------------------------------------------------------------------------------------


def _operand(step, argument):
    if isinstance(argument, (Value, np.ndarray)):
        return argument
    if isinstance(argument, (int, float)) and not isinstance(argument, bool):
        return np.array(float(argument))
    raise step.fail(f"computes with {argument!r}")


def _binary(operation):
    def read(step, a, b, alpha=1, rounding_mode=None):
        if alpha != 1 or rounding_mode is not None:
            raise step.fail("has alpha or rounding_mode")
        if isinstance(a, int) and isinstance(b, int):  # sizes
            return {"add": a + b, "sub": a - b, "mul": a * b, "div": a / b if b else 0}[operation]
        a, b = _operand(step, a), _operand(step, b)
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            return {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[operation](a, b)
        return step.binary(operation, a, b)

    return read


add, sub, mul, div = (_binary(name) for name in ("add", "sub", "mul", "div"))


def power(step, x, exponent):
    return step.expression("power", x, float(exponent))


def _expression(operation):
    def read(step, x):
        return step.expression(operation, x)

    return read


def negative(step, x):
    return step.binary("mul", x, np.array(-1.0))


def concat(step, tensors, dim=0, axis=None):
    return step.concat(list(tensors), dim if axis is None else axis)


def flatten(step, x, start_dim=0, end_dim=-1):
    if start_dim != 1 or end_dim % len(x.order) != len(x.order) - 1:
        raise step.fail(f"flattens axes {start_dim} to {end_dim}; nbprop flattens a sample")
    return step.flat(x)


def reshape(step, x, *shape, **more):
    return step.reshape(x, shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape)


def unflatten(step, x, dim, sizes):
    shape = list(step.shape(x))
    dim %= len(shape)
    return step.reshape(x, [*shape[:dim], *sizes, *shape[dim + 1 :]])


def transpose(step, x, dim0, dim1):
    perm = list(range(len(x.order)))
    perm[dim0], perm[dim1] = perm[dim1], perm[dim0]
    return step.transpose(x, perm)


def permute(step, x, *dims):
    return step.transpose(x, dims[0] if isinstance(dims[0], (tuple, list)) else dims)


def squeeze(step, x, dim=None):
    if isinstance(x, States):
        return _state(step, x, 0)
    return step.squeeze(x, None if dim is None else [dim])


def unsqueeze(step, x, dim):
    return step.unsqueeze(x, [dim])


def size(step, x, dim=None):
    shape = step.shape(x)
    return shape if dim is None else shape[dim]


def attribute(step, x, name):
    if name == "shape":
        return step.shape(x)
    if name == "dtype" or name == "device":
        return None
    raise step.fail(f"asks for {name}")


def _state(step, states, index):
    if index not in (-1, states.layers - 1):
        raise step.fail(f"takes the state of layer {index} of {states.layers}; the last one's is kept")
    return step.element(states.last, 0, 0)


def item(step, x, index):
    """x[index]: of a tuple, of states, of a value."""
    if isinstance(x, tuple):
        return x[index]
    if isinstance(x, States):
        return _state(step, x, index)
    indices = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in indices:
        place = indices.index(Ellipsis)
        indices[place : place + 1] = [slice(None)] * (len(x.order) - len(indices) + 1)
    axis = 0
    for one in indices:
        if isinstance(one, slice):
            if one.step not in (None, 1):
                raise step.fail("takes elements in steps")
            extent = step.shape(x)[axis]
            x = step.part(x, axis, *one.indices(min(extent, BATCH))[:2]) if one != slice(None) else x
            axis += 1
        elif isinstance(one, int) and not isinstance(one, bool):
            x = step.element(x, axis, one)
        else:
            raise step.fail(f"takes elements by {one!r}")
    return x


def chunk(step, x, chunks, dim=0):
    extent = step.shape(x)[dim]
    return split(step, x, -(-extent // chunks), dim)


def split(step, x, sizes, dim=0):
    dim, found, first = dim % len(x.order), [], 0
    extent = step.shape(x)[dim]
    sizes = [sizes] * math.ceil(extent / sizes) if isinstance(sizes, int) else sizes
    for each in sizes:
        found.append(step.part(x, dim, first, min(first + each, extent)))
        first += each
    return tuple(found)


def _reduced(largest):
    def read(step, x, dim=None, keepdim=False, axis=None):
        dim = axis if dim is None else dim
        dims = list(range(len(x.order))) if dim is None else [dim] if isinstance(dim, int) else list(dim)
        if not largest and keepdim and x.perm is None and {x.order[d] for d in dims} == {len(step.sample(x))}:
            return step.expression("mean", x)
        return step.global_pool(x, largest, dims, keepdim)

    return read


mean, amax = _reduced(False), _reduced(True)


def function_pool(largest):
    def read(step, x, kernel_size, stride=None, padding=0, *settings, **more):
        if settings:
            raise step.fail("has settings that are given by position; give them by name")
        ceil, dilation = more.pop("ceil_mode", False), more.pop("dilation", 1)
        counts = more.pop("count_include_pad", True)
        if any(more.values()):
            raise step.fail(f"has {', '.join(more)}")
        return _pool(step, x, largest, kernel_size, stride, padding, ceil, counts, dilation)

    return read


def _functional_linear(step, x, weight, bias=None):
    return step.dense(x, weight.T, bias)


MODULES = {
    "AdaptiveAvgPool1d": lambda step, module, x: _adaptive(False)(step, x, module.output_size),
    "AdaptiveMaxPool1d": lambda step, module, x: _adaptive(True)(step, x, module.output_size),
    "AvgPool1d": avg_pool,
    "BatchNorm1d": batchnorm,
    "Conv1d": conv,
    "Dropout": lambda step, module, x: x,
    "ELU": lambda step, module, x: elu(step, x, module.alpha),
    "Embedding": embedding,
    "Flatten": lambda step, module, x: flatten(step, x, module.start_dim, module.end_dim),
    "GELU": lambda step, module, x: gelu(step, x, module.approximate),
    "GRU": recurrent,
    "LayerNorm": layernorm,
    "LeakyReLU": lambda step, module, x: leaky_relu(step, x, module.negative_slope),
    "Linear": linear,
    "LocalResponseNorm": local_response_norm,
    "MaxPool1d": max_pool,
    "ReLU": lambda step, module, x: relu(step, x),
    "SiLU": lambda step, module, x: silu(step, x),
    "Sigmoid": lambda step, module, x: sigmoid(step, x),
    "Softmax": lambda step, module, x: softmax(step, x, module.dim),
    "Softplus": lambda step, module, x: softplus(step, x, module.beta, module.threshold),
    "Tanh": lambda step, module, x: tanh(step, x),
    "Unflatten": lambda step, module, x: unflatten(step, x, module.dim, module.unflattened_size),
}


def _module(name):
    def read(step, module, x):
        return step.activation(x, name)

    return read


MODULES |= {"Mish": _module("mish"), "SELU": _module("selu"), "Softsign": _module("softsign")}
MODULES |= {"Hardsigmoid": _module("hard_sigmoid"), "Hardswish": _module("hard_swish")}
MODULES |= {name.replace("1d", "2d"): read for name, read in MODULES.items() if name.endswith("1d")}
MODULES |= dict.fromkeys(("Dropout1d", "Dropout2d", "AlphaDropout", "Identity"), MODULES["Dropout"])
MODULES |= {"RMSNorm": layernorm, "LSTM": recurrent, "RNN": recurrent}
FUNCTIONS = {
    "abs": _expression("abs"),
    "add": add,
    "adaptive_avg_pool1d": _adaptive(False),
    "adaptive_avg_pool2d": _adaptive(False),
    "adaptive_max_pool2d": _adaptive(True),
    "amax": amax,
    "avg_pool1d": function_pool(False),
    "avg_pool2d": function_pool(False),
    "cat": concat,
    "chunk": chunk,
    "concat": concat,
    "contiguous": same,
    "div": div,
    "dropout": same,
    "elu": elu,
    "erf": _expression("erf"),
    "exp": _expression("exp"),
    "flatten": flatten,
    "float": same,
    "gelu": gelu,
    "getattr": attribute,
    "getitem": item,
    "leaky_relu": leaky_relu,
    "linear": _functional_linear,
    "log": _expression("log"),
    "max_pool1d": function_pool(True),
    "max_pool2d": function_pool(True),
    "mean": mean,
    "mul": mul,
    "neg": negative,
    "permute": permute,
    "pow": power,
    "relu": relu,
    "reshape": reshape,
    "sigmoid": sigmoid,
    "silu": silu,
    "size": size,
    "softmax": softmax,
    "softplus": softplus,
    "split": split,
    "sqrt": _expression("sqrt"),
    "squeeze": squeeze,
    "sub": sub,
    "tanh": tanh,
    "transpose": transpose,
    "truediv": div,
    "unflatten": unflatten,
    "unsqueeze": unsqueeze,
    "view": reshape,
}
FUNCTIONS |= {"iadd": add, "imul": mul, "isub": sub, "relu_": relu, "multiply": mul, "subtract": sub, "divide": div}
TorchStep.elementwise |= {MODULES[name] for name in ("Dropout", "ReLU", "Tanh", "Sigmoid", "Identity")}
TorchStep.elementwise |= {add, sub, mul, div, relu, sigmoid, tanh, silu, same}
