"""least_squares and the LinearOperators, against finite differences, whole matrices and known optima."""

import sys

import numpy as np
import pytest

import nbprop
from nbprop.solvers.residuals import Residuals

NET = nbprop.network((2,), nbprop.dense(6, activation="tanh"), nbprop.dense(2))
RNG = np.random.default_rng(0)
X = RNG.standard_normal((30, 2))
TARGET = np.stack([np.sin(X[:, 0]), X[:, 0] * X[:, 1]], 1)
WEIGHTS = RNG.uniform(0.5, 2, 30)


def plan_of(batch=30, dtype=np.float64, loss="mse"):
    return nbprop.plan(NET, loss=loss, batch=batch, dtype=dtype)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("batch", [30, 8])
def test_residuals_and_their_jacobian(batch, weights):
    plan, theta = plan_of(batch), nbprop.init(NET, seed=1)
    residuals = Residuals(plan, X, TARGET, weights)
    total = 30 if weights is None else weights.sum()
    value = nbprop.objective(plan, X, TARGET, weights)(theta)[0]
    assert np.isclose(residuals(theta) @ residuals(theta) / (2 * total), value, rtol=1e-13)
    matrix, step = residuals.jacobian(theta), 1e-6
    for column in range(0, theta.size, 5):
        unit = step * (np.arange(theta.size) == column)
        difference = (residuals(theta + unit) - residuals(theta - unit)) / (2 * step)
        assert np.abs(difference - matrix[:, column]).max() <= 1e-8
    v, u = RNG.standard_normal(theta.size), RNG.standard_normal(len(matrix))
    operator = residuals.operator(theta)
    assert np.abs(operator @ v - matrix @ v).max() <= 1e-12
    assert np.abs(operator.T @ u - matrix.T @ u).max() <= 1e-12


@pytest.mark.parametrize(
    ("method", "jac"),
    [
        ("trf", "dense"),
        ("trf", "operator"),
        ("dogbox", "dense"),
        ("dogbox", "operator"),
        ("lm", "dense"),
        ("marquardt", "dense"),
    ],
)
def test_every_method_goes_down(method, jac):
    plan, params = plan_of(), nbprop.init(NET, seed=3)
    before = nbprop.objective(plan, X, TARGET)(params)[0]
    result = nbprop.least_squares(plan, params, X, TARGET, method=method, jac=jac, max_nfev=300)
    after, gradient = nbprop.objective(plan, X, TARGET)(params)
    assert after < before / 10
    assert np.isclose(result.cost, after * 30, rtol=1e-10)
    if method != "dogbox":  # whose rectangular trust region stalls where the Jacobian has no full rank
        assert np.abs(gradient).max() <= 1e-3


def test_same_optimum_as_finite_differences():
    import scipy.optimize

    net = nbprop.network((1,), nbprop.dense(2, activation="tanh"), nbprop.dense(1))
    x = np.linspace(-2, 2, 25)[:, None]
    target, params = np.tanh(1.5 * x - 0.3) - 0.5 * np.tanh(x + 1), nbprop.init(net, seed=2)
    plan = nbprop.plan(net, loss="mse", batch=25)
    start = params.copy()
    ours = nbprop.least_squares(plan, params, x, target, method="lm", ftol=1e-14, xtol=1e-14, gtol=1e-14)
    theirs = scipy.optimize.least_squares(Residuals(plan, x, target, None), start, method="lm", jac="2-point")
    assert ours.cost <= theirs.cost + 1e-12
    assert ours.cost < 1e-12


def test_bounds_robust_loss_and_float32():
    plan = plan_of(dtype=np.float32)
    params = nbprop.init(NET, seed=1, dtype=np.float32).clip(-0.6, 0.6)
    x, target = X.astype(np.float32), TARGET.astype(np.float32)
    before = nbprop.objective(plan, x, target)(params.astype(np.float64))[0]
    result = nbprop.least_squares(plan, params, x, target, bounds=(-0.7, 0.7), loss="soft_l1", max_nfev=40)
    assert np.abs(params).max() <= np.float32(0.7)
    assert result.x.dtype == np.float64
    assert nbprop.objective(plan, x, target)(params.astype(np.float64))[0] < before


def test_operators_are_the_matrices():
    plan, theta = plan_of(), nbprop.init(NET, seed=1)
    matrix, work = np.full((theta.size, theta.size), np.nan), nbprop.workspace(plan)
    nbprop.hessian(plan, theta, X, TARGET, matrix, work, WEIGHTS)
    assert np.abs(matrix - matrix.T).max() <= 1e-14
    for threads in (2, 3, theta.size + 5):
        again = np.full_like(matrix, np.nan)
        nbprop.hessian(plan, theta, X, TARGET, again, work, WEIGHTS, threads=threads)
        assert np.array_equal(again, matrix), "blocks of rows change no bit"
    v = RNG.standard_normal(theta.size)
    for batch in (30, 7):
        operator = nbprop.hessian_operator(plan_of(batch), theta, X, TARGET, WEIGHTS)
        assert np.abs(operator @ v - matrix @ v).max() <= 1e-12
        rows = Residuals(plan, X, TARGET, WEIGHTS).jacobian(theta)
        newton = nbprop.gauss_newton_operator(plan_of(batch), theta, X, TARGET, WEIGHTS)
        assert np.abs(newton @ v - rows.T @ (rows @ v) / WEIGHTS.sum()).max() <= 1e-12


