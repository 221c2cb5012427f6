"""What all optimizers share: checks, the call of a rule's kernel, and errors; from Python and from @njit.

Both describe their arguments in a block (see arguments.py) and call the same compiled entry; the kernel of a rule is
compiled once per dtype, and called by fingerprint.
"""

from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

from nbprop import backends
from nbprop import messages as said
from nbprop.arrays import not_numpy, without_memmap
from nbprop.compiler.argument_types import check_array_type, check_integer_type, is_absent
from nbprop.compiler.fingerprint import python_function
from nbprop.compiler.intrinsics import (
    indirect_call,
    load,
    load_double,
    load_integer,
    stack_words,
    store,
    store_double,
    symbol_address,
)
from nbprop.compiler.jit import FLAGS, njit
from nbprop.compiler.native import CompiledEntry
from nbprop.compiler.python_call import OBJECT, PythonCall, float_of, item, object_address, type_of
from nbprop.compiler.registry import find
from nbprop.messages import HYPERPARAMETER, MASK_DTYPE, NEGATIVE, NO_KERNEL, NOT_POSITIVE, REAL_DTYPE, failure
from nbprop.optimizers import proximal
from nbprop.optimizers import update_rules as rules
from nbprop.optimizers.update_rules import RULES
from nbprop.program import elements, table
from nbprop.program.binding import describe_arguments
from nbprop.runtime import arguments as arg
from nbprop.runtime import workers
from nbprop.runtime.raising import raiser
from nbprop.runtime.walker import walk
from nbprop.validation import as_integer, as_number, interval, shown

# Arguments, in the order of their descriptions in a call's block; then scalars. A status is argument * 64 + problem,
# where the argument is the place of its name in NAMES.
PARAMS, GRADS, STATE, DECAY_MASK, TRAINABLE, PENALIZED = range(6)
STEP, THREADS, LIMIT, L1 = range(6, 10)
_HYPERPARAMETERS = tuple(dict.fromkeys(name for rule in RULES.values() for name in rule.hyperparameters))
_ARRAYS = ("params", "grads", "state", "decay_mask", "trainable", "penalized")
NAMES = (*_ARRAYS, "step", "threads", "limit", "l1", *_HYPERPARAMETERS)
# What a hyperparameter must be, by its kind.
WANTED = ("", interval(), interval(0, 1), interval(ends="()"), interval(1), "True or False")
NEEDS_L1 = "needs l1, the penalty whose parameters it names"
SCALARS = arg.ARGUMENTS * arg.DESCRIPTION
STEP_WORD, THREADS_WORD = SCALARS, SCALARS + 1
_L1 = SCALARS + 2
HYPER_WORDS = SCALARS + 3
BLOCK = HYPER_WORDS + rules.MOST_HYPERPARAMETERS
_DESCRIPTION, _ROW = arg.DESCRIPTION, table.OPERANDS + proximal.ROW

_entry_signature = types.int64(types.int64, types.int64, types.int64, types.int64, types.int64)
_call_entry = indirect_call(_entry_signature)
NDARRAY = id(np.ndarray)


# -- compiled checks and the entry ---------------------------------------------------------------------------


@njit
def check_real(block, argument, code, length, writable):
    """A 1-D float array of `length` elements (-1: any)."""
    if code != elements.FLOAT32 and code != elements.FLOAT64:
        return argument * 64 + REAL_DTYPE
    status = arg.check_array(block, argument, code, writable)
    if status != 0:
        return status
    words = argument * _DESCRIPTION
    if load(block, words + arg.RANK) != 1 or (length >= 0 and load(block, words + arg.ELEMENTS) != length):
        return argument * 64 + said.LENGTH
    return 0


@njit
def check_mask(block, argument, length):
    """A mask that was not given, or a 1-D array of bytes."""
    words = argument * _DESCRIPTION
    if load(block, words + arg.DATA) == 0 and load(block, words + arg.SHAPE) == 0:
        return 0
    if load(block, words + arg.CODE) != 1:
        return argument * 64 + MASK_DTYPE
    status = arg.check_array(block, argument, 1, False)
    if status == 0 and (load(block, words + arg.RANK) != 1 or load(block, words + arg.ELEMENTS) != length):
        status = argument * 64 + said.LENGTH
    return status


@njit
def describe_mask(block, argument, address, ndarray):
    """`describe_object` for a mask: bool counts as uint8."""
    status = arg.describe_object(block, argument, address, ndarray)
    if status == 0 and address != 0:
        descr = load_integer(address, arg._HEADER + 40, 8)
        if load_integer(descr, arg._HEADER + 12, -4) == 0:
            store(block, argument * _DESCRIPTION + arg.CODE, 1)
    return status


