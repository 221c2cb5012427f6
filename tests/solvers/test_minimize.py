"""How minimize ends: on a clock, on validation, interrupted, resumed, astray, with exceptions; bad input."""

import signal
import threading
import time

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, NonlinearConstraint

import nbprop
from nbprop.solvers import lbfgs_parts as solvers
from nbprop.solvers import line_search, problem
from nbprop.solvers import objective as scipy_bridge
from nbprop.solvers.methods import METHODS

NET = nbprop.network((2,), nbprop.dense(6, activation="tanh"), nbprop.dense(1))
RNG = np.random.default_rng(5)
X = RNG.standard_normal((40, 2))
TARGET = np.sin(X[:, :1]) + X[:, 1:] ** 2
PLAN = nbprop.plan(NET, loss="mse", batch=40)
FUN = nbprop.objective(PLAN, X, TARGET)


def start():
    return nbprop.init(NET, seed=2)


def run(params, method="L-BFGS", **options):
    return nbprop.minimize(PLAN, params, X, TARGET, method, **options)


# -- resuming ------------------------------------------------------------------------------------------------


def raise_at(iteration, error):
    def callback(theta):
        callback.count += 1
        if callback.count == iteration:
            if error is KeyboardInterrupt:
                signal.raise_signal(signal.SIGINT)
            raise error

    callback.count = 0
    return callback


@pytest.mark.parametrize("trainable", [None, np.arange(NET.n_params) > 3])
@pytest.mark.parametrize("stop", ["maxiter", "callback", "Ctrl-C", "seconds"])
def test_a_resumed_search_repeats_the_uninterrupted_one(stop, trainable, monkeypatch):
    whole = start()
    uninterrupted = run(whole, maxiter=60, trainable=trainable)
    params, resume, done, pieces = start(), None, 0, 0
    while done < 60:
        options = {
            "maxiter": {"maxiter": 17},
            "callback": {"callback": raise_at(13, StopIteration)},
            "Ctrl-C": {"callback": raise_at(13, KeyboardInterrupt)},
            "seconds": {"seconds": 1000.0},
        }[stop]
        options["maxiter"] = min(options.get("maxiter", 60), 60 - done)
        if stop == "seconds":
            limit_evaluations(monkeypatch, 11)
        result = run(params, trainable=trainable, resume=resume, **options)
        monkeypatch.undo()
        done, resume, pieces = done + result.nit, result.state.copy(), pieces + 1
        assert (params == result.x).all()
    assert pieces >= 4
    assert np.array_equal(params, whole)
    assert result.fun == uninterrupted.fun


def limit_evaluations(monkeypatch, most):
    """A clock that has run out at the evaluation after so many."""
    calls = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: 2000.0 if next(calls) > most else 0.0)


def test_a_search_that_had_ended_goes_on_where_more_is_asked_for():
    params = start()
    first = run(params, options={"gtol": 1e-3})
    assert first.success
    before = FUN(params)[0]
    second = run(params, options={"gtol": 1e-7}, maxiter=2000, resume=first.state)
    assert second.fun < before
    fresh = start()
    run(fresh, options={"gtol": 1e-3})
    alone = run(fresh, options={"gtol": 1e-7}, maxiter=2000)
    assert second.nit <= 2 * alone.nit


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resume": np.zeros(7)}, r"state of an earlier search over 25 parameters, got float64 array of shape \(7,\)"),
        ({"resume": "run.npy"}, "state of an earlier search over 25 parameters, got 'run.npy'"),
        ({"method": "L-BFGS-B", "resume": np.zeros(7)}, 'L-BFGS-B cannot resume, "L-BFGS" can'),
        ({"resume": np.zeros(7), "options": {"memory": 3}}, "a resumed search has the memory of its state"),
        ({"seconds": 0}, "seconds must be a finite number above 0, got 0"),
        ({"seconds": "5"}, "seconds must be a finite number above 0, got '5'"),
        ({"patience": 3}, "pass validation too"),
        ({"patience": 0, "validation": (X, TARGET)}, r"patience must be a positive integer, got 0"),
        ({"validation": (X, TARGET[:-1])}, "validation: target must bring as many samples"),
        ({"validation": (X, np.full_like(TARGET, np.nan))}, r"validation: target\[0, 0\] is nan"),
    ],
)
def test_refused(options, said):
    params = start()
    with pytest.raises((TypeError, ValueError), match=said):
        run(params, **options)
    assert np.array_equal(params, start())
    with pytest.raises(TypeError, match="validation must be"):
        run(params, validation=X)


