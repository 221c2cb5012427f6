"""Batch normalization beyond the contract: training and use, second derivatives, digits, too few rows, one by one."""

import numba
import numpy as np
import pytest

import nbprop
from support import build, stored
from support.cases import close, same_bits, state_of

pytestmark = pytest.mark.usefixtures("four_cores")
NORMS = {name: case for name, case in stored.load("norms").items() if "state" in case[1]}
NET = nbprop.network((3,), nbprop.dense(5, activation="tanh"), nbprop.batchnorm(epsilon=0.1), nbprop.dense(2))


@pytest.mark.parametrize("case", list(NORMS))
def test_in_use_the_running_statistics_count(case):
    description, arrays = NORMS[case]
    net, x = build.network(description), arrays["x"]
    plan = nbprop.plan(net, batch=len(x) + 3, mode="inference")
    state, y = np.zeros(plan.state_size), np.full(arrays["output_in_use"].shape, np.nan)
    assert state.shape == arrays["state"].shape
    state[:] = arrays["state"]
    nbprop.forward(plan, arrays["params"], x, y, nbprop.workspace(plan), state)
    close("y", y, arrays["output_in_use"], 1e-12)
    same_bits("state", state, arrays["state"])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mode", ["training", "inference"])
def test_second_derivatives_are_differences_of_gradients(mode, threads):
    """Through the statistics of the batch; the state stays as it was."""
    net = nbprop.network((5, 3), nbprop.batchnorm(epsilon=0.1), *NET.layers)
    plan, rng, step = nbprop.plan(net, "mse", batch=40, mode=mode, threads=threads), np.random.default_rng(3), 1e-6
    params, v = nbprop.init(net) + 0.1 * rng.standard_normal(net.n_params), rng.standard_normal(net.n_params)
    x, dx, target = (rng.standard_normal((30, *shape)) for shape in ((5, 3), (5, 3), (5, 2)))
    work = np.full(plan.work_size, np.nan)
    state = rng.uniform(0.5, 2, plan.state_size)
    before = state.copy()

    def gradient(at, x):
        grads = np.empty(net.n_params)
        nbprop.value_and_grad(plan, at, x, target, grads, work, state=state.copy())
        return grads

    def output(at, x):
        y = np.empty((30, 5, 2))
        nbprop.forward(plan, at, x, y, work, state.copy())
        return y

    out = np.empty(net.n_params)
    nbprop.hvp(plan, params, v, x, target, out, work, state=state)
    close("hvp", out, (gradient(params + step * v, x) - gradient(params - step * v, x)) / (2 * step), 1e-7)
    for p, d in ((v, dx), (v, None), (None, dx)):
        y_dot = np.empty((30, 5, 2))
        nbprop.jvp(plan, params, p, x, d, y_dot, work, state)
        high, low = (
            output(params + (0 if p is None else sign * p), x + (0 if d is None else sign * d))
            for sign in (step, -step)
        )
        close("jvp", y_dot, (high - low) / (2 * step), 1e-7)
    # H v = G v + the residual's part; with no residual the two are one.
    fitted = output(params, x)
    nbprop.hvp(plan, params, v, x, fitted, out, work, state=state)
    product = np.empty_like(out)
    nbprop.gauss_newton_product(plan, params, v, x, fitted, product, work, state=state)
    close("Gauss-Newton", product, out, 1e-12)
    same_bits("state", state, before)


def test_features_far_from_zero_keep_their_digits():
    rng = np.random.default_rng(0)
    x = (np.array([1e4, -3e6, 0.0]) + rng.integers(-8, 9, (301, 3))).astype(np.float32)
    plan = nbprop.plan(nbprop.network((3,), nbprop.batchnorm()), batch=301, dtype=np.float32)
    y, state = np.full_like(x, np.nan), nbprop.layer_state(plan)
    nbprop.forward(plan, nbprop.init(plan.net, dtype=np.float32), x, y, nbprop.workspace(plan), state)
    wanted = x.astype(np.float64)
    unbiased = 0.9 + 0.1 * wanted.var(axis=0, ddof=1)
    wanted = (wanted - wanted.mean(axis=0)) / np.sqrt(wanted.var(axis=0) + 1e-5)
    close("y", y, wanted, 1e-6)
    close("running variance", state[3:], unbiased, 1e-6)


