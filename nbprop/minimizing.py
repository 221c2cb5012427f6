"""`minimize`: one of SciPy's optimizers, or nbprop's own L-BFGS, on the parameters of a plan, in place.

A search over the free parameters remembers the best point it was asked for, so that however it ends, by itself, by
Ctrl-C, a clock, a validation loss that no longer falls or an exception, the parameters are no worse than they began.
"""

import inspect
import math
import time
from dataclasses import dataclass

import numpy as np

from nbprop.bounds import limits
from nbprop.bursts import Bursts
from nbprop.checks import check_vector
from nbprop.constraints import constraints_on, violation
from nbprop.network import choose, nearest, positive
from nbprop.progress import progress_bar
from nbprop.scipy_bridge import Objective, objective_for
from nbprop.solvers import lbfgs, lbfgs_search


@dataclass(frozen=True)
class Method:
    """What a method of scipy.optimize.minimize takes."""

    options: tuple
    bounds: bool = False
    constraints: bool = False
    hessp: bool = False


_TRUST = ("initial_trust_radius", "max_trust_radius", "eta", "gtol", "maxiter", "disp", "return_all")
_CONSTR = ("gtol", "xtol", "barrier_tol", "maxiter", "verbose", "initial_tr_radius", "initial_constr_penalty")
_TNC = (
    "scale",
    "offset",
    "maxCGit",
    "eta",
    "stepmx",
    "accuracy",
    "minfev",
    "ftol",
    "xtol",
    "gtol",
    "rescale",
    "maxfun",
    "maxiter",
)
METHODS = {
    "L-BFGS": Method(("memory", "gtol", "ftol", "maxiter")),  # nbprop's own, see solvers.py
    "L-BFGS-B": Method(("maxcor", "ftol", "gtol", "maxfun", "maxiter", "maxls"), bounds=True),
    "BFGS": Method(("gtol", "norm", "maxiter", "disp", "return_all", "xrtol", "c1", "c2", "hess_inv0")),
    "CG": Method(("gtol", "norm", "maxiter", "disp", "return_all", "c1", "c2")),
    "TNC": Method(_TNC, bounds=True),
    "SLSQP": Method(("ftol", "maxiter", "disp"), bounds=True, constraints=True),
    "Newton-CG": Method(("xtol", "maxiter", "disp", "return_all", "c1", "c2"), hessp=True),
    "trust-ncg": Method(_TRUST, hessp=True),
    "trust-krylov": Method((*_TRUST, "inexact"), hessp=True),
    "trust-constr": Method(
        (*_CONSTR, "initial_barrier_parameter", "initial_barrier_tolerance", "factorization_method", "disp"),
        bounds=True,
        constraints=True,
        hessp=True,
    ),
}


class _NotFinite(Exception):
    """The loss at the start is not finite."""


class _Stop(Exception):
    """The search ends here; the argument says why."""