LAYOUT = {name: 2 + getattr(solvers, name) for name in ("N", "MEMORY", "STORED", "NEWEST", "STARTED", "ITERATIONS")}


@pytest.mark.parametrize("value", [-1.0, 0.5, 1e7, 1e300, np.nan, np.inf, -1e12])
@pytest.mark.parametrize("word", [*LAYOUT, "outcome", "bracket", "stage"])
def test_a_changed_word_of_a_state_is_refused_by_its_name(word, value):
    """Each becomes an index, a size or a bound in compiled code: an integer in its range, or nothing runs."""
    search = 2 + solvers.SEARCH
    places = LAYOUT | {"outcome": 0, "bracket": search + line_search.BRACKETED, "stage": search + line_search.STAGE}
    state = run(start(), maxiter=5).state
    if word == "ITERATIONS" and value == 1e7:
        return  # a count that may be any
    state[places[word]] = value
    params = start()
    with pytest.raises(ValueError, match=r"minimize: resume (holds .* as its|must be the state of)"):
        run(params, resume=state)
    assert np.array_equal(params, start())


def test_numbers_of_a_state_that_are_not_finite():
    whole = run(start(), maxiter=5).state
    n, words = NET.n_params, whole.size - len(problem.FIELDS)
    for place, name in (
        (1, "lowest loss"),
        (2 + solvers.LOSS, "loss"),
        (2 + solvers.HEAD, "last point and its gradient"),
        (2 + solvers.HEAD + 3 * n, "steps and their changes"),
        (words - 1, "gradient at the best point"),
        (words - n - 1, "best point"),
    ):
        state = whole.copy()
        state[place] = np.nan
        with pytest.raises(ValueError, match=f"minimize: resume holds .* its {name}"):
            run(start(), resume=state)


def test_what_a_state_claims_is_evaluated_again():
    """A lowest loss that no point has, and a best point that is another: what is returned was evaluated as it is."""
    first = run(start(), maxiter=5)
    state, n = first.state.copy(), NET.n_params
    state[1] = 1e-30
    state[state.size - len(problem.FIELDS) - 2 * n :][:n] += 50.0
    params = start()
    result = run(params, maxiter=4, resume=state)
    assert result.fun == FUN(params)[0] <= FUN(start())[0]
    assert result.fun > 1e-6


