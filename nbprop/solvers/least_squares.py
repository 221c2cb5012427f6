"""SciPy's least-squares solvers on a plan: residuals and their exact Jacobian, as a matrix or as products."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbprop.arrays import check_vector
from nbprop.cluster.parts import on_ranks
from nbprop.lowering.plan import Plan
from nbprop.messages import ALIASED, failure
from nbprop.networks.network import trained_of
from nbprop.runtime.datasets import check_dataset, check_layers
from nbprop.solvers.bounds import Free
from nbprop.solvers.levenberg_marquardt import check_tolerances, levenberg_marquardt
from nbprop.solvers.residuals import RHO, Residuals
from nbprop.solvers.residuals_on_ranks import ResidualsOnRanks
from nbprop.validation import check_integer, check_number, choose

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

_METHODS = ("trf", "dogbox", "lm", "marquardt")
# The fields of every result, however the search ended.
_OF_THE_METHOD = ("jac", "grad", "optimality", "active_mask")
_FIELDS = ("x", "cost", "fun", *_OF_THE_METHOD, "nit", "nfev", "njev", "success", "status", "message")


@on_ranks
def least_squares(
    plan: Plan,
    params: NDArray[Any],
    x: NDArray[Any],
    target: NDArray[Any],
    method: str = "trf",
    jac: str = "dense",
    loss: str = "linear",
    f_scale: float = 1.0,
    bounds: Any = None,
    weights: NDArray[Any] | None = None,
    ftol: float | None = 1e-08,
    xtol: float | None = 1e-08,
    gtol: float | None = 1e-08,
    max_nfev: int | None = None,
    comm: Any = None,
    pieces: int = 64,
    data: str = "whole",
) -> "OptimizeResult":
    """Fit parameters by scipy.optimize.least_squares, in place, with the network's exact Jacobian.

    Parameters
    ----------
    plan : Plan made with loss="mse", whose residuals are the outputs' errors, or a `custom_loss` with a residual. With
        l2, each penalized parameter has a residual more, sqrt(sum(w) outputs l2 / 2) theta, so that the cost is sum(w)
        outputs / 2 times the plan's loss; l1 is no sum of squares
    params : (n_params,) array of the plan's dtype, the start; overwritten with the result, but for numbers that layers
        are given (`trainable_mask`)
    x, target, weights : as `objective` takes them; a sample's residuals are sqrt(w) (y - t)
    method : "trf", "dogbox" (both take bounds), "lm" (MINPACK's Levenberg-Marquardt; as many residuals as parameters
        are needed) or "marquardt" (nbprop's own, see levenberg_marquardt.py)
    jac : "dense", the matrix (n * outputs, n_params), or "operator", products only (trf and dogbox)
    loss, f_scale : SciPy's robust loss ("linear", "soft_l1", "huber", "cauchy", "arctan") and its scale
    bounds : as `minimize` takes them
    ftol, xtol, gtol, max_nfev : as scipy.optimize.least_squares takes them
    comm, pieces, data : as `fit` takes them; each rank computes its rows of the Jacobian and holds all of it

    Returns
    -------
    scipy.optimize.OptimizeResult
        However it ended, with the fields x (all parameters, float64), fun (the residuals there), cost (half the sum of
        squares under loss="linear"), jac, grad, optimality, active_mask (SciPy's, with 0 for fixed parameters; None if
        the search was stopped), nit (the number of steps that lowered the cost), nfev, njev, success, status and
        message. params hold x, are finite, and their cost is never above that of the start. Ctrl-C ends the search at
        the best point so far, with status -1.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, a plan with another loss, residuals that are not finite at the start.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params, x = nbprop.plan(net, loss="mse", batch=20), nbprop.init(net), np.linspace(-1, 1, 20)[:, None]
    >>> result = nbprop.least_squares(plan, params, x, 3 * x + 1, method="lm")
    >>> params.round(6)
    array([3., 1.])
    """
    x, target, weights = check_dataset("least_squares", plan, x, target, weights)
    check_layers("least_squares", plan)
    check_vector("least_squares: params", params, plan.n_params, plan.dtype, written=True)
    for name, other in (("x", x), ("target", target), ("weights", weights)):
        if other is not None and np.may_share_memory(params, other):
            raise failure(ALIASED, "least_squares: params", detail=name)
    if plan.loss.kind != "mse" and getattr(plan.loss, "residual", None) is None:
        raise ValueError(
            f"least_squares: {plan.loss.kind} is not a sum of squared residuals; make the plan with loss='mse' "
            "(its robust forms are least_squares' own loss=...), or use nbprop.minimize"
        )
    if plan.penalty is not None and (plan.penalty.l1 > 0 or loss != "linear"):
        problem = (
            "l1 is not a sum of squares" if plan.penalty.l1 > 0 else f"loss={loss!r} would apply to the penalty, too"
        )
        raise ValueError(f'least_squares: {problem}; use nbprop.minimize, with method="L-BFGS" for l1')
    choose("least_squares: method", method, _METHODS)
    choose("least_squares: loss", loss, RHO)
    choose("least_squares: jac", jac, ("dense", "operator"))
    f_scale = check_number("least_squares: f_scale", f_scale, ends="()")
    if method in ("lm", "marquardt") and (bounds is not None or jac == "operator" or loss != "linear"):
        raise ValueError(f"least_squares: method {method} takes no bounds, no operator and no robust loss; use trf")
    if jac == "operator" and comm is not None:
        raise ValueError("least_squares: jac='operator' needs all data in one process; use jac='dense' with comm")
    tolerances = check_tolerances("least_squares", ftol=ftol, xtol=xtol, gtol=gtol, may_be_none=method != "marquardt")
    tolerances["max_nfev"] = None if max_nfev is None else check_integer("least_squares: max_nfev", max_nfev)
    free = Free("least_squares", params, trained_of(plan.net, None), bounds)
    if comm is None:
        residuals = Residuals(plan, x, target, weights, loss, f_scale, free)
    else:
        residuals = ResidualsOnRanks(plan, x, target, weights, loss, f_scale, free, comm)
    count = residuals.count
    if method == "lm" and count < free.size:
        raise ValueError(
            f"least_squares: method lm needs at least as many residuals as parameters, got {count} for {free.size}; "
            "use trf"
        )
    start = free.part(free.start)
    if not math.isfinite(residuals.cost(residuals(start))):
        raise ValueError("least_squares: the residuals at the start are not finite; start from smaller parameters")
    residuals.evaluations = 0
    options = {"jac": jac, "loss": loss, "f_scale": f_scale}
    try:
        result = _settled(residuals, _run(residuals, start, method, options, tolerances))
    except BaseException:
        params[:] = free.whole(residuals.best)
        raise
    params[:] = result.x
    return result


def _run(residuals, start, method, options, tolerances):
    """Run the method until it ends or is stopped; returns its result, over the free parameters."""
    import scipy.optimize

    free = residuals.free
    if free.size == 0:
        message = "all parameters are fixed by their bounds"
        return scipy.optimize.OptimizeResult(x=start, success=True, status=1, message=message)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            if method == "marquardt":
                return levenberg_marquardt(residuals, residuals.jacobian, start, **tolerances)
            options["jac"] = residuals.jacobian if options["jac"] == "dense" else residuals.operator
            bounds = (-math.inf, math.inf) if free.bounds is None else free.bounds
            return scipy.optimize.least_squares(residuals, start, bounds=bounds, method=method, **options, **tolerances)
    except KeyboardInterrupt:
        message = f"interrupted after {residuals.evaluations} evaluations; params hold the best point"
        return scipy.optimize.OptimizeResult(x=None, success=False, status=-1, message=message)


def _settled(residuals, result):
    """The result with all fields; at the best point if the method ended at a worse one."""
    from scipy.optimize import OptimizeResult

    free, message, success = residuals.free, result.message, bool(result.success)
    theta = _own_point(residuals, result.x)
    settled = OptimizeResult(dict.fromkeys(_FIELDS))
    if theta is not None:
        settled.update({name: result.get(name) for name in _OF_THE_METHOD})
        if free.indices is not None:
            settled.update(_spread(free, settled))
    else:
        theta = residuals.best
        if result.x is not None:
            success, message = False, f"{message.rstrip('.')}; params hold the best point found"
    if residuals.not_finite and not success:
        message += f"; the residuals were not finite at {residuals.not_finite} of {residuals.evaluations} points"
    # A float32 plan has evaluated theta rounded: the residuals of the result are at that point.
    whole = free.whole(theta).astype(residuals.plan.dtype).astype(np.float64)
    fun = residuals.at(free.part(whole))
    settled.update(x=whole, fun=fun, cost=residuals.cost(fun), success=success, status=int(result.status))
    settled.update(nit=residuals.falls, nfev=residuals.evaluations, njev=residuals.jacobians, message=message)
    return settled


def _own_point(residuals, theta):
    """The method's own point, within the bounds; None if there is none, or another had a lower cost."""
    if theta is None or not np.isfinite(theta).all():
        return None
    theta, _ = residuals.free.inside(theta)
    return theta if residuals.cost(residuals.at(theta)) <= residuals.lowest else None


def _spread(free, result):
    """Fields over the free parameters extended to all parameters, with 0 for fixed ones."""
    spread = {name: None if result[name] is None else free.spread(result[name]) for name in ("grad", "active_mask")}
    jac = result.jac
    if isinstance(jac, np.ndarray):
        whole = np.zeros((len(jac), free.start.size))
        whole[:, free.indices] = jac
        spread["jac"] = whole
    elif jac is not None:
        from scipy.sparse.linalg import LinearOperator

        spread["jac"] = LinearOperator(
            (jac.shape[0], free.start.size),
            matvec=lambda v: jac.matvec(free.part(np.reshape(v, -1))),
            rmatvec=lambda u: free.spread(jac.rmatvec(u)),
            dtype=np.dtype(np.float64),
        )
    return spread
