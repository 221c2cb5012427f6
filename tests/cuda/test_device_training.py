"""Optimizers, clipping, `fit`, `objective` and recorded steps on the device, against the CPU."""

import numpy as np
import pytest
import scipy.optimize

import nbprop
import nbprop.cuda
from nbprop.cuda import clipping
from nbprop.optimizers.api import OPTIMIZERS
from nbprop.optimizers.proximal import PROXIMAL
from support.cases import close, same_bits

NET = nbprop.network((3,), nbprop.dense(5, activation="tanh"), nbprop.dense(2))
RNG = np.random.default_rng(5)
X, TARGET = RNG.standard_normal((7, 3)).astype(np.float32), RNG.standard_normal((7, 2)).astype(np.float32)
CLASSES, WEIGHTS = RNG.integers(0, 2, 7), np.array([1, 0, 0, 0, 2, 0.5, 1], np.float32)
ONE_OF_EACH, MORE = ("sgd", "adam", "lion"), pytest.mark.more
RATES = {"0.dense": 0.5, "1.dense.bias": 2.0}
device = nbprop.cuda.to_device


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_updates_are_the_cpus(name):
    rng, n = np.random.default_rng(3), 11
    for dtype, tolerance in ((np.float32, 1e-6), (np.float64, 1e-14)):
        params, state = rng.standard_normal(n).astype(dtype), nbprop.optimizer_state(name, n, dtype)
        on_device, device_state = device(params), nbprop.cuda.optimizer_state(name, n, dtype)
        decays, trains = rng.random(n) < 0.5, rng.random(n) < 0.7
        for step in range(3):
            grads = rng.standard_normal(n).astype(dtype)
            options = {"weight_decay": 0.1, "lr": 0.05}
            OPTIMIZERS[name](params, grads, state, step, decay_mask=decays, trainable=trains, **options)
            masks = {"decay_mask": device(decays), "trainable": device(trains)}
            OPTIMIZERS[name](on_device, device(grads), device_state, step, **masks, **options)
        close("params", on_device.to_host(), params, tolerance)
        close("state", device_state.to_host(), state, tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_is_the_cpus(dtype):
    grads = np.random.default_rng(4).standard_normal(37).astype(dtype)
    trains = np.arange(37) % 3 > 0
    for name, limit in (("clip_norm", 0.5), ("clip_norm", 100.0), ("clip_value", 0.3)):
        host, on_device = grads.copy(), device(grads)
        if name == "clip_norm":
            nbprop.clip_norm(host, limit, trainable=trains)
        else:
            nbprop.clip_value(host, limit)
        sequence = clipping.clip(name, on_device, limit, device(trains))
        sequence.write(0, 0)
        sequence.enqueue(0)
        close(name, on_device.to_host(), host, 1e-6 if dtype == np.float32 else 1e-14)


FITS = {
    "adam": ("mse", TARGET, {}),
    "classes": ("softmax_cross_entropy", CLASSES, {"optimizer": "sgd", "clip_value": 0.1}),
    "weights": ("mse", TARGET, {"weights": WEIGHTS, "shuffle": False, "optimizer": "momentum", "schedule": "cosine"}),
    "validation": ("mse", TARGET, {"validation": (X, TARGET), "patience": 2, "clip_norm": 0.5}),
    "schedule free": (
        "mse",
        TARGET,
        {"optimizer": "schedule_free_adamw", "validation": (X, TARGET), "metrics": ["r2"]},
    ),
    "average": ("mse", TARGET, {"average": 0.6, "average_start": 1, "validation": (X, TARGET), "lr_scale": RATES}),
    "swa": ("mse", TARGET, {"average": "swa", "patience": 2, "weights": WEIGHTS, "shuffle": False, "epochs": 3}),
    "max norm": (
        "mse",
        TARGET,
        {"max_norm": 0.7, "average": 0.5, "trainable": np.arange(NET.n_params) != 3, "optimizer": "sgd"},
    ),
    "penalties": ("mse", TARGET, {"l2": 0.1, "l1": 0.05, "patience": 2, "lr_scale": RATES}),
    "accumulate": ("mse", TARGET, {"accumulate": 2, "average": 0.5, "clip_norm": 0.3}),
    "accumulate weights": ("mse", TARGET, {"accumulate": 2, "weights": WEIGHTS, "shuffle": False, "lr_scale": RATES}),
    "class weights": (
        "softmax_cross_entropy",
        CLASSES,
        {"class_weight": "balanced", "weights": WEIGHTS, "metrics": ["accuracy"], "schedule": "plateau"},
    ),
}


def on_device(value):
    if isinstance(value, tuple):
        return tuple(map(on_device, value))
    return device(value) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("case", list(FITS))
def test_fit_is_the_cpus(case):
    """Three batches an epoch, the last of one sample; one batch whose weights are all zero."""
    loss, target, options = FITS[case]
    params = nbprop.init(NET, seed=1, dtype=np.float32)
    device_params = device(params)
    common, options = {"batch": 3, "lr": 0.05}, {"epochs": 2} | options
    wanted = nbprop.fit(NET, params, X, target, loss, **common, **options)
    given = {name: on_device(value) for name, value in options.items()}
    found = nbprop.fit(NET, device_params, device(X), device(target), loss, **common, **given)
    close("params", device_params.to_host(), params, 1e-5)
    close("loss", found.loss, wanted.loss, 1e-5)
    close("validation", found.validation_loss, wanted.validation_loss, 1e-5)
    for name, values in wanted.metrics.items():
        close(name, found.metrics[name], values, 1e-5)
    for name in ("lr", "steps", "best_epoch", "stopped", "message"):
        assert getattr(found, name) == getattr(wanted, name)


@pytest.mark.parametrize("name", [name if name in ONE_OF_EACH else pytest.param(name, marks=MORE) for name in PROXIMAL])
def test_proximal_steps_are_the_cpus(name):
    rng, n = np.random.default_rng(3), 11
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-13)):
        params, state = 0.05 * rng.standard_normal(n).astype(dtype), nbprop.optimizer_state(name, n, dtype)
        on_device, device_state = device(params), nbprop.cuda.optimizer_state(name, n, dtype)
        counts, trains = rng.random(n) < 0.7, rng.random(n) < 0.7
        for step in range(4):
            grads = rng.standard_normal(n).astype(dtype)
            options = {"lr": 50.0 if name == "adadelta" else 0.05, "l1": 4.0}
            OPTIMIZERS[name](params, grads, state, step, penalized=counts, trainable=trains, **options)
            masks = {"penalized": device(counts), "trainable": device(trains)}
            OPTIMIZERS[name](on_device, device(grads), device_state, step, **masks, **options)
        close("params", on_device.to_host(), params, tolerance)
        close("state", device_state.to_host(), state, tolerance)
        assert (params == 0).any()
        assert np.array_equal(params == 0, on_device.to_host() == 0)


