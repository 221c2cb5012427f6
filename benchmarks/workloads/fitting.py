"""Fits in float64: 200 iterations of the compiled L-BFGS, and Levenberg-Marquardt down to a given loss."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import time

import numpy as np
import scipy.optimize

from harness.places import module
from harness.work import Work
from workloads.rows import Row, aligned

STARTS, WITHIN = 20, 1.01  # of "lm": starts, and the loss to reach as a multiple of the best
MOST = {"marquardt": 2000, "_lbfgsb": 10_000, "_differences": 300}  # evaluations after which a start counts as failed
NOISE = 0.1


def nbprop(row: Row, threads: int) -> Work:
    return lbfgs(row, threads) if row.name == "lbfgs" else _to_a_loss(row, marquardt)


def lbfgs(row: Row, threads: int) -> Work:
    import nbprop as nb
    from contenders.ours import arrays

    plan, params, x, target, _, _ = arrays(row, threads)
    first, options = params.copy(), {"maxiter": 200, "gtol": 0.0, "ftol": 0.0, "memory": 20}

    def solve(n: int) -> object:
        for _ in range(n):
            params[:] = first
            result = nb.minimize(plan, params, x, target, method="L-BFGS", options=options)
        return result

    return Work(solve, check=_told(solve(1)))


def _told(result) -> float:
    """The number of iterations; prints the loss, which differs between contenders."""
    print(f"lbfgs: loss {result.fun:.4g} after {result.nit} iterations", file=sys.stderr)
    return float(result.nit)


def jax_jit(row: Row, threads: int) -> Work:
    import jax

    from workloads.calculus import jax_flat
    from workloads.rows import SOLVER_OPTIONS

    loss, _, flat = jax_flat(row)
    x, target = jax.device_put(row.data())
    compiled, start = jax.jit(jax.value_and_grad(loss)), np.asarray(flat)

    def fun(theta: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = compiled(theta, x, target)
        return float(value), np.asarray(gradient)

    def solve(n: int) -> object:
        for _ in range(n):
            result = scipy.optimize.minimize(fun, start, jac=True, method="L-BFGS-B", options=SOLVER_OPTIONS)
        return result

    return Work(solve, check=_told(solve(1)))


def sklearn(row: Row, threads: int) -> Work:
    from contenders.peers import sklearn_work

    return sklearn_work(dataclasses.replace(row, kind="solver"), threads)


# -- to within a hundredth of the best loss ------------------------------------------------------------------------


def samples(row: Row) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(6)
    x = rng.uniform(-3, 3, (row.batch, 1))
    return aligned(x), aligned(np.sin(2 * x) + 0.5 * x + NOISE * rng.standard_normal(x.shape))


@functools.cache
def problem(row: Row):
    """(plan, x, target, starts, the loss to reach): 1 % above the lowest that Levenberg-Marquardt finds."""
    import nbprop as nb
    from contenders.ours import network

    plan = nb.plan(network(row), loss="mse", batch=row.batch)
    x, target = samples(row)
    starts = [nb.init(plan.net, seed=seed) for seed in range(STARTS)]
    best = min(nb.least_squares(plan, start.copy(), x, target, "marquardt", max_nfev=300).cost for start in starts)
    return plan, x, target, starts, WITHIN * 2 * best / row.batch


class _Reached(Exception):
    """The loss is low enough."""


def _to_a_loss(row: Row, fit) -> Work:
    """Fit from the start with the median time, again and again; prints from how many starts the fit fails.

    If half of them fail, the time is that of a failure, which is less than a success would take.

    fit(plan, x, target, start, goal) -> whether the goal was reached.
    """
    plan, x, target, starts, goal = problem(row)
    fit(plan, x, target, starts[0], goal)
    times = []
    for start in starts:
        begun = time.perf_counter()
        reached = fit(plan, x, target, start, goal)
        times.append(time.perf_counter() - begun if reached else np.inf)
    failures = int(np.isinf(times).sum())
    print(f"lm: {fit.__name__} fails from {failures} of {STARTS} starts", file=sys.stderr)
    chosen = starts[int(np.argsort(times)[(STARTS - 1) // 2])]

    def run(n: int) -> None:
        for _ in range(n):
            fit(plan, x, target, chosen, goal)

    return Work(run)


def _stopping(fun, goal: float, most: int):
    """fun, which ends the search once its loss, or the mean square of its residuals, is low enough."""

    def wrapped(theta):
        found = fun(theta)
        loss = found[0] if isinstance(found, tuple) else found @ found / len(found)
        wrapped.calls += 1
        if loss <= goal or wrapped.calls > most:
            wrapped.reached = loss <= goal
            raise _Reached
        return found

    wrapped.calls, wrapped.reached = 0, False
    return wrapped


def marquardt(plan, x, target, start, goal) -> bool:
    """nbprop's own solver, driven as least_squares does."""
    Residuals = module("nbprop.solvers.least_squares", "nbprop.least_squares").Residuals
    solver = module("nbprop.solvers.levenberg_marquardt", "nbprop.marquardt")
    levenberg_marquardt = solver.levenberg_marquardt
    residuals = Residuals(plan, x, target, None)
    fun, most = _stopping(residuals, goal, MOST["marquardt"]), MOST["marquardt"]
    with contextlib.suppress(_Reached):
        levenberg_marquardt(fun, residuals.jacobian, start.copy(), ftol=1e-12, xtol=1e-12, gtol=1e-12, max_nfev=most)
    return fun.reached


def lbfgsb(row: Row, threads: int) -> Work:
    return _to_a_loss(row, _lbfgsb)


def _lbfgsb(plan, x, target, start, goal) -> bool:
    import nbprop as nb

    most = MOST["_lbfgsb"]
    fun, options = (
        _stopping(nb.objective(plan, x, target), goal, most),
        {"maxiter": most, "maxfun": most, "ftol": 1e-14},
    )
    with contextlib.suppress(_Reached):
        scipy.optimize.minimize(fun, start, jac=True, method="L-BFGS-B", options=options)
    return fun.reached


def scipy_differences(row: Row, threads: int) -> Work:
    return _to_a_loss(row, _differences)


def _differences(plan, x, target, start, goal) -> bool:
    """scipy's least_squares, which differences the residuals; the network still is nbprop's."""
    Residuals = module("nbprop.solvers.least_squares", "nbprop.least_squares").Residuals
    state = {"reached": False}

    def callback(intermediate_result):
        state["reached"] = 2 * intermediate_result.cost / len(x) <= goal
        if state["reached"]:
            raise StopIteration

    scipy.optimize.least_squares(
        Residuals(plan, x, target, None),
        start,
        method="trf",
        jac="2-point",
        ftol=1e-12,
        xtol=1e-12,
        gtol=1e-12,
        max_nfev=300,
        callback=callback,
    )
    return state["reached"]
