"""The only place for Numba flags; decorators of compiled functions, lazy and with a disk cache; hashes of sources."""

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numba.extending
from numba.core.dispatcher import Dispatcher

from nbprop.compiler.cache import DiskCache
from nbprop.compiler.fingerprint import source_of
from nbprop.compiler.symbols import number_apart

# With contract and nsz, the vector body of a loop and its scalar tail give the same bits; with reassoc and arcp, not.
# One form does not: in `y[i] += a * b if c else 0`, AVX-512 fuses product and sum under a mask; scalar code cannot.
# Choose between sums instead: `y[i] = y[i] + a * b if c else y[i]` (tests/documents/test_kernels.py finds the other).
FLAGS: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "nsz"}, "boundscheck": False}

number_apart()


def _dispatcher(function, **options):
    """Numba's dispatcher of a function, with the flags that all compiled code shares."""
    dispatcher = numba.njit(**FLAGS, **options)(function)
    if not isinstance(dispatcher, Dispatcher):
        raise RuntimeError("nbprop: NUMBA_DISABLE_JIT is set, but nbprop consists of compiled code; unset it")
    return dispatcher


Function = TypeVar("Function", bound=Callable[..., Any])


def njit(function: Function, **options: Any) -> Function:
    """Compile lazily, with the flags that all compiled code shares, and keep the machine code on disk."""
    dispatcher: Any = _dispatcher(function, **options)
    dispatcher._cache = DiskCache(function)
    return dispatcher


def intrinsic(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """Numba's `intrinsic`, with the type that callers see: without the typing context, and of any type."""
    if function is None:
        return lambda decorated: intrinsic(decorated, **options)
    return (numba.extending.intrinsic(**options) if options else numba.extending.intrinsic)(function)


def source_hash(module):
    """A positive 63-bit hash of a module's source and of all that it imports from this package."""
    digest = hashlib.blake2b(source_of(module), digest_size=8).digest()
    return (int.from_bytes(digest, "little") & 0x7FFFFFFFFFFFFFFF) or 1
