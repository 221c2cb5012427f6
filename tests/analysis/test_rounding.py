"""rounding_error: the sum written out by hand, and the errors that float32 really makes."""

import numpy as np
import pytest

import nbprop

dense = nbprop.dense
# The model says so much: the estimate is the size of real errors up to this factor (measured: 0.7 to 1.9).
FACTOR = 2.5
PROBLEMS = {
    "mse": (nbprop.network((4,), dense(32, activation="tanh"), dense(32, activation="tanh"), dense(1)), "mse", 64),
    "one sample": (
        nbprop.network((4,), dense(32, activation="tanh"), dense(32, activation="tanh"), dense(1)),
        "mse",
        1,
    ),
    "wide": (nbprop.network((784,), dense(128, activation="relu"), dense(10)), "softmax_cross_entropy", 16),
    "deep": (
        nbprop.network((16,), *[nbprop.residual(dense(16, activation="gelu")) for _ in range(6)], dense(4)),
        "softmax_cross_entropy",
        32,
    ),
    "logits": (nbprop.network((8,), dense(64, activation="silu"), dense(3)), "binary_cross_entropy", 16),
    "variances": (nbprop.network((8,), dense(64, activation="sigmoid"), dense(4)), "gaussian_nll", 16),
    "branches": (
        nbprop.network(
            (2, 3), nbprop.concat([nbprop.slicing(1, 3)], dense(5, activation="elu")), nbprop.flatten(), dense(4)
        ),
        "huber",
        16,
    ),
}


PROBLEMS |= {
    "convolution": (
        nbprop.network((9, 9, 2), nbprop.conv2d(6, 3, activation="relu"), nbprop.flatten(), dense(4)),
        "softmax_cross_entropy",
        8,
    ),
    "recurrent": (nbprop.network((12, 3), nbprop.gru(8), dense(2)), "mse", 6),
    "normalized": (
        nbprop.network((12,), dense(16), nbprop.layernorm(), nbprop.activation("gelu"), dense(2)),
        "mse",
        16,
    ),
}


def draw(plan, n, seed):
    rng, net = np.random.default_rng(seed), plan.net
    params = nbprop.init(net, seed=seed, dtype=np.float32)
    params += (0.1 * rng.standard_normal(net.n_params)).astype(np.float32)
    shape = (n, *plan.target_shape)
    target = rng.integers(0, plan.classes, shape) if plan.classes else rng.uniform(0, 1, shape).astype(np.float32)
    weights = rng.uniform(0.5, 2, n).astype(np.float32)
    return params, rng.standard_normal((n, *net.input_shape)).astype(np.float32), target, weights


LONGEST = {"recurrent", "convolution"}  # to check: left to test-more


def double(array):
    return array.astype(np.float64) if array.dtype == np.float32 else array


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.more] if name in LONGEST else []) for name in PROBLEMS]
)
def test_against_measured_errors(name):
    net, loss, n = PROBLEMS[name]
    single, exact = (nbprop.plan(net, loss=loss, batch=n, dtype=dtype) for dtype in (np.float32, np.float64))
    work, errors, estimates = nbprop.workspace(exact), [], []
    for seed in range(30):
        params, x, target, weights = draw(single, n, seed)
        lengths = np.random.default_rng(seed).integers(1, 13, n) if name == "recurrent" else None
        found = nbprop.rounding_error(single, params, x, target, weights, lengths=lengths)
        arguments = [double(array) for array in (params, x, target)]
        error = found.loss - nbprop.value(exact, *arguments, work, double(weights), lengths=lengths)
        assert abs(error) <= found.worst
        errors.append(error)
        estimates.append(found.estimate)
    ratio = np.sqrt(np.mean(np.square(estimates)) / np.mean(np.square(errors)))
    assert 1 / FACTOR < ratio < FACTOR, f"estimated {ratio:.2f} of what was measured"
    # From a float64 plan the same, for either arithmetic.
    of_exact = nbprop.rounding_error(exact, *arguments, double(weights), lengths=lengths)
    assert np.isclose(of_exact.estimate, found.estimate, rtol=1e-3)
    finer = nbprop.rounding_error(exact, *arguments, double(weights), dtype=np.float64, lengths=lengths)
    assert np.isclose(finer.estimate, of_exact.estimate * 2.0**-29, rtol=1e-12)


def test_the_sum_by_hand():
    net = nbprop.network((3,), dense(5, activation="tanh"), nbprop.flatten(), dense(2))
    plan = nbprop.plan(net, loss="mse", batch=4)
    rng = np.random.default_rng(0)
    params, x, target = nbprop.init(net, seed=1), rng.standard_normal((4, 3)), rng.standard_normal((4, 2))
    v = nbprop.views(net, params)
    z = x @ v["0.dense.weight"] + v["0.dense.bias"]
    h = np.tanh(z)
    y = h @ v["2.dense.weight"] + v["2.dense.bias"]
    dy = 2 * (y - target) / y.size
    dh = dy @ v["2.dense.weight"].T
    dz = dh * (1 - h * h)
    first = (1 + 3 / 2) * ((z * dz) ** 2).sum() + ((h * dh) ** 2).sum()
    second = (1 + 5 / 2) * ((y * dy) ** 2).sum()
    terms = (y - target) ** 2 / y.size
    of_loss = 2 * (terms**2).sum() + 2 / 3 * (terms.sum(1) ** 2).sum()
    worst = (4 * np.abs(z * dz)).sum() + np.abs(h * dh).sum() + (6 * np.abs(y * dy)).sum() + 4 * terms.sum()
    found = nbprop.rounding_error(plan, params, x, target, dtype=np.float64)
    scale = 0.4247 * 2.0**-53
    assert np.isclose(found.loss, ((y - target) ** 2).mean(), rtol=1e-14)
    assert np.isclose(found.estimate, scale * np.sqrt(first + second + of_loss), rtol=1e-4)
    assert np.isclose(found.worst, 2.0**-53 * worst, rtol=1e-12)
    assert {path: round(part / scale, 4) for path, part in found.parts.items()} == pytest.approx(
        {"0.dense": np.sqrt(first), "2.dense": np.sqrt(second), "loss": np.sqrt(of_loss)}, rel=1e-3
    )


def test_refusals():
    net = nbprop.network((3,), dense(2))
    plan, params, x, y = nbprop.plan(net, loss="mse"), nbprop.init(net), np.ones((4, 3)), np.ones((4, 2))
    with pytest.raises(ValueError, match="rounding_error: this plan has no loss"):
        nbprop.rounding_error(nbprop.plan(net), params, x, y)
    with pytest.raises(ValueError, match=r"rounding_error: params must have shape \(8,\)"):
        nbprop.rounding_error(plan, params[1:], x, y)
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        nbprop.rounding_error(plan, params, x, y, dtype=np.float16)
    with pytest.raises(ValueError, match=r"rounding_error: target must have shape \(n, 2\)"):
        nbprop.rounding_error(plan, params, x, y[:, :1].copy())
