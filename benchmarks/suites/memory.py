"""Memory of training: allocations in a step, the workspace, the peak of a process."""

from __future__ import annotations

import absolutes
import numpy as np
from rows import BY_NAME

from suites.feature import needed

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
    """Scratch memory of a step, and the process's peak while it runs."""

    params = (STEPS,)
    param_names = ("row",)
    timeout = 300
    unit = "bytes"

    def setup(self, name: str) -> None:
        with needed():
            import ours

            self.arrays = ours.arrays(BY_NAME[name], threads=1)

    def track_bytes(self, name: str) -> int:
        return self.arrays[-1].nbytes

    def peakmem_gradient(self, name: str) -> None:
        import nbprop

        plan, params, x, target, grads, work = self.arrays
        nbprop.value_and_grad(plan, params, x, target, grads, work)
        assert np.isfinite(grads).all()
