"""The compiled part of `fit_many`: pieces of a fleet's fits, so many evaluations each, by three methods.

A piece goes on where the one before stopped: `at` holds the current model and its step.
"""

import numpy as np
from numba import types
from numba.extending import overload

from nbprop.autodiff.derivatives import jacobian
from nbprop.autodiff.gradients import forward, value_and_grad
from nbprop.compiler.jit import FLAGS, njit
from nbprop.lowering.plan import workspace
from nbprop.numerics.reductions import row_sum
from nbprop.optimizers.api import adam, optimizer_state
from nbprop.solvers import lbfgs as solvers
from nbprop.solvers import levenberg_marquardt as marquardt
from nbprop.solvers.lbfgs import lbfgs_state, lbfgs_step
from nbprop.solvers.levenberg_marquardt import lm_state, lm_step

_LBFGS_ITERATIONS, NOT_FINITE = solvers.ITERATIONS, solvers.NOT_FINITE
_LM_ITERATIONS, _LM_EVALUATIONS = marquardt.ITERATIONS, marquardt.EVALUATIONS
_SMALL_STEP, _NO_STEP = marquardt.SMALL_STEP, marquardt.NO_STEP

# The position of a thread: the current model, and its step.
MODEL, _STEP = 0, 1


@njit
def is_finite(loss, grads, theta):
    return np.isfinite(loss) and np.isfinite(row_sum(grads)) and np.isfinite(row_sum(theta))


@njit
def _update_best(losses, thetas, model, loss, theta):
    """Store a point that is better than the best so far of its model."""
    if loss < losses[model] or np.isnan(losses[model]):
        losses[model] = loss
        thetas[model] = theta


@njit
def _data_of(fleet, model):
    """(x, target, weights) of a model: views of those of its data set, up to its number of samples."""
    xs, ys, weights, data, samples = fleet
    row = data[model]
    n = samples[row]
    return xs[row][:n], ys[row][:n], _weights_of(weights, row, n)


def _weights_of(weights, row, n):
    """The first n weights of a row; None without weights."""
    raise TypeError("runs in compiled code only")


@overload(_weights_of, jit_options=FLAGS, strict=False)
def _weights_of_compiled(weights, row, n):
    if isinstance(weights, types.Array):
        return lambda weights, row, n: weights[row][:n]
    return lambda weights, row, n: None


@njit
def _lbfgs_piece(
    plan, fleet, thetas, losses, iterations, status, models, at, last, maxiter, start, state, theta, grads, work, most
):
    """Up to `most` evaluations, of models at[MODEL] to last, by L-BFGS; returns their number. start: a new state."""
    for done in range(most):
        if at[MODEL] >= last:
            return done
        model = models[at[MODEL]]
        if at[_STEP] == 0:
            state[:] = start
            theta[:] = thetas[model]
        at[_STEP] += 1
        x, y, w = _data_of(fleet, model)
        loss = value_and_grad(plan, theta, x, y, grads, work, w)
        if not is_finite(loss, grads, theta):
            loss = np.inf
        _update_best(losses, thetas, model, loss, theta)
        outcome = lbfgs_step(state, theta, loss, grads)
        iterations[model] = state[_LBFGS_ITERATIONS]
        if outcome != 0 or iterations[model] >= maxiter:
            status[model] = outcome
            at[MODEL], at[_STEP] = at[MODEL] + 1, 0
    return most


@njit
def _adam_piece(
    plan, fleet, thetas, losses, iterations, status, models, at, last, maxiter, lr, state, theta, grads, work, most
):
    """Up to `most` evaluations, of models at[MODEL] to last, by full-batch Adam; returns their number."""
    for done in range(most):
        if at[MODEL] >= last:
            return done
        model, step = models[at[MODEL]], at[_STEP]
        if step == 0:
            state[:] = 0
            theta[:] = thetas[model]
        x, y, w = _data_of(fleet, model)
        loss = value_and_grad(plan, theta, x, y, grads, work, w)
        finite = is_finite(loss, grads, theta)
        _update_best(losses, thetas, model, loss if finite else np.inf, theta)
        if finite and step < maxiter:
            adam(theta, grads, state, step, lr)
            iterations[model] = at[_STEP] = step + 1
        else:
            status[model] = 0 if finite else NOT_FINITE
            at[MODEL], at[_STEP] = at[MODEL] + 1, 0
    return most


