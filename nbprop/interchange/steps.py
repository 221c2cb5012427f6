"""One operation of another library, as layers of a graph: what readers of ONNX, PyTorch and Keras share.

Weights come as nbprop has them. A value's axes may lie in another order (orders.py); what a layer cannot do is an error
that begins with the operation's name in its own library.
"""

import numpy as np

from nbprop.interchange.moves import Moves
from nbprop.interchange.orders import Value, images_first, rows_in_order
from nbprop.layers.activation import Activation
from nbprop.layers.conv.layer import Conv1d, Conv2d
from nbprop.layers.dense.layer import Dense
from nbprop.layers.pool import AvgPool1d, AvgPool2d, GlobalAvgPool, GlobalMaxPool, MaxPool1d, MaxPool2d
from nbprop.layers.positions import Positions

_POOLS = {(True, 1): MaxPool1d, (True, 2): MaxPool2d, (False, 1): AvgPool1d, (False, 2): AvgPool2d}


class Step(Moves):
    """The operation that `said` names, on a graph."""

    # -- features ------------------------------------------------------------------------------------------------------

    def features_last(self, value):
        """Check that a value's last axis is its last in nbprop."""
        if value.order[-1] != len(self.sample(value)):
            raise self.fail("runs over an axis that is not the last one in nbprop, which has channels last")

    def dense(self, value, weight, bias=None):
        """x W + b over the last axis; weight (inputs, outputs)."""
        self.features_last(value)
        arrays = [rows_in_order(weight, value.perm), *([] if bias is None else [bias])]
        return self.layer(value, Dense(weight.shape[1], bias=bias is not None), arrays)

    def activation(self, value, name):
        if name == "softmax":
            self.features_last(value)
        return self.layer(value, Activation(name), perm=value.perm)

    def vector(self, value, array):
        """An array that meets a value, as a vector over nbprop's last axis."""
        found = self.along_features(value, np.asarray(array))
        if found is None:
            raise self.fail(f"takes an array of shape {np.shape(array)}, which is no vector over the channels")
        return found

    def normalized(self, value, layer, arrays):
        """A normalization over the last axis."""
        self.features_last(value)
        return self.layer(value, layer, [self.vector(value, array) for array in arrays], perm=value.perm)

    def batchnorm(self, value, mean, variance, epsilon, scale=None, shift=None):
        """Batch normalization in inference, by vectors over the channels."""
        std = np.sqrt(np.asarray(variance, np.float64) + epsilon)
        mean, std = (rows_in_order(np.asarray(array), value.perm) for array in (mean, std))
        found = self.graph.standardized(value.node, mean, std, self.said)
        if scale is not None or shift is not None:
            shift, scale = (None if a is None else rows_in_order(np.asarray(a), value.perm) for a in (shift, scale))
            found = self.graph.scaled(found, shift, scale, self.said, trainable=True)
        return Value(found, value.order, value.perm)

    # -- images --------------------------------------------------------------------------------------------------------

    def pixels(self, value):
        """How many axes the pixels of an image or a sequence have; its channels are the first axis or the last."""
        axes = len(value.order) - 2
        if axes not in (1, 2) or value.order not in (images_first(axes), tuple(range(axes + 2))):
            raise self.fail("needs images or sequences in one batch, with the channels before or behind the pixels")
        return axes

    def conv(self, value, weight, bias, strides, pads, dilations, groups):
        """A convolution.

        weight: (*kernel, channels / groups, filters); pads: (before, after) of each axis, or "same".
        """
        axes, shape = self.pixels(value), self.sample(value)
        make, kernel = (Conv1d if axes == 1 else Conv2d), weight.shape[:-2]
        if len(kernel) != axes:
            raise self.fail(f"has weights of shape {weight.shape} for images of {axes} axes")
        options = {"stride": tuple(strides), "dilation": tuple(dilations), "groups": groups, "bias": bias is not None}
        try:
            layer = make(weight.shape[-1], kernel, padding="same", **options)
            same = [tuple(pair) for pair in layer._borders(*(1, *shape)[-3:-1])][2 - axes :]
            if pads != "same" and all(before == after for before, after in pads):
                layer = make(weight.shape[-1], kernel, padding=tuple(before for before, _ in pads), **options)
            elif pads not in ("same", same):
                raise self.fail(f'has pads {pads}; nbprop has the same on both sides, or those of padding="same"')
        except ValueError as error:
            raise error if str(error).startswith("from_") else self.fail(f"is no layer of nbprop: {error}") from None
        return self.layer(value, layer, [weight, *([] if bias is None else [bias])])

    def pool(self, value, largest, kernel, strides, padding, ceil=False, counts_padding=True):
        """A pool with the same padding on both sides."""
        axes, shape = self.pixels(value), self.sample(value)
        if not largest and any(padding) and not counts_padding:
            raise self.fail("leaves its padding out of the mean, in which nbprop counts it")
        for extent, size, stride, around in zip(shape, kernel, strides, padding, strict=False):
            if ceil and (extent + 2 * around - size) % stride:
                raise self.fail("has ceil_mode, a last window beyond the edge, which nbprop leaves out")
        try:
            layer = _POOLS[largest, axes](tuple(kernel), tuple(strides), tuple(padding))
        except ValueError as error:
            raise self.fail(f"is no layer of nbprop: {error}") from None
        return self.layer(value, layer)

    def global_pool(self, value, largest, axes, keep):
        """The mean or the maximum over all pixels: `axes` of the value, kept with one element each or dropped."""
        rank, last = len(value.order), len(self.sample(value))
        axes = {axis % rank for axis in axes}
        if last < 2 or {value.order[axis] for axis in axes} != set(range(1, last)):
            raise self.fail(f"runs over axes {sorted(axes)}; nbprop's global pools run over all pixels")
        order = []
        for k, axis in enumerate(value.order):
            if keep or k not in axes:
                order.append(None if k in axes else 1 if axis == last else axis)
        return self.layer(value, GlobalMaxPool() if largest else GlobalAvgPool(), (), tuple(order))

    # -- elementwise ---------------------------------------------------------------------------------------------------

    def expression(self, operation, value, number=0.0):
        """An operation on one value that is part of something else."""
        found = self.graph.expression(operation, [value.node], self.said, number=number)
        return Value(found, value.order, value.perm)

    def binary(self, operation, a, b):
        """add, sub, mul, div, max, min of values, or of a value and an array."""
        if isinstance(a, Value) and isinstance(b, Value):
            return self._of_values(operation, a, b)
        value, array = (a, b) if isinstance(a, Value) else (b, a)
        array = np.asarray(array)
        array = array if array.dtype.kind == "f" else array.astype(np.float64)
        if not np.isfinite(array).all():
            raise self.fail("computes with numbers that are not finite")
        if operation in ("max", "min"):
            if array.size != 1:
                raise self.fail("compares with more than one number")
            return self.expression("clip_below" if operation == "max" else "clip_above", value, float(array.ravel()[0]))
        vector = self.along_features(value, array)
        if vector is None:
            whole = self.whole_sample(value, array) if operation == "add" else None
            if whole is None:
                raise self.fail(f"computes with an array of shape {array.shape}, which varies over the pixels")
            return self.layer(value, Positions(), [whole])
        found = self._with_vector(operation, value, vector, isinstance(a, Value))
        return Value(found, value.order, value.perm)

    def _with_vector(self, operation, value, vector, value_first):
        graph, node = self.graph, value.node
        if operation == "add":
            return graph.scaled(node, vector, None, self.said)
        if operation == "mul":
            return graph.scaled(node, None, vector, self.said)
        if operation == "sub" and value_first:
            return graph.standardized(node, vector, None, self.said)
        if operation == "sub":
            return graph.scaled(node, vector, np.full_like(vector, -1.0), self.said)
        if value_first:
            if not vector.all():
                raise self.fail("divides by zero")
            return graph.standardized(node, None, vector, self.said)
        if (vector == vector[0]).all():
            return graph.expression("divided", [node], self.said, number=float(vector[0]))
        raise self.fail("divides a vector by its input")

    def _of_values(self, operation, a, b):
        if operation != "add":
            return self.joined(operation, [a, b])
        self._check_alike([a, b])
        return Value(self.graph.add(a.node, b.node, self.said), a.order, a.perm)

    def joined(self, operation, values):
        """An operation on several values of one shape that is part of something else."""
        self._check_alike(values)
        found = self.graph.expression(operation, [value.node for value in values], self.said)
        return Value(found, values[0].order, values[0].perm)

    def _check_alike(self, values):
        first = values[0]
        for value in values[1:]:
            same = value.order == first.order and self.sample(value) == self.sample(first)
            if not same or not _same_places(value, first):
                shapes = " and ".join(str(self.shown(each)) for each in (first, value))
                raise self.fail(f"computes with values of shapes {shapes}")


def _same_places(a, b):
    if a.perm is None or b.perm is None:
        return a.perm is b.perm
    return np.array_equal(a.perm, b.perm)
