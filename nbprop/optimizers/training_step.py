"""`train_step`: a gradient and an optimizer's step in one call, from Python and from @njit.

The entry makes both calls' checks before it writes anything, walks the plan as `value_and_grad` does, and runs the
rule's kernel, so that the bits are those of the two calls. Its arguments are described in two blocks, one of the
gradient (runtime/arguments.py) and one of the step (step.py).
"""

import functools
import inspect
from dataclasses import replace
from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload
from numpy.typing import NDArray

from nbprop.arrays import without_memmap
from nbprop.autodiff import faces
from nbprop.autodiff.gradients import value_and_grad
from nbprop.compiler.argument_types import check_array_type, is_absent
from nbprop.compiler.intrinsics import indirect_call, load, load_double, stack_words, store, store_double
from nbprop.compiler.jit import FLAGS, njit
from nbprop.compiler.native import CompiledEntry
from nbprop.compiler.python_call import OBJECT, PythonCall, float_of, item, object_address, type_of
from nbprop.compiler.registry import find
from nbprop.lowering.plan import Plan, plan_address
from nbprop.messages import ALIASED, NO_KERNEL
from nbprop.optimizers import step as steps
from nbprop.optimizers import update_rules as rules
from nbprop.optimizers.api import OPTIMIZERS
from nbprop.optimizers.update_rules import RULES
from nbprop.program import elements, table
from nbprop.program.binding import describe_arguments
from nbprop.runtime import arguments as arg
from nbprop.runtime.entries import check_of
from nbprop.runtime.errors import refusal
from nbprop.runtime.raising import raiser
from nbprop.runtime.signatures import SIGNATURES
from nbprop.runtime.walker import run_program
from nbprop.runtime.workers import know_clock
from nbprop.validation import choose

# The gradient's part: arguments, checks and program are those of value_and_grad.
_SIGNATURE = replace(SIGNATURES["value_and_grad"], name="train_step")
_PLACES, _WRITTEN = _SIGNATURE.arrays, _SIGNATURE.written
_check_gradient = check_of(_SIGNATURE)
_PROGRAM = _SIGNATURE.program
_BLOCK, _STEP_BLOCK, _DESCRIPTION, _STEPS = arg.BLOCK, steps.BLOCK, arg.DESCRIPTION, arg.STEPS
_VECTORS = steps.STATE, steps.DECAY_MASK, steps.TRAINABLE

# A status names the gradient's arguments, then from _OWN on those of the step.
_STEP_NAMES = tuple("optimizer_state" if name == "state" else name for name in steps.NAMES)
_NAMES = (*arg.NAMES, "plan", "step", *_STEP_NAMES)
_OWN = len(arg.NAMES) + 2

# The hyperparameters of all rules, in the order of this function's parameters.
_FIRST = steps.NAMES.index("lr")
HYPERPARAMETERS = steps.NAMES[_FIRST:]


# -- the entry -----------------------------------------------------------------------------------------------


@njit
def _overlap(block, argument, own, vector):
    """Whether an argument of the gradient shares memory with one of the step."""
    words, others = argument * _DESCRIPTION, vector * _DESCRIPTION
    before = load(block, words + arg.DATA) < load(own, others + arg.END)
    return before and load(own, others + arg.DATA) < load(block, words + arg.END)


@njit
def _check_apart(block, own):
    """What the step writes shares no memory with what the gradient takes, and its masks none with what is written."""
    for argument in _PLACES:
        if argument != arg.PARAMS and _overlap(block, argument, own, steps.PARAMS):
            return (_OWN + steps.PARAMS) * 64 + ALIASED
        if _overlap(block, argument, own, steps.STATE):
            return (_OWN + steps.STATE) * 64 + ALIASED
    for argument in _WRITTEN:
        for mask in (steps.DECAY_MASK, steps.TRAINABLE):
            if _overlap(block, argument, own, mask):
                return (_OWN + mask) * 64 + ALIASED
    return 0


