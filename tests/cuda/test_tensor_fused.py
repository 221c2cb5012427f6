"""Small networks on large batches with tensor cores (nbprop/cuda/tensor_fused.py), against a model and float64."""

import numpy as np
import pytest
from bfloat16 import split, times

import nbprop
import nbprop.cuda
from nbprop.cuda import fused, kernels, tensor_fused
from nbprop.cuda.plan import DevicePlan
from nbprop.losses import loss_named
from support.cases import close, same_bits

MIXED = (5, (20, "tanh"), (17, "tanh"), (18, "tanh", False), (3, "sigmoid"))
SHORT = (5, (20, "relu"), (3, "sigmoid"))
WIDE = (17, (32, "tanh"), (32, "relu"), (32, "sigmoid"), (3, "identity"))
ONE = (3, (2, "identity"))
# name -> (widths and activations, loss, samples, precision): in the simulator with tiles of 32 or 16 samples.
CASES = {
    "mixed": (MIXED, "mse", 70, "bfloat16"),
    "short": (SHORT, "mse", 33, "bfloat16x3"),
    "wide": (WIDE, "softmax_cross_entropy", 20, "bfloat16"),
    "one layer": (ONE, "mse", 5, "bfloat16x3"),
}
# Of the largest number: to the model, and to float64. A low part may be rounded the other way, by 2**-18.
LIMITS = {"bfloat16": (1e-6, 1e-2), "bfloat16x3": (1e-5, 3e-5)}
if not nbprop.cuda.simulated():
    CASES = {case: (net, loss, 2048 * n, precision) for case, (net, loss, n, precision) in CASES.items()}
    DEEP = 32, *[(64, "tanh")] * 5, (4, "identity")
    CASES |= {f"64 wide, {precision}": (DEEP, "mse", 40000, precision) for precision in LIMITS}
    # Sums over so many samples are further off than the sums of a tile.
    LIMITS = {"bfloat16": (1e-4, 1e-2), "bfloat16x3": (1e-4, 1e-4)}

VALUES = {"tanh": np.tanh, "relu": lambda z: np.maximum(z, 0), "sigmoid": lambda z: 1 / (1 + np.exp(-z))}
DERIVATIVES = {"tanh": lambda y: 1 - y * y, "relu": lambda y: (y > 0) * 1.0, "sigmoid": lambda y: y * (1 - y)}


def network(case):
    inputs, *layers = CASES[case][0]
    made = [nbprop.dense(n, activation=name, bias=not without) for n, name, *without in layers]
    return nbprop.network((inputs,), *made)


def device_plan(net, loss, batch, precision):
    return DevicePlan(net, loss_named(loss), batch, np.dtype(np.float32), 1, "training", precision=precision)


@pytest.fixture
def always(monkeypatch):
    """Plans that qualify are fused however few samples they take."""
    monkeypatch.setattr(fused, "FEWEST_SAMPLES", 1)


def data(net, loss, n, seed=4):
    """(params, x, target, weights) on the host."""
    rng = np.random.default_rng(seed)
    params = (nbprop.init(net, seed=3) + 0.1 * rng.standard_normal(net.n_params)).astype(np.float32)
    shape, classes = loss_named(loss).target(net.output_shape)
    x = rng.standard_normal((n, *net.input_shape)).astype(np.float32)
    target = rng.integers(0, classes, (n, *shape)) if classes else rng.random((n, *shape)).astype(np.float32)
    return params, x, target, rng.random(n).astype(np.float32)


def model(case, params, x, target, weights):
    """(loss, gradient) with factors rounded where the kernel rounds them, and all else in float64."""
    net, (_, loss, _, precision) = network(case), CASES[case]
    planes, views = kernels.PLANES[precision], nbprop.views(net, params)
    kept, y = [], x
    for number, (layer, shape) in enumerate(zip(net.layers, net.shapes, strict=False)):
        weight, bias = (views.get(f"{number}.dense.{name}") for name in ("weight", "bias"))
        parts, w = split(y, planes), split(weight.reshape(shape[0], -1), planes)
        z = times(parts, w) + (0 if bias is None else bias.astype(np.float64))
        y = VALUES.get(layer.activation, lambda z: z)(z)
        kept.append((parts, w, layer.activation))
    factor = (weights / weights.sum(dtype=np.float64))[:, None]
    if loss == "mse":
        found, dz = ((y - target) ** 2).mean(1, keepdims=True), 2 / y.shape[1] * (y - target)
    else:
        p = np.exp(y - y.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        chosen = np.eye(y.shape[1])[target]
        found, dz = -np.log((p * chosen).sum(1, keepdims=True)), p - chosen
    dz, grads = dz * factor * DERIVATIVES.get(kept[-1][2], np.ones_like)(y), {}
    for number in reversed(range(len(kept))):
        parts, w, _ = kept[number]
        dz = split(dz, planes)
        grads[f"{number}.dense.weight"] = times([part.T for part in parts], dz)
        grads[f"{number}.dense.bias"] = sum(dz).sum(0)
        if number:
            dz = times(dz, [part.T for part in w]) * DERIVATIVES.get(kept[number - 1][2], np.ones_like)(sum(parts))
    gradient = np.zeros(net.n_params)
    for name, view in nbprop.views(net, gradient).items():
        view[...] = grads[name].reshape(view.shape)
    return float((found * factor).sum()), gradient


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.usefixtures("always")
def test_a_plan_agrees_with_its_model_and_with_float64(case):
    """From a workspace of NaN; the same bits twice, and from the values alone the same loss."""
    _, loss, n, precision = CASES[case]
    net, (near, far) = network(case), LIMITS[precision]
    arrays = params, x, target, weights = data(net, loss, n)
    plan = device_plan(net, loss, n, precision)
    assert plan.fused is not None
    given = [nbprop.cuda.to_device(a) for a in (params, x, target)]
    work = nbprop.cuda.to_device(np.full(plan.work_for("value_and_grad"), np.nan, np.float32))
    grads, w = nbprop.cuda.to_device(np.full(net.n_params, np.nan, np.float32)), nbprop.cuda.to_device(weights)
    found, gradient = nbprop.value_and_grad(plan, *given, grads, work, w), grads.to_host()
    loss_wanted, wanted = model(case, *arrays)
    close("loss, model", found, loss_wanted, near)
    close("gradient, model", gradient, wanted, near)
    host, exact = nbprop.plan(net, loss, n), np.empty(net.n_params)
    arrays = [a if a.dtype.kind == "i" else a.astype(np.float64) for a in arrays]
    loss_wanted = nbprop.value_and_grad(host, *arrays[:3], exact, nbprop.workspace(host), arrays[3])
    close("loss, float64", found, loss_wanted, far)
    close("gradient, float64", gradient, exact, far)
    if case == "one layer":
        assert nbprop.value(plan, *given, work, w) == found
        nbprop.value_and_grad(plan, *given, grads, work, w)
        same_bits("again", grads.to_host(), gradient)


@pytest.mark.usefixtures("always")
def test_cases_keep_weight_gradients_in_registers_or_not():
    """And take tiles of both sizes."""
    shapes = [device_plan(network(case), loss, 3, p).fused.chain.shape for case, (_, loss, _, p) in CASES.items()]
    assert {shape.keeps for shape in shapes} == {True, False}
    assert {shape.warps for shape in shapes} == set(tensor_fused.WARPS[:2])
