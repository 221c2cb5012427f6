"""Max norm: against a loop over columns, in @njit, in fit, and what is refused."""

import numba
import numpy as np
import pytest

import nbprop

NET = nbprop.network((6, 5), nbprop.conv1d(4, 2, activation="tanh"), nbprop.rnn(3, output="last"), nbprop.dense(131))


def projected(net, params, limit, frozen=None):
    """Each column of each weight scaled by itself."""
    out = params.astype(np.float64)
    fixed = np.zeros(net.n_params, bool) if frozen is None else frozen
    for (name, part), fixed_part in zip(nbprop.views(net, out).items(), nbprop.views(net, fixed).values(), strict=True):
        if part.ndim > 1 and "norm" not in name:
            columns, kept = part.reshape(-1, part.shape[-1]), fixed_part.reshape(-1, part.shape[-1])
            for j in range(columns.shape[1]):
                length = np.linalg.norm(columns[:, j])
                if length > limit and not kept[:, j].any():
                    columns[:, j] *= limit / length
    return out


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_columns_are_scaled(dtype):
    params = np.random.default_rng(0).standard_normal(NET.n_params).astype(dtype)
    given, matrices = params.copy(), nbprop.weight_matrices(NET)
    assert matrices.tolist() == [[0, 10, 4], [44, 4, 3], [56, 3, 3], [68, 3, 131]]
    wanted = projected(NET, params, 1.5)
    nbprop.max_norm(params, matrices, 1.5)
    assert np.abs(params - wanted).max() < 10 * np.finfo(dtype).eps
    biases = [part for name, part in nbprop.views(NET, params == given).items() if name.endswith("bias")]
    assert all(part.all() for part in biases)
    if dtype == np.float64:
        _compiled(given, matrices, 1.5)
        assert np.array_equal(given, params)


def test_fit_projects_after_each_update():
    rng = np.random.default_rng(1)
    net = nbprop.network((3,), nbprop.dense(4, activation="tanh"), nbprop.weight_norm(nbprop.dense(1)))
    assert nbprop.weight_matrices(net).tolist() == [[0, 3, 4]]
    x, target, limit = rng.standard_normal((8, 3)), rng.standard_normal((8, 1)), 0.8
    plan = nbprop.plan(net, "mse", batch=8)
    by_hand, grads, work = nbprop.init(net, seed=1), np.empty(net.n_params), nbprop.workspace(plan)
    params, state = by_hand.copy(), nbprop.optimizer_state("momentum", net.n_params)
    trainable = np.arange(net.n_params) != 4  # a weight of unit 0, which is then left alone
    for step in range(5):
        nbprop.value_and_grad(plan, by_hand, x, target, grads, work)
        nbprop.momentum(by_hand, grads, state, step, lr=0.1, trainable=trainable)
        by_hand = projected(net, by_hand, limit, ~trainable)
    options = {"batch": 8, "epochs": 5, "shuffle": False, "trainable": trainable, "max_norm": limit}
    nbprop.fit(net, params, x, target, "mse", "momentum", 0.1, **options)
    assert np.abs(params - by_hand).max() < 1e-14
    lengths = np.linalg.norm(nbprop.views(net, params)["0.dense.weight"], axis=0)
    assert lengths[0] > limit
    assert (lengths[1:] < limit + 1e-15).all()
    assert (lengths[1:] > limit - 1e-15).any()


def test_a_resumed_run_knows_its_projection(tmp_path):
    x, path = np.ones((4, 3)), tmp_path / "run"
    net = nbprop.network((3,), nbprop.dense(1))
    options = {"loss": "mse", "max_norm": 1.0, "checkpoint": path}
    nbprop.fit(net, nbprop.init(net), x, x[:, :1].copy(), epochs=1, **options)
    nbprop.fit(net, nbprop.init(net), x, x[:, :1].copy(), epochs=2, resume=True, **options)
    with pytest.raises(ValueError, match="of another run: its max_norm"):
        nbprop.fit(net, nbprop.init(net), x, x[:, :1].copy(), epochs=2, resume=True, **options | {"max_norm": 2.0})


def test_what_is_refused():
    net = nbprop.network((3,), nbprop.dense(2))
    params, matrices, x = nbprop.init(net), nbprop.weight_matrices(net), np.ones((4, 3))
    with pytest.raises(ValueError, match="max_norm does not go with schedule_free_adamw"):
        nbprop.fit(net, params, x, x[:, :2].copy(), "mse", "schedule_free_adamw", max_norm=1.0)
    with pytest.raises(ValueError, match="fit: max_norm must be a finite number above 0, got 0"):
        nbprop.fit(net, params, x, x[:, :2].copy(), "mse", max_norm=0)
    for wrong in ([[0, 3, 3]], [[6, 1, 3]], [[-1, 1, 1]], [[0, 2**62, 4]]):
        matrices[:] = wrong
        with pytest.raises(ValueError, match=r"matrices must hold the offset, rows and units .* row 0 is"):
            nbprop.max_norm(params, matrices, 1.0)
        with pytest.raises(ValueError, match="matrices must hold the offset, rows and units"):
            _compiled(params, matrices, 1.0)
    with pytest.raises(ValueError, match="limit must be a finite number above 0"):
        _compiled(params, nbprop.weight_matrices(net), 0.0)
    with pytest.raises(numba.core.errors.TypingError, match=r"nbprop.max_norm: matrices must hold int64, got float64"):
        _compiled(params, params.reshape(-1, 2), 1.0)
    assert np.array_equal(params, nbprop.init(net))


@numba.njit
def _compiled(params, matrices, limit):
    nbprop.max_norm(params, matrices, limit)
