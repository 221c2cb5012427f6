"""The public functions that walk a plan: forward, backward, value, value_and_grad; from Python and from @njit.

Both faces describe their arguments in a block and call the same compiled entry (walk.py). From Python the fast path is
one compiled call; only when it reports a problem does Python look at the arguments again, to say what is wrong
(refusals.py).
"""

import operator

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
from nbprop.plan import Plan, PlanType, plan_address
from nbprop.refusals import refusal
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
    step = _integer(function, step)
    status, result = _call(entry.address, _table(function, plan), *addresses, 1 if accumulate else 0, step, _NDARRAY)
    return result if status == 0 else _slow(function, plan, values, accumulate, step, status)


def _integer(function, step):
    """`step` as an int: another integer type would compile the call anew, and a float be cut."""
    try:
        return operator.index(step)
    except TypeError:
        raise TypeError(f"{function}: step must be an integer, got {type(step).__name__}") from None


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
        For an argument that does not fit; nothing has been written then. In @njit a wrong dtype or order is a
        typing error.

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
        step if type(step) is int else _integer("value_and_grad", step),
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


def _check_types(function, plan, step, given):
    """Typing errors that name the argument. `given`: (name, Numba type, "array", "integer or array" or "optional")."""
    if not isinstance(plan, PlanType):
        raise TypingError(f"nbprop.{function}: plan must be what nbprop.plan(...) returns, got {plan}")
    if not isinstance(step, (int, types.Integer, types.Omitted)):
        raise TypingError(f"nbprop.{function}: step must be an integer, got {step}")
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
    failed, status = (0, 0) if address == 0 else _call_entry(address, (plan, block))
    if address == 0 or failed != 0 or status != 0:
        refuse = find(_RAISE_FINGERPRINT)
        if address == 0 or refuse == 0:
            raise RuntimeError(
                "this compiled function was cached with another version of nbprop; "
                "clear the cache of your own @njit functions"
            )
        _call_raise(refuse, (status,))
    return load_double(block, arg.RESULT)


_RAISE_FINGERPRINT = np.int64(_RAISE.fingerprint())


@overload(forward, jit_options=FLAGS, strict=False)
def _forward(plan, params, x, y, work, state=None, step=0):
    given = [("params", params, "array"), ("x", x, "data"), ("y", y, "written"), ("work", work, "written")]
    _check_types("forward", plan, step, [*given, ("state", state, "written or None")])
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
    _check_types("value", plan, step, [*given, ("weights", weights, "optional"), ("state", state, "written or None")])
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
    _check_types("value_and_grad", plan, step, given)
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
    _check_types("backward", plan, step, given)
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
