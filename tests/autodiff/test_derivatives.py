"""Products with Jacobian, Hessian and Gauss-Newton matrix against JAX's stored ones and differences of gradients."""

import numba
import numpy as np
import pytest

import nbprop
from nbprop.layers import ACTIVATIONS
from nbprop.losses import LOSSES
from nbprop.runtime import workers
from support import build, stored

CASES = stored.load("second_order")
TOLERANCE = {np.float64: 1e-12, np.float32: 2e-5}


@pytest.fixture(autouse=True, scope="module")
def _four_cores():
    before, workers.processor_share = workers.processor_share, lambda: 4
    yield
    workers.processor_share = before


def close(name, got, wanted, dtype):
    scale = max(np.abs(wanted).max(initial=0.0), 1e-3)
    assert np.abs(got - wanted).max(initial=0.0) <= TOLERANCE[dtype] * scale, name


def products(description, arrays, dtype, thread_count):
    """Every product of a stored case, into buffers full of NaN."""
    net = build.network(description)
    n = len(arrays["x"])
    plan = nbprop.plan(net, loss=description["loss"], batch=n + 1, dtype=dtype, threads=thread_count)
    cast = {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in arrays.items()}
    params, x, target, v, weights = (cast.get(name) for name in ("params", "x", "target", "v", "weights"))

    def new(*shape):
        return np.full(shape, np.nan, dtype)

    out = {}
    work = new(plan.work_size)
    for name, function in (("hvp", nbprop.hvp), ("gauss_newton_product", nbprop.gauss_newton_product)):
        out[name] = new(net.n_params)
        work[:] = np.nan
        function(plan, params, v, x, target, out[name], work, weights)
    out["jvp"], out["x_jvp"], both = (new(n, *net.output_shape) for _ in range(3))
    work[:] = np.nan
    nbprop.jvp(plan, params, v, x, None, out["jvp"], work)
    nbprop.jvp(plan, params, None, x, cast["dx"], out["x_jvp"], work)
    nbprop.jvp(plan, params, v, x, cast["dx"], both, work)
    close("both directions", both, out["jvp"] + out["x_jvp"], dtype)
    out["vjp"], out["x_vjp"] = new(net.n_params), new(*x.shape)
    work[:] = np.nan
    nbprop.vjp(plan, params, x, cast["dy"], out["vjp"], out["x_vjp"], work)
    alone = new(net.n_params)
    nbprop.vjp(plan, params, x, cast["dy"], alone, None, work)
    assert np.array_equal(alone, out["vjp"])
    out["jacobian"] = new(n * int(np.prod(net.output_shape)), net.n_params)
    work[:] = np.nan
    nbprop.jacobian(plan, params, x, out["jacobian"], work)
    out["per_sample_grads"] = new(n, net.n_params)
    work[:] = np.nan
    nbprop.per_sample_grads(plan, params, x, target, out["per_sample_grads"], work)
    return out


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", list(CASES))
def test_products(case, dtype):
    description, arrays = CASES[case]
    results = products(description, arrays, dtype, 1)
    stored_names = [name for name in results if name in arrays]
    assert len(stored_names) >= 4
    for name in stored_names:
        close(name, results[name].reshape(arrays[name].shape), arrays[name], dtype)
    rows = results["jacobian"].reshape(len(arrays["x"]), -1, arrays["params"].size)
    close("J^T dy", np.einsum("nkp,nk->p", rows, arrays["dy"].reshape(len(rows), -1)), arrays["vjp"], dtype)
    for thread_count in (2, 4):
        others = products(description, arrays, dtype, thread_count)
        for name, result in results.items():
            assert np.array_equal(result, others[name]), f"{name}: other bits on {thread_count} threads"


def every_layer(name):
    """Residual, concat, slicing, tied and standalone layers around one activation, on inputs (n, 2, 3)."""
    return nbprop.network(
        (2, 3),
        nbprop.activation(name),
        nbprop.dense(3, activation=name),
        nbprop.dropout(0.2),
        nbprop.layernorm(0.1),
        nbprop.residual(nbprop.activation(name), nbprop.dense(3, activation=name)),
        nbprop.dense(3, activation=name, share="1.dense.weight"),
        nbprop.concat([nbprop.slicing(1, 3)], nbprop.slicing(0, 2), nbprop.dense(2, bias=False)),
        nbprop.reshape((3, 4)),
        nbprop.rmsnorm(0.1),
        nbprop.flatten(),
        nbprop.dense(4),
    )


# Every activation with the losses whose kernels are their own, every other loss with one.
_OWN = ("mse", "softmax_cross_entropy", "binary_cross_entropy", "huber", "gaussian_nll")
PAIRS = [(name, loss) for name in ACTIVATIONS for loss in _OWN]
PAIRS += [("tanh", name) for name, loss in LOSSES.items() if name not in _OWN and loss.exact_gradient]


