"""l2 and l1 belong to the plan's loss: every function and every solver sees the same one, and closed forms are met."""

import pickle

import numba
import numpy as np
import pytest

import nbprop
from nbprop.lowering.plan import plan_like
from nbprop.optimizers.proximal import PROXIMAL
from support.cases import CASES, Buffers, close, data, same_bits, state_of
from support.contract import central_differences, parameters

pytestmark = pytest.mark.usefixtures("four_cores")
L2, L1 = 0.3, 0.07
CHECKED = ["dense_wide", "dense_many_positions", "tied_weight", "conv2d", "lstm", "batchnorm", "standardize_given"]
PRODUCTS = ("hvp", "gauss_newton_product", "fisher_product")


def penalized_by_hand(net):
    """The default mask: arrays of two axes and more."""
    mask = np.zeros(net.n_params, bool)
    for path, view in nbprop.views(net, mask).items():
        view[...] = view.ndim > 1 and net.slots[path].parameter.trained
    return mask


def results(plan, n, dtype, accumulate=False):
    """{function: what it gives} on data of its own, from poisoned buffers."""
    rng, buffers = np.random.default_rng(3), Buffers()
    params = parameters(plan, rng)
    params[penalized_by_hand(plan.net) & (rng.uniform(size=params.size) < 0.2)] = 0.0  # kinks of l1
    x, target, weights = data(plan, n, rng, ties=False)
    v = rng.standard_normal(params.size).astype(dtype)
    work, grads = buffers.poisoned((plan.work_size,), dtype), buffers.poisoned(params.shape, dtype)
    weights, state = weights.astype(dtype), state_of(plan)
    found = {"params": params, "v": v}
    found["value"] = nbprop.value(plan, params, x, target, work, weights, state)
    work[:] = np.nan
    if accumulate:
        grads[:] = 1
    found["loss"] = nbprop.value_and_grad(plan, params, x, target, grads, work, weights, accumulate, state)
    found["grads"] = grads
    for name in PRODUCTS:
        work[:] = np.nan
        out = found[name] = buffers.poisoned(params.shape, dtype)
        getattr(nbprop, name)(plan, params, v, x, target, out, work, weights, state)
    if plan.min_samples == 0:
        for name, rows in (("per_sample_grads", n), ("jacobian", n * plan.unit_size)):
            out, given = buffers.poisoned((rows, params.size), dtype), () if name == "jacobian" else (target,)
            getattr(nbprop, name)(plan, params, x, *given, out, work, state)
            found[name] = out
    buffers.check()
    return found


@pytest.mark.parametrize("case", CHECKED)
def test_every_function_sees_the_penalty(case):
    """What a plan without gives, plus the penalty's value, gradient and product, in both precisions, by hand."""
    (net, _), n = CASES[case], 5
    mask = penalized_by_hand(net)
    for dtype, tolerance in ((np.float64, 1e-14), (np.float32, 1e-6))[: 2 if case == "dense_wide" else 1]:
        plain = nbprop.plan(net, "mse", n, dtype)
        plan = nbprop.plan(net, "mse", n, dtype, l2=L2, l1=L1)
        without, found = results(plain, n, dtype), results(plan, n, dtype)
        p, v = found["params"].astype(np.float64) * mask, found["v"] * mask
        close("loss", found["loss"], without["loss"] + 0.5 * L2 * p @ p + L1 * np.abs(p).sum(), tolerance)
        assert found["value"] == found["loss"]
        close("grads", found["grads"], without["grads"] + L2 * p + L1 * np.sign(p), tolerance)
        for name in PRODUCTS:
            close(name, found[name], without[name] + L2 * v, tolerance)
        for name in ("per_sample_grads", "jacobian"):
            if name in found:
                same_bits(name, found[name], without[name])
        added = results(plan, n, dtype, accumulate=True)["grads"]
        close("accumulated", added, found["grads"] + 1, tolerance)
        for threads in (2, 4):
            other = results(nbprop.plan(net, "mse", n + 3, dtype, threads, l2=L2, l1=L1), n, dtype)
            for name, value in found.items():
                same_bits(f"{name}, {threads} threads", other[name], value)


