"""Threads that walk together: callers of every kind, failures, forks. What could hang runs in a process of its own."""

import os
import threading

import numba
import numpy as np
import pytest

import nbprop
from nbprop.runtime import pool as threads
from support import cases

pytestmark = pytest.mark.usefixtures("four_cores")

NET = nbprop.network((13,), nbprop.dense(40, activation="gelu"), nbprop.dense(4))
BATCH = 21


def problem(dtype=np.float64):
    rng = np.random.default_rng(5)
    plan = nbprop.plan(NET, "softmax_cross_entropy", BATCH, dtype)
    x, target, _ = cases.data(plan, BATCH, rng, ties=True)
    params = nbprop.init(NET, seed=1, dtype=dtype)
    grads = np.empty_like(params)
    loss = nbprop.value_and_grad(plan, params, x, target, grads, nbprop.workspace(plan))
    return (params, x, target), loss, grads


def test_many_python_threads_at_once():
    """Callers that find the pool busy walk alone: all end, all with the same bits."""
    given, loss, wanted = problem()
    plan, wrong = nbprop.plan(NET, "softmax_cross_entropy", BATCH, threads=2), []

    def caller():
        grads, work = np.empty_like(wanted), nbprop.workspace(plan)
        for _ in range(100):
            grads[:] = np.nan
            if nbprop.value_and_grad(plan, *given, grads, work) != loss or grads.tobytes() != wanted.tobytes():
                wrong.append(1)

    callers = [threading.Thread(target=caller) for _ in range(8)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in callers)
    assert not wrong


def test_the_pool_is_free_and_used_after_a_walk():
    """Each worker does its part of each segment, and nothing stays taken."""
    given, loss, grads = problem()
    plan, words = nbprop.plan(NET, "softmax_cross_entropy", BATCH, threads=4), threads._words
    done = threads._WORKER + np.arange(1, 4) * threads.WORKER_WORDS + threads.DONE
    for _ in range(3):
        before = words[threads.SEGMENT]
        assert nbprop.value_and_grad(plan, *given, grads, nbprop.workspace(plan)) == loss
        assert words[threads.SEGMENT] >= before + 5 * (threads.PARTS + 1)
        assert (words[done] == words[threads.SEGMENT]).all()
        assert words[threads.SEGMENT] & threads.PARTS == 4
    assert words[threads.ACTIVE] == 0


def test_more_threads_than_workers():
    """A thread count above the cores is accepted, capped, and no worker is started for it."""
    given, loss, grads = problem()
    plan = nbprop.plan(NET, "softmax_cross_entropy", BATCH, threads=1000)
    assert nbprop.value_and_grad(plan, *given, grads, nbprop.workspace(plan)) == loss
    assert threads._words[threads.WORKERS] == 3


# -- kernels that raise --------------------------------------------------------------------------------------


@numba.njit
def fragile_forward(y, x, n, size, part, parts):
    start, stop = nbprop.share(n, part, parts)
    for i in range(start * size, stop * size):
        if x[i] > 100:
            raise ValueError("too large")
        y[i] = x[i]


@numba.njit
def fragile_backward(dx, dy, x, y, n, size, part, parts):
    start, stop = nbprop.share(n, part, parts)
    for i in range(start * size, stop * size):
        if dy[i] > 100:
            raise ValueError("too large")
        dx[i] = dy[i]


fragile = nbprop.custom("fragile", fragile_forward, fragile_backward)
FRAGILE = nbprop.network((3,), nbprop.dense(3, bias=False), fragile(), nbprop.dense(2), fragile())


def fragile_run(plan, x, dy):
    """forward and backward; y, grads and dx."""
    params = np.concatenate([np.eye(3).reshape(-1), np.ones(6), np.zeros(2)])
    y, work = np.full((len(x), 2), np.nan), nbprop.workspace(plan)
    grads, dx = np.full(plan.n_params, np.nan), np.full(x.shape, np.nan)
    nbprop.forward(plan, params, x, y, work)
    nbprop.backward(plan, params, x, dy, grads, dx, work)
    return y, grads, dx


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("sample", [0, 4, 8])
def test_a_kernel_that_raises_stops_the_walk(count, sample):
    """Whichever thread's share it is in: an error that names the layer; later walks are whole again."""
    plan, x, dy = nbprop.plan(FRAGILE, batch=9, threads=count), np.ones((9, 3)), np.ones((9, 2))
    wanted = fragile_run(plan, x, dy)
    for _ in range(20):
        for value, function, label in ((1000.0, "forward", "1.fragile"), (50.0, "forward", "3.fragile")):
            bad = x.copy()
            bad[sample] = value
            with pytest.raises(RuntimeError, match=rf"{function}: layer {label}: its kernel fragile.forward raised"):
                fragile_run(plan, bad, dy)
        bad = dy.copy()
        bad[sample] = 1000.0
        with pytest.raises(RuntimeError, match=r"backward: layer 3.fragile: its kernel fragile.backward raised"):
            fragile_run(plan, x, bad)
        for got, right in zip(fragile_run(plan, x, dy), wanted, strict=True):
            cases.same_bits("after a failure", got, right)


