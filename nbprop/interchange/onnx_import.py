"""`from_onnx`: the network that an ONNX file describes, where it is made of layers that nbprop has."""

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbprop.interchange import onnx_operators
from nbprop.interchange.graph import Graph
from nbprop.interchange.onnx_file import OnnxFile
from nbprop.interchange.orders import BATCH, Value, images_first
from nbprop.interchange.steps import Step
from nbprop.io.atomic import as_path
from nbprop.networks.network import Network
from nbprop.validation import brief, check_integer, shown, text

_IMAGES = frozenset(
    ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization", "LRN")
)
_RECURRENT = frozenset(("RNN", "LSTM", "GRU"))
# What may lie between the input and the operation that tells how its axes are to be read.
_ELEMENTWISE = frozenset(
    ("Add", "Cast", "Clip", "Div", "Dropout", "Identity", "Mul", "Neg", "Pad", "Relu", "Sigmoid", "Sub", "Tanh")
)


def from_onnx(path: str | os.PathLike[str], output: str | None = None) -> tuple[Network, NDArray[Any]]:
    """Read a network and its parameters from an ONNX file.

    Parameters
    ----------
    path : str or path
    output : str or None
        The name of the value that the network is to compute, where the graph has several outputs.

    Returns
    -------
    (Network, params) : params is (net.n_params,), of the weights' dtype

    Read are dense, convolutional, pooling, normalization, embedding and recurrent operators of opset 7 on, activations,
    and what lies between them, in chains with residual blocks and concatenations. Images are (height, width, channels)
    in nbprop, whatever they are in the file: x for a graph that takes (n, channels, height, width) is its transpose,
    and weights behind a flattened image are reordered. Batch normalization comes as in inference: its statistics as
    `standardize()`, its scale and shift as `rescale(trainable=True)`. Weights that two operators share are copied. The
    batch is the first axis, and all other sizes must be fixed. Needs ``nbprop[onnx]``.

    Raises
    ------
    ValueError
        For a file that is cut, damaged, claims more than it holds or names files outside its folder; for an operator or
        a graph that no network of nbprop is: the message names the node.
    OSError
        When there is no such file, or it may not be read.

    Examples
    --------
    >>> import nbprop, os, tempfile
    >>> net = nbprop.network((28, 28, 1), nbprop.conv2d(4, 3), nbprop.flatten(), nbprop.dense(10))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "digits.onnx")
    ...     nbprop.to_onnx(path, net, nbprop.init(net))
    ...     again, params = nbprop.from_onnx(path)
    >>> again == net
    True
    """
    name = as_path("from_onnx: path", path)
    wanted = None if output is None else text("from_onnx: output", output)
    file = OnnxFile("from_onnx", name)
    try:
        return _Reader(file).network(wanted)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if str(error).startswith("from_onnx"):
            raise
        # Of a file that is damaged: a field that is missing, or of another type than its place asks for.
        raise file.fail(f"it is damaged: {brief(repr(error))}") from None


