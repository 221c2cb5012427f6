"""ONNX's operators as layers: a function for each, of the reader, the node and its attributes, that gives a value.

Semantics are those of https://onnx.ai/onnx/operators/; a setting that no layer has is an error that names the node.
"""

import numpy as np

from nbprop.interchange.onnx_recurrent import recurrent
from nbprop.interchange.orders import images_first
from nbprop.layers.embedding import Embedding
from nbprop.layers.layernorm import LayerNorm, RMSNorm
from nbprop.layers.local_response_norm import LocalResponseNorm
from nbprop.layers.prelu import PReLU
from nbprop.numerics.activations import SELU_ALPHA, SELU_SCALE

# -- products ----------------------------------------------------------------------------------------------------------


def gemm(reader, node, attributes):
    value, weight = reader.value(node.input[0], node), reader.weight(node.input[1], node)
    if attributes.get("transA", 0) or weight.ndim != 2:
        raise reader.fail(node, "transposes its input, or has weights that are no matrix")
    weight = (weight.T if attributes.get("transB", 0) else weight) * weight.dtype.type(attributes.get("alpha", 1.0))
    name, bias = reader.optional(node, 2), None
    if name:
        bias = reader.weight(name, node).ravel() * weight.dtype.type(attributes.get("beta", 1.0))
        bias = np.broadcast_to(bias, weight.shape[1:]) if bias.size == 1 else bias
    return reader.step(node).dense(value, weight, bias)


def matmul(reader, node, attributes):
    value, weight = reader.value(node.input[0], node), reader.weight(node.input[1], node)
    if weight.ndim != 2:
        raise reader.fail(node, f"multiplies with weights of shape {weight.shape}; a dense layer has a matrix")
    return reader.step(node).dense(value, weight)


def gather(reader, node, attributes):
    """A row of a matrix for each integer, or one element of an axis."""
    step, axis = reader.step(node), attributes.get("axis", 0)
    if reader.file.constant(node.input[0]) is None:
        value, index = reader.value(node.input[0], node), reader.file.constant(node.input[1])
        if index is None or index.size != 1:
            raise reader.fail(node, "picks elements by numbers that nbprop has no layer for")
        return step.element(value, axis, int(index.ravel()[0]), keep=index.ndim > 0)
    weight, value = reader.weight(node.input[0], node), reader.value(node.input[1], node)
    if weight.ndim != 2 or axis:
        raise reader.fail(node, "takes other than rows of a matrix; an embedding does that")
    order = (*value.order, len(step.sample(value)) + 1)
    return step.layer(value, Embedding(*weight.shape), [weight], order)


# -- images ------------------------------------------------------------------------------------------------------------


def _channels_first(reader, node, value):
    """How many axes the pixels of a value have, its channels being the file's second axis."""
    axes = len(value.order) - 2
    if axes not in (1, 2) or value.order != images_first(axes):
        raise reader.fail(node, "needs images or sequences with the channels before the pixels, in one batch")
    return axes


def _settings(reader, node, attributes, axes, kernel=()):
    kernel = list(attributes.get("kernel_shape", kernel))
    strides, dilations = (list(attributes.get(name, [1] * axes)) for name in ("strides", "dilations"))
    if not len(kernel) == len(strides) == len(dilations) == axes or min(*kernel, *strides, *dilations) < 1:
        raise reader.fail(node, f"has a kernel {kernel}, strides {strides}, dilations {dilations} for {axes} axes")
    return kernel, strides, dilations


