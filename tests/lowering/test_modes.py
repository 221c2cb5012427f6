"""What layers may rely on beside arrays: the plan's mode, state that calls carry on, lengths of sequences, positions.

One layer made for the purpose uses all of them; it counts calls and positions.
"""

from dataclasses import dataclass

import numba
import numpy as np
import pytest

import nbprop
from nbprop.lowering.plan import MODES
from nbprop.networks.layer import Layer
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at
from nbprop.program.kernel import kernel


@kernel
def tally_forward(y, calls, sums, x, n, positions, width, counts, step, lengths_address, lengths_code):
    """y = x + calls + step where a position counts, else 0; calls += counts; sums[i] += positions of sample i."""
    calls[0] += like(calls[0], counts)
    for i in range(n):
        length = length_at(lengths_address, lengths_code, i, positions)
        sums[i] += length
        for t in range(positions):
            for j in range(width):
                place = (i * positions + t) * width + j
                y[place] = x[place] + calls[0] + step if t < length else like(x[place], 0.0)


@kernel
def tally_backward(dx, dy, n, positions, width, lengths_address, lengths_code):
    """dx = dy where a position counts, else 0."""
    for i in range(n):
        length = length_at(lengths_address, lengths_code, i, positions)
        for t in range(positions):
            for j in range(width):
                place = (i * positions + t) * width + j
                dx[place] = dy[place] if t < length else like(dy[place], 0.0)


@dataclass(frozen=True)
class Tally(Layer):
    kind = "tally"
    modal = True
    takes_lengths = True

    def lower(self, build, x, path, names):
        sums, calls = build.state(1, each_sample=True), build.state(1, 10.0)
        y, sizes = build.value(x.shape), x.shape
        counts = int(build.mode == "training")
        build.emit(tally_forward, (y.buffer,), (x.buffer,), (*sizes, counts), inplace=(calls, sums))

        def rule(dy):
            dx = build.buffer(build.batch * x.size)
            build.emit(tally_backward, (dx,), (dy,), sizes)
            build.accumulate_gradient(x, dx)

        build.on_backward(y, rule)
        return y


NET = nbprop.network((3, 2), Tally(), nbprop.dense(1, bias=False))
BATCH = 4


@pytest.fixture(scope="module")
def plans():
    return {mode: nbprop.plan(NET, None if mode == "decoding" else "mse", BATCH, mode=mode) for mode in MODES}


def run(plan, state, x, **more):
    y = np.full((len(x), *plan.output_shape), np.nan)
    nbprop.forward(plan, np.ones(2), x, y, nbprop.workspace(plan), state, **more)
    return y


def test_state_is_carried_and_begins_as_the_layer_says(plans):
    plan = plans["training"]
    state = nbprop.layer_state(plan)
    assert state.tolist() == [10, 0, 0, 0, 0], "what does not depend on the batch comes first"
    x = np.zeros((2, 3, 2))
    assert (run(plan, state, x) == 22).all()
    assert (run(plan, state, x, step=5) == 34).all()
    assert state.tolist() == [12, 6, 6, 0, 0]
    assert (run(plans["inference"], state, x) == 24).all(), "the mode reaches the kernel"


def test_lengths_say_which_positions_count(plans):
    plan, x = plans["training"], np.zeros((2, 3, 2))
    for kind in (np.int64, np.uint8, np.int16):
        y = run(plan, nbprop.layer_state(plan), x, lengths=np.array([1, 3], kind))
        assert (y[..., 0] == [[22, 0, 0], [22, 22, 22]]).all()
    grads, dx, work = np.empty(2), np.empty_like(x), nbprop.workspace(plan)
    lengths, dy = np.array([1, 2]), np.ones((2, 3, 1))
    nbprop.backward(plan, np.ones(2), x, dy, grads, dx, work, False, nbprop.layer_state(plan), 0, lengths)
    assert (dx[..., 0] == [[1, 0, 0], [1, 1, 0]]).all()


def test_decoding_takes_a_position_at_a_time(plans):
    plan = plans["decoding"]
    assert (plan.input_shape, plan.output_shape) == ((1, 2), (1, 1))
    state = nbprop.layer_state(plan)
    assert [run(plan, state, np.zeros((1, 1, 2)), step=t).item() for t in range(3)] == [20, 22, 24]
    with pytest.raises(ValueError, match=r"step must be a position in 0\.\.2"):
        run(plan, state, np.zeros((1, 1, 2)), step=3)
    x, dy, grads, work = np.zeros((1, 1, 2)), np.ones((1, 1, 1)), np.empty(2), nbprop.workspace(plan)
    with pytest.raises(ValueError, match="only runs forward"):
        nbprop.backward(plan, np.ones(2), x, dy, grads, None, work, False, state)


@numba.njit
def compiled(plan, params, x, target, grads, work, state, lengths):
    return nbprop.value_and_grad(plan, params, x, target, grads, work, None, False, state, 1, lengths)


