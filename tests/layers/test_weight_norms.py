"""Weight and spectral normalization beyond the contract: second derivatives, initial values, state, sharing, files."""

import numpy as np
import pytest

import nbprop
from support.cases import CASES, close, data, state_of
from support.contract import central_differences, parameters

dense = nbprop.dense
REPARAMETRIZED = [
    pytest.param(case, marks=[pytest.mark.more] if case.endswith("images") else [])
    for case in CASES
    if case.startswith(("weight_norm", "spectral_norm"))
]


@pytest.mark.parametrize("case", REPARAMETRIZED)
def test_products_are_differences_of_gradients(case):
    net, rng, n = CASES[case][0], np.random.default_rng(1), 3
    plan = nbprop.plan(net, "mse", batch=n)
    params, v = parameters(plan, rng), rng.standard_normal(plan.n_params)
    x, target, _ = data(plan, n, rng, ties=False)
    work, step = nbprop.workspace(plan), 1e-5

    def gradient(at):
        grads = np.empty(plan.n_params)
        nbprop.value_and_grad(plan, params + at * v, x, target, grads, work, state=state_of(plan))
        return grads

    def output(at):
        y = np.empty((n, *net.output_shape))
        nbprop.forward(plan, params + at * v, x, y, work, state_of(plan))
        return y

    product, y_dot = np.empty(plan.n_params), np.empty((n, *net.output_shape))
    nbprop.hvp(plan, params, v, x, target, product, work, state=state_of(plan))
    nbprop.jvp(plan, params, v, x, None, y_dot, work, state=state_of(plan))
    close("hvp", product, (gradient(step) - gradient(-step)) / (2 * step), 1e-8)
    close("jvp", y_dot, (output(step) - output(-step)) / (2 * step), 1e-8)


def outputs(net, params, x, state=None, mode="inference"):
    plan = nbprop.plan(net, batch=len(x), mode=mode)
    y = np.empty((len(x), *net.output_shape))
    nbprop.forward(plan, params, x, y, nbprop.workspace(plan), state)
    return y


def test_weight_norm_begins_as_the_layer_inside():
    x = np.random.default_rng(0).standard_normal((4, 3))
    net = nbprop.network((3,), nbprop.weight_norm(dense(5, activation="tanh")), nbprop.weight_norm(dense(2)))
    params = nbprop.init(net, seed=3)
    parts = nbprop.views(net, params)
    plain = nbprop.network((3,), dense(5, activation="tanh"), dense(2))
    inside = [part.ravel() for name, part in parts.items() if not name.endswith("scale")]
    close("y", outputs(net, params, x), outputs(plain, np.concatenate(inside), x), 1e-15)
    for k in range(2):  # lengths count, directions' lengths do not
        parts[f"{k}.weight_norm.dense.weight"] *= 3.0
    close("y", outputs(net, params, x), outputs(plain, np.concatenate(inside), x), 1.0)
    parts["1.weight_norm.scale"] *= 2.0
    single = nbprop.network((5,), nbprop.weight_norm(dense(2)))
    last, h = params[-14:], np.eye(5)
    w = outputs(single, last, h) - last[-2:]
    close("lengths", np.linalg.norm(w, axis=0), parts["1.weight_norm.scale"], 1e-15)


def test_spectral_norm_finds_the_singular_value(tmp_path):
    """Each training call takes one step of the power iteration; inference takes none."""
    net = nbprop.network((6,), nbprop.spectral_norm(dense(4, bias=False)))
    params, x = nbprop.init(net, seed=1), np.eye(6)
    training = nbprop.plan(net, batch=6)
    state, y, work = nbprop.layer_state(training), np.empty((6, 4)), nbprop.workspace(training)
    first = state.copy()
    outputs(net, params, x, state)
    assert np.array_equal(state, first)
    w = params.reshape(6, 4)
    direction = np.full(4, 0.5)
    for _ in range(200):
        close("y", outputs(net, params, x, state), w / np.linalg.norm(w @ direction), 1e-14)
        image = w @ direction
        direction = w.T @ image / np.linalg.norm(w.T @ image)
        nbprop.forward(training, params, x, y, work, state)
        close("u", state / np.linalg.norm(state), direction, 1e-13)
    close("sigma", np.linalg.norm(outputs(net, params, x, state), 2), 1.0, 1e-13)
    nbprop.save(tmp_path / "net", net, params, state)
    again, read = nbprop.load(tmp_path / "net")
    assert again == net
    assert np.array_equal(nbprop.load_state(tmp_path / "net", training), state)
    assert np.array_equal(read, params)
    assert nbprop.Network.from_json(net.to_json()) == net


def test_a_shared_weight_is_the_effective_one():
    """Gradients of all uses add up, with and without accumulate."""
    rng = np.random.default_rng(2)
    net = nbprop.network(
        (3,), nbprop.weight_norm(dense(3, activation="tanh")), dense(3, share="0.weight_norm.dense.weight")
    )
    plan = nbprop.plan(net, "mse", batch=4)
    params, (x, target, _), work = parameters(plan, rng), data(plan, 4, rng, ties=False), nbprop.workspace(plan)
    grads = np.empty(plan.n_params)
    nbprop.value_and_grad(plan, params, x, target, grads, work)
    wanted = central_differences(lambda: nbprop.value(plan, params, x, target, work), params)
    close("grads", grads, wanted, 1e-8)
    twice = grads.copy()
    nbprop.value_and_grad(plan, params, x, target, twice, work, accumulate=True)
    assert np.array_equal(twice, grads + grads)
    rows = np.empty((4, plan.n_params))
    nbprop.per_sample_grads(plan, params, x, target, rows, work)
    close("rows", rows.mean(axis=0), grads, 1e-14)


def test_fit_keeps_the_state_of_spectral_norm():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((64, 5))
    net = nbprop.network((5,), nbprop.spectral_norm(dense(7, activation="tanh")), nbprop.spectral_norm(dense(1)))
    params = nbprop.init(net, seed=0)
    state = nbprop.layer_state(nbprop.plan(net, batch=16))
    history = nbprop.fit(net, params, x, x[:, :1] * 0.5, "mse", lr=0.01, batch=16, epochs=30, state=state)
    assert history.loss[-1] < 0.5 * history.loss[0]
    weight, u = nbprop.views(net, params)["0.spectral_norm.dense.weight"], state[:7]
    estimate = np.linalg.norm(weight @ u) / np.linalg.norm(u)
    assert 0.99 < estimate / np.linalg.norm(weight, 2) <= 1 + 1e-12


@pytest.mark.parametrize("wrap", [nbprop.weight_norm, nbprop.spectral_norm])
@pytest.mark.parametrize(
    ("inside", "message"),
    [
        (nbprop.rnn(3), "layer must be a dense, conv1d or conv2d, got rnn"),
        (dense(3, share="0.dense"), "layer must have a weight of its own, got share='0.dense'"),
        (dense(3, init="zeros"), "layer must not begin with a weight of zeros"),
        (3, "layer must be a dense, conv1d or conv2d, got 3"),
    ],
)
def test_what_is_refused(wrap, inside, message):
    with pytest.raises((TypeError, ValueError), match=f"{wrap.__name__}: {message}"):
        wrap(inside)
