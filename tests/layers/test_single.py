"""Plans for one sample lower dense layers to ops of their own: against the ops of a batch, at every kind of width."""

import numpy as np
import pytest

import nbprop
from nbprop.layers import ACTIVATIONS
from nbprop.program import table
from support.cases import Buffers, close, same_bits

# Columns below a vector, a whole one and more, groups of 1, 2, 4 and 8 vectors; the last is too large to be single.
WIDTHS = (1, 2, 3, 16, 17, 40, 70, 131, 300)


def results(plan, params, x, dy, accumulate):
    buffers = Buffers()
    work = buffers.poisoned((plan.work_size,), plan.dtype)
    y, dx = buffers.poisoned(dy.shape, plan.dtype), buffers.poisoned(x.shape, plan.dtype)
    grads = buffers.poisoned(params.shape, plan.dtype)
    if accumulate:
        grads[:] = params
    nbprop.forward(plan, params, x, y, work)
    nbprop.backward(plan, params, x, dy, grads, dx, work, accumulate)
    without = buffers.poisoned(params.shape, plan.dtype)
    without[:] = params if accumulate else np.nan
    nbprop.vjp(plan, params, x, dy, without, None, work, accumulate)
    buffers.check()
    same_bits("grads without dx", without, grads)
    return y, grads, dx


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n_out", WIDTHS)
def test_one_sample_as_in_a_batch(n_out, dtype):
    rng = np.random.default_rng(n_out)
    for n_in, activation, bias in ((1, "tanh", True), (9, "relu", False), (133, "sigmoid", True)):
        net = nbprop.network((n_in,), nbprop.dense(n_out, activation, bias=bias), nbprop.dense(3, bias=False))
        params = rng.standard_normal(net.n_params).astype(dtype)
        x, dy = rng.standard_normal((1, n_in)).astype(dtype), rng.standard_normal((1, 3)).astype(dtype)
        x[0, 0], dy[0, 1] = 0, -0.0  # zeros have signs, too
        single, batch = (nbprop.plan(net, None, size, dtype, threads=2) for size in (1, 2))
        names = [op.kernel.name.split(".")[-1] for op in single.ops(table.FORWARD)]
        assert ("dense_single" in names[0]) == (n_in * n_out <= 1 << 15)
        for accumulate in (False, True):
            given, wanted = (results(plan, params, x, dy, accumulate) for plan in (single, batch))
            for name, mine, theirs in zip(("y", "grads", "dx"), given, wanted, strict=True):
                same_bits(name, mine, theirs)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation(name):
    """Those whose slope needs their input, and softmax, follow the product as an op."""
    net, rng = nbprop.network((5,), nbprop.dense(7, name), nbprop.dense(2)), np.random.default_rng(0)
    params, x, dy = nbprop.init(net), rng.standard_normal((1, 5)), rng.standard_normal((1, 2))
    given, wanted = (results(nbprop.plan(net, batch=size), params, x, dy, False) for size in (1, 2))
    for mine, theirs in zip(given, wanted, strict=True):
        close(name, mine, theirs, 1e-14)


def test_derivatives_of_one_sample():
    """Programs with tangents keep the general ops, those of single samples do not."""
    net, rng = nbprop.network((5,), nbprop.dense(7, "tanh"), nbprop.dense(2)), np.random.default_rng(0)
    params, x, target = nbprop.init(net, seed=1), rng.standard_normal((1, 5)), rng.standard_normal((1, 2))
    found = []
    for size in (1, 2):
        plan = nbprop.plan(net, "mse", batch=size)
        work, matrix = nbprop.workspace(plan), np.empty((2, net.n_params))
        rows, product = np.empty((1, net.n_params)), np.empty(net.n_params)
        nbprop.jacobian(plan, params, x, matrix, work)
        nbprop.per_sample_grads(plan, params, x, target, rows, work)
        nbprop.hvp(plan, params, params, x, target, product, work)
        found.append((matrix, rows, product))
    for mine, theirs in zip(*found, strict=True):
        close("derivative", mine, theirs, 1e-14)
