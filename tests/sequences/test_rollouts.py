"""Gradients through a rollout with a network inside: central differences, any spacing of checkpoints, same bits."""

import collections

import numba
import numpy as np
import pytest

import nbprop
from nbprop.compiler.intrinsics import borrowed

NET = nbprop.network((3,), nbprop.dense(8, activation="tanh"), nbprop.dense(3))
PLAN = nbprop.plan(NET, batch=1)
STEPS = 50
Data = collections.namedtuple("Data", "plan params grads work x y dy dx")


@numba.njit
def step(x_next, x, t, data):
    """x + 0.1 (network(x) - x^3 + sin(t / 5))."""
    data.x[0] = x
    nbprop.forward(data.plan, data.params, data.x, data.y, data.work)
    for i in range(x.size):
        x_next[i] = x[i] + 0.1 * (data.y[0, i] - x[i] ** 3 + np.sin(t / 5))


@numba.njit
def adjoint(lam_x, lam_next, x, t, data):
    data.x[0] = x
    for i in range(x.size):
        data.dy[0, i] = 0.1 * lam_next[i]
    nbprop.vjp(data.plan, data.params, data.x, data.dy, data.grads, data.dx, data.work, True)
    for i in range(x.size):
        lam_x[i] = lam_next[i] * (1 - 0.3 * x[i] ** 2) + data.dx[0, i]


@numba.njit
def loss_gradient(lam, x, t, data):
    """Of the sum over time of |x|^2, half of it at the end."""
    lam += 2 * x * (0.5 if t == STEPS else 0.01)


def make_data(params):
    arrays = [np.empty((1, 3)) for _ in range(4)]
    return Data(PLAN, params, np.zeros_like(params), nbprop.workspace(PLAN), *arrays)


def loss_of(params, start):
    kept, segment, _ = nbprop.rollout_buffers(STEPS, 3)
    end = nbprop.rollout(step, start, STEPS, kept, segment, make_data(params))
    return 0.5 * (end**2).sum() + 0.01 * (kept**2).sum()


def gradients(params, start, every):
    data = make_data(params)
    kept, segment, lam = nbprop.rollout_buffers(STEPS, 3, every)
    nbprop.rollout(step, start, STEPS, kept, segment, data)
    by_start = nbprop.rollout_adjoint(step, adjoint, loss_gradient, STEPS, kept, segment, lam, data)
    return data.grads, by_start.copy()


PARAMS, START = nbprop.init(NET, seed=4), np.array([0.5, -0.3, 0.8])


def test_against_central_differences():
    grads, by_start = gradients(PARAMS, START, 1)
    h = 1e-6
    for k in range(0, PARAMS.size, 5):
        unit = h * (np.arange(PARAMS.size) == k)
        difference = (loss_of(PARAMS + unit, START) - loss_of(PARAMS - unit, START)) / (2 * h)
        assert abs(difference - grads[k]) <= 1e-8 * max(1, np.abs(grads).max())
    for k in range(3):
        unit = h * (np.arange(3) == k)
        difference = (loss_of(PARAMS, START + unit) - loss_of(PARAMS, START - unit)) / (2 * h)
        assert abs(difference - by_start[k]) <= 1e-8


@pytest.mark.parametrize("every", [2, 7, 49, 50, 51])
def test_checkpoints_change_no_bit(every):
    grads, by_start = gradients(PARAMS, START, 1)
    others, other_start = gradients(PARAMS, START, every)
    assert np.array_equal(grads, others)
    assert np.array_equal(by_start, other_start)


def test_bad_buffers():
    kept, segment, _ = nbprop.rollout_buffers(STEPS, 3, 7)
    with pytest.raises(ValueError, match="kept and segment do not fit"):
        nbprop.rollout(step, START, STEPS + 10, kept, segment, make_data(PARAMS))
    with pytest.raises(ValueError, match=r"every must be a positive integer, got 0"):
        nbprop.rollout_buffers(STEPS, 3, 0)


@numba.njit
def remember(x_next, x, t, data):
    """Keeps each state in a list, which outlives the call."""
    data[0].append(x)
    x_next[0] = x[0] + 1


def test_arrays_that_step_keeps_stay_alive():
    kept_by_step = numba.typed.List([np.full(1, -1.0)])
    nbprop.rollout(remember, np.zeros(1), 3, *nbprop.rollout_buffers(3, 1, 3)[:2], (kept_by_step,))
    others = [np.full((4, 1), np.nan) for _ in range(100)]  # would take the memory of the buffers
    assert [x[0] for x in kept_by_step] == [-1, 0, 1, 2]
    del others


def test_the_last_state_owns_its_memory():
    end = nbprop.rollout(step, np.ones(3), STEPS, *nbprop.rollout_buffers(STEPS, 3)[:2], make_data(nbprop.init(NET)))
    assert end.base is not None


@pytest.mark.parametrize("with_list", [False, True])
def test_borrowed_arrays_count_no_references(with_list):
    more = (numba.typed.List([1]),) if with_list else (1, np.ones(2))
    given = Data(PLAN, np.ones(1), np.ones((2, 1)), more, 2, None, "a" if with_list else 1.5, ())

    @numba.njit
    def arrays_of(data):
        found = borrowed((data,))[0]
        return found.params, found.grads

    for array, expected in zip(arrays_of(given), given[1:3], strict=True):
        np.testing.assert_array_equal(array, expected)
        # Numba hands out the very object only if it knows who owns the memory.
        assert (array is expected) == with_list
