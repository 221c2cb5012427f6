"""Compile times, separate from all others: cold, warm, import, and a network of a new shape."""

from __future__ import annotations

from harness import absolutes
from suites.feature import needed


class Compiling:
    timeout = 600
    unit = "seconds"

    def setup(self) -> None:
        with needed():
            import nbprop

            _ = nbprop.value_and_grad

    def track_cold_first_gradient(self) -> float:
        """Process start to first gradient with nothing in the disk cache."""
        return absolutes.cold_first_gradient()

    def track_warm_first_gradient(self) -> dict:
        """The same from the disk cache."""
        absolutes.start_to_gradient("nbprop")
        return {"samples": [absolutes.start_to_gradient("nbprop") for _ in range(5)], "number": 1}

    def track_new_architecture(self) -> dict:
        """A network of a shape that a warm process has not seen: description to first gradient."""
        absolutes.new_architecture("nbprop")
        return {"samples": [absolutes.new_architecture("nbprop") for _ in range(5)], "number": 1}

    def track_import_above_numba(self) -> dict:
        """`import nbprop` less `import numba`, each in processes of their own, in turn."""
        pairs = [(absolutes.import_seconds("nbprop"), absolutes.import_seconds("numba")) for _ in range(6)]
        return {"samples": [ours - numba for ours, numba in pairs[1:]], "number": 1}
