"""Explanations: gradients of inner units against the rest of the network, completeness, and what is refused."""

import numpy as np
import pytest

import nbprop
from support.cases import NETWORKS, close

dense = nbprop.dense

SMOOTH = {
    name: NETWORKS[name]
    for name in ("dense_wide", "dense_positions", "flatten", "reshape", "slicing", "concat", "residual_twice")
} | {"tied": NETWORKS["tied"], "gelu": NETWORKS["fused_gelu"], "softmax": NETWORKS["alone_softmax"]}


def example(net, n=3, dtype=np.float64):
    """A plan, parameters and inputs; values that float32 holds, for either dtype."""
    rng = np.random.default_rng(5)
    params = np.float32(nbprop.init(net, seed=2) + 0.1 * rng.standard_normal(net.n_params))
    x = np.float32(rng.standard_normal((n, *net.input_shape)))
    return nbprop.plan(net, batch=2, dtype=dtype), params.astype(dtype), x.astype(dtype)


def rest_of(net, params, layer):
    """The layers behind a layer as a network of their own, with its parameters."""
    rest = nbprop.network(net.shapes[layer + 1], *net.layers[layer + 1 :])
    return rest, params[net.n_params - rest.n_params :]


@pytest.mark.parametrize("name", [name for name in SMOOTH if name != "tied"])
def test_gradients_of_units_are_those_by_the_input_of_the_layers_behind(name):
    net = SMOOTH[name]
    plan, params, x = example(net)
    found = nbprop.explain(plan, params, x, output=1, steps=3)
    for layer in range(len(net.layers) - 1):
        units = found.units[f"{layer}.{net.layers[layer].kind}"]
        front = nbprop.network(net.input_shape, *net.layers[: layer + 1])
        rest, rest_params = rest_of(net, params, layer)
        for i in range(len(x)):
            one = nbprop.plan(front)
            values = np.empty((1, *front.output_shape))
            nbprop.forward(one, params[: front.n_params].copy(), x[i : i + 1], values, nbprop.workspace(one))
            behind = nbprop.plan(rest)
            dy, gradient, grads = np.zeros((1, *net.output_shape)), np.empty_like(values), np.empty(rest.n_params)
            dy.reshape(-1)[1] = 1
            nbprop.vjp(behind, rest_params.copy(), values, dy, grads, gradient, nbprop.workspace(behind))
            close("value", units.value[i], values[0], 1e-13)
            close("gradient", units.gradient[i], gradient[0], 1e-13)
            close("product", units.product[i], values[0] * gradient[0], 1e-13)


@pytest.mark.parametrize("name", list(SMOOTH))
def test_integrals_are_complete_to_the_square_of_the_step(name):
    net = SMOOTH[name]
    plan, params, x = example(net)
    baseline = np.full(net.input_shape, 0.25)
    gaps = []
    for steps in (40, 80, 160):
        found = nbprop.explain(plan, params, x, 0, baseline, steps)
        behind = [c.gap for path, c in found.units.items() if path.count(".") == 1]
        gaps.append([found.inputs.gap, found.connections_gap, *behind])
        assert not np.isnan(gaps[-1]).any()
    gaps = np.array(gaps)
    assert gaps[-1].max() < 1e-3
    # Halved steps leave a quarter of the gap, down to rounding.
    assert (gaps[1:] <= 0.26 * gaps[:-1] + 1e-14).all()
    y = np.empty((2, *net.output_shape))
    nbprop.forward(plan, params, np.stack([x[0], baseline]), y, nbprop.workspace(plan))
    assert found.value[0] == y[0].ravel()[0]
    assert found.baseline_value[0] == y[1].ravel()[0]


