"""Arguments that describe networks, losses and plans: every one is checked where it is given, by its name."""

import inspect
import json

import numpy as np
import pytest

import nbprop
from nbprop import layers, losses
from nbprop.networks.layer import REGISTRY, Layer

DENSE = nbprop.dense(2)
# Every constructor of a layer or a loss that takes arguments, with arguments that are right.
RIGHT = {
    "activation": {"name": "tanh"},
    "attention": {"heads": 2, "causal": True, "bias": True, "init": "normal"},
    "avg_pool1d": {"kernel": 2, "stride": 1, "padding": 1},
    "avg_pool2d": {"kernel": 2, "stride": 1, "padding": 1},
    "batchnorm": {"momentum": 0.5, "epsilon": 0.1},
    "concat": {"branches": (DENSE, [DENSE])},
    "conv1d": {
        **{"filters": 4, "kernel": 3, "stride": 1, "padding": 1, "dilation": 1, "groups": 2},
        **{"activation": "relu", "bias": True, "init": "normal", "padding_mode": "reflect"},
    },
    "conv2d": {
        **{"filters": 4, "kernel": 3, "stride": 1, "padding": 1, "dilation": 1, "groups": 2},
        **{"activation": "relu", "bias": True, "init": "normal", "padding_mode": "reflect"},
    },
    **{
        name: {
            **{"filters": 4, "kernel": 3, "stride": 2, "padding": 1, "output_padding": 1, "dilation": 1, "groups": 2},
            **{"activation": "relu", "bias": True, "init": "normal"},
        }
        for name in ("conv_transpose1d", "conv_transpose2d")
    },
    "ascending": {"size": 2},
    "bidirectional": {"layer": nbprop.rnn(2)},
    "spectral_norm": {"layer": DENSE},
    "weight_norm": {"layer": DENSE},
    "dense": {"units": 3, "activation": "relu", "bias": True, "init": "zeros", "share": "0.dense"},
    "dropout": {"rate": 0.5, "seed": 3},
    "embedding": {"vocabulary": 3, "units": 2, "init": "normal"},
    "fourier_features": {"units": 2, "scale": 1.0, "trainable": True},
    "glu": {"activation": "silu"},
    "groupnorm": {"groups": 2, "epsilon": 0.1, "affine": True},
    "gru": {"units": 3, "output": "last", "carry": True},
    "huber": {"delta": 1.0, "missing": "ignore"},
    **{
        name: {"missing": "ignore"}
        for name in ("binary_cross_entropy", "hinge", "log_cosh", "mae", "mse", "poisson_nll")
    },
    "beta_nll": {"beta": 0.5},
    "focal": {"gamma": 2.0, "missing": "ignore"},
    "quantile": {"quantiles": 0.5},
    "softmax_cross_entropy": {"label_smoothing": 0.1},
    "student_t_nll": {"nu": 4.0},
    "layernorm": {"epsilon": 0.1, "scale": True, "shift": False},
    "local_response_norm": {"size": 3, "alpha": 0.1, "beta": 0.5, "k": 1.0},
    "lstm": {"units": 3, "output": "last", "carry": True, "unit_forget_bias": False},
    "max_pool1d": {"kernel": 2, "stride": 1, "padding": 1},
    "max_pool2d": {"kernel": 2, "stride": 1, "padding": 1},
    "positions": {"init": "normal"},
    "rescale": {"trainable": True},
    "prelu": {"slope": 0.5},
    "reshape": {"shape": (2, 3)},
    "residual": {"layers": (DENSE,)},
    "rmsnorm": {"epsilon": 0.1, "scale": True},
    "rnn": {"units": 3, "activation": "tanh", "output": "last", "carry": False},
    "slicing": {"start": 1, "stop": 3},
    "standardize": {"trainable": True},
}
# Arguments that tests/losses/test_losses.py looks at.
ELSEWHERE = ("output_weights", "ignore_index")
INTEGER, NUMBER, FLAG, NAME, LAYERS = "integer", "number", "flag", "name", "layers"
WRONG = {
    INTEGER: [-1, 2.0, "3", True, np.True_, None, 10**30, -(10**30), 10**5000, 2**31, float("nan"), [], {}, np.ones(2)],
    NUMBER: [-1, "1", True, None, 10**400, float("nan"), float("inf"), -float("inf"), [1.0], np.ones(2), 1j],
    FLAG: ["no", 0, 1, 1.0, [], np.ones(1)],
    NAME: ["rleu", "", "x" * 10**6, 3, True, ["relu"], {"relu": 1}, b"relu", 10**5000],
    LAYERS: [3, "dense", nbprop.dense, {}, {"a": 1}, [[DENSE]], [3], [nbprop.dense], None],
}


def kind_of(value):
    if isinstance(value, bool):
        return FLAG
    if isinstance(value, int):
        return INTEGER
    if isinstance(value, float):
        return NUMBER
    if isinstance(value, str):
        return NAME
    return LAYERS if isinstance(value, Layer) or DENSE in value else INTEGER


def call(name, arguments):
    """The constructor with these arguments by name."""
    make = getattr(nbprop, name)
    parameters = inspect.signature(make).parameters
    variadic = [key for key, parameter in parameters.items() if parameter.kind is parameter.VAR_POSITIONAL]
    if not variadic:
        return make(**arguments)
    (given,) = (arguments[key] for key in variadic)
    return make(*given) if isinstance(given, (tuple, list)) else make(given)


def test_the_table_has_every_constructor():
    found = {name for name in layers.__all__ if name.islower()} | set(losses.LOSSES)
    found -= {"custom", "elementwise"}
    with_arguments = {name for name in found if inspect.signature(getattr(nbprop, name)).parameters}
    assert set(RIGHT) == with_arguments
    for name, arguments in RIGHT.items():
        parameters = inspect.signature(getattr(nbprop, name)).parameters
        assert list(arguments) == [key for key in parameters if key not in ELSEWHERE], name
        call(name, arguments)


