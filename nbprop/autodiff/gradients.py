"""The public functions that walk a plan: forward, backward, value, value_and_grad; from Python and from @njit.

Both faces describe their arguments in a block and call the same compiled entry (walker.py). From Python the fast path
is one compiled call; only when it reports a problem does Python look at the arguments again, to say what is wrong
(errors.py).
"""

import operator

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

from nbprop.arrays import plain
from nbprop.compiler.intrinsics import indirect_call, load_double, propagating_call, stack_words, store
from nbprop.compiler.jit import FLAGS, njit
from nbprop.compiler.native import Untyped
from nbprop.compiler.registry import find
from nbprop.lowering.plan import Plan, PlanType, plan_address
from nbprop.networks.fields import shown
from nbprop.program import elements
from nbprop.program.binding import describe_arguments
from nbprop.runtime import arguments as arg
from nbprop.runtime.entries import ENTRIES
from nbprop.runtime.errors import refusal

_entry_signature = types.int64(types.int64, types.int64)
_call_entry = indirect_call(_entry_signature)
_NDARRAY = id(np.ndarray)
_BLOCK, _STEPS = arg.BLOCK, arg.STEPS


@njit
def _call(
    entry, plan, params, x, target, grads, work, weights, state, y, dy, dx, v, out, lengths, accumulate, step, ndarray
):
    """Describe Python objects (by address, 0: not given), call an entry; (status, result)."""
    block = stack_words(_BLOCK)
    objects = (params, x, target, grads, work, weights, state, y, dy, dx, v, out, lengths)
    for argument in range(arg.ARGUMENTS):
        status = arg.describe_object(block, argument, objects[argument], ndarray)
        if status != 0:
            return status, 0.0
    store(block, arg.ACCUMULATE, accumulate)
    store(block, arg.STEP, step)
    failed, status = _call_entry(entry, (plan, block))
    return status if failed == 0 else failed, load_double(block, arg.RESULT)


def _slow(function, plan, values, accumulate, step, status):
    """The fast path has reported a problem: look through memory maps, else raise what is wrong."""
    found = [plain(value) for value in values]
    if any(new is not old for new, old in zip(found, values, strict=True)):
        return run_entry(function, plan, found, accumulate, step)
    raise refusal(function, plan, found, status)


def run_entry(function, plan, values, accumulate=False, step=0):
    """Call an entry from Python. `values` are the arguments in the order of arguments.py, None where not given."""
    step, accumulate = _integer(function, step), _flag(function, accumulate)
    if getattr(plan, "target", "cpu") != "cpu":
        return plan.call(function, values, accumulate, step)
    addresses = [0 if value is None else id(value) for value in values]
    entry = ENTRIES[function]
    status, result = _call(entry.address, _table(function, plan), *addresses, accumulate, step, _NDARRAY)
    return result if status == 0 else _slow(function, plan, values, accumulate, step, status)


def _integer(function, step):
    """`step` as an int: another integer type would compile the call anew, and a float be cut."""
    try:
        found = operator.index(None if isinstance(step, (bool, np.bool_)) else step)
    except TypeError:
        raise TypeError(f"{function}: step must be an integer, got {type(step).__name__}") from None
    if not 0 <= found < arg.STEPS:
        raise ValueError(f"{function}: step must be in 0..2**40 - 1, got {shown(found)}")
    return found


def _flag(function, accumulate):
    """`accumulate` as 0 or 1."""
    if not isinstance(accumulate, (bool, np.bool_)):
        raise TypeError(f"{function}: accumulate must be True or False, got {type(accumulate).__name__}")
    return 1 if accumulate else 0


def _table(function, plan):
    if type(plan) is not Plan:
        raise TypeError(f"{function}: plan must be what nbprop.plan(...) returns, got {type(plan).__name__}")
    return plan.address


# -- the public functions ------------------------------------------------------------------------------------


