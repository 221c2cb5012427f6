"""The public functions that walk a plan: forward, backward, value, value_and_grad; from Python and from @njit.

Both faces describe their arguments in a block and call the same compiled entry (walk.py). From Python the fast path is one
compiled call; only when it reports a problem does Python look at the arguments again, to say what is wrong.
"""

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

from nbprop import arguments as arg
from nbprop.jit import FLAGS, Untyped, find, njit
from nbprop.numerics.intrinsics import (
    describe_array,
    in_parallel_region,
    indirect_call,
    load_double,
    propagating_call,
    stack_words,
    store,
)
from nbprop.plan import Plan, PlanType, describe_failure, plan_address
from nbprop.walk import ENTRIES

_entry_signature = types.int64(types.int64, types.int64)
_call_entry = indirect_call(_entry_signature)
_NDARRAY = id(np.ndarray)
_BLOCK, _DESCRIPTION = arg.BLOCK, arg.DESCRIPTION


@njit
def _call(entry, plan, params, x, target, grads, work, weights, state, y, dy, dx, v, out, accumulate, step, ndarray):
    """Describe Python objects (by address, 0: not given), call an entry; (status, result)."""
    block = stack_words(_BLOCK)
    objects = (params, x, target, grads, work, weights, state, y, dy, dx, v, out)
    for argument in range(arg.ARGUMENTS):
        status = arg.describe_object(block, argument, objects[argument], ndarray)
        if status != 0:
            return status, 0.0
    store(block, arg.ACCUMULATE, accumulate)
    store(block, arg.STEP, step)
    failed, status = _call_entry(entry, (plan, block))
    return status if failed == 0 else failed, load_double(block, arg.RESULT)


# -- what to say when a call is refused ----------------------------------------------------------------------


def _kind(code):
    if code == arg.ANY_INTEGER:
        return "integers"
    return {arg.FLOAT32: "float32", arg.FLOAT64: "float64"}[code]


def _wanted(plan, argument):
    """(element code, shape as text) that `plan` wants of an argument."""
    code = plan.element_code
    n = f"1..{plan.batch}"
    flat = {arg.PARAMS: plan.n_params, arg.GRADS: plan.n_params, arg.STATE: plan.state_size}
    flat |= {arg.V: plan.n_params, arg.OUT: plan.n_params}
    if argument in flat:
        return code, f"({flat[argument]},)"
    if argument == arg.WORK:
        return code, f"({plan.work_size},) or longer"
    if argument == arg.WEIGHTS:
        return code, "(n,), one weight a sample of x"
    shape, code = {
        arg.X: (plan.input_shape, plan.x_code),
        arg.DX: (plan.input_shape, code),
        arg.TARGET: (plan.target_shape, plan.target_code),
        arg.Y: (plan.output_shape, code),
        arg.DY: (plan.output_shape, code),
    }[argument]
    return code, "(" + ", ".join([n, *map(str, shape)]) + ("," if not shape else "") + ")"


def _got(value):
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {value.shape}"
    return type(value).__name__


