"""Where things are: this repository's folders, and nbprop's modules now and in past commits."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

BENCHMARKS = Path(__file__).resolve().parents[1]
REPOSITORY = BENCHMARKS.parent
RESULTS = BENCHMARKS / "results"


def peers_python() -> Path:
    """The interpreter of the peers' environment: $NBPROP_PEERS_PYTHON, or that of .venv-peers in the repository."""
    return Path(os.environ.get("NBPROP_PEERS_PYTHON", REPOSITORY / ".venv-peers" / "bin" / "python"))


def module(*names: str) -> ModuleType:
    """The first of these modules that the installed nbprop has: the newest name first, then those of past commits.

    Raises ImportError, for the last name, where it has none of them.
    """
    for name in names[:-1]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("nbprop."):
                raise
    return importlib.import_module(names[-1])
