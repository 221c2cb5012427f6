"""Fleets: thousands of small networks of one architecture, each fitted to its own data, in compiled code.

Every model has its own line search, damping and stopping criterion; a thread fits a contiguous range of models, so
results are bitwise identical on any number of threads. At any time, the parameters of a model are the best ones
evaluated so far.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from nbprop.arrays import as_array, check_kinds, check_memory, described
from nbprop.autodiff.derivatives import jacobian
from nbprop.autodiff.gradients import forward, value_and_grad
from nbprop.compiler.jit import FLAGS, njit
from nbprop.losses.base import Loss
from nbprop.losses.penalty import penalty_of
from nbprop.lowering.plan import plan as make_plan
from nbprop.lowering.plan import plan_like, workspace
from nbprop.messages import ALIASED, DTYPE, failure
from nbprop.networks.network import Network
from nbprop.numerics.reductions import row_sum
from nbprop.optimizers.api import adam, optimizer_state
from nbprop.runtime.datasets import check_column, check_layers, check_weights
from nbprop.runtime.pieces import Pace, in_threads
from nbprop.solvers import lbfgs as solvers
from nbprop.solvers import levenberg_marquardt as marquardt
from nbprop.solvers.lbfgs import lbfgs_state, lbfgs_step
from nbprop.solvers.levenberg_marquardt import lm_state, lm_step
from nbprop.validation import check_integer, check_number, choose, shown

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
    """Up to `most` evaluations, of models at[_MODEL] to last, by L-BFGS; returns their number. start: a new state."""
    for done in range(most):
        if at[_MODEL] >= last:
            return done
        model = models[at[_MODEL]]
        if at[_STEP] == 0:
            state[:] = start
            theta[:] = thetas[model]
        at[_STEP] += 1
        x, y, w = _data_of(fleet, model)
        loss = value_and_grad(plan, theta, x, y, grads, work, w)
        if not _is_finite(loss, grads, theta):
            loss = np.inf
        _update_best(losses, thetas, model, loss, theta)
        outcome = lbfgs_step(state, theta, loss, grads)
        iterations[model] = state[_LBFGS_ITERATIONS]
        if outcome != 0 or iterations[model] >= maxiter:
            status[model] = outcome
            at[_MODEL], at[_STEP] = at[_MODEL] + 1, 0
    return most


@njit
def _adam_piece(
    plan, fleet, thetas, losses, iterations, status, models, at, last, maxiter, lr, state, theta, grads, work, most
):
    """Up to `most` evaluations, of models at[_MODEL] to last, by full-batch Adam; returns their number."""
    for done in range(most):
        if at[_MODEL] >= last:
            return done
        model, step = models[at[_MODEL]], at[_STEP]
        if step == 0:
            state[:] = 0
            theta[:] = thetas[model]
        x, y, w = _data_of(fleet, model)
        loss = value_and_grad(plan, theta, x, y, grads, work, w)
        finite = _is_finite(loss, grads, theta)
        _update_best(losses, thetas, model, loss if finite else np.inf, theta)
        if finite and step < maxiter:
            adam(theta, grads, state, step, lr)
            iterations[model] = at[_STEP] = step + 1
        else:
            status[model] = 0 if finite else _NOT_FINITE
            at[_MODEL], at[_STEP] = at[_MODEL] + 1, 0
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
    """Up to `most` evaluations, of models at[_MODEL] to last, by Levenberg-Marquardt; returns their number.

    flat holds residuals, those of the data first, where `outputs` lies; `matrix` their Jacobian; at[_STEP] is what
    lm_step wants next. The cost is sum(w) times the outputs of a sample, halved, times the loss.
    """
    for done in range(most):
        if at[_MODEL] >= last:
            return done
        model = models[at[_MODEL]]
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
            at[_MODEL], at[_STEP] = at[_MODEL] + 1, 0
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
    weights: NDArray[Any] | None = None,
    samples: NDArray[Any] | None = None,
    data: NDArray[Any] | None = None,
    l2: float | NDArray[Any] = 0.0,
    l1: float | NDArray[Any] = 0.0,
    penalized: NDArray[np.bool_] | None = None,
) -> "OptimizeResult":
    """Fit many networks of one architecture, each to its own data, in place.

    The data are as many sets as there are models, or fewer, which several models share.

    Parameters
    ----------
    net : Network
    thetas : (models, n_params) float64 array, the starts; overwritten with the best parameters found
    xs : (sets, n, *input_shape) float64 array
    ys : (sets, n, *output_shape) float64 array; integers (sets, n, *output_shape[:-1]) for classes
    loss : as `plan` takes it; "mse" for method="marquardt"
    method : "L-BFGS", "marquardt" (Levenberg-Marquardt) or "adam" (all of a model's data in each step)
    maxiter : maximum number of iterations per model (of evaluations, for marquardt)
    gtol, ftol : as `lbfgs_state` and `lm_state` take them; lr : Adam's
    threads : number of threads, which divide the models; the bits do not depend on it
    weights : (sets, n) float64 array of sample weights, none negative, or None; a set's loss is sum(w l) / sum(w)
    samples : (sets,) integers, how many of the n samples each set has, or None for all; others are not looked at
    data : (models,) integers, the set that each model is fitted to, or None: as many sets as models, one each
    l2, l1 : penalties as `plan` takes them, for all models or a (models,) float64 array; l1 for method="L-BFGS" alone
    penalized : (n_params,) bool or None, as `plan` takes it

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
    models, sets, n = len(thetas), *xs.shape[:2]
    if loss is None:
        raise ValueError("fit_many: loss is needed, got None; give one as plan takes it")
    plan = make_plan(net, loss=loss, batch=max(1, n))
    check_layers("fit_many", plan)
    if method == "marquardt" and not (plan.loss.kind == "mse" and plan.loss.plain):
        got = repr(plan.loss) if plan.loss.kind == "mse" else plan.loss.kind
        raise ValueError(f"fit_many: method marquardt needs loss='mse', got {got}; use L-BFGS")
    target_shape = (sets, n, *plan.target_shape)
    ys = _check("ys", ys, None if plan.classes else np.float64, len(target_shape))
    weights = None if weights is None else _check("weights", weights, np.float64, 2)
    for name, array, shape in (
        ("thetas", thetas, (models, net.n_params)),
        ("xs", xs, (models if data is None else sets, n, *net.input_shape)),
        ("ys", ys, target_shape),
        ("weights", weights, (sets, n)),
    ):
        if array is not None and array.shape != shape:
            raise ValueError(f"fit_many: {name} must have shape {shape}, got {array.shape}")
        if array is not None and array is not thetas and np.may_share_memory(array, thetas):
            raise failure(ALIASED, "fit_many: thetas", detail=name)
    if models == 0 or sets == 0 or n == 0:
        raise ValueError(f"fit_many: there must be at least one model and one sample, got xs of shape {xs.shape}")
    counts = _indices("samples", samples, sets, 1, n, np.full(sets, n))
    fleet = xs, ys, weights, _indices("data", data, models, 0, sets - 1, np.arange(models)), counts
    for model in range(models):
        check_column("fit_many", f"thetas[{model}]", thetas[model], None, (), plan.dtype)
    for row, count in enumerate(counts.tolist()):
        check_column("fit_many", f"xs[{row}]", xs[row, :count], None, plan.input_shape, plan.dtype, plan.x_classes)
        target = ys[row, :count]
        check_column("fit_many", f"ys[{row}]", target, None, plan.target_shape, plan.dtype, plan.classes, plan.loss)
        if weights is not None:
            column = check_column("fit_many", f"weights[{row}]", weights[row, :count], None, (), plan.dtype)
            check_weights(f"fit_many: weights[{row}]", column)
    groups = _groups(plan, method, models, l2, l1, penalized)
    order = np.concatenate([group for group, _ in groups])
    losses, iterations = np.full(models, np.nan), np.zeros(models, np.int64)
    status = np.full(models, INTERRUPTED)
    results = thetas, losses, iterations, status, order

    def fit_range(first, last, stopped):
        begin = 0
        for group, own in groups:
            at, stop, pace = np.array([max(first, begin), 0]), min(last, begin + len(group)), Pace()
            begin += len(group)
            if at[_MODEL] < stop:
                piece, buffers = _piece(method, own, gtol, ftol, lr)
            while at[_MODEL] < stop and not stopped():
                most = pace.begin()
                pace.end(piece(own, fleet, *results, at, stop, maxiter, *buffers, most))

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


def _groups(plan, method, models, l2, l1, penalized):
    """[(numbers of models, their plan)]: the models with the same penalties, which belong to a plan."""
    factors = [_numbers(name, given, models) for name, given in (("l2", l2), ("l1", l1))]
    if method != "L-BFGS" and factors[1].any():
        raise ValueError(f"fit_many: method {method} takes no l1; use L-BFGS")
    pairs, numbers = np.unique(np.stack(factors, axis=1), axis=0, return_inverse=True)
    found = []
    for k, (own_l2, own_l1) in enumerate(pairs.tolist()):
        penalty = penalty_of("fit_many", plan.net, own_l2, own_l1, penalized)
        found.append((np.flatnonzero(numbers.reshape(-1) == k), plan_like(plan, penalty=penalty)))
    return found


def _piece(method, plan, gtol, ftol, lr):
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


def _indices(name, array, size, least, most, default):
    """(size,) integers in least..most, as int64; `default` for None."""
    if array is None:
        return default.astype(np.int64)
    array = _check(name, array, None, 1)
    if array.shape != (size,) or array.min() < least or array.max() > most:
        raise ValueError(f"fit_many: {name} must hold {size} integers in {least}..{most}, got {shown(array)}")
    return array.astype(np.int64)


def _numbers(name, given, models):
    """(models,) float64: a number for all, or an array with one for each."""
    if not isinstance(given, np.ndarray):
        return np.full(models, check_number(f"fit_many: {name}", given))
    given = _check(name, given, np.float64, 1)
    if given.shape != (models,) or not (np.isfinite(given).all() and given.min() >= 0):
        raise ValueError(f"fit_many: {name} must hold {models} finite numbers, none below 0, got {shown(given)}")
    return given


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
