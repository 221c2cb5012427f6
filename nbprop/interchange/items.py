"""Layers together with their weights, as they are gathered from another library's graph, and what becomes of pairs.

Other libraries have a bias, an activation or the scale of a normalization as operations of their own; here they belong
to the layer in front of them.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nbprop.layers.activation import Activation
from nbprop.layers.combine import Concat, Residual
from nbprop.layers.conv.layer import Convolution
from nbprop.layers.dense.layer import Dense
from nbprop.layers.layernorm import LayerNorm, RMSNorm
from nbprop.layers.scaling import Rescale, Standardize


@dataclass(frozen=True)
class Item:
    """A layer with its parameters, in the order of `Layer.parameters`; those of a combination lie in its branches."""

    layer: Any
    arrays: tuple[np.ndarray, ...] = ()
    label: str = ""
    branches: tuple[tuple["Item", ...], ...] = ()


def layer_of(item):
    """The layer of an item, with those of its branches inside."""
    if item.layer == "residual":
        return Residual(tuple(map(layer_of, item.branches[0])))
    if item.layer is None:
        return Concat(tuple(tuple(map(layer_of, branch)) for branch in item.branches))
    return item.layer


def merged(items):
    """A chain whose scales, shifts and activations have gone into the layers in front, where these have room."""
    found: list[Item] = []
    for item in items:
        while found and (pair := _pair(found[-1], item)) is not None:
            found.pop()
            item = pair
            if _is_nothing(item):
                break
        if not _is_nothing(item):
            found.append(item)
    return tuple(found)


def _is_nothing(item):
    """Whether an item leaves every number as it is."""
    if isinstance(item.layer, Activation):
        return item.layer.name == "identity"
    if isinstance(item.layer, (Rescale, Standardize)):
        mean, std = item.arrays
        return not mean.any() and bool((std == 1).all())
    return False


def _pair(first, second):
    """One item that computes what two do, or None."""
    a, b = first.layer, second.layer
    if isinstance(a, (Dense, Convolution)) and a.activation == "identity":
        if isinstance(b, Activation):
            return replace(first, layer=replace(a, activation=b.name))
        if isinstance(b, Rescale) and not a.bias and not b.trainable and (second.arrays[1] == 1).all():
            return replace(first, layer=replace(a, bias=True), arrays=(*first.arrays, second.arrays[0]))
    if isinstance(a, (LayerNorm, RMSNorm)) and isinstance(b, Rescale):
        return _normalization(first, second)
    if isinstance(a, Standardize) and isinstance(b, Standardize) and a == b:
        (mean, std), (next_mean, next_std) = first.arrays, second.arrays
        if (std == 1).all() and not next_mean.any():
            return replace(first, arrays=(mean, next_std))
    if isinstance(a, Rescale) and isinstance(b, Rescale) and a == b:
        (mean, std), (next_mean, next_std) = first.arrays, second.arrays
        if not mean.any() or (next_std == 1).all():
            return replace(first, arrays=(mean + next_mean, std * next_std))
    return None


def _normalization(first, second):
    """A normalization with the scale and the shift of what follows, as far as it has none of its own."""
    layer, (shift, scale) = first.layer, second.arrays
    centered = isinstance(layer, LayerNorm)
    scales, shifts = bool((scale != 1).any()), bool(shift.any())
    if (scales and (layer.scale or (centered and layer.shift))) or (shifts and (not centered or layer.shift)):
        return None
    if scales:
        layer, first = replace(layer, scale=True), replace(first, arrays=(scale,))
    if shifts:
        layer, first = replace(layer, shift=True), replace(first, arrays=(*first.arrays, shift))
    return replace(first, layer=layer)
