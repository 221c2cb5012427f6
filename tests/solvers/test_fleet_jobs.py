"""fit_many over joblib's backends: the bits of one process, threads shared out, failures that name the model."""

import contextlib
import os
import pickle
import sys

import numpy as np
import pytest

import nbprop
from nbprop.solvers import fleet, fleet_jobs

joblib = pytest.importorskip("joblib")

NET = nbprop.network((2,), nbprop.dense(6, activation="tanh"), nbprop.dense(1))
MODELS, SETS, SAMPLES = 11, 4, 30
RNG = np.random.default_rng(0)
XS = RNG.standard_normal((SETS, SAMPLES, 2))
YS = np.sin(XS[..., :1] * np.arange(1, SETS + 1)[:, None, None] / 3) + 0.3 * XS[..., 1:]
STARTS = np.stack([nbprop.init(NET, seed=k) for k in range(MODELS)])
# Shared sets of unequal size, weights, penalties that differ: all that a part of the fleet must cut right.
FLEET = {
    "data": RNG.integers(0, SETS, MODELS),
    "samples": np.array([30, 21, 30, 25]),
    "weights": RNG.uniform(0.2, 2.0, (SETS, SAMPLES)),
    "l2": np.array([0.0, 1e-3] * 5 + [0.1]),
    "l1": np.array([0.0] * 8 + [1e-3] * 3),
    "maxiter": 25,
}


def fitted(**options):
    thetas = STARTS.copy()
    return thetas, nbprop.fit_many(NET, thetas, XS, YS, **FLEET | options)


class Registered(joblib._parallel_backends.ThreadingBackend):
    """A backend of the user's own, which sends its work through pickle and hands over all results at the end."""

    supports_return_generator = False
    sent = 0

    def submit(self, func, callback=None):
        Registered.sent += 1
        return super().submit(pickle.loads(pickle.dumps(func)), callback)


@contextlib.contextmanager
def backend(name):
    """joblib with a backend; skips where it is not installed."""
    if name == "dask":
        distributed = pytest.importorskip("distributed")
        options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
        cluster = distributed.LocalCluster(**options)
        with cluster, distributed.Client(cluster), joblib.parallel_config("dask"):
            yield
        return
    if name == "ray":
        pytest.importorskip("ray.util.joblib").register_ray()
    if name == "registered":
        joblib.register_parallel_backend(name, Registered)
    with joblib.parallel_config(name):
        yield


@pytest.mark.parametrize(
    ("name", "n_jobs", "threads"),
    [
        ("loky", 2, 1),
        ("threading", 3, 6),
        ("registered", 5, 1),
        pytest.param("loky", -1, 3, marks=pytest.mark.more),
        pytest.param("multiprocessing", 2, 1, marks=pytest.mark.more),
        pytest.param("dask", 2, 2, marks=pytest.mark.more),
        pytest.param("ray", 2, 2, marks=pytest.mark.more),
    ],
)
def test_no_backend_changes_a_bit(name, n_jobs, threads):
    thetas, result = fitted()
    with backend(name):
        others, other = fitted(n_jobs=n_jobs, threads=threads)
    assert np.array_equal(thetas, others)
    for field in ("fun", "nit", "status", "success"):
        assert np.array_equal(getattr(result, field), getattr(other, field)), field
    assert result.reasons == other.reasons
    assert name != "registered" or Registered.sent == MODELS


@pytest.mark.parametrize("method", ["marquardt", "adam"])
def test_the_other_methods(method):
    options = {"method": method, "l1": 0.0, "maxiter": 8}
    thetas, result = fitted(**options)
    with joblib.parallel_config("threading", n_jobs=2):
        others, other = fitted(**options)  # n_jobs=None: what the surrounding block says
    assert np.array_equal(thetas, others)
    assert np.array_equal(result.fun, other.fun)


@pytest.mark.parametrize(("n_jobs", "threads", "each"), [(4, 8, 2), (3, 8, 2), (4, 1, 1), (2, 3, 1)])
def test_workers_share_the_threads(n_jobs, threads, each, monkeypatch):
    given, fit = [], fleet.Fleet.fit

    def noted(self, threads, *options, **more):
        given.append(threads) if options else None  # a worker's call
        return fit(self, threads, *options, **more)

    monkeypatch.setattr(fleet.Fleet, "fit", noted)
    with joblib.parallel_config("threading"):
        fitted(n_jobs=n_jobs, threads=threads, maxiter=1)
    assert set(given) == {each}
    assert len(given) == min(MODELS, 4 * n_jobs)


def test_an_error_of_a_worker_names_the_model(monkeypatch):
    part = fleet.Fleet.part

    def broken(self, first, last):
        found = part(self, first, last)
        if first <= 7 < last:
            found.ys.setflags(write=False)
            object.__setattr__(found, "options", ("no number",) * 3)
        return found

    monkeypatch.setattr(fleet.Fleet, "part", broken)
    with joblib.parallel_config("threading"), pytest.raises(RuntimeError, match="fit_many: model 7: "):
        fitted(n_jobs=4)


def die(fleet, threads, stop, part):
    os._exit(1)


@pytest.mark.more
def test_a_worker_that_is_killed_is_told(monkeypatch):
    monkeypatch.setattr(fleet_jobs, "_fit_part", die)
    with (
        joblib.parallel_config("loky"),
        pytest.raises(RuntimeError, match=r"a worker failed while models? 0.* were unfinished: TerminatedWorkerError"),
    ):
        fitted(n_jobs=2)


def test_without_joblib_n_jobs_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(ImportError, match=r"fit_many: n_jobs=2 needs joblib.*pip install nbprop\[joblib\]"):
        fitted(n_jobs=2)
    with pytest.raises(
        ValueError, match="n_jobs must be a positive integer, negative as joblib counts, or None, got 0"
    ):
        fitted(n_jobs=0)


CTRL_C = """
import os, signal, sys, threading, time
import joblib, numpy as np, nbprop

net = nbprop.network((4,), nbprop.dense(24, activation="tanh"), nbprop.dense(1))
x = np.random.default_rng(0).standard_normal((400, 4))
thetas = np.stack([nbprop.init(net, seed=k) for k in range(40)])
data = {"xs": x[None], "ys": np.sin(x[None, :, :1]), "data": np.zeros(40, np.int64)}
options = {"gtol": 0.0, "ftol": 0.0, "method": "adam", "n_jobs": 2}
with joblib.parallel_config(sys.argv[1]):
    nbprop.fit_many(net, thetas.copy(), **data, **options, maxiter=1)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    result = nbprop.fit_many(net, thetas, **data, **options, maxiter=10**8)
assert (result.status == -1).all() and not result.success.any()
deadline = time.monotonic() + 20
while threading.active_count() > 8 and time.monotonic() < deadline:
    time.sleep(0.05)
left = time.process_time()
time.sleep(0.5)
assert time.process_time() - left < 0.3, "workers go on"
print("ended")
"""


@pytest.mark.more
@pytest.mark.parametrize("name", ["loky", "threading"])
def test_ctrl_c_ends_the_workers(script, name):
    assert "ended" in script(CTRL_C, name, timeout=120)