@njit
def _check_vectors(block, slots):
    """All arrays of a step. A loop: unrolled, Numba would compile the checks again for each."""
    code = load(block, arg.CODE)
    status, n = 0, -1
    for argument in range(6):
        if status == 0 and argument < DECAY_MASK:
            length = slots * n if argument == STATE else n
            status = check_real(block, argument, code, length, argument != GRADS)
            n = load(block, arg.ELEMENTS)
        elif status == 0:
            status = check_mask(block, argument, n)
    for argument in range(3):
        if status == 0 and argument != GRADS:
            status = arg.check_aliasing(block, argument)
    return status


@njit
def _fits(kind, value):
    """Whether a hyperparameter is in the range of its kind; false for NaN."""
    if kind == rules.FRACTION:
        return 0.0 <= value < 1.0
    if kind == rules.POSITIVE:
        return 0.0 < value < np.inf
    if kind == rules.AT_LEAST_ONE:
        return 1.0 <= value < np.inf
    if kind == rules.SWITCH:
        return value == 0.0 or value == 1.0
    return 0.0 <= value < np.inf


@njit
def _check_scalars(block, hyperparameters):
    """`hyperparameters` packs ten bits for each: four of its kind, six of its name."""
    for k in range(rules.MOST_HYPERPARAMETERS):
        packed = (hyperparameters >> 10 * k) & 1023
        if packed != 0 and not _fits(packed & 15, load_double(block, HYPER_WORDS + k)):
            return (packed >> 4) * 64 + HYPERPARAMETER + (packed & 15)
    if not _fits(rules.NOT_NEGATIVE, load_double(block, _L1)):
        return L1 * 64 + HYPERPARAMETER + rules.NOT_NEGATIVE
    if load(block, STEP_WORD) < 0:
        return STEP * 64 + NEGATIVE
    return THREADS * 64 + NOT_POSITIVE if load(block, THREADS_WORD) < 1 else 0


@njit
def check_step(block, float32, float64, slots, hyperparameters):
    """Whether a rule can run on what a block describes; a status. `float32` and `float64` are the fingerprints of its
    two kernels."""
    status = _check_vectors(block, slots)
    if status == 0:
        status = _check_scalars(block, hyperparameters)
    if status == 0 and find(_kernel(block, float32, float64)) == 0:
        status = PARAMS * 64 + NO_KERNEL
    return status


@njit
def _kernel(block, float32, float64):
    """The fingerprint of the kernel for the parameters' dtype."""
    return float32 if load(block, arg.CODE) == elements.FLOAT32 else float64


@njit
def run_step(block, float32, float64):
    """Run a rule's kernel on the arrays of a checked block."""
    # A table of one row, so that the pool can walk it.
    row = stack_words(_ROW)
    store(row, table.KERNEL, _kernel(block, float32, float64))
    store(row, table.LENGTH, _ROW)
    for k in range(5):
        store(row, table.OPERANDS + k, load(block, k * _DESCRIPTION + arg.DATA))
    store(row, table.OPERANDS + rules.N, load(block, arg.ELEMENTS))
    store(row, table.OPERANDS + rules.STEP, load(block, STEP_WORD))
    for k in range(rules.MOST_HYPERPARAMETERS):
        store(row, table.OPERANDS + rules.HYPERPARAMETERS + k, load(block, HYPER_WORDS + k))
    store(row, table.OPERANDS + proximal.L1, load(block, _L1))
    store(row, table.OPERANDS + proximal.PENALIZED, load(block, PENALIZED * _DESCRIPTION + arg.DATA))
    walk(0, row, row + 8 * _ROW, symbol_address("nbprop_pool"), load(block, THREADS_WORD), 0)


@njit
def step_entry(block, float32, float64, slots, hyperparameters):
    """Check a call and run a rule's kernel; with l1 it is the kernel that ends in a proximal step."""
    status = check_step(block, float32, float64, slots, hyperparameters)
    if status == 0:
        run_step(block, float32, float64)
    return status


_ENTRY = CompiledEntry(step_entry, lambda dtype: _entry_signature)


def fingerprints(native):
    """The fingerprints of a native's two versions."""
    return np.int64(native.fingerprint(types.float32)), np.int64(native.fingerprint(types.float64))


def _pack(rule):
    """The hyperparameters of a rule, as `_check_scalars` reads them."""
    packed = [(NAMES.index(name) << 4) + kind for name, kind in rule.hyperparameters.items()]
    return sum(word << 10 * index for index, word in enumerate(packed))


