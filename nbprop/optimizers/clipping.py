"""Gradient clipping, by value and by global norm; from Python and from @njit, like the optimizers (see step.py)."""

import math
from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload
from numpy.typing import NDArray

from nbprop.arrays import without_memmap
from nbprop.compiler.intrinsics import (
    array_at,
    as_frame,
    indirect_call,
    load,
    load_double,
    stack_words,
    store,
    store_double,
)
from nbprop.compiler.jit import FLAGS, njit
from nbprop.compiler.native import CompiledEntry, Native
from nbprop.compiler.registry import find
from nbprop.messages import NO_KERNEL, NOT_POSITIVE
from nbprop.numerics.scalars import like
from nbprop.optimizers import step as steps
from nbprop.optimizers.step import GRADS, LIMIT, NDARRAY, TRAINABLE, check_status, fingerprints
from nbprop.optimizers.update_rules import kernel_signature
from nbprop.program import elements
from nbprop.runtime import arguments as arg
from nbprop.validation import as_number, interval

# The row of a kernel: addresses (0: no mask), elements, then float64 numbers; the kernel of the norm writes NORM.
ROW_GRADS, ROW_TRAINABLE, ROW_N, ROW_LIMIT, ROW_NORM = range(5)
ROW = 5

# The norm has this many running sums, so that the loop vectorises and its bits do not depend on the processor. With
# sixteen, each waits for its own last store: 38 us for 100,000 gradients instead of 12.
_LANES = 256

_DESCRIPTION = arg.DESCRIPTION
_call_kernel = indirect_call(types.int64(types.int64, types.int64, types.int64, types.int64))
_LIMIT, _NORM = steps.SCALARS, steps.SCALARS + 1
_BLOCK = steps.SCALARS + 2


# -- kernels -------------------------------------------------------------------------------------------------


def clip_value_kernel(frame, row, part, parts):
    """g = min(max(g, -limit), limit); NaN stays NaN. ROW_GRADS: address of g, INOUT (ROW_N,)."""
    grads = array_at(frame, load(row, ROW_GRADS), load(row, ROW_N))
    if grads.size > 0:
        limit = like(grads[0], load_double(row, ROW_LIMIT))
        for i in range(grads.size):
            g = grads[i]
            g = limit if g > limit else g
            grads[i] = -limit if g < -limit else g
    return 0


# In a sum of squares above this, underflow has not changed the last digit.
_LEAST = 1e-280


@njit
def _sum_of_squares(grads, trainable, masked, unit):
    """The sum of (unit g)^2 over trainable gradients, in float64, in the order of `clip_norm_kernel`."""
    lanes = array_at(as_frame(0, np.float64), stack_words(_LANES), _LANES)
    for start in range(0, grads.size, _LANES):
        chunk, mask = grads[start : start + _LANES], trainable[start : start + _LANES]
        for i in range(chunk.size):
            g = np.float64(chunk[i]) * unit
            lanes[i] = lanes[i] if masked and mask[i] == 0 else lanes[i] + g * g
    total = 0.0
    for lane in range(_LANES):
        total += lanes[lane]
    return total


@njit
def _unit_of(grads, trainable, masked):
    """A power of two that scales the largest trainable gradient to about 1; 0 if all are 0, or one is not finite."""
    largest = 0.0
    for i in range(grads.size):
        size = 0.0 if masked and trainable[i] == 0 else abs(np.float64(grads[i]))
        if not size < np.inf:
            return 0.0
        largest = size if size > largest else largest
    exponent = math.frexp(largest)[1]
    return math.ldexp(1.0, -min(max(exponent, -1000), 1000)) if largest > 0.0 else 0.0


def clip_norm_kernel(frame, row, part, parts):
    """norm = sqrt(sum g^2) over trainable gradients; g *= limit / (norm + 1e-6), if that is below 1.

    ROW_GRADS: address of g, INOUT (ROW_N,); ROW_TRAINABLE: address of bytes, IN (ROW_N,), or 0; ROW_NORM OUT. The sum
    is in float64: lane l takes the elements l, l + 256, ... in order, then the lanes are added in order. If squares
    overflow or underflow, it is recomputed with the gradients times a power of two.
    """
    n = load(row, ROW_N)
    grads = array_at(frame, load(row, ROW_GRADS), n)
    trainable = array_at(as_frame(0, np.uint8), load(row, ROW_TRAINABLE), n)
    masked = load(row, ROW_TRAINABLE) != 0
    total = _sum_of_squares(grads, trainable, masked, 1.0)
    norm, limit, unit = np.sqrt(total), load_double(row, ROW_LIMIT), 0.0
    if not _LEAST < total < np.inf:
        unit = _unit_of(grads, trainable, masked)
    if unit > 0.0:
        root = np.sqrt(_sum_of_squares(grads, trainable, masked, unit))
        norm = root / unit
        if norm + 1e-6 > limit:
            for i in range(n):
                grads[i] = like(grads[i], np.float64(grads[i]) * unit * (limit / root))
    elif not limit / (norm + 1e-6) >= 1.0 and n > 0:
        factor = like(grads[0], limit / (norm + 1e-6))
        for i in range(n):
            grads[i] *= factor
    store_double(row, ROW_NORM, norm)
    return 0


CLIP_VALUE = Native(clip_value_kernel, kernel_signature)
CLIP_NORM = Native(clip_norm_kernel, kernel_signature)


# -- the entry -----------------------------------------------------------------------------------------------


