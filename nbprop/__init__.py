"""Backpropagation as a JIT-compiled numerical toolkit. Everything is a flat array; importing compiles nothing.

Each public name is imported when it is first used (PEP 562): `import nbprop` costs a few milliseconds, and a program
pays for what it uses. `__init__.pyi` says where each name is, to type checkers and to this file alike.
"""

import ast
import importlib
from pathlib import Path

__version__ = "0.1.0"


def _places():
    """{public name: the module that defines it}, from the imports of the stub file."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in imports for alias in node.names}


_PLACES = _places()
__all__ = sorted(_PLACES)
# Modules with names of their own that are documented; the last one by the name that it had before version 0.1.
_MODULES = {name: f"nbprop.{name}" for name in ("cuda", "data", "schedules", "solvers")}
_MODULES["marquardt"] = "nbprop.solvers.levenberg_marquardt"


def __getattr__(name):
    if name in _MODULES:
        found = importlib.import_module(_MODULES[name])
    elif name in _PLACES:
        found = getattr(importlib.import_module(_PLACES[name]), name)
    else:
        raise AttributeError(f"module 'nbprop' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__():
    return sorted({*globals(), *__all__, *_MODULES})
