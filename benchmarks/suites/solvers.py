"""SciPy's solvers on nbprop's objective: 20 iterations of a curve fit in float64."""

from __future__ import annotations

import numpy as np

from suites.feature import needed


class Solvers:
    params = (["L-BFGS-B", "BFGS", "CG"],)
    param_names = ("method",)
    timeout = 300

    def setup(self, method: str) -> None:
        with needed():
            import nbprop

            net = nbprop.network((4,), nbprop.dense(32, activation="tanh"), nbprop.dense(1))
            self.plan = nbprop.plan(net, loss="mse", batch=1000, dtype=np.float64)
            self.start = nbprop.init(net, seed=0, dtype=np.float64)
            self.minimize = nbprop.minimize
        self.x = np.random.default_rng(0).standard_normal((1000, 4))
        self.target = np.sin(self.x.sum(axis=1, keepdims=True))
        self.time_20_iterations(method)

    def time_20_iterations(self, method: str) -> None:
        params = self.start.copy()
        self.minimize(self.plan, params, self.x, self.target, method=method, options={"maxiter": 20})
