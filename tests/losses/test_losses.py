"""The losses beyond mse against PyTorch; missing targets, weights of outputs, losses of a user's own."""

import pickle

import numba
import numpy as np
import pytest

import nbprop
from nbprop.losses import LOSSES, loss_named
from nbprop.losses.custom import CustomLoss
from support import stored
from support.cases import NETWORKS, close, same_bits
from support.contract import central_differences, parameters

STORED = stored.load("losses")
NET = nbprop.network((3,), nbprop.dense(4))
RNG = np.random.default_rng(11)
X = RNG.standard_normal((9, 3))
REGRESSOR = nbprop.network((3,), nbprop.dense(5, activation="tanh"), nbprop.dense(2))
Y, W = RNG.standard_normal((9, 2)), RNG.uniform(0.5, 2.0, 9)


def step(plan, params, x, target, weights=None):
    """(loss, gradient) of a plan."""
    grads, work = np.full(plan.n_params, np.nan, plan.dtype), nbprop.workspace(plan)
    loss = nbprop.value_and_grad(plan, params, x, target, grads, work, weights)
    assert loss == nbprop.value(plan, params, x, target, work, weights)
    return loss, grads


@pytest.mark.parametrize("case", STORED)
def test_losses_are_those_of_pytorch(case):
    description, arrays = STORED[case]
    loss = getattr(nbprop, description["loss"])(**description["arguments"])
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        plan = nbprop.plan(NET, loss, 5, dtype)
        params, x, v = (arrays[name].astype(dtype) for name in ("params", "x", "v"))
        target = arrays["target"] if plan.classes else arrays["target"].astype(dtype)
        weights = arrays["weights"].astype(dtype) if "weights" in arrays else None
        found, grads = step(plan, params, x, target, weights)
        product = np.full_like(params, np.nan)
        nbprop.hvp(plan, params, v, x, target, product, nbprop.workspace(plan), weights)
        close("loss", found, arrays["loss"], tolerance)
        close("grad", grads, arrays["grad"], tolerance)
        close("hvp", product, arrays["hvp"], tolerance)


def test_every_loss_has_a_stored_reference_or_a_central_difference():
    ours = {name for name, loss in LOSSES.items() if not issubclass(loss, CustomLoss)}
    assert ours - {description["loss"] for description, _ in STORED.values()} == {
        *("mse", "huber", "gaussian_nll", "binary_cross_entropy")
    }


@pytest.mark.parametrize("name", ["log_cosh", "student_t_nll", "poisson_nll"])
def test_fisher_matrices_are_means_over_targets_that_the_model_draws(name, rounds):
    """A linear net of a constant input: E[gradient gradient^T] by a sum over a fine grid of targets."""
    net, rng = nbprop.network((1,), nbprop.dense(2 if name == "student_t_nll" else 1, bias=False)), RNG
    params, x = np.array([0.3, -0.4])[: net.n_params], np.ones((1, 1))
    plan = nbprop.plan(net, name, 1)
    if name == "poisson_nll":
        grid = np.arange(40.0)
        density = np.exp(grid * 0.3 - np.exp(0.3) - np.cumsum(np.log(np.maximum(grid, 1))))
    else:
        grid = np.tan(np.linspace(-np.pi / 2 + 1e-4, np.pi / 2 - 1e-4, 20001)) + 0.3  # far out, too
        step_size = np.gradient(grid)
        scale = np.exp(-0.2)
        e = grid - 0.3
        sech = 2 * np.exp(-np.abs(e)) / (1 + np.exp(-2 * np.abs(e)))
        density = sech / np.pi if name == "log_cosh" else 0.375 / scale * (1 + (e / scale) ** 2 / 4) ** -2.5
        density = density * step_size
    assert abs(density.sum() - 1) < 1e-6
    wanted, work, grads = np.zeros((params.size, params.size)), nbprop.workspace(plan), np.empty(params.size)
    for t, p in zip(grid[density > 1e-12], density[density > 1e-12], strict=True):
        nbprop.value_and_grad(plan, params, x, np.full((1, 1), t), grads, work)
        wanted += p * np.outer(grads, grads)
    v, out = rng.standard_normal(params.size), np.empty(params.size)
    nbprop.fisher_product(plan, params, v, x, np.zeros((1, 1)), out, work)
    close(name, out, wanted @ v, 1e-4)


