"""Every layer, activation and loss: central differences, unwritten memory, one number of bits.

Each case of support/cases.py runs at batch 1 and at an odd batch, with zero samples and ties among them. Kinked
networks get their derivatives at zeros and ties from the stored PyTorch results (test_reference.py).
"""

import numpy as np
import pytest

import nbprop
from nbprop.compiler.jit import njit
from nbprop.layers import ACTIVATIONS
from nbprop.numerics.elementary import exp
from nbprop.numerics.partition import share_blocks
from nbprop.numerics.scalars import like
from support.cases import CASES, Buffers, close, data, kinked, same_bits, state_of
from support.contract import central_differences, everything, gradient_by_x, parameters

pytestmark = pytest.mark.usefixtures("four_cores")
TOLERANCE = 1e-7


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("case", list(CASES))
def test_gradients_are_central_differences(case, n):
    net, loss = CASES[case]
    # A plan for one sample has ops of its own; the other has room for one more than it gets.
    plan, rng, buffers = nbprop.plan(net, loss, batch=n if n == 1 else n + 1), np.random.default_rng(7), Buffers()
    params = parameters(plan, rng)
    x, target, weights = data(plan, n, rng, ties=not kinked(net))
    work, y = buffers.poisoned((plan.work_size,), np.float64), buffers.poisoned((n, *net.output_shape), np.float64)
    grads, dx = buffers.poisoned(params.shape, np.float64), gradient_by_x(plan, x, buffers)
    dy = rng.standard_normal(y.shape)

    def along_dy():
        nbprop.forward(plan, params, x, y, work, state_of(plan))
        return float((dy * y).sum())

    along_dy()
    nbprop.backward(plan, params, x, dy, grads, dx, work, state=state_of(plan))
    trained = nbprop.trainable_mask(net)  # numbers that are given are constants
    close("grads of dy", grads, central_differences(along_dy, params) * trained, TOLERANCE)
    if dx is not None:
        close("dx", dx, central_differences(along_dy, x), TOLERANCE)
    if loss is not None:
        for w in (None, weights):
            grads[:] = np.nan
            got = nbprop.value_and_grad(plan, params, x, target, grads, work, w, state=state_of(plan))
            assert got == nbprop.value(plan, params, x, target, work, w, state_of(plan))
            wanted = central_differences(
                lambda w=w: nbprop.value(plan, params, x, target, work, w, state_of(plan)), params
            )
            close("grads", grads, wanted * trained, TOLERANCE)
    buffers.check()


@pytest.mark.parametrize("case", list(CASES))
def test_float32_and_threads(case):
    """float32 within 1e-5 of float64; the same bits at any thread count and capacity, and the second time."""
    (net, loss), n, rng = CASES[case], 23, np.random.default_rng(8)
    plan = nbprop.plan(net, loss, batch=n)
    x, target, weights = data(plan, n, rng, ties=not kinked(net))
    dy = rng.standard_normal((n, *net.output_shape))
    # Values that float32 holds exactly, so that the two differ by their arithmetic alone.
    exact = [np.float32(a).astype(np.float64) for a in (parameters(plan, rng), weights, dy)]
    params, weights, dy = exact
    x = x if plan.x_classes else np.float32(x).astype(np.float64)
    if not plan.classes and target is not None:
        target = np.float32(target).astype(np.float64)
    wanted = everything(plan, params, x, target, weights, dy)
    for dtype in (np.float64, np.float32):
        given = [a if a is None or a.dtype.kind == "i" else a.astype(dtype) for a in (params, x, target, weights, dy)]
        results = [
            everything(nbprop.plan(net, loss, batch, dtype, threads), *given)
            for threads, batch in ((1, n), (1, n), (2, n + 9), (4, n))
        ]
        for name, value in results[0].items():
            close(name, value, wanted[name], 1e-5 if dtype == np.float32 else 0.0)
            for other in results[1:]:
                same_bits(f"{name}, {dtype.__name__}", other[name], value)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_any_split_of_a_large_network(dtype):
    """Sizes where every product is blocked and every elementwise loop has whole vectors and a tail."""
    net = nbprop.network(
        (67,), nbprop.dense(131, activation="gelu"), nbprop.dense(70, activation="silu"), nbprop.dense(10)
    )
    n, rng = 93, np.random.default_rng(9)
    plan = nbprop.plan(net, "softmax_cross_entropy", n, dtype)
    params = parameters(plan, rng)
    x, target, weights = data(plan, n, rng, ties=True)
    dy = rng.standard_normal((n, 10)).astype(dtype)
    results = [
        everything(nbprop.plan(net, plan.loss, n, dtype, threads), params, x, target, weights.astype(dtype), dy)
        for threads in (1, 2, 3, 4)
    ]
    for name, value in results[0].items():
        assert np.isfinite(value).all()
        for other in results[1:]:
            same_bits(name, other[name], value)


