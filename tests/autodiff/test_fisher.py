"""fisher_product against the explicit sum: targets drawn from the model, a gradient for each, its outer product."""

import numba
import numpy as np
import pytest

import nbprop
from nbprop.losses import LOSSES, Loss
from nbprop.losses.mse import mse_curvature, mse_kernel

NET = nbprop.network((2, 3), nbprop.dense(4, activation="tanh"), nbprop.dense(4))
DELTA = 0.7
Z, CHANCE = np.polynomial.hermite_e.hermegauss(8)  # exact for the quartics that appear below
CHANCE = CHANCE / CHANCE.sum()


def softmax_terms(y):
    p = np.exp(y - y.max()) / np.exp(y - y.max()).sum()
    return [[(p[c], p - np.eye(y.size)[c]) for c in range(y.size)]]


def bernoulli_terms(y):
    p, unit = 1 / (1 + np.exp(-y)), np.eye(y.size)
    return [[(p[j], (p[j] - 1) * unit[j]), (1 - p[j], p[j] * unit[j])] for j in range(y.size)]


def mse_terms(y):
    return [[(c, -2 * np.sqrt(0.5) * z * unit) for z, c in zip(Z, CHANCE, strict=True)] for unit in np.eye(y.size)]


def gaussian_terms(y):
    k, unit = y.size // 2, np.eye(y.size)
    return [
        [
            (c, -np.exp(-y[k + j] / 2) * z * unit[j] + 0.5 * (1 - z * z) * unit[k + j])
            for z, c in zip(Z, CHANCE, strict=True)
        ]
        for j in range(k)
    ]


def huber_terms(y):
    error = np.linspace(-60, 60, 24_001)
    small = np.abs(error) <= DELTA
    chance = np.exp(-np.where(small, error**2 / 2, DELTA * (np.abs(error) - DELTA / 2)))
    slope = np.clip(error, -DELTA, DELTA)
    root = np.sqrt((chance * slope**2).sum() / chance.sum())
    return [[(1.0, root * unit)] for unit in np.eye(y.size)]


TERMS = {
    "softmax_cross_entropy": softmax_terms,
    "binary_cross_entropy": bernoulli_terms,
    "mse": mse_terms,
    "gaussian_nll": gaussian_terms,
    "huber": huber_terms,
}


def explicit(loss, rows, y, weights):
    """The Fisher matrix: the weighted mean over terms of E[g g^T]; rows: the outputs' gradients by the parameters."""
    total, matrix = 0.0, 0.0
    for y_row, gradients, weight in zip(y, rows, weights, strict=True):
        for term in TERMS[loss](y_row):
            total += weight
            for chance, slope in term:
                g = slope @ gradients
                matrix += weight * chance * np.outer(g, g)
    return matrix / total


def problem(loss, dtype=np.float64):
    plan = nbprop.plan(NET, nbprop.huber(DELTA) if loss == "huber" else loss, batch=4, dtype=dtype)
    rng = np.random.default_rng(3)
    params = nbprop.init(NET, seed=1) + 0.2 * rng.standard_normal(NET.n_params)
    x, weights = rng.standard_normal((3, 2, 3)), rng.uniform(0.5, 2, 3)
    shape = (3, *plan.target_shape)
    target = rng.integers(0, plan.classes, shape) if plan.classes else rng.uniform(0, 1, shape).astype(dtype)
    return plan, *(array.astype(dtype) for array in (params, rng.standard_normal(NET.n_params), x)), target, weights


@numba.njit
def in_njit(plan, params, v, x, target, out, work, weights):
    nbprop.fisher_product(plan, params, v, x, target, out, work, weights)


def test_every_likelihood_has_its_matrix():
    """Those without a sum of terms here are held against a grid of targets in tests/losses/test_losses.py."""
    likelihoods = {name for name, loss in LOSSES.items() if loss.fisher is not None}
    assert likelihoods == set(TERMS) | {"log_cosh", "poisson_nll", "student_t_nll"}


@pytest.mark.parametrize("loss", list(TERMS))
def test_against_the_explicit_sum(loss):
    plan, params, v, x, target, weights = problem(loss)
    work, out, y = nbprop.workspace(plan), np.full(params.size, np.nan), np.empty((3, 2, 4))
    rows = np.empty((24, params.size))
    nbprop.jacobian(plan, params, x, rows, work)
    nbprop.forward(plan, params, x, y, work)
    matrix = explicit(loss, rows.reshape(6, 4, -1), y.reshape(6, 4), np.repeat(weights, 2))
    work[:] = np.nan
    nbprop.fisher_product(plan, params, v, x, target, out, work, weights)
    # The quadrature of Huber's density is good to six digits.
    tolerance = 1e-5 if loss == "huber" else 1e-12
    assert np.abs(out - matrix @ v).max() <= tolerance * np.abs(matrix @ v).max()
    compiled = np.full(params.size, np.nan)
    in_njit(plan, params, v, x, target, compiled, work, weights)
    assert np.array_equal(out, compiled)
    newton = np.empty(params.size)
    nbprop.gauss_newton_product(plan, params, v, x, target, newton, work, weights)
    assert np.array_equal(out, newton) == (loss in ("mse", "softmax_cross_entropy", "binary_cross_entropy"))


@pytest.mark.parametrize("loss", ["gaussian_nll", "huber"])
def test_float32(loss):
    outs = []
    for dtype in (np.float32, np.float64):
        plan, params, v, x, target, _ = problem(loss, dtype)
        outs.append(np.empty(params.size, dtype))
        nbprop.fisher_product(plan, params, v, x, target, outs[-1], nbprop.workspace(plan))
    assert np.abs(outs[0] - outs[1]).max() <= 2e-5 * np.abs(outs[1]).max()


def test_a_loss_that_is_no_likelihood_is_refused_by_name():
    class Unlikely(Loss):
        kind, kernel, curvature = "unlikely", mse_kernel, mse_curvature

    del LOSSES["unlikely"]
    _, params, v, x, target, weights = problem("mse")
    plan = nbprop.plan(NET, Unlikely(), batch=4)
    out, work = np.full(params.size, 7.0), nbprop.workspace(plan)
    with pytest.raises(ValueError, match="fisher_product: loss unlikely is no negative log-likelihood"):
        nbprop.fisher_product(plan, params, v, x, target, out, work)
    with pytest.raises(ValueError, match="no negative log-likelihood"):
        in_njit(plan, params, v, x, target, out, work, weights)
    assert (out == 7).all()
    square = nbprop.elementwise("squared_for_fisher", lambda x: x * x, lambda x, y: 2 * x)
    net = nbprop.network((2,), nbprop.dense(2), square())
    plan, p = nbprop.plan(net, loss="mse", batch=1), nbprop.init(net)
    with pytest.raises(ValueError, match=r"fisher_product: layer 1\.squared_for_fisher has no tangent kernels"):
        nbprop.fisher_product(
            plan, p, p.copy(), np.ones((1, 2)), np.ones((1, 2)), np.empty_like(p), nbprop.workspace(plan)
        )
