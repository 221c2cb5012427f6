"""Fleets: thousands of small networks of one architecture, each fitted to its own data, in compiled code.

Every model has its own line search, damping and stopping criterion; a thread fits a contiguous range of models, so
results are bitwise identical on any number of threads. At any time, the parameters of a model are the best ones
evaluated so far.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbprop.arrays import as_array, check_kinds, check_memory, described
from nbprop.losses.base import Loss
from nbprop.lowering.plan import plan as make_plan
from nbprop.messages import ALIASED, DTYPE, failure
from nbprop.networks.network import Network
from nbprop.runtime.datasets import check_column, check_layers, check_weights
from nbprop.solvers import lbfgs as solvers
from nbprop.solvers import levenberg_marquardt as marquardt
from nbprop.solvers.fleet import INTERRUPTED, Fleet
from nbprop.solvers.fleet_jobs import fit_in_jobs, job_count
from nbprop.solvers.fleet_pieces import NOT_FINITE
from nbprop.validation import check_integer, check_number, choose, shown

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

METHODS = ("L-BFGS", "marquardt", "adam")
# Statuses of a fit that met a criterion; the only one of Adam is the number of steps.
_SUCCESS = {
    "L-BFGS": (solvers.GRADIENT, solvers.SLOW),
    "marquardt": (marquardt.GRADIENT, marquardt.SMALL_STEP, marquardt.SLOW),
    "adam": (0,),
}


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
    n_jobs: int | None = None,
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
    n_jobs : number of joblib's workers that divide the models, on the backend that `joblib.parallel_config` has set;
        -1 for as many as that has. None is the number that `parallel_config` has set, or else this process alone. Each
        worker has its share of `threads`, at least one; the bits depend on none of that.

    Returns
    -------
    FleetResult
        thetas hold the best finite parameters that were evaluated, whose losses are `fun`. Ctrl-C ends the call within
        a fifth of a second, with status -1 for the unfinished models.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, in any model, named with its value; nothing has been written then.
    RuntimeError
        If a worker fails, with the numbers of the models that it had; the finished ones are written.

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
    for model in range(models):
        check_column("fit_many", f"thetas[{model}]", thetas[model], None, (), plan.dtype)
    for row, count in enumerate(counts.tolist()):
        check_column("fit_many", f"xs[{row}]", xs[row, :count], None, plan.input_shape, plan.dtype, plan.x_classes)
        target = ys[row, :count]
        check_column("fit_many", f"ys[{row}]", target, None, plan.target_shape, plan.dtype, plan.classes, plan.loss)
        if weights is not None:
            column = check_column("fit_many", f"weights[{row}]", weights[row, :count], None, (), plan.dtype)
            check_weights(f"fit_many: weights[{row}]", column)
    penalties = [_numbers(name, given, models) for name, given in (("l2", l2), ("l1", l1))]
    if method != "L-BFGS" and penalties[1].any():
        raise ValueError(f"fit_many: method {method} takes no l1; use L-BFGS")
    data = _indices("data", data, models, 0, sets - 1, np.arange(models))
    fleet = Fleet(
        *(plan, thetas, xs, ys, weights, data, counts, *penalties, penalized, method, maxiter, (gtol, ftol, lr))
    )
    workers = job_count("fit_many", n_jobs)
    outcome = fleet.fit(threads) if workers == 1 else fit_in_jobs(fleet, n_jobs, workers, threads)
    reasons = marquardt.REASONS if method == "marquardt" else dict(enumerate(solvers.REASONS))
    if method == "adam":
        reasons = {NOT_FINITE: "the loss or its gradient became infinite or NaN; the best parameters so far are kept"}
    reasons = {**reasons, 0: f"maximum number of iterations reached ({maxiter})", INTERRUPTED: "interrupted"}
    success = np.isin(outcome.status, _SUCCESS[method])
    return FleetResult(outcome.losses, outcome.iterations, outcome.status, success, reasons)


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