def test_the_gradient_is_the_values_and_the_product_the_gradients():
    """Central differences, for a mask that begins and ends within arrays, biases too, and blocks of 4,096."""
    net, rng = nbprop.network((70,), nbprop.dense(67, activation="tanh"), nbprop.dense(2)), np.random.default_rng(4)
    mask = rng.uniform(size=net.n_params) < 0.9
    plan = nbprop.plan(net, "mse", 3, l2=L2, l1=L1, penalized=mask)
    params, work, grads = parameters(plan, rng), nbprop.workspace(plan), np.empty(net.n_params)
    x, target, _ = data(plan, 3, rng, ties=False)

    def loss():
        return nbprop.value(plan, params, x, target, work)

    got = nbprop.value_and_grad(plan, params, x, target, grads, work)
    plain = nbprop.value(plan_like(plan, penalty=None), params, x, target, work)
    p = params[mask]
    assert abs(got - (plain + 0.5 * L2 * p @ p + L1 * np.abs(p).sum())) < 1e-12
    tried = rng.choice(net.n_params, 40, replace=False)
    part = params[tried].copy()

    def moved():
        params[tried] = part
        return loss()

    close("grads", grads[tried], central_differences(moved, part), 1e-7)
    params[tried] = part
    assert not np.array_equal(mask, penalized_by_hand(net))
    again = pickle.loads(pickle.dumps(plan))
    assert nbprop.value(again, params, x, target, work) == got
    assert "l2=0.3, l1=0.07" in repr(again)
    assert "penalty" in nbprop.summary(plan)


def test_a_mask_of_everything_leaves_given_numbers_alone():
    net = CASES["standardize_given"][0]
    plan = nbprop.plan(net, "mse", 2, l2=1.0, penalized=np.ones(net.n_params, bool))
    assert np.array_equal(plan.penalty.mask(net.n_params), nbprop.trainable_mask(net))
    nothing = nbprop.plan(net, "mse", 2, l2=1.0, penalized=np.zeros(net.n_params, bool))
    assert nothing is nbprop.plan(net, "mse", 2)
    assert nbprop.plan(net, "mse", 2, l2=0.5) is nbprop.plan(net, "mse", 2, l2=0.5)


# -- closed forms ----------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(5)
N, K = 40, 6
X = RNG.standard_normal((N, K)) @ RNG.standard_normal((K, K)) / 2
Y = X @ np.array([[2.0], [-1.0], [0.0], [0.5], [0.0], [0.01]]) + 0.3 + 0.2 * RNG.standard_normal((N, 1))
W = RNG.uniform(0.2, 2.0, N)
LINEAR = nbprop.network((K,), nbprop.dense(1))
START = np.zeros(K + 1)


def ridge(l2, w=None):
    """The minimiser of sum(w (X p + b - y)^2) / sum(w) + l2 / 2 |p|^2: weights, then the bias."""
    w = np.ones(N) if w is None else w
    A = np.concatenate([X, np.ones((N, 1))], axis=1)
    H = 2 * A.T @ (w[:, None] * A) / w.sum() + l2 * np.diag([1.0] * K + [0.0])
    return np.linalg.solve(H, 2 * A.T @ (w * Y[:, 0]) / w.sum())


@pytest.mark.parametrize("w", [None, W], ids=["", "weights"])
@pytest.mark.parametrize("batch", [N, 7])
def test_ridge_has_its_closed_form(w, batch):
    plan, wanted = nbprop.plan(LINEAR, "mse", batch, l2=L2), ridge(L2, w)
    for method in (
        "L-BFGS",
        "trust-ncg",
    ):  # line searches look at losses, whose digits determine half as many of params
        params = START.copy()
        result = nbprop.minimize(plan, params, X, Y, method, weights=w, options={"gtol": 1e-12})
        close(method, params, wanted, 1e-7)
    for method, jac in (("marquardt", "dense"), ("trf", "dense"), ("trf", "operator")):
        params, ftol = START.copy(), 0.0 if method == "marquardt" else 1e-15
        least = nbprop.least_squares(plan, params, X, Y, method, jac, weights=w, xtol=1e-15, ftol=ftol, gtol=1e-13)
        close(f"{method} {jac}", params, wanted, 1e-10 if (method, jac) == ("trf", "dense") else 1e-8)
        total = N if w is None else w.sum()
        assert abs(least.cost - 0.5 * total * result.fun) < 1e-10
        assert least.fun.shape == (N + K,)