@pytest.mark.parametrize("name", RIGHT)
def test_wrong_values_are_refused_by_name(name):
    for argument, right in RIGHT[name].items():
        default = inspect.signature(getattr(nbprop, name)).parameters[argument].default
        for wrong in WRONG[kind_of(right)]:
            if (wrong is None and default is None) or (argument, type(wrong)) == ("share", str):
                continue  # which layer a text names is found out in the network
            if argument == "seed" and type(wrong) is int and wrong == 2**31:
                continue
            with pytest.raises((TypeError, ValueError)) as caught:
                call(name, RIGHT[name] | {argument: wrong})
            said = str(caught.value)
            assert argument in said or f"{name} takes layers" in said, f"{argument}={type(wrong)}: {said}"
            assert len(said) < 1000, f"{argument}={type(wrong)}: {len(said)} characters"


@pytest.mark.parametrize("name", RIGHT)
def test_numbers_of_numpy_are_taken_and_kept_as_pythons(name):
    wrap = {FLAG: np.bool_, INTEGER: np.int32, NUMBER: np.float64}
    for argument, right in RIGHT[name].items():
        if kind_of(right) in wrap and not isinstance(right, tuple):
            made = call(name, RIGHT[name] | {argument: wrap[kind_of(right)](right)})
            assert made == call(name, RIGHT[name])
            if not isinstance(made, nbprop.losses.Loss):
                json.dumps(made.to_config())


def test_spans_take_numpys_integers_too():
    made = nbprop.conv2d(np.int8(2), (np.int64(3), 2), padding=np.uint8(1), stride=(np.int16(1), 1))
    assert made == nbprop.conv2d(2, (3, 2), padding=1)


def test_every_field_of_every_layer_is_refused_or_taken_whole():
    """JSON brings any value to any field: a ValueError that names the layer or the field, or a network."""
    refused = []
    values = [None, True, -1, 0, 3, 2.5, 1e308, 10**30, "", "tanh", [], [1], [[1]], {}, {"kind": "dense"}, [[], []]]
    shapes = [[], [4], [5, 6], [5, 6, 2]]
    for kind, cls in REGISTRY.items():
        if not hasattr(cls, "__dataclass_fields__"):
            continue
        right = {name: value for name, value in RIGHT.get(kind, {"heads": 2}).items() if kind_of(value) != LAYERS}
        for field in cls.__dataclass_fields__:
            for value in values:
                for shape in shapes:
                    config = {"input_shape": shape, "layers": [{"kind": kind, **right, field: value}]}
                    try:
                        net = nbprop.Network.from_json(json.dumps(config))
                    except ValueError as error:
                        refused.append((kind, field, str(error)))
                    else:
                        assert nbprop.Network.from_json(net.to_json()) == net
    assert len(refused) > 2000
    assert [found for found in refused if not any(name in found[2] for name in (*found[:2], "dense"))] == []


# -- plans and initial values

NET = nbprop.network((3,), DENSE)


@pytest.mark.parametrize("argument", ["batch", "threads", "mode", "target", "loss", "dtype"])
def test_wrong_arguments_of_plan_are_refused_by_name(argument):
    kind = INTEGER if argument in ("batch", "threads") else NAME
    for wrong in [*WRONG[kind], np.ones(2)]:
        with pytest.raises((TypeError, ValueError), match=argument) as caught:
            nbprop.plan(NET, **{argument: wrong})
        assert len(str(caught.value)) < 1000


def test_wrong_seeds_are_refused_by_name():
    for seed in (-1, 2**63, 10**5000, 1.0, True, "1", None):
        with pytest.raises(ValueError, match=r"init: seed must be an integer in 0\.\.2\*\*63 - 1"):
            nbprop.init(NET, seed)


def test_what_is_too_large_is_refused_by_name():
    large = 2**31 - 1
    with pytest.raises(ValueError, match="more than 281,474,976,710,656"):
        nbprop.network((large, large), DENSE)
    with pytest.raises(ValueError, match=r"layer 0\.dense .* parameter weight of shape"):
        nbprop.network((large,), nbprop.dense(large))
    with pytest.raises(ValueError, match=r"layer 1\.dense on .* its output of shape"):
        nbprop.network((large, 2), nbprop.dense(2), nbprop.dense(large))
    with pytest.raises(ValueError, match=r"plan: .* make batch smaller"):
        nbprop.plan(nbprop.network((2**20, 2), nbprop.dense(2**20)), "mse", batch=large)


def nested(depth, layer=DENSE):
    for _ in range(depth):
        layer = nbprop.residual(layer)
    return nbprop.network((2,), layer)


def test_layers_within_layers():
    """As deep as is allowed, everything works; deeper is refused where it is written and where it is read."""
    net = nested(32)
    assert nbprop.Network.from_json(net.to_json()) == net
    assert nbprop.summary(net).count("\n") == 34
    assert repr(net).count("residual") == 32
    with pytest.raises(ValueError, match="layers are nested more than 32 deep"):
        nested(33)
    deep = {"kind": "dense", "units": 2}
    for depth in range(90):
        deep = {"kind": "residual", "layers": [deep]}
        if depth in (40, 89):
            with pytest.raises(ValueError, match="nested more than"):
                nbprop.Network.from_json(json.dumps({"input_shape": [2], "layers": [deep]}))
    for text in ("[" * 100_000 + "]" * 100_000, '{"input_shape": [3], "layers": %s}' % ("[" * 900 + "]" * 900)):
        with pytest.raises(ValueError, match="nested more than 128 deep"):
            nbprop.Network.from_json(text)