class _Reader:
    """Nodes turned into a graph of layers, in order; each operator's function is in onnx_operators.py."""

    def __init__(self, file):
        self.file, self.graph = file, Graph(f"from_onnx: {file.name}")
        self.values: dict[str, Value] = {}
        self.pads: dict[str, list[tuple[int, int]]] = {}  # zeros around images, until a convolution takes them
        self.wanted: set[str] = set()
        self.dtypes: set[np.dtype[Any]] = set()
        self.batch = BATCH
        self.integers = False  # whether x holds integers

    def network(self, output):
        file = self.file
        output = file.choose_output(output)
        nodes = self.nodes = self._ancestors(output)
        self.output = output
        self._input(nodes, output)
        for node in nodes:
            given = [name for name in node.output if name]
            if all(file.constant(name) is not None for name in given):
                continue
            read = onnx_operators.READERS.get((node.domain.removeprefix("ai.onnx").removeprefix("."), node.op_type))
            if read is None:
                raise file.unknown(node)
            found = self._read(read, node)
            for name, value in zip(node.output, found if isinstance(found, list) else [found], strict=False):
                if name and value is not None:
                    self._set(name, value)
        if output not in self.values:
            raise file.fail(f"its output {shown(output)} does not depend on its input")
        value = self.value(output, None)
        if value.perm is not None:
            raise file.fail(
                f"its output {shown(output)} is an image flattened with the channels first; nbprop has them last"
            )
        return self.graph.network(value.node, np.float64 if np.dtype(np.float64) in self.dtypes else np.float32)

    def _read(self, read, node):
        try:
            return read(self, node, self.file.attributes(node))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            if str(error).startswith("from_onnx"):
                raise
            # Of a file that is damaged: an attribute that is missing, of another type, or out of range.
            raise self.fail(node, f"has attributes or inputs that do not fit: {brief(repr(error))}") from None

    def _ancestors(self, output):
        """The nodes that a value needs, in the file's order."""
        needed, left = set(), [output]
        while left:
            name = left.pop()
            if name not in self.wanted:
                self.wanted.add(name)
                node = self.file.producers.get(name)
                if node is not None and id(node) not in needed:
                    needed.add(id(node))
                    left += [entry for entry in node.input if entry]
        return [node for node in self.file.nodes if id(node) in needed]

    def _input(self, nodes, output):
        """Enter the graph's input."""
        file, inputs = self.file, [value for value in self.file.inputs if value.name in self.wanted]
        if len(inputs) != 1:
            names = ", ".join(value.name for value in inputs)
            raise file.fail(f"{shown(output)} depends on {len(inputs)} inputs ({names}); nbprop's networks have one")
        (found,) = inputs
        tensor = found.type.tensor_type
        if not found.type.HasField("tensor_type") or not tensor.HasField("shape") or len(tensor.shape.dim) < 2:
            raise file.fail(f"its input {shown(found.name)} must be a tensor with a batch and at least one more axis")
        extents = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
        order = self._order(found.name, nodes, len(extents))
        places = [extents[order.index(axis)] for axis in range(len(extents))]
        for extent in places[1:]:
            if extent < 1:
                raise file.fail(
                    f"its input {shown(found.name)} has sizes that are left open beside the batch, {extents}; export "
                    "the model with fixed ones"
                )
            check_integer(f"from_onnx: {file.name}: a size of its input", extent)
        self.batch = places[0] if places[0] > 0 else BATCH
        kind = self.file.onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else np.dtype("f4")
        self.integers = kind.kind in "iu"
        if kind == np.float64:
            self.dtypes.add(np.dtype(np.float64))
        self._set(found.name, Value(self.graph.input(places[1:]), order))

    def _order(self, name, nodes, rank):
        """How the input's axes lie, by the first operation that tells."""
        reached = {name}
        for node in nodes:
            if node.op_type == "Shape":
                continue
            if reached.intersection(node.input[:1]) or (node.op_type in _ELEMENTWISE and reached & set(node.input)):
                if node.op_type in _IMAGES and rank > 2:
                    return images_first(rank - 2)
                if node.op_type in _RECURRENT and rank == 3 and not self.file.attributes(node).get("layout", 0):
                    return (1, 0, 2)
                if node.op_type not in _ELEMENTWISE:
                    break
                reached.update(node.output)
        return tuple(range(rank))

    # -- what the operators' functions ask -----------------------------------------------------------------------------

    def _set(self, name, value):
        self.values[name] = value
        self.file.shapes[name] = Step(self.graph, name, self.batch).shape(value)

    def step(self, node):
        """What makes layers of a node."""
        return Step(self.graph, self.file.said(node), self.batch)

    def numbers(self, node, index, attributes, name):
        """A list of integers, which newer opsets have as an input, and older ones as an attribute; or None."""
        entry = self.optional(node, index)
        if not entry:
            return attributes.get(name)
        found = self.file.constant(entry)
        if found is None:
            raise self.fail(node, f"takes its {name} from the input's numbers")
        return [int(number) for number in found.ravel()]

    def fail(self, node, text):
        return self.file.fail(f"{self.file.said(node)} {text}")

    def value(self, name, node):
        """The value that a node reads."""
        found = self.values.get(name)
        if found is None:
            raise self.fail(node, f"computes with {shown(name)}, a constant, where nbprop's layers take a value")
        if name in self.pads:
            raise self.fail(node, "reads an image with zeros around it, which only a convolution can take")
        return found

    def image(self, name, node):
        """The value that a convolution reads, with zeros around it or without."""
        return self.values[name] if name in self.values else self.value(name, node)

    def used(self, name):
        """Whether another node that is needed reads a value, or it is what is asked for."""
        return name == self.output or any(name in node.input for node in self.nodes)

    def weight(self, name, node):
        """An array of weights, which must be a constant."""
        found = self.file.constant(name) if name else None
        if found is None:
            raise self.fail(node, f"takes {shown(name)} for its weights, which is computed from the input")
        if found.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise self.fail(node, f"has weights of {found.dtype}; nbprop computes in float32 and float64")
        if not np.isfinite(found).all():
            raise self.fail(node, "has weights that are not finite")
        self.dtypes.add(found.dtype)
        return found

    def number(self, name, node, usual=None):
        """A constant of one element as a float."""
        if not name:
            return usual
        found = self.file.constant(name)
        if found is None or found.size != 1:
            raise self.fail(node, f"needs a constant of one number as {shown(name)}")
        return float(found.ravel()[0])

    def optional(self, node, index):
        """The name of an input, "" where it is left out."""
        return node.input[index] if len(node.input) > index else ""
