"""What a function writes shares memory with no other argument, and nothing is written before that is known."""

import numba
import numpy as np
import pytest

import nbprop
from nbprop.runtime import arguments as arg
from nbprop.runtime.signatures import OUTPUTS, SIGNATURES

NET = nbprop.network((3,), nbprop.dense(4, "tanh"), nbprop.batchnorm(), nbprop.dense(3))
OTHERS = {"accumulate": False, "step": 0, "lengths": None}


@pytest.fixture(scope="module")
def plan():
    return nbprop.plan(NET, "mse", 3, mode="inference")


def arrays_of(function, plan, n=3):
    """{name: array} of a call."""
    rng, n_params = np.random.default_rng(0), plan.n_params
    shapes = {"params": (n_params,), "v": (n_params,), "grads": (n_params,), "weights": (n,)}
    if SIGNATURES[function].out:
        shapes["out"] = OUTPUTS[SIGNATURES[function].out][0](plan, n)
    shapes |= {name: (n, 3) for name in ("x", "target", "y", "dy", "dx")} | {"work": (plan.work_size,)}
    made = {name: rng.uniform(0.1, 1, shape) for name, shape in shapes.items()}
    made["state"] = nbprop.layer_state(plan)
    return {name: made[name] for name in SIGNATURES[function].parameters if name not in OTHERS}


@pytest.mark.parametrize("function", list(SIGNATURES))
def test_every_pair_with_a_written_array_is_refused(plan, function):
    written = [arg.NAMES[argument] for argument in SIGNATURES[function].written]
    names = list(arrays_of(function, plan))
    for name in written:
        for other in names:
            if other == name:
                continue
            arrays = arrays_of(function, plan)
            sizes = arrays[name].size, arrays[other].size
            # Both in one piece of memory, the smaller one inside the larger, or all but one element apart.
            for gap in (0, max(sizes) - min(sizes), sizes[0] - 1):
                room = np.random.default_rng(1).uniform(0.1, 1, gap + max(sizes))
                given = dict(arrays)
                first, second = (name, other) if sizes[0] >= sizes[1] or gap == sizes[0] - 1 else (other, name)
                given[first] = room[: arrays[first].size].reshape(arrays[first].shape)
                given[second] = room[gap : gap + arrays[second].size].reshape(arrays[second].shape)
                before = {key: array.copy() for key, array in given.items()}
                arguments = [given[key] if key in given else OTHERS[key] for key in SIGNATURES[function].parameters]
                with pytest.raises(ValueError, match="shares memory with"):
                    getattr(nbprop, function)(plan, *arguments)
                for key, array in before.items():
                    assert np.array_equal(given[key], array), f"{function}: {key} changed, {name} overlaps {other}"


def test_a_hessian_is_refused_before_its_first_row_is_written(plan):
    n_params = plan.n_params
    out, x = np.full((n_params, n_params), 7.0), np.ones((3, 3))
    for name in ("params", "x", "target", "weights", "work"):
        given = {"params": np.ones(n_params), "x": x, "target": x.copy(), "weights": np.ones(3)}
        given["work"] = nbprop.workspace(plan) if name != "work" else np.empty(0)
        wanted = plan.work_size if name == "work" else given[name].size
        room = np.full(n_params * n_params + wanted, 7.0)
        out = room[: n_params * n_params].reshape(n_params, n_params)
        given[name] = room[n_params * n_params - 1 :][:wanted].reshape(
            (wanted,) if name == "work" else given[name].shape
        )
        with pytest.raises(ValueError, match=f"hessian: out is written and shares memory with {name}"):
            nbprop.hessian(
                plan, given["params"], given["x"], given["target"], out, given["work"], given["weights"],
                nbprop.layer_state(plan),
            )  # fmt: skip
        assert (room == 7.0).all()


def overlapping(*sizes):
    """Arrays of these sizes that lie behind each other, the first two with one element in common."""
    room, found, first = np.full(sum(sizes), 0.5), [], 0
    for number, size in enumerate(sizes):
        found.append(room[first : first + size])
        first += size - (number == 0)
    return found


