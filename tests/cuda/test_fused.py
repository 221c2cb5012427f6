"""Small networks on large batches in one launch (nbprop/cuda/fused.py), against the CPU and the launches one by one."""

import numpy as np
import pytest

import nbprop
import nbprop.cuda
from nbprop.cuda import fused, fused_kernels, oneblock
from nbprop.cuda.plan import DevicePlan
from nbprop.losses import loss_named
from support.cases import close, same_bits

# In the simulator: two blocks, tiles of 16 or 8 samples, weights in slices, products of both shapes.
WIDE = nbprop.network(
    (9,), nbprop.dense(17, activation="gelu"), nbprop.dense(18, "tanh"), nbprop.dense(20, bias=False), nbprop.dense(4)
)
FLAT = nbprop.network((2, 3), nbprop.flatten(), nbprop.dense(5), nbprop.activation("relu"), nbprop.dense(2, "sigmoid"))
SILU = nbprop.network((3,), nbprop.dense(2), nbprop.dense(6, activation="silu"))
CASES = {
    "wide": (WIDE, "gaussian_nll", 20),
    "classes": (WIDE, "softmax_cross_entropy", 17),
    "sigmoid": (FLAT, "mse", 9),
    "silu": (SILU, "binary_cross_entropy", 33),
    "one layer": (nbprop.network((3,), nbprop.dense(2)), nbprop.huber(0.5), 5),
}
if not nbprop.cuda.simulated():
    # Blocks that take several tiles, products of both shapes, weights in slices.
    CASES = {case: (net, loss, 2048 * n) for case, (net, loss, n) in CASES.items()}
    for width, depth in ((64, 5), (128, 2)):
        hidden = [nbprop.dense(width, activation="tanh") for _ in range(depth)]
        CASES[f"{width} wide"] = nbprop.network((32,), *hidden, nbprop.dense(4)), "mse", 40000


@pytest.fixture
def always(monkeypatch):
    """Plans that qualify are fused however few samples they take."""
    monkeypatch.setattr(fused, "FEWEST_SAMPLES", 1)
    monkeypatch.setattr(oneblock, "MOST_ELEMENTS", 0)


def device_plan(net, loss, batch):
    return DevicePlan(net, loss_named(loss), batch, np.dtype(np.float32), 1, "training")


def data(net, loss, n, rng):
    """(params, x, target, weights) on the host."""
    params = (nbprop.init(net, seed=3) + 0.1 * rng.standard_normal(net.n_params)).astype(np.float32)
    shape, classes = loss_named(loss).target(net.output_shape)
    x = rng.standard_normal((n, *net.input_shape)).astype(np.float32)
    target = rng.integers(0, classes, (n, *shape)) if classes else rng.random((n, *shape)).astype(np.float32)
    return params, x, target, rng.random(n).astype(np.float32)


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.usefixtures("always")
def test_a_fused_plan_agrees_with_the_cpu(case):
    """Losses, gradients, weighted and accumulated, from a workspace of NaN; the same bits twice.

    In float64 on the CPU: a float32 sum over all samples of a large case would be further off than what it judges.
    """
    net, loss, n = CASES[case]
    rng = np.random.default_rng(4)
    params, x, target, weights = data(net, loss, n, rng)
    plan = device_plan(net, loss, n + 2)
    assert plan.fused is not None
    host, exact = nbprop.plan(net, loss, n), [params.astype(np.float64), x.astype(np.float64)]
    exact.append(target if target.dtype.kind == "i" else target.astype(np.float64))
    wanted, host_work = np.empty(net.n_params), nbprop.workspace(host)
    given = [nbprop.cuda.to_device(a) for a in (params, x, target)]
    work = nbprop.cuda.to_device(np.full(plan.work_for("value_and_grad"), np.nan, np.float32))
    grads = nbprop.cuda.to_device(np.full(net.n_params, np.nan, np.float32))
    for w in (None, weights):
        on_device = None if w is None else nbprop.cuda.to_device(w)
        w = None if w is None else w.astype(np.float64)
        loss_wanted = nbprop.value_and_grad(host, *exact, wanted, host_work, w)
        close("loss", nbprop.value_and_grad(plan, *given, grads, work, on_device), loss_wanted, 1e-5)
        close("grads", grads.to_host(), wanted, 1e-5)
        close("value", nbprop.value(plan, *given, work, on_device), loss_wanted, 1e-5)
    first = grads.to_host()
    nbprop.value_and_grad(plan, *given, grads, work, on_device, accumulate=True)
    close("accumulated", grads.to_host(), 2 * wanted, 1e-5)
    nbprop.value_and_grad(plan, *given, grads, work, on_device)
    same_bits("grads, again", grads.to_host(), first)


