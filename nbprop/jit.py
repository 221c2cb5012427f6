"""The one place for Numba flags, the disk cache, kernel signatures and addresses.

Compiled code reaches a kernel by its fingerprint, a 63-bit hash of its name, its dtype and the source of every file
it is made of. One process-wide hash table maps fingerprints to addresses; compiled code finds the table through an
external symbol, never through an address of its own, so code from a disk cache is right in the next process. A
fingerprint that the table lacks (a kernel not yet loaded in this process) goes through `_resolve`; one that nobody
knows (code cached by another version of nbprop) is an error, not a wrong jump.
"""

import ctypes
import functools
import hashlib
import inspect
import os
import pickle
import re
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba import types
from numba.core.compiler import CompileResult
from numba.extending import overload

from nbprop import frame
from nbprop.numerics.intrinsics import (
    FrameType,
    call_c,
    indirect_call,
    kernel_arguments,
    load,
    store_double,
    symbol_address,
)

# contract and nsz keep a value's bits the same in a vector body and in its scalar tail; reassoc and arcp do not.
FLAGS: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}, "boundscheck": False}

_PACKAGE = Path(__file__).parent
# Beginning with a character, not with an anchor: the whole package is searched at import, so in a third of the time.
_IMPORT = re.compile(r"\n *(?:from +(nbprop[\w.]*) +import +(\([^)]*\)|[^\n]*)|import +(nbprop[\w.]*))")


# -- what a function is made of ------------------------------------------------------------------------------


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
        for source, names, plain in _IMPORT.findall("\n" + text):
            members = [f"{source}.{word}" for word in re.findall(r"\w+", names)]
            found += [module for module in [source or plain, *members] if _module_file(module)]
        _imports[name] = found


_closures: dict[str, bytes] = {}


def _source_of(module):
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


def _digest_of(function, seen=()):
    """Identifies a function by what it compiles to: its source file (ours: with all it imports), code and closure."""
    code = function.__code__
    parts = [str(function.__module__).encode(), function.__qualname__.encode(), code.co_code]
    parts.append(repr([c for c in code.co_consts if not inspect.iscode(c)]).encode())
    values = [cell.cell_contents for cell in function.__closure__ or ()]
    if str(function.__module__).startswith("nbprop.") and _module_file(function.__module__):
        parts.append(_source_of(function.__module__))
    else:
        parts.append(_source_of("nbprop.jit"))
        if os.path.isfile(code.co_filename):
            parts.append(Path(code.co_filename).read_bytes())
        # Numba freezes globals; those of a user's function may come from other files, or from none.
        values += [function.__globals__[name] for name in code.co_names if name in function.__globals__]
    for value in values:
        value = python_function(value)
        if inspect.isfunction(value):
            if value not in seen and value is not function:
                parts.append(_digest_of(value, (*seen, function)))
        elif isinstance(value, np.ndarray):
            parts.append(value.tobytes())
        elif not inspect.ismodule(value):
            parts.append(repr(value).encode())
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()


def python_function(function):
    """The plain function behind a dispatcher, or the function itself."""
    return getattr(function, "py_func", function)


# -- the disk cache ------------------------------------------------------------------------------------------


def cache_root():
    """The folder of compiled code: NUMBA_CACHE_DIR when the user has set it, else the user's cache folder."""
    if numba.config.CACHE_DIR:
        return Path(numba.config.CACHE_DIR) / "nbprop"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "nbprop" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "nbprop"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nbprop"


_warned: list[str] = []


def _warn_once(message):
    if not _warned:
        _warned.append(message)
        warnings.warn(message, RuntimeWarning, stacklevel=3)