def test_penalties_are_the_cpus():
    """In values, gradients and products with second derivatives; more parameters than a block of sums has."""
    net = nbprop.network((70,), nbprop.dense(65, activation="tanh"), nbprop.dense(2))
    rng, out = np.random.default_rng(6), []
    params, v = 0.1 * rng.standard_normal((2, net.n_params))
    x, target = rng.standard_normal((3, 70)), rng.standard_normal((3, 2))
    params[:4] = 0.0
    for target_of, give in (("cpu", lambda a: a), ("cuda", device)):
        plan = nbprop.plan(net, "mse", 3, l2=0.3, l1=0.05, target=target_of)
        given = give(params), give(x), give(target)
        grads, product, work = give(np.zeros(net.n_params)), give(np.zeros(net.n_params)), nbprop.workspace(plan)
        losses = [nbprop.value(plan, *given, work), nbprop.value_and_grad(plan, *given, grads, work)]
        nbprop.hvp(plan, given[0], give(v), *given[1:], product, work)
        out.append([np.array(losses), *(a if target_of == "cpu" else a.to_host() for a in (grads, product))])
    for name, found, wanted in zip(("losses", "grads", "hvp"), out[1], out[0], strict=True):
        close(name, found, wanted, 1e-12)


def test_callbacks_see_the_losses_of_steps():
    seen = []

    class Watch(nbprop.callbacks.Callback):
        every = 2

        def step(self, step, loss, lr):
            seen.append((step, loss))

    params = nbprop.init(NET, seed=1, dtype=np.float32)
    nbprop.fit(NET, device(params), device(X), device(TARGET), "mse", batch=3, epochs=2, callbacks=[Watch()])
    on_gpu, seen[:] = list(seen), []
    nbprop.fit(NET, params, X, TARGET, "mse", batch=3, epochs=2, callbacks=[Watch()])
    assert [step for step, _ in on_gpu] == [step for step, _ in seen] == [2, 4, 6]
    close("losses", [loss for _, loss in on_gpu], [loss for _, loss in seen], 1e-5)


