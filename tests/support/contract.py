"""What every layer is held to: central differences, and all that the functions write into poisoned buffers."""

import numpy as np

import nbprop
from support.cases import Buffers, state_of

# The fourth-order formula below: truncation 1e-17 f^(5), rounding 1e-16 / 1e-4; a kink is rarely this near.
STEP = 1e-4


def central_differences(measure, array):
    """d measure() / d array, by moving each entry and putting it back (Abramowitz and Stegun 1964, 25.3.6)."""
    flat, found = array.reshape(-1), np.empty(array.size)
    for i in range(flat.size):
        before, values = flat[i], []
        for steps in (-2, -1, 1, 2):
            flat[i] = before + steps * STEP
            values.append(measure())
        flat[i] = before
        found[i] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * STEP)
    return found.reshape(array.shape)


def parameters(plan, rng):
    return (nbprop.init(plan.net, seed=3) + 0.1 * rng.standard_normal(plan.n_params)).astype(plan.dtype)


def gradient_by_x(plan, x, buffers):
    """A buffer for dx; None where x holds integers."""
    return None if plan.x_classes else buffers.poisoned(x.shape, plan.dtype)


def everything(plan, params, x, target, weights, dy):
    """All that the functions write, from inputs at odd addresses into poisoned buffers."""
    n, dtype, buffers = len(x), plan.dtype, Buffers()
    params, x, target, weights, dy = (buffers.constant(a) for a in (params, x, target, weights, dy))
    work, y = buffers.poisoned((plan.work_size,), dtype), buffers.poisoned((n, *plan.output_shape), dtype)
    grads, dx = buffers.poisoned(params.shape, dtype), gradient_by_x(plan, x, buffers)
    state = state_of(plan)
    if state is not None:
        state = buffers.poisoned(state.shape, dtype)
        state[:] = state_of(plan)
    nbprop.forward(plan, params, x, y, work, state)
    nbprop.backward(plan, params, x, dy, grads, dx, work, False, state)
    out = {"y": y, "grads of dy": grads}
    out |= {name: array for name, array in (("dx", dx), ("state", state)) if array is not None}
    if plan.loss is not None:
        work[:] = np.nan
        loss_grads = buffers.poisoned(params.shape, dtype)
        out["loss"] = np.float64(nbprop.value_and_grad(plan, params, x, target, loss_grads, work, weights, state=state))
        out["grads"] = loss_grads
    buffers.check()
    return out
