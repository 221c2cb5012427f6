"""`bind`: value_and_grad with most of its arguments in place; right whatever becomes of the arrays."""

import gc

import numpy as np
import pytest

import nbprop
from support import cases


@pytest.fixture
def given(classifier):
    rng = np.random.default_rng(2)
    x, target, _ = cases.data(classifier, 5, rng, ties=False)
    params = nbprop.init(classifier.net, seed=1)
    return classifier, params, x, target


def test_the_bits_of_value_and_grad(given):
    plan, params, x, target = given
    wanted, grads = np.empty_like(params), np.full_like(params, np.nan)
    gradient = nbprop.bind(plan, params, grads, nbprop.workspace(plan))
    for n in (5, 2):
        params += 0.125  # it sees the change
        loss = nbprop.value_and_grad(plan, params, x[:n], target[:n], wanted, nbprop.workspace(plan))
        assert gradient(x[:n], target[:n]) == loss
        cases.same_bits("grads", grads, wanted)


def test_state_and_step():
    net = nbprop.network((3,), nbprop.batchnorm(), nbprop.dropout(0.5), nbprop.dense(2))
    plan, params = nbprop.plan(net, "mse", batch=6), nbprop.init(net)
    x, target = np.arange(18.0).reshape(6, 3), np.ones((6, 2))
    first, second = nbprop.layer_state(plan), nbprop.layer_state(plan)
    grads, wanted, work = np.empty_like(params), np.empty_like(params), nbprop.workspace(plan)
    gradient = nbprop.bind(plan, params, grads, work, first)
    for step in (0, 7):
        loss = nbprop.value_and_grad(plan, params, x, target, wanted, nbprop.workspace(plan), state=second, step=step)
        assert gradient(x, target, step) == loss
        cases.same_bits("grads", grads, wanted)
        cases.same_bits("state", first, second)
    with pytest.raises(TypeError, match="bind: state must be a NumPy array"):
        nbprop.bind(plan, params, grads, work)


def test_its_arrays_live_as_long_as_it_does(given):
    plan, params, x, target = given
    wanted = nbprop.value_and_grad(plan, params, x, target, np.empty_like(params), nbprop.workspace(plan))
    gradient = nbprop.bind(plan, params.copy(), np.empty_like(params), nbprop.workspace(plan))
    gc.collect()
    filler = [np.full(params.size, 7.0) for _ in range(50)]
    assert gradient(x, target) == wanted
    assert len(filler) == 50


def test_arrays_that_have_changed_since_are_looked_at_again(given):
    """Made read-only, or given another size or memory: refused by name, or used as they are now."""
    plan, params, x, target = given
    grads, work = np.full(params.size, np.nan), nbprop.workspace(plan)
    gradient = nbprop.bind(plan, params, grads, work)
    grads.flags.writeable = False
    with pytest.raises(ValueError, match="bind: grads is written and must not be read-only"):
        gradient(x, target)
    grads.flags.writeable = True
    loss = gradient(x, target)
    moved = nbprop.init(plan.net, seed=1)
    again = nbprop.bind(plan, moved, grads, work)
    moved.resize(moved.size + 1000, refcheck=False)
    with pytest.raises(ValueError, match="bind: params must have shape"):
        again(x, target)
    moved.resize(params.size, refcheck=False)
    assert again(x, target) == loss


def test_what_is_wrong_is_named(given):
    plan, params, x, target = given
    grads, work = np.full(params.size, 3.0), nbprop.workspace(plan)
    for name, wrong, said in (
        ("params", params[1:], "bind: params must have shape"),
        ("grads", params, "bind: grads is written and shares memory with params"),
        ("work", work[:-1], "bind: work must have shape"),
    ):
        arguments = {"params": params, "grads": grads, "work": work} | {name: wrong}
        with pytest.raises(ValueError, match=said):
            nbprop.bind(plan, **arguments)
    with pytest.raises(ValueError, match="bind: this plan has no loss"):
        nbprop.bind(nbprop.plan(plan.net, batch=6), params, grads, work)
    gradient = nbprop.bind(plan, params, grads, work)
    for arguments, error, said in (
        ((x[:, :2].copy(), target), ValueError, "bind: x must have shape"),
        ((x, target[1:]), ValueError, "bind: target must bring as many samples as x"),
        ((x.tolist(), target), TypeError, "bind: x must be a NumPy array, got list"),
        ((x[:, ::-1], target), ValueError, "bind: x must be C-contiguous"),
        ((x, target, 1.5), TypeError, "bind: step must be an integer"),
        ((work[: x.size].reshape(x.shape), target), ValueError, "bind: work is written and shares memory with x"),
    ):
        with pytest.raises(error, match=said):
            gradient(*arguments)
    assert (grads == 3.0).all()


def test_memory_maps_are_taken(given, tmp_path):
    plan, params, x, target = given
    mapped = np.memmap(tmp_path / "x", np.float64, "w+", shape=x.shape)
    mapped[:] = x
    held = np.memmap(tmp_path / "params", np.float64, "w+", shape=params.shape)
    held[:] = params
    gradient = nbprop.bind(plan, held, np.empty_like(params), nbprop.workspace(plan))
    assert gradient(mapped, target) == gradient(x, target)
