"""SciPy's least-squares solvers on a plan: residuals, their exact Jacobian, whole or as products."""

import math

import numpy as np

from nbprop.bounds import limits
from nbprop.checks import check_dataset, check_layers, check_vector
from nbprop.derivatives import jacobian
from nbprop.marquardt import levenberg_marquardt
from nbprop.network import choose
from nbprop.operators import jacobian_operator, outputs
from nbprop.plan import workspace

_METHODS = ("trf", "dogbox", "lm", "marquardt")


# rho(z) of SciPy's robust losses (Triggs et al. 2000): the cost is f_scale^2 / 2 times the sum of rho((r / f_scale)^2).
_RHO = {
    "linear": lambda z: z,
    "soft_l1": lambda z: 2 * (np.sqrt(1 + z) - 1),
    "huber": lambda z: np.where(z <= 1, z, 2 * np.sqrt(z) - 1),
    "cauchy": np.log1p,
    "arctan": np.arctan,
}


class Residuals:
    """r(theta) = sqrt(w) (y - t), (n * outputs,) float64; half its square is SciPy's cost.

    Remembers the theta with the lowest cost under a robust loss.
    """

    def __init__(self, plan, x, target, weights, loss="linear", f_scale=1.0):
        self._rho, self._f_scale, self.lowest, self.best, self.evaluations = _RHO[loss], f_scale, math.inf, None, 0
        self.plan, self.x, self.target = plan, x, target.reshape(-1).astype(np.float64)
        rows = np.ones(len(x)) if weights is None else np.sqrt(weights.astype(np.float64))
        self.scale = np.repeat(rows, plan.unit_size)
        self._work = workspace(plan)

    def __call__(self, theta):
        y = outputs(self.plan, self._params(theta), self.x, self._work)
        residuals = self.scale * (y.reshape(-1) - self.target)
        self.evaluations += 1
        cost = 0.5 * self._f_scale**2 * float(self._rho((residuals / self._f_scale) ** 2).sum())
        if cost < self.lowest:
            self.lowest, self.best = cost, theta.copy()
        return residuals

    def jacobian(self, theta):
        """dr/dtheta, (n * outputs, n_params) float64."""
        plan, params, rows = self.plan, self._params(theta), self.plan.unit_size
        matrix = np.empty((len(self.scale), plan.n_params), plan.dtype)
        for start in range(0, len(self.x), plan.batch):
            piece = self.x[start : start + plan.batch]
            jacobian(plan, params, piece, matrix[start * rows : (start + len(piece)) * rows], self._work)
        matrix = matrix.astype(np.float64, copy=False)
        matrix *= self.scale[:, None]
        return matrix

    def operator(self, theta):
        """dr/dtheta as a LinearOperator."""
        from scipy.sparse.linalg import LinearOperator

        inner = jacobian_operator(self.plan, self._params(theta), self.x)
        return LinearOperator(
            inner.shape,
            matvec=lambda v: self.scale * inner.matvec(np.reshape(v, -1)),
            rmatvec=lambda u: inner.rmatvec(self.scale * np.reshape(u, -1)),
            dtype=np.dtype(np.float64),
        )

    def _params(self, theta):
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(theta, self.plan.dtype)


def least_squares(
    plan,
    params,
    x,
    target,
    method="trf",
    jac="dense",
    loss="linear",
    f_scale=1.0,
    bounds=None,
    weights=None,
    ftol=1e-8,
    xtol=1e-8,
    gtol=1e-8,
    max_nfev=None,
):
    """Fit parameters by scipy.optimize.least_squares, in place, with the network's exact Jacobian.

    Parameters
    ----------
    plan : Plan made with loss="mse", whose residuals are the outputs' errors
    params : (n_params,) array of the plan's dtype, the start; overwritten with the result
    x, target, weights : as `objective` takes them; a sample's residuals are sqrt(w) (y - t)
    method : "trf", "dogbox" (both take bounds), "lm" (MINPACK's Levenberg-Marquardt; as many residuals as parameters
        are needed) or "marquardt" (nbprop's own, see marquardt.py)
    jac : "dense", the matrix (n * outputs, n_params), or "operator", products only (trf and dogbox)
    loss, f_scale : SciPy's robust loss ("linear", "soft_l1", "huber", "cauchy", "arctan") and its scale
    bounds : as `minimize` takes them
    ftol, xtol, gtol, max_nfev : as scipy.optimize.least_squares takes them

    Returns
    -------
    scipy.optimize.OptimizeResult
        As SciPy's: x, cost (half the sum of squares under loss="linear"), fun (the residuals), grad, nfev, njev,
        success, status, message. params hold result.x unless its cost is above the start's: then they stay. Ctrl-C ends
        the search at the best point so far, with status -1.

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
    import scipy.optimize

    x, target, weights = check_dataset("least_squares", plan, x, target, weights)
    check_layers("least_squares", plan)
    check_vector("least_squares", "params", params, plan.n_params, plan.dtype, written=True)
    if plan.loss.kind != "mse":
        raise ValueError(
            f"least_squares: {plan.loss.kind} is no sum of squared residuals; make the plan with loss='mse' "
            "(its robust forms are least_squares' own loss=...), or use nbprop.minimize"
        )
    choose("least_squares: method", method, _METHODS)
    choose("least_squares: loss", loss, _RHO)
    choose("least_squares: jac", jac, ("dense", "operator"))
    if method in ("lm", "marquardt") and (bounds is not None or jac == "operator" or loss != "linear"):
        raise ValueError(f"least_squares: method {method} takes no bounds, no operator and no robust loss; use trf")
    residuals, start = Residuals(plan, x, target, weights, loss, f_scale), params.astype(np.float64)
    if method == "lm" and residuals.scale.size < start.size:
        raise ValueError(
            f"least_squares: method lm needs at least as many residuals as parameters, got {residuals.scale.size} "
            f"for {start.size}; use trf"
        )
    if not np.isfinite(residuals(start)).all():
        raise ValueError("least_squares: the residuals at the start are not finite; start from smaller parameters")
    low_and_high = limits(bounds, params, None) or (-math.inf, math.inf)
    tolerances = {"ftol": ftol, "xtol": xtol, "gtol": gtol, "max_nfev": max_nfev}
    first = residuals.lowest
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            if method == "marquardt":
                result = levenberg_marquardt(residuals, residuals.jacobian, start, **tolerances)
            else:
                result = scipy.optimize.least_squares(
                    residuals,
                    start,
                    jac=residuals.jacobian if jac == "dense" else residuals.operator,
                    bounds=low_and_high,
                    method=method,
                    loss=loss,
                    f_scale=f_scale,
                    **tolerances,
                )
    except KeyboardInterrupt:
        result = _interrupted(residuals)
    except BaseException:
        params[:] = residuals.best
        raise
    rounded = result.x.astype(plan.dtype)
    if result.cost <= first and np.isfinite(rounded).all():
        params[:] = rounded
    return result


def _interrupted(residuals):
    """The best point so far as a result."""
    from scipy.optimize import OptimizeResult

    evaluations, theta = residuals.evaluations, residuals.best
    result = OptimizeResult(x=theta, cost=residuals.lowest, fun=residuals(theta), success=False, status=-1)
    result.update(nfev=evaluations, message=f"interrupted after {evaluations} evaluations; params hold the best point")
    return result
