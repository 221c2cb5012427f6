"""The one place for Numba flags, the disk cache, kernel signatures and addresses.

Compiled code reaches a kernel by its fingerprint, a 63-bit hash of its name, its dtype and the source of every file
it is made of. One process-wide hash table maps fingerprints to addresses; compiled code finds the table through an
external symbol, never through an address of its own, so code from a disk cache is right in the next process. A
fingerprint that the table lacks (a kernel not yet loaded in this process) goes through `_resolve`; one that nobody
knows (code cached by another version of nbprop) is an error, not a wrong jump.
"""

import hashlib
from typing import Any

import numba
from numba.core.dispatcher import Dispatcher

from nbprop.compiler.cache import DiskCache
from nbprop.compiler.fingerprint import source_of

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
