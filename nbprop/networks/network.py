"""What a network is: an input shape and layers; sizes, names, initial weights, and JSON both ways.

A network holds no numbers. Its parameters are one flat array in network order: for each layer in turn, each weight
row-major, then its bias, with no padding.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbprop.arrays import as_array, check_memory, check_shape
from nbprop.networks.layer import INITIALIZERS, Layer, Parameter, layer_from_config
from nbprop.validation import MOST, choose, nearest, positive, shown

_DEEPEST = 32  # layers within layers: what goes down into them calls itself
_DEEPEST_JSON = 4 * _DEEPEST  # lists and objects within each other; a layer inside another is up to three
_LARGEST = 2**48  # elements of a value or of all parameters: two thousand terabytes


def read_json(text):
    """What a JSON text holds. Raises ValueError for all that is none, or goes too deep to be followed."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"JSON nested more than {_DEEPEST_JSON} deep") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"not JSON: {error}") from None
    level, depth = [found], 0
    while level:
        if depth > _DEEPEST_JSON:
            raise ValueError(f"JSON nested more than {_DEEPEST_JSON} deep")
        inside = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list)))
        level, depth = [item for items in inside for item in items], depth + 1
    return found


@dataclass(frozen=True)
class Slot:
    """Where one parameter lies in the flat array."""

    path: str
    parameter: Parameter
    offset: int
    stop: int

    @property
    def size(self):
        return self.stop - self.offset


