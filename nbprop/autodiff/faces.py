"""The two faces of a public function of a plan, from Python and from @njit, made from its row in runtime/signatures.py.

Both describe their arguments in a block and call the same compiled entry (runtime/entries.py). From Python the fast
path is one compiled call; only when it reports a problem does Python look at the arguments again, to say what is wrong
(runtime/errors.py). The faces are written out as source and compiled, as `collections.namedtuple` does it: a call that
went through `*args` would take longer than the checks, and Numba needs the names.
"""

import functools
import inspect
import linecache

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

from nbprop.arrays import without_memmap
from nbprop.compiler.argument_types import check_array_type, check_flag_type, check_integer_type
from nbprop.compiler.intrinsics import indirect_call, load_double, stack_words, store, store_double
from nbprop.compiler.jit import FLAGS, njit
from nbprop.compiler.registry import find
from nbprop.lowering.plan import Plan, PlanType, plan_address
from nbprop.messages import NO_KERNEL, STEP_RANGE, failure
from nbprop.program import elements
from nbprop.program.binding import describe_arguments
from nbprop.runtime import arguments as arg
from nbprop.runtime.derivative_entries import ENTRIES
from nbprop.runtime.errors import refusal
from nbprop.runtime.raising import raiser
from nbprop.runtime.signatures import INTEGERS, OPTIONAL, SIGNATURES
from nbprop.runtime.workers import know_clock
from nbprop.validation import as_integer, check_flag, shown

_entry_signature = types.int64(types.int64, types.int64)
_call_entry = indirect_call(_entry_signature)
_NDARRAY = id(np.ndarray)
_BLOCK, _STEPS = arg.BLOCK, arg.STEPS


def plan_function(declared):
    """Make a public function of its `def`, which gives the parameters, their defaults and the docstring.

    The body comes from the row of the table that has its name; the row and the `def` must name the same arguments.
    """
    signature = SIGNATURES[declared.__name__]
    if tuple(inspect.signature(declared).parameters) != ("plan", *signature.parameters):
        raise TypeError(f"{declared.__name__}: its def and its row in runtime/signatures.py name other arguments")
    face = _made(declared, "Python", *_python_face(signature))
    overload(face, jit_options=FLAGS, strict=False)(_made(declared, "typing", *_typing(signature, declared)))
    return face


def _made(declared, label, body, names):
    """A function with the parameters of a `def` and another body, to which `names` are known as closed-over values."""
    given = inspect.signature(declared)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in given.parameters.values()]
    head = f"def {declared.__name__}{given.replace(parameters=bare, return_annotation=inspect.Signature.empty)}:"
    lines = [f"def make({', '.join(names)}):", f"    {head}", *(f"        {line}" for line in body)]
    source = "\n".join([*lines, f"    return {declared.__name__}", ""])
    file = f"<nbprop: {declared.__name__}, {label}>"
    linecache.cache[file] = len(source), None, source.splitlines(True), file  # for tracebacks
    space: dict = {}
    exec(compile(source, file, "exec"), declared.__globals__, space)
    return functools.update_wrapper(space["make"](**names), declared)


# -- from Python ---------------------------------------------------------------------------------------------


def _python_face(signature):
    """(lines of the body, what they name)."""

    def elsewhere(plan, values, accumulate, step):
        return _run(signature, plan, values, accumulate, step)

    def finish(plan, values, accumulate, step, status, result):
        return _finish(signature, plan, values, accumulate, step, status, result)

    places = {place: arg.NAMES[place] for place in signature.arrays}
    values = ", ".join(places.get(place, "None") for place in range(arg.ARGUMENTS))
    addresses = ", ".join(_address(signature, place) if place in places else "0" for place in range(arg.ARGUMENTS))
    accumulate = "accumulate" if signature.accumulates else "False"
    flag = "0 if accumulate is False else flag(accumulate)" if signature.accumulates else "0"
    step = "step if type(step) is int and -1 < step < STEPS else integer(step)"
    result = "return result" if signature.returns else "return None"
    body = [
        "if type(plan) is not Plan:",
        f"    return elsewhere(plan, ({values}), {accumulate}, step)",
        "status, result = call(",
        f"    entry.address or entry.load(), plan.address, {addresses}, {flag}, {step}, NDARRAY",
        ")",
        "if status == 0:",
        f"    {result}",
        f"return finish(plan, ({values}), {accumulate}, step, status, result)",
    ]
    names = {"Plan": Plan, "call": _call, "entry": ENTRIES[signature.name], "STEPS": _STEPS, "NDARRAY": _NDARRAY}
    names |= {"elsewhere": elsewhere, "finish": finish, "integer": functools.partial(_integer, signature.name)}
    return body, names | {"flag": functools.partial(_flag, signature.name)}


def _address(signature, place):
    """How the Python face says where an argument's object lies; 0 where it was not given."""
    name = arg.NAMES[place]
    return f"0 if {name} is None else id({name})" if signature.role(place) == OPTIONAL else f"id({name})"


@njit
def _call(
    entry, plan, params, x, target, grads, work, weights, state, y, dy, dx, v, out, lengths, accumulate, step, ndarray
):
    """Describe Python objects (by address, 0: not given), call an entry; (status, result)."""
    objects = (params, x, target, grads, work, weights, state, y, dy, dx, v, out, lengths)
    return _enter_from_python(entry, plan, objects, accumulate, step, ndarray, 0, 0.0)


