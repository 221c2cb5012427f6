"""The table of kernel addresses: one per process, which compiled code finds through an external symbol.

Compiled code reaches a kernel by its fingerprint, a 63-bit hash of its name, its dtype and all of its sources. Code
from a disk cache holds fingerprints, never addresses, so it is valid in the next process. A fingerprint that the table
lacks (a kernel not yet loaded in this process) goes through `_resolve`; an unknown one (code cached by another version
of nbprop) is an error instead of a wrong jump.
"""

import ctypes
import traceback
from collections.abc import Callable

import llvmlite.binding
import numpy as np

from nbprop.compiler.intrinsics import call_c, load, symbol_address
from nbprop.compiler.jit import njit


def define_symbol(name, address):
    """Make an address available to compiled code by name, in this process."""
    llvmlite.binding.add_symbol(name, address)


# -- the table of addresses ----------------------------------------------------------------------------------

_CAPACITY = 8192
_MASK = _CAPACITY - 1
_RESOLVER = 2 * _CAPACITY  # the word after the last pair
_table = np.zeros(2 * _CAPACITY + 1, np.int64)
define_symbol("nbprop_kernels", _table.ctypes.data)

known_natives: list = []  # of Native, each of which adds itself
# Functions that import the modules that are imported at their first use. A function from a user's disk cache calls
# what it was compiled with although nothing in this process has named it yet.
late_imports: list[Callable[[], None]] = []


def _load(fingerprint):
    """Load the native of a fingerprint; its address, 0 when no module that is imported defines it."""
    for native in known_natives:
        for dtype in native.dtypes:
            if native.fingerprint(dtype) == fingerprint:
                return native.load(dtype)
    return 0


@ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
def _resolve(fingerprint):
    """Called by compiled code for a fingerprint that the table lacks; 0 if it is unknown."""
    try:
        address = _load(fingerprint)
        if address == 0:
            for import_late in late_imports:
                import_late()
            address = _load(fingerprint)
        return address
    except Exception:
        # An exception must not propagate through compiled code; the caller sees 0 and raises an error of its own.
        traceback.print_exc()
    return 0


_table[_RESOLVER] = ctypes.cast(_resolve, ctypes.c_void_p).value or 0


def publish(fingerprint, address):
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
    """The address of a kernel, 0 if it is unknown."""
    table = symbol_address("nbprop_kernels")
    slot = fingerprint & _MASK
    while True:
        seen = load(table, 2 * slot)
        if seen == fingerprint:
            return load(table, 2 * slot + 1)
        if seen == 0:
            return call_c(load(table, _RESOLVER), (fingerprint,))
        slot = (slot + 1) & _MASK