class _Search:
    """An objective over the free parameters that remembers the best point it was asked for."""

    def __init__(self, fun, start, free, bounds, constraints, seconds):
        self.fun, self.start, self.free, self.bounds, self.seconds = fun, start, free, bounds, seconds
        self.constraints, self.violation = constraints, math.inf
        self.end = math.inf if seconds is None else time.monotonic() + seconds
        self.theta = start.copy()
        self.first = self.best = math.inf
        self.best_theta = start
        self.evaluations = self.not_finite = 0

    def __call__(self, theta):
        whole = self.whole(theta)
        loss, gradient = self.fun(whole)
        self.evaluations += 1
        if not math.isfinite(gradient.sum()):
            loss = math.inf
        self.not_finite += loss == math.inf
        if self.evaluations == 1:
            if loss == math.inf:
                raise _NotFinite
            self.first = loss
        if self.allowed(theta):
            self._compare(whole, loss)
        self._look_at_the_clock()
        return loss, gradient if self.free is None else gradient[self.free]

    def _compare(self, whole, loss):
        """Keep the point that is nearest to what the constraints allow and, among those, has the lowest loss."""
        if loss < self.best or self.violation > 0:
            distance = violation(self.constraints, whole)
            if loss < math.inf and (distance, loss) < (self.violation, self.best):
                self.violation, self.best, self.best_theta = distance, loss, whole.copy()

    @property
    def in_bursts(self):
        """Whether compiled code can make many evaluations before Python looks again."""
        return type(self.fun) is Objective and self.fun.bare and self.free is None and self.seconds is None

    def after_burst(self, evaluations, not_finite, loss, theta):
        """Take note of a burst: its evaluations, at how many the loss was not finite, the lowest loss so far."""
        self.evaluations += evaluations
        self.not_finite += not_finite
        if loss < self.best:
            self.best, self.best_theta = loss, theta.copy()

    def _look_at_the_clock(self):
        if time.monotonic() > self.end:
            raise _Stop(f"the time limit of {self.seconds:g} s is over")

    def allowed(self, theta):
        """Whether a point lies within the bounds; trust-constr asks for others, too."""
        return self.bounds is None or bool((theta >= self.bounds[0]).all() and (theta <= self.bounds[1]).all())

    def hessp(self, theta, v):
        """H v over the free parameters."""
        self._look_at_the_clock()
        if self.free is None:
            return self.fun.hessp(theta, np.ascontiguousarray(v, np.float64))
        direction = np.zeros(self.start.size)
        direction[self.free] = v
        return self.fun.hessp(self.whole(theta), direction)[self.free]

    def whole(self, theta):
        """All parameters, from the free ones; overwritten by the next call where some are frozen."""
        if self.free is None:
            return theta
        self.theta[self.free] = theta
        return self.theta


class _Validation:
    """The loss on data held out, after each iteration; the parameters at which it was lowest."""

    def __init__(self, plan, data, patience, state):
        if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
            raise TypeError(
                f"minimize: validation must be (x, target) or (x, target, weights), got {type(data).__name__}"
            )
        weights = data[2] if len(data) == 3 else None
        self.loss = objective_for("minimize: validation", plan, *data[:2], weights, state).loss
        self.patience = patience
        self.losses, self.lowest, self.best, self.waited = [], math.inf, None, 0

    def see(self, theta):
        """Take the loss at theta (all parameters); stop the search when it has not fallen for too long."""
        loss = float(self.loss(theta))
        self.losses.append(loss)
        self.waited += 1
        if self.best is None or loss < self.lowest:
            self.lowest, self.best, self.waited = loss, theta.copy(), 0
        if self.patience is not None and self.waited >= self.patience:
            raise _Stop(f"the validation loss has not fallen for {self.waited} iterations")


class _Watch:
    """What happens after each iteration: counting, the bar, the user's callback, validation."""

    def __init__(self, search, callback, validation, bar, most):
        self.search, self.callback, self.validation, self.bar, self.iterations = search, callback, validation, bar, 0
        self.most = most
        self.idle = callback is None and validation is None
        self.wants_result = callback is not None and "intermediate_result" in inspect.signature(callback).parameters

    def after_iteration(self, intermediate_result):
        """SciPy's callback."""
        from scipy.optimize import OptimizeResult

        self.iterations += 1
        self.bar.update(1)
        self.bar.set_postfix(loss=f"{self.search.best:.6g}")
        if isinstance(intermediate_result, np.ndarray):  # TNC's way
            intermediate_result = OptimizeResult(x=intermediate_result)
        within = self.search.allowed(intermediate_result.x)
        theta = intermediate_result.x = self.search.whole(intermediate_result.x).copy()
        if self.wants_result:
            self.callback(intermediate_result=intermediate_result)
        elif self.callback is not None:
            self.callback(theta)
        if self.validation is not None and within:
            self.validation.see(theta)
        if self.iterations == self.most:
            raise _Stop("the most iterations allowed")

    def after_burst(self, evaluations, not_finite, iterations, loss, theta):
        """What `Bursts` tells."""
        self.search.after_burst(evaluations, not_finite, loss, theta)
        self.bar.update(iterations - self.iterations)
        self.bar.set_postfix(loss=f"{loss:.6g}")
        self.iterations = iterations


