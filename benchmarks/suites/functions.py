"""The vectorised functions on their own: 4,096 numbers, which stay in the first-level cache."""

from __future__ import annotations

import numpy as np

from harness.places import module
from suites.feature import needed, same_as

FUNCTIONS = ["exp", "expm1", "log", "tanh", "sigmoid", "softplus", "erf"]


class Functions:
    """In a loop that a user would write, and in NumPy for comparison, if it has the function."""

    params = (FUNCTIONS, ["float32", "float64"])
    param_names = ("function", "dtype")

    def setup(self, function: str, dtype: str) -> None:
        with needed():
            njit = module("nbprop.compiler.jit", "nbprop.jit").njit
            chosen = getattr(module("nbprop.numerics.elementary", "nbprop.numerics.functions"), function)

        def apply(y, x):
            for i in range(y.size):
                y[i] = chosen(x[i])

        self.apply = njit(apply)
        self.x = np.random.default_rng(0).uniform(0.1, 3, 4096).astype(dtype)
        self.y = np.empty_like(self.x)
        self.libm = getattr(np, function, None)
        self.time_function(function, dtype)

    @same_as("608ee8f003110edbe0c57755a505b100a11a0a9da690999203cce16d81e41c0f")
    def time_function(self, function: str, dtype: str) -> None:
        self.apply(self.y, self.x)

    @same_as("c092a73ed79e6fa1ad557a296c7d051bb7dede6a26780dab660f68e1501b9483")
    def time_numpy(self, function: str, dtype: str) -> None:
        if self.libm is None:
            raise NotImplementedError(f"NumPy has no {function}")
        self.libm(self.x, out=self.y)
