"""Group normalization (Wu and He 2018, equations 1 to 7): each group of features, over all positions of a sample.

x (positions, groups, width) becomes (groups, positions, width), whose rows layernorm normalizes; then back, and
y = s x^ + b for each feature. One group is layernorm over all of a sample, a group for each feature is instance
normalization (Ulyanov et al. 2016).
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from nbprop.layers.layernorm import LayerNorm, show
from nbprop.layers.scaling import Rescale
from nbprop.networks.layer import Layer, Parameter
from nbprop.numerics.partition import share
from nbprop.program.kernel import kernel
from nbprop.validation import check_flag, number, positive


class SwappedAxes(NamedTuple):
    """x (n, outer, inner, width), of which y (n, inner, outer, width) exchanges two axes."""

    outer: int
    inner: int
    width: int  # elements that stay together


@kernel
def swap_axes(y, x, n, sizes: SwappedAxes, part, parts):
    """y[i, b, a] = x[i, a, b]. y OUT (n, inner, outer, width), x IN (n, outer, inner, width)."""
    outer, inner, width = sizes.outer, sizes.inner, sizes.width
    start, stop = share(n * inner * outer, part, parts)
    for row in range(start, stop):
        i, b, a = row // (inner * outer), row // outer % inner, row % outer
        source = ((i * outer + a) * inner + b) * width
        to, of = y[row * width : (row + 1) * width], x[source : source + width]
        for j in range(width):
            to[j] = of[j]


def lower_swapped(build, x, shape, sizes):
    """Emit a value of this shape: x with two axes exchanged."""
    y = build.value(shape)
    build.linear(swap_axes, (y.buffer,), (x.buffer,), sizes)

    def rule(dy):
        dx = build.buffer(build.batch * x.size)
        build.linear(swap_axes, (dx,), (dy,), sizes._replace(outer=sizes.inner, inner=sizes.outer))
        build.accumulate_gradient(x, dx)

    build.on_backward(y, rule)
    return y


@dataclass(frozen=True, repr=False)
class GroupNorm(Layer):
    groups: int
    epsilon: float = 1e-5
    affine: bool = True
    kind = "groupnorm"
    checks: ClassVar = {"groups": positive, "epsilon": number(0, ends="()"), "affine": check_flag}
    tangents = True

    def __repr__(self):
        return show(self, epsilon=1e-5, affine=True).replace("(", f"({self.groups}, ", 1).replace(", )", ")")

    def output_shape(self, input_shape):
        if not input_shape or input_shape[-1] % self.groups:
            raise ValueError(f"groups={self.groups} must divide the features, the last axis of {input_shape}")
        return input_shape

    def parameters(self, input_shape):
        features = input_shape[-1:]
        return (Parameter("scale", features, "ones"), Parameter("shift", features, "zeros")) if self.affine else ()

    def lower(self, build, x, path, names):
        features = x.shape[-1]
        positions, width = x.size // features, features // self.groups
        if build.mode == "decoding":
            raise ValueError(f'plan: layer {path} needs all positions of a sample, of which mode="decoding" brings one')
        if build.positions_of(x.shape) > 1:
            build.over_positions = path
        axes = SwappedAxes(outer=positions, inner=self.groups, width=width)
        y = lower_swapped(build, x, (self.groups, positions * width), axes)
        y = LayerNorm(self.epsilon, False, False).lower(build, y, path, ())
        y = lower_swapped(build, y, x.shape, axes._replace(outer=self.groups, inner=positions))
        if not self.affine:
            return y
        scale, shift = names
        return Rescale(True).lower(build, y, path, (shift, scale))


def groupnorm(groups: int, epsilon: float = 1e-5, affine: bool = True) -> Layer:
    """Group normalization: each group of features of a sample, over all positions, minus its mean, over its deviation.

    Parameters
    ----------
    groups : int
        Groups of the features (the last axis), which it divides. 1 is a layernorm of the whole sample; as many as there
        are features is instance normalization.
    epsilon : float
        Added to the variance.
    affine : bool
        Whether there is a learned scale (from 1) and shift (from 0) of each feature.

    Source: Wu and He 2018. Sequences with lengths are refused, since positions beyond them would count.

    >>> groupnorm(4)
    groupnorm(4)
    """
    return GroupNorm(groups, epsilon, affine)
