"""In which order another library has the axes of a value, and where the elements of a flattened image stand.

PyTorch and ONNX have the channels of an image before its rows and columns, nbprop behind them. Nothing is transposed: a
reader follows the order through its graph, and turns the weights that meet it.
"""

import math
from dataclasses import dataclass

import numpy as np

BATCH = 2**40 + 15  # stands for the batch in shapes; no size of an array comes near


@dataclass(frozen=True)
class Value:
    """A value as a reader has it: a node, and how the reader's axes lie in the network's.

    order: for each axis the axis of nbprop's array (0 is the batch), or None for an axis of one element that nbprop's
    has not; perm: for a flattened image, where each element stands in nbprop's, whose channels are the last axis.
    """

    node: int
    order: tuple[int | None, ...]
    perm: np.ndarray | None = None

    @property
    def plain(self):
        """Whether the axes are nbprop's own."""
        return self.order == tuple(range(len(self.order))) and self.perm is None


def images_first(axes):
    """The order of an image, or a sequence, whose channels are the first axis: (n, channels, height, width)."""
    return (0, axes + 1, *range(1, axes + 1))


def flattened(shape, order):
    """perm of an image of nbprop's shape once it is flattened in a reader's order; None where both agree."""
    axes = [axis - 1 for axis in order if axis not in (0, None)]
    if axes == sorted(axes):
        return None
    perm = np.arange(math.prod(shape)).reshape(shape).transpose(axes).ravel()
    return None if (perm == np.arange(perm.size)).all() else perm


def rows_in_order(weight, perm):
    """A weight whose rows stand for a reader's elements, for nbprop's."""
    if perm is None:
        return weight
    turned = np.empty_like(weight)
    turned[perm] = weight
    return turned