# -- missing targets, weights of outputs ------------------------------------------------------------------------------

FACTORS = np.array([1.0, 3.0])
ELEMENTWISE = [*("mse", "mae", "huber", "log_cosh", "binary_cross_entropy", "poisson_nll", "hinge", "focal")]


def holes(target):
    """The target with holes, one sample without any value."""
    found = target.copy()
    found[2], found[0, 0], found[7, 1] = np.nan, np.nan, np.nan
    return found


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("factors", [None, FACTORS], ids=["", "factors"])
def test_missing_targets_have_no_loss_and_the_mean_is_that_of_the_others(name, factors):
    """One plan for each output alone, on the samples that have it, gives every sum."""
    make, net = getattr(nbprop, name), nbprop.network((3,), nbprop.dense(2))
    params, t = RNG.standard_normal(8), np.abs(Y) % 1
    target = holes(t)
    plan = nbprop.plan(net, make(missing="ignore", output_weights=factors), 9)
    loss, grads = step(plan, params, X, target, W)
    total, wanted, gradient = 0.0, 0.0, np.zeros(8)
    for k, f in enumerate([1.0, 1.0] if factors is None else factors):
        there = ~np.isnan(target[:, k])
        own = nbprop.plan(nbprop.network((3,), nbprop.dense(1)), name, 9)
        places = [k, k + 2, k + 4, 6 + k]
        weight = f * W[there].sum()
        part = step(own, params[places].copy(), X[there], t[there, k : k + 1].copy(), W[there])
        total, wanted = total + weight, wanted + weight * part[0]
        gradient[places] += weight * part[1]
    close("loss", loss, wanted / total, 1e-13)
    close("grads", grads, gradient / total, 1e-13)
    # hvp is the gradient's derivative; chunks of any size, and per_sample_grads, see the same means.
    v, out = RNG.standard_normal(8), np.empty(8)
    nbprop.hvp(plan, params, v, X, target, out, nbprop.workspace(plan), W)
    moved = [step(plan, params + s * v, X, target, W)[1] for s in (1e-5, -1e-5)]
    close("hvp", out, (moved[0] - moved[1]) / 2e-5, 1e-6)
    close("operator", nbprop.hessian_operator(nbprop.plan(net, plan.loss, 4), params, X, target, W) @ v, out, 1e-12)
    pieces = nbprop.objective(nbprop.plan(net, plan.loss, 4), X, target, W)(params)
    close("in chunks", pieces[0], loss, 1e-13)
    close("in chunks", pieces[1], grads, 1e-13)
    rows = np.empty((9, 8))
    nbprop.per_sample_grads(plan, params, X, target, rows, nbprop.workspace(plan))
    for i in range(9):
        same_bits(f"sample {i}", rows[i], step(plan, params, X[i : i + 1], target[i : i + 1])[1])
    assert not rows[2].any()


