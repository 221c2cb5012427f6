"""Layers' constructors with valid arguments and their kinds; see any_argument.py."""

import nbprop
from support.argument_kinds import Choice, Flag, Integer, Number, Window

# Layers: (the input's shape, a valid constructor's arguments, their kinds); network puts them to use.
_WINDOW = {"kernel": Window(), "stride": Window(optional=True), "padding": Window(0)}
_POOL = {"kernel": 2, "stride": 1, "padding": 0}
_CONV = {
    "filters": 2,
    "kernel": 2,
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "activation": None,
    "bias": True,
}
_CONV_KINDS = _WINDOW | {"filters": Integer(), "stride": Window(), "dilation": Window(), "groups": Integer()}
_CONV_KINDS |= {"activation": Choice(optional=True), "bias": Flag(), "init": Choice(optional=True)}
_TRANSPOSED, _TRANSPOSED_KINDS = (
    _CONV | {"init": None, "output_padding": 0},
    _CONV_KINDS | {"output_padding": Window(0)},
)
_CONV, _CONV_KINDS = _CONV | {"padding_mode": "zeros"}, _CONV_KINDS | {"padding_mode": Choice()}
_STEPS = {"units": Integer(), "output": Choice(), "carry": Flag()}
LAYERS = {
    "activation": ((3,), {"name": "tanh"}, {"name": Choice()}),
    "ascending": ((6,), {"size": 3}, {"size": Integer()}),
    "attention": (
        (4, 6),
        {"heads": 2, "causal": True, "bias": True, "init": None},
        {"heads": Integer(), "causal": Flag(), "bias": Flag(), "init": Choice(optional=True)},
    ),
    "avg_pool1d": ((7, 2), _POOL, _WINDOW),
    "avg_pool2d": ((7, 7, 2), _POOL, _WINDOW),
    "bidirectional": ((4, 2), {"layer": nbprop.rnn(3)}, {"layer": Choice()}),
    "spectral_norm": ((4,), {"layer": nbprop.dense(3)}, {"layer": Choice()}),
    "weight_norm": ((4,), {"layer": nbprop.dense(3)}, {"layer": Choice()}),
    "batchnorm": ((3,), {"momentum": 0.1, "epsilon": 1e-5}, {"momentum": Number(), "epsilon": Number(above=True)}),
    "conv1d": ((7, 2), _CONV | {"init": None}, _CONV_KINDS),
    "conv2d": ((7, 7, 2), _CONV | {"init": None}, _CONV_KINDS),
    "conv_transpose1d": ((7, 2), _TRANSPOSED, _TRANSPOSED_KINDS),
    "conv_transpose2d": ((7, 7, 2), _TRANSPOSED, _TRANSPOSED_KINDS),
    "dense": (
        (3,),
        {"units": 3, "activation": None, "bias": True, "init": None, "share": None},
        {
            "units": Integer(),
            "activation": Choice(optional=True),
            "bias": Flag(),
            "init": Choice(optional=True),
            "share": Choice(optional=True),
        },
    ),
    "dropout": ((3,), {"rate": 0.5, "seed": 0}, {"rate": Number(below=1.0), "seed": Integer(0)}),
    "embedding": (
        (3,),
        {"vocabulary": 5, "units": 3, "init": "normal"},
        {"vocabulary": Integer(), "units": Integer(), "init": Choice()},
    ),
    "fourier_features": (
        (3,),
        {"units": 3, "scale": 1.0, "trainable": False},
        {"units": Integer(), "scale": Number(above=True), "trainable": Flag()},
    ),
    "glu": ((4,), {"activation": "sigmoid"}, {"activation": Choice()}),
    "groupnorm": (
        (4,),
        {"groups": 2, "epsilon": 1e-5, "affine": True},
        {"groups": Integer(), "epsilon": Number(above=True), "affine": Flag()},
    ),
    "gru": ((4, 2), {"units": 3, "output": "last", "carry": False}, _STEPS),
    "layernorm": (
        (3,),
        {"epsilon": 1e-5, "scale": True, "shift": True},
        {"epsilon": Number(), "scale": Flag(), "shift": Flag()},
    ),
    "local_response_norm": (
        (3, 7),
        {"size": 3, "alpha": 1e-4, "beta": 0.75, "k": 2.0},
        {"size": Integer(), "alpha": Number(), "beta": Number(), "k": Number(above=True)},
    ),
    "lstm": (
        (4, 2),
        {"units": 3, "output": "last", "carry": False, "unit_forget_bias": True},
        _STEPS | {"unit_forget_bias": Flag()},
    ),
    "max_pool1d": ((7, 2), _POOL, _WINDOW),
    "max_pool2d": ((7, 7, 2), _POOL, _WINDOW),
    "positions": ((4, 2), {"init": "small_normal"}, {"init": Choice()}),
    "prelu": ((3,), {"slope": 0.25}, {"slope": Number()}),
    "reshape": ((6,), {"shape": (2, 3)}, {"shape": Choice()}),
    "rescale": ((3,), {"trainable": False}, {"trainable": Flag()}),
    "rmsnorm": ((3,), {"epsilon": 1e-5, "scale": True}, {"epsilon": Number(), "scale": Flag()}),
    "rnn": (
        (4, 2),
        {"units": 3, "activation": "tanh", "output": "last", "carry": False},
        _STEPS | {"activation": Choice()},
    ),
    "slicing": ((7,), {"start": 1, "stop": 3}, {"start": Integer(0), "stop": Integer()}),
    "standardize": ((3,), {"trainable": False}, {"trainable": Flag()}),
}