def _kernel_of(name, with_l1):
    """The kernel of a rule, or the one that ends in a proximal step of l1."""
    return proximal.PROXIMAL[name] if with_l1 else RULES[name].kernel


def prepare(name, with_l1=False):
    """(fingerprint for float32, for float64, slots, packed hyperparameters) of a rule."""
    rule = RULES[name]
    return *fingerprints(_kernel_of(name, with_l1)), rule.slots, _pack(rule)


# -- from Python ---------------------------------------------------------------------------------------------

# What `_call` returns for a hyperparameter that is no Python float: a call with floats follows.
_NOT_FLOATS = -1
# The words of a `_Prepared`.
_ENTRY_WORD, _RULE, _NDARRAY_WORD, _NONE_WORD, _FLOAT_WORD = 0, 1, 5, 6, 7


@njit
def describe_vectors(block, words, objects):
    """Describe the arrays of a step, the items of a tuple (its address); a status."""
    ndarray, none = load(words, _NDARRAY_WORD), load(words, _NONE_WORD)
    for argument in range(6):
        found = item(objects, argument)
        if argument < DECAY_MASK:
            status = arg.describe_object(block, argument, found if found != none else 0, ndarray)
        else:
            status = describe_mask(block, argument, found if found != none else 0, ndarray)
        if status != 0:
            return status
    return 0


@njit
def _call(words, objects, hyper, step, wanted):
    """Describe the Python objects of a tuple and call the entry. `words` are those of a `_Prepared`, `hyper` is a tuple
    of six floats and l1."""
    block = stack_words(BLOCK)
    status, values = describe_vectors(block, words, object_address(objects)), object_address(hyper)
    if status != 0:
        return status
    store(block, STEP_WORD, step)
    store(block, THREADS_WORD, wanted)
    for k in range(rules.MOST_HYPERPARAMETERS + 1):
        value = item(values, k)
        if type_of(value) != load(words, _FLOAT_WORD):
            return _NOT_FLOATS
        store_double(block, HYPER_WORDS + k if k < rules.MOST_HYPERPARAMETERS else _L1, float_of(value))
    rule = (load(words, _RULE), load(words, _RULE + 1), load(words, _RULE + 2), load(words, _RULE + 3))
    return _call_entry(load(words, _ENTRY_WORD), (block, *rule))[1]


_CALL = PythonCall(_call, types.int64, OBJECT, OBJECT, types.int64, types.int64)


class _Prepared:
    """What the steps of one optimizer share: what Python calls, and the address of the words that go with it."""

    __slots__ = ("_kept", "call", "words")

    def __init__(self, name, with_l1=False):
        self._kept = np.array([_ENTRY.load(), *prepare(name, with_l1), NDARRAY, id(None), id(float)], np.int64)
        self.call, self.words = _CALL.load(), self._kept.ctypes.data


_prepared: dict[Any, _Prepared] = {}


def take_step(
    name,
    params,
    grads,
    state,
    step,
    decay_mask,
    trainable,
    threads,
    h0,
    h1,
    h2=0.0,
    h3=0.0,
    h4=0.0,
    h5=0.0,
    l1=None,
    penalized=None,
):
    """One step of the optimizer `name`; h0 ... are its hyperparameters in the order of its rule."""
    if l1 is not None or penalized is not None:
        arrays = params, grads, state, decay_mask, trainable, penalized
        return _take_step_with_l1(name, arrays, step, threads, l1, (h0, h1, h2, h3, h4, h5))
    prepared = _prepared.get(name)
    if prepared is None:
        if _on_device(params):
            return _device_step(name, params, grads, state, step, decay_mask, trainable, (h0, h1, h2, h3, h4, h5))
        prepared = _prepared[name] = _Prepared(name)
    if h3 is False and name == "momentum":
        h3 = 0.0  # the usual value of the switch: keeps the fast path
    if not type(step) is type(threads) is int:
        step, threads = _as_word(name, "step", step), _as_word(name, "threads", threads)
    if threads > 1:
        workers.ensure(threads)
    vectors, hyper = (params, grads, state, decay_mask, trainable, None), (h0, h1, h2, h3, h4, h5, 0.0)
    try:
        status = prepared.call(prepared.words, vectors, hyper, step, threads)
    except OverflowError:  # an integer that exceeds a word
        for label, value in (("step", step), ("threads", threads)):
            _as_word(name, label, value)
        raise
    if status == _NOT_FLOATS:
        h0, h1, h2, h3, h4, h5 = _as_floats(name, hyper[:-1])
        return take_step(name, params, grads, state, step, decay_mask, trainable, threads, h0, h1, h2, h3, h4, h5)
    if status != 0:
        if _on_device(params):
            return _device_step(name, params, grads, state, step, decay_mask, trainable, hyper[:-1])
        values = [without_memmap(value) for value in vectors]
        if any(new is not old for new, old in zip(values, vectors, strict=True)):
            params, grads, state, decay_mask, trainable, _ = values
            return take_step(name, params, grads, state, step, decay_mask, trainable, threads, *hyper[:-1])
        raise refusal(name, [*values, step, threads, None, None, *hyper[:-1]], status)
    return None


