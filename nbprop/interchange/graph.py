"""A graph of layers, as other libraries have them, and the network that computes the same.

A reader adds a node for each operation that it meets. `Graph.network` then finds the chain from the input to the
output: where branches meet again, their common ancestor is the x of a residual block (y = x + f(x)) or of a
concatenation. Operations that no layer has (`expression`) are evaluated on random numbers, from an ancestor on, and
compared with the layers that other libraries write in pieces: gelu, silu, layer normalization.
"""

from dataclasses import dataclass

import numpy as np

from nbprop.interchange.expressions import Expression, identify
from nbprop.interchange.items import Item, layer_of, merged
from nbprop.layers.activation import Activation
from nbprop.layers.scaling import Rescale, Standardize
from nbprop.networks.network import network, views


@dataclass(frozen=True)
class Node:
    """A value of the graph: what computes it, and from which others.

    kind: "input", "item", "add", "concat" or "expression".
    """

    kind: str
    label: str
    shape: tuple[int, ...]
    parents: tuple[int, ...] = ()
    item: Item | None = None
    expression: Expression | None = None


class Graph:
    """Nodes in the order in which they were added; a value is its number."""

    def __init__(self, function):
        self.function = function  # "from_onnx", for messages
        self.nodes = []
        self._dominators, self._depths = [], []

    def _add(self, node):
        self.nodes.append(node)
        above = node.parents[0] if node.parents else None
        for other in node.parents[1:]:
            above = self._common(above, other)
        self._dominators.append(above)
        self._depths.append(0 if above is None else self._depths[above] + 1)
        return len(self.nodes) - 1

    def _common(self, a, b):
        """The nearest value that all ways from the input to a and to b pass through."""
        while a != b:
            if self._depths[a] >= self._depths[b]:
                a = self._dominators[a]
            else:
                b = self._dominators[b]
        return a

    # -- what a reader adds --------------------------------------------------------------------------------------------

    def input(self, shape):
        return self._add(Node("input", "x", tuple(shape)))

    def layer(self, parent, layer, arrays=(), label=""):
        """A layer on a value, with its parameters."""
        shape = self.nodes[parent].shape
        try:
            shape_out = tuple(layer.output_shape(shape))
            wanted = [parameter.shape for parameter in layer.parameters(shape)]
        except ValueError as error:
            raise ValueError(f"{self.function}: {label}: {error}") from None
        arrays = tuple(np.asarray(array) for array in arrays)
        if [array.shape for array in arrays] != wanted:
            got = [array.shape for array in arrays]
            raise ValueError(f"{self.function}: {label}: its weights have shapes {got}, {layer!r} needs {wanted}")
        return self._add(Node("item", label, shape_out, (parent,), Item(layer, arrays, label)))

    def scaled(self, parent, mean=None, std=None, label="", trainable=False):
        """x std + mean, by vectors over the last axis."""
        size = self.nodes[parent].shape[-1]
        arrays = (np.zeros(size) if mean is None else mean, np.ones(size) if std is None else std)
        return self.layer(parent, Rescale(trainable), arrays, label)

    def standardized(self, parent, mean=None, std=None, label=""):
        """(x - mean) / std, by vectors over the last axis."""
        size = self.nodes[parent].shape[-1]
        arrays = (np.zeros(size) if mean is None else mean, np.ones(size) if std is None else std)
        return self.layer(parent, Standardize(), arrays, label)

    def add(self, a, b, label=""):
        """The sum of two values of one shape."""
        return self._add(Node("add", label, self.nodes[a].shape, (a, b)))

    def concat(self, values, label=""):
        """Values side by side along the last axis."""
        shapes = [self.nodes[value].shape for value in values]
        if any(shape[:-1] != shapes[0][:-1] for shape in shapes):
            raise ValueError(f"{self.function}: {label}: joins shapes {shapes}; all axes but the last must agree")
        shape = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
        return self._add(Node("concat", label, shape, tuple(values)))

    def expression(self, operation, parents, label="", shape=None, **numbers):
        """An operation that is part of a layer only together with others; see expressions.py."""
        shape = self.nodes[parents[0]].shape if shape is None else shape
        return self._add(Node("expression", label, shape, tuple(parents), None, Expression(operation, **numbers)))

    # -- the network ---------------------------------------------------------------------------------------------------

    def network(self, output, dtype):
        """(Network, params) of what computes a value."""
        items = self._chain(output, 0)
        if not items:
            items = (Item(Activation("identity")),)
        _check_used_once(self.function, items)
        shape = self.nodes[0].shape
        found = network(shape, *(layer_of(item) for item in items))
        params = np.empty(found.n_params, dtype)
        _fill(views(found, params), found, items, "")
        return found, params

    def _chain(self, value, stop):
        """The items that lead from the value `stop` to `value`, each with what it takes over from the next."""
        items: list[Item] = []
        while value != stop:
            node = self.nodes[value]
            known = identify(self, value, stop) if node.kind in ("expression", "add") else None
            if known is not None:
                more, value = known
                items[:0] = more
            elif node.kind == "item":
                items.insert(0, node.item)
                (value,) = node.parents
            elif node.kind == "expression":
                raise ValueError(
                    f"{self.function}: {node.label}: no layer of nbprop computes this, alone or with the operations "
                    "before it"
                )
            else:
                above = self._dominators[value]
                items.insert(0, self._joined(node, tuple(self._chain(parent, above) for parent in node.parents)))
                value = above
        return merged(items)

    def _joined(self, node, branches):
        if node.kind == "concat":
            return Item(None, (), node.label, branches)
        straight = [branch for branch in branches if not branch]
        if len(straight) == 2:  # x + x
            size = node.shape[-1]
            return Item(Rescale(), (np.zeros(size), np.full(size, 2.0)), node.label)
        if not straight:
            raise ValueError(
                f"{self.function}: {node.label} adds two branches that both change their input; a residual block is "
                "y = x + f(x), and nbprop has no other sum"
            )
        (inner,) = (branch for branch in branches if branch)
        return Item("residual", (), node.label, (inner,))


def _check_used_once(function, items):
    """Refuse a graph whose weights would have to be in two places of the network."""
    seen = set()

    def look(items):
        for item in items:
            if item.arrays and not isinstance(item.layer, (Rescale, Standardize)):
                key = tuple(map(id, item.arrays))
                if key in seen:
                    raise ValueError(
                        f"{function}: what {item.label} computes is used in two branches that do not begin there; "
                        "nbprop's networks are chains, residual blocks and concatenations"
                    )
                seen.add(key)
            for branch in item.branches:
                look(branch)

    look(items)


def _fill(parts, net, items, prefix):
    """Copy the items' arrays to where the network has them."""
    for index, item in enumerate(items):
        path = f"{prefix}{index}.{layer_of(item).kind}"
        for name, array in zip(net.parameter_names[path], item.arrays, strict=True):
            parts[name][...] = array
        for number, branch in enumerate(item.branches):
            _fill(parts, net, branch, f"{path}." if item.layer == "residual" else f"{path}.{number}.")
