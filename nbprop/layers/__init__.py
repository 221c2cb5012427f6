"""The registry of layers: one file and one line each."""

from nbprop.layers.activation import activation
from nbprop.layers.ascending import ascending
from nbprop.layers.attention.layer import attention
from nbprop.layers.batchnorm import batchnorm
from nbprop.layers.bidirectional import bidirectional
from nbprop.layers.combine import concat, residual
from nbprop.layers.conv.layer import conv1d, conv2d
from nbprop.layers.conv.transposed import conv_transpose1d, conv_transpose2d
from nbprop.layers.custom import custom, elementwise
from nbprop.layers.dense.layer import dense
from nbprop.layers.dropout import dropout
from nbprop.layers.embedding import embedding
from nbprop.layers.fourier import fourier_features
from nbprop.layers.glu import glu
from nbprop.layers.groupnorm import groupnorm
from nbprop.layers.gru import gru
from nbprop.layers.layernorm import layernorm, rmsnorm
from nbprop.layers.local_response_norm import local_response_norm
from nbprop.layers.lstm import lstm
from nbprop.layers.pool import avg_pool1d, avg_pool2d, global_avg_pool, global_max_pool, max_pool1d, max_pool2d
from nbprop.layers.positions import positions
from nbprop.layers.prelu import prelu
from nbprop.layers.reshape import flatten, reshape
from nbprop.layers.rnn import rnn
from nbprop.layers.scaling import rescale, standardize
from nbprop.layers.slicing import slicing
from nbprop.layers.spectral_norm import spectral_norm
from nbprop.layers.weight_norm import weight_norm
from nbprop.numerics.activations import ACTIVATIONS

__all__ = [
    "ACTIVATIONS",
    "activation",
    "ascending",
    "attention",
    "avg_pool1d",
    "avg_pool2d",
    "batchnorm",
    "bidirectional",
    "concat",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "custom",
    "dense",
    "dropout",
    "elementwise",
    "embedding",
    "flatten",
    "fourier_features",
    "global_avg_pool",
    "global_max_pool",
    "glu",
    "groupnorm",
    "gru",
    "layernorm",
    "local_response_norm",
    "lstm",
    "max_pool1d",
    "max_pool2d",
    "positions",
    "prelu",
    "rescale",
    "reshape",
    "residual",
    "rmsnorm",
    "rnn",
    "slicing",
    "spectral_norm",
    "standardize",
    "weight_norm",
]