def _take_step_with_l1(name, vectors, step, threads, l1, hyper):
    """As `take_step`, ending in a proximal step; `vectors` end in the mask of penalized parameters."""
    if l1 is None:
        raise ValueError(f"{name}: penalized {NEEDS_L1}")
    vectors = tuple(without_memmap(value) for value in vectors)
    l1, hyper = as_number(f"{name}: l1", l1, WANTED[rules.NOT_NEGATIVE]), _as_floats(name, hyper)
    step, threads = _as_word(name, "step", step), _as_word(name, "threads", threads)
    if _on_device(vectors[PARAMS]):
        params, grads, state, *masks, penalized = vectors
        return _device_step(name, params, grads, state, step, *masks, hyper, l1, penalized)
    key = name, True
    if key not in _prepared:
        _prepared[key] = _Prepared(*key)
    if threads > 1:
        workers.ensure(threads)
    prepared = _prepared[key]
    status = prepared.call(prepared.words, vectors, (*hyper, l1), step, threads)
    if status != 0:
        raise refusal(name, [*vectors, step, threads, None, l1, *hyper], status)
    return None


def _on_device(params):
    return type(params) is not np.ndarray and hasattr(params, "__cuda_array_interface__")


def _device_step(*arguments):
    return backends.get("cuda").take_step(*arguments)


def _as_floats(name, hyper):
    given = [*RULES[name].hyperparameters.items()]
    kinds = [*given, *[("", rules.NOT_NEGATIVE)] * (len(hyper) - len(given))]
    return [hyperparameter_as_float(name, *kind, value) for kind, value in zip(kinds, hyper, strict=True)]


def hyperparameter_as_float(function, name, kind, value):
    """A hyperparameter as a float; a switch may be a bool. Its range is not looked at."""
    if kind == rules.SWITCH and isinstance(value, (bool, np.bool_)):
        return float(value)
    return as_number(f"{function}: {name}", value, WANTED[kind])


def check_hyperparameter(function, name, kind, value):
    """A hyperparameter as a float, if it is of its kind."""
    found = hyperparameter_as_float(function, name, kind, value)
    if not python_function(_fits)(kind, found):
        raise ValueError(f"{function}: {name} must be {WANTED[kind]}, got {shown(value)}")
    return found


def _as_word(function, name, value):
    """An integer that fits a word; its range is looked at in compiled code."""
    found = as_integer(f"{function}: {name}", value)
    if abs(found) >= 2**62:
        raise TypeError(f"{function}: {name} must be an integer of 64 bits, got {shown(value)}")
    return found


def refusal(function, values, status, rule=None, names=NAMES):
    """The exception for a status other than 0. `values` are the call's, in the order of NAMES; hyperparameters last.

    rule: the optimizer, where the function has another name; names: how the function calls its arguments.
    """
    argument, problem = divmod(status, 64)
    if problem == said.NO_KERNEL:
        return failure(problem, f"{function}:")
    name, rule = names[argument], rule or function
    if problem > HYPERPARAMETER:
        if argument == L1:
            value = values[L1]
        else:
            value = values[len(values) - rules.MOST_HYPERPARAMETERS + list(RULES[rule].hyperparameters).index(name)]
        return ValueError(f"{function}: {name} must be {WANTED[problem - HYPERPARAMETER]}, got {shown(value)}")
    value = values[argument]
    got = f"{value.dtype} array of shape {value.shape}" if isinstance(value, np.ndarray) else shown(value)
    words = {"got": got, "detail": "another argument", "remedy": "", "shape": "(n,)", "kind": "float32 or float64"}
    if problem == said.NOT_AN_ARRAY:
        words["detail"] = not_numpy(value)
    elif problem == said.LENGTH:
        words["shape"], words["remedy"] = _shape(rule, argument, values)
    elif problem == said.DTYPE:
        words["kind"] = f"{values[PARAMS].dtype} as params does"
    elif problem == said.MASK_DTYPE:
        words["kind"] = "bool or uint8"
    return failure(problem, f"{function}: {name}", **words)


