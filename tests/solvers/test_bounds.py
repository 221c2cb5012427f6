"""Bounds that meet, are open, are crossed or exclude the start, in every solver; and what every result holds."""

import signal

import numpy as np
import pytest
import scipy.optimize

import nbprop
from nbprop.solvers.bounds import Free
from nbprop.solvers.methods import METHODS
from nbprop.solvers.residuals import Residuals
from nbprop.solvers.tracking import TrackedObjective, Validation

RNG = np.random.default_rng(0)
X = RNG.standard_normal((50, 3))
TARGET = (X @ [1.0, -2.0, 0.5] + 0.3)[:, None] + 0.1 * RNG.standard_normal((50, 1))
PLANS = {
    dtype: nbprop.plan(nbprop.network((3,), nbprop.dense(1)), "mse", batch=50, dtype=dtype)
    for dtype in (np.float64, np.float32)
}
START = np.array([0.2, 0.7, 0.1, 0.0])
DESIGN = np.column_stack([X, np.ones(50)])
BOUNDED = [name for name, row in METHODS.items() if row.bounds]
ENOUGH = {"TNC": {"maxfun": 2000}, "L-BFGS-B": {"ftol": 1e-15, "gtol": 1e-9}}


def minimized(method, bounds, dtype=np.float64, start=START, **options):
    params = start.astype(dtype)
    given = {"options": ENOUGH.get(method, {"maxiter": 500})} | options
    result = nbprop.minimize(
        PLANS[dtype], params, X.astype(dtype), TARGET.astype(dtype), method, bounds=bounds, **given
    )
    return params, result


def fitted(method, bounds, dtype=np.float64, start=START, **options):
    params = start.astype(dtype)
    given = X.astype(dtype), TARGET.astype(dtype)
    return params, nbprop.least_squares(PLANS[dtype], params, *given, method, bounds=bounds, **options)


SOLVERS = [pytest.param(minimized, name, id=name) for name in BOUNDED]
SOLVERS += [pytest.param(fitted, name, id=f"least_squares-{name}") for name in ("trf", "dogbox")]


def optimum(low, high):
    """The bounded linear optimum over the parameters that have room."""
    free = low < high
    rest = TARGET[:, 0] - DESIGN[:, ~free] @ low[~free]
    best = low.copy()
    best[free] = scipy.optimize.lsq_linear(DESIGN[:, free], rest, (low[free], high[free]), tol=1e-14).x
    return best


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("solver", "method"), SOLVERS)
@pytest.mark.parametrize("side", [5.0, 0.4, np.inf])
def test_a_parameter_whose_bounds_meet_is_held_and_the_others_stay_inside(solver, method, dtype, side):
    low, high = np.full(4, -side), np.full(4, side)
    low[1] = high[1] = 0.7
    params, result = solver(method, (low, high), dtype)
    assert params[1] == dtype(0.7)
    assert (params >= low.astype(dtype)).all()
    assert (params <= high.astype(dtype)).all()
    assert np.abs(params - optimum(low, high)).max() < 2e-3
    assert np.array_equal(result.x, params.astype(np.float64))
    assert result.get("grad", result.jac)[1] == 0


@pytest.mark.parametrize(("solver", "method"), SOLVERS)
def test_all_bounds_meet(solver, method):
    params, result = solver(method, (START, START.copy()))
    assert np.array_equal(params, START)
    assert result.success
    assert result.message == "all parameters are fixed by their bounds"
    assert (result.nit, result.nfev) == (0, 1 if solver is minimized else 0)
    loss = nbprop.objective(PLANS[np.float64], X, TARGET)(START)[0]
    assert result.fun == loss if solver is minimized else np.isclose(result.cost, 25 * loss, rtol=1e-12)


@pytest.mark.parametrize(("solver", "method"), SOLVERS)
@pytest.mark.parametrize(
    ("bounds", "error", "said"),
    [
        ((0.3, 0.2), ValueError, r"bounds of params\[0\]: the lower bound 0.3 is above the upper bound 0.2"),
        ((0.05, 1.0), ValueError, r"bounds of params\[3\]: the start 0.0 is outside its bounds \[0.05, 1.0\]"),
        ((np.inf, np.inf), ValueError, r"the start 0.2 is outside its bounds \[inf, inf\]"),
        ((None, np.nan), ValueError, "bounds hold NaN"),
        ((True, 3), TypeError, "bounds must be numbers"),
    ],
)
def test_bounds_that_do_not_fit(solver, method, bounds, error, said):
    name = "minimize" if solver is minimized else "least_squares"
    with pytest.raises(error, match=f"{name}: .*{said}"):
        solver(method, bounds)