def refusal(function, plan, values, status):
    """The exception for a status other than 0. `values` are the call's arguments in the order of arguments.py."""
    if status >= arg.FAILED:
        return describe_failure(function, plan, status - arg.FAILED)
    argument, problem = divmod(status, 64)
    if argument == arg.PLAN:
        if problem == arg.NO_LOSS:
            return ValueError(f"{function}: this plan has no loss; make one with nbprop.plan(net, loss=...)")
        return RuntimeError(f"{function}: the plan was made by another version of nbprop; make it again")
    name, value = arg.NAMES[argument], values[argument]
    code, shape = _wanted(plan, argument)
    got = _got(value)
    said = {
        arg.NOT_AN_ARRAY: (TypeError, f"must be a NumPy array, got {got}; convert it once with np.ascontiguousarray"),
        arg.MISSING: (TypeError, f"is needed and got None; pass an array {shape} of {_kind(code)}"),
        arg.DTYPE: (TypeError, f"must hold {_kind(code)}, got {got}; convert it once with .astype"),
        arg.ORDER: (ValueError, f"must be C-contiguous, got a strided {got}; copy it once with np.ascontiguousarray"),
        arg.MISALIGNED: (ValueError, f"must be aligned to its element, got a misaligned {got}; copy it once"),
        arg.READ_ONLY: (ValueError, f"is written and must not be read-only, got a read-only {got}; pass a copy"),
        arg.LENGTH: (ValueError, f"must have shape {shape}, got {got}; {_REMEDY.get(argument, 'see the plan')}"),
        arg.SHAPE_DIFFERS: (ValueError, f"must have shape {shape}, got {got}; reshape it or make another plan"),
        arg.EMPTY: (ValueError, f"has no samples (got {got}); pass at least one"),
        arg.CAPACITY: (ValueError, f"brings more samples than the plan's batch of {plan.batch}, got {got}; "
                       "make a plan with a larger batch or pass it in chunks"),
        arg.SAMPLES_DIFFER: (ValueError, f"must bring as many samples as x, got {got}"),
        arg.CLASS_RANGE: (ValueError, _class_message(plan, argument, value)),
        arg.ALIASED: (ValueError, f"is written and shares memory with {_partner(values, argument)}; pass separate buffers"),
    }  # fmt: skip
    kind, text = said[problem]
    return kind(f"{function}: {name} {text}")


_REMEDY = {
    arg.PARAMS: "nbprop.init(net, seed) makes them",
    arg.GRADS: "np.empty_like(params) makes one",
    arg.WORK: "nbprop.workspace(plan) makes one",
    arg.STATE: "nbprop.layer_state(net) makes one",
}


def _class_message(plan, argument, value):
    classes = plan.classes if argument == arg.TARGET else plan.x_classes
    wrong = value[(value < 0) | (value >= classes)] if isinstance(value, np.ndarray) else ()
    example = f", got {wrong[0]}" if len(wrong) else ""
    return f"must hold classes in 0..{classes - 1}{example}"


def _partner(values, argument):
    for other, value in enumerate(values):
        if other != argument and isinstance(value, np.ndarray) and np.may_share_memory(value, values[argument]):
            return arg.NAMES[other]
    return "another argument"


def _plain(value):
    """A memory-mapped array seen as the plain array it is; anything else unchanged."""
    return value.view(np.ndarray) if type(value) is np.memmap else value


def _slow(function, plan, values, accumulate, step, status):
    """The fast path has reported a problem: look through memory maps, else raise what is wrong."""
    plain = [_plain(value) for value in values]
    if any(new is not old for new, old in zip(plain, values, strict=True)):
        return _run(function, plan, plain, accumulate, step)
    raise refusal(function, plan, plain, status)


def _run(function, plan, values, accumulate=False, step=0):
    """Call an entry from Python. `values` are the arguments in the order of arguments.py, None where not given."""
    addresses = [0 if value is None else id(value) for value in values]
    entry = ENTRIES[function]
    status, result = _call(entry.address, _table(function, plan), *addresses, 1 if accumulate else 0, step, _NDARRAY)
    return result if status == 0 else _slow(function, plan, values, accumulate, step, status)


def _table(function, plan):
    if type(plan) is not Plan:
        raise TypeError(f"{function}: plan must be what nbprop.plan(...) returns, got {type(plan).__name__}")
    return plan.address


# -- the public functions ------------------------------------------------------------------------------------


def forward(plan, params, x, y, work, state=None, step=0):
    """Run the network: writes y.

    Parameters
    ----------
    plan : Plan
    params : (n_params,) array of the plan's dtype
    x : (n, *input_shape) array, n at most the plan's batch
    y : (n, *output_shape) array, overwritten; logits for a network under a cross-entropy loss
    work : 1-D array from `workspace(plan)`, overwritten; `backward` needs what this call leaves there
    state : 1-D array of layer state, where the network has one
    step : int, keys the random numbers of dropout

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit; nothing has been written then. In @njit a wrong dtype or order is a typing error.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((3,), nbprop.dense(2))
    >>> plan = nbprop.plan(net, batch=4)
    >>> y = np.empty((4, 2))
    >>> nbprop.forward(plan, nbprop.init(net), np.zeros((4, 3)), y, nbprop.workspace(plan))
    >>> y.max()
    np.float64(0.0)
    """
    _run("forward", plan, (params, x, None, None, work, None, state, y, None, None, None, None), False, step)


