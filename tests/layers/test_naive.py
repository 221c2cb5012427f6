"""The plain references in naive.py against stored PyTorch and JAX results, and against central differences.

Where both agree, both are known to be good: nbprop's own tests then use whichever is handier.
"""

import json
import math

import numpy as np
import pytest

from support import naive, naive_network
from support.stored import FOLDER, load

NETWORKS, OPTIMIZERS, SCHEDULES, SECOND_ORDER = map(load, ("networks", "optimizers", "schedules", "second_order"))
TRAJECTORIES = [case for case in OPTIMIZERS if case != "problem"]


def assert_close(actual, expected, tolerance):
    """Compare relative to the largest number of an array: single entries may be differences of large ones."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = np.max(np.abs(expected), initial=1e-300)
    error = np.max(np.abs(actual - expected), initial=0.0)
    assert error <= tolerance * scale, f"error {error:.3g}, largest value {scale:.3g}"


def central_difference(function, at, direction, step=1e-5):
    """Return d function(at + s direction) / ds at s = 0; with this step good to about 1e-9 in float64."""
    return (function(at + step * direction) - function(at - step * direction)) / (2 * step)


def result_of(description, arrays):
    """Return the same fields as stored, computed by the references in the type of the arrays."""
    layers, x, params = description["layers"], arrays["x"], arrays["params"]
    loss, grad, x_grad = naive_network.value_and_grad(
        layers, params, x, description["loss"], arrays["target"], arrays.get("weights")
    )
    output = naive_network.forward(layers, params, x)
    return {"output": output, "loss": loss, "grad": grad, "x_grad": x_grad}


# Networks, activations and losses against PyTorch

EVERY = NETWORKS | load("images") | load("norms")


@pytest.mark.parametrize("case", EVERY)
def test_networks_agree_with_pytorch(case):
    description, arrays = EVERY[case]
    for field, value in result_of(description, arrays).items():
        # 1e-13: a few tens of float64 roundings, in sums of at most 33 products.
        assert_close(value, arrays[field], 1e-13)


@pytest.mark.parametrize("case", EVERY)
def test_float32_stays_float32_and_close(case):
    description, arrays = EVERY[case]
    narrow = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}
    for field, value in result_of(description, narrow).items():
        assert value.dtype == np.float32, field
        assert_close(value, arrays[field], 1e-5)


def test_the_table_holds_every_activation_and_loss_with_and_without_weights():
    text = json.dumps([description for description, _ in NETWORKS.values()])
    assert all(f'"activation": "{name}"' in text for name in naive.ACTIVATIONS)
    combinations = {(d["loss"], len(a["x"]), "weights" in a) for d, a in NETWORKS.values()}
    assert combinations >= {(loss, n, w) for loss in naive.LOSSES for n in (1, 5) for w in (False, True)}


def test_zeros_and_ties_occur():
    """The table would not show a wrong derivative at a kink if no input ever stood on it."""
    _, arrays = NETWORKS["relu_alone/mse/5"]
    assert np.any((arrays["x"] == 0) & ~np.signbit(arrays["x"]))
    assert np.any((arrays["x"] == 0) & np.signbit(arrays["x"]))
    description, arrays = NETWORKS["relu_hidden/mse/5"]
    before = naive_network.forward([{"type": "dense", "units": 7}], arrays["params"][:28], arrays["x"])
    assert description["layers"][0]["activation"] == "relu"
    assert np.any(before == 0)
    _, arrays = NETWORKS["special/ties_huber"]
    distance = np.abs(arrays["output"] - arrays["target"])
    assert np.any(distance == 1)
    assert np.any(distance == 0)


# Derivatives against central differences


@pytest.mark.parametrize("name", naive.ACTIVATIONS)
def test_activation_derivatives(name):
    function, backward = naive.ACTIVATIONS[name]
    rng = np.random.default_rng(1)
    z, dy, direction = rng.normal(size=(3, 4, 7))
    z *= 2
    expected = central_difference(lambda at: (dy * function(at)).sum(), z, direction)
    assert (backward(z, dy) * direction).sum() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("positions", [(), (3,)])
@pytest.mark.parametrize("name", naive.LOSSES)
def test_loss_gradients(name, positions, weighted):
    rng = np.random.default_rng(2)
    y, direction = rng.normal(size=(2, 5, *positions, 6))
    target = {
        "softmax_cross_entropy": rng.integers(0, 6, size=(5, *positions)),
        "binary_cross_entropy": rng.random(size=y.shape),
        "gaussian_nll": rng.normal(size=(5, *positions, 3)),
    }.get(name, rng.normal(size=y.shape))
    weights = rng.random(5) if weighted else None
    _, gradient = naive.loss_and_gradient(name, y, target, weights)
    expected = central_difference(lambda at: naive.loss_and_gradient(name, at, target, weights)[0], y, direction)
    assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-8)


def test_dense_gradients():
    rng = np.random.default_rng(3)
    x, w, b, dy = (
        rng.normal(size=(2, 5, 3)),
        rng.normal(size=(3, 4)),
        rng.normal(size=4),
        rng.normal(size=(2, 5, 4)),
    )
    arrays = [x, w, b]
    for position, gradient in enumerate(naive.dense_backward(x, w, dy)):
        direction = rng.normal(size=arrays[position].shape)

        def total(at, position=position):
            return (dy * naive.dense_forward(*arrays[:position], at, *arrays[position + 1 :])).sum()

        expected = central_difference(total, arrays[position], direction)
        assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-8)


def test_infinities_and_nan():
    z = np.array([-np.inf, np.inf, np.nan])
    limits = {
        "identity": (-np.inf, np.inf),
        "relu": (0, np.inf),
        "leaky_relu": (-np.inf, np.inf),
        "elu": (-1, np.inf),
        "softplus": (0, np.inf),
        "sigmoid": (0, 1),
        "tanh": (-1, 1),
    }
    for name, (low, high) in limits.items():
        np.testing.assert_array_equal(naive.ACTIVATIONS[name][0](z), [low, high, np.nan], err_msg=name)


# Optimizers and schedules against PyTorch


def stepper(name, hyperparameters):
    """Return step(p, g, number, lr) -> p, which keeps the state of one optimizer between its calls."""
    function = getattr(naive, name)
    pairs = dict.fromkeys(("adam", "adamw", "rprop", "radam", "nadam", "adadelta"), 2)
    arrays = ({"sgd": 0, "amsgrad": 3, "schedule_free_adamw": 3} | pairs).get(name, 1)
    counted = {"step"} if arrays > 1 and name != "adadelta" else set()
    state = None

    def step(p, g, number, lr):
        nonlocal state
        state = state or [np.zeros_like(p)] * arrays
        options = hyperparameters | {"lr": lr} | dict.fromkeys(counted, number)
        result = function(p, g, *state, **options)
        p, *state = result if arrays else (result,)
        return p

    return step


def clipped(description, g):
    return getattr(naive, description["clip"])(g, description["limit"]) if "clip" in description else g


def options_of(case):
    """Return the hyperparameters, with the mask where one is stored, and the learning rate of each step."""
    description, arrays = OPTIMIZERS[case]
    options = dict(description["hyperparameters"])
    if "mask" in arrays:
        options["mask"] = arrays["mask"]
    return options, arrays.get("lr", [options["lr"]] * len(arrays["grads"]))


@pytest.mark.parametrize("case", TRAJECTORIES)
def test_optimizer_steps_for_stored_gradients(case):
    description, arrays = OPTIMIZERS[case]
    options, rates = options_of(case)
    step, p = stepper(description["optimizer"], options), arrays["params"][0]
    for number, g in enumerate(arrays["grads"]):
        p = step(p, clipped(description, g), number, rates[number])
        assert_close(p, arrays["params"][number + 1], 1e-13)


@pytest.mark.parametrize("case", TRAJECTORIES)
def test_training_repeats_the_loss_trajectory(case):
    description, arrays = OPTIMIZERS[case]
    problem = OPTIMIZERS["problem"][1]
    options, rates = options_of(case)
    step, p = stepper(description["optimizer"], options), problem["params"]
    losses = []
    for number in range(len(arrays["losses"])):
        loss, g, _ = naive_network.value_and_grad(
            description["layers"], p, problem["x"], description["loss"], problem["target"]
        )
        losses.append(loss)
        if number < len(arrays["grads"]):
            p = step(p, clipped(description, g), number, rates[number])
    # Ten steps amplify the roundings of the first.
    assert_close(losses, arrays["losses"], 1e-12)
    assert_close(p, arrays["params"][-1], 1e-12)


def test_the_two_forms_of_momentum_differ_only_under_a_changing_rate():
    stored = {case: OPTIMIZERS[case][1]["params"][-1] for case in TRAJECTORIES}
    assert_close(stored["momentum"], stored["momentum_rumelhart"], 1e-13)
    assert np.max(np.abs(stored["momentum_step"] - stored["momentum_rumelhart_step"])) > 1e-3


def test_optimizers_keep_float32():
    rng = np.random.default_rng(4)
    p, g = rng.normal(size=(2, 9)).astype(np.float32)
    for case in TRAJECTORIES:
        name = OPTIMIZERS[case][0]["optimizer"]
        step = stepper(name, OPTIMIZERS[case][0]["hyperparameters"])
        for number in range(2):
            p = step(p, naive.clip_global_norm(g, 0.5), number, 0.01)
            assert p.dtype == np.float32, name


@pytest.mark.parametrize("case", SCHEDULES)
def test_schedules_agree_with_pytorch(case):
    description, arrays = SCHEDULES[case]
    function = {"step": naive.step_decay}.get(case) or getattr(naive, case)
    rates = [function(step, **description["hyperparameters"]) for step in range(len(arrays["lr"]))]
    np.testing.assert_allclose(rates, arrays["lr"], rtol=1e-12)


# Second order: the stored JAX results against the references' gradients


@pytest.mark.parametrize("case", SECOND_ORDER)
def test_gradients_agree_with_jax(case):
    description, arrays = SECOND_ORDER[case]
    result = result_of(description, arrays)
    for field in ("output", "loss", "grad"):
        assert_close(result[field], arrays[field], 1e-13)
    grad, x_grad = naive_network.backward(description["layers"], arrays["params"], arrays["x"], arrays["dy"])
    assert_close(grad, arrays["vjp"], 1e-13)
    assert_close(x_grad, arrays["x_vjp"], 1e-13)


@pytest.mark.parametrize("case", SECOND_ORDER)
def test_products_agree_with_central_differences(case):
    description, arrays = SECOND_ORDER[case]
    layers, params, x = description["layers"], arrays["params"], arrays["x"]
    loss, target, weights = description["loss"], arrays["target"], arrays.get("weights")

    def gradient(at):
        return naive_network.value_and_grad(layers, at, x, loss, target, weights)[1]

    def output_gradient(y):
        return naive.loss_and_gradient(loss, y, target, weights)[1]

    jvp = central_difference(lambda at: naive_network.forward(layers, at, x), params, arrays["v"])
    x_jvp = central_difference(lambda at: naive_network.forward(layers, params, at), x, arrays["dx"])
    curved = central_difference(output_gradient, arrays["output"], arrays["jvp"])
    product, _ = naive_network.backward(layers, params, x, curved)
    assert_close(jvp, arrays["jvp"], 1e-8)
    assert_close(x_jvp, arrays["x_jvp"], 1e-8)
    assert_close(central_difference(gradient, params, arrays["v"]), arrays["hvp"], 1e-7)
    assert_close(product, arrays["gauss_newton_product"], 1e-8)


@pytest.mark.parametrize("case", [case for case, (_, arrays) in SECOND_ORDER.items() if "hessian" in arrays])
def test_matrices_agree_with_their_products(case):
    description, arrays = SECOND_ORDER[case]
    layers, params, x = description["layers"], arrays["params"], arrays["x"]
    assert_close(arrays["hessian"] @ arrays["v"], arrays["hvp"], 1e-13)
    assert_close(arrays["hessian"].T, arrays["hessian"], 1e-13)
    assert_close(arrays["jacobian"] @ arrays["v"], arrays["jvp"], 1e-13)
    assert_close(arrays["per_sample_grads"].mean(axis=0), arrays["grad"], 1e-13)
    for sample in range(len(x)):
        one = slice(sample, sample + 1)
        _, grad, _ = naive_network.value_and_grad(layers, params, x[one], description["loss"], arrays["target"][one])
        assert_close(grad, arrays["per_sample_grads"][sample], 1e-13)
        for output in range(arrays["output"].shape[1]):
            dy = np.zeros((1, arrays["output"].shape[1]))
            dy[0, output] = 1
            grad, x_grad = naive_network.backward(layers, params, x[one], dy)
            assert_close(grad, arrays["jacobian"][sample, output], 1e-13)
            assert_close(x_grad[0], arrays["x_jacobian"][sample, output], 1e-13)


def test_the_stored_files_stay_small():
    sizes = [path.stat().st_size for path in FOLDER.glob("*.npz")]
    assert len(sizes) >= 5
    assert math.fsum(sizes) < 2_000_000