@pytest.mark.parametrize("method", BOUNDED)
@pytest.mark.parametrize("form", ["theta", "intermediate_result", "list.append", "no signature"])
def test_callbacks_see_all_parameters(method, form):
    seen = []

    def intermediate(intermediate_result):
        seen.append(intermediate_result.x)

    callbacks = {"theta": lambda theta: seen.append(theta), "intermediate_result": intermediate}
    callback = callbacks | {"list.append": seen.append, "no signature": type("Seen", (list,), {})(seen).append}
    low, high = np.full(4, -5.0), np.full(4, 5.0)
    low[1] = high[1] = 0.7
    minimized(method, (low, high), callback=callback[form])
    assert all(theta.shape == (4,) and theta[1] == 0.7 for theta in seen)


def test_constraints_beside_bounds_and_trainable():
    """Constraints are on all parameters; what is held enters them as it is."""
    linear = scipy.optimize.LinearConstraint(np.ones((1, 4)), 1.0, 1.0)
    square = scipy.optimize.NonlinearConstraint(
        lambda t: t @ t, -np.inf, 2.0, jac=lambda t: 2 * t[None], hess=lambda t, v: 2 * v[0] * np.eye(4)
    )
    given = {"type": "ineq", "fun": lambda t: 2.0 - t @ t, "jac": lambda t: -2 * t[None]}
    for method, second in (("SLSQP", given), ("trust-constr", square)):
        for held in ({"bounds": (np.array([-9, 0.7, -9, -9]), np.array([9, 0.7, 9, 9]))}, {"trainable": START != 0.7}):
            params, result = minimized(method, held.pop("bounds", None), constraints=[linear, second], **held)
            assert params[1] == 0.7
            assert abs(params.sum() - 1) < 1e-6
            assert params @ params < 2 + 1e-6
            assert result.fun < nbprop.objective(PLANS[np.float64], X, TARGET)(START)[0]


def test_a_constraint_that_returns_nan_never_holds():
    """NaN compares as false with everything: it must not pass for a constraint that holds."""
    constraint = {"type": "ineq", "fun": lambda t: np.sqrt(np.where(t[0] > 0.25, np.nan, 0.25) - t[0])}
    params, _ = minimized("SLSQP", None, constraints=constraint)
    assert params[0] <= 0.25


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        ({"type": "eq", "fun": lambda t: "0"}, "a constraint's fun must return real numbers, got '0'"),
        ({"type": "eq", "fun": lambda t: 1j * t[0]}, "a constraint's fun must return real numbers"),
        ({"type": "eq", "fun": lambda t: t[: 2 if t[0] == 0.2 else 3]}, "returned 3 values, and 2 at the start"),
        (scipy.optimize.NonlinearConstraint(lambda t: t[:2], np.nan, 1), "lb or ub holds NaN"),
        (scipy.optimize.LinearConstraint(np.full((1, 4), np.nan), 0, 1), "A holds NaN"),
    ],
)
def test_constraints_return_arrays_that_are_looked_at(constraint, said):
    with pytest.raises((TypeError, ValueError), match=f"minimize: .*{said}"):
        minimized("SLSQP", None, constraints=constraint)


# -- results -------------------------------------------------------------------------------------------------

COMMON = {"x", "fun", "nit", "nfev", "njev", "success", "status", "message", "jac"}


def interrupt(theta):
    signal.raise_signal(signal.SIGINT)


def stop(theta):
    raise StopIteration


ENDS = {
    "by itself": {},
    "maxiter": {"maxiter": 1, "options": {}},
    "not at all": {"maxiter": 0, "options": {}},
    "Ctrl-C": {"callback": interrupt},
    "StopIteration": {"callback": stop},
    "seconds": {"seconds": 1e-9},
    "patience": {"validation": (X[:5], TARGET[:5]), "patience": 1},
}


