"""Layers as nodes of an ONNX graph: a function for each, of the writer, the value it reads, the layer and its path."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

# Activations of ONNX's recurrent operators: (name, alpha, beta).
_RECURRENT = {
    "identity": ("Affine", 1.0, 0.0),
    "relu": ("Relu", 0.0, 0.0),
    "leaky_relu": ("LeakyRelu", 0.01, 0.0),
    "elu": ("Elu", 1.0, 0.0),
    "softplus": ("Softplus", 0.0, 0.0),
    "sigmoid": ("Sigmoid", 0.0, 0.0),
    "tanh": ("Tanh", 0.0, 0.0),
    "hard_sigmoid": ("HardSigmoid", 1 / 6, 0.5),
    "softsign": ("Softsign", 0.0, 0.0),
}
_PADDINGS = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
# The order of ONNX's gates, as blocks of nbprop's columns.
GATES = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}


@dataclass(frozen=True)
class Value:
    """A value of the graph: its name, nbprop's shape of a sample, and whether channels are ONNX's second axis."""

    name: str
    shape: tuple[int, ...]
    first: bool = False


def _activation(writer, x, layer, path):
    return writer.activation(x, layer.name, path)


def _dense(writer, x, layer, path):
    weight, bias = layer._paths(path)
    x, w = writer.last(x, path), writer.parameter(weight)
    if layer._transposed:
        w = writer.node("Transpose", [w], path, perm=[1, 0])
    shape = (*x.shape[:-1], layer.units)
    if len(x.shape) == 1:
        y = writer.node("Gemm", [x.name, w, *([writer.parameter(bias)] if bias else [])], path)
    else:
        y = writer.node("MatMul", [x.name, w], path)
        y = writer.node("Add", [y, writer.parameter(bias)], path) if bias else y
    return writer.activation(Value(y, shape), layer.activation, path)


def _conv(writer, x, layer, path):
    axes = layer.axes
    x = writer.first(x, path)
    weight = writer.parts[f"{path}.weight"]
    height, width = (1, *x.shape)[-3:-1]
    borders, image = layer._borders(height, width)[2 - axes :], x.name
    if layer.padding_mode != "zeros":
        pads = [0, 0, *(before for before, _ in borders), 0, 0, *(after for _, after in borders)]
        mode, borders = _PADDINGS[layer.padding_mode], [(0, 0)] * axes
        image = writer.node("Pad", [image, writer.constant(f"{path}.pads", np.array(pads))], path, mode=mode)
    inputs = [image, writer.constant(f"{path}.weight", weight.transpose(axes + 1, axes, *range(axes)))]
    if layer.bias:
        inputs.append(writer.parameter(f"{path}.bias"))
    settings = {name: list(layer._pair(name)[2 - axes :]) for name in ("kernel", "stride", "dilation")}
    y = writer.node(
        "Conv",
        inputs,
        path,
        kernel_shape=settings["kernel"],
        strides=settings["stride"],
        dilations=settings["dilation"],
        pads=[before for before, _ in borders] + [after for _, after in borders],
        group=layer.groups,
    )
    return writer.activation(Value(y, layer.output_shape(x.shape), True), layer.activation, path)


def _reparametrized(writer, x, layer, path):
    """A layer whose weight is computed, once: the file holds the weight in use."""
    inside, own = f"{path}.{layer.layer.kind}", {}
    for name, array in (writer.parts | writer.statistics).items():
        if name.rpartition(".")[0] == path:
            own[name.rpartition(".")[2]] = array
    weight = writer.parts[f"{inside}.weight"]
    writer.parts[f"{inside}.weight"] = layer.computed(weight, own).astype(weight.dtype)
    return writer.layer(x, layer.layer, inside)


def _conv_transpose(writer, x, layer, path):
    axes = layer.axes
    x, weight = writer.first(x, path), writer.parts[f"{path}.weight"]
    inputs = [x.name, writer.constant(f"{path}.weight", weight.transpose(axes + 1, axes, *range(axes)))]
    if layer.bias:
        inputs.append(writer.parameter(f"{path}.bias"))
    names = ("kernel", "stride", "dilation", "padding", "output_padding")
    kernel, strides, dilations, padding, more = (list(layer._pair(name)[2 - axes :]) for name in names)
    y = writer.node(
        "ConvTranspose",
        inputs,
        path,
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        pads=padding + padding,
        output_padding=more,
        group=layer.groups,
    )
    return writer.activation(Value(y, layer.output_shape(x.shape), True), layer.activation, path)


def _prelu(writer, x, layer, path):
    slope = writer.constant(f"{path}.slope", writer.along(writer.parts[f"{path}.slope"], x))
    return Value(writer.node("PRelu", [x.name, slope], path), x.shape, x.first)


def _glu(writer, x, layer, path):
    x = writer.last(x, path)
    shape = layer.output_shape(x.shape)
    a, b = writer.node("Split", [x.name], path, (True, True), axis=-1, num_outputs=2)
    gate = writer.activation(Value(b, shape), layer.activation, path)
    return Value(writer.node("Mul", [a, writer.last(gate, path).name], path), shape)


def _pool(writer, x, layer, path):
    axes = layer.axes
    x, pools = writer.first(x, path), layer.pools(x.shape)
    padding = [pools.top, pools.left][2 - axes :]
    more = {} if layer.largest else {"count_include_pad": 1}
    y = writer.node(
        "MaxPool" if layer.largest else "AveragePool",
        [x.name],
        path,
        kernel_shape=[pools.kernel_h, pools.kernel_w][2 - axes :],
        strides=[pools.stride_h, pools.stride_w][2 - axes :],
        pads=padding + padding,
        **more,
    )
    return Value(y, layer.output_shape(x.shape), True)


def _global_pool(writer, x, layer, path):
    axes = len(x.shape) - 1
    over = range(2, 2 + axes) if x.first else range(1, 1 + axes)
    operator = "ReduceMax" if layer.kind == "global_max_pool" else "ReduceMean"
    y = writer.node(operator, [x.name, writer.integers(list(over), path)], path, keepdims=0)
    return Value(y, x.shape[-1:])


def _residual(writer, x, layer, path):
    f = writer.chain(x, layer.layers, path)
    x = writer.first(x, path) if f.first else writer.last(x, path)
    return Value(writer.node("Add", [x.name, f.name], path), x.shape, f.first)


def _concat(writer, x, layer, path):
    parts = [writer.chain(x, branch, f"{path}.{number}") for number, branch in enumerate(layer.branches)]
    first = all(part.first for part in parts)
    parts = parts if first else [writer.last(part, path) for part in parts]
    y = writer.node("Concat", [part.name for part in parts], path, axis=1 if first else -1)
    return Value(y, layer.output_shape(x.shape), first)


def _reshape(writer, x, layer, path):
    shape = layer.output_shape(x.shape)
    x = writer.last(x, path)
    return x if shape == x.shape else Value(writer.reshaped(x.name, shape, path), shape)


def _slicing(writer, x, layer, path):
    x = writer.last(x, path)
    limits = [writer.integers([value], f"{path}.{k}") for k, value in enumerate((layer.start, layer.stop, -1))]
    return Value(writer.node("Slice", [x.name, *limits], path), layer.output_shape(x.shape))


def _ascending(writer, x, layer, path):
    x = writer.last(x, path)
    grouped = (*x.shape[:-1], x.shape[-1] // layer.size, layer.size)
    parts, pieces = writer.reshaped(x.name, grouped, path), []
    for k, (start, stop) in enumerate(((0, 1), (1, layer.size))):
        limits = [writer.integers([value], f"{path}.{k}.{at}") for at, value in enumerate((start, stop, -1))]
        pieces.append(writer.node("Slice", [parts, *limits], path))
    steps = writer.node("Concat", [pieces[0], writer.node("Softplus", pieces[1:], path)], path, axis=-1)
    y = writer.node("CumSum", [steps, writer.constant(f"{path}.axis", np.array(len(grouped)))], path)
    return Value(writer.reshaped(y, x.shape, f"{path}.whole"), x.shape)


def _dropout(writer, x, layer, path):
    return x


def _embedding(writer, x, layer, path):
    y = writer.node("Gather", [writer.parameter(f"{path}.weight"), x.name], path, axis=0)
    return Value(y, layer.output_shape(x.shape))


def _positions(writer, x, layer, path):
    x = writer.last(x, path)
    return Value(writer.node("Add", [x.name, writer.parameter(f"{path}.weight")], path), x.shape)


def _scaling(writer, x, layer, path):
    m, s = (
        writer.constant(f"{path}.{name}", writer.along(writer.parts[f"{path}.{name}"], x)) for name in ("mean", "std")
    )
    pairs = (("Sub", m), ("Div", s)) if layer.kind == "standardize" else (("Mul", s), ("Add", m))
    y = x.name
    for operator, constant in pairs:
        y = writer.node(operator, [y, constant], path)
    return Value(y, x.shape, x.first)


def _batchnorm(writer, x, layer, path):
    x = writer.first(x, path)
    inputs = [writer.parameter(f"{path}.{name}") for name in ("scale", "shift")]
    for name in ("running_mean", "running_variance"):
        inputs.append(writer.constant(f"{path}.{name}", writer.statistics[f"{path}.{name}"]))
    y = writer.node("BatchNormalization", [x.name, *inputs], path, epsilon=layer.epsilon)
    return Value(y, x.shape, x.first)


def _layernorm(writer, x, layer, path):
    x = writer.last(x, path)
    scale = f"{path}.scale"
    inputs = [x.name, writer.parameter(scale) if layer.scale else writer.constant(scale, np.ones(x.shape[-1]))]
    if layer.shift:
        inputs.append(writer.parameter(f"{path}.shift"))
    return Value(writer.node("LayerNormalization", inputs, path, axis=-1, epsilon=layer.epsilon), x.shape)


def _rmsnorm(writer, x, layer, path):
    x = writer.last(x, path)
    square = writer.node("Mul", [x.name, x.name], path)
    mean = writer.node("ReduceMean", [square, writer.integers([-1], path)], path, keepdims=1)
    mean = writer.node("Add", [mean, writer.constant(f"{path}.epsilon", np.array(layer.epsilon))], path)
    y = writer.node("Div", [x.name, writer.node("Sqrt", [mean], path)], path)
    y = writer.node("Mul", [y, writer.parameter(f"{path}.scale")], path) if layer.scale else y
    return Value(y, x.shape)


def _local_response_norm(writer, x, layer, path):
    size, channels = layer.size, x.shape[-1]
    if size % 2:
        x = writer.first(x, path)
        attributes = {"size": size, "alpha": layer.alpha * size, "beta": layer.beta, "bias": layer.k}
        return Value(writer.node("LRN", [x.name], path, **attributes), x.shape, x.first)
    # An even window has no middle, and ONNX's lies the other way round: the sum as a product with a band of ones.
    x, i, j = writer.last(x, path), np.arange(channels)[None, :], np.arange(channels)[:, None]
    near = (j >= i - size // 2) & (j <= i + (size - 1) // 2)
    band = writer.constant(f"{path}.near", layer.alpha * near)
    total = writer.node("MatMul", [writer.node("Mul", [x.name, x.name], path), band], path)
    total = writer.node("Add", [total, writer.constant(f"{path}.k", np.array(layer.k))], path)
    total = writer.node("Pow", [total, writer.constant(f"{path}.beta", np.array(layer.beta))], path)
    return Value(writer.node("Div", [x.name, total], path), x.shape)


def _recurrent(writer, x, layer, path):
    if layer.carry:
        raise ValueError(
            f"to_onnx: layer {path} carries state from call to call, which an ONNX graph does not keep; use carry=False"
        )
    x, units, gates = writer.last(x, path), layer.units, GATES[layer.kind]

    def blocks(array):
        """(..., gates * units) as ONNX has it: (gates * units, ...), in its order of gates."""
        parts = np.split(array, len(gates), axis=-1)
        return np.concatenate([parts[k] for k in gates], axis=-1).T

    part = {name: writer.parts[f"{path}.{name}"] for name in ("weight", "recurrent_weight", "bias")}
    other = np.zeros_like(part["bias"])
    more: dict[str, Any] = {}
    if layer.kind == "gru":
        other[2 * units :] = writer.parts[f"{path}.recurrent_bias"]
        more["linear_before_reset"] = 1
    if layer.kind == "rnn":
        if layer.activation not in _RECURRENT:
            raise ValueError(f"to_onnx: layer {path} has {layer.activation}, which ONNX's RNN has not; use another one")
        name, alpha, beta = _RECURRENT[layer.activation]
        more |= {"activations": [name], "activation_alpha": [alpha], "activation_beta": [beta]}
    inputs = [
        writer.node("Transpose", [x.name], path, perm=[1, 0, 2]),
        writer.constant(f"{path}.weight", blocks(part["weight"])[None]),
        writer.constant(f"{path}.recurrent_weight", blocks(part["recurrent_weight"])[None]),
        writer.constant(f"{path}.bias", np.concatenate([blocks(part["bias"]), blocks(other)])[None]),
    ]
    whole = layer.output == "sequence"
    names = writer.node(layer.kind.upper(), inputs, path, (whole, not whole), hidden_size=units, **more)
    if not whole:
        return Value(writer.node("Squeeze", [names[1], writer.integers([0], path)], path), (units,))
    y = writer.node("Squeeze", [names[0], writer.integers([1], path)], path)
    return Value(writer.node("Transpose", [y], path, perm=[1, 0, 2]), (x.shape[0], units))


def _attention(writer, x, layer, path):
    x = writer.last(x, path)
    for name, inner, _ in layer.children(x.shape):
        x = writer.layer(x, inner, f"{path}.{name}")
    return x


def _attention_heads(writer, x, layer, path):
    positions, width = x.shape[0], x.shape[-1] // 3
    depth = width // layer.heads
    split = writer.reshaped(x.name, (positions, 3, layer.heads, depth), path)
    split = writer.node("Transpose", [split], path, perm=[2, 0, 3, 1, 4])
    q, k, v = (
        writer.node("Gather", [split, writer.constant(f"{path}.{which}", np.array(which))], path, axis=0)
        for which in range(3)
    )
    scale = writer.constant(f"{path}.scale", np.array(1 / math.sqrt(depth)))
    q = writer.node("Mul", [q, scale], path)
    scores = writer.node("MatMul", [q, writer.node("Transpose", [k], path, perm=[0, 1, 3, 2])], path)
    if layer.causal:
        mask = np.where(np.tri(positions, dtype=bool), 0.0, -np.inf)
        scores = writer.node("Add", [scores, writer.constant(f"{path}.mask", mask)], path)
    y = writer.node("MatMul", [writer.node("Softmax", [scores], path, axis=-1), v], path)
    y = writer.node("Transpose", [y], path, perm=[0, 2, 1, 3])
    return Value(writer.reshaped(y, (positions, width), path), (positions, width))


LAYERS = {
    "activation": _activation,
    "ascending": _ascending,
    "attention": _attention,
    "attention_heads": _attention_heads,
    "avg_pool1d": _pool,
    "avg_pool2d": _pool,
    "batchnorm": _batchnorm,
    "concat": _concat,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "dense": _dense,
    "dropout": _dropout,
    "embedding": _embedding,
    "flatten": _reshape,
    "global_avg_pool": _global_pool,
    "global_max_pool": _global_pool,
    "glu": _glu,
    "gru": _recurrent,
    "layernorm": _layernorm,
    "local_response_norm": _local_response_norm,
    "lstm": _recurrent,
    "max_pool1d": _pool,
    "max_pool2d": _pool,
    "positions": _positions,
    "prelu": _prelu,
    "rescale": _scaling,
    "reshape": _reshape,
    "residual": _residual,
    "rmsnorm": _rmsnorm,
    "rnn": _recurrent,
    "slicing": _slicing,
    "spectral_norm": _reparametrized,
    "standardize": _scaling,
    "weight_norm": _reparametrized,
}
