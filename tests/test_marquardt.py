"""The compiled Levenberg-Marquardt: linear and classic problems, MINPACK beside it, @njit, and its ends."""

import numba
import numpy as np
import pytest
import scipy.optimize

import nbprop
from nbprop import marquardt


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
    with pytest.raises(ValueError, match="do not fit"):
        circle_in_njit(points, theta, nbprop.lm_state(2))


def test_ends():
    nothing = np.full((2, 1), np.nan)
    assert nbprop.lm_step(nbprop.lm_state(1), np.ones(1), np.array([np.inf, 1.0]), nothing) == marquardt.NOT_FINITE
    uphill = marquardt.levenberg_marquardt(lambda t: np.array([t[0] + 2.0]), lambda t: np.array([[-1.0]]), np.ones(1))
    assert uphill.message in ("no damping gives a lower cost", "the step is at most xtol of theta")
    assert uphill.x[0] == 1.0
    few = marquardt.levenberg_marquardt(lambda t: decay(t), decay_jacobian, np.array([5.0, 0.1, 3.0]), max_nfev=2)
    assert not few.success
    assert "2 evaluations" in few.message


def test_bad_input():
    state, theta, r, j = nbprop.lm_state(2), np.ones(2), np.ones(3), np.ones((3, 2))
    with pytest.raises(
        ValueError, match=r"jacobian must be a contiguous float64 array of shape \(3, 2\), got float64 \(2, 3\)"
    ):
        nbprop.lm_step(state, theta, r, j.reshape(2, 3))
    with pytest.raises(ValueError, match="state must have shape"):
        nbprop.lm_step(nbprop.lm_state(3), theta, r, j)
    with pytest.raises(ValueError, match="xtol must be at least 0"):
        nbprop.lm_state(2, xtol=np.nan)
