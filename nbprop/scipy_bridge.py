"""SciPy's optimizers on a plan: `objective` makes the function they call, `minimize` runs one on parameters in place.

SciPy works in float64 and keeps references to what a function returns, so every gradient here is a fresh float64 array.
A plan in float32 converts inside. More samples than a plan's batch go through it in chunks; with W_k the weight of
chunk k (its number of samples, without weights) and L_k its loss, the loss is sum(W_k L_k) / sum(W_k), and so is its
gradient.
"""

import inspect
import math
from dataclasses import dataclass

import numpy as np

from nbprop.bounds import limits
from nbprop.calls import value_and_grad
from nbprop.checks import check_dataset, check_vector
from nbprop.derivatives import hvp
from nbprop.network import choose, nearest
from nbprop.plan import workspace
from nbprop.solvers import lbfgs


class Objective:
    """fun(theta) -> (loss, gradient), as `scipy.optimize.minimize(fun, theta, jac=True)` wants it; see `objective`."""

    def __init__(self, plan, x, target, weights):
        self.plan, self.x, self.target, self.weights = plan, x, target, weights
        self.n_params, self.n_samples = plan.n_params, len(x)
        self._work = workspace(plan)
        self._params = None if plan.dtype == np.float64 else np.empty(plan.n_params, plan.dtype)
        self._chunks = list(_chunks(plan.batch, x, target, weights))
        self._single = len(self._chunks) == 1
        # value_and_grad itself checks theta, as its params: on the fast path nothing is checked twice.
        self._direct = self._single and self._params is None

    def __call__(self, theta):
        if self._direct:
            gradient = np.empty(self.n_params)
            try:
                loss = value_and_grad(self.plan, theta, self.x, self.target, gradient, self._work, self.weights)
            except (TypeError, ValueError):
                self._check(theta)
                raise
        else:
            self._check(theta)
            loss, gradient = self._converted(theta)
        # Line searches step back from infinity, but every comparison with NaN is false and sends them astray.
        return (loss if math.isfinite(loss) else math.inf), gradient

    def hessp(self, theta, v):
        """The Hessian-vector product at theta: (n_params,) float64 arrays in, a fresh one out; exact, no matrix.

        Chunks and a float32 plan are handled as in a call. Raises as a call, and ValueError for a network with a layer
        that has no tangents.
        """
        self._check(theta)
        check_vector("objective", "v", v, self.n_params, np.dtype(np.float64))
        with np.errstate(over="ignore"):
            params, direction = theta.astype(self.plan.dtype, copy=False), v.astype(self.plan.dtype, copy=False)
        if np.may_share_memory(params, direction):
            direction = direction.copy()
        product, part = np.zeros(self.n_params), np.empty(self.n_params, self.plan.dtype)
        for x, target, weights, share in self._chunks:
            hvp(self.plan, params, direction, x, target, part, self._work, weights)
            product += share * part.astype(np.float64)
        return product

    def _check(self, theta):
        check_vector("objective", "theta", theta, self.n_params, np.dtype(np.float64))

    def _converted(self, theta):
        """The loss and gradient through a float32 plan, or in chunks."""
        params = theta
        if self._params is not None:
            params = self._params
            with np.errstate(over="ignore"):  # beyond float32's range: infinity, and then a loss that is not finite
                params[:] = theta
        part = np.empty(self.n_params, self.plan.dtype)
        if self._single:
            loss = value_and_grad(self.plan, params, self.x, self.target, part, self._work, self.weights)
            return loss, part.astype(np.float64)
        loss, gradient = 0.0, np.zeros(self.n_params)
        scaled = part if part.dtype == np.float64 else np.empty(self.n_params)
        for x, target, weights, share in self._chunks:
            # Not accumulate=True: each chunk's gradient is a mean of its own, and float32 sums would lose digits.
            loss += share * value_and_grad(self.plan, params, x, target, part, self._work, weights)
            np.multiply(part, share, out=scaled)
            gradient += scaled
        return loss, gradient


def _chunks(batch, x, target, weights):
    """(x, target, weights, share of the total weight) of each piece of at most `batch` samples; views, no copies."""
    total = len(x) if weights is None else weights.sum(dtype=np.float64)
    for start in range(0, len(x), batch):
        piece = slice(start, start + batch)
        own = None if weights is None else weights[piece]
        share = len(x[piece]) / total if own is None else own.sum(dtype=np.float64) / total
        if share > 0:  # a chunk whose weights are all zero has no mean
            yield x[piece], target[piece], own, float(share)


