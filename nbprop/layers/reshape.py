"""Flatten and reshape: views of each sample with other axes. No kernel, no copy: the buffers stay where they are."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbprop.networks.layer import Layer
from nbprop.validation import positive, shown


def _lower_view(build, x, shape):
    """The value x under another shape."""
    y = type(x)(shape, x.buffer)
    build.on_backward(y, lambda dy: build.accumulate_gradient(x, dy))
    return y


@dataclass(frozen=True, repr=False)
class Flatten(Layer):
    kind = "flatten"
    tangents = True

    def __repr__(self):
        return "flatten()"

    def output_shape(self, input_shape):
        return (math.prod(input_shape),)

    def lower(self, build, x, path, names):
        return _lower_view(build, x, (x.size,))


def flatten() -> Layer:
    """A layer that gives each sample one axis: (28, 28, 1) becomes (784,).

    >>> flatten()
    flatten()
    """
    return Flatten()


@dataclass(frozen=True, repr=False)
class Reshape(Layer):
    shape: tuple = ()
    kind = "reshape"
    tangents = True

    def __post_init__(self):
        shape: Any = self.shape
        shape = (shape,) if isinstance(shape, (int, np.integer)) else shape  # as JSON may have it
        if not isinstance(shape, (tuple, list)) or not shape:
            raise ValueError(f"reshape: shape must be a tuple of positive integers, got {shown(shape)}")
        object.__setattr__(self, "shape", tuple(positive("reshape: shape", extent) for extent in shape))

    def __repr__(self):
        return f"reshape({self.shape})"

    def output_shape(self, input_shape):
        size = math.prod(self.shape)
        if size != math.prod(input_shape):
            raise ValueError(
                f"reshape to {self.shape} holds {size:,} numbers a sample, "
                f"but {input_shape} holds {math.prod(input_shape):,}; they must agree"
            )
        return self.shape

    def lower(self, build, x, path, names):
        return _lower_view(build, x, self.shape)


def reshape(shape: int | tuple[int, ...]) -> Layer:
    """A layer that gives each sample other axes, in C order: (784,) becomes (28, 28, 1).

    Parameters
    ----------
    shape : tuple of int
        Of one sample, without the batch; it must hold as many numbers as the input's.

    >>> reshape((28, 28, 1))
    reshape((28, 28, 1))
    """
    return Reshape((shape,) if isinstance(shape, (int, np.integer)) else shape)
