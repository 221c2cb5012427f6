"""Plans for use on the device, and layers' state there, against the CPU."""

import numpy as np
import pytest

import nbprop
import nbprop.cuda
from support.cases import close

device = nbprop.cuda.to_device
BATCHNORM = nbprop.network((3,), nbprop.batchnorm(momentum=0.3, epsilon=0.1))


def forward(plan, params, x, state, lengths=None, step=0):
    """The output; `state` is carried on."""
    y, work = np.full((len(x), *plan.output_shape), np.nan, plan.dtype), nbprop.workspace(plan)
    if plan.target == "cpu":
        nbprop.forward(plan, params, x, y, work, state, step, lengths)
        return y
    y, lengths = device(y), None if lengths is None else device(lengths)
    nbprop.forward(plan, device(params), device(x), y, work, state, step, lengths)
    return y.to_host()


def both(*arguments, **options):
    return [nbprop.plan(*arguments, target=target, **options) for target in ("cpu", "cuda")]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_batch_normalization_over_blocks_of_rows_and_in_use(dtype):
    """Rows in three blocks, of features far from zero, too; then the running statistics of two calls count."""
    # In float64 the CPU's mean is one number, and rounds what is far from zero.
    rng, n, tolerance = np.random.default_rng(0), 150, 1e-5 if dtype == np.float32 else 1e-10
    x = (np.array([0, 1e3, -3e5]) + rng.integers(-8, 9, (n, 3))).astype(dtype)
    params, dy = np.arange(6).astype(dtype), rng.standard_normal((n, 3)).astype(dtype)
    states, found = [], []
    for plan in both(BATCHNORM, batch=n, dtype=dtype):
        here = device if plan.target == "cuda" else np.copy
        state, grads, dx = nbprop.layer_state(plan), here(np.empty(6, dtype)), here(np.empty_like(x))
        for _ in range(2):
            nbprop.vjp(plan, here(params), here(x), here(dy), grads, dx, nbprop.workspace(plan), state=state)
        states.append(state)
        found.append([a.to_host() if plan.target == "cuda" else a for a in (grads, dx, state[:3], state[3:])])
    for name, wanted, got in zip(("grads", "dx", "running mean", "running variance"), *found, strict=True):
        close(name, got, wanted, tolerance)
    host, there = both(BATCHNORM, batch=n, dtype=dtype, mode="inference")
    close("y", forward(there, params, x, states[1]), forward(host, params, x, states[0]), tolerance)


def test_a_batch_of_one_row_is_refused():
    plan = nbprop.plan(BATCHNORM, batch=2, dtype=np.float32, target="cuda")
    with pytest.raises(ValueError, match="x must bring at least 2 samples"):
        forward(plan, np.ones(6, np.float32), np.ones((1, 3), np.float32), nbprop.layer_state(plan))


@pytest.mark.parametrize("causal", [True, False])
def test_attention_with_lengths(causal):
    """Heads wider than a tile, over two blocks of positions (on a GPU three), of which some samples have none."""
    scale, rng = 1 if nbprop.cuda.simulated() else 25, np.random.default_rng(1)
    positions, width, lengths = 6 * scale, 2 * (5 if scale == 1 else 80), [2 * scale, 6 * scale, 4 * scale]
    net = nbprop.network((positions, width), nbprop.attention(2, causal=causal))
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-12)):
        params = nbprop.init(net, dtype=dtype)
        x, dy = (rng.standard_normal((3, positions, width)).astype(dtype) for _ in range(2))
        found = []
        for plan in both(net, batch=4, dtype=dtype):
            here = device if plan.target == "cuda" else np.copy
            grads, dx = here(np.empty_like(params)), here(np.empty_like(x))
            given = here(params), here(x), here(dy), grads, dx, nbprop.workspace(plan)
            nbprop.vjp(plan, *given, lengths=here(np.array(lengths)))
            y = forward(plan, params, x, None, np.array(lengths))
            found.append([y, *(a.to_host() if plan.target == "cuda" else a for a in (grads, dx))])
        for name, wanted, got in zip(("y", "grads", "dx"), *found, strict=True):
            close(f"{name}, {np.dtype(dtype)}", got, wanted, tolerance)


def test_attention_decodes_as_it_attends():
    """Position by position, keys and values kept in the layer state, against the whole sequence at once."""
    net, rng = nbprop.network((3, 6), nbprop.positions(), nbprop.attention(2)), np.random.default_rng(2)
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-12)):
        params, x = nbprop.init(net, dtype=dtype), rng.standard_normal((2, 3, 6)).astype(dtype)
        plan = nbprop.plan(net, batch=2, dtype=dtype, mode="decoding", target="cuda")
        state = nbprop.layer_state(plan)
        y = [forward(plan, params, x[:, t : t + 1], state, step=t) for t in range(3)]
        close(
            "y", np.concatenate(y, axis=1), forward(nbprop.plan(net, batch=2, dtype=dtype), params, x, None), tolerance
        )
