"""What lies beyond a sample's length is never multiplied: whatever stands there, each result has the same bits."""

import numpy as np
import pytest

import nbprop
from support.cases import same_bits

T, C, N = 5, 4, 3
LENGTHS = np.array([2, 5, 1], np.int32)
BEYOND = np.arange(T) >= LENGTHS[:, None]

# Every layer that keeps positions stands before or behind one that heeds lengths; the loss is over positions, or not.
NETWORKS = {
    "attention": [nbprop.attention(2)],
    "dense": [nbprop.dense(C, activation="gelu"), nbprop.attention(2), nbprop.dense(3)],
    "norms": [nbprop.layernorm(), nbprop.attention(2), nbprop.rmsnorm(), nbprop.dense(3)],
    "convolution": [nbprop.conv1d(C, 3, padding="same", activation="tanh"), nbprop.attention(2), nbprop.dense(3)],
    "pool": [nbprop.attention(2), nbprop.max_pool1d(3, stride=1, padding=1), nbprop.avg_pool1d(1), nbprop.dense(3)],
    "branches": [
        nbprop.positions("normal"),
        nbprop.residual(nbprop.attention(2), nbprop.dropout(0.3)),
        nbprop.concat([nbprop.activation("silu")], [nbprop.slicing(0, 2), nbprop.dense(3)]),
        nbprop.dense(3),
    ],
    "rnn": [nbprop.dense(C), nbprop.rnn(3, output="last"), nbprop.dense(2)],
    "lstm": [nbprop.lstm(3), nbprop.dense(2)],
    "gru": [nbprop.layernorm(), nbprop.gru(3), nbprop.activation("softmax")],
    "flat": [nbprop.attention(2), nbprop.flatten(), nbprop.dense(2)],
    "mean": [nbprop.local_response_norm(3), nbprop.attention(2), nbprop.global_avg_pool(), nbprop.dense(2)],
}
LOSSES = ("mse", "binary_cross_entropy", "huber")


def filled(array, value):
    array = array.copy()
    array[BEYOND] = value
    return array


# These are tried by `make test`; their kernels are those of other tests.
_FEW = ("attention", "branches", "rnn", "lstm")


@pytest.mark.parametrize("what", [pytest.param(n, marks=[] if n in _FEW else pytest.mark.more) for n in NETWORKS])
def test_nothing_beyond_a_length_reaches_a_result(what):
    """Forward, loss, gradients by parameters and by x, directions, products, single samples' gradients."""
    net, rng = nbprop.network((T, C), *NETWORKS[what]), np.random.default_rng(0)
    plan = nbprop.plan(net, LOSSES[len(what) % 3], batch=N)
    params, over = nbprop.init(net) + 0.1, plan.positions_of_loss > 1
    whole = {"x": rng.standard_normal((N, T, C)), "dx": rng.standard_normal((N, T, C))}
    whole |= {"target": rng.uniform(0, 1, (N, *plan.target_shape)), "dy": rng.standard_normal((N, *plan.output_shape))}
    v, work = rng.standard_normal(plan.n_params), nbprop.workspace(plan)
    found = []
    for value in (0.0, 3.0, np.nan, np.inf):
        x, dx = (filled(whole[name], value) for name in ("x", "dx"))
        target, dy = (filled(whole[name], value) if over else whole[name] for name in ("target", "dy"))
        work[:] = np.nan
        y, back, grads = np.empty_like(dy), np.empty_like(x), np.empty_like(params)
        nbprop.forward(plan, params, x, y, work, lengths=LENGTHS)
        nbprop.backward(plan, params, x, dy, grads, back, work, lengths=LENGTHS)
        loss = nbprop.value(plan, params, x, target, work, lengths=LENGTHS)
        results = {"y": y, "grads": grads, "dx": back, "value": loss}
        results["gradient"] = np.empty_like(params)
        nbprop.value_and_grad(plan, params, x, target, results["gradient"], work, lengths=LENGTHS)
        results["jvp"] = np.empty_like(dy)
        nbprop.jvp(plan, params, v, x, dx, results["jvp"], work, lengths=LENGTHS)
        for product in ("hvp", "gauss_newton_product"):
            results[product] = np.empty_like(params)
            more = {"dx": dx} if product == "hvp" else {}
            getattr(nbprop, product)(plan, params, v, x, target, results[product], work, lengths=LENGTHS, **more)
        results["samples"] = np.empty((N, plan.n_params))
        nbprop.per_sample_grads(plan, params, x, target, results["samples"], work, lengths=LENGTHS)
        results["jacobian"] = np.empty((N * plan.unit_size, plan.n_params))
        nbprop.jacobian(plan, params, x, results["jacobian"], work, lengths=LENGTHS)
        found.append(results)
        assert np.isfinite(np.concatenate([np.ravel(result) for result in results.values()])).all()
        assert not over or not y[BEYOND].any()
        assert not back[BEYOND].any()
    for results in found[1:]:
        for name, result in results.items():
            same_bits(name, result, found[0][name])
    # The Jacobian, the backward and the forward pass agree on what counts.
    matrix = found[0]["jacobian"]
    np.testing.assert_allclose(whole["dy"].ravel() @ matrix, found[0]["grads"], rtol=1e-9, atol=1e-12)


def test_fit_takes_anything_beyond_lengths():
    net, rng = nbprop.network((T, C), nbprop.gru(3), nbprop.dense(2)), np.random.default_rng(1)
    x, target, results = rng.standard_normal((N, T, C)), rng.uniform(0, 1, (N, T, 2)), []
    for value in (0.0, np.nan):
        params, data = nbprop.init(net), (filled(x, value), filled(target, value))
        held_out = (*data, None, LENGTHS)
        history = nbprop.fit(net, params, *data, "binary_cross_entropy", epochs=2, lengths=LENGTHS, validation=held_out)
        results.append((params, np.array(history.loss)))
    same_bits("params", results[1][0], results[0][0])
    same_bits("losses", results[1][1], results[0][1])
    wrong = filled(x, np.nan)
    wrong[1, 4, 2] = np.nan
    with pytest.raises(ValueError, match=r"fit: x\[1, 4, 2\] is nan"):
        nbprop.fit(net, params, wrong, target, "mse", lengths=LENGTHS)
    with pytest.raises(ValueError, match=r"fit: x\[0, 2, 0\] is nan"):
        nbprop.fit(net, params, filled(x, np.nan), target, "mse")


def test_rounding_error_does_not_look_beyond():
    net, rng = nbprop.network((T, C), nbprop.gru(3), nbprop.dense(2)), np.random.default_rng(1)
    plan, x, target = nbprop.plan(net, "mse"), rng.standard_normal((N, T, C)), rng.uniform(0, 1, (N, T, 2))
    found = [
        nbprop.rounding_error(plan, nbprop.init(net), filled(x, value), filled(target, value), lengths=LENGTHS).estimate
        for value in (0.0, np.nan)
    ]
    assert found[0] == found[1]


def test_statistics_over_all_positions_take_no_lengths():
    net = nbprop.network((T, C), nbprop.batchnorm(), nbprop.attention(2))
    training, use = (nbprop.plan(net, "mse", N, mode=mode) for mode in ("training", "inference"))
    x, state = np.ones((N, T, C)), nbprop.layer_state(training)
    for plan in (use, training):
        call = plan, nbprop.init(net), x, x, nbprop.workspace(plan), None, state, 0, LENGTHS
        if plan is use:
            assert np.isfinite(nbprop.value(*call))
        else:
            with pytest.raises(ValueError, match=r"lengths does not go with layer 0\.batchnorm"):
                nbprop.value(*call)
