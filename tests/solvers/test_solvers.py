"""The compiled L-BFGS: classic functions, SciPy beside it, @njit, broken losses, and resuming."""

import numba
import numpy as np
import pytest
import scipy.optimize

import nbprop
from nbprop.solvers import lbfgs as solvers
from nbprop.solvers import line_search


def quadratic(n, condition=1e3):
    scale = np.geomspace(1, condition, n)
    return lambda t: (0.5 * float(t @ (scale * t)), scale * t)


def rosenbrock(t):
    return float(scipy.optimize.rosen(t)), scipy.optimize.rosen_der(t)


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_quadratics(n):
    result = solvers.lbfgs(quadratic(n), np.linspace(1, 2, n), gtol=1e-9)
    assert result.success
    assert np.abs(result.x).max() <= 1e-8
    assert result.message == "the largest component of the gradient is at most gtol"


@pytest.mark.parametrize("n", [2, 10, 100])
def test_rosenbrock_beside_scipy(n):
    start = np.tile([-1.2, 1.0], n // 2)
    ours = solvers.lbfgs(rosenbrock, start, gtol=1e-9)
    options = {"gtol": 1e-9, "ftol": 0, "maxfun": 10**5, "maxiter": 10**5}
    theirs = scipy.optimize.minimize(rosenbrock, start, jac=True, method="L-BFGS-B", options=options)
    assert ours.success
    assert ours.fun <= 1e-14
    assert ours.nfev <= 1.5 * theirs.nfev + 20


def test_each_iteration_meets_the_strong_wolfe_conditions():
    """Seen through the state: where an iteration ends, the slope has shrunk and the loss has fallen enough."""
    theta, state = np.array([-1.2, 1.0, -1.2, 1.0]), solvers.lbfgs_state(4)
    n, head = 4, solvers.HEAD
    loss, grad = rosenbrock(theta)
    nbprop.lbfgs_step(state, theta, loss, grad)
    for _ in range(60):
        x0, g0, d = (state[head + k * n : head + (k + 1) * n].copy() for k in range(3))
        f0, before, tried = state[solvers.LOSS], int(state[solvers.ITERATIONS]), theta.copy()
        loss, grad = rosenbrock(theta)
        outcome = nbprop.lbfgs_step(state, theta, loss, grad.copy())
        if int(state[solvers.ITERATIONS]) > before:
            step = (tried - x0) @ d / (d @ d)
            assert loss <= f0 + line_search._FTOL * step * (g0 @ d) + 1e-15
            assert abs(grad @ d) <= line_search._GTOL * abs(g0 @ d) * (1 + 1e-12)
        if outcome:
            break
    assert outcome == solvers.GRADIENT


@numba.njit
def minimise_in_njit(theta, grad, state):
    evaluations = 0
    while True:
        loss = 0.0
        for i in range(theta.size):
            loss += (theta[i] - i) ** 4 + (theta[i] - i) ** 2
            grad[i] = 4 * (theta[i] - i) ** 3 + 2 * (theta[i] - i)
        evaluations += 1
        outcome = nbprop.lbfgs_step(state, theta, loss, grad)
        if outcome != 0 or evaluations > 500:
            return outcome, evaluations


def test_in_njit():
    theta, grad = np.full(7, 3.0), np.empty(7)
    outcome, evaluations = minimise_in_njit(theta, grad, nbprop.lbfgs_state(7, gtol=1e-10))
    assert outcome == solvers.GRADIENT
    assert evaluations < 100
    assert np.abs(theta - np.arange(7)).max() <= 1e-9
    with pytest.raises(ValueError, match="grad must have as many elements as theta"):
        minimise_in_njit(theta, np.empty(6), nbprop.lbfgs_state(7))
    with pytest.raises(ValueError, match="does not fit theta"):
        minimise_in_njit(theta, grad, nbprop.lbfgs_state(6))
    damaged = nbprop.lbfgs_state(7)
    damaged[solvers.STORED] = 1e9
    with pytest.raises(ValueError, match="numbers that the solver never writes"):
        minimise_in_njit(theta, grad, damaged)


def test_a_region_where_the_loss_is_not_finite():
    """log needs positive arguments: a step beyond is taken back."""

    def fun(t):
        with np.errstate(invalid="ignore", divide="ignore"):
            return float((t - np.log(t)).sum()), 1 - 1 / t

    result = solvers.lbfgs(fun, np.array([1e-3, 8.0]), gtol=1e-9)
    assert result.success
    assert np.abs(result.x - 1).max() <= 1e-8


def test_ends():
    state = nbprop.lbfgs_state(2)
    assert nbprop.lbfgs_step(state, np.ones(2), np.nan, np.ones(2)) == solvers.NOT_FINITE
    result = solvers.lbfgs(rosenbrock, np.array([-1.2, 1.0]), maxiter=3)
    assert result.nit == 3
    assert not result.success
    assert result.message == "maximum number of iterations reached (3)"
    slow = solvers.lbfgs(rosenbrock, np.array([-1.2, 1.0]), ftol=0.5)
    assert slow.message.startswith("the loss decreases by at most a fraction ftol")
    wrong = solvers.lbfgs(lambda t: (float(t @ t), -2 * t), np.ones(3))
    assert wrong.message == "the line search finds no lower point"
    assert wrong.fun <= 3.0


def test_what_a_function_returns_is_checked_and_left_alone():
    theta, kept = np.ones(2), np.ones(2)
    kept.flags.writeable = False
    assert solvers.lbfgs(lambda t: (2.0, kept), theta, maxiter=2).x.tolist() == [1.0, 1.0]
    for returned, named in (
        (None, "lbfgs: fun must return"),
        ((1.0,), "lbfgs: fun must return"),
        (("1", kept), "lbfgs: the loss that fun returns"),
        ((True, kept), "lbfgs: the loss that fun returns"),
        ((1.0, [1.0, 1.0]), "lbfgs: the gradient that fun returns"),
        ((1.0, np.ones(3)), "lbfgs: the gradient that fun returns"),
        ((1.0, np.ones(2, np.float32)), "lbfgs: the gradient that fun returns"),
    ):
        with pytest.raises((TypeError, ValueError), match=named):
            solvers.lbfgs(lambda t, returned=returned: returned, theta)
    with pytest.raises(ValueError, match="lbfgs: start has no elements"):
        solvers.lbfgs(rosenbrock, theta[:0])


def test_a_nan_gradient_at_the_start_is_no_small_gradient():
    """The largest component of a row skips NaN, which compares as false."""
    for bad in (np.nan, np.inf):
        assert (
            nbprop.lbfgs_step(nbprop.lbfgs_state(3), np.ones(3), 1.0, np.array([0.0, bad, 0.0])) == solvers.NOT_FINITE
        )
        result = solvers.lbfgs(lambda t, bad=bad: (1.0, np.array([0.0, bad, 0.0])), np.ones(3))
        assert not result.success


def test_a_search_resumes_from_its_state():
    theta, state, whole = np.array([-1.2, 1.0]), nbprop.lbfgs_state(2), []
    for _ in range(30):
        whole.append(theta.copy())
        nbprop.lbfgs_step(state, theta, *rosenbrock(theta))
    theta, state = np.array([-1.2, 1.0]), nbprop.lbfgs_state(2)
    for k in range(30):
        assert np.array_equal(theta, whole[k])
        theta, state = theta.copy(), state.copy()
        nbprop.lbfgs_step(state, theta, *rosenbrock(theta))


def test_minimize_a_network():
    net = nbprop.network((2,), nbprop.dense(8, activation="tanh"), nbprop.dense(1))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 2))
    target = np.sin(x[:, :1]) * x[:, 1:]
    plan = nbprop.plan(net, loss="mse", batch=50)
    ours, theirs = nbprop.init(net, seed=1), nbprop.init(net, seed=1)
    seen = []
    result = nbprop.minimize(plan, ours, x, target, method="L-BFGS", maxiter=300, callback=seen.append)
    other = nbprop.minimize(plan, theirs, x, target, method="L-BFGS-B", maxiter=300, options={"maxfun": 10**4})
    assert result.fun <= 2 * other.fun + 1e-5
    assert len(seen) == result.nit
    assert np.array_equal(result.x, ours)


