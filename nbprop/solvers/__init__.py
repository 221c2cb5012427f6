"""Solvers: L-BFGS and Levenberg-Marquardt in compiled code, SciPy's methods on a plan, fleets of fits."""