@njit
def train_entry(plan, block, own, float32, float64, slots, hyperparameters):
    """Check everything, walk the gradient, then run the rule's kernel; a status."""
    status = _check_gradient(plan, block)
    if status != 0:
        return status
    for argument in (arg.PARAMS, arg.GRADS):
        vector = steps.PARAMS if argument == arg.PARAMS else steps.GRADS
        for k in range(_DESCRIPTION):
            store(own, vector * _DESCRIPTION + k, load(block, argument * _DESCRIPTION + k))
    store(own, steps.STEP_WORD, load(block, arg.STEP))
    store(own, steps.THREADS_WORD, load(plan, table.THREADS))
    status = steps.check_step(own, float32, float64, slots, hyperparameters)
    if status != 0:
        return status + _OWN * 64
    status = _check_apart(block, own)
    if status == 0:
        status = run_program(plan, block, _PROGRAM)
    if status == 0:
        steps.run_step(own, float32, float64)
    return status


_entry_signature = types.int64(*(types.int64,) * 7)
_ENTRY = CompiledEntry(train_entry, lambda dtype: _entry_signature)
_ENTRY_FINGERPRINT = np.int64(_ENTRY.fingerprint())
_call_entry = indirect_call(_entry_signature)


# -- from Python ---------------------------------------------------------------------------------------------

_NOT_FLOATS, _UNKNOWN = -1, -2  # what a call returns for a hyperparameter that is no float, or not the rule's
# Behind the words of `faces.words_of`: the rule, the address of `float`, then for each of the rule's hyperparameters
# its place in the call's tuple (-1: none) and its default.
_RULE = 4 + len(_PLACES)
_FLOAT = _RULE + 4
_DEFAULTS = _FLOAT + 1
_MOST, _ALL = rules.MOST_HYPERPARAMETERS, len(HYPERPARAMETERS)


@njit
def _fill_hyperparameters(own, words, values):
    """The hyperparameters of a rule, from a tuple with all that there are, None where not given; a status."""
    none, given = load(words, 2), 0
    for k in range(_ALL):
        given += item(values, k) != none
    for k in range(_MOST):
        place = load(words, _DEFAULTS + 2 * k)
        value = item(values, place) if place >= 0 else none
        if value == none:
            store_double(own, steps.HYPER_WORDS + k, load_double(words, _DEFAULTS + 2 * k + 1))
            continue
        if type_of(value) != load(words, _FLOAT):
            return _NOT_FLOATS
        store_double(own, steps.HYPER_WORDS + k, float_of(value))
        given -= 1
    return 0 if given == 0 else _UNKNOWN


@njit
def _enter(words, plan, objects, vectors, hyper, step, at, result):
    """Describe Python objects and call the entry; (status, loss). `at` and `result` are as in faces.py."""
    block, own = stack_words(_BLOCK), stack_words(_STEP_BLOCK)
    status = faces.describe_items(block, words, object_address(objects))
    if status != 0:
        return status, 0.0
    ndarray, none = load(words, 1), load(words, 2)
    for k in range(len(_VECTORS)):
        found = item(object_address(vectors), k)
        if found != none:
            if k == 0:
                status = arg.describe_object(own, _VECTORS[k], found, ndarray)
            else:
                status = steps.describe_mask(own, _VECTORS[k], found, ndarray)
            if status != 0:
                return status + _OWN * 64, 0.0
    status = _fill_hyperparameters(own, words, object_address(hyper))
    if status != 0:
        return status, 0.0
    faces.fill_scalars(block, 0, step, at, result)
    rule = (load(words, _RULE), load(words, _RULE + 1), load(words, _RULE + 2), load(words, _RULE + 3))
    failed, status = _call_entry(load(words, 0), (plan, block, own, *rule))
    return status if failed == 0 else failed, load_double(block, arg.RESULT)


@njit
def _call(words, plan, objects, vectors, hyper, step):
    """`_enter` for a walk from its beginning."""
    return _enter(words, plan, objects, vectors, hyper, step, 0, 0.0)


_CALL_TYPES = (types.int64, types.int64, OBJECT, OBJECT, OBJECT, types.int64)
_CALL = PythonCall(_call, *_CALL_TYPES)
_RESUME = PythonCall(_enter, *_CALL_TYPES, types.int64, types.float64)