def test_many_rows_and_features():
    """Several blocks of rows, each with a mean of its own; the same bits on any number of threads."""
    rng, results = np.random.default_rng(1), []
    x, dy = (rng.standard_normal((5, 131, 150)).astype(np.float32) for _ in range(2))
    x += np.arange(131, dtype=np.float32)[:, None] / 64
    net = nbprop.network((131, 150), nbprop.batchnorm())
    params = rng.standard_normal(300).astype(np.float32)
    for threads, dtype in ((1, np.float64), (1, np.float32), (2, np.float32), (3, np.float32)):
        plan = nbprop.plan(net, batch=5, dtype=dtype, threads=threads)
        state, work, grads = nbprop.layer_state(plan), np.full(plan.work_size, np.nan, dtype), np.empty(300, dtype)
        y, dx = (np.full(x.shape, np.nan, dtype) for _ in range(2))
        given = (params.astype(dtype), x.astype(dtype))
        nbprop.forward(plan, *given, y, work, state)
        nbprop.backward(plan, *given, dy.astype(dtype), grads, dx, work, state=state)
        results.append({"y": y, "dx": dx, "grads": grads, "state": state})
    flat = x.astype(np.float64).reshape(-1, 150)
    mean, variance = flat.mean(axis=0), flat.var(axis=0)
    wanted = (flat - mean) / np.sqrt(variance + 1e-5) * params[:150] + params[150:]
    close("y", results[0]["y"].reshape(-1, 150), wanted, 1e-13)
    normal, g = (flat - mean) / np.sqrt(variance + 1e-5), dy.reshape(-1, 150).astype(np.float64)
    wanted = params[:150] / np.sqrt(variance + 1e-5) * (g - g.mean(axis=0) - normal * (g * normal).mean(axis=0))
    close("dx", results[0]["dx"].reshape(-1, 150), wanted, 1e-12)
    close("grads", results[0]["grads"], np.concatenate([(g * normal).sum(axis=0), g.sum(axis=0)]), 1e-12)
    unbiased = 0.9 + 0.1 * flat.var(axis=0, ddof=1)
    close("state", results[0]["state"], np.concatenate([0.1 * mean, unbiased]), 1e-13)
    for name, wanted in results[0].items():
        close(name, results[1][name], wanted, 2e-6)
        same_bits(name, results[2][name], results[1][name])
        same_bits(name, results[3][name], results[1][name])


@numba.njit
def compiled(plan, params, x, target, grads, work, state):
    return nbprop.value_and_grad(plan, params, x, target, grads, work, None, False, state)


def test_one_row_has_no_variance():
    plan = nbprop.plan(NET, "mse", batch=4)
    params, work, state = nbprop.init(NET), nbprop.workspace(plan), nbprop.layer_state(plan)
    x, target, grads = np.ones((1, 3)), np.ones((1, 2)), np.full(NET.n_params, np.nan)
    with pytest.raises(ValueError, match=r"x must bring at least 2 samples, whose statistics layer 1\.batchnorm takes"):
        nbprop.value_and_grad(plan, params, x, target, grads, work, state=state)
    with pytest.raises(ValueError, match="x brings too few samples for the statistics of a batch"):
        compiled(plan, params, x, target, grads, work, state)
    assert np.isnan(grads).all()
    assert (state == nbprop.layer_state(plan)).all()
    images = nbprop.plan(nbprop.network((2, 3), nbprop.batchnorm()), batch=1)
    y = np.empty((1, 2, 3))
    nbprop.forward(images, np.ones(6), np.ones((1, 2, 3)), y, nbprop.workspace(images), nbprop.layer_state(images))
    assert (y == 1).all(), "a sample of two rows is enough; equal rows have no distance"


