"""Networks as words, on the command line."""

from nbprop import layers
from nbprop.networks.network import network
from nbprop.validation import choose

# Layers that take functions or other layers cannot be written as one word.
_WORDS = {name: getattr(layers, name) for name in layers.__all__ if name.islower()}
for _name in ("custom", "elementwise", "residual", "concat"):
    del _WORDS[_name]


def read_network(text, input_shape):
    """A network from words such as ``dense:64:tanh dense:10``: a layer's name and its arguments, joined by colons.

    An activation's name stands for a layer of it. Raises ValueError for an unknown word or wrong arguments.

    >>> read_network("dense:8 relu dense:1", (4,))
    network((4,), dense(8), activation('relu'), dense(1))
    """
    found = []
    for word in text.replace(",", " ").split():
        name, *arguments = word.split(":")
        if name in layers.ACTIVATIONS and not arguments:
            found.append(layers.activation(name))
            continue
        make = choose("network", name, _WORDS | dict.fromkeys(layers.ACTIVATIONS))
        try:
            found.append(make(*map(_argument, arguments)))
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"network: {word!r}: {error}") from None
    if not found:
        raise ValueError('network: no layers; write for instance "dense:64:tanh dense:10"')
    return network(input_shape, *found)


def _argument(text):
    """The argument as a number, if it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
