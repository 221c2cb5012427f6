"""The compiled Levenberg-Marquardt: linear and classic problems, MINPACK beside it, @njit, and its ends."""

import numba
import numpy as np
import pytest
import scipy.optimize
from numba import types

import nbprop
from nbprop.compiler.jit import FLAGS
from nbprop.numerics.cholesky import cholesky, cholesky_scratch
from nbprop.numerics.gemm.entry import GEMM
from nbprop.solvers import levenberg_marquardt as marquardt


def test_linear_least_squares_in_a_few_steps():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 7)), rng.standard_normal(40)
    result = marquardt.levenberg_marquardt(lambda t: a @ t - b, lambda t: a, np.zeros(7), gtol=1e-9)
    wanted = np.linalg.lstsq(a, b)[0]
    assert np.abs(result.x - wanted).max() <= 1e-10
    assert result.nfev < 15


TIME = np.linspace(0, 4, 50)


def decay(t):
    return t[0] * np.exp(-t[1] * TIME) + t[2]


def decay_jacobian(t):
    e = np.exp(-t[1] * TIME)
    return np.stack([e, -t[0] * TIME * e, np.ones_like(TIME)], 1)


def test_a_curve_beside_minpack():
    data = decay(np.array([2.5, 1.3, 0.5])) + 0.05 * np.random.default_rng(1).standard_normal(50)
    start = np.array([1.0, 0.1, 0.0])
    ours = marquardt.levenberg_marquardt(lambda t: decay(t) - data, decay_jacobian, start)
    theirs = scipy.optimize.least_squares(lambda t: decay(t) - data, start, decay_jacobian, method="lm")
    assert ours.success
    assert ours.cost <= theirs.cost * (1 + 1e-8)
    assert np.abs(ours.x - theirs.x).max() <= 1e-4
    assert ours.nfev <= 3 * theirs.nfev + 10


def test_rosenbrock_and_a_rank_deficient_problem():
    def residuals(t):
        return np.array([10 * (t[1] - t[0] ** 2), 1 - t[0]])

    def jacobian(t):
        return np.array([[-20 * t[0], 10.0], [-1.0, 0.0]])

    result = marquardt.levenberg_marquardt(residuals, jacobian, np.array([-1.2, 1.0]), gtol=1e-12)
    assert np.abs(result.x - 1).max() <= 1e-8
    twice = marquardt.levenberg_marquardt(
        lambda t: np.array([t[0] + t[1] - 3.0]), lambda t: np.array([[1.0, 1.0]]), np.array([0.0, 5.0])
    )
    assert abs(twice.x.sum() - 3) <= 1e-6


@numba.njit
def circle_in_njit(points, theta, state):
    """Fit a centre and a radius to points."""
    residuals, jacobian = np.empty(len(points)), np.empty((len(points), 3))
    want = 1
    while want == 1 or want == 2:
        for i in range(len(points)):
            x, y = points[i, 0] - theta[0], points[i, 1] - theta[1]
            distance = np.sqrt(x * x + y * y)
            if want == 1:
                residuals[i] = distance - theta[2]
            else:
                jacobian[i, 0], jacobian[i, 1], jacobian[i, 2] = -x / distance, -y / distance, -1.0
        want = nbprop.lm_step(state, theta, residuals, jacobian)
    return want


def test_in_njit():
    angle = np.linspace(0, 5, 30)
    points = np.stack([3 + 2 * np.cos(angle), -1 + 2 * np.sin(angle)], 1)
    theta = np.array([0.0, 0.0, 1.0])
    assert circle_in_njit(points, theta, nbprop.lm_state(3)) in (
        marquardt.GRADIENT,
        marquardt.SLOW,
        marquardt.SMALL_STEP,
    )
    assert np.abs(theta - [3, -1, 2]).max() <= 1e-7
    with pytest.raises(ValueError, match="does not fit"):
        circle_in_njit(points, theta, nbprop.lm_state(2))


def test_ends():
    nothing = np.full((2, 1), np.nan)
    assert nbprop.lm_step(nbprop.lm_state(1), np.ones(1), np.array([np.inf, 1.0]), nothing) == marquardt.NOT_FINITE
    uphill = marquardt.levenberg_marquardt(lambda t: np.array([t[0] + 2.0]), lambda t: np.array([[-1.0]]), np.ones(1))
    assert uphill.message in ("no damping gives a lower cost", "the step is at most a fraction xtol of theta")
    assert uphill.x[0] == 1.0
    few = marquardt.levenberg_marquardt(lambda t: decay(t), decay_jacobian, np.array([5.0, 0.1, 3.0]), max_nfev=2)
    assert not few.success
    assert few.message == "maximum number of evaluations reached (2)"


