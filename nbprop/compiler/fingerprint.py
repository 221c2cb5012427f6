"""Fingerprints of functions: a digest of everything that the machine code depends on, and a fresh copy to compile.

Everything that stores code (the table of kernels, the disk cache, plans) is keyed by these digests, never by names: a
function redefined under its old name, as when a notebook cell runs twice, is another function.

For nbprop's own functions, the digest holds the sources of their module and of all that it imports. User functions are
followed instead: code and constants, defaults, Numba's options, closures, and the globals and helpers they name, each
as it is now. Numba freezes all of these when it compiles; `renewed` copies a function together with its helpers, so
that what is compiled is what the digest stands for.
"""

import dataclasses
import dis
import functools
import hashlib
import inspect
import os
import pickle
import re
import sys
import types
import weakref
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core.dispatcher import Dispatcher

_PACKAGE = Path(__file__).parent.parent
# Begins with a character, not with an anchor, which makes the search of the whole package at import three times faster.
_IMPORT = re.compile(r"\n *(?:from +(nbprop[\w.]*) +import +(\([^)]*\)|[^\n]*)|import +(nbprop[\w.]*))")


def hashed(*parts):
    """Sixteen bytes that identify some byte strings; each is preceded by its length."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


# -- nbprop's own sources ------------------------------------------------------------------------------------


@functools.cache
def _module_file(name):
    """The file of a module of this package, or None."""
    path = _PACKAGE.joinpath(*name.split(".")[1:])
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() and name != "nbprop" else None


_source_hashes: dict[str, bytes] = {}
_imports: dict[str, list[str]] = {}


def _read(name):
    if name not in _imports:
        text = _module_file(name).read_text(encoding="utf-8")
        _source_hashes[name] = hashlib.blake2b(text.encode(), digest_size=16).digest()
        found = []
        for source, names, imported in _IMPORT.findall("\n" + text):
            members = [f"{source}.{word}" for word in re.findall(r"\w+", names)]
            found += [module for module in [source or imported, *members] if _module_file(module)]
        _imports[name] = found


_closures: dict[str, bytes] = {}


def source_of(module):
    """A hash of a module's source and of every module of this package that it imports, directly or not."""
    if module not in _closures:
        seen, waiting = set(), [module]
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                _read(name)
                waiting += _imports[name]
        _closures[module] = b"".join(_source_hashes[name] for name in sorted(seen))
    return _closures[module]


def is_ours(thing):
    """Whether a function or class belongs to nbprop, whose code does not change within a process."""
    return str(thing.__module__).startswith("nbprop.") and _module_file(thing.__module__) is not None


# -- digests -------------------------------------------------------------------------------------------------


def python_function(function):
    """The plain function behind a dispatcher, or the function itself."""
    return getattr(function, "py_func", function)


def options_of(function):
    """The options that a function was decorated with, in sorted order."""
    options = getattr(function, "targetoptions", {})
    return sorted((key, sorted(value) if isinstance(value, set) else value) for key, value in options.items())


def _codes(code):
    """A code object and all code objects nested in it."""
    return [code, *(inner for c in code.co_consts if inspect.iscode(c) for inner in _codes(c))]


def _global_names(function):
    """The names that a function, or one nested in it, finds among its globals."""
    codes = _codes(function.__code__)
    names = [step.argval for code in codes for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"]
    return [name for name in dict.fromkeys(names) if name in function.__globals__]


def _code(code):
    """A code object, with those nested in it, as bytes."""
    constants = [_code(c) if inspect.iscode(c) else _constant(c) for c in code.co_consts]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_argcount, code.co_flags)
    return hashed(code.co_code, code.co_exceptiontable, repr(names).encode(), *constants)


def _constant(value):
    """A constant of a code object; a set's order differs from process to process."""
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value).encode()


_files: "weakref.WeakKeyDictionary[Any, bytes]" = weakref.WeakKeyDictionary()


def _file_of(function):
    """A hash of the file that a function came from, as first read; empty if there is no file.

    It covers what cannot be followed, such as an @overload beside the function. It is remembered, because a file edited
    while the process runs is no longer the source of the function.
    """
    if function not in _files:
        path = function.__code__.co_filename
        _files[function] = hashed(Path(path).read_bytes()) if os.path.isfile(path) else b""
    return _files[function]


# Numba replaces their functions: what is compiled depends on the version of Numba, which is part of the cache's key.
_FOREIGN = frozenset({"numba", "numpy", "scipy", "llvmlite", "builtins", *sys.stdlib_module_names}) - {"__main__"}


def _is_foreign(thing):
    return str(getattr(thing, "__module__", None)).partition(".")[0] in _FOREIGN


_MISSING = object()


def _named(function):
    """(name, value) of the globals that a function names, and of what it names in modules, such as `helpers.scale`."""
    found = [(name, function.__globals__[name]) for name in _global_names(function)]
    attributes = dict.fromkeys(name for code in _codes(function.__code__) for name in code.co_names)
    for path, module in found:
        if isinstance(module, types.ModuleType) and module.__name__.partition(".")[0] not in _FOREIGN | {"nbprop"}:
            for name in attributes:
                value = getattr(module, name, _MISSING)
                if value is not _MISSING:
                    found.append((f"{path}.{name}", value))
    return found


