"""Flatten: a view of each sample as one axis. No kernel, no copy: the buffers stay where they are."""

import math
from dataclasses import dataclass

from nbprop.network import Layer


@dataclass(frozen=True, repr=False)
class Flatten(Layer):
    kind = "flatten"
    tangents = True

    def __repr__(self):
        return "flatten()"

    def output_shape(self, input_shape):
        return (math.prod(input_shape),)

    def lower(self, build, x, path, names):
        y = type(x)((x.size,), x.buffer)
        build.on_backward(y, lambda dy: build.contribute(x, dy))
        return y


def flatten():
    """A layer that gives each sample one axis: (28, 28, 1) becomes (784,).

    >>> flatten()
    flatten()
    """
    return Flatten()