def minimize(
    plan,
    params,
    x,
    target,
    method="L-BFGS-B",
    bounds=None,
    weights=None,
    callback=None,
    trainable=None,
    tol=None,
    maxiter=None,
    options=None,
    constraints=(),
    validation=None,
    patience=None,
    seconds=None,
    progress=None,
    resume=None,
    state=None,
):
    """Fit parameters to data with one of SciPy's optimizers, in place.

    Parameters
    ----------
    plan : Plan made with a loss; float64 for a fit to full precision. With target="cuda" params and data are device
        arrays: the search runs on the host, the gradients on the device; methods from gradients alone
    params : (n_params,) array of the plan's dtype, the start; overwritten with the best parameters found
    x, target, weights : as `objective` takes them; more samples than the plan's batch are taken in chunks
    method : "L-BFGS" (nbprop's own, see solvers.py), "L-BFGS-B" (Byrd et al. 1995), both with memory for a few vectors;
        "BFGS" (Nocedal and Wright 2006, section 6.1; memory for an n_params x n_params matrix), "CG" (the same, section
        5.2), "TNC" or "SLSQP" from gradients; "Newton-CG", "trust-ncg", "trust-krylov" or "trust-constr" from exact
        Hessian-vector products too
    bounds : scipy.optimize.Bounds, a tuple (lo, hi) of numbers or (n_params,) arrays, or a list of n_params pairs in
        which None is open; None for no bounds. L-BFGS-B, TNC, SLSQP, trust-constr. Rounded to the plan's dtype.
    callback : function called after each iteration, as SciPy calls it: callback(theta), or
        callback(intermediate_result) when its parameter has that name; theta holds all parameters. It stops the search
        by raising StopIteration.
    trainable : (n_params,) array of bool, or None; the bits of parameters that are False stay as they are
    tol, options : as in scipy.optimize.minimize
    maxiter : most iterations; the same as options={"maxiter": ...}
    constraints : scipy.optimize.LinearConstraint, NonlinearConstraint, a dict for SLSQP, or a list of them, on all
        parameters; SLSQP and trust-constr. Not together with trainable.
    validation : (x, target), (x, target, weights) or None; data to compute a loss on after each iteration, as in use
    patience : int or None; stop after so many iterations without a lower validation loss, and go back to the parameters
        that had the lowest
    seconds : float or None; the search stops at the first evaluation that ends later
    progress : bool or None; show a bar with tqdm. None: when it is installed and the output is a terminal
    resume : result.state of an earlier call with method "L-BFGS", or None; the search goes on as if it had not been
        interrupted, bit for bit (given the same data; memory is the state's). SciPy's methods keep what they have
        learned of the curvature to themselves: call again with the params that a stopped search left, and they start
        anew from there.
    state : as `objective` takes it

    Returns
    -------
    scipy.optimize.OptimizeResult
        x (all parameters, float64), fun, jac (0 at frozen parameters), nit and nfev (of this call), success, status and
        message: the reason it stopped. Ctrl-C, seconds, patience and StopIteration stop it with status -1. params hold
        result.x and are never worse than at the start (by the validation loss, with patience). result.validation is
        the list of validation losses, the start's first; result.state a float64 vector for resume (L-BFGS).

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, an unknown method or option, bounds that exclude the start, a loss at the
        start that is not finite. Nothing has been written then. An exception of the callback's own, or of a
        constraint's, goes through, with the best parameters so far in params.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params, x = nbprop.plan(net, loss="mse", batch=20), nbprop.init(net), np.linspace(-1, 1, 20)[:, None]
    >>> result = nbprop.minimize(plan, params, x, 3 * x + 1, bounds=(-10, 2))
    >>> params.round(3), result.success
    (array([2., 1.]), True)
    """
    fun = objective_for("minimize", plan, x, target, weights, state)
    params, begin = _checked(plan, params, {"x": x, "target": target, "weights": weights, "state": state})
    name, options = _settings(method, bounds, maxiter, options)
    free = _free(trainable, plan.n_params)
    constraints = constraints_on(begin, name, constraints, free, [n for n, row in METHODS.items() if row.constraints])
    if METHODS[name].hessp and plan.target != "cpu":
        raise ValueError(f"minimize: {name} needs second derivatives, which do not run on the device; use L-BFGS-B")
    if METHODS[name].hessp and plan.without_tangents is not None:
        raise ValueError(
            f"minimize: {name} needs second derivatives and layer {plan.without_tangents} has none; use L-BFGS-B"
        )
    low_and_high = limits(bounds, begin, free)
    if callback is not None and not callable(callback):
        raise TypeError(f"minimize: callback must be a function, got {type(callback).__name__}")
    if seconds is not None and not (isinstance(seconds, (int, float, np.integer, np.floating)) and seconds > 0):
        raise ValueError(f"minimize: seconds must be a number above 0, got {seconds!r}")
    if patience is not None and validation is None:
        raise ValueError("minimize: patience counts iterations without a lower validation loss; pass validation too")
    patience = None if patience is None else positive("minimize: patience", patience)
    held_out = None if validation is None else _Validation(plan, validation, patience, state)
    if resume is not None and name != "L-BFGS":
        raise ValueError(f'minimize: {name} cannot resume, "L-BFGS" can; call again with the params that it left')
    search = _Search(fun, begin.astype(np.float64), free, low_and_high, constraints, seconds)
    saved = _saved(search, options, tol, resume) if name == "L-BFGS" else None
    try:
        with progress_bar("minimize", progress, options.get("maxiter"), 0, "iteration") as bar:
            # TNC alone counts evaluations only.
            watch = _Watch(search, callback, held_out, bar, options.pop("maxiter", None) if name == "TNC" else None)
            result = _run(search, name, low_and_high, constraints, watch, tol, options, saved, resume is not None)
        result = _settled(search, result, constraints, held_out)
    except _NotFinite:
        raise ValueError(_start_message(begin)) from None
    except BaseException:
        _write(params, search.best_theta, free)
        raise
    if saved is not None:
        result.state = saved
    _write(params, result.x, free)
    return result


