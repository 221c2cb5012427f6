"""Solvers: L-BFGS and Levenberg-Marquardt in compiled code, SciPy's methods on a plan, fleets of fits.

`ITERATIONS` and `REASONS` are those of L-BFGS: an index into its state, and the meaning of its return values.
"""

from nbprop.solvers.lbfgs import ITERATIONS, REASONS

__all__ = ["ITERATIONS", "REASONS"]