def test_the_tied_units_of_a_time_step_have_gradients_of_their_own():
    """A recurrent net, unrolled twice: central differences on a copy whose second step may differ."""
    tied = nbprop.network((3,), dense(3, activation="tanh"), dense(3, activation="tanh", share="0.dense"), dense(1))
    free = nbprop.network((3,), dense(3, activation="tanh"), dense(3, activation="tanh"), dense(1))
    plan, params, x = example(tied)
    found = nbprop.explain(plan, params, x, 0)
    apart = np.concatenate([params[:12], params[:12], params[12:]])
    same = nbprop.explain(nbprop.plan(free), apart, x, 0)
    for path in ("0.dense", "1.dense"):
        close(path, found.units[path].gradient, same.units[path].gradient, 1e-13)
        close(path, found.units[path].integrated, same.units[path].integrated, 1e-13)
    two = same.connections["0.dense.weight"].gradient + same.connections["1.dense.weight"].gradient
    close("shared weight", found.connections["0.dense.weight"].gradient, two, 1e-13)


def test_a_linear_network_is_explained_exactly():
    net = nbprop.network((3,), dense(2), dense(2, bias=False))
    plan, params, x = example(net)
    found = nbprop.explain(plan, params, x, np.array([1, 0, 1]), baseline=x[::-1].copy(), steps=1)
    w, u = (nbprop.views(net, params)[name] for name in ("0.dense.weight", "1.dense.weight"))
    for i, k in enumerate(found.output):
        close("gradient", found.inputs.gradient[i], w @ u[:, k], 1e-14)
        close("product", found.inputs.product[i], x[i] * (w @ u[:, k]), 1e-14)
        close("integrated", found.inputs.integrated[i], (x[i] - x[2 - i]) @ np.diag(w @ u[:, k]), 1e-14)
        into = found.connections["0.dense.weight"]
        assert (into.value[i] == w).all()
        close("connections", into.gradient[i], np.outer(x[i], u[:, k]), 1e-14)
        assert (found.connections["1.dense.weight"].gradient[i][:, 1 - k] == 0).all()
    assert found.inputs.gap.max() < 1e-14
    assert np.isnan(into.gap).all()


def test_the_largest_output_is_explained_unless_one_is_named():
    plan, params, x = example(SMOOTH["dense_wide"], n=7)
    y = np.empty((2, 3))
    found, work = nbprop.explain(plan, params, x), nbprop.workspace(plan)
    for i in range(7):
        nbprop.forward(plan, params, np.stack([x[i], x[i]]), y, work)
        assert found.output[i] == y[0].argmax()
        close("value", found.value[i], y[0].max(), 1e-14)
    assert found.units["0.dense"].integrated.shape == (7, 37)
    assert found.connections["0.dense.weight"].product.shape == (7, 19, 37)


def test_float32_and_what_stays_as_it_was():
    net = SMOOTH["concat"]
    wide, narrow = (nbprop.explain(*example(net, dtype=dtype)) for dtype in (np.float64, np.float32))
    for got, wanted in [(narrow.inputs, wide.inputs)] + [
        (getattr(narrow, part)[name], wanted)
        for part in ("units", "connections")
        for name, wanted in getattr(wide, part).items()
    ]:
        for name in ("value", "gradient", "product", "integrated"):
            assert getattr(got, name).dtype == np.float32
            close(name, getattr(got, name), getattr(wanted, name), 1e-5)
    plan, params, x = example(net)
    params.flags.writeable = x.flags.writeable = False
    nbprop.explain(plan, params, x)


def test_what_is_explained_is_the_network_in_use():
    """Dropout passes through, running statistics hold and stay, whatever the plan's mode and batch."""
    net = nbprop.network((3,), dense(4), nbprop.batchnorm(), nbprop.activation("tanh"), nbprop.dropout(0.5), dense(2))
    params, x = nbprop.init(net) + 0.1, np.linspace(-1, 1, 6).reshape(2, 3)
    found = []
    for mode, batch in (("training", 7), ("inference", 1)):
        plan = nbprop.plan(net, batch=batch, mode=mode)
        state = nbprop.layer_state(plan) + np.linspace(0, 1, plan.state_size)
        before = state.copy()
        found.append(nbprop.explain(plan, params, x, state=state))
        assert np.array_equal(state, before)
        y = np.empty((1, 2))
        in_use = nbprop.plan(net, mode="inference")
        nbprop.forward(in_use, params, x[:1], y, nbprop.workspace(in_use), state)
        close("value", found[-1].value[0], y.max(), 1e-14)
    assert np.array_equal(found[0].inputs.integrated, found[1].inputs.integrated)
    assert max(found[0].inputs.gap.max(), found[0].connections_gap.max()) < 1e-3
    with pytest.raises(TypeError, match="explain: state is needed for this network"):
        nbprop.explain(plan, params, x)