def value(plan, params, x, target, work, weights=None, state=None, step=0):
    """The loss: the mean over the batch, weighted as sum(w l) / sum(w); in nats for likelihoods.

    Arguments and errors as `value_and_grad`, without gradients.
    """
    return _run(
        "value",
        plan,
        (params, x, target, None, work, weights, state, None, None, None, None, None),
        False,
        step,
    )


def value_and_grad(plan, params, x, target, grads, work, weights=None, accumulate=False, state=None, step=0):
    """The loss and its gradient with respect to the parameters.

    Parameters
    ----------
    plan : Plan made with a loss
    params : (n_params,) array of the plan's dtype
    x : (n, *input_shape) array, n at most the plan's batch
    target : (n, *output_shape) array of the plan's dtype; integers (n, *output_shape[:-1]) for classes
    grads : (n_params,) array, overwritten, or added to with accumulate=True
    work : 1-D array from `workspace(plan)`, overwritten
    weights : (n,) array or None; the loss is sum(w l) / sum(w)
    accumulate : bool
    state : 1-D array of layer state, where the network has one
    step : int, keys the random numbers of dropout

    Returns
    -------
    float
        The loss: mean over the batch. NaN when the data or the parameters make it so.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit: names it, what it got and what was needed. Nothing has been written then. In
        @njit, a wrong dtype or order is a typing error, a wrong shape or value a ValueError.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((3,), nbprop.dense(1))
    >>> plan = nbprop.plan(net, loss="mse", batch=4)
    >>> params, grads = nbprop.init(net), np.empty(net.n_params)
    >>> nbprop.value_and_grad(plan, params, np.zeros((4, 3)), np.ones((4, 1)), grads, nbprop.workspace(plan))
    1.0
    >>> grads[-1]
    np.float64(-2.0)
    """
    status, loss = _call(
        _VALUE_AND_GRAD.address,
        plan.address if type(plan) is Plan else _table("value_and_grad", plan),
        id(params),
        id(x),
        id(target),
        id(grads),
        id(work),
        0 if weights is None else id(weights),
        0 if state is None else id(state),
        0,
        0,
        0,
        0,
        0,
        1 if accumulate else 0,
        step,
        _NDARRAY,
    )
    if status == 0:
        return loss
    values = (params, x, target, grads, work, weights, state, None, None, None, None, None)
    return _slow("value_and_grad", plan, values, accumulate, step, status)


_VALUE_AND_GRAD = ENTRIES["value_and_grad"]


def backward(plan, params, x, dy, grads, dx, work, accumulate=False, state=None, step=0):
    """From dy = dL/dy to the gradients, after `forward` with the same params, x and work.

    Parameters
    ----------
    dy : (n, *output_shape) array; with respect to the logits for a network under a cross-entropy loss
    grads : (n_params,) array, overwritten, or added to with accumulate=True
    dx : (n, *input_shape) array, overwritten, or None
    plan, params, x, work, state, step : as `forward` had them

    Raises
    ------
    TypeError, ValueError
        As `value_and_grad`.
    """
    _run(
        "backward",
        plan,
        (params, x, None, grads, work, None, state, None, dy, dx, None, None),
        accumulate,
        step,
    )


# -- the same names inside @njit -----------------------------------------------------------------------------