@pytest.mark.parametrize("swap", [False, True])
def test_solvers_and_optimizers(swap):
    n, m = 3, 5
    lm, lbfgs = nbprop.lm_state(n), nbprop.lbfgs_state(n)

    def sizes(solver):
        state = lm if solver == "lm" else lbfgs
        arrays = {"state": state, "theta": np.ones(n)}
        return arrays | (
            {"residuals": np.ones(m), "jacobian": np.ones((m, n))} if solver == "lm" else {"grad": np.ones(n)}
        )

    def step(solver, arrays):
        if solver == "lm":
            return nbprop.lm_step(arrays["state"], arrays["theta"], arrays["residuals"], arrays["jacobian"])
        return nbprop.lbfgs_step(arrays["state"], arrays["theta"], 1.0, arrays["grad"])

    for solver, written in (("lm", ("state", "theta")), ("lbfgs", ("state", "theta", "grad"))):
        for name in written:
            for other in sizes(solver):
                if name == other:
                    continue
                arrays = sizes(solver)
                pair = (other, name) if swap else (name, other)
                for key, piece in zip(pair, overlapping(*(arrays[key].size for key in pair)), strict=True):
                    if key == "state":
                        piece[:] = arrays[key]
                    arrays[key] = piece.reshape(arrays[key].shape)
                before = {key: array.copy() for key, array in arrays.items()}
                with pytest.raises(ValueError, match=r"shares memory with another argument|numbers that the solver"):
                    step(solver, arrays)
                assert all(np.array_equal(arrays[key], array) for key, array in before.items())
    for name, other in (("params", "grads"), ("params", "state"), ("state", "grads")):
        arrays = {"params": np.ones(n), "grads": np.ones(n), "state": nbprop.optimizer_state("adam", n)}
        pair = (other, name) if swap else (name, other)
        for key, piece in zip(pair, overlapping(*(arrays[key].size for key in pair)), strict=True):
            arrays[key] = piece
        with pytest.raises(ValueError, match="shares memory with another argument"):
            nbprop.adam(arrays["params"], arrays["grads"], arrays["state"], 0)


@numba.njit
def copy_step(x_next, x, t, data):
    for i in range(x.size):
        x_next[i] = 0.9 * x[i]


@numba.njit
def copy_adjoint(lam_x, lam_next, x, t, data):
    for i in range(x.size):
        lam_x[i] = 0.9 * lam_next[i]


@numba.njit
def square(lam, x, t, data):
    for i in range(x.size):
        lam[i] += 2 * x[i]


def test_rollouts_check_every_array():
    """Shapes and overlaps, whatever the caller hands in; lam of another shape was written outside of."""
    steps, every = 10, 3

    def simulate(start, kept, segment):
        return nbprop.rollout(copy_step, start, steps, kept, segment, 0.0)

    def back(kept, segment, lam):
        return nbprop.rollout_adjoint(copy_step, copy_adjoint, square, steps, kept, segment, lam, 0.0)

    kept, segment, lam = nbprop.rollout_buffers(steps, 4, every)
    simulate(np.ones(4), kept, segment)
    assert np.allclose(back(kept, segment, lam), sum(2 * 0.81**t for t in range(steps + 1)))
    big = np.full(64, 7.0)
    for rows, columns in ((1, 4), (2, 3), (3, 4), (2, 5), (0, 4)):
        with pytest.raises(ValueError, match="lam must have shape"):
            back(kept, segment, big[: rows * columns].reshape(rows, columns))
    assert (big == 7.0).all()
    for wrong in (np.ones(3), np.ones(5)):
        with pytest.raises(ValueError, match="start must have as many numbers"):
            simulate(wrong, kept, segment)
    for wrong in (kept[:2], kept[:, :3].copy(), segment):
        with pytest.raises(ValueError, match="rollout: kept and segment"):
            simulate(np.ones(4), wrong, segment)
    for name, call in (
        ("lam", lambda: back(kept, segment, segment[:2])),
        ("kept and segment", lambda: simulate(segment[1], kept, segment)),
        ("kept and segment", lambda: simulate(kept[0], kept, segment)),
    ):
        with pytest.raises(ValueError, match=f"{name} (is|are) written and shares? memory"):
            call()
    for name, wrong, kind in (
        ("lam", lam.tolist(), TypeError),
        ("lam", lam.astype(np.float32), TypeError),
        ("lam", lam[0], ValueError),
        ("lam", np.ones((4, 2)).T, ValueError),
        ("kept", np.ma.masked_array(kept), TypeError),
    ):
        given = {"kept": kept, "segment": segment, "lam": lam} | {name: wrong}
        with pytest.raises(kind, match=f"rollout_adjoint: {name} "):
            back(**given)
    with pytest.raises(TypeError, match=r"step must be a function compiled with @numba\.njit"):
        nbprop.rollout(lambda *a: None, np.ones(4), steps, kept, segment, 0.0)