class Network:
    """An immutable description; made by `network`.

    >>> import nbprop
    >>> net = nbprop.network((64,), nbprop.dense(32, activation="tanh"), nbprop.dense(10))
    >>> net.n_params, net.input_shape, net.output_shape
    (2410, (64,), (10,))
    >>> nbprop.Network.from_json(net.to_json()) == net
    True
    """

    def __init__(self, input_shape, layers):
        self.input_shape = tuple(positive("input_shape", extent) for extent in _as_tuple(input_shape))
        if math.prod(self.input_shape) > _LARGEST:
            raise ValueError(f"network: input_shape {self.input_shape} holds more than {_LARGEST:,} numbers")
        self.layers = tuple(layers)
        if not self.layers:
            raise ValueError("network: give at least one layer, for instance nbprop.dense(10)")
        self.slots: dict[str, Slot] = {}
        self.parameter_names: dict[str, list[str]] = {}  # of each layer's own parameters, by the layer's path
        self.nodes: list[tuple[str, Layer]] = []  # every layer by its path, those inside others after them
        self.shapes = [self.input_shape]
        self.n_params = 0
        self._sequences: set[int] = set()  # over how many positions layers heed the lengths of a call
        for index, layer in enumerate(self.layers):
            if not isinstance(layer, Layer):
                raise TypeError(
                    f"network: layer {index} must be a layer such as nbprop.dense(10), got {type(layer).__name__}"
                )
            self.shapes.append(self._add(f"{index}.{layer.kind}", layer, self.shapes[-1]))
        # The maximum length that a call may give: the first axis of x, or 0 where no layer uses lengths.
        self.max_length = self.input_shape[0] if self._sequences == set(self.input_shape[:1]) != set() else 0
        for path, layer in self.nodes[1:]:
            if layer.index_limit:
                raise ValueError(f"layer {path} takes integers, which only x holds; put it first in the network")
        self.output_shape = self.shapes[-1]
        try:
            self._key = _key_of([self.input_shape, *(layer.to_config() for layer in self.layers)])
        except (TypeError, ValueError):
            raise self._not_for_json() from None

    def _not_for_json(self):
        """The error for a layer whose description JSON cannot hold."""
        for layer in self.layers:
            try:
                _key_of(layer.to_config())
            except (TypeError, ValueError) as error:
                return ValueError(f"network: what JSON cannot hold describes {shown(layer)}: {error}")
        raise RuntimeError("network: JSON holds each layer's description, but not all of them")

    def _add(self, path, layer, input_shape, depth=0):
        if depth > _DEEPEST:
            raise ValueError(f"layer {path}: layers are nested more than {_DEEPEST} deep")
        said = f"layer {path} on an input of shape {input_shape}"
        try:
            output_shape = _shape("its output", layer.output_shape(input_shape))
            own = [_checked(parameter) for parameter in layer.parameters(input_shape)]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{said}: {error}") from None
        except Exception as error:  # a layer of a user's own
            raise ValueError(f"{said}: {type(error).__name__}: {error}") from error
        self.nodes.append((path, layer))
        if layer.takes_lengths:
            self._sequences.add(input_shape[0])
        names = self.parameter_names[path] = [f"{path}.{parameter.name}" for parameter in own]
        for name, parameter in zip(names, own, strict=True):
            begin, self.n_params = self.n_params, self.n_params + parameter.size
            self.slots[name] = Slot(name, parameter, begin, self.n_params)
        for name, child, child_input in layer.children(input_shape):
            self._add(f"{path}.{name}", child, child_input, depth + 1)
        if self.n_params > _LARGEST:
            raise ValueError(f"{said}: the network has more than {_LARGEST:,} parameters")
        self._check_shared(path, layer, input_shape)
        return output_shape

    def _check_shared(self, path, layer, input_shape):
        for owner, parameter in layer.shared(input_shape):
            slot = self.slots.get(owner)
            if slot is None:
                raise ValueError(f"layer {path}: share={layer.share!r} finds no {owner}; {nearest(owner, self.slots)}")
            if slot.parameter.shape != parameter.shape:
                raise ValueError(
                    f"layer {path}: share={layer.share!r} needs shape {parameter.shape}, "
                    f"but {owner} has {slot.parameter.shape}"
                )

    def to_config(self):
        return {"input_shape": list(self.input_shape), "layers": [layer.to_config() for layer in self.layers]}

    def to_json(self):
        """The description as a JSON text; `Network.from_json` reads it."""
        return json.dumps(self.to_config())

    @classmethod
    def from_json(cls, text):
        """A network from `to_json`'s text. Raises ValueError for anything else."""
        try:
            config = read_json(text)
        except ValueError as error:
            raise ValueError(f"not the JSON of an nbprop network: {error}") from None
        return cls.from_config(config)

    @classmethod
    def from_config(cls, config):
        """A network from what `to_config` has returned. Raises ValueError for anything else."""
        if not isinstance(config, dict) or not {"input_shape", "layers"} <= set(config):
            raise ValueError(
                f"not the JSON of an nbprop network: it must have input_shape and layers, got {shown(config)}"
            )
        shape, layers = config["input_shape"], config["layers"]
        if not isinstance(shape, list) or not isinstance(layers, list):
            raise ValueError("not the JSON of an nbprop network: input_shape and layers must be lists")
        return cls(tuple(shape), [layer_from_config(layer) for layer in layers])

    def __reduce__(self):
        return Network, (self.input_shape, self.layers)

    def __eq__(self, other):
        return isinstance(other, Network) and self._key == other._key

    def __hash__(self):
        return hash(self._key)

    def __repr__(self):
        return f"network({self.input_shape}, {', '.join(map(repr, self.layers))})"


def _key_of(config):
    """A text by which equal descriptions are known."""
    return json.dumps(config, sort_keys=True)


def _as_tuple(shape):
    if isinstance(shape, (int, np.integer)):
        return (shape,)
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"input_shape must be a tuple of integers, got {shown(shape)}")
    return tuple(shape)


def _shape(said, shape):
    """A shape as a tuple of Python's integers."""
    shape = tuple(shape)
    if not all(
        type(extent) is int and 0 < extent <= MOST for extent in shape
    ):  # the message is made where it is needed
        shape = tuple(positive(f"{said}'s extents", extent) for extent in shape)
    if math.prod(shape) > _LARGEST:
        raise ValueError(f"{said} of shape {shape} holds more than {_LARGEST:,} numbers")
    return shape


