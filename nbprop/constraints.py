"""Constraints on parameters in SciPy's forms: whether they fit, and how far they are from holding."""

import math

import numpy as np


def constraints_on(params, name, constraints, free, able):
    """The constraints as a list, checked for their shapes at the start.

    params: the start; name: the method's; free: indices of free parameters, or None for all; able: methods that take
    constraints.
    """
    import scipy.optimize

    kinds = (scipy.optimize.LinearConstraint, scipy.optimize.NonlinearConstraint, dict)
    listed = [constraints] if isinstance(constraints, kinds) else list(constraints)
    if listed and name not in able:
        raise ValueError(f"minimize: method {name} takes no constraints; use {', '.join(able)}")
    if listed and free is not None:
        raise ValueError("minimize: constraints hold for all parameters; leave trainable out, or use bounds")
    for constraint in listed:
        if not isinstance(constraint, kinds):
            raise TypeError(f"minimize: constraints must be SciPy's, got {type(constraint).__name__}")
        if isinstance(constraint, kinds[0]) and constraint.A.shape[-1] != params.size:
            shape = constraint.A.shape
            raise ValueError(f"minimize: a linear constraint's A must have {params.size} columns, got shape {shape}")
        if isinstance(constraint, dict) and not (
            constraint.get("type") in ("eq", "ineq") and callable(constraint.get("fun"))
        ):
            raise ValueError('minimize: a constraint as a dict needs "type", "eq" or "ineq", and a function as "fun"')
        _check_constraint(constraint, params.astype(np.float64))
    return listed


def _check_constraint(constraint, theta):
    """The shapes of a constraint's values, sides and Jacobian at theta."""
    values, low, high = _values_and_sides(constraint, theta)
    if values.ndim > 1:
        raise ValueError(f"minimize: a constraint's fun must return a number or a vector, got shape {values.shape}")
    for side in (low, high):
        if side.shape not in ((), (1,), np.atleast_1d(values).shape):
            raise ValueError(
                f"minimize: a constraint's sides must have its values' shape {values.shape}, got {side.shape}"
            )
    jac = constraint.get("jac") if isinstance(constraint, dict) else getattr(constraint, "jac", None)
    if callable(jac):
        found = np.atleast_2d(jac(theta, *(constraint.get("args", ()) if isinstance(constraint, dict) else ()))).shape
        if found != (values.size, theta.size):
            wanted = (values.size, theta.size)
            raise ValueError(f"minimize: a constraint's jac must return shape {wanted}, got {found}")


def _values_and_sides(constraint, theta):
    """(values at theta, lowest, highest allowed) of one of SciPy's constraints."""
    if isinstance(constraint, dict):
        values = np.asarray(constraint["fun"](theta, *constraint.get("args", ())), np.float64)
        return values, np.zeros(()), np.asarray(0.0 if constraint["type"] == "eq" else math.inf)
    values = constraint.A @ theta if hasattr(constraint, "A") else constraint.fun(theta)
    return tuple(np.asarray(array, np.float64) for array in (values, constraint.lb, constraint.ub))


def violation(constraints, theta):
    """How far the worst constraint is from holding; differences that SciPy's methods leave count as none."""
    worst = 0.0
    for constraint in constraints:
        values, low, high = _values_and_sides(constraint, theta)
        worst = max(worst, float(np.max(np.maximum(low - values, values - high), initial=0.0)))
    return worst if worst > 1e-6 else 0.0