@njit
def _total_weight(w, n):
    """sum(w); n without weights."""
    return float(n) if w is None else row_sum(w)


@njit
def _residuals(flat, outputs, y, w, theta, penalized, factor):
    """flat = sqrt(w) (outputs - y), then factor theta of each penalized parameter; returns their sum of squares.

    outputs is the beginning of flat.
    """
    target, total = y.reshape(-1), 0.0
    count, each = target.size, target.size // y.shape[0]
    for i in range(count):
        flat[i] -= target[i]
        if w is not None:
            flat[i] *= np.sqrt(w[i // each])
    for i in range(penalized.size):
        flat[count + i] = factor * theta[penalized[i]]
    for i in range(count + penalized.size):
        total += flat[i] * flat[i]
    return total


@njit
def _rows_of(matrix, count, w, penalized, factor):
    """The rows of a Jacobian by those of the outputs, its first `count`: times sqrt(w), then the penalty's."""
    if w is not None:
        each = count // w.size
        for i in range(count):
            matrix[i] *= np.sqrt(w[i // each])
    for i in range(penalized.size):
        matrix[count + i] = 0.0
        matrix[count + i, penalized[i]] = factor


@njit
def _lm_piece(
    plan,
    fleet,
    thetas,
    losses,
    iterations,
    status,
    models,
    at,
    last,
    maxiter,
    start,
    state,
    theta,
    matrix,
    work,
    outputs,
    flat,
    penalized,
    l2,
    most,
):
    """Up to `most` evaluations, of models at[MODEL] to last, by Levenberg-Marquardt; returns their number.

    flat holds residuals, those of the data first, where `outputs` lies; `matrix` their Jacobian; at[_STEP] is what
    lm_step wants next. The cost is sum(w) times the outputs of a sample, halved, times the loss.
    """
    for done in range(most):
        if at[MODEL] >= last:
            return done
        model = models[at[MODEL]]
        if at[_STEP] == 0:
            state[:] = start
            theta[:] = thetas[model]
            at[_STEP] = 1
        x, y, w = _data_of(fleet, model)
        n, cost = y.shape[0], 0.0
        count = outputs.size // outputs.shape[0] * n
        total = _total_weight(w, n) * (count // n)
        factor = np.sqrt(0.5 * l2 * total)
        residuals = flat[: count + penalized.size]
        if at[_STEP] == 1:
            forward(plan, theta, x, outputs[:n], work)
            cost = _residuals(residuals, outputs, y, w, theta, penalized, factor)
            if not (np.isfinite(cost) and np.isfinite(row_sum(theta))):
                cost = residuals[0] = np.inf
            _update_best(losses, thetas, model, cost / total, theta)
        else:
            jacobian(plan, theta, x, matrix[:count], work)
            _rows_of(matrix, count, w, penalized, factor)
        want = lm_step(state, theta, residuals, matrix[: residuals.size])
        if want == _SMALL_STEP and cost == np.inf:
            want = _NO_STEP  # the step is small because no point farther away is finite
        at[_STEP] = want
        iterations[model] = state[_LM_ITERATIONS]
        if want > 2 or state[_LM_EVALUATIONS] >= maxiter:
            status[model] = want if want > 2 else 0
            at[MODEL], at[_STEP] = at[MODEL] + 1, 0
    return most


def piece_of(method, plan, gtol, ftol, lr):
    """What a thread works with: (the method's piece, buffers of its own)."""
    n, work, penalty = plan.n_params, workspace(plan), plan.penalty
    theta, penalized = np.empty(n), np.zeros(n, bool) if penalty is None else penalty.mask(n)
    if method == "L-BFGS":
        l1 = None if penalty is None or penalty.l1 == 0 else penalty.l1 * penalized
        start = lbfgs_state(n, gtol=gtol, ftol=ftol, l1=l1)
        return _lbfgs_piece, (start, start.copy(), theta, np.empty(n), work)
    if method == "adam":
        return _adam_piece, (lr, optimizer_state("adam", n), theta, np.empty(n), work)
    start, held = lm_state(n, gtol=gtol, ftol=ftol), np.flatnonzero(penalized)
    count = plan.batch * plan.unit_size
    flat = np.empty(count + held.size)
    outputs, matrix = flat[:count].reshape(plan.batch, *plan.output_shape), np.empty((flat.size, n))
    l2 = 0.0 if penalty is None else penalty.l2
    return _lm_piece, (start, start.copy(), theta, matrix, work, outputs, flat, held, l2)
