"""Fleets: thousands of small networks of one architecture, each fitted to data of its own, in compiled code.

Every model has its own line search, damping and stop; a thread takes a contiguous share of the models, so results have
the same bits on any number of threads.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from nbprop import marquardt, solvers
from nbprop.calls import forward, value_and_grad
from nbprop.checks import check_layers
from nbprop.derivatives import jacobian
from nbprop.jit import njit
from nbprop.marquardt import lm_state, lm_step
from nbprop.network import Network, choose, positive
from nbprop.optimizers import adam, optimizer_state
from nbprop.plan import plan as make_plan
from nbprop.plan import workspace
from nbprop.solvers import lbfgs_state, lbfgs_step

_LBFGS_ITERATIONS, _NOT_FINITE = solvers.ITERATIONS, solvers.NOT_FINITE
_LM_ITERATIONS, _LM_EVALUATIONS = marquardt.ITERATIONS, marquardt.EVALUATIONS

METHODS = ("L-BFGS", "marquardt", "adam")


@dataclass(frozen=True)
class FleetResult:
    """What `fit_many` returns: an entry for each model.

    fun : losses, (models,)
    nit : iterations, (models,)
    status : why each stopped, numbers of `reasons`; 0 after the most iterations
    """

    fun: np.ndarray
    nit: np.ndarray
    status: np.ndarray
    reasons: dict


@njit
def _lbfgs_share(plan, thetas, xs, ys, losses, iterations, status, first, last, maxiter, start, state, grads, work):
    """Models first to last by L-BFGS; `start` is a new state."""
    for model in range(first, last):
        theta, best = thetas[model], thetas[model].copy()
        state[:] = start
        outcome, lowest = 0, np.inf
        while outcome == 0 and state[_LBFGS_ITERATIONS] < maxiter:
            loss = value_and_grad(plan, theta, xs[model], ys[model], grads, work)
            if loss < lowest:
                lowest = loss
                best[:] = theta
            outcome = lbfgs_step(state, theta, loss, grads)
        theta[:] = best
        losses[model], iterations[model], status[model] = lowest, state[_LBFGS_ITERATIONS], outcome


@njit
def _adam_share(plan, thetas, xs, ys, losses, iterations, status, first, last, maxiter, lr, state, grads, work):
    """Models first to last by Adam on all of each model's data."""
    for model in range(first, last):
        theta, best = thetas[model], thetas[model].copy()
        state[:] = 0
        lowest = np.inf
        for step in range(maxiter + 1):
            loss = value_and_grad(plan, theta, xs[model], ys[model], grads, work)
            if loss < lowest:
                lowest = loss
                best[:] = theta
            if not np.isfinite(loss):
                status[model] = _NOT_FINITE
                break
            if step < maxiter:
                adam(theta, grads, state, step, lr)
                iterations[model] = step + 1
        theta[:] = best
        losses[model] = lowest


@njit
def _lm_share(
    plan, thetas, xs, ys, losses, iterations, status, first, last, maxiter, start, state, matrix, work, outputs
):
    """Models first to last by Levenberg-Marquardt; `outputs` holds predictions, `matrix` their Jacobian."""
    for model in range(first, last):
        theta, best = thetas[model], thetas[model].copy()
        flat, target = outputs.reshape(-1), ys[model].reshape(-1)
        state[:] = start
        want, lowest = 1, np.inf
        while (want == 1 or want == 2) and state[_LM_EVALUATIONS] <= maxiter:
            if want == 1:
                forward(plan, theta, xs[model], outputs, work)
                cost = 0.0
                for i in range(flat.size):
                    flat[i] -= target[i]
                    cost += flat[i] * flat[i]
                if cost < lowest:
                    lowest = cost
                    best[:] = theta
            else:
                jacobian(plan, theta, xs[model], matrix, work)
            want = lm_step(state, theta, flat, matrix)
        theta[:] = best
        losses[model] = lowest / flat.size
        iterations[model] = state[_LM_ITERATIONS]
        status[model] = want if want > 2 else 0