def test_fleets_see_the_penalty():
    """Each model its own l2, sets of unequal size, shared by models, with weights: all have their closed forms."""
    l2 = np.array([0.0, 0.3, 0.3, 2.0, 0.0])
    xs, ys, weights = np.stack([X, X]), np.stack([Y, Y]), np.stack([W, np.ones(N)])
    xs[1, 30:], ys[1, 30:], weights[1, 30:] = np.nan, np.nan, np.nan
    sets, samples = np.array([0, 0, 1, 1, 1]), np.array([N, 30])
    for method in ("L-BFGS", "marquardt"):
        thetas = np.zeros((5, K + 1))
        more = {"weights": weights, "samples": samples, "data": sets, "l2": l2, "gtol": 1e-12, "ftol": 0.0}
        result = nbprop.fit_many(LINEAR, thetas, xs, ys, method=method, threads=2, **more)
        for k, own in enumerate(sets):
            w = np.where(np.arange(N) < samples[own], [W, np.ones(N)][own], 0.0)
            close(f"{method} {k}", thetas[k], ridge(l2[k], w), 1e-8)
            errors = X @ thetas[k, :K, None] + thetas[k, K] - Y
            wanted = w @ errors[:, 0] ** 2 / w.sum() + 0.5 * l2[k] * thetas[k, :K] @ thetas[k, :K]
            assert abs(result.fun[k] - wanted) < 1e-12


def lasso(l1):
    """The minimiser of mean((X p + b - y)^2) + l1 sum(|p|), by cyclic coordinate descent (Friedman et al. 2010)."""
    x, y, p = X - X.mean(0), Y[:, 0] - Y.mean(), np.zeros(K)
    for _ in range(20000):
        for j in range(K):
            rest = x[:, j] @ (y - x @ p + x[:, j] * p[j]) / N
            p[j] = np.sign(rest) * max(abs(rest) - l1 / 2, 0.0) / (x[:, j] @ x[:, j] / N)
    return np.append(p, Y.mean() - X.mean(0) @ p)


def test_lasso_is_that_of_coordinate_descent_and_of_scikit_learn():
    """OWL-QN finds the same zeros and the same numbers; also with the other parameters frozen, and resumed."""
    l1 = 0.2
    wanted, plan, params = lasso(l1), nbprop.plan(LINEAR, "mse", N, l1=l1), START + 0.1
    result = nbprop.minimize(plan, params, X, Y, "L-BFGS", options={"gtol": 1e-12})
    assert result.success, result.message
    close("OWL-QN", params, wanted, 1e-8)
    assert np.array_equal(params == 0, wanted == 0)
    assert 1 <= (params == 0).sum() < K
    theirs = pytest.importorskip("sklearn.linear_model").Lasso(alpha=l1 / 2, tol=1e-14, max_iter=100000).fit(X, Y[:, 0])
    close("scikit-learn", params, np.append(theirs.coef_, theirs.intercept_), 1e-8)
    assert np.array_equal(params[:K] == 0, theirs.coef_ == 0)
    thetas = np.zeros((2, K + 1))
    nbprop.fit_many(LINEAR, thetas, X[None], Y[None], data=np.zeros(2, np.int64), l1=np.array([l1, 0.0]), ftol=0.0)
    close("fleet", thetas[0], wanted, 1e-7)
    close("fleet without", thetas[1], ridge(0.0), 1e-7)


def test_an_l1_search_goes_on_where_it_was_stopped():
    net = nbprop.network((K,), nbprop.dense(7, activation="tanh"), nbprop.dense(1))
    plan, params = nbprop.plan(net, "mse", N, l1=0.01, l2=0.001), nbprop.init(net, seed=1)
    whole = params.copy()
    uninterrupted = nbprop.minimize(plan, whole, X, Y, "L-BFGS", maxiter=60)
    first = nbprop.minimize(plan, params, X, Y, "L-BFGS", maxiter=23)
    second = nbprop.minimize(plan, params, X, Y, "L-BFGS", maxiter=37, resume=first.state)
    same_bits("params", params, whole)
    assert second.fun == uninterrupted.fun < first.fun
    # Where it ends, 0 is in the subdifferential.
    nbprop.minimize(plan, params, X, Y, "L-BFGS", maxiter=20000, options={"gtol": 1e-7})
    grads, work = np.empty(net.n_params), nbprop.workspace(plan)
    nbprop.value_and_grad(plan_like(plan, penalty=None), params, X, Y, grads, work)
    mask, smooth = plan.penalty.mask(net.n_params), grads + 0.001 * params * plan.penalty.mask(net.n_params)
    zero = mask & (params == 0)
    assert zero.sum() > 5
    assert (np.abs(smooth[zero]) <= 0.01 + 1e-6).all()
    assert np.abs((smooth + 0.01 * np.sign(params) * mask)[~zero]).max() < 1e-5
    other = nbprop.plan(net, "mse", N, l1=0.02, l2=0.001)
    with pytest.raises(ValueError, match="another network, loss or dtype"):
        nbprop.minimize(other, params, X, Y, "L-BFGS", resume=first.state)