def test_a_resumed_fit_repeats_the_uninterrupted_one(tmp_path):
    data = device(X), device(TARGET), "mse"
    whole, parts = (device(nbprop.init(NET, dtype=np.float32)) for _ in range(2))
    nbprop.fit(NET, whole, *data, batch=4, epochs=3)
    options = {"batch": 4, "checkpoint": tmp_path / "point"}
    nbprop.fit(NET, parts, *data, epochs=2, **options)
    parts.copy_from(np.zeros(NET.n_params, np.float32))
    nbprop.fit(NET, parts, *data, epochs=3, resume=True, **options)
    same_bits("params", parts.to_host(), whole.to_host())


def test_a_resumed_fit_of_other_data_is_refused(tmp_path):
    params, options = device(nbprop.init(NET, dtype=np.float32)), {"batch": 4, "checkpoint": tmp_path / "point"}
    nbprop.fit(NET, params, device(X), device(TARGET), "mse", epochs=1, **options)
    before = params.to_host()
    with pytest.raises(ValueError, match="of another run: its x is different"):
        nbprop.fit(NET, params, device(X * np.float32(2)), device(TARGET), "mse", epochs=2, resume=True, **options)
    same_bits("params", params.to_host(), before)


def test_two_fits_are_one():
    net = nbprop.network((3,), nbprop.dense(4), nbprop.dropout(0.3), nbprop.dense(2))
    data, found = (device(X), device(TARGET), "mse"), []
    for counts in ((2,), (1, 1)):
        params, state, step = device(nbprop.init(net, dtype=np.float32)), None, 0
        for epochs in counts:
            options = {"batch": 4, "epochs": epochs, "optimizer_state": state, "first_step": step}
            history = nbprop.fit(net, params, *data, **options)
            state, step = history.optimizer_state, history.next_step
        found.append([params.to_host(), state.to_host()])
    for name, wanted, got in zip(("params", "state"), *found, strict=True):
        same_bits(name, got, wanted)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the simulator, whose numbers are NumPy's