def test_bad_input():
    theta, grad, state = np.ones(3), np.ones(3), nbprop.lbfgs_state(3)
    with pytest.raises(ValueError, match=r"grad must have shape \(3,\)"):
        nbprop.lbfgs_step(state, theta, 1.0, np.ones(2))
    with pytest.raises(ValueError, match="state does not fit theta"):
        nbprop.lbfgs_step(state[:20], theta, 1.0, grad)
    with pytest.raises(TypeError, match="theta must hold float64, got float32"):
        nbprop.lbfgs_step(state, theta.astype(np.float32), 1.0, grad)
    with pytest.raises(ValueError, match=r"memory must be a positive integer, got 0"):
        nbprop.lbfgs_state(3, memory=0)
    with pytest.raises(ValueError, match="gtol must be a finite number of at least 0"):
        nbprop.lbfgs_state(3, gtol=-1.0)


@pytest.mark.parametrize(
    ("word", "value"),
    [(solvers.N, 1e7), (solvers.N, np.nan), (solvers.MEMORY, -1e12), (solvers.MEMORY, np.nan),
     (solvers.MEMORY, 0), (solvers.STORED, 1e9), (solvers.STORED, -1), (solvers.NEWEST, -1e12),
     (solvers.NEWEST, 10), (solvers.NEWEST, 0.5), (solvers.NEWEST, np.inf)],
)  # fmt: skip
def test_a_state_that_was_edited_is_refused(word, value):
    state, theta = nbprop.lbfgs_state(3), np.ones(3)
    assert nbprop.lbfgs_step(state, theta, 1.0, np.ones(3)) == 0
    state[word] = value
    before, at = state.copy(), theta.copy()
    with pytest.raises(
        ValueError, match=r"lbfgs_step: state (holds numbers that the solver never writes|does not fit)"
    ):
        nbprop.lbfgs_step(state, theta, 0.5, np.ones(3))
    assert np.array_equal(state, before, equal_nan=True)
    assert np.array_equal(theta, at)