class DiskCache:
    """Numba's cache protocol with one file for each function, signature and processor.

    The name of a file is a hash of all that its content depends on, so an index (which processes race for) is not
    needed, and a file is written aside and renamed. A file that cannot be read counts as absent.
    """

    def __init__(self, function, label=None):
        self._function = function
        self._label = label or function.__qualname__

    @property
    def cache_path(self):
        return str(cache_root())

    def _path(self, signature, target_context):
        codegen = target_context.codegen()
        key = repr((str(signature), codegen.magic_tuple(), numba.__version__, sys.version_info[:3], self._label))
        digest = hashlib.blake2b(key.encode() + _digest_of(self._function), digest_size=16).hexdigest()
        label = re.sub(r"\W+", "_", self._label)[-60:]
        return cache_root() / digest[:2] / f"{label}-{digest}.nbc"

    def load_overload(self, signature, target_context):
        try:
            payload = self._path(signature, target_context).read_bytes()
        except OSError:
            return None
        digest, content = payload[:16], payload[16:]
        if hashlib.blake2b(content, digest_size=16).digest() != digest:
            return None
        target_context.refresh()
        try:
            return CompileResult._rebuild(target_context, *pickle.loads(content))
        except ImportError:
            return None  # a function made by exec, or in a module that this process cannot import by its name

    def save_overload(self, signature, compiled):
        path = self._path(signature, compiled.target_context)
        try:
            content = pickle.dumps(compiled._reduce(), protocol=pickle.HIGHEST_PROTOCOL)
        except (pickle.PicklingError, AttributeError):
            return  # it refers to a function that has no importable name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.blake2b(content, digest_size=16).digest() + content)
                os.replace(name, path)
            except BaseException:
                os.unlink(name)
                raise
        except OSError as error:
            _warn_once(
                f"nbprop cannot keep its compiled code in {cache_root()} ({error.strerror}), so every process will "
                "compile it again; set NUMBA_CACHE_DIR to a folder that can be written"
            )

    def enable(self):
        """Part of Numba's protocol; this cache is always on."""

    def disable(self):
        """Part of Numba's protocol; this cache is always on."""

    def flush(self):
        """Part of Numba's protocol; files are never stale, since their names hash their sources."""


def njit(function, **options):
    """Compile lazily with the flags every kernel shares, and keep the machine code on disk."""
    dispatcher = numba.njit(**FLAGS, **options)(function)
    dispatcher._cache = DiskCache(function)
    return dispatcher


def source_hash(module):
    """A positive 63-bit hash of a module's source and of all that it imports from this package."""
    digest = hashlib.blake2b(_source_of(module), digest_size=8).digest()
    return (int.from_bytes(digest, "little") & 0x7FFFFFFFFFFFFFFF) or 1


def define_symbol(name, address):
    """Make an address known to compiled code by name, for this process."""
    llvmlite.binding.add_symbol(name, address)


# -- the table of addresses ----------------------------------------------------------------------------------

_CAPACITY = 8192
_MASK = _CAPACITY - 1
_RESOLVER = 2 * _CAPACITY  # the word behind the last pair
_table = np.zeros(2 * _CAPACITY + 1, np.int64)
define_symbol("nbprop_kernels", _table.ctypes.data)

_known: list["Native"] = []


@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
def _resolve(fingerprint):
    """Called by compiled code for a fingerprint that the table lacks; 0 when nobody knows it."""
    try:
        for native in _known:
            for dtype in native.dtypes:
                if native.fingerprint(dtype) == fingerprint:
                    return native.load(dtype)
    except Exception:
        # Nothing may be raised through compiled code; the caller sees 0 and stops with an error of its own.
        traceback.print_exc()
    return 0


_table[_RESOLVER] = ctypes.cast(_resolve, ctypes.c_void_p).value or 0


def _publish(fingerprint, address):
    slot = fingerprint & _MASK
    for _ in range(_CAPACITY):
        if _table[2 * slot] in (0, fingerprint):
            _table[2 * slot + 1] = address
            _table[2 * slot] = fingerprint
            return
        slot = (slot + 1) & _MASK
    raise RuntimeError(f"nbprop's table of {_CAPACITY} compiled kernels is full; define fewer layers of your own")


@njit
def find(fingerprint):
    """The address of a kernel, 0 when it is unknown."""
    table = symbol_address("nbprop_kernels")
    slot = fingerprint & _MASK
    while True:
        seen = load(table, 2 * slot)
        if seen == fingerprint:
            return load(table, 2 * slot + 1)
        if seen == 0:
            return call_c(load(table, _RESOLVER), (fingerprint,))
        slot = (slot + 1) & _MASK