FIELDS = {"x", "fun", "cost", "jac", "grad", "optimality", "active_mask", "nit", "nfev", "njev"}
FIELDS |= {"success", "status", "message"}
LINE = np.linspace(0, 1, 9)[:, None] + 0.5


@pytest.mark.parametrize(
    ("jacobian", "said"),
    [
        (lambda t: LINE * np.nan, "J^T J or J^T r is not finite"),
        (lambda t: np.where(LINE > 1, np.inf, LINE), "J^T J or J^T r is not finite"),
        (lambda t: LINE * 1e160, "J^T J or J^T r is not finite"),  # d = -g / infinity = 0: no step, not a small one
        (lambda t: LINE * (np.cos(LINE * t[0]) if t[0] == 3 else np.nan), "J^T J or J^T r is not finite"),
    ],
)
def test_a_jacobian_that_is_not_finite_is_no_success(jacobian, said):
    result = marquardt.levenberg_marquardt(lambda t: np.sin(LINE[:, 0] * t[0]) - 0.5, jacobian, np.array([3.0]))
    assert set(result) == FIELDS
    assert not result.success
    assert said in result.message
    assert np.isfinite([*result.x, *result.fun, result.cost]).all()


def test_residuals_that_are_finite_at_the_start_alone():
    """The step becomes small since nothing farther away is finite: that is no convergence."""
    result = marquardt.levenberg_marquardt(
        lambda t: np.full(9, np.inf) if t[0] != 3 else LINE[:, 0] * 3.0, lambda t: LINE, np.array([3.0])
    )
    assert (result.success, result.x[0], result.message) == (False, 3.0, "no damping gives a lower cost")
    at_start = marquardt.levenberg_marquardt(lambda t: LINE[:, 0] * np.nan, lambda t: LINE, np.array([3.0]))
    assert (at_start.success, at_start.x[0], at_start.jac, at_start.grad) == (False, 3.0, None, None)
    assert at_start.message == "the residuals at the start are not finite"
    assert set(result) == set(at_start) == FIELDS


def test_the_gradient_is_that_of_the_point():
    data = decay(np.array([2.5, 1.3, 0.5])) + 0.05
    for most, ftol in ((1, 0.0), (2, 0.0), (3, 0.0), (None, 1e-8), (None, 0.9999)):  # the last one ends as SLOW
        result = marquardt.levenberg_marquardt(
            lambda t: decay(t) - data, decay_jacobian, np.array([1.0, 0.1, 0.0]), ftol=ftol, max_nfev=most
        )
        assert np.array_equal(result.fun, decay(result.x) - data)
        assert result.cost == 0.5 * float(result.fun @ result.fun)
        assert np.allclose(result.grad, decay_jacobian(result.x).T @ result.fun, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"residuals": lambda t: [1.0]}, "residuals must return a float64 array, got list"),
        ({"residuals": lambda t: np.ones(9, np.float32)}, r"residuals must return a float64 array of shape \(m,\)"),
        (
            {"residuals": lambda t: np.ones((9, 1))},
            r"residuals must return .* shape \(m,\), got float64 of shape \(9, 1\)",
        ),
        (
            {"residuals": lambda t: np.ones(9 if t[0] == 3 else 8)},
            r"residuals must return .* shape \(9,\), got .* \(8,\)",
        ),
        ({"jacobian": lambda t: np.ones((8, 1))}, r"jacobian must return .* shape \(9, 1\), got .* shape \(8, 1\)"),
        ({"jacobian": lambda t: np.ones((9, 1), int)}, r"jacobian must return a float64 array .* got int64"),
        ({"jacobian": None}, "jacobian must be a function, got NoneType"),
        ({"start": [3.0]}, "start must be a NumPy array"),
        ({"start": np.array([np.nan])}, "start holds NaN"),
        ({"xtol": -1.0}, "xtol must be a finite number of at least 0, got -1.0"),
        ({"gtol": "no"}, "gtol must be a finite number"),
        ({"max_nfev": 10**30}, "max_nfev must be a positive integer"),
    ],
)
def test_what_functions_return_is_looked_at(given, said):
    arguments = {"residuals": lambda t: LINE[:, 0] * t[0] - 1, "jacobian": lambda t: LINE, "start": np.array([3.0])}
    with pytest.raises((TypeError, ValueError), match=f"levenberg_marquardt: {said}"):
        marquardt.levenberg_marquardt(**(arguments | given))


def test_bad_input():
    state, theta, r, j = nbprop.lm_state(2), np.ones(2), np.ones(3), np.ones((3, 2))
    with pytest.raises(ValueError, match=r"jacobian must have shape \(3, 2\), got \(2, 3\)"):
        nbprop.lm_step(state, theta, r, j.reshape(2, 3))
    with pytest.raises(ValueError, match="lm_step: state does not fit theta"):
        nbprop.lm_step(nbprop.lm_state(3), theta, r, j)
    with pytest.raises(ValueError, match="xtol must be a finite number of at least 0"):
        nbprop.lm_state(2, xtol=np.nan)


