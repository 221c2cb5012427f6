"""Forward, loss and gradients of every stored PyTorch network, in both precisions and on 1, 2 and 4 threads."""

import build
import numpy as np
import pytest
import stored

import nbprop
from nbprop import threads

CASES = stored.load("networks")
# float64: both sum in other orders. float32: the stored result is float64's; relative to each array's largest value.
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}


@pytest.fixture(autouse=True, scope="module")
def _four_cores():
    """Let four threads walk even where there are fewer cores: slow, but the bits are what is tested."""
    before, threads.processor_share = threads.processor_share, lambda: 4
    yield
    threads.processor_share = before


def close(name, got, wanted, dtype):
    scale = max(np.abs(wanted).max(initial=0.0), 1.0 if name == "loss" else 1e-3)
    assert np.abs(got - wanted).max(initial=0.0) <= TOLERANCE[dtype] * scale, name


def guarded(size, dtype):
    """A NaN-filled view inside a larger buffer with guard values around it."""
    whole = np.full(size + 32, 7.25, dtype)
    view = whole[16 : 16 + size]
    view[:] = np.nan
    return whole, view


def run(description, arrays, dtype, thread_count):
    net = build.network(description)
    n = len(arrays["x"])
    plan = nbprop.plan(net, loss=description["loss"], batch=n + 2, dtype=dtype, threads=thread_count)
    target = arrays["target"]
    target = target if target.dtype.kind == "i" else target.astype(dtype)
    weights = arrays["weights"].astype(dtype) if "weights" in arrays else None
    params, x = arrays["params"].astype(dtype), arrays["x"].astype(dtype)
    out = {}
    wholes = []

    def new(shape):
        whole, view = guarded(int(np.prod(shape)), dtype)
        wholes.append((whole, view.size))
        return view.reshape(shape)

    work, grads = new((plan.work_size,)), new((net.n_params,))
    out["loss"] = nbprop.value_and_grad(plan, params, x, target, grads, work, weights)
    out["grad"] = grads
    assert nbprop.value(plan, params, x, target, work, weights) == out["loss"]
    y = new((n, *net.output_shape))
    work[:] = np.nan
    nbprop.forward(plan, params, x, y, work)
    out["output"] = y
    return plan, params, x, target, weights, work, out, new, wholes


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", list(CASES))
def test_network(case, dtype):
    description, arrays = CASES[case]
    results = []
    for thread_count in (1, 2, 4):
        *_, out, _, wholes = run(description, arrays, dtype, thread_count)
        results.append(out)
        for whole, size in wholes:
            assert (whole[:16] == 7.25).all()
            assert (whole[16 + size :] == 7.25).all()
    for name in ("output", "loss", "grad"):
        close(name, results[0][name], arrays[name], dtype)
        for other in results[1:]:
            assert np.array_equal(results[0][name], other[name]), f"{name}: other bits on more threads"
