"""The rows' work in nbprop, called from Python and from a user's own @njit loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numba
import numpy as np

import nbprop
from harness.places import module
from harness.work import Work
from workloads.growth import row_named
from workloads.rows import CHECK_STEPS, RATE, SOLVER_OPTIONS, Row, aligned


def build(library: str, name: str, threads: int) -> Work:
    row = row_named(name)
    compiled = library == "nbprop-njit"
    if row.kind == "gemm":
        return matrix_product(row)
    if row.kind == "solver":
        return solver(row, threads)
    return {"step": step, "gradient": gradient, "sample": sample}[row.kind](row, threads, compiled)


def network(row: Row) -> nbprop.Network:
    hidden = [nbprop.dense(width, activation=row.activation) for width in row.widths[1:-1]]
    return nbprop.network((row.widths[0],), *hidden, nbprop.dense(row.widths[-1]))


def start(row: Row) -> np.ndarray:
    """The common starting weights in nbprop's flat layout: each weight row-major, then its bias."""
    return aligned(np.concatenate([part.ravel() for layer in row.weights() for part in layer]))


def arrays(row: Row, threads: int) -> tuple:
    """plan, params, x, target, grads and work of a row."""
    plan = nbprop.plan(network(row), loss=row.loss, batch=row.batch, dtype=np.dtype(row.dtype), threads=threads)
    params = start(row)
    return plan, params, *row.data(), aligned(params), aligned(nbprop.workspace(plan))


def step(row: Row, threads: int, compiled: bool) -> Work:
    """Gradient and Adam update; counts its own steps, on which Adam's bias correction depends."""
    plan, params, x, target, grads, work = arrays(row, threads)
    state = nbprop.optimizer_state("adam", params.size, params.dtype)
    done = [0]

    if compiled:

        @numba.njit(nogil=True)
        def loop(plan, params, x, target, grads, work, state, first, n, threads):
            loss = 0.0
            for i in range(first, first + n):
                loss = nbprop.value_and_grad(plan, params, x, target, grads, work)
                nbprop.adam(params, grads, state, i, RATE, 0.9, 0.999, 1e-8, 0.0, None, None, threads)
            return loss

        def run(n: int) -> float:
            loss = loop(plan, params, x, target, grads, work, state, done[0], n, threads)
            done[0] += n
            return loss

    else:

        def run(n: int) -> float:
            loss = 0.0
            for i in range(done[0], done[0] + n):
                loss = nbprop.value_and_grad(plan, params, x, target, grads, work)
                nbprop.adam(params, grads, state, i, RATE, threads=threads)
            done[0] += n
            return loss

    return Work(run, check=float(run(CHECK_STEPS)))


def gradient(row: Row, threads: int, compiled: bool) -> Work:
    plan, params, x, target, grads, work = arrays(row, threads)

    def calls(plan, params, x, target, grads, work, n):
        loss = 0.0
        for _ in range(n):
            loss = nbprop.value_and_grad(plan, params, x, target, grads, work)
        return loss

    loop = numba.njit(nogil=True)(calls) if compiled else calls

    def run(n: int) -> float:
        return loop(plan, params, x, target, grads, work, n)

    return Work(run, check=float(run(1)))


def sample(row: Row, threads: int, compiled: bool) -> Work:
    plan, params, x, _, _, work = arrays(row, threads)
    y = np.empty((1, row.widths[-1]), row.dtype)

    def calls(plan, params, x, y, work, n):
        for _ in range(n):
            nbprop.forward(plan, params, x, y, work)

    loop = numba.njit(nogil=True)(calls) if compiled else calls

    def run(n: int) -> None:
        loop(plan, params, x, y, work, n)

    run(1)
    return Work(run, check=float(y[0, 0]))


def solver(row: Row, threads: int) -> Work:
    """200 iterations from the same start, without stopping earlier; `check` is the number of iterations."""
    plan, params, x, target, _, _ = arrays(row, threads)
    first = params.copy()

    def solve(n: int) -> object:
        for _ in range(n):
            params[:] = first
            result = nbprop.minimize(plan, params, x, target, method="L-BFGS-B", options=SOLVER_OPTIONS)
        return result

    return Work(solve, check=float(solve(1).nit))


def product_loop(dtype: str) -> tuple[Callable, Callable]:
    """The matrix product behind every layer in a compiled loop, called there as BLAS is, and its size of scratch.

    run(c, a, a_row, a_col, b, m, n, k, scratch, repeats) computes C = A B on flat arrays, with A's strides in elements.
    """
    from numba import types

    gemm = module("nbprop.numerics.gemm.blocked", "nbprop.numerics.gemm")
    entry = module("nbprop.numerics.gemm.entry", "nbprop.numerics.product")
    pointer = module("nbprop.numerics.gemm.microkernel", "nbprop.numerics.tile").pointer
    ZERO, product = gemm.ZERO, entry.product
    entry.GEMM.load(types.float32 if dtype == "float32" else types.float64)
    # Older products take the address of their scratch without its length.
    has_room = "room" in inspect.signature(gemm.gemm.py_func).parameters

    @numba.njit(nogil=True)
    def run(c, a, a_row, a_col, b, m, n, k, scratch, repeats):
        room = (scratch.size,) if has_room else ()
        for _ in range(repeats):
            product((
                pointer(c, 0), n, pointer(a, 0), a_row, a_col, pointer(b, 0), n, m, n, k, ZERO, pointer(scratch, 0),
                pointer(scratch, 0), *room, 0, 1,
            ))  # fmt: skip

    return run, gemm.gemm_scratch


def matrix_product(row: Row) -> Work:
    products, gemm_scratch = product_loop(row.dtype)
    m, n, k = row.widths
    a, b = row.matrices()
    c = aligned(np.zeros((m, n), a.dtype))
    scratch = aligned(np.zeros(gemm_scratch(m, n, k, 1) + 1, a.dtype))

    def run(repeats: int) -> None:
        products(c.ravel(), a.ravel(), k, 1, b.ravel(), m, n, k, scratch, repeats)

    run(1)
    return Work(run, check=float(c.sum(dtype=np.float64)))
