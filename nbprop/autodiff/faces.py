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
from nbprop.compiler.intrinsics import indirect_call, load, load_double, stack_words, store, store_double
from nbprop.compiler.jit import FLAGS, njit
from nbprop.compiler.python_call import OBJECT, PythonCall, item, object_address
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
_BLOCK, _STEPS = arg.BLOCK, arg.STEPS


def plan_function(declared):
    """Make a public function of its `def`, which gives the parameters, their defaults and the docstring.

    The body comes from the row of the table that has its name; the row and the `def` must name the same arguments.
    """
    signature = SIGNATURES[declared.__name__]
    if tuple(inspect.signature(declared).parameters) != ("plan", *signature.parameters):
        raise TypeError(f"{declared.__name__}: its def and its row in runtime/signatures.py name other arguments")
    face = written_out(declared, "Python", *_python_face(signature))
    overload(face, jit_options=FLAGS, strict=False)(written_out(declared, "typing", *_typing(signature, declared)))
    return face


def written_out(declared, label, body, names):
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
    caller = Caller(signature, ENTRIES[signature.name])

    def elsewhere(plan, objects, accumulate, step):
        return run_call(caller, plan, objects, accumulate, step)

    def finish(plan, objects, accumulate, step, status, result):
        return finish_call(caller, plan, objects, accumulate, step, status, result)

    objects = f"({_listed(signature.arrays)},)"
    accumulate = "accumulate" if signature.accumulates else "False"
    flag = "0 if accumulate is False else flag(accumulate)" if signature.accumulates else "0"
    step = "0 if step is ZERO else step if type(step) is int and -1 < step < STEPS else integer(step)"
    result = "return result" if signature.returns else "return None"
    body = [
        "if type(plan) is not Plan:",
        f"    return elsewhere(plan, {objects}, {accumulate}, step)",
        "status, result = (caller.call or caller.load())(",
        f"    caller.words, plan.address, {objects}, {flag}, {step}",
        ")",
        "if status == 0:",
        f"    {result}",
        f"return finish(plan, {objects}, {accumulate}, step, status, result)",
    ]
    names = {"Plan": Plan, "caller": caller, "STEPS": _STEPS, "ZERO": 0, "elsewhere": elsewhere, "finish": finish}
    names |= {"integer": functools.partial(as_step, signature.name), "flag": functools.partial(_flag, signature.name)}
    return body, names


class Caller:
    """What Python calls for a function, and the words that go with each call; None until it is loaded.

    The words (`words` is their address): the entry, the addresses of `np.ndarray` and of None, and the places of the
    function's arrays in a block, after their number.
    """

    __slots__ = ("_entry", "_kept", "call", "signature", "words")

    def __init__(self, signature, entry):
        self.signature, self.call, self.words = signature, None, 0
        self._entry, self._kept = entry, None

    def load(self):
        """Compile, or fetch from the disk cache, what a call needs; returns what Python calls."""
        self._kept = words_of(self._entry, self.signature.arrays)
        self.words = self._kept.ctypes.data
        self.call = _CALL.load()  # last: another thread may look at it
        return self.call


_ENTRY, _NDARRAY, _NONE, _COUNT, _PLACES = range(5)


def words_of(entry, places):
    """The words that go with calls of an entry, whose tuple holds the arrays of `places`."""
    return np.array([entry.load(), id(np.ndarray), id(None), len(places), *places], np.int64)


@njit
def _call(words, plan, objects, accumulate, step):
    """Describe the Python objects of a tuple and call an entry; (status, result). `words` are those of a `Caller`."""
    return _enter_from_python(words, plan, objects, accumulate, step, 0, 0.0)


@njit
def _enter_from_python(words, plan, objects, accumulate, step, at, result):
    """The same; where a paused walk is resumed, `at` is its status less PAUSED, and `result` its result so far."""
    block = stack_words(_BLOCK)
    status = describe_items(block, words, object_address(objects))
    if status != 0:
        return status, 0.0
    fill_scalars(block, accumulate, step, at, result)
    failed, status = _call_entry(load(words, _ENTRY), (plan, block))
    return status if failed == 0 else failed, load_double(block, arg.RESULT)


@njit
def describe_items(block, words, objects):
    """Describe the items of the tuple at `objects`, at the places that `words` names; a status."""
    ndarray, none = load(words, _NDARRAY), load(words, _NONE)
    for k in range(load(words, _COUNT)):
        found = item(objects, k)
        status = arg.describe_object(block, load(words, _PLACES + k), found if found != none else 0, ndarray)
        if status != 0:
            return status
    return 0


@njit
def fill_scalars(block, accumulate, step, at, result):
    """The words of a block beside its arrays, for a call from Python."""
    store(block, arg.ACCUMULATE, accumulate)
    store(block, arg.STEP, step)
    store(block, arg.MAY_PAUSE, 1)
    store(block, arg.RESUME, at)
    store_double(block, arg.RESULT, result)


_CALL_TYPES = (types.int64, types.int64, OBJECT, types.int64, types.int64)
_CALL = PythonCall(_call, *_CALL_TYPES)
_RESUME = PythonCall(_enter_from_python, *_CALL_TYPES, types.int64, types.float64)


def run_call(caller, plan, objects, accumulate, step):
    """A call in general. `objects` are the arrays in the order of the function's row, None where not given."""
    function = caller.signature.name
    step, accumulate = as_step(function, step), _flag(function, accumulate)
    if getattr(plan, "target", "cpu") != "cpu":
        return plan.call(function, by_place(caller, objects), accumulate, step)
    if type(plan) is not Plan:
        raise TypeError(f"{function}: plan must be what nbprop.plan(...) returns, got {type(plan).__name__}")
    call = caller.call or caller.load()
    status, result = call(caller.words, plan.address, objects, accumulate, step)
    return finish_call(caller, plan, objects, accumulate, step, status, result)


def by_place(caller, objects):
    """The arrays of a call in the order of arguments.py, None where the function takes none."""
    found = dict(zip(caller.signature.arrays, objects, strict=True))
    return tuple(found.get(place) for place in range(arg.ARGUMENTS))


def finish_call(caller, plan, objects, accumulate, step, status, result):
    """Resume a walk each time it pauses, which is when Python handles signals; return its result, or refuse."""
    if status >= arg.PAUSED:
        know_clock()
        scalars = _flag(caller.signature.name, accumulate), as_step(caller.signature.name, step)
        while status >= arg.PAUSED:
            again = caller.words, plan.address, objects, *scalars, status - arg.PAUSED, result
            status, result = _resume(*again)
    if status != 0:
        return _refuse(caller, plan, objects, accumulate, step, status)
    return result if caller.signature.returns else None


def _resume(*words):
    """Go on with a paused walk: what `_enter_from_python` takes and returns."""
    return _RESUME.load()(*words)


def _refuse(caller, plan, objects, accumulate, step, status):
    """The fast path has reported a problem: look through memory maps, else raise what is wrong."""
    found = tuple(without_memmap(value) for value in objects)
    if any(new is not old for new, old in zip(found, objects, strict=True)):
        return run_call(caller, plan, found, accumulate, step)
    raise refusal(caller.signature.name, plan, by_place(caller, found), status)


def as_step(function, step):
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
        return written_out(declared, "compiled", *_compiled_face(signature, describe))

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