def test_a_state_of_another_problem_is_refused_by_what_differs():
    state, free = run(start(), maxiter=5).state, np.arange(NET.n_params) > 3
    held = run(start(), maxiter=5, trainable=free).state
    moved = start()
    moved[0] += 1.0
    other_net = nbprop.network((2,), nbprop.dense(6, activation="sigmoid"), nbprop.dense(1))
    other = nbprop.plan(other_net, loss="mse", batch=40)
    parts = nbprop.plan(NET, loss="mse", batch=7)
    for name, call in {
        "network, loss or dtype": lambda: nbprop.minimize(other, start(), X, TARGET, "L-BFGS", resume=state),
        "batch": lambda: nbprop.minimize(parts, start(), X, TARGET, "L-BFGS", resume=state),
        "x": lambda: nbprop.minimize(PLAN, start(), X + 1e-9, TARGET, "L-BFGS", resume=state),
        "target": lambda: nbprop.minimize(PLAN, start(), X, 2 * TARGET, "L-BFGS", resume=state),
        "weights": lambda: run(start(), weights=np.ones(40), resume=state),
        "trainable or frozen parameters": lambda: run(moved, trainable=free, resume=held),
    }.items():
        with pytest.raises(ValueError, match=f"minimize: resume is the state of a search with another {name};"):
            call()
    wider = nbprop.plan(NET, loss="mse", batch=64, threads=2)
    assert nbprop.minimize(wider, start(), X, TARGET, "L-BFGS", maxiter=2, resume=state).nit == 2


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("L-BFGS", {"memory": 0}, "option 'memory' must be a positive integer"),
        ("L-BFGS", {"gtol": -1.0}, "option 'gtol' must be a finite number of at least 0"),
        ("L-BFGS-B", {"maxcor": 10**12}, "option 'maxcor' must be a positive integer"),
        ("L-BFGS-B", {"maxiter": 2.0}, "option 'maxiter' must be an integer of at least 0"),
        ("L-BFGS-B", {"ftol": "small"}, "option 'ftol' must be a finite number"),
        ("BFGS", {"c1": 0.95}, "'c1' and 'c2' must be 0 < c1 < c2 < 1"),
        ("BFGS", {"norm": None}, "option 'norm' must be a finite number"),
        ("BFGS", {"hess_inv0": np.eye(3)}, r"option 'hess_inv0' must hold finite numbers and have shape \(25, 25\)"),
        ("CG", {"disp": "no"}, "option 'disp' must be True or False"),
        ("TNC", {"scale": np.full(25, np.nan)}, "option 'scale' must hold finite numbers"),
        ("TNC", {"maxfun": 2**31}, "option 'maxfun' must be a positive integer"),
        ("trust-ncg", {"eta": 0.3}, "option 'eta' must be below 0.25"),
        ("trust-ncg", {"max_trust_radius": 0}, "option 'max_trust_radius' must be a finite number above 0"),
        ("trust-krylov", {"inexact": 1}, "option 'inexact' must be True or False"),
        ("trust-constr", {"factorization_method": "LU"}, "option 'factorization_method' must be one of"),
        ("trust-constr", {"initial_tr_radius": -1}, "option 'initial_tr_radius' must be a finite number above 0"),
        ("SLSQP", [("maxiter", 3)], "options must be a dict or None, got list"),
    ],
)
def test_options_are_looked_at_before_anything_runs(method, options, said):
    params = start()
    with pytest.raises((TypeError, ValueError), match=f"minimize: .*{said}"):
        run(params, method, options=options)
    assert np.array_equal(params, start())
    for name, value in (("tol", -1.0), ("maxiter", 10**30), ("progress", "yes"), ("seconds", np.inf)):
        with pytest.raises((TypeError, ValueError), match=f"minimize: {name} must be"):
            run(params, method, **{name: value})


# -- clocks, validation, progress ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list(METHODS))
def test_the_clock_stops_every_method(method, monkeypatch):
    params = start()
    limit_evaluations(monkeypatch, 25 if METHODS[method].hessp else 6)
    result = run(params, method, seconds=1.5)
    assert (result.success, result.status) == (False, -1)
    assert "the time limit of 1.5 s was reached after" in result.message
    assert result.fun == FUN(params)[0] < FUN(start())[0]


def test_a_real_clock():
    params, begun = start(), time.monotonic()
    result = run(params, maxiter=10**7, seconds=0.2, options={"gtol": 0.0, "ftol": 0.0})
    assert time.monotonic() - begun < 5
    assert result.fun < FUN(start())[0]


