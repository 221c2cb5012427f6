"""Modules of nbprop where they are now, or where they were: past commits are measured by the same benchmarks."""

from __future__ import annotations

import importlib
from types import ModuleType


def module(*names: str) -> ModuleType:
    """The first of these modules that this version of nbprop has; ImportError for the last one when it has none."""
    for name in names[:-1]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("nbprop."):
                raise
    return importlib.import_module(names[-1])