def _run(search, name, bounds, constraints, watch, tol, options, saved, resumed):
    """Run the method until it ends or is stopped; SciPy's result, over the free parameters."""
    import scipy.optimize

    try:
        with np.errstate(over="ignore", invalid="ignore"):  # SciPy's arithmetic on losses that are infinite
            start = search.start if search.free is None else search.start[search.free]
            if watch.validation is not None:
                watch.validation.see(search.start)
            if name == "L-BFGS":
                if resumed:
                    search(start)  # the state's point may be a worse one, tried by its line search
                most, bursts = options.get("maxiter", 1000), None
                if search.in_bursts and watch.idle:
                    bursts = Bursts(search.fun, saved, watch.after_burst)
                return lbfgs(search, start, maxiter=most, callback=watch.after_iteration, search=saved, bursts=bursts)
            return scipy.optimize.minimize(
                search,
                start,
                jac=True,
                method=name,
                hessp=search.hessp if METHODS[name].hessp else None,
                bounds=None if bounds is None else scipy.optimize.Bounds(*bounds),
                constraints=constraints,
                tol=tol,
                options=options,
                callback=watch.after_iteration,
            )
    except (KeyboardInterrupt, StopIteration, _Stop) as stopped:
        reason = {KeyboardInterrupt: "interrupted", StopIteration: "stopped by the callback"}.get(type(stopped))
        message = f"{reason or stopped} after {watch.iterations} iterations; params hold the best point found"
        result = scipy.optimize.OptimizeResult(success=False, status=-1, message=message, fun=math.inf)
        result.update(nit=watch.iterations, nfev=search.evaluations, njev=search.evaluations)
        return result


def _settled(search, result, constraints, validation):
    """The result made to hold all parameters, at the best point where the method ended at a worse one."""
    if validation is not None:
        result.validation = validation.losses
    if validation is not None and validation.patience is not None:
        theta = validation.best
        result.fun = search.fun(theta)[0]
    elif _is_accepted(search, result, constraints):
        theta = search.whole(result.x).copy()
    else:
        theta, result.success = search.best_theta, False
        result.fun = search.fun(theta)[0]
        if result.status != -1:
            result.message = f"{result.message.rstrip('.')}; params hold the best point found"
    if search.not_finite and not result.success:
        result.message += f"; the loss was not finite at {search.not_finite} of {search.evaluations} points"
    # A float32 plan has seen theta rounded: that is the point whose loss stands in the result. The gradient is computed
    # again, since not every method of SciPy's leaves the last point's.
    result.x, result.jac = theta.astype(search.fun.plan.dtype).astype(np.float64), search.fun(theta)[1]
    if search.free is not None:
        result.jac[np.setdiff1d(np.arange(theta.size), search.free)] = 0.0
    return result


