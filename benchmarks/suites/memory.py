"""Memory of training: allocations per step, the workspace, the peak of a process."""

from __future__ import annotations

import numpy as np

from harness import absolutes
from suites.feature import needed, same_as
from workloads.rows import BY_NAME

STEPS = [name for name, row in BY_NAME.items() if row.kind == "step"]


class Allocations:
    unit = "allocations"

    def setup(self) -> None:
        with needed():
            import nbprop

            _ = nbprop.value_and_grad, nbprop.adam

    def track_in_100_steps(self) -> int:
        return absolutes.allocations()


class Workspace:
    """Workspace of a step, and the peak memory of the process while it runs."""

    params = (STEPS,)
    param_names = ("row",)
    timeout = 300
    unit = "bytes"

    def setup(self, name: str) -> None:
        with needed():
            from contenders import ours

            self.arrays = ours.arrays(BY_NAME[name], threads=1)

    @same_as("6eccfc4d4794666b3086d41799846a549d77c6a626e9cd678d4edcafae4d42d8")
    def track_bytes(self, name: str) -> int:
        return self.arrays[-1].nbytes

    @same_as("23cab83be6a78b1e5b378b610885cbee20b0d47987c10e592d2b920a40e1e6a9")
    def peakmem_gradient(self, name: str) -> None:
        import nbprop

        plan, params, x, target, grads, work = self.arrays
        nbprop.value_and_grad(plan, params, x, target, grads, work)
        assert np.isfinite(grads).all()
