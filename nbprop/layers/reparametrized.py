"""What layers share whose weight is computed from a parameter: a layer inside, which takes what they compute."""

from dataclasses import dataclass
from typing import ClassVar

from nbprop.layers.conv.layer import Convolution
from nbprop.layers.dense.layer import Dense
from nbprop.networks.layer import Layer
from nbprop.validation import shown


def _weighted(argument, layer):
    """Check the layer whose weight is to be computed."""
    if not isinstance(layer, (Dense, Convolution)):
        raise TypeError(f"{argument} must be a dense, conv1d or conv2d, got {shown(layer)}")
    if isinstance(layer, Dense) and layer.share is not None:
        raise ValueError(f"{argument} must have a weight of its own, got share={layer.share!r}")
    if layer.init == "zeros":
        raise ValueError(
            f"{argument} must not begin with a weight of zeros, which has no direction; choose another init"
        )
    return layer


@dataclass(frozen=True, repr=False)
class Reparametrized(Layer):
    """A layer with a layer inside; subclasses compute its weight, seen as (rows, units), in `lower_weight`."""

    layer: Layer
    checks: ClassVar = {"layer": _weighted}
    tangents = True

    def __repr__(self):
        return f"{self.kind}({self.layer!r})"

    def output_shape(self, input_shape):
        return self.layer.output_shape(input_shape)

    def children(self, input_shape):
        return [(self.layer.kind, self.layer, input_shape)]

    def weight(self, input_shape):
        """The parameter of the layer inside."""
        return self.layer.parameters(input_shape)[0]

    def lower_weight(self, build, weight, names, rows, units):
        """Emit the weight, and let the layer inside take it: `build.derive`. weight: the parameter's name."""
        raise NotImplementedError(f"{self.kind} does not implement lower_weight")

    def lower(self, build, x, path, names):
        inner, units = f"{path}.{self.layer.kind}", self.weight(x.shape).shape[-1]
        self.lower_weight(build, f"{inner}.weight", names, self.weight(x.shape).size // units, units)
        return build.layer(inner, self.layer, x)
