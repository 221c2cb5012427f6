"""The registry of layers: one file and one line each."""

from nbprop.layers.activation import ACTIVATIONS, activation
from nbprop.layers.combine import concat, residual
from nbprop.layers.conv import conv1d, conv2d
from nbprop.layers.custom import custom, elementwise
from nbprop.layers.dense import dense
from nbprop.layers.dropout import dropout
from nbprop.layers.reshape import flatten, reshape
from nbprop.layers.slicing import slicing

__all__ = [
    "ACTIVATIONS",
    "activation",
    "concat",
    "conv1d",
    "conv2d",
    "custom",
    "dense",
    "dropout",
    "elementwise",
    "flatten",
    "reshape",
    "residual",
    "slicing",
]
