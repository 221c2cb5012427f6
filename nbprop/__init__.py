"""Backpropagation as a JIT-compiled numerical toolkit. Everything is a flat array; importing compiles nothing.

Each public name is imported when it is first used (PEP 562): `import nbprop` costs a few milliseconds more than `import
numba`, and a program pays for what it uses. `__init__.pyi` lists the names, for type checkers and for this file alike.
"""

import ast
import importlib
import importlib.util
import pkgutil
from pathlib import Path

from nbprop.compiler import late_names, registry  # noqa: F401 (before a user's function is compiled or loaded)

__version__ = "0.1.0"


def _places():
    """{public name: the module that defines it}, from the imports of the stub file."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in imports for alias in node.names}


_PLACES = _places()
__all__ = sorted(_PLACES)


def _is_module(name):
    return not name.startswith("_") and importlib.util.find_spec(f"nbprop.{name}") is not None


def __getattr__(name):
    if name in _PLACES and _PLACES[name] != "nbprop":
        found = getattr(importlib.import_module(_PLACES[name]), name)
    elif name == "marquardt":  # its name before there were packages
        found = importlib.import_module("nbprop.solvers.levenberg_marquardt")
    elif _is_module(name):
        found = importlib.import_module(f"nbprop.{name}")
    else:
        raise AttributeError(f"module 'nbprop' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__():
    return sorted({*globals(), *__all__, *(module.name for module in pkgutil.iter_modules(__path__))})


def _import_all():
    """Import what all public names need, so that the registry of compiled code knows all that there is."""
    for module in dict.fromkeys(_PLACES.values()):
        importlib.import_module(module)


registry.late_imports.append(_import_all)