def _raise_status(status):
    """Raise what a status means; with the argument's name, without the values, which only Python can tell."""
    if status >= arg.FAILED:
        raise RuntimeError("a layer's kernel raised an exception and the walk was stopped")
    if status < 0:
        raise RuntimeError(
            "this compiled function was cached with another version of nbprop; clear the cache of your own @njit functions"
        )
    argument, problem = status // 64, status % 64
    if argument == arg.PLAN and problem == arg.NO_LOSS:
        raise ValueError("this plan has no loss; make one with nbprop.plan(net, loss=...)")
    if argument == arg.PLAN:
        raise RuntimeError("the plan was made by another version of nbprop; make it again")
    raise ValueError(arg.NAMES[argument] + " " + _SAID[problem])


_SAID = (
    "is wrong",
    "must be a NumPy array",
    "is needed",
    "has a dtype that does not fit the plan",
    "must be C-contiguous",
    "must be aligned to its element",
    "is written and must not be read-only",
    "has a length that does not fit the plan",
    "has a shape that does not fit the plan",
    "has no samples",
    "brings more samples than the plan's batch",
    "must bring as many samples as x",
    "must hold classes that the network has",
    "is written and shares memory with another argument",
)

_raise_signature = types.void(types.int64)
_RAISE = Untyped(_raise_status, lambda dtype: _raise_signature)
_call_raise = propagating_call(_raise_signature)


def _check_types(function, plan, given):
    """Typing errors that name the argument. `given`: (name, Numba type, "array", "integer or array" or "optional")."""
    if not isinstance(plan, PlanType):
        raise TypingError(f"nbprop.{function}: plan must be what nbprop.plan(...) returns, got {plan}")
    for name, found, role in given:
        absent = found is None or isinstance(found, (types.NoneType, types.Omitted))
        if absent and role in ("optional", "written or None"):
            continue
        if not isinstance(found, types.Array):
            raise TypingError(f"nbprop.{function}: {name} must be an array, got {found}")
        if role == "data" and isinstance(found.dtype, types.Integer):
            pass
        elif found.dtype != plan.dtype:
            raise TypingError(f"nbprop.{function}: {name} must hold {plan.dtype} as the plan does, got {found.dtype}")
        if found.layout != "C" and found.ndim > 0:
            raise TypingError(f"nbprop.{function}: {name} must be C-contiguous; its type is {found}")
        if role.startswith("written") and not found.mutable:
            raise TypingError(f"nbprop.{function}: {name} is written and must not be read-only; its type is {found}")


def _code(found):
    return arg.element_code_of_type(found.dtype) if isinstance(found, types.Array) else 0



@njit
def _enter(entry, plan, block, alone):
    """Call an entry with a filled block; its result, or an exception."""
    store(block, arg.ALONE, alone)
    address = find(entry)
    if address == 0:
        _call_raise(find(_RAISE_FINGERPRINT), (-1,))
    failed, status = _call_entry(address, (plan, block))
    if failed != 0 or status != 0:
        _call_raise(find(_RAISE_FINGERPRINT), (status,))
    return load_double(block, arg.RESULT)


_RAISE_FINGERPRINT = np.int64(_RAISE.fingerprint())


@overload(forward, jit_options=FLAGS, strict=False)
def _forward(plan, params, x, y, work, state=None, step=0):
    given = [("params", params, "array"), ("x", x, "data"), ("y", y, "written"), ("work", work, "written")]
    _check_types("forward", plan, [*given, ("state", state, "written or None")])
    entry, real, x_code = np.int64(ENTRIES["forward"].fingerprint()), _code(params), _code(x)

    def run(plan, params, x, y, work, state=None, step=0):
        block = stack_words(_BLOCK)
        describe_array(block, arg.PARAMS * _DESCRIPTION, real, params)
        describe_array(block, arg.X * _DESCRIPTION, x_code, x)
        describe_array(block, arg.Y * _DESCRIPTION, real, y)
        describe_array(block, arg.WORK * _DESCRIPTION, real, work)
        describe_array(block, arg.STATE * _DESCRIPTION, real, state)
        store(block, arg.STEP, step)
        _enter(entry, plan_address(plan), block, in_parallel_region())

    return run