def _is_accepted(search, result, constraints):
    """Whether the method's own point is taken, rather than the best that it asked for."""
    if not math.isfinite(result.fun):
        return False
    distance = violation(constraints, result.x)
    if result.success:  # the method may end a little above its lowest loss; with constraints the start may lie lower
        return distance <= search.violation and (bool(constraints) or result.fun <= search.first)
    return (distance, result.fun) <= (search.violation, search.best)


def _saved(search, options, tol, resume):
    """The vector that nbprop's L-BFGS works in, new or an earlier one's copy."""
    start = search.start if search.free is None else search.start[search.free]
    settings = {"memory": 10, "gtol": 1e-8 if tol is None else tol, "ftol": 0.0} | options
    settings.pop("maxiter", None)
    if resume is not None and "memory" in options:
        raise ValueError("minimize: a resumed search has the memory of its state; leave it out of options")
    return lbfgs_search(start, **settings, resume=resume)


def _checked(plan, params, others):
    """params, where the result goes, and a copy or view of it on the host."""
    if plan.target != "cpu":
        from nbprop.cuda import fitting, memory

        params = fitting.check_vector("minimize", "params", params, plan.n_params, (plan.dtype,), True)
        others = {name: memory.as_array(name, other) for name, other in others.items() if other is not None}
        memory.check_separate("minimize", {"params": params}, others)
        return params, params.to_host()
    check_vector("minimize", "params", params, plan.n_params, plan.dtype, written=True)
    for name, other in others.items():
        if other is not None and np.may_share_memory(params, other):
            raise ValueError(f"minimize: params is written and shares memory with {name}; pass separate buffers")
    return params, params


def _write(params, theta, free):
    if not isinstance(params, np.ndarray):
        host = params.to_host()
        _write(host, theta, free)
        params.copy_from(host)
        return
    if free is None:
        params[:] = theta
    else:
        params[free] = theta[free]


def _start_message(params):
    wrong = np.flatnonzero(~np.isfinite(params))
    if wrong.size:
        i = wrong[0]
        return f"minimize: params[{i}] is {params[i]}; start from finite parameters, such as nbprop.init(net)"
    return "minimize: the loss at the start is not finite; start from smaller parameters, or scale x and target"


def _settings(method, bounds, maxiter, options):
    """(the method's name as SciPy writes it, its options)."""
    known = {name.lower(): name for name in METHODS}
    name = known.get(method.lower()) if isinstance(method, str) else None
    if name is None:
        choose("minimize: method", method.upper() if isinstance(method, str) else method, METHODS)
    if bounds is not None and not METHODS[name].bounds:
        able = ", ".join(other for other, row in METHODS.items() if row.bounds)
        raise ValueError(f"minimize: method {name} takes no bounds; use {able}")
    options = dict(options or {})
    for option in options:
        if option not in METHODS[name].options:
            raise ValueError(f"minimize: {name} has no option {option!r}; {nearest(option, METHODS[name].options)}")
    if maxiter is not None:
        if isinstance(maxiter, bool) or not isinstance(maxiter, (int, np.integer)) or maxiter < 0:
            raise ValueError(f"minimize: maxiter must be an integer of at least 0, got {maxiter!r}")
        if options.setdefault("maxiter", int(maxiter)) != maxiter:
            raise ValueError("minimize: maxiter is given twice; leave it out of options")
    return name, options


def _free(trainable, n_params):
    """The indices of the free parameters; None when all are."""
    if trainable is None:
        return None
    check_vector("minimize", "trainable", trainable, n_params, np.dtype(bool))
    if not trainable.any():
        raise ValueError("minimize: trainable is False everywhere; leave at least one parameter free")
    return None if trainable.all() else np.flatnonzero(trainable)
