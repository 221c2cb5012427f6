"""`to_onnx`: a network in inference as an ONNX file, in standard operators.

Arrays of the file are nbprop's: x is (n, *input_shape), an image (n, height, width, channels). ONNX's convolutions and
pools have the channels before the pixels, so that values carry along how they lie, and are transposed where the two
meet.
"""

import importlib.metadata
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbprop.arrays import check_kinds
from nbprop.interchange.onnx_library import onnx_library
from nbprop.io.atomic import as_path, write_atomically
from nbprop.lowering.programs import state_layout
from nbprop.networks.network import Network, check_flat, views
from nbprop.numerics.activations import SELU_ALPHA, SELU_SCALE

OPSET = 20
_IR_VERSION = 9  # the first that knows opset 20
_LARGEST = 2**31 - 2**20  # bytes of a protocol buffer, less some for all but weights

_UNARY: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.01}),
    "elu": ("Elu", {"alpha": 1.0}),
    "gelu": ("Gelu", {"approximate": "none"}),
    "gelu_tanh": ("Gelu", {"approximate": "tanh"}),
    "softplus": ("Softplus", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "mish": ("Mish", {}),
    "selu": ("Selu", {"alpha": SELU_ALPHA, "gamma": SELU_SCALE}),
    "hard_sigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "hard_swish": ("HardSwish", {}),
    "softsign": ("Softsign", {}),
    "sine": ("Sin", {}),
}
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


def to_onnx(
    path: str | os.PathLike[str], net: Network, params: NDArray[Any], state: NDArray[Any] | None = None
) -> None:
    """Write a network to an ONNX file: what a plan with mode="inference" computes, in standard operators of opset 20.

    Parameters
    ----------
    path : str or path; by convention it ends in .onnx. An existing file is replaced atomically.
    net : Network
    params : (net.n_params,) float32 or float64 array
        The file keeps the dtype. ONNX Runtime has convolutions, elu and some others in float32 alone.
    state : array of `layer_state`'s layout, of the dtype of params, or None
        Running statistics, where the network has some.

    The input "x" is (n, *net.input_shape), of int64 for an embedding, and the output "y" (n, *net.output_shape): images
    as everywhere in nbprop, (n, height, width, channels), n being any number. Needs ``nbprop[onnx]``.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, weights that are not finite, layers without a form in ONNX (your own, and
        recurrent ones that carry their state), more than 2 GB of weights; nothing has been written then.
    OSError
        When the file cannot be written; an old file is then unchanged.

    Examples
    --------
    >>> import nbprop, os, tempfile
    >>> net = nbprop.network((4,), nbprop.dense(8, activation="tanh"), nbprop.dense(1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "pendulum.onnx")
    ...     nbprop.to_onnx(path, net, nbprop.init(net))
    ...     nbprop.from_onnx(path)[0]
    network((4,), dense(8, activation='tanh'), dense(1))
    """
    name = as_path("to_onnx: path", path)
    if not isinstance(net, Network):
        raise TypeError(f"to_onnx: net must be what nbprop.network(...) returns, got {type(net).__name__}")
    params = check_flat("to_onnx: params", params, net.n_params)
    check_kinds("to_onnx: params", params, (np.float32, np.float64))
    _check_finite("params", params)
    statistics = _statistics(net, state, params.dtype)
    if params.nbytes > _LARGEST:
        raise ValueError(f"to_onnx: params are {params.nbytes:,} bytes, and an ONNX file holds at most 2 GB")
    onnx = onnx_library("to_onnx")
    model = _Writer(onnx, net, params, statistics).model()
    write_atomically(name, lambda temporary: _write(temporary, model.SerializeToString()))


def _write(path, content):
    with open(path, "wb") as file:
        file.write(content)


def _check_finite(name, array):
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise ValueError(f"to_onnx: {name} must be finite, got {array[bad[0]]} at element {bad[0]}")


def _statistics(net, state, dtype):
    """{name: running statistics}."""
    layout, _ = state_layout(net)
    if not layout:
        if state is not None:
            raise ValueError("to_onnx: state is for networks with running statistics; leave it out")
        return {}
    if state is None:
        name = next(iter(layout)).rpartition(".")[0]
        raise ValueError(f"to_onnx: layer {name} has running statistics; give state, which training has updated")
    state = check_flat("to_onnx: state", state, max(offset + size for offset, size in layout.values()))
    check_kinds("to_onnx: state", state, dtype)
    _check_finite("state", state)
    return {name: state[offset : offset + size] for name, (offset, size) in layout.items()}


@dataclass(frozen=True)
class Value:
    """A value of the graph: its name, nbprop's shape of a sample, and whether channels are ONNX's second axis."""

    name: str
    shape: tuple[int, ...]
    first: bool = False