@pytest.mark.parametrize("method", list(METHODS))
def test_every_result_of_minimize_has_the_same_fields_and_is_of_params(method):
    fun, bounds = nbprop.objective(PLANS[np.float64], X, TARGET), (START, START)
    fields, ends = COMMON | {"nhev", "validation", "state", *METHODS[method].fields}, dict(ENDS)
    if METHODS[method].bounds:
        ends["all fixed"] = {"bounds": bounds}
    for end, options in ends.items():
        params, result = minimized(method, options.get("bounds"), **{k: v for k, v in options.items() if k != "bounds"})
        assert set(result) == fields, end
        assert result.fun == fun(params)[0], end
        assert np.array_equal(result.x, params), end
        assert [type(result[name]) for name in ("nit", "nfev", "njev", "nhev", "status")] == [int] * 5, end
        assert isinstance(result.success, bool), end
        if end in ("Ctrl-C", "StopIteration", "seconds"):
            assert (result.status, result.success) == (-1, False), end
        assert np.isfinite(result.fun), end


@pytest.mark.parametrize("method", ["trf", "dogbox", "lm", "marquardt"])
def test_every_result_of_least_squares_has_the_same_fields_and_is_of_params(method, monkeypatch):
    fields = COMMON | {"cost", "grad", "optimality", "active_mask"}
    for end, options in {"by itself": {}, "max_nfev": {"max_nfev": 2}, "Ctrl-C": {}, "fixed": {}}.items():
        bounds = (START, START) if end == "fixed" and method in ("trf", "dogbox") else None
        if end == "Ctrl-C":
            interrupt_evaluation(monkeypatch, 1)
        params, result = fitted(method, bounds, **options)
        monkeypatch.undo()
        residuals = DESIGN @ params - TARGET[:, 0]
        assert set(result) == fields, end
        assert np.allclose(result.fun, residuals, rtol=0, atol=1e-12), end
        assert result.cost == 0.5 * float((result.fun**2).sum()), end
        assert np.array_equal(result.x, params), end
        if result.jac is not None:
            assert np.allclose(result.jac, DESIGN, rtol=1e-12), end
            assert np.allclose(result.grad, DESIGN.T @ residuals, rtol=0, atol=1e-9), "the gradient is that at x"


def interrupt_evaluation(monkeypatch, number):
    import sys

    module = sys.modules["nbprop.solvers.residuals"]
    found, calls = module.outputs, iter(range(10**6))

    def outputs(*arguments):
        if next(calls) == number:
            raise KeyboardInterrupt
        return found(*arguments)

    monkeypatch.setattr(module, "outputs", outputs)


# -- numbers that are not finite -----------------------------------------------------------------------------


def test_infinite_parameters_are_never_the_best_though_their_loss_is_finite():
    """Beyond float32's range a tanh is saturated: loss and gradient are finite, the parameters are not."""
    net = nbprop.network((1,), nbprop.dense(1, activation="tanh"))
    plan = nbprop.plan(net, "mse", batch=2, dtype=np.float32)
    x = np.ones((2, 1), np.float32)
    fun, start = nbprop.objective(plan, x, x), np.zeros(2, np.float32)
    search = TrackedObjective(fun, Free("minimize", start, None, None), [], None)
    search(np.zeros(2))
    for theta in (np.array([0.0, 1e39]), np.array([-np.inf, 0.0]), np.array([np.nan, 0.0])):
        assert search(theta)[0] == np.inf
    assert fun(np.array([0.0, 1e39]))[0] == 0 < search.best == 1
    assert np.array_equal(search.best_theta, np.zeros(2))
    residuals = Residuals(plan, x, x, None)
    assert np.isinf(residuals(np.array([0.0, 1e39]))).all()
    assert residuals.best is None


def test_a_validation_loss_that_begins_as_nan_may_still_fall():
    seen = Validation(PLANS[np.float64], (X, TARGET), 2, None)
    losses = iter([np.nan, 3.0, 2.0, 2.5])
    seen.loss = lambda theta: next(losses)
    for k in range(4):
        seen.update(np.full(4, float(k)))
    assert (seen.lowest, seen.best[0], seen.waited) == (2.0, 2.0, 1)