def objective(plan, x, target, weights=None):
    """The function that SciPy's optimizers minimise: theta -> (loss, gradient).

    Parameters
    ----------
    plan : Plan made with a loss, float64 or float32
    x : (n, *input_shape) array of the plan's dtype; n may exceed the plan's batch, it is then taken in chunks
    target : (n, *output_shape) array of the plan's dtype; integers (n, *output_shape[:-1]) for classes
    weights : (n,) array of the plan's dtype, none negative, or None; the loss is sum(w l) / sum(w)

    The arrays are kept, not copied: change them and the objective changes.

    Returns
    -------
    Objective
        fun(theta), where theta is a (n_params,) float64 array whatever the plan's dtype, returns a float and a fresh
        (n_params,) float64 array. A loss that is not finite comes back as infinity. fun.hessp(theta, v) is the exact
        Hessian-vector product, what SciPy's Newton methods take as hessp. One objective serves one thread at a time.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, NaN or infinity in x, target or weights, classes out of range. fun raises
        them for a theta of another shape or dtype.

    Examples
    --------
    >>> import nbprop, numpy as np, scipy.optimize
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> x = np.linspace(-1, 1, 20)[:, None]
    >>> fun = nbprop.objective(nbprop.plan(net, loss="mse", batch=20), x, 3 * x + 1)
    >>> scipy.optimize.minimize(fun, nbprop.init(net), jac=True).x.round(3)
    array([3., 1.])
    """
    return _objective("objective", plan, x, target, weights)


def _objective(function, plan, x, target, weights):
    x, target, weights = check_dataset(function, plan, x, target, weights)
    if plan.state_size:
        raise ValueError(f"{function}: this network changes its layer state at every call, so its loss is no function")
    return Objective(plan, x, target, weights)


# -- minimize ------------------------------------------------------------------------------------------------


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


class _Search:
    """An objective over the free parameters that remembers the best point it was asked for."""

    def __init__(self, fun, start, free, bounds):
        self.fun, self.start, self.free, self.bounds = fun, start, free, bounds
        self.theta = start.copy()
        self.first = self.best = math.inf
        self.best_theta = start
        self.evaluations = self.iterations = 0

    def __call__(self, theta):
        whole = self.whole(theta)
        loss, gradient = self.fun(whole)
        self.evaluations += 1
        if self.evaluations == 1:
            if loss == math.inf:
                raise _NotFinite
            self.first = loss
        if loss < self.best and self._allowed(theta):
            self.best, self.best_theta = loss, whole.copy()
        return loss, gradient if self.free is None else gradient[self.free]

    def _allowed(self, theta):
        """Whether a point lies within the bounds; trust-constr asks for others, too."""
        return self.bounds is None or bool((theta >= self.bounds[0]).all() and (theta <= self.bounds[1]).all())

    def hessp(self, theta, v):
        """H v over the free parameters."""
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
):
    """Fit parameters to data with one of SciPy's optimizers, in place.

    Parameters
    ----------
    plan : Plan made with a loss; float64 for a fit to full precision
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

    Returns
    -------
    scipy.optimize.OptimizeResult
        x (all parameters, float64), fun, jac (0 at frozen parameters), nit, nfev, success, status and message: the
        reason it stopped. Ctrl-C stops the search too, with status -1. params hold result.x and are never worse than at
        the start.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, an unknown method or option, bounds that exclude the start, a loss at the
        start that is not finite. Nothing has been written then. An exception of the callback's own goes through, with
        the best parameters so far in params.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params, x = nbprop.plan(net, loss="mse", batch=20), nbprop.init(net), np.linspace(-1, 1, 20)[:, None]
    >>> result = nbprop.minimize(plan, params, x, 3 * x + 1, bounds=(-10, 2))
    >>> params.round(3), result.success
    (array([2., 1.]), True)
    """
    fun = _objective("minimize", plan, x, target, weights)
    check_vector("minimize", "params", params, plan.n_params, plan.dtype, written=True)
    for name, other in (("x", x), ("target", target), ("weights", weights)):
        if other is not None and np.may_share_memory(params, other):
            raise ValueError(f"minimize: params is written and shares memory with {name}; pass separate buffers")
    name, options = _settings(method, bounds, maxiter, options)
    free = _free(trainable, plan.n_params)
    constraints = _constraints(name, constraints, plan.n_params, free)
    if METHODS[name].hessp and plan.without_tangents is not None:
        raise ValueError(
            f"minimize: {name} needs second derivatives and layer {plan.without_tangents} has none; use L-BFGS-B"
        )
    low_and_high = limits(bounds, params, free)
    if callback is not None and not callable(callback):
        raise TypeError(f"minimize: callback must be a function, got {type(callback).__name__}")
    search = _Search(fun, params.astype(np.float64), free, low_and_high)
    try:
        result = _run(search, name, low_and_high, constraints, callback, tol, options)
    except _NotFinite:
        raise ValueError(_start_message(params)) from None
    except BaseException:
        _write(params, search.best_theta, free)
        raise
    _write(params, result.x, free)
    return result


