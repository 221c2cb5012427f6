"""Layers that other libraries write in pieces, told by what the pieces compute on random numbers.

x (1 + erf(x / sqrt 2)) / 2 is gelu, however its factors are arranged; (x - mean) / sqrt(variance + eps) a layer
normalization. A pattern for each form would miss the next version's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from nbprop.interchange.items import Item
from nbprop.layers.activation import Activation
from nbprop.layers.layernorm import LayerNorm, RMSNorm
from nbprop.layers.scaling import Rescale, Standardize
from nbprop.numerics.activations import SELU_ALPHA, SELU_SCALE

_DEEPEST = 16  # common ancestors that are tried
_ALIKE = 2e-5  # relative: constants such as 1 / sqrt(2) may have been rounded to float32, or cut after a few digits


@dataclass(frozen=True)
class Expression:
    """An elementwise operation, or one over the last axis; `number` where it has one operand that is constant."""

    operation: str
    number: float = 0.0


def _softplus(x):
    return np.logaddexp(x, 0.0)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda x, y, number: x + y,
    "sub": lambda x, y, number: x - y,
    "mul": lambda x, y, number: x * y,
    "div": lambda x, y, number: x / y,
    "max": lambda x, y, number: np.maximum(x, y),
    "min": lambda x, y, number: np.minimum(x, y),
    "where": lambda condition, x, y, number: np.where(condition, x, y),
    "greater": lambda x, number: x > number,
    "less": lambda x, number: x < number,
    "divided": lambda x, number: number / x,
    "power": lambda x, number: np.power(x, number),
    "clip_below": lambda x, number: np.maximum(x, number),
    "clip_above": lambda x, number: np.minimum(x, number),
    "erf": lambda x, number: special.erf(x),
    "exp": lambda x, number: np.exp(x),
    "log": lambda x, number: np.log(x),
    "sqrt": lambda x, number: np.sqrt(x),
    "abs": lambda x, number: np.abs(x),
    "mean": lambda x, number: np.broadcast_to(x.mean(axis=-1, keepdims=True), x.shape),
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "gelu": lambda x: x * special.ndtr(x),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * special.expit(x),
    "softplus": _softplus,
    "sigmoid": special.expit,
    "tanh": np.tanh,
    "softmax": lambda x: special.softmax(x, axis=-1),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "selu": lambda x: SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(np.minimum(x, 0))),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "sine": np.sin,
}


def identify(graph, value, stop):
    """([items], ancestor) that compute a value from the farthest ancestor for which they are known; None otherwise."""
    found, above = None, graph._dominators[value]
    for _ in range(_DEEPEST):
        if above is None or graph._depths[above] < graph._depths[stop]:
            break
        x = np.random.default_rng(0).standard_normal((64, graph.nodes[above].shape[-1])) * 2.5
        try:
            constants: set[float] = set()
            y = _evaluate(graph, value, above, x, constants, {})
        except _NoExpression:
            break
        items = _known(x, y, constants)
        if items is not None:
            found = items, above
        above = graph._dominators[above]
    return found


class _NoExpression(Exception):
    pass


def _evaluate(graph, value, stop, x, constants, known):
    """A value's rows, from those of the ancestor `stop`."""
    if value == stop:
        return x
    if value in known:
        return known[value]
    node = graph.nodes[value]
    if node.kind == "input" or node.kind == "concat" or node.shape != graph.nodes[stop].shape:
        raise _NoExpression
    inputs = [_evaluate(graph, parent, stop, x, constants, known) for parent in node.parents]
    with np.errstate(all="ignore"):
        if node.kind == "add":
            found = inputs[0] + inputs[1]
        elif node.kind == "expression":
            found = OPERATIONS[node.expression.operation](*inputs, node.expression.number)
        else:
            found = _evaluate_item(node.item, inputs[0], constants)
    known[value] = found
    return found


def _evaluate_item(item, x, constants):
    layer = item.layer
    if isinstance(layer, Activation):
        return FUNCTIONS[layer.name](x)
    if not isinstance(layer, (Rescale, Standardize)):
        raise _NoExpression
    mean, std = (np.asarray(array, np.float64) for array in item.arrays)
    if (mean == mean[0]).all():
        constants.add(float(mean[0]))  # an epsilon, it may be
    return x * std + mean if isinstance(layer, Rescale) else (x - mean) / std


def _known(x, y, constants):
    """Items that turn x into y, or None."""
    if not np.isfinite(y).all():
        return None
    for name, function in FUNCTIONS.items():
        factor = _factor(y, function(x))
        if factor is not None:
            return _scaled(Item(Activation(name)), factor, x.shape[-1])
    for epsilon in sorted(c for c in constants if 0 < c < 1):
        square = np.mean(x * x, axis=-1, keepdims=True)
        rms = x / np.sqrt(square + epsilon)
        centered = x - x.mean(axis=-1, keepdims=True)
        norm = centered / np.sqrt(np.mean(centered * centered, axis=-1, keepdims=True) + epsilon)
        for layer, wanted in ((RMSNorm(epsilon, False), rms), (LayerNorm(epsilon, False, False), norm)):
            factor = _factor(y, wanted) if x.shape[-1] > 1 else None
            if factor is not None:
                return _scaled(Item(layer), factor, x.shape[-1])
    return None


def _factor(y, wanted):
    """c if y = c wanted, to rounding; None otherwise."""
    size = float((wanted * wanted).sum())
    factor = float((y * wanted).sum()) / size if size else 0.0
    if factor == 0:
        return None
    nearest = round(factor * 16) / 16  # what a rounding of constants has moved it from
    factor = nearest if nearest and abs(factor / nearest - 1) < _ALIKE else factor
    error = np.abs(y - factor * wanted).max()
    return factor if error <= _ALIKE * max(np.abs(y).max(), 1e-300) else None


def _scaled(item, factor, size):
    if factor == 1:
        return [item]
    return [item, Item(Rescale(), (np.zeros(size), np.full(size, factor)))]
