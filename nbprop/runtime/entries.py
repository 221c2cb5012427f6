"""The compiled walker, and the entry of every public function that walks.

An entry checks its arguments, fills a frame on its own stack and walks one program of the plan's table; it allocates
nothing. Entries take two addresses, a plan's table and a call's block (arguments.py), and return a status.
"""

from numba import types

from nbprop.compiler.intrinsics import load
from nbprop.compiler.jit import njit
from nbprop.compiler.native import Untyped
from nbprop.program import elements, table
from nbprop.runtime import arguments as arg
from nbprop.runtime.arguments import (
    check_classes,
    check_flat,
    check_lengths,
    check_samples,
    check_target_range,
    check_written,
)
from nbprop.runtime.walker import run_program

# -- entries -------------------------------------------------------------------------------------------------

_FORWARD, _VALUE = arg.WRITTEN["forward"], arg.WRITTEN["value"]
_GRADIENT, _BACKWARD = arg.WRITTEN["value_and_grad"], arg.WRITTEN["backward"]


@njit
def given(block, argument):
    """Whether an argument was given."""
    return load(block, argument * arg.DESCRIPTION + arg.SHAPE) != 0


@njit
def check_inputs(plan, block):
    """What every entry takes: params, x, work, state where the network has one, lengths where they are given."""
    if load(plan, table.VERSION) != table.TABLE_VERSION:
        return arg.PLAN * 64 + arg.OUTDATED
    status = check_flat(plan, block, arg.PARAMS, load(plan, table.N_PARAMS), False, False)
    if status == 0:
        status = check_samples(plan, block, arg.X, load(plan, table.X_CODE), table.X_SHAPE, False)
    if status == 0 and load(block, arg.SAMPLES) < load(plan, table.LEAST):
        status = arg.X * 64 + arg.TOO_FEW
    if status == 0 and load(plan, table.X_CODE) == elements.ANY_INTEGER:
        status = check_classes(block, arg.X, load(plan, table.CLASSES))
    if status == 0:
        status = check_flat(plan, block, arg.WORK, load(plan, table.WORK), True, True)
    if status == 0 and (load(plan, table.STATE) > 0 or given(block, arg.STATE)):
        status = check_flat(plan, block, arg.STATE, load(plan, table.STATE), False, True)
    if status == 0 and given(block, arg.LENGTHS):
        status = check_lengths(plan, block)
    if status == 0 and not 0 <= load(block, arg.STEP) < arg.STEPS:
        status = arg.CALL_STEP * 64 + arg.STEP_RANGE
    positions = load(plan, table.POSITIONS)
    if status == 0 and positions > 0 and not 0 <= load(block, arg.STEP) < positions:
        status = arg.CALL_STEP * 64 + arg.POSITION_RANGE
    return status


@njit
def check_target(plan, block):
    """The target, its classes, and sample weights where given."""
    code = load(plan, table.TARGET_CODE)
    if code == 0:
        return arg.PLAN * 64 + arg.NO_LOSS
    status = check_samples(plan, block, arg.TARGET, code, table.TARGET_SHAPE, False)
    if status == 0 and code == elements.ANY_INTEGER:
        status = check_classes(block, arg.TARGET, load(plan, table.TARGET_CLASSES))
    elif status == 0:
        status = check_target_range(plan, block)
    if status == 0 and given(block, arg.WEIGHTS):
        status = check_flat(plan, block, arg.WEIGHTS, load(block, arg.SAMPLES), False, False)
    return status


@njit
def forward_entry(plan, block):
    """y = network(x)."""
    status = check_inputs(plan, block)
    if status == 0:
        status = check_samples(plan, block, arg.Y, load(plan, table.DTYPE), table.Y_SHAPE, True)
    if status == 0:
        status = check_written(block, _FORWARD)
    return run_program(plan, block, table.FORWARD) if status == 0 else status


@njit
def value_entry(plan, block):
    """The loss."""
    status = check_inputs(plan, block)
    if status == 0:
        status = check_target(plan, block)
    if status == 0:
        status = check_written(block, _VALUE)
    return run_program(plan, block, table.VALUE) if status == 0 else status


@njit
def value_and_grad_entry(plan, block):
    """The loss and its gradient."""
    status = check_inputs(plan, block)
    if status == 0:
        status = check_target(plan, block)
    if status == 0:
        status = check_flat(plan, block, arg.GRADS, load(plan, table.N_PARAMS), False, True)
    if status == 0:
        status = check_written(block, _GRADIENT)
    return run_program(plan, block, table.VALUE_AND_GRAD) if status == 0 else status


@njit
def check_backward(plan, block):
    """What a way back from the caller's dy takes and writes."""
    status = check_inputs(plan, block)
    if status == 0 and load(plan, table.POSITIONS) > 0:
        return arg.PLAN * 64 + arg.FORWARD_ONLY
    if status == 0 and given(block, arg.DX) and load(plan, table.X_CODE) == elements.ANY_INTEGER:
        return arg.DX * 64 + arg.NO_DERIVATIVE
    if status == 0:
        status = check_samples(plan, block, arg.DY, load(plan, table.DTYPE), table.Y_SHAPE, False)
    if status == 0:
        status = check_flat(plan, block, arg.GRADS, load(plan, table.N_PARAMS), False, True)
    if status == 0 and given(block, arg.DX):
        status = check_samples(plan, block, arg.DX, load(plan, table.DTYPE), table.X_SHAPE, True)
    return check_written(block, _BACKWARD) if status == 0 else status


@njit
def backward_entry(plan, block):
    """grads (and dx, when given) from dy, after forward on the same work."""
    status = check_backward(plan, block)
    if status != 0:
        return status
    return run_program(plan, block, table.BACKWARD_INPUT if given(block, arg.DX) else table.BACKWARD)


def _entry_signature(dtype):
    return types.int64(types.int64, types.int64)


def entry(function):
    """An entry as compiled code reaches it."""
    return Untyped(function, _entry_signature)


ENTRIES = {
    "forward": entry(forward_entry),
    "value": entry(value_entry),
    "value_and_grad": entry(value_and_grad_entry),
    "backward": entry(backward_entry),
}
