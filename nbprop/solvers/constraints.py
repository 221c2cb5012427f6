"""Constraints on parameters in SciPy's forms: their checks, and by how much they are violated.

They apply to all parameters, whereas SciPy's methods see the free ones; so arguments and results of a constraint's
functions are converted here, and everything that they return is checked, at every call.
"""

import math

import numpy as np

from nbprop.arrays import refuse_subclass


def constraints_on(params, name, constraints, able):
    """The constraints as a list, checked at the start point.

    params: the start point; name: the method; able: the methods that take constraints.
    """
    if isinstance(constraints, (tuple, list)) and not constraints:
        return []
    import scipy.optimize

    kinds = (scipy.optimize.LinearConstraint, scipy.optimize.NonlinearConstraint, dict)
    try:
        listed = [constraints] if isinstance(constraints, kinds) else list(constraints)
    except TypeError:
        listed = [constraints]
    if listed and name not in able:
        raise ValueError(f"minimize: method {name} takes no constraints; use {', '.join(able)}")
    theta = params.astype(np.float64)
    return [_checked(constraint, theta, kinds) for constraint in listed]


def _checked(constraint, theta, kinds):
    if not isinstance(constraint, kinds):
        raise TypeError(f"minimize: constraints must be SciPy's, got {type(constraint).__name__}")
    if isinstance(constraint, kinds[0]):
        return _Linear(constraint, theta)
    if isinstance(constraint, dict):
        if constraint.get("type") not in ("eq", "ineq") or not callable(constraint.get("fun")):
            raise ValueError('minimize: a constraint as a dict needs "type", "eq" or "ineq", and a function as "fun"')
        return _Given(constraint, theta, tuple(constraint.get("args", ())))
    return _Nonlinear(constraint, theta)


class _Linear:
    """low <= A theta <= high."""

    def __init__(self, constraint, theta):
        self.kept, matrix = constraint, constraint.A
        if matrix.ndim != 2 or matrix.shape[1] != theta.size:
            raise ValueError(
                f"minimize: a linear constraint's A must have {theta.size} columns, got shape {matrix.shape}"
            )
        if not np.isfinite(matrix.sum()):
            raise ValueError("minimize: a linear constraint's A holds NaN or infinity")
        self.matrix = matrix if isinstance(matrix, np.ndarray) else matrix.tocsr()
        self.low, self.high = _sides(constraint.lb, constraint.ub, matrix.shape[0])

    def values(self, theta):
        return self.matrix @ theta

    def on(self, free):
        import scipy.optimize

        if free.indices is None:
            return self.kept
        frozen = free.start.copy()
        frozen[free.indices] = 0.0
        done = self.matrix @ frozen
        matrix = self.matrix[:, free.indices]
        return scipy.optimize.LinearConstraint(matrix, self.low - done, self.high - done, self.kept.keep_feasible)


class _Function:
    """low <= fun(theta) <= high: checked values and Jacobian; fun and jac get a copy of theta."""

    def __init__(self, fun, jac, args, low, high, theta):
        self.fun, self.jac, self.args, self.count = fun, jac, args, None
        self.count = self.values(theta).size
        self.low, self.high = _sides(low, high, self.count)
        if callable(jac):
            self.jacobian(theta)

    def values(self, theta):
        """fun(theta), (count,) float64. NaN is passed on: `violation` counts it as an infinite violation."""
        given = self.fun(theta.copy(), *self.args)
        found = np.atleast_1d(_numbers("fun", given))
        if found.ndim > 1:
            raise ValueError(f"minimize: a constraint's fun must return a number or a vector, got shape {found.shape}")
        if self.count is not None and found.size != self.count:
            raise ValueError(
                f"minimize: a constraint's fun returned {found.size} values, and {self.count} at the start"
            )
        return found

    def jacobian(self, theta):
        """jac(theta), (count, n_params) float64 or sparse."""
        given = self.jac(theta.copy(), *self.args)
        found = given.tocsr() if hasattr(given, "tocsr") else np.atleast_2d(_numbers("jac", given))
        if found.shape != (self.count, theta.size):
            wanted = (self.count, theta.size)
            raise ValueError(f"minimize: a constraint's jac must return shape {wanted}, got {found.shape}")
        return found

    def functions_on(self, free):
        """(fun, jac) over the free parameters; a jac that is not a function is unchanged."""
        jac = self.jac
        if callable(jac):

            def jac(theta):
                matrix = self.jacobian(free.whole(theta))
                return matrix if free.indices is None else matrix[:, free.indices]

        return (lambda theta: self.values(free.whole(theta))), jac


