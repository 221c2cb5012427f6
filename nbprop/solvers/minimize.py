"""`minimize`: one of SciPy's optimizers, or nbprop's own L-BFGS, on the parameters of a plan, in place."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbprop import backends
from nbprop.arrays import check_vector, refuse_subclass
from nbprop.cluster.parts import on_ranks
from nbprop.io.networks import digest
from nbprop.io.progress import progress_bar
from nbprop.lowering.plan import Plan
from nbprop.messages import ALIASED, failure
from nbprop.networks.network import trained_of
from nbprop.solvers.bounds import Free
from nbprop.solvers.constraints import constraints_on, violation
from nbprop.solvers.lbfgs import LOWEST, check_search, lbfgs_search, run_search, search_parts
from nbprop.solvers.lbfgs_bursts import Bursts
from nbprop.solvers.methods import METHODS, check_arrays, settings
from nbprop.solvers.objective import objective_for
from nbprop.solvers.problem import check_problem, problem_words
from nbprop.solvers.tracking import NotFiniteAtStart, Stop, TrackedObjective, Validation, Watch
from nbprop.validation import check_callable, check_flag, check_integer, check_number, shown

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

# The fields of every result, however the search ended.
_FIELDS = ("x", "fun", "jac", "nit", "nfev", "njev", "nhev", "success", "status", "message", "validation", "state")
# Violations of bounds by a method's own point that count as rounding.
_SLACK = 1e-6


@on_ranks
def minimize(
    plan: Plan,
    params: NDArray[Any],
    x: NDArray[Any],
    target: NDArray[Any],
    method: str = "L-BFGS-B",
    bounds: Any = None,
    weights: NDArray[Any] | None = None,
    callback: Callable[..., Any] | None = None,
    trainable: NDArray[Any] | None = None,
    tol: float | None = None,
    maxiter: int | None = None,
    options: dict[str, Any] | None = None,
    constraints: Any = (),
    validation: tuple[Any, ...] | None = None,
    patience: int | None = None,
    seconds: float | None = None,
    progress: bool | None = None,
    resume: Any = None,
    state: NDArray[Any] | None = None,
    comm: Any = None,
    pieces: int = 64,
    data: str = "whole",
    transport: str | None = None,
) -> "OptimizeResult":
    """Fit parameters to data with one of SciPy's optimizers, in place.

    Parameters
    ----------
    plan : Plan made with a loss; float64 for a fit to full precision. Its penalties are part of what is minimised; l1,
        which is not smooth, needs "L-BFGS", whose steps are then those of OWL-QN (Andrew and Gao 2007). With
        target="cuda", params and data are device arrays: the search runs on the host, gradients on the device; only
        methods that use gradients alone
    params : (n_params,) array of the plan's dtype, the start; overwritten with the best parameters found
    x, target, weights : as `objective` takes them; more samples than the plan's batch are split into chunks
    method : from gradients: "L-BFGS" (nbprop's own, see lbfgs.py) and "L-BFGS-B" (Byrd et al. 1995), which store a few
        vectors; "BFGS" (Nocedal and Wright 2006, section 6.1), which stores an n_params x n_params matrix; "CG"
        (section 5.2 there); "TNC"; "SLSQP". Also with exact Hessian-vector products: "Newton-CG", "trust-ncg",
        "trust-krylov", "trust-constr"
    bounds : scipy.optimize.Bounds, a tuple (lo, hi) of numbers or (n_params,) arrays, or a list of n_params pairs in
        which None is open; None for no bounds. L-BFGS-B, TNC, SLSQP, trust-constr. Rounded to the plan's dtype.
    callback : function called after each iteration, as SciPy calls it: callback(theta), or
        callback(intermediate_result) when its parameter has that name; theta holds all parameters. It stops the search
        by raising StopIteration.
    trainable : (n_params,) array of bool, or None; the bits of parameters that are False stay as they are, as those do
        that layers are given (`trainable_mask`)
    tol, options : as in scipy.optimize.minimize
    maxiter : maximum number of iterations; the same as options={"maxiter": ...}
    constraints : scipy.optimize.LinearConstraint, NonlinearConstraint, a dict for SLSQP, or a list of them, on all
        parameters, some of which may be fixed by bounds or trainable; SLSQP and trust-constr
    validation : (x, target), (x, target, weights) or None; data to compute a loss on after each iteration, in inference
        mode, without the plan's penalties
    patience : int or None; stop after this many iterations without a lower validation loss, and restore the parameters
        with the lowest
    seconds : float or None; the search stops at the first evaluation that ends later
    progress : bool or None; show a bar with tqdm. None: when it is installed and the output is a terminal
    resume : result.state of an earlier call with method "L-BFGS", or None; the search continues as if it had not been
        interrupted, bit for bit (with the memory of the state). A state of another network, loss, data or set of frozen
        parameters is refused. SciPy's methods do not expose their approximation of the curvature: call again with the
        params of a stopped search to start a new one from there.
    state : as `objective` takes it
    comm, pieces, data, transport : as `fit` takes them; validation lies as the data do. All ranks end with the same
        result; a callback is called on each, and the search stops if any raises StopIteration

    Returns
    -------
    scipy.optimize.OptimizeResult
        However it ended, with the fields x (all parameters, float64), fun and jac (the loss and its gradient at x as
        evaluated there, 0 at frozen parameters), nit, nfev, njev and nhev (of this call), success, status and message,
        the reason it stopped. Ctrl-C, seconds, patience and StopIteration stop it with status -1. params hold result.x,
        are finite, and are never worse than at the start (by the validation loss, with patience). validation is the
        list of validation losses, the start's first, or None; state a float64 vector for resume (L-BFGS), or None.
        Further fields of the method (hess_inv of BFGS and L-BFGS-B, ...; over the free parameters) are None if the
        search was stopped.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, an unknown method or option, bounds that exclude the start, a loss at the
        start that is not finite; nothing has been written then. An exception of the callback or of a constraint
        propagates, with the best parameters so far in params.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params, x = nbprop.plan(net, loss="mse", batch=20), nbprop.init(net), np.linspace(-1, 1, 20)[:, None]
    >>> result = nbprop.minimize(plan, params, x, 3 * x + 1, bounds=(-10, 2))
    >>> params.round(3), result.success
    (array([2., 1.]), True)
    """
    fun = objective_for("minimize", plan, x, target, weights, state, comm, transport)
    params, begin = _checked(plan, params, {"x": x, "target": target, "weights": weights, "state": state})
    name, options = settings(method, bounds, tol, maxiter, options)
    free = Free("minimize", begin, trained_of(plan.net, _trainable(trainable, plan.n_params)), bounds)
    check_arrays(options, free)
    factors = _factors_of_l1(plan, name, free)
    if METHODS[name].hessp and plan.target != "cpu":
        raise ValueError(f"minimize: {name} needs second derivatives, which the device does not have; use L-BFGS-B")
    if METHODS[name].hessp and plan.without_second is not None:
        raise ValueError(f"minimize: {name} needs second derivatives and {plan.without_second} has none; use L-BFGS-B")
    check_callable("minimize: callback", callback, or_none=True)
    if seconds is not None:
        seconds = check_number("minimize: seconds", seconds, ends="()")
    if progress is not None:
        progress = check_flag("minimize: progress", progress)
    if patience is not None and validation is None:
        raise ValueError("minimize: patience counts iterations without a lower validation loss; pass validation too")
    patience = None if patience is None else check_integer("minimize: patience", patience)
    held_out = None if validation is None else Validation(plan, validation, patience, state, comm, transport)
    saved, problem = None, None
    if name == "L-BFGS":
        problem = problem_words(fun, free)
        saved = _saved(free, options | factors, tol, problem, resume)
    elif resume is not None:
        raise ValueError(
            f'minimize: {name} cannot resume, "L-BFGS" can; call again with the params of the stopped search'
        )
    able = [other for other, row in METHODS.items() if row.constraints]
    if comm is not None:
        comm.agree({"method": name, "params": digest({"params": begin}), "the free parameters": free.size})
    constraints = constraints_on(
        begin, name, constraints, able
    )  # the last check, since it calls functions of the user's
    search = TrackedObjective(fun, free, constraints, seconds)
    try:
        progress = progress if comm is None or comm.rank == 0 else False
        with progress_bar("minimize", progress, options.get("maxiter"), 0, "iteration") as bar:
            # TNC alone counts evaluations only.
            watch = Watch(search, callback, held_out, bar, options.pop("maxiter", None) if name == "TNC" else None)
            result = _run(search, name, watch, tol, options, saved, resume is not None)
        result = _settled(search, name, result, held_out)
    except NotFiniteAtStart:
        raise ValueError(_start_message(begin)) from None
    except BaseException:
        _write(params, search.best_theta, free)
        raise
    if saved is not None:
        result.state = np.concatenate([saved, problem])
    _write(params, result.x, free)
    return result


def _run(search, name, watch, tol, options, saved, resumed):
    """Run the method until it ends or is stopped; returns SciPy's result, over the free parameters."""
    import scipy.optimize

    free = search.free
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # SciPy's arithmetic on losses that are infinite
            start = free.part(free.start)
            if watch.validation is not None:
                watch.validation.update(free.start)
            if free.size == 0 or watch.most == 0:
                return _at_start(search)
            if name == "L-BFGS":
                if resumed:
                    search.at_start()  # the point of the state may be worse: a trial of its line search
                    _reevaluate_best(search, saved)
                most, bursts = options.get("maxiter", 1000), None
                if search.in_bursts and watch.idle:
                    bursts = Bursts(search.fun, saved, watch.after_burst)
                return run_search(search, saved, start.size, most, watch.after_iteration, bursts)
            return scipy.optimize.minimize(
                search,
                start,
                jac=True,
                method=name,
                hessp=search.hessp if METHODS[name].hessp else None,
                bounds=None if free.bounds is None else scipy.optimize.Bounds(*free.bounds),
                constraints=[constraint.on(free) for constraint in search.constraints],
                tol=tol,
                options=options,
                callback=watch.after_iteration,
            )
    except (KeyboardInterrupt, Stop) as stopped:
        reason = "interrupted" if isinstance(stopped, KeyboardInterrupt) else stopped
        message = f"{reason} after {watch.iterations} iterations; params hold the best point found"
        return scipy.optimize.OptimizeResult(success=False, status=-1, message=message, nit=watch.iterations)


def _reevaluate_best(search, saved):
    """Evaluate the best point of a resumed state again, rather than trust the values in a user's array."""
    _, _, best, at_best = search_parts(saved, search.free.size)
    if saved[LOWEST] < math.inf:
        saved[LOWEST], at_best[:] = search(best.copy())


def _at_start(search):
    """The result if nothing can move: for maxiter=0, or because bounds fix all trainable parameters."""
    from scipy.optimize import OptimizeResult

    search.at_start()
    fixed, holds = search.free.size == 0, search.violation == 0
    message = "all parameters are fixed by their bounds" if fixed else "no iterations were allowed"
    message += "" if holds else ", where the constraints do not hold"
    success = fixed and holds
    return OptimizeResult(
        x=search.free.part(search.free.start), success=success, status=int(not success), message=message
    )


def _settled(search, name, result, validation):
    """The result with all fields; at the best point if the method ended at a worse one.

    Loss and gradient are computed again at the point that params will hold: a float32 plan has evaluated it rounded,
    and not every method of SciPy returns those of its last point.
    """
    from scipy.optimize import OptimizeResult

    message, success = result.message, bool(result.success)
    found = None
    if validation is not None and validation.patience is not None:
        found = _evaluated(search, validation.best)
    elif result.get("x") is not None:  # else it was stopped
        found = _own_point(search, result.x, success)
        if found is None:
            success, message = False, f"{message.rstrip('.')}; params hold the best point found"
    if found is None:
        found = _evaluated(search, search.best_theta)
    theta, loss, gradient = found
    if search.not_finite and not success:
        message += f"; the loss was not finite at {search.not_finite} of {search.evaluations} points"
    settled = OptimizeResult(dict.fromkeys((*_FIELDS, *METHODS[name].fields)))
    settled.update({field: result.get(field) for field in METHODS[name].fields})
    settled.update(x=theta, fun=loss, jac=search.free.spread(search.free.part(gradient)))
    settled.update(nit=int(result.get("nit", 0)), nfev=search.evaluations, njev=search.evaluations)
    settled.update(nhev=search.products, success=success, status=int(result.status), message=message)
    settled.validation = None if validation is None else validation.losses
    return settled


def _evaluated(search, theta):
    """(theta rounded to the plan's dtype, its loss, its gradient); theta holds all parameters."""
    theta = theta.astype(search.fun.plan.dtype).astype(np.float64)
    return theta, *search.fun(theta)


def _own_point(search, theta, success):
    """The method's own point, within the bounds and evaluated; None if the best evaluated point is better."""
    if not np.isfinite(theta).all():
        return None
    theta, moved = search.free.inside(theta)
    with np.errstate(over="ignore"):
        whole, loss, gradient = _evaluated(search, search.free.whole(theta))
    if moved > _SLACK or not (math.isfinite(loss) and np.isfinite(whole).all() and np.isfinite(gradient).all()):
        return None
    distance = violation(search.constraints, whole)
    if success:  # the method may end a little above its lowest loss; with constraints the start may lie lower
        accepted = distance <= search.violation and (bool(search.constraints) or loss <= search.first)
    else:
        accepted = (distance, loss) <= (search.violation, search.best)
    return (whole, loss, gradient) if accepted else None


def _factors_of_l1(plan, name, free):
    """{"l1": the factors of the free parameters}, as `lbfgs_search` takes them; {} without."""
    if plan.penalty is None or plan.penalty.l1 == 0:
        return {}
    if name != "L-BFGS":
        raise ValueError(f'minimize: {name} needs a smooth loss, which one with l1 is not; use method="L-BFGS"')
    return {"l1": plan.penalty.l1 * free.part(plan.penalty.mask(plan.n_params)).astype(np.float64)}


def _saved(free, options, tol, problem, resume):
    """The vector that nbprop's L-BFGS works in: a new one, or a copy of an earlier one."""
    start = free.part(free.start)
    given = {"memory": 10, "gtol": 1e-8 if tol is None else tol, "ftol": 0.0} | options
    given.pop("maxiter", None)
    if resume is None:
        return lbfgs_search(start, **given)
    if "memory" in options:
        raise ValueError("minimize: a resumed search has the memory of its state; leave memory out of options")
    refuse_subclass("minimize: resume", resume)
    known = isinstance(resume, np.ndarray)
    if not known or resume.dtype != np.float64 or resume.ndim != 1 or resume.size <= problem.size:
        got = f"{resume.dtype} array of shape {resume.shape}" if known else shown(resume)
        raise ValueError(
            f"minimize: resume must be the state of an earlier search over {start.size} parameters, got {got}"
        )
    search = resume[: -problem.size]
    check_search("minimize", search, start.size)
    check_problem(resume[-problem.size :], problem)
    return lbfgs_search(start, **given, resume=search)


def _checked(plan, params, others):
    """(params as checked, for the result; its values on the host)."""
    if plan.target != "cpu":
        return backends.get(plan.target).checked_params("minimize", plan, params, others)
    check_vector("minimize: params", params, plan.n_params, plan.dtype, written=True)
    for name, other in others.items():
        if other is not None and np.may_share_memory(params, other):
            raise failure(ALIASED, "minimize: params", detail=name)
    return params, params


def _write(params, theta, free):
    if not isinstance(params, np.ndarray):
        host = params.to_host()
        _write(host, theta, free)
        params.copy_from(host)
        return
    if free.indices is None:
        params[:] = theta
    else:
        params[free.indices] = theta[free.indices]


def _start_message(params):
    wrong = np.flatnonzero(~np.isfinite(params))
    if wrong.size:
        i = wrong[0]
        return f"minimize: params[{i}] is {params[i]}; start from finite parameters, such as nbprop.init(net)"
    return "minimize: the loss at the start is not finite; start from smaller parameters, or scale x and target"


def _trainable(trainable, n_params):
    """The checked mask of trainable parameters; None if all are."""
    if trainable is None:
        return None
    check_vector("minimize: trainable", trainable, n_params, np.dtype(bool))
    if not trainable.any():
        raise ValueError("minimize: trainable is False everywhere; leave at least one parameter free")
    return None if trainable.all() else trainable