class Native:
    """A function compiled once for each dtype, for one signature, and reached by address.

    `signature` maps a dtype (numba float32 or float64) to a Numba signature. `uses` names the natives that this
    one calls: they are loaded with it, so that nothing compiles in a step.
    """

    dtypes: tuple = (types.float32, types.float64)

    def __init__(self, function, signature, name=None, uses=()):
        function = python_function(function)
        self.function = function
        self.name = name or f"{function.__module__}.{function.__qualname__}"
        self.signature = signature
        self.uses = tuple(uses)
        self._fingerprints = {}
        self._loaded = {}
        _known.append(self)

    def __repr__(self):
        return f"<nbprop native {self.name}>"

    def source_digest(self):
        return _digest_of(self.function)

    def fingerprint(self, dtype):
        if dtype not in self._fingerprints:
            text = f"{self.name}:{dtype}:".encode() + self.source_digest()
            value = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
            self._fingerprints[dtype] = (value & 0x7FFFFFFFFFFFFFFF) or 1
        return self._fingerprints[dtype]

    def compiled(self):
        """The function to compile."""
        return self.function

    def load(self, dtype):
        """Compile (or fetch from the disk cache) and publish; returns the address."""
        if dtype not in self._loaded:
            for native in self.uses:
                native.load(dtype)
            signature = self.signature(dtype)
            dispatcher = numba.njit(**FLAGS)(self.compiled())
            dispatcher._cache = _NativeCache(self)
            dispatcher.compile(signature.args)
            (result,) = dispatcher.overloads.values()
            address = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
            self._loaded[dtype] = (address, dispatcher)
            _publish(self.fingerprint(dtype), address)
        return self._loaded[dtype][0]

    def callable(self):
        """A function for kernels, ``call((arguments, ...))``, that jumps to this native's address.

        The first argument's dtype selects the version. Large kernels that many others share are compiled once this
        way; inlined, each caller would compile them again.
        """

        def call(arguments):
            raise TypeError("runs in compiled code only")

        @overload(call, jit_options=FLAGS)
        def compiled(arguments):
            dtype = arguments[0].dtype
            fingerprint, invoke = np.int64(self.fingerprint(dtype)), indirect_call(self.signature(dtype))

            def jump(arguments):
                return invoke(find(fingerprint), arguments)[1]

            return jump

        return call


class _NativeCache(DiskCache):
    """Keyed on the native's own digest: what is compiled may be an adapter around its function."""

    def __init__(self, native):
        super().__init__(native.function, native.name)
        self._native = native

    def _path(self, signature, target_context):
        path = super()._path(signature, target_context)
        digest = hashlib.blake2b(path.name.encode() + self._native.source_digest(), digest_size=16).hexdigest()
        return path.with_name(f"{path.stem.rsplit('-', 1)[0]}-{digest}.nbc")


class Untyped(Native):
    """A native whose code is the same for every dtype; `address` is 0 until it is loaded."""

    dtypes = (types.none,)
    address = 0

    def fingerprint(self, dtype=types.none):
        return super().fingerprint(types.none)

    def load(self, dtype=types.none):
        self.address = super().load(types.none)
        return self.address


# -- kernels: natives that a walker calls --------------------------------------------------------------------

OP_ARGUMENTS = (types.int64, types.int64, types.int64, types.int64)  # frame, row, part, parts

FRAME_WORDS = {
    "n": frame.N,
    "accumulate": frame.ACCUMULATE,
    "step": frame.STEP,
    "first_sample": frame.FIRST_SAMPLE,
    "x_code": frame.X_CODE,
    "target_code": frame.TARGET_CODE,
    "x_address": frame.X,
    "target_address": frame.TARGET,
    "lengths_address": frame.LENGTHS,
    "lengths_code": frame.LENGTHS_CODE,
}


def _finish(frame_address, result):
    """What a kernel returned: nothing, or a number that becomes the walk's result."""
    raise TypeError("runs in compiled code only")


