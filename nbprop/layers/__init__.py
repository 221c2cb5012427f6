"""The registry of layers: one file and one line each."""

from nbprop.layers.activation import activation
from nbprop.layers.attention.layer import attention
from nbprop.layers.batchnorm import batchnorm
from nbprop.layers.combine import concat, residual
from nbprop.layers.conv.layer import conv1d, conv2d
from nbprop.layers.custom import custom, elementwise
from nbprop.layers.dense.layer import dense
from nbprop.layers.dropout import dropout
from nbprop.layers.embedding import embedding
from nbprop.layers.gru import gru
from nbprop.layers.layernorm import layernorm, rmsnorm
from nbprop.layers.local_response_norm import local_response_norm
from nbprop.layers.lstm import lstm
from nbprop.layers.pool import avg_pool1d, avg_pool2d, global_avg_pool, global_max_pool, max_pool1d, max_pool2d
from nbprop.layers.positions import positions
from nbprop.layers.reshape import flatten, reshape
from nbprop.layers.rnn import rnn
from nbprop.layers.scaling import rescale, standardize
from nbprop.layers.slicing import slicing
from nbprop.numerics.activations import ACTIVATIONS

__all__ = [
    "ACTIVATIONS",
    "activation",
    "attention",
    "avg_pool1d",
    "avg_pool2d",
    "batchnorm",
    "concat",
    "conv1d",
    "conv2d",
    "custom",
    "dense",
    "dropout",
    "elementwise",
    "embedding",
    "flatten",
    "global_avg_pool",
    "global_max_pool",
    "gru",
    "layernorm",
    "local_response_norm",
    "lstm",
    "max_pool1d",
    "max_pool2d",
    "positions",
    "rescale",
    "reshape",
    "residual",
    "rmsnorm",
    "rnn",
    "slicing",
    "standardize",
]
