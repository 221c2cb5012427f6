"""What moves numbers but computes none: reshapes, transpositions, parts of an axis, values side by side."""

import dataclasses
import math

import numpy as np

from nbprop.interchange.orders import BATCH, Value, flattened
from nbprop.layers.recurrent import Recurrent
from nbprop.layers.reshape import Flatten, Reshape
from nbprop.layers.slicing import Slicing


class Moves:
    """Moves of an operation that `said` names. batch: the size that stands for the batch in shapes."""

    def __init__(self, graph, said, batch=BATCH):
        self.graph, self.said, self.batch = graph, said, batch

    def fail(self, text):
        return ValueError(f"{self.graph.function}: {self.said} {text}")

    def sample(self, value):
        """nbprop's shape of a sample."""
        return self.graph.nodes[value.node].shape

    def shape(self, value):
        """A value's shape as the other library has it."""
        shape = self.sample(value)
        return tuple(1 if axis is None else self.batch if axis == 0 else shape[axis - 1] for axis in value.order)

    def shown(self, value_or_shape):
        shape = self.shape(value_or_shape) if isinstance(value_or_shape, Value) else value_or_shape
        return tuple("n" if extent == BATCH else extent for extent in shape)

    def layer(self, value, layer, arrays=(), order=None, perm=None):
        """Add a layer; its value, with the order of what it was given unless another one is named."""
        found = self.graph.layer(value.node, layer, arrays, self.said)
        return Value(found, value.order if order is None else order, perm)

    # -- constants -----------------------------------------------------------------------------------------------------

    def along_features(self, value, constant):
        """A constant that meets a value, as a vector over nbprop's last axis; None where it varies over others."""
        shape = self.sample(value)
        if not shape:
            return None
        if constant.size == 1:
            return np.full(shape[-1], constant.ravel()[0])
        rank, varying = len(value.order), [k for k, extent in enumerate(constant.shape[::-1]) if extent != 1]
        if len(varying) != 1 or varying[0] >= rank or value.order[rank - 1 - varying[0]] != len(shape):
            return None
        vector = constant.ravel()
        if vector.size != shape[-1]:
            return None
        if value.perm is None:
            return vector
        turned = np.empty_like(vector)
        turned[value.perm] = vector
        return turned

    def whole_sample(self, value, constant):
        """A constant with a number for each element of a sample (positions, features); None where it is no such."""
        shape = self.sample(value)
        if len(shape) != 2 or value.perm is not None or sorted(value.order, key=str) != [0, 1, 2] or constant.ndim > 3:
            return None
        constant = constant.reshape((1,) * (3 - constant.ndim) + constant.shape)
        turned = constant.transpose([value.order.index(axis) for axis in range(3)])
        return turned[0] if turned.shape == (1, *shape) else None

    # -- shapes --------------------------------------------------------------------------------------------------------

    def transpose(self, value, perm):
        perm = [axis % len(value.order) for axis in perm]
        if sorted(perm) != list(range(len(value.order))):
            raise self.fail(f"has the order {perm} for {len(value.order)} axes")
        return dataclasses.replace(value, order=tuple(value.order[axis] for axis in perm))

    def squeeze(self, value, axes=None):
        """Drop axes of one element; None: all of them."""
        shape = self.shape(value)
        ones = [k for k, extent in enumerate(shape) if extent == 1 and value.order[k] != 0]
        axes = ones if axes is None else [axis % len(shape) for axis in axes]
        if any(axis not in ones for axis in axes):
            raise self.fail(f"drops axes {axes} of shape {self.shown(shape)}")
        return dataclasses.replace(value, order=tuple(axis for k, axis in enumerate(value.order) if k not in axes))

    def unsqueeze(self, value, axes):
        order, rank = list(value.order), len(value.order) + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            order.insert(axis, None)
        return dataclasses.replace(value, order=tuple(order))

    def flat(self, value):
        """All of a sample as one axis."""
        if value.order[0] != 0:
            raise self.fail("flattens an array whose first axis is not the batch")
        shape = self.sample(value)
        if len(shape) == 1:
            return Value(value.node, (0, 1), value.perm)
        return self.layer(value, Flatten(), (), (0, 1), flattened(shape, value.order))

    def reshape(self, value, wanted):
        """Another shape that keeps the batch; -1 for what is left."""
        before, after = self._symbolic(self.shape(value), value), self._symbolic(wanted, value)
        if after.count(-1) == 1:
            known = math.prod(extent for extent in after if extent != -1)
            after[after.index(-1)] = math.prod(before) // known if known > 0 else 0
        if math.prod(after) != math.prod(before) or BATCH not in after or min(after) < 1:
            raise self._reshape_failure(before, wanted)
        if after == before:
            return value
        if value.order[0] == 0 and after[0] == BATCH:
            if len(after) == 2:
                return self.flat(value)
            axes = [axis for axis in value.order if axis is not None]
            if axes == list(range(len(self.sample(value)) + 1)) and value.perm is None:
                return self._with_axes(value, tuple(after[1:]))
        if [extent for extent in after if extent != 1] == [extent for extent in before if extent != 1]:
            left = iter([axis for axis, extent in zip(value.order, before, strict=True) if extent != 1])
            order = tuple(None if extent == 1 else next(left) for extent in after)
            return dataclasses.replace(value, order=order)
        raise self._reshape_failure(before, wanted)

    def _reshape_failure(self, before, wanted):
        shapes = f"{self.shown(before)} to {self.shown(wanted)}"
        return self.fail(f"reshapes {shapes}; nbprop keeps the batch, and has the channels of images last")

    def _symbolic(self, shape, value):
        """A shape as a list, with BATCH for the batch where it is a number."""
        found, place = [int(extent) for extent in shape], value.order.index(0)
        if BATCH not in found and place < len(found) and found[place] == self.batch:
            found[place] = BATCH
        return found

    def _with_axes(self, value, sample):
        order = tuple(range(len(sample) + 1))
        if sample == self.sample(value):
            return Value(value.node, order)
        return self.layer(value, Reshape(sample), (), order)

    # -- parts of an axis ----------------------------------------------------------------------------------------------

    def part(self, value, axis, start, stop):
        """x[start:stop] along an axis."""
        shape, place, extent = self.sample(value), value.order[axis], self.shape(value)[axis]
        if (start, stop) == (0, extent):
            return value
        if not 0 <= start < stop <= extent:
            raise self.fail(f"takes {start}:{stop} of {extent}")
        if place == len(shape) and value.perm is None:
            return self.layer(value, Slicing(start, stop))
        if place == 1 and len(shape) == 2 and stop == start + 1:
            return self.position(value, axis, start, keep=True)
        raise self.fail("takes a part of an axis that is not the last one in nbprop")

    def element(self, value, axis, index, keep=False):
        """x[index] along an axis, which is dropped, or kept with one element."""
        axis %= len(value.order)
        place, extent, rank = value.order[axis], self.shape(value)[axis], len(self.sample(value))
        index += extent if index < 0 else 0
        if place is None:
            order = value.order if keep else value.order[:axis] + value.order[axis + 1 :]
            return dataclasses.replace(value, order=order)
        if place == 1 and rank == 2 and 0 <= index < extent:
            return self.position(value, axis, index, keep)
        if place == rank and value.perm is None and keep:
            return self.part(value, axis, index, index + 1)
        raise self.fail("picks elements of an axis that nbprop has no layer for")

    def position(self, value, axis, index, keep):
        """One position of a sequence (positions, features)."""
        positions, features = self.sample(value)
        order = tuple(
            None if k == axis else 1 if place == 2 else place
            for k, place in enumerate(value.order)
            if keep or k != axis
        )
        made = self.graph.nodes[value.node]
        if index == positions - 1 and made.kind == "item" and isinstance(made.item.layer, Recurrent):
            layer = dataclasses.replace(made.item.layer, output="last")
            return Value(self.graph.layer(made.parents[0], layer, made.item.arrays, made.label), order)
        flat = self.layer(value, Flatten())
        return self.layer(flat, Slicing(index * features, (index + 1) * features), (), order)

    def concat(self, values, axis):
        """Values side by side along an axis, nbprop's last."""
        order = values[0].order
        axis %= len(order)
        if any(value.order != order for value in values) or order[axis] != len(self.sample(values[0])):
            raise self.fail("joins along an axis that is not the last one in nbprop")
        found = self.graph.concat([value.node for value in values], self.said)
        if all(value.perm is None for value in values):
            return Value(found, order)
        perms, first = [], 0
        for value in values:
            size = self.sample(value)[-1]
            perms.append(first + (np.arange(size) if value.perm is None else value.perm))
            first += size
        return Value(found, order, np.concatenate(perms))
