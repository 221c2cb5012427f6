"""Element types as small integers, as compiled code passes them, and arrays of integers of any width."""

from typing import Any

import numpy as np
from numba import types

from nbprop.compiler.intrinsics import load_integer
from nbprop.compiler.jit import njit

# Element codes: bytes, negative when signed, for integers; 64 + bytes for floats; 0 for everything else.
FLOAT = 64
FLOAT32, FLOAT64 = FLOAT + 4, FLOAT + 8
ANY_INTEGER = -100


def element_code(dtype):
    """The element code of a NumPy dtype."""
    dtype = np.dtype(dtype)
    if not dtype.isnative:
        return 0
    return {"f": FLOAT + dtype.itemsize, "i": -dtype.itemsize, "u": dtype.itemsize}.get(dtype.kind, 0)


def element_code_of_type(numba_type):
    """The element code of a Numba scalar type."""
    if isinstance(numba_type, types.Float):
        return FLOAT + numba_type.bitwidth // 8
    if isinstance(numba_type, types.Integer):
        code: Any = numba_type  # whose attributes Numba's annotations lack
        return (-1 if code.signed else 1) * (code.bitwidth // 8)
    return 0


@njit
def element_bytes(code):
    """Bytes of an element with this code."""
    return abs(code) & (FLOAT - 1)


@njit
def integer_at(address, code, index):
    """Element `index` of an integer array of any width."""
    if code == -8 or code == 8:
        return load_integer(address, 8 * index, 8)
    if code == -4:
        return load_integer(address, 4 * index, -4)
    if code == 4:
        return load_integer(address, 4 * index, 4)
    if code == 1:
        return load_integer(address, index, 1)
    if code == -1:
        return load_integer(address, index, -1)
    if code == -2:
        return load_integer(address, 2 * index, -2)
    return load_integer(address, 2 * index, 2)


@njit
def length_at(address, code, sample, max_length):
    """The length of a sample; `max_length` if the caller gave no lengths (address 0)."""
    return max_length if address == 0 else integer_at(address, code, sample)