def _shape(rule, argument, values):
    """(the shape that is wanted, what makes such an array)."""
    if argument == STATE:
        n = values[PARAMS].size
        return f"({RULES[rule].slots * n},)", f"; nbprop.optimizer_state({rule!r}, {n}, dtype) makes one"
    first = GRADS if values[PARAMS] is None else PARAMS
    return ("(n,)" if argument == first else f"({values[first].size},) as {NAMES[first]} has"), ""


# -- from @njit ----------------------------------------------------------------------------------------------

check_status = raiser(NAMES, WANTED)
_ENTRY_FINGERPRINT = np.int64(_ENTRY.fingerprint())


def check_types(function, real, given):
    """Typing errors that name the argument. `given`: (name, Numba type, "read", "written" or "mask")."""
    dtypes: tuple[Any, ...]
    for name, found, role in given:
        argument = f"nbprop.{function}: {name}"
        if role == "mask":
            dtypes, wanted = (types.boolean, types.uint8), "bool or uint8"
        elif found is real:
            dtypes, wanted = (types.float32, types.float64), "float32 or float64"
        else:
            dtypes, wanted = (real.dtype,), f"{real.dtype} as params does"
        check_array_type(argument, found, dtypes, wanted, rank=1, written=role == "written", optional=role == "mask")


def describer(*places):
    """The intrinsic that describes the arrays of a tuple at these places of a block; a mask's element is one byte."""

    def code_of(dtype):
        return 1 if dtype == types.boolean else elements.element_code_of_type(dtype)

    return describe_arguments(places, arg.DESCRIPTION, code_of)


def _or_zero(l1):
    """The number, or 0 for None."""
    raise TypeError("runs in compiled code only")


@overload(_or_zero, jit_options=FLAGS)
def _or_zero_compiled(l1):
    return (lambda l1: 0.0) if is_absent(l1) else (lambda l1: l1 * 1.0)


@overload(take_step, jit_options=FLAGS, strict=False, prefer_literal=True)
def _take_step(
    name,
    params,
    grads,
    state,
    step,
    decay_mask,
    trainable,
    threads,
    h0,
    h1,
    h2=0.0,
    h3=0.0,
    h4=0.0,
    h5=0.0,
    l1=None,
    penalized=None,
):
    if not isinstance(name, types.StringLiteral):
        return None
    function = name.literal_value
    given = [("params", params, "written"), ("grads", grads, "read"), ("state", state, "written")]
    given += [("decay_mask", decay_mask, "mask"), ("trainable", trainable, "mask"), ("penalized", penalized, "mask")]
    check_types(function, params, given)
    for label, number in (("step", step), ("threads", threads)):
        check_integer_type(f"nbprop.{function}: {label}", number)
    describe = describer(PARAMS, GRADS, STATE, DECAY_MASK, TRAINABLE, PENALIZED)
    with_l1 = not is_absent(l1)
    if with_l1 and not isinstance(l1, (types.Float, types.Integer)):
        raise TypingError(f"nbprop.{function}: l1 must be a number, got {l1}")
    if not with_l1 and not is_absent(penalized):
        raise TypingError(f"nbprop.{function}: penalized {NEEDS_L1}")
    _kernel_of(function, with_l1).load(params.dtype)
    float32, float64, slots, hyperparameters = prepare(function, with_l1)

    def run(
        name,
        params,
        grads,
        state,
        step,
        decay_mask,
        trainable,
        threads,
        h0,
        h1,
        h2=0.0,
        h3=0.0,
        h4=0.0,
        h5=0.0,
        l1=None,
        penalized=None,
    ):
        block = stack_words(BLOCK)
        describe(block, (params, grads, state, decay_mask, trainable, penalized))
        store_double(block, _L1, _or_zero(l1))
        store(block, STEP_WORD, step)
        store(block, THREADS_WORD, threads)
        # Times 1.0: Numba does not convert a bool to a float.
        store_double(block, HYPER_WORDS, h0 * 1.0)
        store_double(block, HYPER_WORDS + 1, h1 * 1.0)
        store_double(block, HYPER_WORDS + 2, h2 * 1.0)
        store_double(block, HYPER_WORDS + 3, h3 * 1.0)
        store_double(block, HYPER_WORDS + 4, h4 * 1.0)
        store_double(block, HYPER_WORDS + 5, h5 * 1.0)
        entry = find(_ENTRY_FINGERPRINT)
        known = entry != 0
        check_status(_call_entry(entry, (block, float32, float64, slots, hyperparameters))[1] if known else NO_KERNEL)

    return run
