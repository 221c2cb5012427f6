"""Residuals of a network's outputs and their Jacobian, over float64 parameters, some of which may be fixed."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from nbprop.autodiff.derivatives import jacobian
from nbprop.autodiff.operators import jacobian_operator, outputs
from nbprop.compiler.jit import njit
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


@njit
def _applied(function, y, t):
    """function(y, t) of each element, a new array. y, t IN (size,)."""
    found = np.empty(y.size)
    for i in range(y.size):
        found[i] = function(y[i], t[i])
    return found


class Residuals:
    """r(theta) = sqrt(w) (y - t), (n * outputs,) float64, of the free parameters; half its square is SciPy's cost.

    A plan with l2 has a residual more for each penalized parameter: theta sqrt(sum(w) outputs l2 / 2), so that the cost
    is sum(w) outputs / 2 times the plan's loss. Of a `custom_loss`, its residual stands for y - t. Keeps the theta with
    the lowest cost, under the robust loss.
    """

    def __init__(self, plan, x, target, weights, loss="linear", f_scale=1.0, free=None):
        self._rho, self._f_scale, self.lowest, self.best = RHO[loss], f_scale, math.inf, None
        self.evaluations = self.jacobians = self.falls = self.not_finite = 0
        self.plan, self.x, self.target = plan, x, target.reshape(-1).astype(np.float64)
        self.free = Free("least_squares", np.zeros(plan.n_params, plan.dtype), None, None) if free is None else free
        rows = np.ones(len(target)) if weights is None else np.sqrt(weights.astype(np.float64))
        self.scale = np.repeat(rows, plan.unit_size)
        factors = plan.loss.factors(plan.output_shape)
        if factors is not None:
            self.scale *= np.tile(np.sqrt(factors), len(target))
        if plan.loss.missing is not None:
            self.scale[np.isnan(self.target)] = 0.0
            self.target[np.isnan(self.target)] = 0.0
        self._residual = plan.loss.residual
        self.penalized, self._root = np.empty(0, np.int64), 0.0
        if plan.penalty is not None:
            self.penalized = np.flatnonzero(plan.penalty.mask(plan.n_params))
            self._root = math.sqrt(float(self.scale @ self.scale) * plan.penalty.l2 / 2)
        self.count = self.scale.size + self.penalized.size
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
            return np.full(self.count, np.inf)
        y = self._outputs(params)
        errors = y - self.target if self._residual is None else _applied(self._residual[0], y, self.target)
        errors *= self.scale
        if not self.penalized.size:
            return errors
        return np.concatenate([errors, self._root * params[self.penalized].astype(np.float64)])

    def _outputs(self, params):
        """The outputs of all samples, (n * outputs,) float64."""
        return outputs(self.plan, params, self.x, self._work).reshape(-1)

    def cost(self, residuals):
        """The cost, which is minimised."""
        with np.errstate(over="ignore", invalid="ignore"):
            return 0.5 * self._f_scale**2 * float(self._rho((residuals / self._f_scale) ** 2).sum())

    def jacobian(self, theta):
        """dr/dtheta by the free parameters, (n * outputs and the penalized, free) float64."""
        self.jacobians += 1
        params, last = self._params(theta), self.scale.size
        matrix = np.empty((self.count, self.plan.n_params), self.plan.dtype)
        matrix[last:] = 0
        matrix[np.arange(last, self.count), self.penalized] = self._root
        self._fill(matrix[:last], params)
        if self.free.indices is not None:
            matrix = matrix[:, self.free.indices]
        matrix = matrix.astype(np.float64, copy=False)
        matrix[:last] *= self._slopes(params)[:, None]
        return matrix

    def _slopes(self, params):
        """dr/dy of each output, (n * outputs,)."""
        if self._residual is None:
            return self.scale
        return self.scale * _applied(self._residual[1], self._outputs(params), self.target)

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
        params, free, last = self._params(theta), self.free, self.scale.size
        inner, slopes = jacobian_operator(self.plan, params, self.x), self._slopes(params)

        def along(v):
            v = free.spread(np.reshape(v, -1))
            return np.concatenate([slopes * inner.matvec(v), self._root * v[self.penalized]])

        def back(u):
            u = np.reshape(u, -1)
            total = inner.rmatvec(slopes * u[:last])
            total[self.penalized] += self._root * u[last:]
            return free.part(total)

        return LinearOperator((self.count, free.size), matvec=along, rmatvec=back, dtype=np.dtype(np.float64))

    def _params(self, theta):
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(self.free.whole(theta), self.plan.dtype)