def _checked(parameter):
    """A parameter, once its initializer has been found to fit its shape."""
    shape = _shape(f"parameter {parameter.name}", parameter.shape)
    names = parameter.init if isinstance(parameter.init, tuple) else (parameter.init,)
    for name in () if isinstance(parameter.init, float) else names:
        if len(shape) < 2 and choose("initializer", name, INITIALIZERS)[1] not in ("zeros", "ones"):
            raise ValueError(f"parameter {parameter.name} of shape {shape}: {name!r} needs an input and an output axis")
    return parameter


def network(input_shape: tuple[int, ...], *layers: Layer) -> Network:
    """Describe a network.

    Parameters
    ----------
    input_shape : tuple of int
        The shape of one sample, without the batch: (64,), or (28, 28, 1) for an NHWC image.
    *layers : layers
        What `nbprop.dense`, `nbprop.activation`, `nbprop.flatten`, `nbprop.residual`, `nbprop.concat` and a user's own
        layers return, in order.

    Returns
    -------
    Network
        With `n_params`, `input_shape`, `output_shape`.

    Raises
    ------
    ValueError
        When a layer cannot take the shape that reaches it; names the layer.

    Examples
    --------
    >>> import nbprop
    >>> net = nbprop.network((64,), nbprop.dense(32, activation="tanh"), nbprop.dense(10))
    >>> net.n_params
    2410
    """
    return Network(input_shape, layers)


def views(net: Network, params: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The parts of a flat array by name, as views: ``{"0.dense.weight": (64, 32) view, ...}``.

    `params` is (net.n_params,), any dtype: parameters, gradients or optimizer state. Costs no copy; writing to a view
    writes to `params`.

    >>> import nbprop
    >>> net = nbprop.network((3,), nbprop.dense(2))
    >>> params = nbprop.init(net, seed=0)
    >>> nbprop.views(net, params)["0.dense.bias"][:] = 7.0  # a part of params itself
    >>> params[-2:]
    array([7., 7.])
    """
    if not isinstance(net, Network):
        raise TypeError(f"views: net must be what nbprop.network(...) returns, got {shown(net)}")
    params = check_flat("views: params", params, net.n_params)
    return {path: params[s.offset : s.stop].reshape(s.parameter.shape) for path, s in net.slots.items()}


def trainable_mask(net: Network) -> NDArray[np.bool_]:
    """Which parameters training may change: (net.n_params,) bool, False where a layer holds numbers that are given.

    `fit`, `minimize` and `least_squares` heed it by themselves, beside the `trainable` that they are given. It is for
    loops of one's own whose optimizer decays weights: ``nbprop.adamw(params, grads, state, step, trainable=mask)``.

    >>> import nbprop
    >>> nbprop.trainable_mask(nbprop.network((1,), nbprop.standardize(), nbprop.dense(1)))
    array([False, False,  True,  True])
    """
    if not isinstance(net, Network):
        raise TypeError(f"trainable_mask: net must be what nbprop.network(...) returns, got {shown(net)}")
    mask = np.ones(net.n_params, bool)
    for slot in net.slots.values():
        mask[slot.offset : slot.stop] = slot.parameter.trained
    return mask


def trained_of(net, wanted):
    """The parameters to be trained among those `wanted`, a mask or None for all; None where that is every one."""
    if all(slot.parameter.trained for slot in net.slots.values()):
        return wanted
    mask = trainable_mask(net)
    return mask if wanted is None else mask & wanted.astype(bool)


def check_flat(name, array, size):
    """A 1-D contiguous array of `size` elements, as a plain array; name: with the function in front."""
    array = as_array(name, array)
    check_shape(name, array, (size,))
    check_memory(name, array)
    return array


def positions_that_count(max_length, shape):
    """How many positions of a value a call's lengths may cut; 1 for a value without positions."""
    return max_length if len(shape) > 1 and shape[0] == max_length else 1
