"""Residuals of a network's outputs and their Jacobian, over float64 parameters, some of which may be fixed."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from nbprop.autodiff.derivatives import jacobian
from nbprop.autodiff.operators import jacobian_operator, outputs
from nbprop.lowering.plan import workspace
from nbprop.solvers.bounds import Free

# rho(z) of SciPy's robust losses (Triggs et al. 2000): the cost is f_scale^2 / 2 times the sum of rho((r / f_scale)^2).
RHO: dict[str, Callable[..., Any]] = {
    "linear": lambda z: z,
    "soft_l1": lambda z: 2 * (np.sqrt(1 + z) - 1),
    "huber": lambda z: np.where(z <= 1, z, 2 * np.sqrt(z) - 1),
    "cauchy": np.log1p,
    "arctan": np.arctan,
}


class Residuals:
    """r(theta) = sqrt(w) (y - t), (n * outputs,) float64, of the free parameters; half its square is SciPy's cost.

    Keeps the theta with the lowest cost, under the robust loss.
    """

    def __init__(self, plan, x, target, weights, loss="linear", f_scale=1.0, free=None):
        self._rho, self._f_scale, self.lowest, self.best = RHO[loss], f_scale, math.inf, None
        self.evaluations = self.jacobians = self.falls = self.not_finite = 0
        self.plan, self.x, self.target = plan, x, target.reshape(-1).astype(np.float64)
        self.free = Free("least_squares", np.zeros(plan.n_params, plan.dtype), None, None) if free is None else free
        rows = np.ones(len(x)) if weights is None else np.sqrt(weights.astype(np.float64))
        self.scale = np.repeat(rows, plan.unit_size)
        self._work = workspace(plan)

    def __call__(self, theta):
        residuals = self.at(theta)
        self.evaluations += 1
        cost = self.cost(residuals)
        if not math.isfinite(cost):
            self.not_finite += 1
        elif cost < self.lowest:
            self.falls += self.best is not None
            self.lowest, self.best = cost, theta.copy()
        return residuals

    def at(self, theta):
        """The residuals at theta; all infinite if a parameter is, in the plan's dtype."""
        params = self._params(theta)
        if not np.isfinite(params).all():
            return np.full(self.scale.size, np.inf)
        return self.scale * (outputs(self.plan, params, self.x, self._work).reshape(-1) - self.target)

    def cost(self, residuals):
        """The cost, which is minimised."""
        with np.errstate(over="ignore", invalid="ignore"):
            return 0.5 * self._f_scale**2 * float(self._rho((residuals / self._f_scale) ** 2).sum())

    def jacobian(self, theta):
        """dr/dtheta by the free parameters, (n * outputs, free) float64."""
        self.jacobians += 1
        matrix = np.empty((len(self.scale), self.plan.n_params), self.plan.dtype)
        self._fill(matrix, self._params(theta))
        if self.free.indices is not None:
            matrix = matrix[:, self.free.indices]
        matrix = matrix.astype(np.float64, copy=False)
        matrix *= self.scale[:, None]
        return matrix

    def _fill(self, matrix, params):
        """All rows of dy/dparams."""
        plan, rows = self.plan, self.plan.unit_size
        for start in range(0, len(self.x), plan.batch):
            piece = self.x[start : start + plan.batch]
            jacobian(plan, params, piece, matrix[start * rows : (start + len(piece)) * rows], self._work)

    def operator(self, theta):
        """dr/dtheta by the free parameters as a LinearOperator."""
        from scipy.sparse.linalg import LinearOperator

        self.jacobians += 1
        inner, free = jacobian_operator(self.plan, self._params(theta), self.x), self.free
        return LinearOperator(
            (inner.shape[0], free.size),
            matvec=lambda v: self.scale * inner.matvec(free.spread(np.reshape(v, -1))),
            rmatvec=lambda u: free.part(inner.rmatvec(self.scale * np.reshape(u, -1))),
            dtype=np.dtype(np.float64),
        )

    def _params(self, theta):
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(self.free.whole(theta), self.plan.dtype)