def _default(optimizer, name):
    return float(inspect.signature(OPTIMIZERS[optimizer]).parameters[name].default)


class _Prepared:
    """What the calls with one optimizer share: what Python calls, and the address of the words that go with it."""

    __slots__ = ("_kept", "call", "words")

    def __init__(self, optimizer):
        places = np.full((_MOST, 2), -1, np.int64)
        for k, name in enumerate(RULES[optimizer].hyperparameters):
            places[k] = HYPERPARAMETERS.index(name), np.float64(_default(optimizer, name)).view(np.int64)
        places[len(RULES[optimizer].hyperparameters) :, 1] = 0
        words = faces.words_of(_ENTRY, _PLACES)
        self._kept = np.array([*words, *steps.prepare(optimizer), id(float), *places.ravel()], np.int64)
        self.call, self.words = _CALL.load(), self._kept.ctypes.data


_prepared: dict[str, _Prepared] = {}


def train_step(
    plan: Plan,
    params: NDArray[Any],
    x: NDArray[Any],
    target: NDArray[Any],
    grads: NDArray[Any],
    optimizer_state: NDArray[Any],
    work: NDArray[Any],
    step: int,
    optimizer: str = "adam",
    lr: float | None = None,
    weight_decay: float | None = None,
    momentum: float | None = None,
    rumelhart: bool | None = None,
    decay: float | None = None,
    eps: float | None = None,
    beta1: float | None = None,
    beta2: float | None = None,
    shrink: float | None = None,
    grow: float | None = None,
    smallest: float | None = None,
    largest: float | None = None,
    momentum_decay: float | None = None,
    warm_up: float | None = None,
    weights: NDArray[Any] | None = None,
    state: NDArray[Any] | None = None,
    lengths: NDArray[Any] | None = None,
    decay_mask: NDArray[Any] | None = None,
    trainable: NDArray[Any] | None = None,
) -> float:
    """One step of training in one call: the gradient of a batch, then the optimizer's step; returns the loss before it.

    Does what `value_and_grad` and the function of the optimizer's name do one after the other, with the same bits, and
    checks the arguments of both before it writes anything. The plan's threads share both.

    Parameters
    ----------
    plan : Plan with a loss
    params : (n_params,) array of the plan's dtype, updated
    x, target, weights, lengths : as for `value_and_grad`
    grads : (n_params,) array, overwritten with the gradient
    optimizer_state : 1-D array from `optimizer_state(optimizer, n_params, dtype)`, updated
    work : 1-D array from `workspace(plan)`, overwritten
    step : int
        Counts from 0; keys the bias corrections and the random numbers of dropout.
    optimizer : str
        The name of the optimizer's function; in @njit a literal.
    lr, weight_decay, momentum, ... : float, or None for the optimizer's own default
        Only those that the optimizer has.
    state : 1-D array from `layer_state(plan)`, changed, where the network has one
    decay_mask, trainable : (n_params,) bool or uint8, or None
        Which parameters decay, and which are updated; all when None.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit; nothing has been written then. In @njit a wrong dtype or order is a
        typing error.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params, grads = nbprop.plan(net, loss="mse", batch=2), np.array([2.0, 1.0]), np.empty(2)
    >>> x, target = np.array([[1.0], [3.0]]), np.array([[3.0], [6.0]])
    >>> arrays = grads, nbprop.optimizer_state("sgd", 2), nbprop.workspace(plan)
    >>> for step in range(2):
    ...     print(round(nbprop.train_step(plan, params, x, target, *arrays, step, "sgd", lr=0.05), 6))
    0.5
    0.145
    """
    objects, vectors = (
        (params, x, target, grads, work, weights, state, lengths),
        (optimizer_state, decay_mask, trainable),
    )
    # One display: put together of two, a tuple takes half as long as the whole call.
    hyper = (
        lr,
        weight_decay,
        momentum,
        rumelhart,
        decay,
        eps,
        beta1,
        beta2,
        shrink,
        grow,
        smallest,
        largest,
        momentum_decay,
        warm_up,
    )
    prepared = _prepared.get(optimizer) if type(optimizer) is str else None
    if prepared is None or type(plan) is not Plan or type(step) is not int or not -1 < step < _STEPS:
        return _elsewhere(plan, objects, vectors, hyper, step, optimizer)
    status, result = prepared.call(prepared.words, plan.address, objects, vectors, hyper, step)
    return result if status == 0 else _finish(plan, objects, vectors, hyper, step, optimizer, status, result)


