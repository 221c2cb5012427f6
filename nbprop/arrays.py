"""What counts as an array, at every entry: exactly `np.ndarray` or `np.memmap`; and what it must be.

A subclass carries a meaning of its own (a mask, units, matrix products), which arithmetic on its memory would drop
without a word. So none is taken, and nothing is converted: only the caller knows what the mask or the unit asks for.
"""

import numpy as np

from nbprop.messages import DTYPE, LENGTH, MISALIGNED, ORDER, READ_ONLY, failure

_CUDA, _CUDA_MANAGED = 2, 13  # DLDeviceType (dlpack.h)


def in_device_memory(value):
    """Whether a value is an array in a GPU's memory, of whichever library."""
    if isinstance(value, type):
        return False
    if hasattr(value, "__cuda_array_interface__"):
        return True
    return hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) in (_CUDA, _CUDA_MANAGED)


def without_memmap(value):
    """A memory-mapped array as the `np.ndarray` it is; anything else unchanged."""
    return value.view(np.ndarray) if type(value) is np.memmap else value


def as_array(named, value, wanted="a NumPy array"):
    """The array, as a plain one. named: "fit: x", the function and the argument.

    Raises TypeError for anything that is not an array as this module's first line says.
    """
    found = without_memmap(value)
    if type(found) is not np.ndarray:
        raise TypeError(f"{named} {not_numpy(value, wanted)}")
    return found


def refuse_subclass(named, value):
    """Refuse an array of a subclass, where numbers of any form are taken: bounds, what a user's function returns."""
    if isinstance(value, np.ndarray):
        as_array(named, value)


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


# -- what arrays must be -------------------------------------------------------------------------------------


def described(array):
    """An array in a message."""
    return f"{array.dtype} array of shape {array.shape}"


def check_kinds(argument, array, kinds):
    """Refuse an array, of whichever memory, whose dtype is none of `kinds`."""
    kinds = [np.dtype(kind) for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
    if array.dtype not in kinds:
        raise failure(DTYPE, argument, kind=" or ".join(kind.name for kind in kinds), got=described(array))


def check_shape(argument, array, shape):
    """Refuse an array, of whichever memory, of another shape."""
    if array.shape != shape:
        raise failure(LENGTH, argument, shape=shape, got=array.shape, remedy="")


def check_memory(argument, array, written=False):
    """Refuse an array that is strided or misaligned, or read-only where it is to be written."""
    flags = array.flags
    fits = (ORDER, flags.c_contiguous), (MISALIGNED, flags.aligned), (READ_ONLY, flags.writeable or not written)
    for problem, fit in fits:
        if not fit:
            raise failure(problem, argument, got=described(array))


def check_array(argument, array, shape, kinds, written=False):
    """An array of this shape and a dtype, or one of a tuple of dtypes; C-contiguous, aligned, and as a plain array.

    argument: "fit: params"; written: whether it is to be written.
    """
    array = as_array(argument, array)
    check_kinds(argument, array, kinds)
    check_shape(argument, array, shape)
    check_memory(argument, array, written)
    return array


def check_vector(argument, array, size, kinds, written=False):
    """A (size,) array, as `check_array` has it."""
    return check_array(argument, array, (size,), kinds, written)