@njit
def clip_entry(block, float32, float64):
    """Check a call and run a kernel: `float32` and `float64` are the fingerprints of its two versions."""
    words = GRADS * _DESCRIPTION
    code = load(block, words + arg.CODE)
    status = steps.check_real(block, GRADS, code, -1, True)
    n = load(block, words + arg.ELEMENTS)
    if status == 0:
        status = steps.check_mask(block, TRAINABLE, n)
    if status == 0:
        status = arg.check_aliasing(block, GRADS)
    if status == 0 and not load_double(block, _LIMIT) > 0.0:
        status = LIMIT * 64 + NOT_POSITIVE
    if status != 0:
        return status
    row = stack_words(ROW)
    store(row, ROW_GRADS, load(block, words + arg.DATA))
    store(row, ROW_TRAINABLE, load(block, TRAINABLE * _DESCRIPTION + arg.DATA))
    store(row, ROW_N, n)
    store(row, ROW_LIMIT, load(block, _LIMIT))
    kernel = find(float32 if code == elements.FLOAT32 else float64)
    if kernel == 0:
        return GRADS * 64 + NO_KERNEL
    _call_kernel(kernel, (0, row, 0, 1))
    store(block, _NORM, load(row, ROW_NORM))
    return 0


_entry_signature = types.int64(types.int64, types.int64, types.int64)
_ENTRY = CompiledEntry(clip_entry, lambda dtype: _entry_signature)
_ENTRY_FINGERPRINT = np.int64(_ENTRY.fingerprint())
_call_entry = indirect_call(_entry_signature)


# -- the two faces -------------------------------------------------------------------------------------------


@njit
def _call(entry, grads, trainable, limit, float32, float64, ndarray):
    """Describe Python objects (by address, 0: not given) and call the entry; (status, norm)."""
    block = stack_words(_BLOCK)
    status = arg.describe_object(block, GRADS, grads, ndarray)
    if status == 0:
        status = steps.describe_mask(block, TRAINABLE, trainable, ndarray)
    if status != 0:
        return status, 0.0
    store_double(block, _LIMIT, limit)
    return _call_entry(entry, (block, float32, float64))[1], load_double(block, _NORM)


_prepared: dict[tuple, tuple] = {}


def _clip(name, grads, limit, trainable):
    """Run the kernel `name`; returns the norm (0 where the kernel has none)."""
    dtype = getattr(grads, "dtype", None)
    if (name, dtype) not in _prepared:
        _ENTRY.load()
        for numba_type in (types.float32, types.float64):
            if dtype == np.dtype(numba_type.name):
                _KERNELS[name].load(numba_type)
        _prepared[name, dtype] = tuple(int(word) for word in fingerprints(_KERNELS[name]))
    limit = as_number(f"{name}: limit", limit, interval(ends="()"))
    mask = 0 if trainable is None else id(trainable)
    float32, float64 = _prepared[name, dtype]
    status, norm = _call(_ENTRY.address, id(grads), mask, limit, float32, float64, NDARRAY)
    if status != 0:
        found_grads, found_mask = without_memmap(grads), without_memmap(trainable)
        if found_grads is not grads or found_mask is not trainable:
            return _clip(name, found_grads, limit, found_mask)
        raise steps.refusal(name, [None, grads, None, None, trainable, None, None, None, limit], status)
    return norm


_KERNELS = {"clip_value": CLIP_VALUE, "clip_norm": CLIP_NORM}


@overload(_clip, jit_options=FLAGS, strict=False, prefer_literal=True)
def _clip_compiled(name, grads, limit, trainable):
    if not isinstance(name, types.StringLiteral):
        return None
    function = name.literal_value
    steps.check_types(function, grads, [("grads", grads, "written"), ("trainable", trainable, "mask")])
    if not isinstance(limit, (types.Float, types.Integer)):
        raise TypingError(f"nbprop.{function}: limit must be a number, got {limit}")
    _KERNELS[function].load(grads.dtype)
    describe = steps.describer(GRADS, TRAINABLE)
    float32, float64 = fingerprints(_KERNELS[function])

    def run(name, grads, limit, trainable):
        block = stack_words(_BLOCK)
        describe(block, (grads, trainable))
        store_double(block, _LIMIT, float(limit))
        entry = find(_ENTRY_FINGERPRINT)
        check_status(_call_entry(entry, (block, float32, float64))[1] if entry != 0 else NO_KERNEL)
        return load_double(block, _NORM)

    return run


def clip_value(grads: NDArray[Any], limit: float) -> None:
    """Clip every gradient to -limit..limit, in place.

    grads : (n,) float32 or float64 array
    limit : float above 0

    Raises TypeError or ValueError, naming the argument, before anything has been written.

    >>> import nbprop, numpy as np
    >>> grads = np.array([3.0, -0.5])
    >>> nbprop.clip_value(grads, 1.0)
    >>> grads
    array([ 1. , -0.5])
    """
    _clip("clip_value", grads, limit, None)


def clip_norm(grads: NDArray[Any], limit: float, trainable: NDArray[Any] | None = None) -> float:
    """Scale gradients so that their Euclidean norm is at most `limit`, in place; returns the norm before.

    g *= min(1, limit / (norm + 1e-6)), as PyTorch's clip_grad_norm_; the norm is summed in float64 in a fixed order. It
    is not finite when a gradient is not: then the gradients are worthless before and after.

    grads : (n,) float32 or float64 array
    limit : float above 0
    trainable : (n,) bool or uint8, or None
        Which gradients count for the norm; all when None.

    Raises TypeError or ValueError, naming the argument, before anything has been written.

    >>> import nbprop, numpy as np
    >>> grads = np.array([3.0, 4.0])
    >>> nbprop.clip_norm(grads, 1.0)
    5.0
    """
    return _clip("clip_norm", grads, limit, trainable)


@overload(clip_value, jit_options=FLAGS, strict=False)
def _clip_value(*arguments, **named):
    return clip_value


@overload(clip_norm, jit_options=FLAGS, strict=False)
def _clip_norm(*arguments, **named):
    return clip_norm