def _pads(reader, node, attributes, value, kernel, strides, dilations):
    """(before, after) for each axis of pixels."""
    shape, found, axes = reader.step(node).sample(value), [], len(kernel)
    mode = attributes.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        pads = attributes.get("pads", [0] * (2 * axes)) if mode == "NOTSET" else [0] * (2 * axes)
        if len(pads) != 2 * axes or min(pads) < 0:
            raise reader.fail(node, f"has pads {pads} for {axes} axes")
        return [(pads[k], pads[k + axes]) for k in range(axes)]
    for extent, size, stride, dilation in zip(shape, kernel, strides, dilations, strict=False):
        total = max(0, (-(-extent // stride) - 1) * stride + dilation * (size - 1) + 1 - extent)
        small, large = total // 2, total - total // 2
        found.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return found


def conv(reader, node, attributes):
    around, value = reader.pads.get(node.input[0]), reader.image(node.input[0], node)
    axes, weight = _channels_first(reader, node, value), reader.weight(node.input[1], node)
    if weight.ndim != axes + 2:
        raise reader.fail(node, f"has weights of shape {weight.shape} for images of {axes} axes")
    kernel, strides, dilations = _settings(reader, node, attributes, axes, weight.shape[2:])
    pads = _pads(reader, node, attributes, value, kernel, strides, dilations)
    if around:
        pads = [(a + c, b + d) for (a, b), (c, d) in zip(pads, around, strict=True)]
    name = reader.optional(node, 2)
    bias = reader.weight(name, node) if name else None
    weight = weight.transpose(*range(2, axes + 2), 1, 0)
    return reader.step(node).conv(value, weight, bias, strides, pads, dilations, attributes.get("group", 1))


def pool(reader, node, attributes):
    value = reader.value(node.input[0], node)
    axes, largest = _channels_first(reader, node, value), node.op_type == "MaxPool"
    kernel, strides, dilations = _settings(reader, node, attributes, axes)
    pads = _pads(reader, node, attributes, value, kernel, strides, dilations)
    if any(before != after for before, after in pads) or dilations != [1] * axes:
        raise reader.fail(
            node, f"has pads {pads}, dilations {dilations}; nbprop's pools have the same on both sides, 1"
        )
    padding = [before for before, _ in pads]
    ceil, counts = bool(attributes.get("ceil_mode", 0)), bool(attributes.get("count_include_pad", 0))
    return reader.step(node).pool(value, largest, kernel, strides, padding, ceil, counts)


def global_pool(reader, node, attributes):
    value = reader.value(node.input[0], node)
    axes = _channels_first(reader, node, value)
    return reader.step(node).global_pool(value, node.op_type == "GlobalMaxPool", range(2, axes + 2), keep=True)


def reduce(reader, node, attributes):
    """The mean or the maximum over all pixels; the mean over the features, as a part of something else."""
    value, step = reader.value(node.input[0], node), reader.step(node)
    axes = reader.numbers(node, 1, attributes, "axes")
    axes = list(range(len(value.order))) if axes is None else axes
    if any(not -len(value.order) <= axis < len(value.order) for axis in axes):
        raise reader.fail(node, f"runs over axes {axes} of {len(value.order)}")
    mean, keep = node.op_type == "ReduceMean", bool(attributes.get("keepdims", 1))
    if mean and keep and value.perm is None and {value.order[axis] for axis in axes} == {len(step.sample(value))}:
        return step.expression("mean", value)
    return step.global_pool(value, not mean, axes, keep)


def pad(reader, node, attributes):
    """Zeros around an image, which the convolution behind it takes over."""
    value = reader.value(node.input[0], node)
    pads = reader.numbers(node, 1, attributes, "pads")
    number = reader.number(reader.optional(node, 2), node, attributes.get("value", 0.0))
    axes, rank = reader.numbers(node, 3, attributes, "axes"), len(value.order)
    if axes is not None:
        whole = [0] * (2 * rank)
        for k, axis in enumerate(axes):
            whole[axis % rank], whole[axis % rank + rank] = pads[k], pads[k + len(axes)]
        pads = whole
    if attributes.get("mode", "constant") != "constant" or number or min(pads) < 0 or len(pads) != 2 * rank:
        raise reader.fail(node, "pads with other than zeros")
    last = len(reader.step(node).sample(value))
    around = {axis: (pads[k], pads[k + rank]) for k, axis in enumerate(value.order) if pads[k] or pads[k + rank]}
    if not around.keys() <= set(range(1, last)):
        raise reader.fail(node, "pads an axis that is none of an image's pixels")
    if around:
        reader.pads[node.output[0]] = [around.get(axis, (0, 0)) for axis in range(1, last)]
    return value


# -- normalizations ----------------------------------------------------------------------------------------------------


def batch_normalization(reader, node, attributes):
    value, step = reader.value(node.input[0], node), reader.step(node)
    if attributes.get("training_mode", 0):
        raise reader.fail(node, "is in training mode; export the model for inference")
    shape = step.sample(value)
    if value.order[1:2] != (len(shape),):
        raise reader.fail(node, "normalizes an axis that is not the last one in nbprop")
    scale, shift, mean, variance = (reader.weight(name, node) for name in node.input[1:5])
    if any(array.shape != shape[-1:] for array in (scale, shift, mean, variance)) or variance.min() < 0:
        raise reader.fail(node, f"has statistics that are no vectors of {shape[-1]}, or a negative variance")
    return step.batchnorm(value, mean, variance, attributes.get("epsilon", 1e-5), scale, shift)


def layer_normalization(reader, node, attributes):
    value = reader.value(node.input[0], node)
    if attributes.get("axis", -1) % len(value.order) != len(value.order) - 1:
        raise reader.fail(node, "normalizes more axes than the last")
    epsilon, arrays = float(attributes.get("epsilon", 1e-5)), [reader.weight(x, node) for x in node.input[1:] if x]
    centered = node.op_type == "LayerNormalization"
    layer = LayerNorm(epsilon, True, len(arrays) == 2) if centered else RMSNorm(epsilon)
    return reader.step(node).normalized(value, layer, arrays)


def local_response_norm(reader, node, attributes):
    value, size = reader.value(node.input[0], node), attributes.get("size", 0)
    _channels_first(reader, node, value)
    if size % 2 == 0:
        raise reader.fail(node, f"has an even window of {size}, which lies the other way round in nbprop")
    alpha, beta = attributes.get("alpha", 1e-4), attributes.get("beta", 0.75)
    return reader.step(node).layer(value, LocalResponseNorm(size, alpha / size, beta, attributes.get("bias", 1.0)))


# -- elementwise -------------------------------------------------------------------------------------------------------


def _activation(name, **needed):
    """The reader of an activation. needed: {attribute: (its default, the value that nbprop has)}."""

    def read(reader, node, attributes):
        for setting, (usual, wanted) in needed.items():
            got = attributes.get(setting, usual)
            if abs(got - wanted) > 1e-6:
                raise reader.fail(node, f"has {setting}={got:.6g}; nbprop's {name} has {wanted}")
        return reader.step(node).activation(reader.value(node.input[0], node), name)

    return read


def gelu(reader, node, attributes):
    name = "gelu_tanh" if attributes.get("approximate", "none") == "tanh" else "gelu"
    return reader.step(node).activation(reader.value(node.input[0], node), name)


def softmax(reader, node, attributes):
    value = reader.value(node.input[0], node)
    rank = len(value.order)
    if attributes.get("axis", -1 if reader.file.opset >= 13 else 1) % rank != rank - 1:
        raise reader.fail(node, "runs over an axis other than the last")
    return reader.step(node).activation(value, "softmax")


def same(reader, node, attributes):
    """What changes nothing: a cast between numbers of one kind, dropout in use."""
    value = reader.value(node.input[0], node)
    if node.op_type == "Cast":
        kind = reader.file.onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
        whole = value.node == 0 and reader.integers
        if kind.kind not in ("iu" if whole else "f") or kind.itemsize < 4:
            raise reader.fail(node, f"turns its input into {kind}")
    if node.op_type == "Dropout" and reader.optional(node, 2) and reader.number(node.input[2], node):
        raise reader.fail(node, "is in training mode; export the model for inference")
    return value


def _expression(operation):
    def read(reader, node, attributes):
        return reader.step(node).expression(operation, reader.value(node.input[0], node))

    return read


def negative(reader, node, attributes):
    return reader.step(node).binary("mul", reader.value(node.input[0], node), np.array(-1.0))


def reciprocal(reader, node, attributes):
    return reader.step(node).expression("divided", reader.value(node.input[0], node), 1.0)


def power(reader, node, attributes):
    value = reader.value(node.input[0], node)
    return reader.step(node).expression("power", value, reader.number(node.input[1], node))


def clip(reader, node, attributes):
    value = reader.value(node.input[0], node)
    low = reader.number(reader.optional(node, 1), node, attributes.get("min", -np.inf))
    high = reader.number(reader.optional(node, 2), node, attributes.get("max", np.inf))
    name = "hard_tanh" if (low, high) == (-1, 1) else "relu"
    if name == "relu" and (low != 0 or high < 1e38):
        raise reader.fail(
            node, f"keeps values within {low:g}..{high:g}; nbprop has relu, which is 0 and above, and hard_tanh"
        )
    return reader.step(node).activation(value, name)


def prelu(reader, node, attributes):
    value, step = reader.value(node.input[0], node), reader.step(node)
    return step.layer(value, PReLU(), [step.vector(value, reader.weight(node.input[1], node))], perm=value.perm)


def binary(reader, node, attributes):
    if len(node.input) != 2:
        raise reader.fail(node, f"has {len(node.input)} operands")
    operands = []
    for name in node.input:
        known = reader.file.constant(name) is not None
        operands.append(reader.weight(name, node) if known else reader.value(name, node))
    return reader.step(node).binary(node.op_type.lower(), *operands)


def compare(reader, node, attributes):
    """x > number; the side that an equal x falls to is no part of any layer."""
    operation = "greater" if node.op_type.startswith("Greater") else "less"
    number = reader.number(node.input[1], node)
    return reader.step(node).expression(operation, reader.value(node.input[0], node), number)


def where(reader, node, attributes):
    values = [reader.value(name, node) for name in node.input]
    return reader.step(node).joined("where", values)


def scaler(reader, node, attributes):
    """ai.onnx.ml's: (x - offset) scale."""
    step, value = reader.step(node), reader.value(node.input[0], node)
    offset, scale = (np.array(attributes[name], np.float32) for name in ("offset", "scale"))
    return step.binary("mul", step.binary("sub", value, offset), scale)


# -- shapes ------------------------------------------------------------------------------------------------------------


def transpose(reader, node, attributes):
    value = reader.value(node.input[0], node)
    return reader.step(node).transpose(value, attributes.get("perm", list(range(len(value.order)))[::-1]))


def squeeze(reader, node, attributes):
    return reader.step(node).squeeze(reader.value(node.input[0], node), reader.numbers(node, 1, attributes, "axes"))


def unsqueeze(reader, node, attributes):
    return reader.step(node).unsqueeze(reader.value(node.input[0], node), reader.numbers(node, 1, attributes, "axes"))


def flatten(reader, node, attributes):
    value = reader.value(node.input[0], node)
    if attributes.get("axis", 1) % len(value.order) != 1:
        raise reader.fail(node, "flattens the batch, too")
    return reader.step(node).flat(value)


def reshape(reader, node, attributes):
    value, step = reader.value(node.input[0], node), reader.step(node)
    wanted, before = reader.numbers(node, 1, attributes, "shape"), step.shape(value)
    if not attributes.get("allowzero", 0):
        wanted = [before[k] if extent == 0 and k < len(before) else extent for k, extent in enumerate(wanted)]
    return step.reshape(value, wanted)


def slice_(reader, node, attributes):
    value, step = reader.value(node.input[0], node), reader.step(node)
    starts, ends = (reader.numbers(node, k, attributes, name) for k, name in ((1, "starts"), (2, "ends")))
    axes = reader.numbers(node, 3, attributes, "axes") or list(range(len(starts)))
    strides = reader.numbers(node, 4, attributes, "steps") or [1] * len(starts)
    for start, end, axis, stride in zip(starts, ends, axes, strides, strict=True):
        axis %= len(value.order)
        if stride != 1:
            raise reader.fail(node, f"takes elements in steps of {stride}")
        value = step.part(value, axis, *slice(start, end).indices(step.shape(value)[axis])[:2])
    return value


def split(reader, node, attributes):
    value, step = reader.value(node.input[0], node), reader.step(node)
    axis = attributes.get("axis", 0) % len(value.order)
    extent, sizes = step.shape(value)[axis], reader.numbers(node, 1, attributes, "split")
    if sizes is None:
        each = -(-extent // len(node.output))
        sizes = [min(each, extent - k * each) for k in range(len(node.output))]
    found, first = [], 0
    for name, size in zip(node.output, sizes, strict=True):
        found.append(step.part(value, axis, first, first + size) if name in reader.wanted else None)
        first += size
    return found


def concat(reader, node, attributes):
    return reader.step(node).concat([reader.value(name, node) for name in node.input], attributes["axis"])


READERS = {
    ("", name): function
    for names, function in (
        ("Add Div Max Min Mul Sub", binary),
        ("AveragePool MaxPool", pool),
        ("BatchNormalization", batch_normalization),
        ("Cast Dropout Identity", same),
        ("Clip", clip),
        ("Concat", concat),
        ("Conv", conv),
        ("Elu", _activation("elu", alpha=(1.0, 1.0))),
        ("Flatten", flatten),
        ("GRU LSTM RNN", recurrent),
        ("Gather", gather),
        ("Gelu", gelu),
        ("Gemm", gemm),
        ("GlobalAveragePool GlobalMaxPool", global_pool),
        ("Greater GreaterOrEqual Less LessOrEqual", compare),
        ("LRN", local_response_norm),
        ("LayerNormalization RMSNormalization", layer_normalization),
        ("HardSigmoid", _activation("hard_sigmoid", alpha=(0.2, 1 / 6), beta=(0.5, 0.5))),
        ("HardSwish", _activation("hard_swish")),
        ("LeakyRelu", _activation("leaky_relu", alpha=(0.01, 0.01))),
        ("Mish", _activation("mish")),
        ("Selu", _activation("selu", alpha=(SELU_ALPHA, SELU_ALPHA), gamma=(SELU_SCALE, SELU_SCALE))),
        ("Sin", _activation("sine")),
        ("Softsign", _activation("softsign")),
        ("MatMul", matmul),
        ("Neg", negative),
        ("PRelu", prelu),
        ("Pad", pad),
        ("Pow", power),
        ("Reciprocal", reciprocal),
        ("ReduceMax ReduceMean", reduce),
        ("Relu", _activation("relu")),
        ("Reshape", reshape),
        ("Sigmoid", _activation("sigmoid")),
        ("Slice", slice_),
        ("Softmax", softmax),
        ("Softplus", _activation("softplus")),
        ("Split", split),
        ("Squeeze", squeeze),
        ("Swish", _activation("silu", alpha=(1.0, 1.0))),
        ("Tanh", _activation("tanh")),
        ("Transpose", transpose),
        ("Unsqueeze", unsqueeze),
        ("Where", where),
        *((name, _expression(name.lower())) for name in ("Abs", "Erf", "Exp", "Log", "Sqrt")),
    )
    for name in names.split()
} | {("ml", "Scaler"): scaler}
