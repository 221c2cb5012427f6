"""How an array reaches compiled code: as a few words, from Python and from @njit alike.

From Python an argument is its object's address (`id`), and compiled code reads NumPy's array structure, so that no
rank, read-only flag or integer type ever needs a compilation. From @njit the words come from the typed array.
Either way one set of compiled checks follows, and a failed one is named by a status: argument * 64 + problem.
"""

import sys

import numpy as np

from nbprop.compiler.intrinsics import array_at, as_frame, load, load_double, load_integer, store
from nbprop.compiler.jit import njit
from nbprop.messages import (
    ALIASED,
    CAPACITY,
    CLASS_RANGE,
    DTYPE,
    EMPTY,
    LENGTH,
    LENGTH_RANGE,
    MISALIGNED,
    MISSING,
    NO_LENGTHS,
    NOT_AN_ARRAY,
    ORDER,
    READ_ONLY,
    SAMPLES_DIFFER,
    SHAPE_DIFFERS,
    TARGET_RANGE,
)
from nbprop.numerics.scalars import like
from nbprop.program import table
from nbprop.program.elements import ANY_INTEGER, FLOAT, FLOAT32, element_bytes, element_code, integer_at

# Arguments, in the order of their descriptions in a call's block.
PARAMS, X, TARGET, GRADS, WORK, WEIGHTS, STATE, Y, DY, DX, V, OUT, LENGTHS = range(13)
NAMES = ("params", "x", "target", "grads", "work", "weights", "state", "y", "dy", "dx", "v", "out", "lengths")
ARGUMENTS = len(NAMES)
PLAN, CALL_STEP = ARGUMENTS, ARGUMENTS + 1  # what a status may name beside the arrays

# A description's words. Compiled code indexes the block by word number: an address computed first, block + 8 * offset,
# lets LLVM take the offset for the pointer, and where it is a constant 0 call the access undefined and drop it.
DATA, RANK, SHAPE, CODE, FLAGS, ELEMENTS, END = range(7)  # checks write the last two: elements, address behind them
DESCRIPTION = 7
CONTIGUOUS, WRITABLE, ALIGNED = 1, 2, 4

# A call's block: the descriptions, then scalars.
ACCUMULATE = ARGUMENTS * DESCRIPTION
STEP = ACCUMULATE + 1
MAY_PAUSE = ACCUMULATE + 2  # 1: a long walk returns PAUSED now and then; only a caller that resumes it says so
RESULT = ACCUMULATE + 3  # float64
SAMPLES = ACCUMULATE + 4
RESUME = ACCUMULATE + 5  # where a paused walk goes on: what its status had beyond PAUSED; 0: at the beginning
BLOCK = RESUME + 1

STEPS = 1 << 40  # a step is below this: random streams (numerics/random.py) have no more room for it

# Statuses from here up are walks that a kernel stopped: FAILED + the row's number in the table.
FAILED = 1 << 20
# And from here up walks that have paused: PAUSED + STAGE * the number of the walk, where a function makes several, plus
# the row to go on with.
PAUSED = 1 << 60
STAGE = 1 << 36


# NumPy's array structure: PyObject header, data, nd, dimensions, strides, base, descr, flags; and of a descr:
# PyObject header, typeobj, kind, type, byteorder, flags, type_num. The header differs in free-threaded builds.
_HEADER = object.__basicsize__
_NDARRAY = id(np.ndarray)
_CODE_OF_TYPE_NUMBER = tuple(element_code(np.dtype(c)) for c in "?bBhHiIlLqQfd")
_SWAPPED = ord(">") if sys.byteorder == "little" else ord("<")
_NUMPY_CONTIGUOUS, _NUMPY_ALIGNED, _NUMPY_WRITEABLE = 0x1, 0x100, 0x400


@njit
def describe_object(block, argument, address, ndarray):
    """Describe the Python object at `address` (0: not given); its status. `ndarray` is the address of that type."""
    if address == 0:
        return 0
    words = argument * DESCRIPTION
    if load_integer(address, _HEADER - 8, 8) != ndarray:
        return argument * 64 + NOT_AN_ARRAY
    descr = load_integer(address, _HEADER + 40, 8)
    number = load_integer(descr, _HEADER + 12, -4)
    code = 0
    if 0 <= number < len(_CODE_OF_TYPE_NUMBER) and load_integer(descr, _HEADER + 10, 1) != _SWAPPED:
        code = _CODE_OF_TYPE_NUMBER[number]
    flags = load_integer(address, _HEADER + 48, 4)
    store(block, words + DATA, load_integer(address, _HEADER, 8))
    store(block, words + RANK, load_integer(address, _HEADER + 8, -4))
    shape = load_integer(address, _HEADER + 16, 8)
    # A 0-d array has no shape; its word must differ from that of an argument that was not given.
    store(block, words + SHAPE, shape if shape != 0 else block)
    store(block, words + CODE, code)
    known = CONTIGUOUS if flags & _NUMPY_CONTIGUOUS else 0
    known += WRITABLE if flags & _NUMPY_WRITEABLE else 0
    known += ALIGNED if flags & _NUMPY_ALIGNED else 0
    store(block, words + FLAGS, known)
    return 0