def test_compiled_code_passes_the_same(plans):
    plan, x, target = plans["training"], np.zeros((2, 3, 2)), np.ones((2, 3, 1))
    results = []
    for call in (compiled.py_func, compiled):
        state, grads = nbprop.layer_state(plan), np.empty(2)
        loss = call(plan, np.ones(2), x, target, grads, nbprop.workspace(plan), state, np.array([1, 3]))
        results.append((loss, *grads, *state))
    assert results[0] == results[1]
    with pytest.raises(ValueError, match="lengths must hold lengths"):
        compiled(plan, np.ones(2), x, target, grads, nbprop.workspace(plan), state, np.array([1, 4]))
    with pytest.raises(numba.core.errors.TypingError, match="lengths must hold integers"):
        compiled(plan, np.ones(2), x, target, grads, nbprop.workspace(plan), state, np.array([1.0, 3.0]))


WRONG = {
    "a state of another size": ({"state": np.zeros(4)}, r"state must have shape \(5,\), got .*layer_state"),
    "no state": ({"state": None}, "state is needed"),
    "lengths for fewer samples": ({"lengths": np.array([1])}, "lengths must bring as many samples as x"),
    "a length of zero": ({"lengths": np.array([0, 1])}, r"lengths must hold lengths in 1\.\.3, got 0"),
    "a length beyond the sequence": ({"lengths": np.array([1, 4])}, r"lengths must hold lengths in 1\.\.3, got 4"),
    "lengths that are no integers": ({"lengths": np.array([1.0, 2.0])}, "lengths must hold integers"),
    "a list of lengths": ({"lengths": [1, 2]}, "lengths must be a NumPy array"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_what_is_refused(plans, case):
    given, message = WRONG[case]
    plan, x = plans["training"], np.zeros((2, 3, 2))
    arguments = {"state": nbprop.layer_state(plan)} | given
    before = None if arguments["state"] is None else arguments["state"].copy()
    y = np.full((2, 3, 1), np.nan)
    with pytest.raises((TypeError, ValueError), match=message):
        nbprop.forward(plan, np.ones(2), x, y, nbprop.workspace(plan), **arguments)
    assert np.isnan(y).all()
    assert before is None or (arguments["state"] == before).all()


def test_state_may_not_alias(plans):
    plan, work = plans["training"], nbprop.workspace(plans["training"])
    with pytest.raises(ValueError, match=r"(state|work) is written and shares memory with (state|work)"):
        nbprop.forward(plan, np.ones(2), np.zeros((2, 3, 2)), np.empty((2, 3, 1)), work, work[:5])


def test_networks_without_state_take_none(regressor):
    given = nbprop.init(regressor.net), np.zeros((1, 3)), np.full((1, 2), np.nan), nbprop.workspace(regressor)
    with pytest.raises(ValueError, match=r"state must have shape \(0,\), got float64 array of shape \(10,\)"):
        nbprop.forward(regressor, *given, np.zeros(10))
    assert np.isnan(given[2]).all()
    nbprop.forward(regressor, *given, nbprop.layer_state(regressor))
    assert np.isfinite(given[2]).all()


def test_networks_without_such_layers_take_no_lengths(regressor):
    with pytest.raises(ValueError, match="lengths is for networks with a layer that takes lengths"):
        nbprop.forward(
            regressor,
            nbprop.init(regressor.net),
            np.zeros((1, 3)),
            np.empty((1, 2)),
            nbprop.workspace(regressor),
            lengths=np.array([1]),
        )


def test_plans_refuse_modes_that_do_not_fit():
    with pytest.raises(ValueError, match="mode: unknown name 'trainin'; did you mean 'training'"):
        nbprop.plan(NET, "mse", mode="trainin")
    with pytest.raises(ValueError, match="only runs forward; leave the loss out"):
        nbprop.plan(NET, "mse", mode="decoding")
    with pytest.raises(ValueError, match=r"layer 0\.flatten makes of one position"):
        nbprop.plan(nbprop.network((3, 2), nbprop.flatten(), nbprop.dense(1)), mode="decoding")


def test_fit_validates_as_in_use_and_leaves_the_state_to_training():
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((8, 3, 2)), rng.standard_normal((8, 3, 1))
    seen, params = [], np.zeros(2)
    plan = nbprop.plan(NET, "mse", BATCH)
    state, lengths = nbprop.layer_state(plan), np.full(8, 3)
    nbprop.fit(
        NET,
        params,
        x,
        target,
        "mse",
        "sgd",
        lr=0.0,
        batch=BATCH,
        epochs=3,
        validation=(x, target, None, lengths),
        lengths=lengths,
        callback=lambda history: seen.append(state[0]),
        state=state,
    )
    assert seen == [12, 14, 16], "two steps an epoch count, validation does not"