RATES = {
    "sgd": 0.05,
    "momentum": 0.01,
    "nesterov": 0.01,
    "rmsprop": 0.01,
    "adagrad": 0.3,
    "adam": 0.01,
    "adamw": 0.01,
    "amsgrad": 0.03,
    "radam": 0.03,
    "nadam": 0.01,
    "rprop": 0.01,
    "lion": 0.01,
    "adadelta": 10.0,
}
CONSTANT = ("sgd", "momentum", "nesterov", "adagrad", "rprop")


@pytest.mark.parametrize(
    "optimizer", [name if name in ("sgd", "adam") else pytest.param(name, marks=pytest.mark.more) for name in PROXIMAL]
)
def test_proximal_steps_end_at_the_lasso(optimizer):
    """Every rule with its own rates, on all data at once: the same zeros, not small numbers in their places."""
    l1, params = 0.2, START + 0.1
    wanted, options = lasso(l1), {"weight_decay": 0.0} if optimizer == "adamw" else {}
    schedule = None if optimizer in CONSTANT else (lambda step: RATES[optimizer] * 0.999**step)
    history = nbprop.fit(
        LINEAR,
        params,
        X,
        Y,
        "mse",
        optimizer,
        RATES[optimizer],
        batch=N,
        epochs=8000,
        schedule=schedule,
        l1=l1,
        **options,
    )
    close(optimizer, params, wanted, 1e-4)
    assert np.array_equal(params == 0, wanted == 0)
    penalty = nbprop.plan(LINEAR, "mse", N, l1=l1).penalty
    assert abs(history.loss[-1] - np.mean((X @ params[:K, None] + params[K] - Y) ** 2) - penalty.value(params)) < 1e-6


@numba.njit
def _adam_steps(plan, params, grads, work, state, steps, l1, penalized):
    for step in range(steps):
        nbprop.value_and_grad(plan, params, X, Y, grads, work)
        nbprop.adam(params, grads, state, step, lr=0.05, l1=l1, penalized=penalized)


def test_public_optimizers_take_the_steps_of_fit():
    """From Python and from @njit, with a mask and without; l1 = 0 is the plain step."""
    plan, work, grads = nbprop.plan(LINEAR, "mse", N), None, np.empty(K + 1)
    work, weights = nbprop.workspace(plan), np.arange(K + 1) < K
    wanted = START + 0.1
    nbprop.fit(LINEAR, wanted, X, Y, "mse", "adam", 0.05, batch=N, epochs=30, shuffle=False, l1=0.2)
    compiled, called = START + 0.1, START + 0.1
    _adam_steps(plan, compiled, grads, work, nbprop.optimizer_state("adam", K + 1), 30, 0.2, weights)
    state = nbprop.optimizer_state("adam", K + 1)
    for step in range(30):
        nbprop.value_and_grad(plan, called, X, Y, grads, work)
        nbprop.adam(called, grads, state, step, lr=0.05, l1=0.2, penalized=weights.view(np.uint8), threads=2)
    same_bits("compiled", compiled, wanted)
    same_bits("called", called, wanted)
    assert (wanted == 0).any()
    one, other = START + 0.1, START + 0.1
    nbprop.value_and_grad(plan, one, X, Y, grads, work)
    nbprop.lion(one, grads, nbprop.optimizer_state("lion", K + 1), 0, l1=0.0, penalized=weights)
    nbprop.lion(other, grads, nbprop.optimizer_state("lion", K + 1), 0)
    close("lion", one, other, 1e-15)
    nbprop.sgd(one, grads, np.empty(0), 0, lr=0.1, l1=1e6)
    assert not one.any()
    wrongs = {"adam: l1 must be": {"l1": -1.0}, "adam: penalized needs l1": {"penalized": weights}}
    for message, wrong in (wrongs | {"penalized must": {"l1": 1.0, "penalized": np.ones(3, bool)}}).items():
        with pytest.raises(ValueError, match=message):
            nbprop.adam(called, grads, state, 0, **wrong)


def test_scaled_rates_take_proximal_steps_too():
    """Half the rate of everything is half the rate."""
    one, other = START + 0.1, START + 0.1
    nbprop.fit(LINEAR, one, X, Y, "mse", "sgd", 0.05, batch=N, epochs=100, l1=0.2)
    nbprop.fit(LINEAR, other, X, Y, "mse", "sgd", 0.1, batch=N, epochs=100, l1=0.2, lr_scale={"0.dense": 0.5})
    close("params", other, one, 1e-14)
    assert (one == 0).any()
    assert np.array_equal(one == 0, other == 0)