@overload(value, jit_options=FLAGS, strict=False)
def _value(plan, params, x, target, work, weights=None, state=None, step=0):
    given = [
        ("params", params, "array"),
        ("x", x, "data"),
        ("target", target, "data"),
        ("work", work, "written"),
    ]
    _check_types("value", plan, [*given, ("weights", weights, "optional"), ("state", state, "written or None")])
    entry, real, x_code, target_code = np.int64(ENTRIES["value"].fingerprint()), _code(params), _code(x), _code(target)

    def run(plan, params, x, target, work, weights=None, state=None, step=0):
        block = stack_words(_BLOCK)
        describe_array(block, arg.PARAMS * _DESCRIPTION, real, params)
        describe_array(block, arg.X * _DESCRIPTION, x_code, x)
        describe_array(block, arg.TARGET * _DESCRIPTION, target_code, target)
        describe_array(block, arg.WORK * _DESCRIPTION, real, work)
        describe_array(block, arg.WEIGHTS * _DESCRIPTION, real, weights)
        describe_array(block, arg.STATE * _DESCRIPTION, real, state)
        store(block, arg.STEP, step)
        return _enter(entry, plan_address(plan), block, in_parallel_region())

    return run


@overload(value_and_grad, jit_options=FLAGS, strict=False)
def _value_and_grad(plan, params, x, target, grads, work, weights=None, accumulate=False, state=None, step=0):
    given = [
        ("params", params, "array"),
        ("x", x, "data"),
        ("target", target, "data"),
        ("grads", grads, "written"),
    ]
    given += [
        ("work", work, "written"),
        ("weights", weights, "optional"),
        ("state", state, "written or None"),
    ]
    _check_types("value_and_grad", plan, given)
    entry, real, x_code, target_code = (
        np.int64(ENTRIES["value_and_grad"].fingerprint()),
        _code(params),
        _code(x),
        _code(target),
    )

    def run(plan, params, x, target, grads, work, weights=None, accumulate=False, state=None, step=0):
        block = stack_words(_BLOCK)
        describe_array(block, arg.PARAMS * _DESCRIPTION, real, params)
        describe_array(block, arg.X * _DESCRIPTION, x_code, x)
        describe_array(block, arg.TARGET * _DESCRIPTION, target_code, target)
        describe_array(block, arg.GRADS * _DESCRIPTION, real, grads)
        describe_array(block, arg.WORK * _DESCRIPTION, real, work)
        describe_array(block, arg.WEIGHTS * _DESCRIPTION, real, weights)
        describe_array(block, arg.STATE * _DESCRIPTION, real, state)
        store(block, arg.ACCUMULATE, 1 if accumulate else 0)
        store(block, arg.STEP, step)
        return _enter(entry, plan_address(plan), block, in_parallel_region())

    return run


@overload(backward, jit_options=FLAGS, strict=False)
def _backward(plan, params, x, dy, grads, dx, work, accumulate=False, state=None, step=0):
    given = [("params", params, "array"), ("x", x, "data"), ("dy", dy, "array"), ("grads", grads, "written")]
    given += [("dx", dx, "written or None"), ("work", work, "written"), ("state", state, "written or None")]
    _check_types("backward", plan, given)
    entry, real, x_code = np.int64(ENTRIES["backward"].fingerprint()), _code(params), _code(x)

    def run(plan, params, x, dy, grads, dx, work, accumulate=False, state=None, step=0):
        block = stack_words(_BLOCK)
        describe_array(block, arg.PARAMS * _DESCRIPTION, real, params)
        describe_array(block, arg.X * _DESCRIPTION, x_code, x)
        describe_array(block, arg.DY * _DESCRIPTION, real, dy)
        describe_array(block, arg.GRADS * _DESCRIPTION, real, grads)
        describe_array(block, arg.DX * _DESCRIPTION, real, dx)
        describe_array(block, arg.WORK * _DESCRIPTION, real, work)
        describe_array(block, arg.STATE * _DESCRIPTION, real, state)
        store(block, arg.ACCUMULATE, 1 if accumulate else 0)
        store(block, arg.STEP, step)
        _enter(entry, plan_address(plan), block, in_parallel_region())

    return run