@pytest.mark.parametrize(("name", "loss"), PAIRS)
def test_against_differences_of_gradients(name, loss):
    rng = np.random.default_rng(3)
    net = every_layer(name)
    plan = nbprop.plan(net, loss=loss, batch=3)
    params, work = nbprop.init(net, seed=1) + 0.1 * rng.standard_normal(net.n_params), nbprop.workspace(plan)
    x, weights, v = rng.standard_normal((3, 2, 3)), rng.uniform(0.5, 2, 3), rng.standard_normal(net.n_params)
    shape = (3, *plan.target_shape)
    target = rng.integers(0, plan.classes, shape) if plan.classes else rng.uniform(0, 1, shape)
    high, low, out = (np.empty(net.n_params) for _ in range(3))
    step = 1e-6
    nbprop.value_and_grad(plan, params + step * v, x, target, high, work, weights)
    nbprop.value_and_grad(plan, params - step * v, x, target, low, work, weights)
    nbprop.hvp(plan, params, v, x, target, out, work, weights)
    difference = (high - low) / (2 * step)
    assert np.abs(out - difference).max() <= 1e-6 * max(np.abs(difference).max(), 1e-2)
    y_dot, y_high, y_low = (np.empty((3, 4)) for _ in range(3))
    dx = rng.standard_normal(x.shape)
    nbprop.value_and_grad(plan, params + step * v, x + step * dx, target, high, work, weights)
    nbprop.value_and_grad(plan, params - step * v, x - step * dx, target, low, work, weights)
    work[:] = np.nan
    nbprop.hvp(plan, params, v, x, target, out, work, weights, dx=dx)
    difference = (high - low) / (2 * step)
    assert np.abs(out - difference).max() <= 1e-6 * max(np.abs(difference).max(), 1e-2)
    nbprop.jvp(plan, params, v, x, dx, y_dot, work)
    nbprop.forward(plan, params + step * v, x + step * dx, y_high, work)
    nbprop.forward(plan, params - step * v, x - step * dx, y_low, work)
    assert np.abs(y_dot - (y_high - y_low) / (2 * step)).max() <= 1e-7


def test_a_product_whose_weight_gradients_come_in_pieces():
    rng, (n, positions) = np.random.default_rng(4), (3, 190)
    net = nbprop.network((positions, 2), nbprop.dense(3, activation="tanh"), nbprop.dense(2))
    params, v = nbprop.init(net, seed=1), rng.standard_normal(net.n_params)
    x, target = rng.standard_normal((2, n, positions, 2))
    outs = []
    for thread_count in (1, 2, 4):
        plan = nbprop.plan(net, loss="mse", batch=n, threads=thread_count)
        outs.append(np.full(net.n_params, np.nan))
        work = np.full(plan.work_size, np.nan)
        nbprop.hvp(plan, params, v, x, target, outs[-1], work)
    high, low, step = np.empty(net.n_params), np.empty(net.n_params), 1e-6
    nbprop.value_and_grad(plan, params + step * v, x, target, high, work)
    nbprop.value_and_grad(plan, params - step * v, x, target, low, work)
    assert np.abs(outs[0] - (high - low) / (2 * step)).max() <= 1e-8
    assert np.array_equal(outs[0], outs[1])
    assert np.array_equal(outs[0], outs[2])


# Dense layers alone leave their samples' gradients apart in one walk; with another layer that has parameters each
# sample is walked by itself.
APART = nbprop.network(
    (2, 3),
    nbprop.dense(3, activation="tanh"),
    nbprop.dropout(0.3),
    nbprop.residual(nbprop.dense(3, activation="gelu", bias=False), nbprop.dense(3, share="0.dense.weight")),
    nbprop.flatten(),
    nbprop.dense(2),
)
ROWS = {"apart": APART, "one_by_one": nbprop.network((2, 3), *APART.layers, nbprop.layernorm(0.1))}


@pytest.mark.parametrize("name", list(ROWS))
def test_rows_are_gradients_of_one_sample(name):
    rng, n = np.random.default_rng(2), 5
    net = ROWS[name]
    params = nbprop.init(net, seed=1) + 0.1
    x, target = rng.standard_normal((n, 2, 3)), rng.standard_normal((n, 2))
    results = []
    for thread_count in (1, 2, 4):
        plan = nbprop.plan(net, loss="huber", batch=n + 2, threads=thread_count)
        rows, own = np.full((2 * n, net.n_params), np.nan), np.full((n, net.n_params), np.nan)
        work = np.full(plan.work_size, np.nan)
        nbprop.jacobian(plan, params, x, rows, work, step=3)
        nbprop.per_sample_grads(plan, params, x, target, own, work, step=3)
        results.append((rows, own))
    for others in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], others, strict=True))
    (rows, own), grads, work = results[0], np.empty(net.n_params), nbprop.workspace(plan)
    for i in range(n):
        for k in range(2):
            dy = np.zeros((n, 2))
            dy[i, k] = 1
            nbprop.vjp(plan, params, x, dy, grads, None, work, step=3)
            assert np.abs(rows[2 * i + k] - grads).max() <= 1e-14
        weights = np.zeros(n)
        weights[i] = 1
        nbprop.value_and_grad(plan, params, x, target, grads, work, weights, step=3)
        assert np.abs(own[i] - grads).max() <= 1e-14


