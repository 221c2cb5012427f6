"""An ONNX file read as one that may be cut, damaged or made to harm: its nodes, and constants once they are asked for.

No array is made that the file does not hold: what a tensor claims is compared with its bytes first, external data lie
in the model's own folder, and what nodes make of constants has a limit.
"""

import math
import os

import numpy as np

from nbprop.interchange.onnx_library import onnx_library
from nbprop.interchange.orders import BATCH
from nbprop.io.networks import check_readable
from nbprop.validation import brief, nearest, shown

_MOST = 2**26  # elements that a constant made by nodes may have
_SEQUENTIAL = ("Loop", "Scan", "If")


class OnnxFile:
    """A graph's nodes in order; `constant(name)` is an array or None."""

    def __init__(self, function, name):
        self.function, self.name = function, name
        check_readable(function, name)
        if os.path.isdir(name):
            raise ValueError(f"{function}: {name} is a folder")
        self.onnx = onnx_library(function)
        self.folder = os.path.dirname(os.path.realpath(name))
        graph = self._graph()
        self.inputs = [value for value in graph.input if value.name not in {t.name for t in graph.initializer}]
        self.outputs = [value.name for value in graph.output]
        self.nodes = list(graph.node)
        self.producers = {output: node for node in self.nodes for output in node.output if output}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._sparse = {tensor.values.name for tensor in graph.sparse_initializer}
        self._known = {}
        self.shapes = {}  # of what is no constant, without the batch: filled by the reader
        self._check_order()

    def fail(self, text):
        return ValueError(f"{self.function}: {self.name}: {text}")

    def _graph(self):
        from google.protobuf.message import DecodeError

        with open(self.name, "rb") as file:
            content = file.read()
        if not content:
            raise self.fail("the file is empty")
        try:
            model = self.onnx.load_model_from_string(content)
        except (DecodeError, ValueError, RecursionError) as error:
            raise self.fail(f"the file is cut or damaged, or no ONNX file ({brief(error)})") from None
        if not model.graph.node or not model.graph.output or not model.opset_import:
            raise self.fail("this is no ONNX file, or its graph is cut: it lacks nodes, outputs or an opset")
        if model.functions:
            from onnx import inliner

            model = inliner.inline_local_functions(model)
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
        return model.graph

    def _check_order(self):
        """Every node reads what nodes before it have given: so nothing goes round in a circle."""
        given = {value.name for value in self.inputs} | set(self._tensors) | self._sparse | {""}
        for node in self.nodes:
            for name in node.input:
                if name not in given:
                    known = "a later one does" if name in self.producers else "no node or constant has this name"
                    raise self.fail(f"{self.said(node)} reads {shown(name)}, which no node before it gives; {known}")
            given.update(node.output)
        for name in self.outputs:
            if name not in given:
                raise self.fail(f"its output {shown(name)} is given by no node")

    def said(self, node):
        """A node in a message."""
        name = node.name or (node.output[0] if node.output else "")
        return f"node {shown(name)} ({brief(node.op_type)})"

    def unknown(self, node):
        """The error for an operator that is not read."""
        if node.op_type in _SEQUENTIAL:
            return self.fail(f"{self.said(node)} is a loop or a branch; nbprop's networks have none")
        domain = "" if node.domain in ("", "ai.onnx") else f" of domain {shown(node.domain)}"
        return self.fail(f"{self.said(node)}: operator {brief(node.op_type)}{domain} has no layer in nbprop")

    def attributes(self, node):
        """{name: value}; graphs are left out."""
        found = {}
        for attribute in node.attribute:
            kinds = self.onnx.AttributeProto
            if attribute.type in (kinds.GRAPH, kinds.GRAPHS):
                raise self.unknown(node)
            if attribute.type == kinds.TENSOR:
                found[attribute.name] = self._array(attribute.t, self.said(node))
            else:
                value = self.onnx.helper.get_attribute_value(attribute)
                value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
                found[attribute.name] = _decimal(value) if isinstance(value, float) else value
        return found

    # -- constants -----------------------------------------------------------------------------------------------------

    def constant(self, name):
        """The array that a name stands for, or None where it depends on the graph's input."""
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name):
        if name in self._tensors:
            return self._array(self._tensors[name], f"constant {shown(name)}")
        if name in self._sparse:
            raise self.fail(f"constant {shown(name)} is sparse; store it as a dense tensor")
        node = self.producers.get(name)
        if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in _FOLDED:
            return None
        if node.op_type == "Shape":
            return self._shape(node)
        inputs = [None if not entry else self.constant(entry) for entry in node.input]
        if any(found is None for entry, found in zip(node.input, inputs, strict=True) if entry):
            return None
        try:
            found = _FOLDED[node.op_type](self.attributes(node), *inputs)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise self.fail(f"{self.said(node)} fails: {brief(error)}") from None
        return found if isinstance(found, np.ndarray) else np.asarray(found)

    def _shape(self, node):
        shape = self.shapes.get(node.input[0])
        if shape is None:
            found = self.constant(node.input[0])
            if found is None:
                return None
            shape = found.shape
        attributes = self.attributes(node)
        return np.array(shape[attributes.get("start", 0) : attributes.get("end", None)], np.int64)

    def _array(self, tensor, said):
        kinds, dims = self.onnx.TensorProto, tuple(tensor.dims)
        if any(extent < 0 for extent in dims):
            raise self.fail(f"{said} has a negative size: {dims}")
        try:
            dtype = np.dtype(self.onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        except KeyError:
            raise self.fail(f"{said} has an unknown element type, number {tensor.data_type}") from None
        if tensor.data_type in (kinds.STRING, kinds.COMPLEX64, kinds.COMPLEX128):
            raise self.fail(f"{said} does not hold real numbers")
        count = math.prod(dims)
        if tensor.data_location == kinds.EXTERNAL:
            return self._external(tensor, said, dims, dtype)
        if tensor.HasField("raw_data"):
            if len(tensor.raw_data) != count * dtype.itemsize:
                raise self.fail(
                    f"{said} claims {count:,} elements of {dtype}, {count * dtype.itemsize:,} bytes, but has "
                    f"{len(tensor.raw_data):,}"
                )
        else:
            held = max(len(tensor.float_data), len(tensor.double_data), len(tensor.int64_data), len(tensor.int32_data))
            held = max(held, len(tensor.uint64_data))
            if held != count:
                raise self.fail(f"{said} claims {count:,} elements, but has {held:,}")
        try:
            return self.onnx.numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise self.fail(f"{said} is damaged: {brief(error)}") from None

    def _external(self, tensor, said, dims, dtype):
        """A tensor of a file beside the model; never of one elsewhere."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        path = os.path.realpath(os.path.join(self.folder, location))
        if not location or os.path.isabs(location):
            raise self.fail(f"{said} has its data in {shown(location)}, which is no file beside the model")
        if os.path.commonpath([path, self.folder]) != self.folder:
            raise self.fail(
                f"{said} has its data in {shown(location)}, outside the model's folder; this is refused, since such a "
                "file could name any on this machine"
            )
        if not os.path.isfile(path):
            raise self.fail(f"{said} has its data in {shown(location)}, which is not beside the model")
        try:
            offset, size = int(entries.get("offset", 0)), math.prod(dims) * dtype.itemsize
            length = int(entries.get("length", size))
        except ValueError:
            raise self.fail(f"{said}: its place in {shown(location)} is no number") from None
        if length != size or offset < 0 or offset + size > os.path.getsize(path):
            raise self.fail(
                f"{said} claims {size:,} bytes from {offset:,} on in {shown(location)}, which has "
                f"{os.path.getsize(path):,}"
            )
        return np.fromfile(path, dtype.newbyteorder("<"), math.prod(dims), offset=offset).reshape(dims).astype(dtype)

    def choose_output(self, wanted):
        """The name of the output to read: the one that is named, or the only one."""
        if wanted is None:
            if len(self.outputs) > 1:
                names = ", ".join(self.outputs[:10])
                raise self.fail(f"its graph has {len(self.outputs)} outputs; name one with output=: {brief(names)}")
            return self.outputs[0]
        if wanted not in self.outputs:
            raise self.fail(f"output: its graph has no {shown(wanted)}; {nearest(wanted, self.outputs)}")
        return wanted


def _decimal(value):
    """A number that the file has rounded to float32, as it was written: 1e-05 rather than 9.999999747378752e-06."""
    return float(str(np.float32(value)))


# -- what is computed of constants -------------------------------------------------------------------------------------


def _limited(shape):
    """A shape, if an array of it may be made."""
    shape = [int(extent) for extent in shape]
    if any(extent < 0 for extent in shape) or math.prod(shape) > _MOST:
        raise ValueError(f"it would make an array of shape {shown(tuple(shape))}")
    return shape


def _axes(attributes, axes):
    found = attributes.get("axes") if axes is None else axes.tolist()
    return None if found is None else tuple(int(axis) for axis in found)


def _unsqueeze(attributes, x, axes=None):
    axes = _axes(attributes, axes)
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = np.expand_dims(x, axis)
    return x


def _constant(attributes):
    for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
        if name in attributes:
            dtype = {"value_float": np.float32, "value_floats": np.float32}.get(name)
            return np.asarray(attributes[name], dtype)
    raise ValueError("a constant of no number")


def _filled(attributes, shape):
    value = np.asarray(attributes.get("value", np.zeros(1, np.float32))).ravel()[0]
    if BATCH in shape.tolist():  # zeros of the batch's size: an initial state, of which one sample says all
        shape = np.where(shape == BATCH, 1, shape)
    return np.full(_limited(shape), value)


def _expand(attributes, x, shape):
    shape = np.where(shape == BATCH, 1, shape)
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(_limited(shape)))).copy()


def _slice(attributes, x, starts=None, ends=None, axes=None, steps=None):
    starts = np.asarray(attributes.get("starts") if starts is None else starts)
    ends = np.asarray(attributes.get("ends") if ends is None else ends)
    axes = attributes.get("axes", range(len(starts))) if axes is None else axes
    where = [slice(None)] * x.ndim
    for k, axis in enumerate(axes):
        where[int(axis)] = slice(int(starts[k]), int(ends[k]), 1 if steps is None else int(steps[k]))
    return x[tuple(where)]


def _reshape(attributes, x, shape):
    wanted = [x.shape[k] if extent == 0 else int(extent) for k, extent in enumerate(shape.tolist())]
    return x.reshape(wanted)


def _cast(attributes, x):
    import onnx

    return x.astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))


def _elementwise(function):
    def fold(attributes, *inputs):
        shape = np.broadcast_shapes(*(x.shape for x in inputs))
        _limited(shape)
        with np.errstate(all="ignore"):
            return np.asarray(function(*inputs))

    return fold


def _divide(x, y):
    return x // y if x.dtype.kind in "iu" else x / y


def _range(attributes, start, limit, step):
    _limited([max(0, -(-(float(limit) - float(start)) // float(step)))])
    return np.arange(start, limit, step)


_FOLDED = {
    "Add": _elementwise(np.add),
    "Cast": _cast,
    "Concat": lambda attributes, *inputs: np.concatenate(inputs, attributes["axis"]),
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Div": _elementwise(_divide),
    "Expand": _expand,
    "Exp": _elementwise(np.exp),
    "Gather": lambda attributes, x, index: np.take(x, index.astype(np.int64), attributes.get("axis", 0)),
    "Identity": lambda attributes, x: x,
    "Mul": _elementwise(np.multiply),
    "Neg": _elementwise(np.negative),
    "Range": _range,
    "Reciprocal": _elementwise(lambda x: 1 / x),
    "Reshape": _reshape,
    "Shape": None,
    "Slice": _slice,
    "Sqrt": _elementwise(np.sqrt),
    "Squeeze": lambda attributes, x, axes=None: np.squeeze(x, _axes(attributes, axes)),
    "Sub": _elementwise(np.subtract),
    "Transpose": lambda attributes, x: np.transpose(x, attributes.get("perm")),
    "Unsqueeze": _unsqueeze,
}