def test_missing_targets_in_fit_and_least_squares():
    """A line through the points that are there; without missing='ignore', NaN is refused."""
    net, t = nbprop.network((3,), nbprop.dense(2)), X @ RNG.standard_normal((3, 2)) + 1.0
    target, loss = holes(t), nbprop.mse(missing="ignore", output_weights=(1, 2))
    plan = nbprop.plan(net, loss, 4, l2=0.1)
    least, fitted = np.zeros(8), np.zeros(8)
    result = nbprop.least_squares(plan, least, X, target, gtol=1e-13, ftol=1e-15, xtol=1e-15)
    nbprop.minimize(plan, fitted, X, target, "L-BFGS", options={"gtol": 1e-11})
    close("least squares", least, fitted, 1e-7)
    assert np.isfinite(result.fun).all()
    start = np.zeros(8)
    history = nbprop.fit(net, start, X, target, loss, "adam", 0.05, 9, 300, validation=(X, target))
    exact = np.linalg.lstsq(np.c_[X, np.ones(9)], t, rcond=None)[0]
    close("fit", start[:6], exact[:3].ravel(), 0.05)
    measured = nbprop.objective(nbprop.plan(net, loss, 9), X, target).loss(start)
    assert abs(history.validation_loss[-1] - measured) < 1e-14
    with pytest.raises(ValueError, match=r"fit: target\[0, 0\] is nan"):
        nbprop.fit(net, start, X, target, "mse")


def test_ignored_classes_and_lengths():
    """ignore_index is PyTorch's: the mean over rows that have a class; other numbers are refused."""
    loss, rng = nbprop.softmax_cross_entropy(0.1, ignore_index=-100), np.random.default_rng(3)
    net, params = nbprop.network((5, 3), nbprop.rnn(4), nbprop.dense(3)), None
    params = parameters(nbprop.plan(net, loss, 4), rng)
    x, target = rng.standard_normal((4, 5, 3)), rng.integers(0, 3, (4, 5))
    target[0, :2] = target[3] = -100
    plan, lengths = nbprop.plan(net, loss, 4), np.array([5, 3, 1, 4])
    y, work = np.empty((4, 5, 3)), nbprop.workspace(plan)
    for given in (None, lengths):
        nbprop.forward(plan, params, x, y, work, lengths=given)
        z = y - np.log(np.exp(y).sum(-1, keepdims=True))
        each = -0.9 * np.take_along_axis(z, np.maximum(target, 0)[..., None], -1)[..., 0] - 0.1 * z.mean(-1)
        there = (target != -100) & (np.arange(5) < (np.full(4, 5) if given is None else given)[:, None])
        got = nbprop.value(plan, params, x, target, work, lengths=given)
        close("loss", got, each[there].mean(), 1e-13)
        grads, v, out = np.empty(net.n_params), rng.standard_normal(net.n_params), np.empty(net.n_params)
        nbprop.value_and_grad(plan, params, x, target, grads, work, lengths=given)
        wanted = central_differences(
            lambda given=given: nbprop.value(plan, params, x, target, work, lengths=given), params
        )
        close("grads", grads, wanted, 1e-7)
        nbprop.hvp(plan, params, v, x, target, out, work, lengths=given)
        moved = []
        for s in (1e-5, -1e-5):
            nbprop.value_and_grad(plan, params + s * v, x, target, grads, work, lengths=given)
            moved.append(grads.copy())
        close("hvp", out, (moved[0] - moved[1]) / 2e-5, 1e-6)
    nbprop.fit(net, params, x, target, loss, batch=2, epochs=1)
    target[0, 0] = -1
    with pytest.raises(ValueError, match="must hold classes in"):
        nbprop.value(plan, params, x, target, work)
    with pytest.raises(ValueError, match=r"fit: target must hold classes in 0\.\.2, got -1"):
        nbprop.fit(net, params, x, target, loss)


def test_quantiles_of_an_ascending_head_do_not_cross():
    net, rng = nbprop.network((1,), nbprop.dense(8, activation="tanh"), nbprop.dense(3), nbprop.ascending(3)), RNG
    params, x = nbprop.init(net, seed=2), rng.uniform(-1, 1, (400, 1))
    target = x**2 + (0.2 + 0.3 * np.abs(x)) * rng.standard_normal(x.shape)
    nbprop.fit(net, params, x, target, nbprop.quantile((0.1, 0.5, 0.9)), lr=0.02, batch=50, epochs=60)
    y = np.empty((400, 3))
    plan = nbprop.plan(net, batch=400)
    nbprop.forward(plan, params, x, y, nbprop.workspace(plan))
    assert (np.diff(y, axis=1) > 0).all()
    close("share below", (target <= y).mean(0), [0.1, 0.5, 0.9], 0.06)
    assert "ascending" in NETWORKS