def forward(plan, params, x, y, work, state=None, step=0, lengths=None):
    """Run the network: writes y.

    Parameters
    ----------
    plan : Plan
    params : (n_params,) array of the plan's dtype
    x : (n, *input_shape) array, n at most the plan's batch
    y : (n, *output_shape) array, overwritten; logits for a network under a cross-entropy loss
    work : 1-D array from `workspace(plan)`, overwritten; `backward` needs what this call leaves there
    state : 1-D array from `layer_state(plan)`, changed, where the network has one
    step : int, keys the random numbers of dropout; the position of a decoding plan
    lengths : (n,) integers or None, how many positions of each sample count (None: all), for networks over sequences.
        What x, target, dy or a direction hold beyond is never multiplied: it may be NaN. An output over positions is 0
        there, and nothing goes back from it. Layers that mix positions without heeding lengths (convolutions, pools,
        dense layers behind `flatten`) take x as 0 there

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
    values = (params, x, None, None, work, None, state, y, None, None, None, None, lengths)
    run_entry("forward", plan, values, False, step)


def value(plan, params, x, target, work, weights=None, state=None, step=0, lengths=None):
    """The loss: the mean over the batch, weighted as sum(w l) / sum(w); in nats for likelihoods.

    Arguments and errors as `value_and_grad`, without gradients.
    """
    values = (params, x, target, None, work, weights, state, None, None, None, None, None, lengths)
    return run_entry("value", plan, values, False, step)


def value_and_grad(
    plan, params, x, target, grads, work, weights=None, accumulate=False, state=None, step=0, lengths=None
):
    """The loss and its gradient with respect to the parameters.

    Parameters
    ----------
    plan : Plan made with a loss
    params : (n_params,) array of the plan's dtype
    x : (n, *input_shape) array, n at most the plan's batch
    target : (n, *output_shape) array of the plan's dtype, in the range that the loss names; integers
        (n, *output_shape[:-1]) for classes
    grads : (n_params,) array, overwritten, or added to with accumulate=True
    work : 1-D array from `workspace(plan)`, overwritten
    weights : (n,) array or None; the loss is sum(w l) / sum(w)
    accumulate : bool
    state : 1-D array from `layer_state(plan)`, changed, where the network has one
    step : int, keys the random numbers of dropout
    lengths : (n,) integers or None, how many positions of each sample count. Where the output is a sequence
        (n, T, ...) too, the loss is the mean over these positions, sum(w_i l_it) / sum(w_i length_i); those beyond have
        no loss and no gradient, whatever the target holds there

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
    if type(plan) is not Plan:
        values = (params, x, target, grads, work, weights, state, None, None, None, None, None, lengths)
        return run_entry("value_and_grad", plan, values, accumulate, step)
    status, loss = _call(
        _VALUE_AND_GRAD.address,
        plan.address,
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
        0 if lengths is None else id(lengths),
        0 if accumulate is False else _flag("value_and_grad", accumulate),
        step if type(step) is int and -1 < step < _STEPS else _integer("value_and_grad", step),
        _NDARRAY,
    )
    if status == 0:
        return loss
    values = (params, x, target, grads, work, weights, state, None, None, None, None, None, lengths)
    return _slow("value_and_grad", plan, values, accumulate, step, status)


_VALUE_AND_GRAD = ENTRIES["value_and_grad"]


def backward(plan, params, x, dy, grads, dx, work, accumulate=False, state=None, step=0, lengths=None):
    """From dy = dL/dy to the gradients, after `forward` with the same params, x and work.

    Parameters
    ----------
    dy : (n, *output_shape) array; with respect to the logits for a network under a cross-entropy loss
    grads : (n_params,) array, overwritten, or added to with accumulate=True
    dx : (n, *input_shape) array, overwritten, or None
    plan, params, x, work, state, step, lengths : as `forward` had them

    Raises
    ------
    TypeError, ValueError
        As `value_and_grad`.
    """
    values = (params, x, None, grads, work, None, state, None, dy, dx, None, None, lengths)
    run_entry("backward", plan, values, accumulate, step)