# -- the product's scratch, and the factor -----------------------------------------------------------------------


def linear(n, m):
    """A least squares problem that one step solves: (matrix, right side, solution)."""
    rng = np.random.default_rng((n, m))
    a, b = rng.standard_normal((m, n)), rng.standard_normal(m)
    return a, b, np.linalg.lstsq(a, b)[0]


@pytest.mark.parametrize(("n", "m"), [(61, 2148), (61, 2149), (48, 2731), (130, 1009), (47, 3000)])
def test_sizes_where_the_product_packs(n, m):
    """J^T J took itself for scratch there: it came out wrong, and what lay behind the state was overwritten."""
    a, b, wanted = linear(n, m)
    guard = np.full(nbprop.lm_state(n).size + 4000, 7.0)
    state = guard[: guard.size - 4000]
    state[:] = nbprop.lm_state(n, gtol=1e-9)
    theta, r, want = np.zeros(n), np.empty(m), 1
    while want in (1, 2):
        r[:] = a @ theta - b
        want = nbprop.lm_step(state, theta, r, a)
    assert (guard[state.size :] == 7.0).all()
    matrix = state[marquardt._HEAD + 4 * n :][: n * n].reshape(n, n)
    assert np.abs(matrix - a.T @ a).max() <= 1e-10 * m
    assert np.abs(theta - wanted).max() <= 1e-8


def test_a_fit_whose_product_packs():
    """A 1-20-1 net of 61 parameters and 2,149 samples ended in SIGSEGV."""
    net, x = nbprop.network((1,), nbprop.dense(20, "tanh"), nbprop.dense(1)), np.linspace(-2, 2, 2149)[:, None]
    params, target = nbprop.init(net, seed=0), np.sin(3 * x)
    plan = nbprop.plan(net, "mse", 2149)
    before = nbprop.value(plan, params, x, target, nbprop.workspace(plan))
    result = nbprop.least_squares(plan, params, x, target, method="marquardt", max_nfev=40)
    assert result.njev > 5
    assert nbprop.value(plan, params, x, target, nbprop.workspace(plan)) < 0.1 * before


@numba.njit(**FLAGS)
def plain_cholesky(lower, n):
    """The loop that blocks must not differ from in a bit."""
    for i in range(n):
        for j in range(i + 1):
            total = lower[i, j]
            for k in range(j):
                total -= lower[i, k] * lower[j, k]
            lower[i, j] = np.sqrt(total) if i == j else total / lower[j, j]


@pytest.mark.parametrize("n", [1, 5, 63, 64, 65, 66, 129, 200, 331])
def test_the_factor_has_the_bits_of_the_plain_loop(n):
    rng = np.random.default_rng(n)
    a = rng.standard_normal((n, n + 9))
    wanted, got = a @ a.T, (a @ a.T).ravel()
    GEMM.load(types.float64)
    exact = np.linalg.cholesky(wanted)
    plain_cholesky(wanted, n)
    room = np.full(cholesky_scratch(n) + 1, np.nan)
    room[-1] = 7.0
    assert cholesky(got, room[:-1], n)
    assert room[-1] == 7.0
    got = np.tril(got.reshape(n, n))
    assert np.array_equal(got, np.tril(wanted))
    assert np.abs(got - exact).max() <= 1e-11 * np.abs(exact).max()


def test_no_factor_of_an_indefinite_matrix():
    for n, wrong in ((3, 1), (130, 0), (130, 70), (130, 129)):
        matrix = np.eye(n)
        matrix[wrong, wrong] = -1.0
        assert not cholesky(matrix.ravel(), np.empty(cholesky_scratch(n)), n)
        matrix[wrong, wrong] = np.nan
        assert not cholesky(matrix.ravel(), np.empty(cholesky_scratch(n)), n)


@pytest.mark.parametrize(
    ("word", "value"),
    [(marquardt._N, 1e7), (marquardt._N, np.nan), (marquardt._N, -3), (marquardt._N, 2.5), (marquardt._PHASE, 7),
     (marquardt._PHASE, np.inf), (marquardt._PHASE, -1), (marquardt._DAMPING, -1), (marquardt._GROWTH, np.nan)],
)  # fmt: skip
def test_a_state_that_was_edited_is_refused(word, value):
    state, theta, r = nbprop.lm_state(3), np.ones(3), np.ones(5)
    assert nbprop.lm_step(state, theta, r, np.ones((5, 3))) == marquardt.JACOBIAN
    state[word] = value
    before = state.copy()
    with pytest.raises(ValueError, match="lm_step: state holds numbers that the solver never writes"):
        nbprop.lm_step(state, theta, r, np.ones((5, 3)))
    assert np.array_equal(state, before, equal_nan=True)