@numba.njit
def all_in_njit(plan, params, v, x, target, dx, dy, work, h, g, j, r, dxr, jac, rows):
    nbprop.hvp(plan, params, v, x, target, h, work, dx=dx)
    nbprop.hvp(plan, params, v, x, target, h, work)
    nbprop.gauss_newton_product(plan, params, v, x, target, g, work, None)
    nbprop.jvp(plan, params, v, x, dx, j, work)
    nbprop.vjp(plan, params, x, dy, r, dxr, work)
    nbprop.jacobian(plan, params, x, jac, work)
    nbprop.per_sample_grads(plan, params, x, target, rows, work)


def test_njit_gives_the_same_bits():
    case = next(name for name in CASES if CASES[name][0]["loss"] == "mse" and "weights" not in CASES[name][1])
    description, arrays = CASES[case]
    net = build.network(description)
    n = len(arrays["x"])
    plan = nbprop.plan(net, loss="mse", batch=n)
    p, x = arrays["params"], arrays["x"]
    outs = [np.empty(p.size), np.empty(p.size), np.empty((n, *net.output_shape)), np.empty(p.size), np.empty(x.shape)]
    outs += [np.empty((n * net.output_shape[0], p.size)), np.empty((n, p.size))]
    work = nbprop.workspace(plan)
    all_in_njit(plan, p, arrays["v"], x, arrays["target"], arrays["dx"], arrays["dy"], work, *outs)
    results = products(description, arrays, np.float64, 1)
    for name, out in zip(("hvp", "gauss_newton_product", None, "vjp", "x_vjp", "jacobian"), outs, strict=False):
        assert name is None or np.array_equal(out, results[name]), name
    assert np.array_equal(outs[-1], results["per_sample_grads"])


def test_refusals():
    net = nbprop.network((2,), nbprop.dense(3))
    plan = nbprop.plan(net, loss="mse", batch=4)
    p, x, y, work = nbprop.init(net), np.ones((4, 2)), np.ones((4, 3)), nbprop.workspace(plan)
    with pytest.raises(TypeError, match="jvp: v is needed"):
        nbprop.jvp(plan, p, None, x, None, np.empty((4, 3)), work)
    with pytest.raises(ValueError, match=r"jacobian: out must have shape \(12, 9\)"):
        nbprop.jacobian(plan, p, x, np.empty((4, 9)), work)
    with pytest.raises(ValueError, match=r"per_sample_grads: out must have shape \(4, 9\)"):
        nbprop.per_sample_grads(plan, p, x, y, np.empty((3, 9)), work)
    with pytest.raises(ValueError, match=r"jvp: out must have shape \(4, 3\)"):
        nbprop.jvp(plan, p, p, x, None, np.empty((3, 3)), work)
    with pytest.raises(ValueError, match="hvp: v must have shape"):
        nbprop.hvp(plan, p, p[:3], x, y, np.empty(9), work)
    with pytest.raises(ValueError, match="hvp: out is written and shares memory with v"):
        nbprop.hvp(plan, p.copy(), p, x, y, p, work)
    with pytest.raises(ValueError, match="has no loss"):
        nbprop.hvp(nbprop.plan(net, batch=4), p, p.copy(), x, y, np.empty(9), work)


def test_a_layer_without_tangents_is_refused_by_name():
    square = nbprop.elementwise("square_without_tangents", lambda x: x * x, lambda x, y: 2 * x)
    net = nbprop.network((2,), nbprop.residual(nbprop.dense(2), square()))
    plan = nbprop.plan(net, loss="mse", batch=1)
    p, x, work = nbprop.init(net), np.ones((1, 2)), nbprop.workspace(plan)
    with pytest.raises(ValueError, match=r"hvp: layer 0.residual.1.square_without_tangents has no tangent"):
        nbprop.hvp(plan, p, p.copy(), x, x.copy(), np.empty_like(p), work)
    rows = np.empty((2, p.size))
    nbprop.jacobian(plan, p, x, rows, work)
    assert np.isfinite(rows).all()


def test_one_forward_serves_two_backwards():
    """What forward leaves in the workspace survives a backward."""
    net = every_layer("tanh")
    plan = nbprop.plan(net, batch=2)
    rng = np.random.default_rng(0)
    params, x, work = nbprop.init(net, seed=1), rng.standard_normal((2, 2, 3)), nbprop.workspace(plan)
    y, dy = np.empty((2, 4)), rng.standard_normal((2, 4))
    first, second = np.empty(net.n_params), np.empty(net.n_params)
    dx, again = np.empty_like(x), np.empty_like(x)
    nbprop.forward(plan, params, x, y, work)
    nbprop.backward(plan, params, x, dy, first, dx, work)
    nbprop.backward(plan, params, x, dy, second, again, work)
    assert np.array_equal(first, second)
    assert np.array_equal(dx, again)
