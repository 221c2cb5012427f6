"""What counts as an array, at every entry: exactly `np.ndarray` or `np.memmap`; and what to say of anything else.

A subclass carries a meaning of its own (a mask, units, matrix products), which arithmetic on its memory would drop
without a word. So none is taken, and nothing is converted: only the caller knows what the mask or the unit asks for.
"""

import math

import numpy as np

_CUDA, _CUDA_MANAGED = 2, 13  # DLDeviceType (dlpack.h)


def in_device_memory(value):
    """Whether a value is an array in a GPU's memory, of whichever library."""
    if isinstance(value, type):
        return False
    if hasattr(value, "__cuda_array_interface__"):
        return True
    return hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) in (_CUDA, _CUDA_MANAGED)


def plain(value):
    """A memory-mapped array seen as the plain array it is; anything else unchanged."""
    return value.view(np.ndarray) if type(value) is np.memmap else value


def as_array(named, value, wanted="a NumPy array"):
    """The array, as a plain one. named: "fit: x", the function and the argument.

    Raises TypeError for anything that is not an array as this module's first line says.
    """
    found = plain(value)
    if type(found) is not np.ndarray:
        raise TypeError(f"{named} {not_numpy(value, wanted)}")
    return found


def refuse_subclass(named, value):
    """Refuse an array of a subclass, where numbers of any form are taken: bounds, what a user's function returns."""
    if isinstance(value, np.ndarray):
        as_array(named, value)


def as_float(function, name, value):
    """A number as a float: infinity where it is too large for one, which the checks of its range refuse."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def not_numpy(value, wanted="a NumPy array"):
    """What follows the argument's name."""
    if in_device_memory(value):
        return (
            "is in device memory, but this call runs on the CPU; copy it to the host, or let the call run on the "
            'device, where all its arrays lie there and its plan has target="cuda"'
        )
    got = f"must be {wanted}, got {type(value).__name__}"
    if isinstance(value, np.ma.MaskedArray):
        return f"{got}, whose mask would be lost; fill it with .filled(...), or leave the masked samples out"
    if isinstance(value, np.ndarray):
        return f"{got}, a subclass whose own meaning would be lost; pass np.asarray of it once that is what you mean"
    return f"{got}; convert it once with np.ascontiguousarray"
