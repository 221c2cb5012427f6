"""ONNX's RNN, LSTM and GRU as layers."""

import dataclasses
from typing import Any

import numpy as np

from nbprop.layers.gru import GRU
from nbprop.layers.lstm import LSTM
from nbprop.layers.rnn import RNN

# Where nbprop's blocks of columns are in ONNX's gates (i o f c; z r h).
_BLOCKS = {"RNN": (0,), "LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
_USUAL = {"RNN": ["Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}
_LAYERS = {"LSTM": LSTM, "GRU": GRU}
# ONNX's name in small letters: nbprop's, alpha and beta (None where it has none).
_ACTIVATIONS = {
    "tanh": ("tanh", None, None),
    "relu": ("relu", None, None),
    "sigmoid": ("sigmoid", None, None),
    "softplus": ("softplus", None, None),
    "affine": ("identity", 1.0, 0.0),
    "leakyrelu": ("leaky_relu", 0.01, None),
    "elu": ("elu", 1.0, None),
}


def recurrent(reader, node, attributes):
    """A layer that gives all states, or one that gives the last, or both."""
    value, step = reader.value(node.input[0], node), reader.step(node)
    layout = attributes.get("layout", 0)
    if value.order != ((0, 1, 2) if layout else (1, 0, 2)):
        raise reader.fail(node, "needs sequences whose axes are the time, the batch and the features")
    _check(reader, node, attributes, step.sample(value)[0])
    layer = _layer(reader, node, attributes)
    arrays = _arrays(reader, node, layer)
    orders = (((1, None, 0, 2), (None, 0, 1)), ((0, 1, None, 2), (0, None, 1)))[layout]
    found: list[Any] = []
    for index, name in enumerate(node.output):
        if not name or name not in reader.wanted or not reader.used(name):
            found.append(None)
        elif index == 2:
            raise reader.fail(node, "hands on its cells' state, which nbprop's lstm keeps to itself")
        else:
            this = dataclasses.replace(layer, output=("sequence", "last")[index])
            found.append(step.layer(value, this, arrays, orders[index]))
    return found


def _check(reader, node, attributes, positions):
    if attributes.get("direction", "forward") != "forward":
        raise reader.fail(node, f"runs {attributes['direction']}; nbprop's layers run forward")
    for index, what in ((4, "lengths"), (5, "an initial state"), (6, "an initial state"), (7, "peepholes")):
        name = reader.optional(node, index)
        given = reader.file.constant(name) if name else np.zeros(1)
        whole = index == 4 and name and given is not None and bool((given == positions).all())
        if not whole and (given is None or given.any()):
            raise reader.fail(node, f"is given {what}, which nbprop's layer does not take")
    if attributes.get("clip", 0) or attributes.get("input_forget", 0):
        raise reader.fail(node, "clips its gates, or couples them")
    if node.op_type == "GRU" and not attributes.get("linear_before_reset", 0):
        raise reader.fail(node, "resets before the product (linear_before_reset=0); nbprop's gru resets behind it")


def _layer(reader, node, attributes):
    kind, units = node.op_type, attributes.get("hidden_size")
    units = reader.weight(node.input[2], node).shape[-1] if units is None else units
    names = [
        name.decode("utf-8", "replace") if isinstance(name, bytes) else name
        for name in attributes.get("activations", _USUAL[kind])
    ]
    if kind != "RNN":
        if [name.lower() for name in names] != [name.lower() for name in _USUAL[kind]]:
            raise reader.fail(node, f"has activations {names}; nbprop's layer has {_USUAL[kind]}")
        return _LAYERS[kind](units)
    name, *numbers = _ACTIVATIONS.get(names[0].lower(), (None, None, None))
    settings = zip(("alpha", "beta"), numbers, strict=True)
    got = {word: attributes.get(f"activation_{word}", [number])[0] for word, number in settings if number is not None}
    wanted = [number for number in numbers if number is not None]
    if name is None or any(abs(a - b) > 1e-6 for a, b in zip(got.values(), wanted, strict=True)):
        raise reader.fail(node, f"has the activation {names[0]} {got or ''}, which nbprop's rnn has not")
    return RNN(units, name)


def _arrays(reader, node, layer):
    """The layer's weights, from ONNX's (1, gates * units, ...)."""
    kind, width = node.op_type, len(_BLOCKS[node.op_type]) * layer.units
    weight, recurrent_weight = (reader.weight(name, node) for name in node.input[1:3])
    name = reader.optional(node, 3)
    both = reader.weight(name, node) if name else np.zeros((1, 2 * width), weight.dtype)
    shapes = weight.shape[:2], recurrent_weight.shape, both.shape
    if weight.ndim != 3 or shapes != ((1, width), (1, width, layer.units), (1, 2 * width)):
        raise reader.fail(
            node, f"has weights of shapes {weight.shape}, {shapes[1]}, {shapes[2]} for {layer.units} units"
        )

    def blocks(array):
        parts = np.split(array, len(_BLOCKS[kind]), axis=0)
        return np.concatenate([parts[k] for k in _BLOCKS[kind]], axis=0).T

    bias, other = blocks(both[0, :width]), blocks(both[0, width:])
    if kind != "GRU":
        return [blocks(weight[0]), blocks(recurrent_weight[0]), bias + other]
    joined = bias + np.where(np.arange(width) < 2 * layer.units, other, 0).astype(bias.dtype)
    return [blocks(weight[0]), blocks(recurrent_weight[0]), joined, other[2 * layer.units :]]