def test_clip_norm_where_squares_overflow():
    grads = np.linspace(1, 9, 33, dtype=np.float32)
    on_device = device(grads * np.float32(2.0**100))
    sequence = clipping.clip("clip_norm", on_device, 1.0)
    sequence.write(0, 0)
    sequence.enqueue(0)
    np.testing.assert_allclose(on_device.to_host(), grads / np.linalg.norm(grads), rtol=1e-5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the simulator, whose numbers are NumPy's
def test_a_diverged_fit_keeps_the_best_parameters():
    params = nbprop.init(NET, dtype=np.float32)
    on_device = device(params)
    history = nbprop.fit(NET, on_device, device(X), device(TARGET), "mse", optimizer="sgd", lr=1e30, batch=7, epochs=9)
    assert history.stopped == "diverged"
    same_bits("params", on_device.to_host(), params)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the simulator, whose numbers are NumPy's
@pytest.mark.parametrize("more", [{}, {"patience": 9}, {"validation": (X[:3], TARGET[:3])}])
@pytest.mark.parametrize(("at", "rate"), [(5, 1e38), (6, 1e38), (11, 1.7e308)])
def test_what_a_diverged_fit_keeps_is_the_cpus(more, at, rate):
    """A jump at the last step of an epoch, at its first, and at the last of all, where no loss is left to tell."""
    params = nbprop.init(NET, dtype=np.float32)
    on_gpu, options = device(params), {"optimizer": "sgd", "batch": 4, "epochs": 6}
    options |= {"schedule": lambda step: rate if step >= at else 0.05}
    host = nbprop.fit(NET, params, X, TARGET, "mse", **options, **more)
    given = {name: on_device(value) for name, value in more.items()}
    history = nbprop.fit(NET, on_gpu, device(X), device(TARGET), "mse", **options, **given)
    assert history.stopped == host.stopped == "diverged"
    assert history.best_epoch == host.best_epoch == at // 2 - 1
    close("best loss", history.best_loss, host.best_loss, 1e-5)
    close("params", on_gpu.to_host(), params, 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X}, "x is a NumPy array in host memory"),
        ({"x": device(np.full_like(X, np.nan))}, r"x\[0, 0\] is nan"),
        ({"x": device(np.where(np.arange(X.size).reshape(X.shape) == 4, np.inf, X))}, r"x\[1, 1\] is inf"),
        ({"loss": "binary_cross_entropy", "target": device(TARGET + 2)}, r"target must lie in 0\.\.1 for binary"),
        ({"weights": device(np.full_like(WEIGHTS, np.inf))}, r"weights\[0\] is inf"),
        ({"state": "anything"}, "state must be a device array"),
        ({"state": device(np.zeros(3, np.float32))}, r"state must have shape \(0,\)"),
        ({"optimizer_state": np.zeros(34, np.float32)}, "optimizer_state is a NumPy array in host memory"),
        ({"optimizer_state": device(np.full(64, np.inf, np.float32)), "first_step": 2}, "optimizer_state holds NaN or"),
        ({"optimizer_state": device(np.ones(64, np.float32))}, "is that of earlier steps"),
        ({"lr": 10**1000}, "lr must be a finite number"),
        ({"target": device(CLASSES + 2)}, "target must hold classes in 0..1, got 7 others"),
        ({"target": device(CLASSES.astype(np.int8))}, "target must hold int32"),
        ({"weights": device(-WEIGHTS)}, "weights must not be negative"),
    ],
)
def test_fit_refuses(change, message):
    params = device(nbprop.init(NET, dtype=np.float32))
    before = params.to_host()
    given = {"x": device(X), "target": device(CLASSES), "loss": "softmax_cross_entropy"} | change
    with pytest.raises((TypeError, ValueError), match=message):
        nbprop.fit(NET, params, **given)
    same_bits("params", params.to_host(), before)


def test_objective_with_scipy():
    x, target = X.astype(np.float64), TARGET.astype(np.float64)
    host = nbprop.objective(nbprop.plan(NET, "mse", 4), x, target)
    fun = nbprop.objective(nbprop.plan(NET, "mse", 4, target="cuda"), device(x), device(target))
    theta = nbprop.init(NET)
    close("gradient", fun(theta)[1], host(theta)[1], 1e-12)
    found = scipy.optimize.minimize(fun, theta, jac=True, options={"maxiter": 3})
    assert found.fun < fun(theta)[0]