@pytest.mark.parametrize("method", ["L-BFGS", "L-BFGS-B", "TNC", "trust-constr"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_patience_goes_back_to_the_lowest_validation_loss(method, dtype):
    """Noise that a network learns by heart: the loss held out rises again."""
    rng = np.random.default_rng(0)
    net = nbprop.network((1,), nbprop.dense(20, activation="tanh"), nbprop.dense(1))
    plan = nbprop.plan(net, loss="mse", batch=30, dtype=dtype)
    x, held = (rng.uniform(-2, 2, (n, 1)).astype(dtype) for n in (15, 100))
    target, other = ((np.sin(2 * a) + 0.5 * rng.standard_normal(a.shape)).astype(dtype) for a in (x, held))
    params, seen = nbprop.init(net, seed=1, dtype=dtype), []
    seen.append(params.astype(np.float64))
    result = nbprop.minimize(
        plan,
        params,
        x,
        target,
        method,
        callback=lambda theta: seen.append(theta),
        validation=(held, other),
        patience=15,
        maxiter=400,
    )
    losses = [nbprop.objective(plan, held, other)(theta)[0] for theta in seen]
    assert np.allclose(result.validation, losses, rtol=1e-6)
    assert np.array_equal(params, seen[int(np.argmin(result.validation))].astype(dtype))
    assert len(losses) - 1 - int(np.argmin(result.validation)) == 15
    assert "the validation loss has not decreased for 15 iterations" in result.message
    assert np.isclose(result.fun, nbprop.objective(plan, x, target)(params.astype(np.float64))[0], rtol=1e-6)


def test_validation_without_patience_only_looks():
    params, other = start(), start()
    result = run(params, maxiter=20, validation=(X[:9], TARGET[:9], np.ones(9)))
    run(other, maxiter=20)
    assert np.array_equal(params, other)
    assert len(result.validation) == 21
    assert result.validation[-1] == pytest.approx(nbprop.objective(PLAN, X[:9], TARGET[:9])(params)[0], rel=1e-12)


def test_progress(capsys):
    pytest.importorskip("tqdm")
    run(start(), maxiter=7, progress=True)
    assert "7/7" in capsys.readouterr().err


# -- bursts: without a callback, L-BFGS stays in compiled code -----------------------------------------------------


@pytest.mark.parametrize("weights", [None, np.linspace(0.5, 2, 40)])
@pytest.mark.parametrize("thread_count", [1, 2])
def test_bursts_and_steps_from_python_give_the_same_bits(weights, thread_count, tmp_path, capsys):
    plan = nbprop.plan(NET, loss="mse", batch=40, threads=thread_count)
    np.save(tmp_path / "x.npy", X)
    x, calls = np.load(tmp_path / "x.npy", mmap_mode="r"), []
    params, others = start(), start()
    result = nbprop.minimize(plan, params, x, TARGET, "L-BFGS", weights=weights, maxiter=70, progress=True)
    assert "70/70" in capsys.readouterr().err
    stepped = nbprop.minimize(plan, others, X, TARGET, "L-BFGS", weights=weights, maxiter=70, callback=calls.append)
    assert len(calls) == result.nit == stepped.nit == 70
    for name in ("x", "jac", "state", "fun", "nfev", "status", "success", "message"):
        assert np.array_equal(result[name], stepped[name]), name
    assert np.array_equal(params, others)


def test_bursts_step_back_from_losses_that_are_not_finite():
    """The first step has length 1, and the square of 1e155 overflows."""
    plan = nbprop.plan(nbprop.network((1,), nbprop.dense(1, bias=False)), loss="mse", batch=1)
    ends = []
    for callback in (None, lambda theta: None):
        params = np.array([1e-161])
        result = nbprop.minimize(plan, params, np.array([[1e155]]), np.zeros((1, 1)), "L-BFGS", callback=callback)
        assert np.isfinite(params).all()
        ends.append((result.nfev, result.fun, result.message, *params))
    assert ends[0] == ends[1]
    assert "the loss was not finite at" in ends[0][2]


def test_an_interrupt_ends_a_burst_at_the_best_point_so_far():
    """The burst goes on to its end; then nothing that it found is lost."""
    net = nbprop.network((2,), nbprop.dense(30, activation="tanh"), nbprop.dense(1))
    plan, params = nbprop.plan(net, loss="mse", batch=40), nbprop.init(net, seed=2)
    first = nbprop.value(plan, params, X, TARGET, nbprop.workspace(plan))
    timer = threading.Timer(0.3, signal.raise_signal, (signal.SIGINT,))
    timer.start()
    result = nbprop.minimize(plan, params, X, TARGET, "L-BFGS", maxiter=10**7, options={"gtol": 0.0})
    timer.join()
    assert result.status == -1
    assert "interrupted" in result.message
    assert result.nfev > result.nit > 100
    assert nbprop.value(plan, params, X, TARGET, nbprop.workspace(plan)) == result.fun < first


# -- losses that are not finite, interrupts, exceptions --------------------------------------------------------


class Walled(scipy_bridge.Objective):
    """Beyond a distance from the origin the loss is infinite, or its gradient NaN."""

    radius, finite = 0.0, False

    def __call__(self, theta):
        loss, gradient = super().__call__(theta)
        if theta @ theta > self.radius**2:
            return (loss if Walled.finite else np.inf), np.full_like(theta, np.nan)
        return loss, gradient


@pytest.mark.parametrize("finite", [False, True])
@pytest.mark.parametrize("method", list(METHODS))
def test_walls(method, finite, monkeypatch):
    params = start()
    monkeypatch.setattr(Walled, "radius", 1.02 * np.linalg.norm(params))
    monkeypatch.setattr(Walled, "finite", finite)
    monkeypatch.setattr(scipy_bridge, "Objective", Walled)
    result = run(params, method, maxiter=30)
    assert np.isfinite(params).all()
    assert result.fun == FUN(params)[0] <= FUN(start())[0]
    assert np.linalg.norm(params) <= Walled.radius
    assert result.success or "the loss was not finite at" in result.message or "iterations" in result.message.lower()


@pytest.mark.parametrize("method", list(METHODS))
def test_an_interrupt_and_a_failing_objective_leave_the_best_point(method, monkeypatch):
    class Failing(scipy_bridge.Objective):
        calls, error = 0, None

        def __call__(self, theta):
            Failing.calls += 1
            if Failing.calls == 8:
                raise Failing.error
            return super().__call__(theta)

    monkeypatch.setattr(scipy_bridge, "Objective", Failing)
    Failing.error, params = RuntimeError("the objective's own"), start()
    with pytest.raises(RuntimeError, match="the objective's own"):
        run(params, method)
    assert FUN(params)[0] < FUN(start())[0]
    Failing.calls, Failing.error, params = 0, KeyboardInterrupt(), start()
    result = run(params, method)
    assert result.status == -1
    assert result.message.startswith("interrupted after")
    assert result.fun == FUN(params)[0] < FUN(start())[0]


# -- constraints -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["SLSQP", "trust-constr"])
def test_a_nonlinear_constraint_holds_and_a_stopped_search_is_nearer_to_it(method, monkeypatch):
    sphere = NonlinearConstraint(lambda t: t @ t, 4.0, 4.0, jac=lambda t: 2 * t[None])
    params = start()
    before = abs(params @ params - 4)
    limit_evaluations(monkeypatch, 40)
    run(params, method, constraints=sphere, seconds=1)
    monkeypatch.undo()
    nearer = abs(params @ params - 4)
    assert nearer < before or (method == "trust-constr" and nearer == before)  # it rejects its first steps
    run(params, method, constraints=sphere, maxiter=300)
    assert abs(params @ params - 4) < 1e-6
    before = FUN(params)[0]
    run(params, method, constraints=sphere, maxiter=2)
    assert abs(params @ params - 4) < 1e-5
    assert FUN(params)[0] <= before + 1e-6


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (LinearConstraint(np.ones((1, 3)), 0, 1), r"A must have 25 columns, got shape \(1, 3\)"),
        (NonlinearConstraint(lambda t: np.outer(t, t), 0, 1), r"a number or a vector, got shape \(25, 25\)"),
        (NonlinearConstraint(lambda t: t[:2], np.zeros(3), 1), r"the shape of its values \(2,\), got \(3,\)"),
        (NonlinearConstraint(lambda t: t[:2], 0, 1, jac=lambda t: np.eye(2)), r"shape \(2, 25\), got \(2, 2\)"),
        ({"type": "eq", "fun": lambda t: t[:2], "jac": lambda t: np.eye(3)}, r"shape \(2, 25\), got \(3, 3\)"),
        ({"type": "equal", "fun": lambda t: t[:2]}, 'needs "type", "eq" or "ineq"'),
    ],
)
def test_constraints_of_a_wrong_shape(constraint, said):
    params = start()
    with pytest.raises(ValueError, match=said):
        run(params, "SLSQP", constraints=constraint)
    assert np.array_equal(params, start())


def test_a_constraint_that_raises():
    def fails(theta):
        fails.calls += 1
        if fails.calls == 6:
            raise ZeroDivisionError("the constraint's own")
        return theta[:1]

    fails.calls, params = 0, start()
    with pytest.raises(ZeroDivisionError, match="the constraint's own"):
        run(params, "SLSQP", constraints=NonlinearConstraint(fails, -5, 5))
    assert FUN(params)[0] <= FUN(start())[0]


def test_a_hessian_of_a_layer_without_one():
    square = nbprop.elementwise("squared_for_newton", lambda x: x * x, lambda x, y: 2 * x)
    net = nbprop.network((2,), nbprop.dense(2), square())
    plan, params = nbprop.plan(net, loss="mse", batch=40), nbprop.init(net)
    with pytest.raises(
        ValueError, match=r"Newton-CG needs second derivatives and layer 1\.squared_for_newton has none"
    ):
        nbprop.minimize(plan, params, X, X, "Newton-CG")