def _elsewhere(plan, objects, vectors, hyper, step, optimizer):
    """A call that is not the usual one: the first of its optimizer, a plan on a device, a wrong argument."""
    choose("train_step: optimizer", optimizer, RULES)
    if not isinstance(plan, Plan):
        raise TypeError(f"train_step: plan must be what nbprop.plan(...) returns, got {type(plan).__name__}")
    step = faces.as_step("train_step", step)
    hyper = _as_floats(optimizer, hyper)
    if plan.target != "cpu":
        return _on_device(plan, objects, vectors, hyper, step, optimizer)
    prepared = _prepared.get(optimizer)
    if prepared is None:
        prepared = _prepared[optimizer] = _Prepared(str(optimizer))
    RULES[optimizer].kernel.load(plan.numba_dtype)
    status, result = prepared.call(prepared.words, plan.address, objects, vectors, hyper, step)
    return result if status == 0 else _finish(plan, objects, vectors, hyper, step, optimizer, status, result)


def _on_device(plan, objects, vectors, hyper, step, optimizer):
    params, x, target, grads, work, weights, state, lengths = objects
    optimizer_state, decay_mask, trainable = vectors
    given = {name: value for name, value in zip(HYPERPARAMETERS, hyper, strict=True) if value is not None}
    if "rumelhart" in given:
        given["rumelhart"] = bool(given["rumelhart"])
    loss = value_and_grad(plan, params, x, target, grads, work, weights, False, state, step, lengths)
    masks = {"decay_mask": decay_mask, "trainable": trainable}
    OPTIMIZERS[optimizer](params, grads, optimizer_state, step, **given, **masks)
    return loss


def _as_floats(optimizer, hyper):
    """The hyperparameters as floats, None where not given; refuses one that the optimizer has not."""
    kinds, found = RULES[optimizer].hyperparameters, []
    for name, value in zip(HYPERPARAMETERS, hyper, strict=True):
        if value is not None and name not in kinds:
            raise TypeError(f"train_step: {name} is no hyperparameter of {optimizer}, which has {', '.join(kinds)}")
        found.append(value if value is None else steps.hyperparameter_as_float("train_step", name, kinds[name], value))
    return tuple(found)


def _finish(plan, objects, vectors, hyper, step, optimizer, status, result):
    """Resume a walk each time it pauses, when Python handles signals; return the loss, or refuse."""
    if status in (_NOT_FLOATS, _UNKNOWN):
        return _elsewhere(plan, objects, vectors, hyper, step, optimizer)
    if status >= arg.PAUSED:
        know_clock()
        call, words = _RESUME.load(), _prepared[optimizer].words
        while status >= arg.PAUSED:
            status, result = call(words, plan.address, objects, vectors, hyper, step, status - arg.PAUSED, result)
    if status == 0:
        return result
    found, others = (tuple(without_memmap(value) for value in values) for values in (objects, vectors))
    if any(new is not old for new, old in zip((*found, *others), (*objects, *vectors), strict=True)):
        return _elsewhere(plan, found, others, hyper, step, optimizer)
    if status < 64 * _OWN or status >= arg.FAILED:
        by_place = dict(zip(_PLACES, found, strict=True))
        raise refusal("train_step", plan, tuple(by_place.get(k) for k in range(arg.ARGUMENTS)), status)
    given = dict(zip(HYPERPARAMETERS, hyper, strict=True))
    own = [given[name] for name in RULES[optimizer].hyperparameters]
    values = [found[0], found[3], *others, None, step, plan.threads, None, None, *own, *[None] * (_MOST - len(own))]
    raise steps.refusal("train_step", values, status - 64 * _OWN, optimizer, _STEP_NAMES)