def fit_many(net, thetas, xs, ys, loss="mse", method="L-BFGS", maxiter=200, gtol=1e-8, ftol=1e-9, lr=1e-2, threads=1):
    """Fit many networks of one architecture, each to its own data, in place.

    Parameters
    ----------
    net : Network
    thetas : (models, n_params) float64 array, the starts; overwritten with the best parameters found
    xs : (models, n, *input_shape) float64 array
    ys : (models, n, *output_shape) float64 array; integers (models, n, *output_shape[:-1]) for classes
    loss : as `plan` takes it; "mse" for method="marquardt"
    method : "L-BFGS", "marquardt" (Levenberg-Marquardt) or "adam" (all of a model's data in each step)
    maxiter : most iterations of each model (of evaluations, for marquardt)
    gtol, ftol : as `lbfgs_state` and `lm_state` take them; lr : Adam's
    threads : threads that share the models; the bits do not depend on it

    Returns
    -------
    FleetResult

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit. Nothing has been written then.

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
    maxiter, threads = positive("maxiter", maxiter), positive("threads", threads)
    _check("thetas", thetas, np.float64, 2, written=True)
    _check("xs", xs, np.float64, 2 + len(net.input_shape))
    models, samples = len(thetas), xs.shape[1]
    plan = make_plan(net, loss=loss, batch=max(1, samples))
    check_layers("fit_many", plan)
    if method == "marquardt" and plan.loss.kind != "mse":
        raise ValueError(f"fit_many: method marquardt needs loss='mse', got {plan.loss.kind}; use L-BFGS")
    target_shape = (models, samples, *plan.target_shape)
    _check("ys", ys, None if plan.classes else np.float64, len(target_shape))
    for name, array, shape in (
        ("thetas", thetas, (models, net.n_params)),
        ("xs", xs, (models, samples, *net.input_shape)),
        ("ys", ys, target_shape),
    ):
        if array.shape != shape:
            raise ValueError(f"fit_many: {name} must have shape {shape}, got {array.shape}")
    if models == 0 or samples == 0:
        raise ValueError(f"fit_many: there must be at least one model and one sample, got xs of shape {xs.shape}")
    losses, iterations, status = np.empty(models), np.zeros(models, np.int64), np.zeros(models, np.int64)
    settings = {"gtol": gtol, "ftol": ftol, "lr": lr, "maxiter": maxiter}

    def share(first, last):
        _fit_share(method, plan, (thetas, xs, ys, losses, iterations, status, first, last), settings)

    share(0, 1)  # whatever is refused or compiled is so before other threads start
    bounds = np.linspace(1, models, min(threads, models) + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(share, bounds[:-1], bounds[1:]))
    reasons = marquardt.REASONS if method == "marquardt" else dict(enumerate(solvers.REASONS))
    return FleetResult(losses, iterations, status, {**reasons, 0: f"{maxiter} iterations, the most allowed"})


def _fit_share(method, plan, models, settings):
    """Fit a share of the models with buffers of its own."""
    n, work, maxiter = plan.n_params, workspace(plan), settings["maxiter"]
    if method == "L-BFGS":
        start = lbfgs_state(n, gtol=settings["gtol"], ftol=settings["ftol"])
        _lbfgs_share(plan, *models, maxiter, start, start.copy(), np.empty(n), work)
    elif method == "adam":
        _adam_share(plan, *models, maxiter, settings["lr"], optimizer_state("adam", n), np.empty(n), work)
    else:
        start = lm_state(n, gtol=settings["gtol"], ftol=settings["ftol"])
        outputs = np.empty((plan.batch, *plan.output_shape))
        matrix = np.empty((outputs.size, n))
        _lm_share(plan, *models, maxiter, start, start.copy(), matrix, work, outputs)


def _check(name, array, dtype, rank, *, written=False):
    if not isinstance(array, np.ndarray):
        raise TypeError(f"fit_many: {name} must be a NumPy array, got {type(array).__name__}")
    wrong = array.dtype.kind not in "iu" if dtype is None else array.dtype != dtype
    if wrong:
        wanted = "integers" if dtype is None else np.dtype(dtype).name
        raise TypeError(f"fit_many: {name} must hold {wanted}, got {array.dtype}; convert it once with .astype")
    if array.ndim != rank or not array.flags.c_contiguous:
        raise ValueError(f"fit_many: {name} must be C-contiguous with {rank} axes, got shape {array.shape}")
    if dtype is not None and not np.isfinite(array).all():
        raise ValueError(f"fit_many: {name} holds NaN or infinity")
    if written and not array.flags.writeable:
        raise ValueError(f"fit_many: {name} is written and must not be read-only; pass a copy")