def test_objective_of_a_device_theta():
    plan, weights = nbprop.plan(NET, "mse", 7, np.float32, target="cuda"), WEIGHTS
    fun = nbprop.objective(plan, device(X), device(TARGET), device(weights))
    theta = nbprop.init(NET, dtype=np.float32)
    loss, gradient = fun(device(theta))
    wanted = nbprop.objective(nbprop.plan(NET, "mse", 7, np.float32), X, TARGET, weights)(theta.astype(np.float64))
    close("loss", loss, wanted[0], 1e-5)
    close("gradient", gradient.to_host(), wanted[1], 1e-5)


def test_minimize_is_the_cpus():
    """Frozen parameters, bounds, chunks and a validation loss; the search runs on the host."""
    x, target, trainable = X.astype(np.float64), TARGET.astype(np.float64), np.arange(NET.n_params) % 3 > 0
    options = {"trainable": trainable, "bounds": (-2, 2), "maxiter": 3}
    found = []
    for where, to in (("cpu", np.array), ("cuda", device)):
        params, plan = to(nbprop.init(NET)), nbprop.plan(NET, "mse", 4, target=where)
        held_out = to(x[:3]), to(target[:3])
        result = nbprop.minimize(plan, params, to(x), to(target), validation=held_out, **options)
        found.append([result.x, result.validation, params if where == "cpu" else params.to_host()])
    for name, wanted, got in zip(("result", "validation", "params"), *found, strict=True):
        close(name, got, wanted, 1e-9)


def test_minimize_refuses():
    plan, params = nbprop.plan(NET, "mse", 7, np.float32, target="cuda"), device(nbprop.init(NET, dtype=np.float32))
    data = device(X), device(TARGET)
    with pytest.raises(
        ValueError, match="minimize: Newton-CG needs second derivatives, which the device does not have"
    ):
        nbprop.minimize(plan, params, *data, method="Newton-CG")
    with pytest.raises(TypeError, match="minimize: params is a NumPy array in host memory"):
        nbprop.minimize(plan, params.to_host(), *data)
    with pytest.raises(ValueError, match="minimize: params is written and shares memory with x"):
        nbprop.minimize(plan, params, params[:21].reshape(7, 3), data[1])


def test_a_recorded_step_is_a_step():
    plan = nbprop.plan(NET, "mse", 7, np.float32)
    params, state = nbprop.init(NET, dtype=np.float32), nbprop.optimizer_state("adam", NET.n_params, np.float32)
    on_device, grads, work = device(params), np.empty_like(params), nbprop.workspace(plan)
    recorded = nbprop.cuda.TrainingStep(
        nbprop.plan(NET, "mse", 7, np.float32, target="cuda"), on_device, device(X), device(TARGET), lr=0.01
    )
    for step in range(10):
        loss = nbprop.value_and_grad(plan, params, X, TARGET, grads, work)
        nbprop.adam(params, grads, state, step, lr=0.01)
        recorded()
        close("loss", recorded.loss(), loss, 1e-5)
    close("params", on_device.to_host(), params, 1e-5)


def test_fit_leaves_given_numbers_alone():
    """Those of scaling, whatever decays and whatever the caller's own mask says; the rest is trained as on the CPU."""
    net = nbprop.network(
        (3,), nbprop.standardize(), nbprop.dense(4, activation="tanh"), nbprop.dense(2), nbprop.rescale()
    )
    start = nbprop.init(net, seed=2, dtype=np.float32)
    nbprop.fit_scaling(net, start, X, TARGET)
    params, on_device, wanted = start.copy(), device(start), np.ones(start.size, bool)
    options = {"optimizer": "adamw", "weight_decay": 0.1, "lr": 0.01, "batch": 4, "epochs": 2}
    nbprop.fit(net, params, X, TARGET, "mse", trainable=wanted, **options)
    nbprop.fit(net, on_device, device(X), device(TARGET), "mse", trainable=device(wanted), **options)
    given = ~nbprop.trainable_mask(net)
    same_bits("given", on_device.to_host()[given], start[given])
    close("params", on_device.to_host(), params, 1e-5)