class _Writer:
    """The nodes and constants of a graph, layer by layer."""

    def __init__(self, onnx, net, params, statistics):
        self.onnx, self.net, self.dtype, self.statistics = onnx, net, params.dtype, statistics
        self.parts = views(net, params)
        self.nodes, self.constants, self.turned = [], {}, {}

    def model(self):
        helper, net = self.onnx.helper, self.net
        y = Value("x", net.input_shape)
        for index, layer in enumerate(net.layers):
            y = self.layer(y, layer, f"{index}.{layer.kind}")
        y = self.last(y, "y")
        self.nodes.append(helper.make_node("Identity", [y.name], ["y"], name="y"))
        element = helper.np_dtype_to_tensor_dtype(self.dtype)
        integer = self.onnx.TensorProto.INT64 if net.layers[0].index_limit else element
        graph = helper.make_graph(
            self.nodes,
            "nbprop",
            [helper.make_tensor_value_info("x", integer, ["n", *net.input_shape])],
            [helper.make_tensor_value_info("y", element, ["n", *net.output_shape])],
            [self.onnx.numpy_helper.from_array(array, name) for name, array in self.constants.items()],
            doc_string=repr(net)[:10_000],
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
            producer_name="nbprop",
            producer_version=importlib.metadata.version("nbprop"),
        )

    # -- pieces --------------------------------------------------------------------------------------------------------

    def node(self, operator, inputs, path, outputs=1, **attributes):
        """Emit a node; the name of its output, or those of several (None for one that is not wanted)."""
        name = f"{path}:{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}.{k}" if wanted else "" for k, wanted in enumerate(outputs)]
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, names, name=name, **attributes))
        return name if outputs == 1 else names

    def constant(self, name, array):
        """A constant of the file; its name."""
        array = np.array(array, order="C")
        self.constants[name] = array.astype(self.dtype) if array.dtype.kind == "f" else array
        return name

    def parameter(self, name):
        return self.constant(name, self.parts[name])

    def integers(self, values, path):
        return self.constant(f"{path}:{len(self.nodes)}.sizes", np.array(values, np.int64))

    def _axes(self, value, path, order, first):
        known = self.turned.get((value.name, first))
        if known is None:
            known = self.turned[value.name, first] = self.node("Transpose", [value.name], path, perm=order)
        return Value(known, value.shape, first)

    def last(self, value, path):
        """A value whose features are its last axis."""
        axes = len(value.shape)
        return self._axes(value, path, [0, *range(2, axes + 1), 1], False) if value.first else value

    def first(self, value, path):
        """A value whose features are its second axis."""
        axes = len(value.shape)
        return value if value.first or axes == 1 else self._axes(value, path, [0, axes, *range(1, axes)], True)

    def along(self, vector, value):
        """A vector over the features, in the form that meets a value."""
        return vector.reshape(-1, *(1,) * (len(value.shape) - 1)) if value.first else vector

    def reshaped(self, name, shape, path):
        return self.node("Reshape", [name, self.integers([-1, *shape], path)], path)

    # -- layers --------------------------------------------------------------------------------------------------------

    def layer(self, x, layer, path):
        """Emit a layer on a value; what it gives."""
        write = _LAYERS.get(layer.kind)
        if write is None:
            raise ValueError(f"to_onnx: layer {path} has no form in ONNX's operators; write a network without it")
        return write(self, x, layer, path)

    def chain(self, x, layers, path):
        for index, layer in enumerate(layers):
            x = self.layer(x, layer, f"{path}.{index}.{layer.kind}")
        return x

    def activation(self, x, name, path):
        if name == "identity":
            return x
        if name == "softmax":
            x = self.last(x, path)
            return Value(self.node("Softmax", [x.name], path, axis=-1), x.shape)
        if name == "silu":
            gate = self.node("Sigmoid", [x.name], path)
            return Value(self.node("Mul", [x.name, gate], path), x.shape, x.first)
        if name == "hard_tanh":
            ends = [self.constant(f"{path}.{end}", np.array(float(end))) for end in (-1, 1)]
            return Value(self.node("Clip", [x.name, *ends], path), x.shape, x.first)
        operator, attributes = _UNARY[name]
        return Value(self.node(operator, [x.name], path, **attributes), x.shape, x.first)


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


_LAYERS = {
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
    "dense": _dense,
    "dropout": _dropout,
    "embedding": _embedding,
    "flatten": _reshape,
    "global_avg_pool": _global_pool,
    "global_max_pool": _global_pool,
    "gru": _recurrent,
    "layernorm": _layernorm,
    "local_response_norm": _local_response_norm,
    "lstm": _recurrent,
    "max_pool1d": _pool,
    "max_pool2d": _pool,
    "positions": _positions,
    "rescale": _scaling,
    "reshape": _reshape,
    "residual": _residual,
    "rmsnorm": _rmsnorm,
    "rnn": _recurrent,
    "slicing": _slicing,
    "standardize": _scaling,
}