def test_samples_that_depend_on_each_other_are_not_taken_one_by_one():
    x, target, params, rows = np.ones((4, 3)), np.ones((4, 2)), nbprop.init(NET), np.empty((4, NET.n_params))
    plan = nbprop.plan(NET, "mse", batch=4)
    for function, given in ((nbprop.per_sample_grads, (x, target, rows)), (nbprop.jacobian, (x, np.empty((8, 42))))):
        with pytest.raises(ValueError, match=r'1\.batchnorm takes statistics over the batch.*mode="inference"'):
            function(plan, params, *given, nbprop.workspace(plan), state=state_of(plan))
    used = nbprop.plan(NET, "mse", batch=4, mode="inference")
    grads, work = np.empty(NET.n_params), nbprop.workspace(used)
    nbprop.per_sample_grads(used, params, x, target, rows, work, state=state_of(used))
    nbprop.value_and_grad(used, params, x, target, grads, work, state=state_of(used))
    close("mean", rows.mean(axis=0), grads, 1e-13)


@pytest.mark.parametrize("momentum", [-0.1, 1.5, float("nan")])
def test_momentum_is_a_share(momentum):
    with pytest.raises(ValueError, match=r"batchnorm: momentum must be a number in \[0, 1\]"):
        nbprop.batchnorm(momentum)


def test_description():
    assert repr(nbprop.batchnorm(0.3)) == "batchnorm(momentum=0.3)"
    assert nbprop.Network.from_json(NET.to_json()) == NET
    with pytest.raises(TypeError, match="momentum must be a number"):
        nbprop.batchnorm("0.1")
    with pytest.raises(ValueError, match="batchnorm needs an axis of features"):
        nbprop.network((), nbprop.batchnorm())


# -- fit


def trained(epochs, batch=16, samples=50, net=NET, dtype=np.float64, **more):
    """(params, state, history) of a training."""
    rng = np.random.default_rng(4)
    x, target = rng.standard_normal((samples, 3)).astype(dtype), rng.standard_normal((samples, 2)).astype(dtype)
    params, plan = nbprop.init(net, seed=2, dtype=dtype), nbprop.plan(net, batch=batch, dtype=dtype)
    state = nbprop.layer_state(plan)
    more = {"validation": (x[:7], target[:7]), "lr": 0.01} | more
    history = nbprop.fit(net, params, x, target, "mse", batch=batch, epochs=epochs, state=state, **more)
    return params, state, history


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path):
    params, state, history = trained(6)
    assert (state[:5] != 0).all()
    trained(3, checkpoint=tmp_path / "run")
    again = trained(6, checkpoint=tmp_path / "run", resume=True, threads=2)
    same_bits("params", again[0], params)
    same_bits("state", again[1], state)
    assert again[2].validation_loss == history.validation_loss


def test_validation_is_as_in_use():
    params, state, history = trained(2)
    rng = np.random.default_rng(4)
    x, target = rng.standard_normal((50, 3)), rng.standard_normal((50, 2))
    plan = nbprop.plan(NET, "mse", batch=7, mode="inference")
    loss = nbprop.value(plan, params, x[:7], target[:7], nbprop.workspace(plan), state=state)
    assert loss == history.validation_loss[-1]


@pytest.mark.parametrize("validation", [True, False])
def test_the_best_epoch_keeps_its_state(validation):
    more = {} if validation else {"validation": None}
    few, state, _ = trained(1, **more)
    rates = {"schedule": lambda step: 0.01 if step < 4 else 3.0, "patience": 2}
    params, later, history = trained(9, **rates, **more)
    assert (history.stopped, history.best_epoch) == ("patience", 0)
    same_bits("params", params, few)
    same_bits("state", later, state)


def test_after_a_divergence_the_state_is_finite():
    params, state, history = trained(9, lr=1e200, validation=None)
    assert history.stopped == "diverged"
    assert np.isfinite(params).all()
    assert np.isfinite(state).all()


