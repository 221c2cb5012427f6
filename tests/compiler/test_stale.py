"""Code of a user's own that changes while a process lives: what is made anew has the new code, what exists the old."""

import dataclasses

import numba
import numpy as np
import pytest

import nbprop
from nbprop.compiler import fingerprint as sources
from nbprop.losses import Loss
from nbprop.networks.layer import Layer
from nbprop.program.kernel import kernel

HELPERS = """
SCALE = 2.0
@numba.njit
def inner(x):
    return x * SCALE
@numba.njit
def outer(x, shift=0.0):
    return inner(x) + shift
"""
LAYER = """
@numba.njit
def forward(y, x, n, size):
    for i in range(n * size):
        y[i] = outer(x[i])
@numba.njit
def backward(dx, dy, x, y, n, size):
    for i in range(n * size):
        dx[i] = dy[i]
layer = nbprop.custom("stale", forward, backward)
"""


def at_one(plan):
    """What a plan's layer makes of ones."""
    y = np.full((1, 2), np.nan)
    nbprop.forward(plan, np.empty(0), np.ones((1, 2)), y, nbprop.workspace(plan))
    assert y[0, 0] == y[0, 1]
    return y[0, 0]


def plan_of(layer):
    return nbprop.plan(nbprop.network((2,), layer), batch=1)


def test_cells_that_run_again(registries):
    """Globals, helpers, helpers' helpers and defaults count as they are when the plan is made; old plans stay."""
    space = {"numba": numba, "nbprop": nbprop, "__name__": "notebook"}

    def run(cell):
        exec(cell, space)

    run(HELPERS + LAYER)
    net = nbprop.network((2,), space["layer"]())
    first = nbprop.plan(net, batch=1)
    assert at_one(first) == 2.0
    assert nbprop.plan(net, batch=1).table.tolist() == first.table.tolist(), "the same code has another fingerprint"
    for cell, wanted in (
        ("SCALE = 3.0", 3.0),
        ("@numba.njit\ndef inner(x): return x * SCALE * SCALE", 9.0),
        ("@numba.njit\ndef outer(x, shift=1.0): return inner(x) + shift", 10.0),
        (LAYER.replace("outer(x[i])", "outer(x[i], 2.0)"), 11.0),
    ):
        run(cell)
        if "custom" in cell:
            net = nbprop.network((2,), space["layer"]())
        assert at_one(nbprop.plan(net, batch=1)) == wanted, cell
    assert at_one(first) == 2.0


def test_elementwise_defined_again(registries):
    for factor in (2.0, 3.0):
        own = nbprop.elementwise("stale", numba.njit(lambda x, f=factor: f * x), numba.njit(lambda x, y: 1.0))
        assert at_one(plan_of(own())) == factor


def test_gradcheck_of_a_layer_that_was_corrected(registries):
    """The mistake is found, and found no more once it is corrected."""
    square = numba.njit(lambda x: x * x)
    wrong = nbprop.elementwise("stale", square, numba.njit(lambda x, y: x))
    with pytest.raises(ValueError, match="gradcheck"):
        nbprop.gradcheck(nbprop.network((2,), wrong()))
    right = nbprop.elementwise("stale", square, numba.njit(lambda x, y: 2 * x))
    assert nbprop.gradcheck(nbprop.network((2,), right()))["x"] < 1e-7


def layer_class(factor):
    @kernel
    def stale_forward(y, x, n, size):
        for i in range(n * size):
            y[i] = factor * x[i]

    @dataclasses.dataclass(frozen=True)
    class Stale(Layer):
        kind = "stale"

        def lower(self, build, x, path, names):
            y = build.value(x.shape)
            build.emit(stale_forward, (y.buffer,), (x.buffer,), (x.size,))
            build.on_backward(y, lambda dy: build.accumulate_gradient(x, dy))
            return y

    return Stale


def test_a_layers_class_defined_again(registries):
    """Kernels of the same name, one by one."""
    assert [at_one(plan_of(layer_class(factor)())) for factor in (2.0, 3.0)] == [2.0, 3.0]


def loss_class(factor):
    @kernel
    def stale_loss(losses, dy, y, target, weights, n, rows, size):
        for i in range(n * rows):
            losses[i] = factor

    @kernel
    def stale_curvature(dy_dot, y_dot, y, target, weights, n, rows, size):
        for i in range(n * rows * size):
            dy_dot[i] = factor * y_dot[i]

    @dataclasses.dataclass(frozen=True)
    class Stale(Loss):
        kind = "stale"
        kernel = stale_loss
        curvature = fisher = stale_curvature

    return Stale


def test_a_loss_defined_again(registries):
    """By its name and as an object."""
    net = nbprop.network((2,), nbprop.flatten())
    for factor in (2.0, 3.0):
        loss = loss_class(factor)()
        for given in ("stale", loss):
            plan = nbprop.plan(net, given, batch=1)
            arrays = np.empty(0), np.ones((1, 2)), np.zeros((1, 2))
            assert nbprop.value(plan, *arrays, nbprop.workspace(plan)) == factor


def test_plans_of_nbprops_own_code_are_remembered(regressor):
    assert nbprop.plan(regressor.net, loss="mse", batch=6) is nbprop.plan(regressor.net, loss="mse", batch=6)


def test_a_plan_in_compiled_code_is_told_apart():
    """Compiled code freezes a plan that it names; plans with the same text are others where their tables are."""
    net = nbprop.network((2,), nbprop.dense(3))
    digests = set()
    for loss in (nbprop.huber(delta=1.0), nbprop.huber(delta=2.0)):
        plan = nbprop.plan(net, loss, batch=1)

        def named():
            return plan  # noqa: B023 - looked at at once

        digests.add(sources.digest_of(named))
    assert len(digests) == 2