# -- the same names inside @njit -----------------------------------------------------------------------------


def _raise_status(status):
    """Raise what a status means; with the argument's name, without the values, which only Python can tell."""
    if status >= arg.FAILED:
        raise RuntimeError("a layer's kernel raised an exception and the walk was stopped")
    argument, problem = status // 64, status % 64
    if argument == arg.PLAN and problem == arg.NO_LOSS:
        raise ValueError("this plan has no loss; make one with nbprop.plan(net, loss=...)")
    if argument == arg.PLAN and problem == arg.NO_TANGENT:
        raise ValueError("a layer of this plan has no tangent kernels, which second derivatives need")
    if argument == arg.PLAN and problem == arg.NO_LIKELIHOOD:
        raise ValueError("this plan's loss is no negative log-likelihood and has no Fisher matrix")
    if argument == arg.PLAN and problem == arg.FORWARD_ONLY:
        raise ValueError("a decoding plan only runs forward")
    if argument == arg.PLAN and problem == arg.COUPLED:
        raise ValueError("the samples of this plan change each other's outputs; make one with mode='inference'")
    if argument == arg.CALL_STEP and problem == arg.STEP_RANGE:
        raise ValueError("step must be in 0..2**40 - 1")
    if argument == arg.CALL_STEP:
        raise ValueError("step must be a position that the decoding plan's network has")
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
    "",
    "",
    "",
    "is for networks with a layer that takes lengths, which this one has not",
    "must hold lengths from 1 to the network's longest",
    "does not exist where x holds integers; pass None",
    "",
    "",
    "",
    "brings too few samples for the statistics of a batch",
    "",
    "",
    "must lie in the range of the loss's targets",
)

_raise_signature = types.void(types.int64)
_RAISE = Untyped(_raise_status, lambda dtype: _raise_signature)
_call_raise = propagating_call(_raise_signature)


# What each argument of a call must be in compiled code: "data" may also hold integers, "optional" may be None.
_ROLES = {
    "params": "array",
    "x": "data",
    "target": "data",
    "grads": "written",
    "work": "written",
    "weights": "optional",
    "state": "written or None",
    "y": "written",
    "dy": "array",
    "dx": "optional",
    "dx_out": "written or None",
    "v": "array",
    "v_or_none": "optional",
    "out": "written",
    "lengths": "integers or None",
}


def check_types(function, plan, step, accumulate=False, **given):
    """Typing errors that name the argument; `given` has the Numba type of each, by a name of `_ROLES`."""
    if not isinstance(plan, PlanType):
        raise TypingError(f"nbprop.{function}: plan must be what nbprop.plan(...) returns, got {plan}")
    if not isinstance(step, (int, types.Integer, types.Omitted)):
        raise TypingError(f"nbprop.{function}: step must be an integer, got {step}")
    if not isinstance(accumulate, (bool, types.Boolean, types.Omitted)):
        raise TypingError(f"nbprop.{function}: accumulate must be True or False, got {accumulate}")
    for key, found in given.items():
        role, name = _ROLES[key], key.split("_")[0]
        absent = found is None or isinstance(found, (types.NoneType, types.Omitted))
        if absent and (role == "optional" or role.endswith("or None")):
            continue
        if not isinstance(found, types.Array):
            raise TypingError(f"nbprop.{function}: {name} must be an array, got {found}")
        if found.layout != "C" and found.ndim > 0:
            raise TypingError(f"nbprop.{function}: {name} must be C-contiguous; its type is {found}")
        if role == "integers or None" and not isinstance(found.dtype, types.Integer):
            raise TypingError(f"nbprop.{function}: {name} must hold integers, got {found.dtype}")
        if role == "integers or None":
            continue
        if found.dtype != plan.dtype and not (role == "data" and isinstance(found.dtype, types.Integer)):
            raise TypingError(f"nbprop.{function}: {name} must hold {plan.dtype} as the plan does, got {found.dtype}")
        if role.startswith("written") and not found.mutable:
            raise TypingError(f"nbprop.{function}: {name} is written and must not be read-only; its type is {found}")