@njit
def _enter_from_python(entry, plan, objects, accumulate, step, ndarray, at, result):
    """The same; where a paused walk is resumed, `at` is its status less PAUSED, and `result` its result so far."""
    block = stack_words(_BLOCK)
    for argument in range(arg.ARGUMENTS):
        status = arg.describe_object(block, argument, objects[argument], ndarray)
        if status != 0:
            return status, 0.0
    store(block, arg.ACCUMULATE, accumulate)
    store(block, arg.STEP, step)
    store(block, arg.MAY_PAUSE, 1)
    store(block, arg.RESUME, at)
    store_double(block, arg.RESULT, result)
    failed, status = _call_entry(entry, (plan, block))
    return status if failed == 0 else failed, load_double(block, arg.RESULT)


def _run(signature, plan, values, accumulate, step):
    """A call in general. `values` are the arrays in the order of arguments.py, None where not given."""
    function = signature.name
    step, accumulate = _integer(function, step), _flag(function, accumulate)
    if getattr(plan, "target", "cpu") != "cpu":
        return plan.call(function, values, accumulate, step)
    if type(plan) is not Plan:
        raise TypeError(f"{function}: plan must be what nbprop.plan(...) returns, got {type(plan).__name__}")
    entry = ENTRIES[function]
    addresses = [0 if value is None else id(value) for value in values]
    words = [entry.address or entry.load(), plan.address, *addresses, accumulate, step, _NDARRAY]
    status, result = _call(*words)
    return _finish(signature, plan, values, accumulate, step, status, result)


def _finish(signature, plan, values, accumulate, step, status, result):
    """Resume a walk each time it pauses, which is when Python handles signals; return its result, or refuse."""
    if status >= arg.PAUSED:
        know_clock()
        objects = tuple(0 if value is None else id(value) for value in values)
        scalars = _flag(signature.name, accumulate), _integer(signature.name, step)
        call = ENTRIES[signature.name].address, plan.address, objects, *scalars, _NDARRAY
        while status >= arg.PAUSED:
            status, result = _enter_from_python(*call, status - arg.PAUSED, result)
    if status != 0:
        return _refuse(signature, plan, values, accumulate, step, status)
    return result if signature.returns else None


def _refuse(signature, plan, values, accumulate, step, status):
    """The fast path has reported a problem: look through memory maps, else raise what is wrong."""
    found = [without_memmap(value) for value in values]
    if any(new is not old for new, old in zip(found, values, strict=True)):
        return _run(signature, plan, found, accumulate, step)
    raise refusal(signature.name, plan, found, status)


def _integer(function, step):
    """`step` as an int: another integer type would compile the call anew, and a float be cut."""
    found = as_integer(f"{function}: step", step)
    if not 0 <= found < arg.STEPS:
        raise failure(STEP_RANGE, f"{function}: step", got=shown(found))
    return found


def _flag(function, accumulate):
    """`accumulate` as 0 or 1."""
    return int(check_flag(f"{function}: accumulate", accumulate))


# -- from @njit ----------------------------------------------------------------------------------------------


def _typing(signature, declared):
    """(lines of the body, what they name) of the function that Numba asks what to compile for a call."""
    places = signature.arrays

    @functools.cache
    def compiled():
        describe = describe_arguments(places, arg.DESCRIPTION, elements.element_code_of_type)
        return _made(declared, "compiled", *_compiled_face(signature, describe))

    def typed(plan, arrays, accumulate, step):
        check_types(signature, plan, arrays, accumulate, step)
        return compiled()

    accumulate = "accumulate" if signature.accumulates else "False"
    return [f"return typed(plan, ({_listed(places)}), {accumulate}, step)"], {"typed": typed}


def _compiled_face(signature, describe):
    accumulate = "accumulate" if signature.accumulates else "False"
    result = "return " if signature.returns else ""
    body = [
        "block = stack_words(BLOCK)",
        f"describe(block, ({_listed(signature.arrays)}))",
        f"{result}enter(entry, plan_address(plan), block, {accumulate}, step)",
    ]
    names = {"stack_words": stack_words, "BLOCK": _BLOCK, "describe": describe, "enter": enter}
    return body, names | {"entry": np.int64(ENTRIES[signature.name].fingerprint()), "plan_address": plan_address}


def _listed(places):
    return ", ".join(arg.NAMES[place] for place in places)


def check_types(signature, plan, arrays, accumulate, step):
    """Typing errors that name the argument; `arrays` has the Numba type of each, in the order of the parameters."""
    function = f"nbprop.{signature.name}"
    if not isinstance(plan, PlanType):
        raise TypingError(f"{function}: plan must be what nbprop.plan(...) returns, got {plan}")
    check_integer_type(f"{function}: step", step)
    check_flag_type(f"{function}: accumulate", accumulate)
    for place, found in zip(signature.arrays, arrays, strict=True):
        dtypes, wanted = (plan.dtype, *([types.Integer] if place in INTEGERS else [])), f"{plan.dtype} as the plan does"
        if place == arg.LENGTHS:
            dtypes, wanted = (types.Integer,), "integers"
        check_array_type(
            f"{function}: {arg.NAMES[place]}",
            found,
            dtypes,
            wanted,
            written=place in signature.written,
            optional=signature.role(place) == OPTIONAL,
        )


check_status = raiser((*arg.NAMES, "plan", "step"))


@njit
def enter(entry, plan, block, accumulate, step):
    """Call an entry with a filled block; its result, or an exception."""
    store(block, arg.ACCUMULATE, 1 if accumulate else 0)
    store(block, arg.STEP, step)
    address = find(entry)
    failed, status = (0, NO_KERNEL) if address == 0 else _call_entry(address, (plan, block))
    check_status(status if failed == 0 else failed)
    return load_double(block, arg.RESULT)