def test_positions_beyond_a_length_contribute_nothing():
    net = nbprop.network((4, 3), nbprop.rnn(4), dense(2))
    plan, params, x = example(net, n=2)
    state = nbprop.layer_state(plan)
    found = nbprop.explain(plan, params, x, output=1, lengths=np.array([2, 4]), state=state)
    one = nbprop.explain(plan, params, x[1:], output=1, state=state)
    assert (found.inputs.integrated[0, 2:] == 0).all()
    assert np.array_equal(found.inputs.integrated[1], one.inputs.integrated[0])
    assert found.inputs.gap.max() < 1e-3
    for lengths, wrong in (
        ([2, 5], r"hold lengths in 1\.\.4, got 5 at lengths\[1\]"),
        ([0, 4], "got 0"),
        ([2], "got 1 for 2"),
    ):
        lengths = np.array(lengths)
        with pytest.raises(ValueError, match=f"explain: lengths must .*{wrong}"):
            nbprop.explain(plan, params, x, lengths=lengths, state=state)


PLAN, PARAMS, X = example(NETWORKS["dense_wide"])
NAN = np.full_like(X, np.nan)
REFUSED = {
    "plan": (lambda: nbprop.explain("plan", PARAMS, X), TypeError, "explain: plan must be what nbprop.plan"),
    "params": (lambda: nbprop.explain(PLAN, PARAMS[:-1], X), ValueError, r"explain: params must have shape \(854,\)"),
    "x, float32": (lambda: nbprop.explain(PLAN, PARAMS, np.float32(X)), TypeError, "x must hold float64, got float32"),
    "x, one sample": (lambda: nbprop.explain(PLAN, PARAMS, X[0]), ValueError, r"x must have shape \(n, 19\)"),
    "x, NaN": (lambda: nbprop.explain(PLAN, PARAMS, NAN), ValueError, r"x\[0, 0\] is nan"),
    "output": (lambda: nbprop.explain(PLAN, PARAMS, X, 3), ValueError, r"output must be an integer in 0..2, got 3"),
    "output, negative": (
        lambda: nbprop.explain(PLAN, PARAMS, X, np.array([0, -1, 2])),
        ValueError,
        r"got -1 at output\[1\]",
    ),
    "output, float": (lambda: nbprop.explain(PLAN, PARAMS, X, 1.0), ValueError, "output must be an integer"),
    "output, list": (lambda: nbprop.explain(PLAN, PARAMS, X, [0, 1, 2]), ValueError, "output must be an integer"),
    "output, too many": (lambda: nbprop.explain(PLAN, PARAMS, X, np.zeros(4, int)), ValueError, "got 4 for 3"),
    "baseline": (lambda: nbprop.explain(PLAN, PARAMS, X, baseline=X[:2]), ValueError, "as many as x, got 2 for 3"),
    "baseline, shape": (
        lambda: nbprop.explain(PLAN, PARAMS, X, baseline=X[:, :3].copy()),
        ValueError,
        r"baseline must have shape \(n, 19\)",
    ),
    "steps": (
        lambda: nbprop.explain(PLAN, PARAMS, X, steps=0),
        ValueError,
        "steps must be an integer in 1..1,048,576, got 0",
    ),
    "lengths": (
        lambda: nbprop.explain(PLAN, PARAMS, X, lengths=np.ones(3, int)),
        ValueError,
        "for networks with a layer that takes lengths",
    ),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_does_not_fit_is_refused(what):
    call, kind, message = REFUSED[what]
    with pytest.raises(kind, match=message):
        call()
