"""Fleets: thousands of small networks of one architecture, each fitted to its own data, in compiled code.

Every model has its own line search, damping and stopping criterion; a thread fits a contiguous range of models, so
results are bitwise identical on any number of threads. At any time, the parameters of a model are the best ones
evaluated so far.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbprop.arrays import as_array, check_kinds, check_memory, described
from nbprop.autodiff.derivatives import jacobian
from nbprop.autodiff.gradients import forward, value_and_grad
from nbprop.compiler.jit import njit
from nbprop.losses.base import Loss
from nbprop.lowering.plan import plan as make_plan
from nbprop.lowering.plan import workspace
from nbprop.messages import ALIASED, DTYPE, failure
from nbprop.networks.network import Network
from nbprop.numerics.reductions import row_sum
from nbprop.optimizers.api import adam, optimizer_state
from nbprop.runtime.datasets import check_column, check_layers
from nbprop.runtime.pieces import Pace, in_threads
from nbprop.solvers import lbfgs as solvers
from nbprop.solvers import levenberg_marquardt as marquardt
from nbprop.solvers.lbfgs import lbfgs_state, lbfgs_step
from nbprop.solvers.levenberg_marquardt import lm_state, lm_step
from nbprop.validation import check_integer, check_number, choose

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

_LBFGS_ITERATIONS, _NOT_FINITE = solvers.ITERATIONS, solvers.NOT_FINITE
_LM_ITERATIONS, _LM_EVALUATIONS = marquardt.ITERATIONS, marquardt.EVALUATIONS
_SMALL_STEP, _NO_STEP = marquardt.SMALL_STEP, marquardt.NO_STEP

METHODS = ("L-BFGS", "marquardt", "adam")
INTERRUPTED = -1  # the status of a model whose fit Ctrl-C interrupted
# Statuses of a fit that met a criterion; the only one of Adam is the number of steps.
_SUCCESS = {
    "L-BFGS": (solvers.GRADIENT, solvers.SLOW),
    "marquardt": (marquardt.GRADIENT, marquardt.SMALL_STEP, marquardt.SLOW),
    "adam": (0,),
}
# The position of a thread: the current model, and its step.
_MODEL, _STEP = 0, 1


@dataclass(frozen=True)
class FleetResult:
    """What `fit_many` returns: one entry per model.

    fun : (models,), losses at the parameters; NaN for a model not begun before Ctrl-C, infinity for one whose loss is
        not finite at the start
    nit : (models,), iterations
    status : (models,), why each stopped, keys of `reasons`; 0 after the maximum number of iterations, -1 for Ctrl-C
    success : (models,) bool, whether a criterion was met (for Adam: whether all steps were made)
    reasons : {status: its meaning}
    """

    fun: np.ndarray
    nit: np.ndarray
    status: np.ndarray
    success: np.ndarray
    reasons: dict


@njit
def _is_finite(loss, grads, theta):
    return np.isfinite(loss) and np.isfinite(row_sum(grads)) and np.isfinite(row_sum(theta))


@njit
def _update_best(losses, thetas, model, loss, theta):
    """Store a point that is better than the best so far of its model."""
    if loss < losses[model] or np.isnan(losses[model]):
        losses[model] = loss
        thetas[model] = theta


@njit
def _lbfgs_piece(
    plan, thetas, xs, ys, losses, iterations, status, at, last, maxiter, start, state, theta, grads, work, most
):
    """Up to `most` evaluations, of models at[_MODEL] to last, by L-BFGS; returns their number. start: a new state."""
    for done in range(most):
        model = at[_MODEL]
        if model >= last:
            return done
        if at[_STEP] == 0:
            state[:] = start
            theta[:] = thetas[model]
        at[_STEP] += 1
        loss = value_and_grad(plan, theta, xs[model], ys[model], grads, work)
        if not _is_finite(loss, grads, theta):
            loss = np.inf
        _update_best(losses, thetas, model, loss, theta)
        outcome = lbfgs_step(state, theta, loss, grads)
        iterations[model] = state[_LBFGS_ITERATIONS]
        if outcome != 0 or iterations[model] >= maxiter:
            status[model] = outcome
            at[_MODEL], at[_STEP] = model + 1, 0
    return most


@njit
def _adam_piece(
    plan, thetas, xs, ys, losses, iterations, status, at, last, maxiter, lr, state, theta, grads, work, most
):
    """Up to `most` evaluations, of models at[_MODEL] to last, by full-batch Adam; returns their number."""
    for done in range(most):
        model, step = at[_MODEL], at[_STEP]
        if model >= last:
            return done
        if step == 0:
            state[:] = 0
            theta[:] = thetas[model]
        loss = value_and_grad(plan, theta, xs[model], ys[model], grads, work)
        finite = _is_finite(loss, grads, theta)
        _update_best(losses, thetas, model, loss if finite else np.inf, theta)
        if finite and step < maxiter:
            adam(theta, grads, state, step, lr)
            iterations[model] = at[_STEP] = step + 1
        else:
            status[model] = 0 if finite else _NOT_FINITE
            at[_MODEL], at[_STEP] = model + 1, 0
    return most


@njit
def _lm_piece(
    plan,
    thetas,
    xs,
    ys,
    losses,
    iterations,
    status,
    at,
    last,
    maxiter,
    start,
    state,
    theta,
    matrix,
    work,
    outputs,
    most,
):
    """Up to `most` evaluations, of models at[_MODEL] to last, by Levenberg-Marquardt; returns their number.

    `outputs` holds predictions, then residuals; `matrix` their Jacobian; at[_STEP] is what lm_step wants next.
    """
    flat = outputs.reshape(-1)
    for done in range(most):
        model = at[_MODEL]
        if model >= last:
            return done
        if at[_STEP] == 0:
            state[:] = start
            theta[:] = thetas[model]
            at[_STEP] = 1
        cost = 0.0
        if at[_STEP] == 1:
            forward(plan, theta, xs[model], outputs, work)
            target = ys[model].reshape(-1)
            for i in range(flat.size):
                flat[i] -= target[i]
                cost += flat[i] * flat[i]
            if not (np.isfinite(cost) and np.isfinite(row_sum(theta))):
                cost = flat[0] = np.inf
            _update_best(losses, thetas, model, cost / flat.size, theta)
        else:
            jacobian(plan, theta, xs[model], matrix, work)
        want = lm_step(state, theta, flat, matrix)
        if want == _SMALL_STEP and cost == np.inf:
            want = _NO_STEP  # the step is small because no point farther away is finite
        at[_STEP] = want
        iterations[model] = state[_LM_ITERATIONS]
        if want > 2 or state[_LM_EVALUATIONS] > maxiter:
            status[model] = want if want > 2 else 0
            at[_MODEL], at[_STEP] = model + 1, 0
    return most


def fit_many(
    net: Network,
    thetas: NDArray[Any],
    xs: NDArray[Any],
    ys: NDArray[Any],
    loss: str | Loss = "mse",
    method: str = "L-BFGS",
    maxiter: int = 200,
    gtol: float = 1e-08,
    ftol: float = 1e-09,
    lr: float = 0.01,
    threads: int = 1,
) -> "OptimizeResult":
    """Fit many networks of one architecture, each to its own data, in place.

    Parameters
    ----------
    net : Network
    thetas : (models, n_params) float64 array, the starts; overwritten with the best parameters found
    xs : (models, n, *input_shape) float64 array
    ys : (models, n, *output_shape) float64 array; integers (models, n, *output_shape[:-1]) for classes
    loss : as `plan` takes it; "mse" for method="marquardt"
    method : "L-BFGS", "marquardt" (Levenberg-Marquardt) or "adam" (all of a model's data in each step)
    maxiter : maximum number of iterations per model (of evaluations, for marquardt)
    gtol, ftol : as `lbfgs_state` and `lm_state` take them; lr : Adam's
    threads : number of threads, which divide the models; the bits do not depend on it

    Returns
    -------
    FleetResult
        thetas hold the best finite parameters that were evaluated, whose losses are `fun`. Ctrl-C ends the call within
        a fifth of a second, with status -1 for the unfinished models.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, in any model, named with its value; nothing has been written then.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net, x = nbprop.network((1,), nbprop.dense(1)), np.linspace(-1, 1, 20)[:, None]
    >>> slopes = np.array([1.0, 2.0, 3.0])[:, None, None]
    >>> thetas = np.zeros((3, 2))
    >>> result = nbprop.fit_many(net, thetas, np.stack([x] * 3), slopes * x)
    >>> thetas[:, 0].round(4)
    array([1., 2., 3.])
    """
    if not isinstance(net, Network):
        raise TypeError(f"fit_many: net must be what nbprop.network(...) returns, got {type(net).__name__}")
    method = choose("fit_many: method", method, METHODS)
    maxiter = check_integer("fit_many: maxiter", maxiter)
    threads = check_integer("fit_many: threads", threads)
    gtol, ftol = check_number("fit_many: gtol", gtol), check_number("fit_many: ftol", ftol)
    lr = check_number("fit_many: lr", lr)
    thetas = _check("thetas", thetas, np.float64, 2, written=True)
    xs = _check("xs", xs, None if net.layers[0].index_limit else np.float64, 2 + len(net.input_shape))
    models, samples = len(thetas), xs.shape[1]
    if loss is None:
        raise ValueError("fit_many: loss is needed, got None; give one as plan takes it")
    plan = make_plan(net, loss=loss, batch=max(1, samples))
    check_layers("fit_many", plan)
    if method == "marquardt" and plan.loss.kind != "mse":
        raise ValueError(f"fit_many: method marquardt needs loss='mse', got {plan.loss.kind}; use L-BFGS")
    target_shape = (models, samples, *plan.target_shape)
    ys = _check("ys", ys, None if plan.classes else np.float64, len(target_shape))
    for name, array, shape in (
        ("thetas", thetas, (models, net.n_params)),
        ("xs", xs, (models, samples, *net.input_shape)),
        ("ys", ys, target_shape),
    ):
        if array.shape != shape:
            raise ValueError(f"fit_many: {name} must have shape {shape}, got {array.shape}")
        if array is not thetas and np.may_share_memory(array, thetas):
            raise failure(ALIASED, "fit_many: thetas", detail=name)
    if models == 0 or samples == 0:
        raise ValueError(f"fit_many: there must be at least one model and one sample, got xs of shape {xs.shape}")
    for model in range(models):
        check_column("fit_many", f"thetas[{model}]", thetas[model], None, (), plan.dtype)
        check_column("fit_many", f"xs[{model}]", xs[model], None, plan.input_shape, plan.dtype, plan.x_classes)
        check_column(
            "fit_many", f"ys[{model}]", ys[model], None, plan.target_shape, plan.dtype, plan.classes, plan.loss
        )
    losses, iterations = np.full(models, np.nan), np.zeros(models, np.int64)
    status = np.full(models, INTERRUPTED)
    piece_of = _pieces(method, plan, maxiter, gtol, ftol, lr)

    def fit_range(first, last, stopped):
        piece, buffers = piece_of()
        at, pace = np.array([first, 0]), Pace()
        while at[_MODEL] < last and not stopped():
            most = pace.begin()
            done = piece(plan, thetas, xs, ys, losses, iterations, status, at, last, maxiter, *buffers, most)
            pace.end(done)

    try:
        in_threads(fit_range, [(0, 1)])  # compile everything before other threads start
        if models > 1:
            bounds = np.linspace(1, models, min(threads, models - 1) + 1).astype(int).tolist()
            in_threads(fit_range, list(pairwise(bounds)))
    except KeyboardInterrupt:
        pass  # the status of the unfinished models says so
    reasons = marquardt.REASONS if method == "marquardt" else dict(enumerate(solvers.REASONS))
    if method == "adam":
        reasons = {_NOT_FINITE: "the loss or its gradient became infinite or NaN; the best parameters so far are kept"}
    reasons = {**reasons, 0: f"maximum number of iterations reached ({maxiter})", INTERRUPTED: "interrupted"}
    return FleetResult(losses, iterations, status, np.isin(status, _SUCCESS[method]), reasons)


def _pieces(method, plan, maxiter, gtol, ftol, lr):
    """A function that returns what a thread works with: (the method's piece, buffers of its own)."""
    n = plan.n_params

    def buffers():
        work, theta = workspace(plan), np.empty(n)
        if method == "L-BFGS":
            start = lbfgs_state(n, gtol=gtol, ftol=ftol)
            return _lbfgs_piece, (start, start.copy(), theta, np.empty(n), work)
        if method == "adam":
            return _adam_piece, (lr, optimizer_state("adam", n), theta, np.empty(n), work)
        start = lm_state(n, gtol=gtol, ftol=ftol)
        outputs = np.empty((plan.batch, *plan.output_shape))
        return _lm_piece, (start, start.copy(), theta, np.empty((outputs.size, n)), work, outputs)

    return buffers


def _check(name, array, dtype, rank, *, written=False):
    """An array as an ndarray, with its dtype (None: integers), rank and order checked."""
    argument = f"fit_many: {name}"
    array = as_array(argument, array)
    if dtype is not None:
        check_kinds(argument, array, dtype)
    elif array.dtype.kind not in "iu":
        raise failure(DTYPE, argument, kind="integers", got=described(array))
    if array.ndim != rank:
        raise ValueError(f"{argument} must have {rank} axes, got shape {array.shape}")
    check_memory(argument, array, written)
    return array
