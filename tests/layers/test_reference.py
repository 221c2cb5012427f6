"""Forward, loss and gradients of every stored PyTorch network: both precisions, 1, 2, 4 threads, poisoned buffers."""

import numpy as np
import pytest

import nbprop
from support import build, naive, stored
from support.cases import Buffers, close, same_bits, state_of

pytestmark = pytest.mark.usefixtures("four_cores")
CASES = stored.load("networks") | stored.load("images") | stored.load("norms") | stored.load("layers")
# float64: both sum in other orders. float32: against float64's result, from inputs that both hold exactly.
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}


def step(plan, arrays, dy):
    """Run every function once, on buffers poisoned anew; what each of them wrote, by name."""
    n, dtype, buffers = len(arrays["x"]), plan.dtype, Buffers()
    params, x, dy = (buffers.constant(a.astype(dtype)) for a in (arrays["params"], arrays["x"], dy))
    target = arrays["target"]
    target = buffers.constant(target if target.dtype.kind == "i" else target.astype(dtype))
    weights = buffers.constant(arrays["weights"].astype(dtype)) if "weights" in arrays else None
    work = buffers.poisoned((plan.work_size,), dtype)
    grads = [buffers.poisoned(params.shape, dtype) for _ in range(3)]
    y, dx = buffers.poisoned((n, *plan.output_shape), dtype), buffers.poisoned(x.shape, dtype)
    state = state_of(plan)
    loss = nbprop.value_and_grad(plan, params, x, target, grads[0], work, weights, False, state)
    out = {"loss": loss, "grad": grads[0]} | ({} if state is None else {"state": state})
    work[:] = np.nan
    assert nbprop.value(plan, params, x, target, work, weights, state_of(plan)) == out["loss"]
    work[:] = np.nan
    nbprop.forward(plan, params, x, y, work, state_of(plan))
    nbprop.backward(plan, params, x, dy, grads[1], dx, work, False, state_of(plan))
    out |= {"output": y, "backward": grads[1], "x_grad": dx}
    work[:] = np.nan
    nbprop.forward(plan, params, x, y, work, state_of(plan))
    nbprop.backward(plan, params, x, dy, grads[2], None, work, False, state_of(plan))
    same_bits("backward without dx", grads[2], grads[1])
    accumulated = grads[2]
    work[:] = np.nan
    assert nbprop.value_and_grad(plan, params, x, target, accumulated, work, weights, True, state_of(plan)) == loss
    out["accumulated"] = accumulated
    buffers.check()
    return out


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", list(CASES))
def test_network(case, dtype):
    description, arrays = CASES[case]
    net, n = build.network(description), len(arrays["x"])
    _, dy = naive.loss_and_gradient(description["loss"], arrays["output"], arrays["target"], arrays.get("weights"))
    plan = nbprop.plan(net, loss=description["loss"], batch=n, dtype=dtype)
    out = step(plan, arrays, dy)
    tolerance = TOLERANCE[dtype]
    for name in ("output", "grad", "x_grad", *(["state"] if "state" in arrays else [])):
        close(name, out[name], arrays[name], tolerance)
    close("backward", out["backward"], arrays["grad"], tolerance)
    close("accumulated", out["accumulated"], 2 * arrays["grad"], tolerance)
    close("loss", out["loss"], arrays["loss"], tolerance)
    for threads, batch in ((1, n), (1, n + 3), (2, n), (4, n + 1)):
        other = step(nbprop.plan(net, description["loss"], batch, dtype, threads), arrays, dy)
        for name, value in out.items():
            same_bits(f"{name}, {threads} threads, capacity {batch}", other[name], value)
