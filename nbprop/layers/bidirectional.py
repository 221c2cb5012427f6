"""Bidirectional recurrence (Schuster and Paliwal 1997): a layer along a sequence, and another against it, side by side.

The second one sees each sample turned around within its length, and its outputs are turned back, so that both end where
the sequence does, and output t joins what came before t with what comes after.
"""

from dataclasses import dataclass
from typing import ClassVar

from nbprop.layers.combine import lower_joined
from nbprop.layers.recurrent import Recurrent, RecurrentSizes
from nbprop.networks.layer import Layer
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at
from nbprop.program.kernel import kernel
from nbprop.validation import shown


@kernel
def reverse_positions(y, x, n, sizes: RecurrentSizes, lengths_address, lengths_code, part, parts):
    """y[i, t] = x[i, length - 1 - t], 0 beyond the length. y OUT, x IN (n, positions, width)."""
    positions, size = sizes.positions, sizes.width
    start, stop = share(n * positions, part, parts)
    for row in range(start, stop):
        i, t = row // positions, row % positions
        length, to = length_at(lengths_address, lengths_code, i, positions), y[row * size : (row + 1) * size]
        source = (i * positions + length - 1 - t) * size
        if t < length:
            of = x[source : source + size]
            for j in range(size):
                to[j] = of[j]
        else:
            for j in range(size):
                to[j] = like(to[j], 0.0)


def lower_reversed(build, x):
    """Emit x (positions, size), turned around within lengths."""
    y, sizes = build.value(x.shape), RecurrentSizes(positions=x.shape[0], width=x.shape[1])
    build.linear(reverse_positions, (y.buffer,), (x.buffer,), sizes)

    def rule(dy):
        dx = build.buffer(build.batch * x.size)
        build.linear(reverse_positions, (dx,), (dy,), sizes)
        build.accumulate_gradient(x, dx)

    build.on_backward(y, rule)
    return y


def _recurrent(argument, layer):
    """Check the layer that is to run both ways."""
    if not isinstance(layer, Recurrent):
        raise TypeError(f"{argument} must be an rnn, lstm or gru, got {shown(layer)}")
    if layer.carry:
        raise ValueError(f"{argument} cannot carry its state on: a later call comes before this one on the way back")
    return layer


@dataclass(frozen=True, repr=False)
class Bidirectional(Layer):
    layer: Recurrent
    kind = "bidirectional"
    checks: ClassVar = {"layer": _recurrent}
    tangents = True
    takes_lengths = True

    def __repr__(self):
        return f"bidirectional({self.layer!r})"

    def output_shape(self, input_shape):
        *positions, units = self.layer.output_shape(input_shape)
        return (*positions, 2 * units)

    def children(self, input_shape):
        return [(name, self.layer, input_shape) for name in ("forward", "backward")]

    def lower(self, build, x, path, names):
        if build.mode == "decoding":
            raise ValueError(f'plan: layer {path} needs the whole sequence, of which mode="decoding" brings a position')
        along = build.layer(f"{path}.forward", self.layer, x)
        against = build.layer(f"{path}.backward", self.layer, lower_reversed(build, x))
        if self.layer.output == "sequence":
            against = lower_reversed(build, against)
        return lower_joined(build, (along, against))


def bidirectional(layer: Recurrent) -> Layer:
    """A recurrent layer along a sequence and another one against it, with parameters of their own, side by side.

    Parameters
    ----------
    layer : an `rnn`, `lstm` or `gru`
        Both directions' arguments. The outputs of the first come first in the last axis; with output="last", the second
        one's is that at the first position.

    Its parameters are those of two layers, "forward" and "backward". Source: Schuster and Paliwal 1997.

    >>> from nbprop.layers.lstm import lstm
    >>> bidirectional(lstm(16))
    bidirectional(lstm(16))
    """
    return Bidirectional(layer)