def _run(search, name, bounds, constraints, callback, tol, options):
    """Run SciPy's method; its result, made to hold all parameters, at the best point if it ended at a worse one."""
    import scipy.optimize

    try:
        with np.errstate(over="ignore", invalid="ignore"):  # SciPy's arithmetic on losses that are infinite
            start = search.start if search.free is None else search.start[search.free]
            if name == "L-BFGS":
                options = options if tol is None else {"gtol": tol, **options}
                result = lbfgs(search, start, **options, callback=_counted(search, callback))
            else:
                result = scipy.optimize.minimize(
                    search,
                    start,
                    jac=True,
                    method=name,
                    hessp=search.hessp if METHODS[name].hessp else None,
                    bounds=None if bounds is None else scipy.optimize.Bounds(*bounds),
                    constraints=constraints,
                    tol=tol,
                    options=options,
                    callback=_counted(search, callback),
                )
    except (KeyboardInterrupt, StopIteration) as stopped:
        reason = "stopped by the callback" if isinstance(stopped, StopIteration) else "interrupted"
        message = f"{reason} after {search.iterations} iterations; params hold the best point found"
        result = scipy.optimize.OptimizeResult(
            success=False, status=-1, message=message, fun=math.inf, nit=search.iterations
        )
        result.update(nfev=search.evaluations, njev=search.evaluations)
    # With constraints the lowest loss may lie where they do not hold: there SciPy's word counts.
    if (constraints and math.isfinite(result.fun)) or result.fun <= (search.first if result.success else search.best):
        theta = search.whole(result.x).copy()
    else:
        theta, result.success = search.best_theta, False
        result.fun = search.fun(theta)[0]
        if result.status != -1:
            result.message = f"{result.message.rstrip('.')}; params hold the best point found"
    # A float32 plan has seen theta rounded: that is the point whose loss stands in the result. The gradient is computed
    # again, since not every method of SciPy's leaves the last point's.
    result.x, result.jac = theta.astype(search.fun.plan.dtype).astype(np.float64), search.fun(theta)[1]
    if search.free is not None:
        result.jac[np.setdiff1d(np.arange(theta.size), search.free)] = 0.0
    return result


def _write(params, theta, free):
    if free is None:
        params[:] = theta
    else:
        params[free] = theta[free]


def _counted(search, callback):
    """SciPy's callback: counts iterations and calls the user's one with all parameters."""
    from scipy.optimize import OptimizeResult

    wants_result = callback is not None and "intermediate_result" in inspect.signature(callback).parameters

    def counted(intermediate_result):
        search.iterations += 1
        if callback is None:
            return
        if isinstance(intermediate_result, np.ndarray):  # TNC's way
            intermediate_result = OptimizeResult(x=intermediate_result)
        intermediate_result.x = search.whole(intermediate_result.x).copy()
        if wants_result:
            callback(intermediate_result=intermediate_result)
        else:
            callback(intermediate_result.x)

    return counted


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


def _constraints(name, constraints, n_params, free):
    """The constraints as a list, the linear ones checked for their shape."""
    import scipy.optimize

    kinds = (scipy.optimize.LinearConstraint, scipy.optimize.NonlinearConstraint, dict)
    listed = [constraints] if isinstance(constraints, kinds) else list(constraints)
    if listed and not METHODS[name].constraints:
        able = ", ".join(other for other, row in METHODS.items() if row.constraints)
        raise ValueError(f"minimize: method {name} takes no constraints; use {able}")
    if listed and free is not None:
        raise ValueError("minimize: constraints hold for all parameters; leave trainable out, or use bounds")
    for constraint in listed:
        if not isinstance(constraint, kinds):
            raise TypeError(f"minimize: constraints must be SciPy's, got {type(constraint).__name__}")
        if isinstance(constraint, kinds[0]) and constraint.A.shape[-1] != n_params:
            shape = constraint.A.shape
            raise ValueError(f"minimize: a linear constraint's A must have {n_params} columns, got shape {shape}")
    return listed


def _free(trainable, n_params):
    """The indices of the free parameters; None when all are."""
    if trainable is None:
        return None
    check_vector("minimize", "trainable", trainable, n_params, np.dtype(bool))
    if not trainable.any():
        raise ValueError("minimize: trainable is False everywhere; leave at least one parameter free")
    return None if trainable.all() else np.flatnonzero(trainable)