class _Digest:
    """One traversal of a function and all that it reaches; a function met again is represented by its number."""

    def __init__(self):
        self._numbers: dict[int, int] = {}
        self._alive: list[object] = []  # so that no id is reused during the traversal

    def function(self, function):
        if id(function) in self._numbers:
            return b"again %d" % self._numbers[id(function)]
        self._numbers[id(function)] = len(self._numbers)
        self._alive.append(function)
        parts = [str(function.__module__).encode(), function.__qualname__.encode(), _code(function.__code__)]
        parts.append(self.value((function.__defaults__, function.__kwdefaults__)))
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        if is_ours(function):
            parts += [source_of(function.__module__), *map(self.value, cells)]
        elif not _is_foreign(function):
            parts += [source_of("nbprop.compiler.jit"), _file_of(function), *map(self.value, cells)]
            for name, value in _named(function):
                parts += [name.encode(), self.value(value)]
        return hashed(*parts)

    def value(self, value):
        """What Numba freezes of a value."""
        kind = f"{type(value).__module__}.{type(value).__qualname__}".encode()
        function = python_function(getattr(value, "_dispatcher", value))  # a DUFunc has one
        if inspect.isfunction(function):
            return hashed(kind, repr(options_of(value)).encode(), self.function(function))
        if hasattr(value, "source_digest"):
            return hashed(kind, value.source_digest())
        if isinstance(value, np.ndarray):
            described = repr((value.dtype.descr, value.shape, value.flags.c_contiguous, value.flags.f_contiguous))
            if not value.dtype.hasobject:
                return hashed(kind, described.encode(), value.tobytes())
        if isinstance(value, (tuple, list)):
            return hashed(kind, *map(self.value, value))
        if isinstance(value, dict):
            return hashed(kind, *(self.value(part) for item in value.items() for part in item))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return hashed(kind, *(self.value(getattr(value, field.name)) for field in dataclasses.fields(value)))
        if isinstance(value, type) and not is_ours(value) and not _is_foreign(value):
            return hashed(kind, repr(value).encode(), *self._members(value))
        return hashed(kind, self._opaque(value))

    def _members(self, owner):
        """The members of a user's class; a jitclass keeps its methods in its type."""
        members = dict(vars(owner)) | getattr(getattr(owner, "class_type", None), "jit_methods", {})
        members |= {"struct": repr(getattr(getattr(owner, "class_type", None), "struct", None))}
        for name, member in sorted(members.items()):
            if isinstance(python_function(member), types.FunctionType) or name == "struct":
                yield name.encode()
                yield self.value(member)

    def _opaque(self, value):
        """Anything else: numbers, strings, types and modules by name, other objects by their pickle."""
        if isinstance(value, types.ModuleType):
            return value.__name__.encode()
        simple = (type(None), bool, int, float, complex, str, bytes, np.generic, np.dtype, type, numba.types.Type)
        if not isinstance(value, simple):
            try:
                return pickle.dumps(value)
            except Exception:
                # Identified by its address, which is not reused, since the object is kept.
                _unknown.append(value)
        return object.__repr__(value).encode() if not isinstance(value, simple) else repr(value).encode()


_unknown: list[object] = []


def digest_of(function):
    """Sixteen bytes that identify a function by everything that its machine code depends on."""
    return _Digest().function(python_function(function))


# -- fresh copies --------------------------------------------------------------------------------------------


def renewed(value, made=None):
    """A copy of a user's function in which nothing is compiled yet; anything else unchanged.

    Numba compiles a helper once, with the globals of that moment. In the copy, every helper is a copy too, so that
    helpers of helpers are compiled as they are now. Numba's options are kept.
    """
    made = {} if made is None else made
    function = python_function(value)
    if not inspect.isfunction(function) or is_ours(function) or _is_foreign(function):
        return value
    if not isinstance(value, Dispatcher) and value is not function:
        return value  # another compiler's: a CUDA dispatcher, a cfunc
    if id(value) in made:
        return made[id(value)]
    # Only the globals that it names: a copy of all would keep the arrays of a notebook alive.
    names = _global_names(function)
    space: dict[str, Any] = {}
    space |= {name: function.__globals__[name] for name in ("__name__", "__builtins__") if name in function.__globals__}
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    copy = types.FunctionType(function.__code__, space, function.__name__, function.__defaults__, cells)
    copy.__kwdefaults__, copy.__module__, copy.__doc__ = function.__kwdefaults__, function.__module__, function.__doc__
    copy.__qualname__ = function.__qualname__
    _files[copy] = _file_of(function)
    made[id(value)] = copy
    if isinstance(value, Dispatcher):
        options: Any = value.targetoptions
        made[id(value)] = numba.jit(locals=value.locals, **options)(copy)
    for name in names:
        space[name] = _helper(function.__globals__[name], made)
    for cell, old in zip(cells, function.__closure__ or (), strict=True):
        cell.cell_contents = _helper(old.cell_contents, made)
    return made[id(value)]


def _helper(value, made):
    """A global or closed-over value for a copy; a plain function is kept, as an @overload may be keyed by it."""
    return renewed(value, made) if isinstance(value, Dispatcher) else value
