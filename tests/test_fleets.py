"""fit_many: each model as if it were fitted alone, on any number of threads."""

import numpy as np
import pytest

import nbprop
from nbprop import solvers
from nbprop.fleets import METHODS

NET = nbprop.network((2,), nbprop.dense(6, activation="tanh"), nbprop.dense(1))
RNG = np.random.default_rng(0)
MODELS, SAMPLES = 7, 30
XS = RNG.standard_normal((MODELS, SAMPLES, 2))
YS = np.sin(XS[..., :1] * np.arange(1, MODELS + 1)[:, None, None] / 3) + 0.3 * XS[..., 1:]
STARTS = np.stack([nbprop.init(NET, seed=k) for k in range(MODELS)])


@pytest.mark.parametrize("method", METHODS)
def test_every_model_is_fitted_and_threads_change_no_bit(method):
    results = []
    for threads in (1, 2, 3):
        thetas = STARTS.copy()
        result = nbprop.fit_many(NET, thetas, XS, YS, method=method, maxiter=150, threads=threads)
        results.append((thetas, result))
    thetas, result = results[0]
    plan = nbprop.plan(NET, loss="mse", batch=SAMPLES)
    work = nbprop.workspace(plan)
    for k in range(MODELS):
        before = nbprop.value(plan, STARTS[k], XS[k], YS[k], work)
        after = nbprop.value(plan, thetas[k], XS[k], YS[k], work)
        assert np.isclose(after, result.fun[k], rtol=1e-12)
        assert after < before / 3
        assert result.nit[k] > 0
        assert result.status[k] in result.reasons
    for others, other in results[1:]:
        assert np.array_equal(thetas, others)
        assert np.array_equal(result.fun, other.fun)


def test_a_model_of_the_fleet_is_the_model_alone():
    thetas = STARTS.copy()
    result = nbprop.fit_many(NET, thetas, XS, YS, maxiter=80, ftol=0.0)
    plan = nbprop.plan(NET, loss="mse", batch=SAMPLES)
    alone = solvers.lbfgs(nbprop.objective(plan, XS[3], YS[3]), STARTS[3], maxiter=80)
    assert np.array_equal(alone.x, thetas[3])
    assert alone.nit == result.nit[3]


def test_classes():
    net = nbprop.network((2,), nbprop.dense(5, activation="tanh"), nbprop.dense(3))
    labels = (XS[..., 0] > 0).astype(np.int32) + (XS[..., 1] > 0)
    thetas = np.stack([nbprop.init(net, seed=k) for k in range(MODELS)])
    result = nbprop.fit_many(net, thetas, XS, labels, loss="softmax_cross_entropy", maxiter=60)
    assert (result.fun < 0.3).all()


def test_bad_input():
    with pytest.raises(ValueError, match=r"ys must have shape \(7, 30, 1\), got \(7, 29, 1\)"):
        nbprop.fit_many(NET, STARTS.copy(), XS, np.ascontiguousarray(YS[:, :29]))
    with pytest.raises(TypeError, match="thetas must hold float64, got float32"):
        nbprop.fit_many(NET, STARTS.astype(np.float32), XS, YS)
    with pytest.raises(ValueError, match="did you mean 'L-BFGS'"):
        nbprop.fit_many(NET, STARTS.copy(), XS, YS, method="LBFGS")
    with pytest.raises(ValueError, match="method marquardt needs loss='mse', got huber"):
        nbprop.fit_many(NET, STARTS.copy(), XS, YS, loss="huber", method="marquardt")
    broken = YS.copy()
    broken[2, 3] = np.nan
    thetas = STARTS.copy()
    with pytest.raises(ValueError, match=r"ys\[2\]\[3, 0\] is nan"):
        nbprop.fit_many(NET, thetas, XS, broken)
    assert np.array_equal(thetas, STARTS)