@overload(_finish, jit_options=FLAGS)
def _finish_compiled(frame_address, result):
    if isinstance(result, (types.Float, types.Integer)):

        def number(frame_address, result):
            store_double(frame_address, frame.RESULT, float(result))
            return 0

        return number
    if result is types.none:
        return lambda frame_address, result: 0
    return None


class Kernel(Native):
    """A plain function over arrays, made callable by the walker.

    The parameters' names are the contract: arrays come first, then `n` (samples in this call), then sizes in the
    order in which the row holds them. Names with a meaning of their own are filled in by the walk: `accumulate`,
    `step`, `first_sample` (the place of sample 0 in the caller's batch, where a function walks one sample at a time),
    `x_code`, `x_address`, `target_code`, `target_address`, `lengths_code`, `lengths_address`, and at the end `part` and
    `parts`. A kernel without `part` runs on one thread while the others wait.

    An array that the caller did not give has size 0. A direction of `jvp` or `hvp` may be one: `optional` names the
    arrays for which the kernel takes an empty one as zeros; any other it gets as an array of zeros (Builder.emit).
    """

    def __init__(self, function, uses=(), name=None, optional=()):
        python = python_function(function)
        names = list(inspect.signature(python).parameters)
        if "n" not in names:
            raise TypeError(
                f"kernel {python.__qualname__}: its parameters must be arrays, then n, then sizes; "
                f"got ({', '.join(names)})"
            )
        self.arrays = names[: names.index("n")]
        self.scalars = names[len(self.arrays) :]
        self.sizes = [name for name in self.scalars if name not in FRAME_WORDS and name not in ("part", "parts")]
        self.split = "part" in names
        self.optional = frozenset(optional)
        if not self.optional <= set(self.arrays):
            raise TypeError(f"kernel {python.__qualname__}: optional must name its arrays {self.arrays}")
        self._given = function
        super().__init__(python, self._op_signature, name, uses)

    @staticmethod
    def _op_signature(dtype):
        return types.int64(FrameType(dtype), *OP_ARGUMENTS[1:])

    @functools.cached_property
    def _dispatcher(self):
        """Made at first use: an import of nbprop with a hundred kernels need not wait for a hundred of them."""
        # Inlined, or each array would be passed as seven words through memory: several ns for each operand of an op.
        return self._given if self._given is not self.function else njit(self._given, forceinline=True)

    def compiled(self):
        bind = kernel_arguments(len(self.arrays), tuple(self.scalars), FRAME_WORDS)
        function, split = self._dispatcher, self.split

        def op(frame_address, row, part, parts):
            if part > 0 and not split:
                return 0
            return _finish(frame_address, function(*bind(frame_address, row, part, parts)))

        return op

    def __call__(self, *arguments):
        """Run the plain function (compiled for these argument types), as tests and teachers do."""
        return self._dispatcher(*arguments)


def kernel(function=None, *, uses=(), optional=()):
    """Decorate a plain function over arrays as a kernel of an op; see `Kernel` for the naming contract."""
    if function is None:
        return lambda decorated: Kernel(decorated, uses, optional=optional)
    return Kernel(function, uses, optional=optional)


@njit
def share(total, part, parts):
    """The range [start, stop) of `total` items that falls to one of `parts` threads; some may be empty."""
    base, more = total // parts, total % parts
    start = part * base + min(part, more)
    return start, start + base + (1 if part < more else 0)


# Elements a vectorised loop takes at a time at most: 4 vectors of 16 float32.
_BLOCK = 64


@njit
def share_blocks(total, part, parts):
    """As `share`, in whole blocks of 64 elements: the bounds of an elementwise loop's share.

    LLVM may fuse a product and a sum one way in a loop's vector body and another way in its scalar tail (it did in
    gelu's derivative, float32). Cut at whole blocks, each element is in the body or in the tail on any number of
    threads.
    """
    first, last = share((total + _BLOCK - 1) // _BLOCK, part, parts)
    return min(first * _BLOCK, total), min(last * _BLOCK, total)
