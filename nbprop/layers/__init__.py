"""The registry of layers: one file and one line each."""

from nbprop.layers.activation import ACTIVATIONS, activation
from nbprop.layers.combine import concat, residual
from nbprop.layers.dense import dense
from nbprop.layers.reshape import flatten

__all__ = ["ACTIVATIONS", "activation", "concat", "dense", "flatten", "residual"]
