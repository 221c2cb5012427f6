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
import traceback
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba import types
from numba.core.dispatcher import Dispatcher
from numba.extending import overload

from nbprop import frame
from nbprop.disk_cache import DiskCache, cache_root
from nbprop.numerics.intrinsics import (
    FrameType,
    call_c,
    indirect_call,
    kernel_arguments,
    load,
    store_double,
    symbol_address,
)
from nbprop.sources import digest_of, hashed, is_ours, options_of, python_function, renewed, source_of

__all__ = [
    "FLAGS", "FRAME_WORDS", "Kernel", "Native", "Untyped", "cache_root", "define_symbol", "find", "kernel", "njit",
    "python_function", "share", "share_blocks", "source_hash",
]  # fmt: skip

# contract and nsz keep a value's bits the same in a vector body and in its scalar tail; reassoc and arcp do not.
FLAGS: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}, "boundscheck": False}


def _dispatcher(function, **options):
    """Numba's dispatcher of a function, with the flags that all compiled code shares."""
    dispatcher = numba.njit(**FLAGS, **options)(function)
    if not isinstance(dispatcher, Dispatcher):
        raise RuntimeError(
            "nbprop: NUMBA_DISABLE_JIT is set, so Numba compiles nothing, and nbprop is compiled code only; unset it"
        )
    return dispatcher


def njit(function, **options):
    """Compile lazily with the flags every kernel shares, and keep the machine code on disk."""
    dispatcher = _dispatcher(function, **options)
    dispatcher._cache = DiskCache(function)
    return dispatcher


def source_hash(module):
    """A positive 63-bit hash of a module's source and of all that it imports from this package."""
    digest = hashlib.blake2b(source_of(module), digest_size=8).digest()
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
        self._given, self.function = function, python_function(function)
        self.name = name or f"{self.function.__module__}.{self.function.__qualname__}"
        self.signature = signature
        self.uses = tuple(uses)
        self._fingerprints = {}
        self._loaded = {}
        _known.append(self)

    def __repr__(self):
        return f"<nbprop native {self.name}>"

    def source_digest(self):
        """Identifies what this is compiled from, a user's function as it is now."""
        return hashed(self.name.encode(), digest_of(self.function), repr(options_of(self._given)).encode())

    def fingerprint(self, dtype):
        """The number by which rows know this native: of what it is now, if it is a user's."""
        if dtype in self._fingerprints:
            return self._fingerprints[dtype]
        text = f"{self.name}:{dtype}:".encode() + self.source_digest()
        value = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
        value = (value & 0x7FFFFFFFFFFFFFFF) or 1
        if is_ours(self.function):
            self._fingerprints[dtype] = value
        return value

    def compiled(self):
        """The function to compile."""
        return renewed(self.function)

    def load(self, dtype):
        """Compile (or fetch from the disk cache) and publish; returns the address."""
        fingerprint = self.fingerprint(dtype)
        if fingerprint not in self._loaded:
            for native in self.uses:
                native.load(dtype)
            signature = self.signature(dtype)
            dispatcher = _dispatcher(self.compiled())
            dispatcher._cache = _NativeCache(self)
            dispatcher.compile(signature.args)
            (result,) = dispatcher.overloads.values()
            address = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
            self._loaded[fingerprint] = (address, dispatcher)
            _publish(fingerprint, address)
        return self._loaded[fingerprint][0]

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

    def source_digest(self):
        return self._native.source_digest()


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
        super().__init__(function, self._op_signature, name, uses)

    @staticmethod
    def _op_signature(dtype):
        return types.int64(FrameType(dtype), *OP_ARGUMENTS[1:])

    @functools.cached_property
    def _by_itself(self):
        """Made at first use: an import of nbprop with a hundred kernels need not wait for a hundred of them."""
        # Inlined, or each array would be passed as seven words through memory: several ns for each operand of an op.
        return self._given if self._given is not self.function else njit(self._given, forceinline=True)

    def compiled(self):
        bind = kernel_arguments(len(self.arrays), tuple(self.scalars), FRAME_WORDS)
        split = self.split
        if is_ours(self.function):
            function = self._by_itself
        else:
            given = renewed(self._given)
            function = given if isinstance(given, Dispatcher) else _dispatcher(given, forceinline=True)

        def op(frame_address, row, part, parts):
            if part > 0 and not split:
                return 0
            return _finish(frame_address, function(*bind(frame_address, row, part, parts)))

        return op

    def __call__(self, *arguments):
        """Run the plain function (compiled for these argument types), as tests and teachers do."""
        return self._by_itself(*arguments)


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