def describer(*places):
    """The intrinsic that describes the arrays of a tuple at these places of a block."""
    return describe_arguments(places, arg.DESCRIPTION, elements.element_code_of_type)


@njit
def enter(entry, plan, block, accumulate, step):
    """Call an entry with a filled block; its result, or an exception."""
    store(block, arg.ACCUMULATE, 1 if accumulate else 0)
    store(block, arg.STEP, step)
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


def entry_fingerprint(function):
    """What compiled code looks an entry up by."""
    return np.int64(ENTRIES[function].fingerprint())


@overload(forward, jit_options=FLAGS, strict=False)
def _forward(plan, params, x, y, work, state=None, step=0, lengths=None):
    check_types("forward", plan, step, params=params, x=x, y=y, work=work, state=state, lengths=lengths)
    entry = entry_fingerprint("forward")
    describe = describer(arg.PARAMS, arg.X, arg.Y, arg.WORK, arg.STATE, arg.LENGTHS)

    def run(plan, params, x, y, work, state=None, step=0, lengths=None):
        block = stack_words(_BLOCK)
        describe(block, (params, x, y, work, state, lengths))
        enter(entry, plan_address(plan), block, False, step)

    return run


@overload(value, jit_options=FLAGS, strict=False)
def _value(plan, params, x, target, work, weights=None, state=None, step=0, lengths=None):
    given = {"params": params, "x": x, "target": target, "work": work}
    check_types("value", plan, step, **given, weights=weights, state=state, lengths=lengths)
    entry = entry_fingerprint("value")
    describe = describer(arg.PARAMS, arg.X, arg.TARGET, arg.WORK, arg.WEIGHTS, arg.STATE, arg.LENGTHS)

    def run(plan, params, x, target, work, weights=None, state=None, step=0, lengths=None):
        block = stack_words(_BLOCK)
        describe(block, (params, x, target, work, weights, state, lengths))
        return enter(entry, plan_address(plan), block, False, step)

    return run


@overload(value_and_grad, jit_options=FLAGS, strict=False)
def _value_and_grad(
    plan, params, x, target, grads, work, weights=None, accumulate=False, state=None, step=0, lengths=None
):
    given = {"params": params, "x": x, "target": target, "grads": grads, "work": work}
    check_types("value_and_grad", plan, step, accumulate, **given, weights=weights, state=state, lengths=lengths)
    entry = entry_fingerprint("value_and_grad")
    describe = describer(arg.PARAMS, arg.X, arg.TARGET, arg.GRADS, arg.WORK, arg.WEIGHTS, arg.STATE, arg.LENGTHS)

    def run(plan, params, x, target, grads, work, weights=None, accumulate=False, state=None, step=0, lengths=None):
        block = stack_words(_BLOCK)
        describe(block, (params, x, target, grads, work, weights, state, lengths))
        return enter(entry, plan_address(plan), block, accumulate, step)

    return run


@overload(backward, jit_options=FLAGS, strict=False)
def _backward(plan, params, x, dy, grads, dx, work, accumulate=False, state=None, step=0, lengths=None):
    given = {"params": params, "x": x, "dy": dy, "grads": grads, "dx_out": dx, "work": work}
    check_types("backward", plan, step, accumulate, **given, state=state, lengths=lengths)
    entry = entry_fingerprint("backward")
    describe = describer(arg.PARAMS, arg.X, arg.DY, arg.GRADS, arg.DX, arg.WORK, arg.STATE, arg.LENGTHS)

    def run(plan, params, x, dy, grads, dx, work, accumulate=False, state=None, step=0, lengths=None):
        block = stack_words(_BLOCK)
        describe(block, (params, x, dy, grads, dx, work, state, lengths))
        enter(entry, plan_address(plan), block, accumulate, step)

    return run