class Interrupted(Residuals):
    """Ctrl-C, or an exception, at the tenth evaluation."""

    error = KeyboardInterrupt

    def __call__(self, theta):
        if self.evaluations == 9:
            self.evaluations += 1
            raise self.error
        return super().__call__(theta)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("trf", {"loss": "soft_l1", "f_scale": 0.3}),
        ("trf", {"loss": "cauchy", "bounds": (-3, 3)}),
        ("dogbox", {"loss": "huber"}),
        ("trf", {"loss": "arctan"}),
        ("lm", {}),
        ("marquardt", {}),
    ],
)
def test_interrupts_and_exceptions_leave_the_best_point(method, options, monkeypatch):
    plan, params = plan_of(), nbprop.init(NET, seed=3)
    costs = Residuals(plan, X, TARGET, None, options.get("loss", "linear"), options.get("f_scale", 1.0))
    costs(params)
    before = costs.lowest
    whole = nbprop.least_squares(plan, params.copy(), X, TARGET, method=method, max_nfev=50, **options)
    costs.lowest = np.inf
    costs(whole.x)
    assert np.isclose(costs.lowest, whole.cost, rtol=1e-12)  # the cost is SciPy's own
    monkeypatch.setattr(sys.modules["nbprop.solvers.least_squares"], "Residuals", Interrupted)
    result = nbprop.least_squares(plan, params, X, TARGET, method=method, **options)
    assert (result.status, result.success) == (-1, False)
    assert "interrupted after 9 evaluations" in result.message or "interrupted after 10" in result.message
    assert result.cost < before
    assert np.array_equal(result.x, params)
    monkeypatch.setattr(Interrupted, "error", ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        nbprop.least_squares(plan, params, X, TARGET, method=method, **options)
    costs.lowest = np.inf
    costs(params)
    assert costs.lowest <= result.cost


def test_refusals():
    plan, params = plan_of(), nbprop.init(NET, seed=1)
    with pytest.raises(ValueError, match="huber is not a sum of squared residuals"):
        nbprop.least_squares(plan_of(loss="huber"), params, X, TARGET)
    with pytest.raises(ValueError, match="unknown name 'trff'; did you mean 'trf'"):
        nbprop.least_squares(plan, params, X, TARGET, method="trff")
    with pytest.raises(ValueError, match="method lm takes no bounds"):
        nbprop.least_squares(plan, params, X, TARGET, method="lm", bounds=(-1, 1))
    with pytest.raises(ValueError, match="at least as many residuals as parameters, got 6 for 32"):
        nbprop.least_squares(plan, params, X[:3], TARGET[:3], method="lm")
    with pytest.raises(ValueError, match="residuals at the start are not finite"):
        nbprop.least_squares(plan, np.full(params.size, 1e308), X, TARGET)
    with pytest.raises(ValueError, match=r"hessian: out must have shape \(32, 32\), got \(3, 3\)"):
        nbprop.hessian(plan, params, X, TARGET, np.empty((3, 3)), nbprop.workspace(plan))
    with pytest.raises(ValueError, match=r"hessian: threads must be an integer in 1\.\.1,024, got 0"):
        nbprop.hessian(plan, params, X, TARGET, np.empty((32, 32)), nbprop.workspace(plan), threads=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"f_scale": -1}, "f_scale must be a finite number above 0, got -1"),
        ({"f_scale": "1"}, "f_scale must be a finite number above 0, got '1'"),
        ({"ftol": -1e-8}, "ftol must be a finite number of at least 0"),
        ({"xtol": None, "method": "marquardt"}, "xtol must be a finite number"),
        ({"gtol": np.nan}, "gtol must be a finite number"),
        ({"max_nfev": 0}, "max_nfev must be a positive integer"),
        ({"max_nfev": 10**40}, "max_nfev must be a positive integer"),
        ({"jac": "2-point"}, "jac: unknown name"),
        ({"bounds": (0.5, 0.4)}, r"bounds of params\[0\]: the lower bound 0.5 is above"),
    ],
)
def test_arguments_are_looked_at_before_anything_runs(given, said):
    params = nbprop.init(NET, seed=1)
    before = params.copy()
    with pytest.raises((TypeError, ValueError), match=f"least_squares: {said}"):
        nbprop.least_squares(plan_of(), params, X, TARGET, **given)
    assert np.array_equal(params, before)
    with pytest.raises(ValueError, match="params is written and shares memory with x"):
        nbprop.least_squares(plan_of(), X.reshape(-1)[: params.size], X, TARGET)


def test_a_jacobian_whose_squares_overflow_is_no_success(monkeypatch):
    """J^T J is infinite, and a step of -g / infinity = 0 would pass for a small one, the start for an optimum."""
    jacobian = Residuals.jacobian
    monkeypatch.setattr(Residuals, "jacobian", lambda self, theta: 1e160 * jacobian(self, theta))
    params = nbprop.init(NET, seed=1)
    result = nbprop.least_squares(plan_of(), params, X, TARGET, method="marquardt")
    assert not result.success
    assert result.message.startswith("J^T J or J^T r is not finite")
    assert np.array_equal(params, nbprop.init(NET, seed=1))