class _Given(_Function):
    """A constraint as a dict, the form of SLSQP."""

    def __init__(self, constraint, theta, args):
        self.type = constraint["type"]
        high = 0.0 if self.type == "eq" else math.inf
        super().__init__(constraint["fun"], constraint.get("jac"), args, 0.0, high, theta)

    def on(self, free):
        fun, jac = self.functions_on(free)
        return {"type": self.type, "fun": fun, "jac": jac}


class _Nonlinear(_Function):
    """SciPy's NonlinearConstraint."""

    def __init__(self, constraint, theta):
        self.kept = constraint
        super().__init__(constraint.fun, constraint.jac, (), constraint.lb, constraint.ub, theta)

    def on(self, free):
        import scipy.optimize

        fun, jac = self.functions_on(free)
        kept, hess = self.kept, self.kept.hess
        if callable(hess) and free.indices is not None:
            hess = _Hessian(hess, free)
        steps, sparsity = kept.finite_diff_rel_step, kept.finite_diff_jac_sparsity
        if free.indices is not None:
            steps = steps[free.indices] if np.ndim(steps) == 1 else steps
            sparsity = None if sparsity is None else sparsity[:, free.indices]
        return scipy.optimize.NonlinearConstraint(fun, kept.lb, kept.ub, jac, hess, kept.keep_feasible, steps, sparsity)


class _Hessian:
    """hess(theta, v) over the free parameters, as a LinearOperator: it need not be a matrix."""

    def __init__(self, hess, free):
        self.hess, self.free = hess, free

    def __call__(self, theta, v):
        from scipy.sparse.linalg import LinearOperator, aslinearoperator

        whole, free = aslinearoperator(self.hess(self.free.whole(theta), v)), self.free
        return LinearOperator((free.size, free.size), lambda p: free.part(whole @ free.spread(np.reshape(p, -1))))


def _numbers(what, given):
    refuse_subclass(f"minimize: a constraint's {what}", given)
    try:
        found = np.asarray(given)
    except ValueError:
        found = np.empty(0, object)
    if found.dtype.kind not in "iuf":
        raise TypeError(f"minimize: a constraint's {what} must return real numbers, got {given!r}")
    return found.astype(np.float64)


def _sides(low, high, count):
    """The lower and upper bounds of the values, each (count,) float64."""
    sides = [_numbers("lb or ub", side) for side in (low, high)]
    for side in sides:
        if side.shape not in ((), (1,), (count,)):
            raise ValueError(
                f"minimize: a constraint's lb and ub must have the shape of its values ({count},), got {side.shape}"
            )
        if np.isnan(side).any():
            raise ValueError("minimize: a constraint's lb or ub holds NaN; use infinity for an open side")
    return [np.broadcast_to(side, (count,)) for side in sides]


def violation(constraints, theta):
    """The largest violation of a constraint; 0 for one within the tolerance of SciPy's methods."""
    worst = 0.0
    for constraint in constraints:
        values = constraint.values(theta)
        distance = float(np.max(np.maximum(constraint.low - values, values - constraint.high), initial=0.0))
        worst = max(worst, math.inf if math.isnan(distance) else distance)
    return worst if worst > 1e-6 else 0.0
