"""Calls that take data let go of it when they return: none is left in a cycle for the garbage collector."""

import gc
import weakref

import numpy as np
import pytest

import nbprop

NET = nbprop.network((2,), nbprop.dense(3, "tanh"), nbprop.dense(1))
PLAN = nbprop.plan(NET, "mse", batch=8)


def fit(params, x, y):
    nbprop.fit(NET, params, x, y, "mse", epochs=2, batch=4, validation=(x.copy(), y.copy()), patience=1, progress=False)


def fit_chunks(params, x, y):
    nbprop.fit_chunks(NET, params, [(x, y)], "mse", epochs=2, batch=4, window=8, read_ahead=True)


CALLS = {
    "fit": fit,
    "fit_chunks": fit_chunks,
    "minimize": lambda params, x, y: nbprop.minimize(PLAN, params, x, y, "L-BFGS", maxiter=3),
    "minimize by SciPy": lambda params, x, y: nbprop.minimize(PLAN, params, x, y, "L-BFGS-B", maxiter=3),
    "least_squares": lambda params, x, y: nbprop.least_squares(PLAN, params, x, y, max_nfev=3),
    "marquardt": lambda params, x, y: nbprop.least_squares(PLAN, params, x, y, "marquardt", max_nfev=3),
    "objective": lambda params, x, y: nbprop.objective(PLAN, x, y)(params),
    "fit_many": lambda params, x, y: nbprop.fit_many(
        NET, np.stack([params] * 2), x[None], y[None], data=np.zeros(2, int), maxiter=3
    ),
    "predict": lambda params, x, y: nbprop.predict(NET, params, x),
}


def data():
    return np.linspace(-1, 1, 16).reshape(8, 2), np.linspace(0, 1, 8).reshape(8, 1)


@pytest.mark.parametrize("name", list(CALLS))
def test_data_are_let_go(name):
    params = nbprop.init(NET, seed=1)
    CALLS[name](params, *data())  # the first call of a signature compiles, and Numba lets go later
    gc.collect()
    gc.disable()
    try:
        x, y = data()
        held = [weakref.ref(x), weakref.ref(y)]
        CALLS[name](params, x, y)
        del x, y
        assert [ref() is None for ref in held] == [True, True]
    finally:
        gc.enable()
