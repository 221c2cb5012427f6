"""`to_onnx`: a network in inference as an ONNX file, in standard operators.

Arrays of the file are nbprop's: x is (n, *input_shape), an image (n, height, width, channels). ONNX's convolutions and
pools have the channels before the pixels, so that values carry along how they lie, and are transposed where the two
meet.
"""

import importlib.metadata
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbprop.arrays import check_kinds
from nbprop.interchange.onnx_layers import LAYERS, Value
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
        write = LAYERS.get(layer.kind)
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