@njit
def bump(y, x):
    """y = (1 + x) / 2 + x exp(-x^2 / 2): fused one way in the vector body, another way in the tail."""
    for i in range(y.size):
        y[i] = like(x[i], 0.5) * (like(x[i], 1.0) + x[i]) + x[i] * exp(like(x[i], -0.5) * x[i] * x[i])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_shares_in_blocks_keep_an_elementwise_loops_bits(dtype):
    x = np.random.default_rng(10).standard_normal(333).astype(dtype)
    whole = np.empty_like(x)
    bump(whole, x)
    for parts in (2, 3, 7, 50):
        y, stop = np.full_like(x, np.nan), 0
        for part in range(parts):
            start, stop = share_blocks(x.size, part, parts)
            bump(y[start:stop], x[start:stop])
        same_bits(f"{parts} parts", y, whole)


@pytest.mark.parametrize("where", ["x", "params", "target"])
def test_nan_shows_in_the_loss(regressor, where):
    """A step returns the NaN loss; nothing hides it."""
    rng = np.random.default_rng(1)
    x, target, _ = data(regressor, 4, rng, ties=False)
    values = {"params": parameters(regressor, rng), "x": x, "target": target}
    values[where].reshape(-1)[-1] = np.nan
    grads, work = np.empty(regressor.n_params), nbprop.workspace(regressor)
    assert np.isnan(nbprop.value_and_grad(regressor, values["params"], values["x"], values["target"], grads, work))
    assert np.isnan(nbprop.value(regressor, values["params"], values["x"], values["target"], work))
    assert np.isnan(grads).any()


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_nan_passes_through_activations(name):
    """relu and softmax by comparison would lose it."""
    plan = nbprop.plan(nbprop.network((70,), nbprop.activation(name)), batch=1, dtype=np.float32)
    for i in (0, 40, 69):
        x, y = np.ones((1, 70), np.float32), np.empty((1, 70), np.float32)
        x[0, i] = np.nan
        nbprop.forward(plan, np.empty(0, np.float32), x, y, nbprop.workspace(plan))
        assert np.isnan(y[0, i]), i


def test_a_whole_batch_is_the_mean_of_its_samples(classifier):
    """The loss and its gradient are means over the batch; weights as sum(w l) / sum(w)."""
    rng = np.random.default_rng(2)
    params = parameters(classifier, rng)
    x, target, weights = data(classifier, 5, rng, ties=False)
    grads, work, losses, gradients = np.empty(params.size), nbprop.workspace(classifier), [], []
    for i in range(5):
        losses.append(nbprop.value_and_grad(classifier, params, x[i : i + 1], target[i : i + 1], grads, work))
        gradients.append(grads.copy())
    for w in (None, weights):
        loss = nbprop.value_and_grad(classifier, params, x, target, grads, work, w)
        close("loss", loss, np.average(losses, weights=w), 1e-14)
        close("grads", grads, np.average(gradients, axis=0, weights=w), 1e-14)
