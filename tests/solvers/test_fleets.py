"""fit_many: each model as if it were fitted alone, on any number of threads."""

import numpy as np
import pytest

import nbprop
from nbprop.runtime.pieces import Pace
from nbprop.solvers import lbfgs as solvers
from nbprop.solvers.fit_many import METHODS
from nbprop.solvers.fleet_pieces import is_finite

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


LABELS = (XS[..., 0] > 0).astype(np.int32) + (XS[..., 1] > 0)
CLASSES = nbprop.network((2,), nbprop.dense(5, activation="tanh"), nbprop.dense(3))


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ys": changed(YS, (3, 5), np.inf)}, r"ys\[3\]\[5, 0\] is inf"),
        ({"xs": changed(XS, (6, 0, 1), np.nan)}, r"xs\[6\]\[0, 1\] is nan"),
        ({"thetas": changed(STARTS, (4, 7), np.nan)}, r"thetas\[4\]\[7\] is nan"),
        ({"xs": STARTS.reshape(-1)[: 7 * 24].reshape(7, 12, 2), "ys": YS[:, :12].copy()}, "shares memory with xs"),
        ({"maxiter": 10**40}, r"maxiter must be a positive integer, at most 2,147,483,647"),
        ({"maxiter": True}, "maxiter must be a positive integer"),
        ({"threads": 0}, "threads must be a positive integer"),
        ({"gtol": -1}, "gtol must be a finite number of at least 0"),
        ({"ftol": np.nan}, "ftol must be a finite number"),
        ({"lr": "fast"}, "lr must be a finite number"),
    ],
)
def test_nothing_is_written_before_all_models_fit(given, said):
    arguments = {"thetas": STARTS if "xs" in given else STARTS.copy(), "xs": XS, "ys": YS} | given
    before = arguments["thetas"].copy()
    with pytest.raises((TypeError, ValueError), match=f"fit_many: .*{said}"):
        nbprop.fit_many(NET, **arguments)
    assert np.array_equal(arguments["thetas"], before, equal_nan=True)


def test_a_bad_class_in_a_later_model():
    starts = np.stack([nbprop.init(CLASSES, seed=k) for k in range(MODELS)])
    thetas = starts.copy()
    with pytest.raises(ValueError, match=r"fit_many: ys\[3\] must hold classes in 0\.\.2, got 7"):
        nbprop.fit_many(CLASSES, thetas, XS, changed(LABELS, (3, 11), 7), loss="softmax_cross_entropy")
    assert np.array_equal(thetas, starts)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_whose_loss_overflows_keeps_its_best_finite_point(method):
    """Model 1 is not finite at its start, model 2 becomes so (Adam at such a rate); the others are fitted."""
    thetas = STARTS.copy()
    thetas[1] *= 1e200
    options = {"lr": 1e308} if method == "adam" else {}
    before = thetas.copy()
    result = nbprop.fit_many(NET, thetas, XS, YS, method=method, maxiter=40, **options)
    assert np.isfinite(thetas).all()
    assert np.array_equal(thetas[1], before[1])
    assert (result.fun[1], result.success[1]) == (np.inf, False)
    assert "finite" in result.reasons[result.status[1]] or "infinite" in result.reasons[result.status[1]]
    plan = nbprop.plan(NET, loss="mse", batch=SAMPLES)
    for k in (0, 2, 3):
        loss = nbprop.value(plan, thetas[k], XS[k], YS[k], nbprop.workspace(plan))
        assert np.isclose(loss, result.fun[k], rtol=1e-12)
    if method == "adam":
        assert not result.success.any(), "the rate is far too high"


def test_parameters_that_overflow_are_no_result_though_their_loss_is_finite():
    """At infinite weights a tanh is saturated: loss and gradient are finite, the parameters are not."""
    grads, theta = np.zeros(20), np.ones(20)
    assert is_finite(0.0, grads, theta)
    for bad in (np.inf, -np.inf, np.nan):
        assert not is_finite(bad, grads, theta)
        assert not is_finite(0.0, changed(grads, 19, bad), theta)
        assert not is_finite(0.0, grads, changed(theta, 3, bad))


def interrupt_a_piece(monkeypatch, number):
    pieces = iter(range(10**6))
    end = Pace.end

    def ends(self, done):
        end(self, done)
        if next(pieces) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(Pace, "end", ends)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_an_interrupt_leaves_the_best_so_far(method, threads, monkeypatch):
    """Pieces of one evaluation; the interrupt comes after the last of model 0, and one of the next model's."""
    whole = STARTS.copy()
    result = nbprop.fit_many(NET, whole, XS, YS, method=method, maxiter=5)
    thetas, done = STARTS.copy(), []
    monkeypatch.setattr(Pace, "begin", lambda self: 1)
    monkeypatch.setattr(Pace, "end", lambda self, count: done.append(count))
    nbprop.fit_many(NET, thetas, XS, YS, method=method, maxiter=5, threads=threads)
    assert np.array_equal(thetas, whole), "pieces change no bit"
    thetas = STARTS.copy()
    monkeypatch.setattr(Pace, "end", lambda self, count: None)
    interrupt_a_piece(monkeypatch, len(done) // 2)
    broken = nbprop.fit_many(NET, thetas, XS, YS, method=method, maxiter=5, threads=threads)
    ended = broken.status != -1
    assert 0 < ended.sum() < MODELS
    assert np.array_equal(thetas[ended], whole[ended])
    assert np.array_equal(broken.fun[ended], result.fun[ended])
    assert not broken.success[~ended].any()
    assert broken.reasons[-1] == "interrupted"
    begun = ~np.isnan(broken.fun)
    assert np.array_equal(thetas[~begun], STARTS[~begun])
    plan = nbprop.plan(NET, loss="mse", batch=SAMPLES)
    for k in np.flatnonzero(begun):
        loss = nbprop.value(plan, thetas[k], XS[k], YS[k], nbprop.workspace(plan))
        assert np.isclose(loss, broken.fun[k], rtol=1e-12)