# -- a user's own -----------------------------------------------------------------------------------------------------


@numba.njit
def own_loss(y, t):
    return (y - t) ** 2 / (1 + (y - t) ** 2)


@numba.njit
def own_derivative(y, t):
    return 2 * (y - t) / (1 + (y - t) ** 2) ** 2


@numba.njit
def own_second(y, t):
    return (2 - 6 * (y - t) ** 2) / (1 + (y - t) ** 2) ** 3


@numba.njit
def own_residual(y, t):
    return (y - t) / np.sqrt(1 + (y - t) ** 2)


@numba.njit
def own_slope(y, t):
    return (1 + (y - t) ** 2) ** -1.5


@numba.njit
def row_loss(y, t):
    return (y[0] - t[0]) ** 2 * np.exp(y[1])


@numba.njit
def row_gradient(dy, y, t):
    dy[0], dy[1] = 2 * (y[0] - t[0]) * np.exp(y[1]), (y[0] - t[0]) ** 2 * np.exp(y[1])


@numba.njit
def row_product(out, v, y, t):
    e, w = y[0] - t[0], np.exp(y[1])
    out[0], out[1] = 2 * w * v[0] + 2 * e * w * v[1], 2 * e * w * v[0] + e * e * w * v[1]


OWN = nbprop.custom_loss(
    "own_loss", own_loss, own_derivative, own_second, residual=(own_residual, own_slope), missing="ignore"
)
ROWS = nbprop.custom_loss(
    "own_rows", row_loss, row_gradient, row_product, per="row", target=lambda shape: (*shape[:-1], 1)
)
LOSSES.pop("own_loss")  # the tests of every loss are not about these
LOSSES.pop("own_rows")


@pytest.fixture
def registered():
    """The user's losses in the registry, where pickles look."""
    LOSSES.update(own_loss=type(OWN), own_rows=type(ROWS))
    yield
    del LOSSES["own_loss"], LOSSES["own_rows"]


@pytest.mark.parametrize("loss", [OWN, ROWS], ids=["output", "row"])
def test_a_custom_loss_is_one_like_others(loss, registered, tmp_path):
    target = Y if loss is OWN else Y[:, :1].copy()
    errors = nbprop.gradcheck(REGRESSOR, loss)  # first and second derivatives
    assert max(errors.values()) < 1e-7
    plan, params = nbprop.plan(REGRESSOR, loss, 9), nbprop.init(REGRESSOR, seed=1)
    again = pickle.loads(pickle.dumps(plan))
    first = step(plan, params, X, target, W)
    assert step(again, params, X, target, W)[0] == first[0]
    for threads in (2, 3):
        same_bits("grads", step(nbprop.plan(REGRESSOR, loss, 9, threads=threads), params, X, target, W)[1], first[1])
    result = nbprop.minimize(plan, params, X, target, "trust-ncg", maxiter=20)
    assert result.fun < first[0]
    half, whole, path = nbprop.init(REGRESSOR), nbprop.init(REGRESSOR), tmp_path / "run"
    nbprop.fit(REGRESSOR, half, X, target, loss, epochs=2, batch=4, checkpoint=path)
    nbprop.fit(REGRESSOR, half, X, target, loss, epochs=5, batch=4, checkpoint=path, resume=True)
    history = nbprop.fit(REGRESSOR, whole, X, target, loss, epochs=5, batch=4)
    same_bits("resumed", half, whole)
    assert history.loss[-1] < history.loss[0]


