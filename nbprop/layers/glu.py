"""Gated linear units: y = a f(b), with a and b the two halves of the last axis.

f is the sigmoid in Dauphin et al. 2017, "Language modeling with gated convolutional networks", equation 1; SiLU, GELU,
ReLU and the identity in Shazeer 2020, "GLU variants improve transformer", equations 5 and 6. With g = f(b):
da = dy g,  dg = dy a, and db follows from dg as for any activation.
"""

from dataclasses import dataclass
from typing import ClassVar

from nbprop.layers.activation import activate
from nbprop.layers.slicing import Slicing
from nbprop.networks.layer import Layer
from nbprop.numerics.activations import ACTIVATIONS
from nbprop.numerics.partition import share_blocks
from nbprop.program.kernel import kernel
from nbprop.validation import named


@kernel
def multiply(y, a, b, n, size, part, parts):
    """y = a b. y OUT, a and b IN (n, size)."""
    start, stop = share_blocks(n * size, part, parts)
    y, a, b = y[start:stop], a[start:stop], b[start:stop]
    for i in range(y.size):
        y[i] = a[i] * b[i]


@kernel
def multiply_tangent(y_dot, a, a_dot, b, b_dot, n, size, part, parts):
    """y' = a' b + a b'. y_dot OUT, a, a_dot, b and b_dot IN (n, size)."""
    start, stop = share_blocks(n * size, part, parts)
    y_dot, a, a_dot, b, b_dot = y_dot[start:stop], a[start:stop], a_dot[start:stop], b[start:stop], b_dot[start:stop]
    for i in range(y_dot.size):
        y_dot[i] = a_dot[i] * b[i] + a[i] * b_dot[i]


def lower_product(build, a, b):
    """Emit y = a b of two values of a shape."""

    def product(y, left, right):
        build.emit(multiply, (y,), (left, right), (a.size,))
        if build.with_tangents:
            reads = left, build.tangent(left), right, build.tangent(right)
            build.emit(multiply_tangent, (build.new_tangent(y),), reads, (a.size,))

    y = build.value(a.shape)
    product(y.buffer, a.buffer, b.buffer)

    def rule(dy):
        for value, other in ((a, b), (b, a)):
            gradient = build.buffer(build.batch * a.size)
            product(gradient, dy, other.buffer)
            build.accumulate_gradient(value, gradient)

    build.on_backward(y, rule)
    return y


@dataclass(frozen=True, repr=False)
class GLU(Layer):
    activation: str = "sigmoid"
    kind = "glu"
    checks: ClassVar = {"activation": named(ACTIVATIONS)}
    tangents = True

    def __repr__(self):
        return f"glu({'' if self.activation == 'sigmoid' else repr(self.activation)})"

    def output_shape(self, input_shape):
        if not input_shape or input_shape[-1] % 2:
            raise ValueError(f"glu halves the last axis, which must be even, got shape {input_shape}")
        return (*input_shape[:-1], input_shape[-1] // 2)

    def lower(self, build, x, path, names):
        width = x.shape[-1] // 2
        a, b = (Slicing(start, start + width).lower(build, x, path, ()) for start in (0, width))
        return lower_product(build, a, activate(build, b, self.activation, overwrite=True))


def glu(activation: str = "sigmoid") -> Layer:
    """A gated linear unit: y = a f(b), with a and b the first and the second half of the last axis.

    Parameters
    ----------
    activation : str
        f, as `nbprop.activation` takes it: "sigmoid" (Dauphin et al. 2017), "silu" for SwiGLU, "gelu" for GEGLU,
        "identity" for a bilinear layer (Shazeer 2020).

    >>> from nbprop.layers.dense.layer import dense
    >>> dense(64), glu("silu")
    (dense(64), glu('silu'))
    """
    return GLU(activation)