@njit
def check_array(block, argument, code, writable):
    """An argument's dtype, order, alignment and writability; also counts its elements and finds where they end."""
    words = argument * DESCRIPTION
    if load(block, words + DATA) == 0 and load(block, words + SHAPE) == 0:
        return argument * 64 + MISSING
    seen, flags = load(block, words + CODE), load(block, words + FLAGS)
    if code == ANY_INTEGER:
        if seen == 0 or seen > FLOAT:
            return argument * 64 + DTYPE
    elif seen != code:
        return argument * 64 + DTYPE
    if not flags & CONTIGUOUS:
        return argument * 64 + ORDER
    # Numba takes misaligned arrays for aligned ones, so the address itself is looked at too.
    if not flags & ALIGNED or load(block, words + DATA) & (element_bytes(seen) - 1) != 0:
        return argument * 64 + MISALIGNED
    if writable and not flags & WRITABLE:
        return argument * 64 + READ_ONLY
    elements, shape = 1, load(block, words + SHAPE)
    for axis in range(load(block, words + RANK)):
        elements *= load(shape, axis)
    store(block, words + ELEMENTS, elements)
    store(block, words + END, load(block, words + DATA) + elements * element_bytes(seen))
    return 0


@njit
def check_flat(plan, block, argument, length, at_least, writable):
    """A 1-D array of the plan's dtype and exactly (or at least) `length` elements."""
    status = check_array(block, argument, load(plan, table.DTYPE), writable)
    if status != 0:
        return status
    words = argument * DESCRIPTION
    elements = load(block, words + ELEMENTS)
    if load(block, words + RANK) != 1 or elements < length or (elements > length and not at_least):
        return argument * 64 + LENGTH
    return 0


@njit
def check_samples(plan, block, argument, code, shape, writable):
    """An array (n, *shape) with the n of the call (set by the first such argument) within the capacity."""
    status = check_array(block, argument, code, writable)
    if status != 0:
        return status
    words = argument * DESCRIPTION
    extents, rank = load(block, words + SHAPE), load(plan, shape)
    if load(block, words + RANK) != rank + 1:
        return argument * 64 + SHAPE_DIFFERS
    for axis in range(rank):
        if load(extents, axis + 1) != load(plan, shape + 1 + axis):
            return argument * 64 + SHAPE_DIFFERS
    n = load(extents, 0)
    if n == 0:
        return argument * 64 + EMPTY
    if n > load(plan, table.BATCH):
        return argument * 64 + CAPACITY
    if load(block, SAMPLES) == 0:
        store(block, SAMPLES, n)
    elif load(block, SAMPLES) != n:
        return argument * 64 + SAMPLES_DIFFER
    return 0


@njit
def check_classes(block, argument, classes, ignored):
    """Every element of an integer argument lies in [0, classes), or is the ignored number."""
    words = argument * DESCRIPTION
    address, code = load(block, words + DATA), load(block, words + CODE)
    for index in range(load(block, words + ELEMENTS)):
        value = integer_at(address, code, index)
        if (value < 0 or value >= classes) and value != ignored:
            return argument * 64 + CLASS_RANGE
    return 0


@njit
def _outside(values, low, high):
    """Whether one of the values lies outside low..high; NaN does not, it comes out in the loss. Vectorises."""
    least, most, wrong = like(values[0], low), like(values[0], high), 0
    for i in range(values.size):
        wrong += (values[i] < least) | (values[i] > most)
    return wrong > 0


@njit
def check_target_range(plan, block):
    """Every element of a real target lies where its loss takes targets; not those beyond the lengths of samples."""
    low, high = load_double(plan, table.TARGET_LEAST), load_double(plan, table.TARGET_MOST)
    if low == -np.inf and high == np.inf:
        return 0
    words, lengths = TARGET * DESCRIPTION, LENGTHS * DESCRIPTION
    address, code, size = load(block, words + DATA), load(block, words + CODE), load(block, words + ELEMENTS)
    # In one piece, or sample by sample where lengths say how many of its positions count.
    positions, rows = load(plan, table.LOSS_POSITIONS), 1
    cut = positions > 1 and load(block, lengths + SHAPE) != 0
    if cut:
        rows = load(block, SAMPLES)
    each = size // rows
    for i in range(rows):
        count, start = each, address + i * each * element_bytes(code)
        if cut:
            count = each // positions * integer_at(load(block, lengths + DATA), load(block, lengths + CODE), i)
        if code == FLOAT32:
            wrong = _outside(array_at(as_frame(0, np.float32), start, count), low, high)
        else:
            wrong = _outside(array_at(as_frame(0, np.float64), start, count), low, high)
        if wrong:
            return TARGET * 64 + TARGET_RANGE
    return 0


@njit
def check_lengths(plan, block):
    """lengths: (n,) integers in 1..T, for a network with a layer that takes them."""
    max_length = load(plan, table.LENGTHS)
    if max_length == 0:
        return LENGTHS * 64 + NO_LENGTHS
    status = check_array(block, LENGTHS, ANY_INTEGER, False)
    if status != 0:
        return status
    words = LENGTHS * DESCRIPTION
    if load(block, words + RANK) != 1 or load(block, words + ELEMENTS) != load(block, SAMPLES):
        return LENGTHS * 64 + SAMPLES_DIFFER
    address, code = load(block, words + DATA), load(block, words + CODE)
    for sample in range(load(block, SAMPLES)):
        length = integer_at(address, code, sample)
        if length < 1 or length > max_length:
            return LENGTHS * 64 + LENGTH_RANGE
    return 0


@njit
def check_aliasing(block, argument):
    """An argument that is written shares no byte with any other; one that was not given begins and ends at 0."""
    start, stop = load(block, argument * DESCRIPTION + DATA), load(block, argument * DESCRIPTION + END)
    for other in range(ARGUMENTS):
        low, high = load(block, other * DESCRIPTION + DATA), load(block, other * DESCRIPTION + END)
        if other != argument and low < stop and start < high:
            return argument * 64 + ALIASED
    return 0