def test_fit_with_l2_is_weight_decay_of_sgd_and_validation_has_no_penalty():
    net = nbprop.network((K,), nbprop.dense(5, activation="tanh"), nbprop.dense(1))
    one, other, mask = nbprop.init(net), nbprop.init(net), penalized_by_hand(net)
    options = {"lr": 0.05, "batch": 8, "epochs": 3, "validation": (X, Y)}
    history = nbprop.fit(net, one, X, Y, "mse", "sgd", l2=L2, **options)
    nbprop.fit(net, other, X, Y, "mse", "sgd", weight_decay=L2, decay_mask=mask, **options)
    close("params", one, other, 1e-13)
    plan = nbprop.plan(net, "mse", N, l2=L2)
    work = nbprop.workspace(plan)
    plain = nbprop.value(plan_like(plan, penalty=None), one, X, Y, work)
    assert abs(history.validation_loss[-1] - plain) < 1e-14
    result = nbprop.minimize(plan, one, X, Y, maxiter=2, validation=(X, Y))
    assert abs(result.fun - result.validation[-1] - plan.penalty.value(one)) < 1e-14
    found = nbprop.rounding_error(plan, one, X, Y)
    assert abs(found.loss - nbprop.value(plan, one, X, Y, work)) < 1e-14
    assert 0 < found.parts["penalty"] < found.estimate


def test_a_checkpoint_knows_its_penalties(tmp_path):
    params, path = START.copy(), tmp_path / "run"
    nbprop.fit(LINEAR, params, X, Y, "mse", epochs=1, l1=0.1, checkpoint=path)
    nbprop.fit(LINEAR, params, X, Y, "mse", epochs=2, l1=0.1, checkpoint=path, resume=True)
    for changed in ({}, {"l1": 0.2}, {"l1": 0.1, "l2": 0.1}):
        with pytest.raises(ValueError, match="of another run: its loss"):
            nbprop.fit(LINEAR, params, X, Y, "mse", epochs=2, checkpoint=path, resume=True, **changed)


def test_estimators_have_the_plans_penalties():
    estimators, linear = pytest.importorskip("nbprop.estimators"), pytest.importorskip("sklearn.linear_model")
    theirs = linear.Ridge(alpha=L2 * N / 2).fit(X, Y[:, 0])
    for solver in ("lbfgs", "marquardt"):
        ours = estimators.NetworkRegressor((), scale=False, l2=L2, solver=solver, epochs=500).fit(X, Y[:, 0])
        close(solver, ours.predict(X), theirs.predict(X), 1e-6)
        loss = np.mean((ours.predict(X) - Y[:, 0]) ** 2) + 0.5 * L2 * ours.params_[:K] @ ours.params_[:K]
        assert abs(ours.loss_ - loss) < 1e-9
    sparse = estimators.NetworkRegressor((), scale=False, l1=0.2, epochs=3000, learning_rate=0.01).fit(X, Y[:, 0])
    assert np.array_equal(sparse.params_ == 0, lasso(0.2) == 0)


def test_what_cannot_have_them_says_so():
    plan = nbprop.plan(LINEAR, "mse", N, l1=0.1)
    with pytest.raises(ValueError, match="l2 and l1 belong to a loss"):
        nbprop.plan(LINEAR, l2=0.1)
    with pytest.raises(ValueError, match=r"plan: l1 must be a finite number of at least 0, got -1"):
        nbprop.plan(LINEAR, "mse", l1=-1.0)
    with pytest.raises(ValueError, match=r"plan: penalized must have shape \(7,\)"):
        nbprop.plan(LINEAR, "mse", l1=1.0, penalized=np.ones(3, bool))
    with pytest.raises(ValueError, match="needs a smooth loss"):
        nbprop.minimize(plan, START.copy(), X, Y)
    with pytest.raises(ValueError, match="l1 is not a sum of squares"):
        nbprop.least_squares(plan, START.copy(), X, Y)
    with pytest.raises(ValueError, match="loss='huber' would apply to the penalty"):
        nbprop.least_squares(nbprop.plan(LINEAR, "mse", N, l2=1.0), START.copy(), X, Y, loss="huber")
    with pytest.raises(ValueError, match="l1 does not go with schedule_free_adamw, which returns a mean"):
        nbprop.fit(LINEAR, START.copy(), X, Y, "mse", "schedule_free_adamw", l1=0.1)
    with pytest.raises(ValueError, match="method adam takes no l1"):
        nbprop.fit_many(LINEAR, START[None].copy(), X[None], Y[None], method="adam", l1=0.1)
    with pytest.raises(ValueError, match="l1 must hold finite numbers, none below 0"):
        nbprop.lbfgs_state(3, l1=np.array([0.0, -1.0, 0.0]))