def test_a_kernel_that_raises_under_njit():
    @numba.njit
    def run(plan, params, x, y, work):
        nbprop.forward(plan, params, x, y, work)

    plan, y = nbprop.plan(FRAGILE, batch=9, threads=2), np.full((9, 2), np.nan)
    with pytest.raises(RuntimeError, match="a layer's kernel raised an exception and the walk was stopped"):
        run(plan, np.ones(plan.n_params), np.full((9, 3), 1000.0), y, nbprop.workspace(plan))
    assert np.isnan(y).all()


# -- what could hang -----------------------------------------------------------------------------------------

SETUP = """
import os, sys, threading
import numba
import numpy as np
import nbprop
from nbprop.runtime import pool as threads
from nbprop.runtime import workers

net = nbprop.network((13,), nbprop.dense(40, activation="gelu"), nbprop.dense(4))
one, two = (nbprop.plan(net, "mse", 64, threads=count) for count in (1, 2))
params, x, target = nbprop.init(net, seed=1), np.ones((64, 13)), np.zeros((64, 4))
grads, work = np.empty_like(params), nbprop.workspace(one)
wanted = nbprop.value_and_grad(one, params, x, target, grads, work)
DONE = threads._WORKER + threads.WORKER_WORDS + threads.DONE
workers.insist(True)


@numba.njit
def holding(plan, params, x, target, grads, work, count):
    total = 0.0
    for _ in range(count):
        total += nbprop.value_and_grad(plan, params, x, target, grads, work)
    return total


@numba.njit(nogil=True)
def free(plan, params, x, target, grads, work, count):
    return holding(plan, params, x, target, grads, work, count)
"""

LOCKS_AND_FORKS = """
share = workers.processor_share()
capped = nbprop.plan(net, "mse", 64, threads=10 * share)
assert threads._words[threads.WORKERS] == share - 1, "more workers than cores"
workers.processor_share = lambda: 2
two = nbprop.Plan(net, two.loss, 64, two.dtype, 2)
assert threads._words[threads.WORKERS] >= 1


def walks(plan, function, count=30):
    before = threads._words[DONE]
    total = function(plan, params, x, target, np.empty_like(grads), nbprop.workspace(plan), count)
    assert total == holding(one, params, x, target, grads, work, count)
    return (threads._words[DONE] - before) // (threads.PARTS + 1)


EACH = walks(two, holding, 1)
assert EACH > 4


# The interpreter's lock is held while the workers, parked or starting, are woken.
import time
for function in (holding, free):
    time.sleep(0.01)
    assert walks(two, function) == 30 * EACH, "the worker did not walk along"

# Callers that hold the lock and callers that do not, all at once.
callers = [threading.Thread(target=walks, args=(two, f, 300)) for f in (holding, free, holding, free)]
[thread.start() for thread in callers]
[thread.join() for thread in callers]

# A child has a pool of its own; so has the child's child; the parent's goes on.
for generation in range(2):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0, "the child failed"
        break
    assert walks(two, holding) == 30 * EACH, "no worker in the child"
    assert nbprop.value_and_grad(two, params, x, target, grads, work) == wanted
if generation or not child:
    os._exit(0)
assert walks(two, holding) == 30 * EACH
print("done")
"""

PRANGE = """
@numba.njit(parallel=True)
def parallel(plan, params, x, target, results):
    for i in numba.prange(results.shape[0]):
        grads, work = np.empty(params.size), np.empty(WORK)
        results[i] = nbprop.value_and_grad(plan, params, x, target, grads, work)


WORK = two.work_size
results = np.zeros(500)
for plan in (two, one):
    parallel(plan, params, x, target, results)
    assert (results == wanted).all()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_callers_with_and_without_the_lock_and_after_a_fork(script):
    assert script(SETUP + LOCKS_AND_FORKS) == "done\n"


def test_inside_prange(script):
    assert script(SETUP + PRANGE) == "done\n"
