"""Solvers: L-BFGS and Levenberg-Marquardt in compiled code, SciPy's methods on a plan, fleets of fits.

`ITERATIONS` and `REASONS` are those of L-BFGS: a place in its state, and what the numbers that it returns mean.
"""

from nbprop.solvers.lbfgs import ITERATIONS, REASONS

__all__ = ["ITERATIONS", "REASONS"]