@pytest.mark.usefixtures("always")
def test_both_sizes_of_tile_are_taken():
    samples = {case: device_plan(net, loss, n).fused.samples for case, (net, loss, n) in CASES.items()}
    assert set(samples.values()) == set(fused_kernels.SAMPLES[:2]), samples


NOT_FUSED = {
    "too wide": (nbprop.network((3,), nbprop.dense(fused.WIDEST + 1), nbprop.dense(1)), "mse"),
    "softmax": (nbprop.network((3,), nbprop.dense(4, activation="softmax")), "mse"),
    "positions": (nbprop.network((2, 3), nbprop.dense(4)), "mse"),
    "another layer": (nbprop.network((3,), nbprop.dense(4), nbprop.layernorm()), "mse"),
    "shared": (nbprop.network((3,), nbprop.dense(3), nbprop.dense(3, share="0.dense")), "mse"),
}


@pytest.mark.parametrize("case", list(NOT_FUSED))
@pytest.mark.usefixtures("always")
def test_other_networks_are_not_fused(case):
    assert device_plan(*NOT_FUSED[case], 3).fused is None


def test_small_batches_are_not_fused():
    assert device_plan(SILU, "mse", 64).fused is None


@pytest.mark.usefixtures("always")
def test_a_training_step_adds_up_the_slices_in_its_update():
    """The bits of gradient and update in launches of their own; and a workspace without the layers' values."""
    rng = np.random.default_rng(5)
    params, x, target, _ = (nbprop.cuda.to_device(a) for a in data(SILU, "mse", 21, rng))
    other, state = nbprop.cuda.to_device(params.to_host()), nbprop.cuda.optimizer_state("adam", SILU.n_params)
    plan = device_plan(SILU, "mse", 21)
    step = nbprop.cuda.TrainingStep(plan, params, x, target, lr=0.01)
    assert step.work.size < plan.work_size
    grads, work = nbprop.cuda.empty(SILU.n_params), nbprop.workspace(plan)
    for number in range(2):
        loss = nbprop.value_and_grad(plan, other, x, target, grads, work)
        nbprop.adam(other, grads, state, number, lr=0.01)
        step()
        assert step.loss() == loss
    same_bits("params", params.to_host(), other.to_host())
    same_bits("grads", step.grads.to_host(), grads.to_host())


@pytest.mark.parametrize(
    "options", [{}, {"clip_norm": 0.1}, {"lr_scale": {"1.dense": 0.5}}, {"accumulate": 2}, {"l1": 0.1}]
)
@pytest.mark.usefixtures("always")
def test_fit_of_a_fused_plan_is_the_cpus(options):
    """Two batches an epoch, the last smaller; with what the update cannot do, the gradient is made before it."""
    net, loss, _ = CASES["sigmoid"]
    params, x, target, _ = data(net, loss, 11, np.random.default_rng(6))
    on_device = nbprop.cuda.to_device(params)
    common = {"loss": loss, "batch": 9, "epochs": 2, "lr": 0.05, **options}
    wanted = nbprop.fit(net, params, x, target, **common)
    found = nbprop.fit(net, on_device, nbprop.cuda.to_device(x), nbprop.cuda.to_device(target), **common)
    close("params", on_device.to_host(), params, 1e-5)
    close("loss", found.loss, wanted.loss, 1e-5)