def test_a_custom_loss_that_is_a_square_has_least_squares():
    plan, target = nbprop.plan(REGRESSOR, OWN, 4, l2=0.01), holes(Y)
    least, start = nbprop.init(REGRESSOR, seed=1), nbprop.init(REGRESSOR, seed=1)
    result = nbprop.least_squares(plan, least, X, target, max_nfev=200)
    there = ~np.isnan(target)
    close("cost", result.cost, 0.5 * there.sum() * nbprop.objective(plan, X, target)(least)[0], 1e-12)
    assert result.cost < 0.5 * there.sum() * nbprop.objective(plan, X, target)(start)[0]
    assert np.abs(nbprop.objective(plan, X, target)(least)[1]).max() < 1e-4
    operator = nbprop.init(REGRESSOR, seed=1)
    nbprop.least_squares(plan, operator, X, target, jac="operator", max_nfev=200)
    close("operator", nbprop.objective(plan, X, target)(operator)[0], nbprop.objective(plan, X, target)(least)[0], 1e-3)


def test_without_second_derivatives_products_are_refused_by_name():
    loss = nbprop.custom_loss("without_second", own_loss, own_derivative)
    LOSSES.pop("without_second")
    plan, params = nbprop.plan(REGRESSOR, loss, 9), nbprop.init(REGRESSOR)
    out, work = np.empty(plan.n_params), nbprop.workspace(plan)
    assert max(nbprop.gradcheck(REGRESSOR, loss).values()) < 1e-7
    with pytest.raises(ValueError, match="hvp: loss without_second has no tangent"):
        nbprop.hvp(plan, params, params, X, Y, out, work)
    with pytest.raises(ValueError, match="loss without_second has none"):
        nbprop.minimize(plan, params, X, Y, "trust-ncg")
    with pytest.raises(ValueError, match="not a sum of squared residuals"):
        nbprop.least_squares(plan, params, X, Y)
    with pytest.raises(ValueError, match="beta_nll is not that of its value"):
        nbprop.gradcheck(NET, "beta_nll")


def test_descriptions_are_checked_and_repr_names_what_is_given():
    for wrong, said in (
        (lambda: nbprop.mse(missing="drop"), "mse: missing: unknown name 'drop'"),
        (lambda: nbprop.mae(output_weights=(0, 0)), "mae: output_weights must be numbers"),
        (lambda: nbprop.plan(NET, nbprop.mae(output_weights=(1, 2))), "one number for each"),
        (lambda: nbprop.quantile((0.5, 0.1)), "quantile: quantiles must rise"),
        (lambda: nbprop.quantile(1.0), "quantile: quantiles must be a number in"),
        (lambda: nbprop.plan(NET, nbprop.quantile((0.1, 0.5, 0.9))), "multiple of 3"),
        (lambda: nbprop.focal(-1.0), "focal: gamma"),
        (lambda: nbprop.beta_nll(2.0), "beta_nll: beta"),
        (lambda: nbprop.student_t_nll(0.0), "student_t_nll: nu"),
        (lambda: nbprop.softmax_cross_entropy(1.0), "label_smoothing must be a number in"),
        (lambda: nbprop.softmax_cross_entropy(ignore_index=0), "ignore_index must be no class"),
        (lambda: nbprop.custom_loss("mse", own_loss, own_derivative), "'mse' is taken"),
        (lambda: nbprop.custom_loss("x", own_loss, own_derivative, per="batch"), "per: unknown name"),
        (lambda: nbprop.custom_loss("x", own_loss, 3), "derivative must be an @njit function"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            wrong()
    assert [repr(loss_named(name)) for name in ("mse", "huber", "softmax_cross_entropy")] == [
        *("MeanSquaredError()", "Huber(delta=1.0)", "SoftmaxCrossEntropy()")
    ]
    assert repr(nbprop.mse(missing="ignore")) == "MeanSquaredError(missing='ignore')"