def test_fit_asks_for_state_before_it_begins():
    with pytest.raises(ValueError, match=r"batches of 7 leave a last one of 1 sample of 50"):
        trained(1, batch=7)
    x, target, params = np.ones((5, 3)), np.ones((5, 2)), nbprop.init(NET)
    before = params.copy()
    for state, message in ((None, "fit: state is needed"), (np.zeros(3), r"fit: state must have shape \(10,\)")):
        with pytest.raises((TypeError, ValueError), match=message):
            nbprop.fit(NET, params, x, target, "mse", state=state)
    with pytest.raises(ValueError, match="state is written and shares memory"):
        nbprop.fit(NET, params, x, target, "mse", state=target.reshape(-1), batch=5)
    plain = nbprop.network((3,), nbprop.dense(2))
    with pytest.raises(ValueError, match=r"fit: state must have shape \(0,\)"):
        nbprop.fit(plain, nbprop.init(plain), x, target, "mse", state=np.zeros(10))
    same_bits("params", params, before)


# -- functions of the parameters alone


def test_scipy_fits_the_network_as_in_use():
    rng = np.random.default_rng(6)
    x, target = rng.standard_normal((30, 3)), rng.standard_normal((30, 2))
    net = nbprop.network(
        (3,), nbprop.dense(4, activation="tanh"), nbprop.batchnorm(), nbprop.dropout(), nbprop.dense(2)
    )
    plan, params = nbprop.plan(net, "mse", batch=30, mode="inference"), nbprop.init(net, seed=1)
    state = rng.uniform(0.5, 2, plan.state_size)
    before = state.copy()
    pieces = nbprop.objective(nbprop.plan(net, "mse", batch=8, mode="inference"), x, target, state=state)
    whole, v = nbprop.objective(plan, x, target, state=state), rng.standard_normal(net.n_params)
    close("gradient in pieces", pieces(params)[1], whole(params)[1], 1e-13)
    out = np.empty(net.n_params)
    nbprop.hvp(plan, params, v, x, target, out, nbprop.workspace(plan), state=state)
    close("hessp", whole.hessp(params, v), out, 1e-13)
    start = whole(params)[0]
    result = nbprop.minimize(plan, params, x, target, maxiter=20, state=state, validation=(x[:9], target[:9]))
    assert result.fun == whole(params)[0] < 0.9 * start
    same_bits("state", state, before)
    with pytest.raises(TypeError, match="minimize: state is needed for this network"):
        nbprop.minimize(plan, params, x, target)


@pytest.mark.parametrize("layer", [nbprop.batchnorm(), nbprop.dropout()])
def test_what_is_no_function_of_the_parameters_is_refused(layer):
    net, x, target = nbprop.network((3,), layer, nbprop.dense(2)), np.ones((4, 3)), np.ones((4, 2))
    plan, params = nbprop.plan(net, "mse", batch=4), nbprop.init(net)
    said = rf'layer 0\.{layer.kind} differs between training and use.*mode="inference"'
    for call in (
        lambda: nbprop.objective(plan, x, target, state=state_of(plan)),
        lambda: nbprop.minimize(plan, params, x, target, state=state_of(plan)),
        lambda: nbprop.least_squares(plan, params, x, target),
        lambda: nbprop.hessian_operator(plan, params, x, target),
        lambda: nbprop.jacobian_operator(plan, params, x),
        lambda: nbprop.fit_many(net, params[None], x[None], target[None]),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    if layer.kind == "batchnorm":
        plan = nbprop.plan(net, "mse", batch=4, mode="inference")
        with pytest.raises(ValueError, match=r"least_squares: layer 0\.batchnorm has layer state"):
            nbprop.least_squares(plan, params, x, target)


def test_gradcheck_takes_the_batch_and_the_mask_of_step_0():
    net = nbprop.network((3, 4), nbprop.dense(5, "tanh"), nbprop.batchnorm(), nbprop.dropout(0.3), nbprop.dense(2))
    for loss in (None, "mse"):
        assert set(nbprop.gradcheck(net, loss)) == {"x", *net.slots}
