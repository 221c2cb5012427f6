"""Solvers on one curve fit in float64: 20 iterations each, SciPy's and those in compiled code."""

from __future__ import annotations

import numpy as np

from suites.feature import needed

SCIPY = ["L-BFGS-B", "BFGS", "CG", "TNC", "SLSQP", "Newton-CG", "trust-ncg", "trust-krylov", "trust-constr"]


class Solvers:
    """Methods that a commit does not know yet are skipped."""

    params = ([*SCIPY, "L-BFGS", "trf", "marquardt"],)
    param_names = ("method",)
    timeout = 300

    def setup(self, method: str) -> None:
        with needed():
            import nbprop

            net = nbprop.network((4,), nbprop.dense(16, activation="tanh"), nbprop.dense(1))
            self.plan = nbprop.plan(net, loss="mse", batch=1000, dtype=np.float64)
            self.start = nbprop.init(net, seed=0, dtype=np.float64)
            least_squares = method in ("trf", "marquardt")
            self.solve = nbprop.least_squares if least_squares else nbprop.minimize
        self.limit = {"max_nfev": 20} if least_squares else {"maxiter": 20}
        self.x = np.random.default_rng(0).standard_normal((1000, 4))
        self.target = np.sin(self.x.sum(axis=1, keepdims=True))
        try:
            self.time_20_iterations(method)
        except ValueError as error:
            if "method" not in str(error):
                raise
            raise NotImplementedError(f"this commit has no {method}") from error

    def time_20_iterations(self, method: str) -> None:
        params = self.start.copy()
        self.solve(self.plan, params, self.x, self.target, method=method, **self.limit)