# -- from @njit ----------------------------------------------------------------------------------------------

check_status = raiser(_NAMES, steps.WANTED)


@overload(train_step, jit_options=FLAGS, strict=False, prefer_literal=True)
def _typed(*arguments, **named):
    given = inspect.signature(train_step).bind(*arguments, **named)
    given.apply_defaults()
    found = given.arguments
    optimizer = _name_of(found["optimizer"])
    arrays = [found[arg.NAMES[place]] for place in _PLACES]
    faces.check_types(_SIGNATURE, found["plan"], arrays, False, found["step"])
    real = found["plan"].dtype
    for name in ("params", "optimizer_state"):
        wanted = f"{real} as the plan does"
        check_array_type(f"nbprop.train_step: {name}", found[name], (real,), wanted, rank=1, written=True)
    for name in ("decay_mask", "trainable"):
        masks = types.boolean, types.uint8
        check_array_type(f"nbprop.train_step: {name}", found[name], masks, "bool or uint8", rank=1, optional=True)
    values = []
    for name in HYPERPARAMETERS:
        if is_absent(found[name]):
            continue
        if name not in RULES[optimizer].hyperparameters:
            raise TypingError(f"nbprop.train_step: {name} is no hyperparameter of {optimizer}")
        if not isinstance(found[name], (types.Number, types.Boolean, types.Literal)):
            raise TypingError(f"nbprop.train_step: {name} must be a number, got {found[name]}")
        values.append(name)
    RULES[optimizer].kernel.load(real)
    return _compiled(optimizer, tuple(values))


def _name_of(found):
    """The optimizer's name, from its Numba type."""
    name = getattr(found, "literal_value", getattr(found, "value", found))
    if not isinstance(name, str):
        raise TypingError(f"nbprop.train_step: optimizer must be a literal name, got {found}")
    try:
        choose("nbprop.train_step: optimizer", name, RULES)
    except ValueError as error:
        raise TypingError(str(error)) from None
    return name


@functools.cache
def _compiled(optimizer, given):
    """The compiled function of an optimizer, for the hyperparameters that a call gives."""
    rule = RULES[optimizer]
    describe = describe_arguments(_PLACES, _DESCRIPTION, elements.element_code_of_type)
    float32, float64, slots, hyperparameters = steps.prepare(optimizer)
    # Times 1.0: Numba does not convert a bool to a float.
    numbers = [f"{name} * 1.0" if name in given else repr(_default(optimizer, name)) for name in rule.hyperparameters]
    body = [
        "block, own = stack_words(BLOCK), stack_words(STEP_BLOCK)",
        f"describe(block, ({', '.join(arg.NAMES[place] for place in _PLACES)}))",
        "describe_vectors(own, (optimizer_state, decay_mask, trainable))",
        *(f"store_double(own, {steps.HYPER_WORDS + k}, {number})" for k, number in enumerate(numbers)),
        "store(block, STEP, step)",
        "entry = find(ENTRY)",
        "failed, status = 0, NO_KERNEL",
        "if entry != 0:",
        f"    rule = float32, float64, {slots}, {hyperparameters}",
        "    failed, status = call(entry, (plan_address(plan), block, own, *rule))",
        "check_status(status if failed == 0 else failed)",
        "return load_double(block, RESULT)",
    ]
    names: dict[str, Any] = {
        "BLOCK": _BLOCK,
        "STEP_BLOCK": _STEP_BLOCK,
        "STEP": arg.STEP,
        "RESULT": arg.RESULT,
        "NO_KERNEL": NO_KERNEL,
    }
    names |= {"describe": describe, "describe_vectors": steps.describer(*_VECTORS), "call": _call_entry, "find": find}
    names |= {"float32": float32, "float64": float64, "ENTRY": _ENTRY_FINGERPRINT, "check_status": check_status}
    names |= {"stack_words": stack_words, "store": store, "store_double": store_double, "load_double": load_double}
    return faces.written_out(train_step, "compiled", body, names | {"plan_address": plan_address})
