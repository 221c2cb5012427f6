"""The compiled entry of every public function of a plan, made from its row in signatures.py.

An entry checks its arguments, fills a frame on its own stack and walks the plan's programs; it allocates nothing.
Entries take two addresses, a plan's table and a call's block (arguments.py), and return a status.
"""

from numba import types

from nbprop import messages as said
from nbprop.compiler.intrinsics import load
from nbprop.compiler.jit import njit
from nbprop.compiler.native import CompiledEntry
from nbprop.compiler.registry import find
from nbprop.program import elements, table
from nbprop.runtime import arguments as arg
from nbprop.runtime.arguments import (
    check_aliasing,
    check_array,
    check_classes,
    check_flat,
    check_lengths,
    check_samples,
    check_target_range,
)
from nbprop.runtime.signatures import ABSENT, NEEDED, OPTIONAL, SIGNATURES
from nbprop.runtime.walker import run_program

# -- checks --------------------------------------------------------------------------------------------------


@njit
def given(block, argument):
    """Whether an argument was given."""
    return load(block, argument * arg.DESCRIPTION + arg.SHAPE) != 0


@njit
def check_inputs(plan, block):
    """What every entry takes: params, x, work, state where the network has one, lengths where they are given."""
    if load(plan, table.VERSION) != table.TABLE_VERSION:
        return arg.PLAN * 64 + said.OUTDATED
    status = check_flat(plan, block, arg.PARAMS, load(plan, table.N_PARAMS), False, False)
    if status == 0:
        status = check_samples(plan, block, arg.X, load(plan, table.X_CODE), table.X_SHAPE, False)
    if status == 0 and load(block, arg.SAMPLES) < load(plan, table.MIN_SAMPLES):
        status = arg.X * 64 + said.TOO_FEW
    if status == 0 and load(plan, table.X_CODE) == elements.ANY_INTEGER:
        status = check_classes(block, arg.X, load(plan, table.CLASSES), 0)
    if status == 0:
        status = check_flat(plan, block, arg.WORK, load(plan, table.WORK), True, True)
    if status == 0 and (load(plan, table.STATE) > 0 or given(block, arg.STATE)):
        status = check_flat(plan, block, arg.STATE, load(plan, table.STATE), False, True)
    if status == 0 and given(block, arg.LENGTHS):
        status = check_lengths(plan, block)
    if status == 0 and not 0 <= load(block, arg.STEP) < arg.STEPS:
        status = arg.CALL_STEP * 64 + said.STEP_RANGE
    positions = load(plan, table.POSITIONS)
    if status == 0 and positions > 0 and not 0 <= load(block, arg.STEP) < positions:
        status = arg.CALL_STEP * 64 + said.POSITION_RANGE
    return status


@njit
def check_target(plan, block):
    """The target, its classes, and sample weights where given."""
    code = load(plan, table.TARGET_CODE)
    if code == 0:
        return arg.PLAN * 64 + said.NO_LOSS
    status = check_samples(plan, block, arg.TARGET, code, table.TARGET_SHAPE, False)
    if status == 0 and code == elements.ANY_INTEGER:
        status = check_classes(block, arg.TARGET, load(plan, table.TARGET_CLASSES), load(plan, table.TARGET_IGNORED))
    elif status == 0:
        status = check_target_range(plan, block)
    if status == 0 and given(block, arg.WEIGHTS):
        status = check_flat(plan, block, arg.WEIGHTS, load(block, arg.SAMPLES), False, False)
    return status


@njit
def check_rows(plan, block, outputs):
    """out is (samples * outputs, n_params)."""
    status = check_array(block, arg.OUT, load(plan, table.DTYPE), True)
    if status != 0:
        return status
    words = arg.OUT * arg.DESCRIPTION
    shape = load(block, words + arg.SHAPE)
    if load(block, words + arg.RANK) != 2:
        return arg.OUT * 64 + said.SHAPE_DIFFERS
    if load(shape, 0) != load(block, arg.SAMPLES) * outputs or load(shape, 1) != load(plan, table.N_PARAMS):
        return arg.OUT * 64 + said.SHAPE_DIFFERS
    return 0


@njit
def outputs_of(plan):
    """How many numbers the network gives for a sample."""
    outputs = 1
    for axis in range(load(plan, table.Y_SHAPE)):
        outputs *= load(plan, table.Y_SHAPE + 1 + axis)
    return outputs


@njit
def _refusal_of_plan(plan, forward, one_by_one):
    """Whether a plan cannot run a function, whatever its arguments; a status."""
    if not forward and load(plan, table.POSITIONS) > 0:
        return arg.PLAN * 64 + said.FORWARD_ONLY
    if one_by_one and load(plan, table.MIN_SAMPLES) > 0:
        return arg.PLAN * 64 + said.COUPLED
    return 0


def _check_of_out(shape):
    """The compiled check of `out`, by the name of its shape in signatures.OUTPUTS ("" for none)."""

    @njit
    def check(plan, block):
        if shape == "params":
            return check_flat(plan, block, arg.OUT, load(plan, table.N_PARAMS), False, True)
        if shape == "outputs":
            return check_samples(plan, block, arg.OUT, load(plan, table.DTYPE), table.Y_SHAPE, True)
        if shape == "output rows":
            return check_rows(plan, block, outputs_of(plan))
        return check_rows(plan, block, 1) if shape == "sample rows" else 0

    return check


def _check_of_written(signature):
    """The compiled check that each array a function writes, if it was given, shares no byte with any other.

    The last check of an entry: it reads the ends that `check_array` has stored for every array of the call. Each pair
    is compared once, without a branch; which argument to name is found out only if two overlap.
    """
    written = signature.written
    arrays = (*written, *(place for place in signature.arrays if place not in written))
    firsts, count = len(written), len(arrays)

    @njit
    def check(block):
        overlap = 0
        for i in range(firsts):
            words = arrays[i] * arg.DESCRIPTION
            start, stop = load(block, words + arg.DATA), load(block, words + arg.END)
            for j in range(i + 1, count):
                others = arrays[j] * arg.DESCRIPTION
                overlap |= (load(block, others + arg.DATA) < stop) & (start < load(block, others + arg.END))
        if overlap != 0:
            for argument in written:
                status = check_aliasing(block, argument)
                if status != 0:
                    return status
        return 0

    return check


def check_of(signature):
    """The compiled check of a call's arguments: a function of a plan's table and a call's block, to a status.

    The roles are constants of it, so that what the function does not take is not in its code.
    """
    role = signature.role
    target, dy, y, v, grads, dx = map(role, (arg.TARGET, arg.DY, arg.Y, arg.V, arg.GRADS, arg.DX))
    dx_written = arg.DX in signature.written
    forward, one_by_one = signature.name == "forward", signature.one_by_one
    check_out, check_written = _check_of_out(signature.out), _check_of_written(signature)

    @njit
    def check(plan, block):
        status = check_inputs(plan, block)
        if status == 0:
            status = _refusal_of_plan(plan, forward, one_by_one)
        if status == 0 and dx != ABSENT and given(block, arg.DX) and load(plan, table.X_CODE) == elements.ANY_INTEGER:
            status = arg.DX * 64 + said.NO_DERIVATIVE
        if status == 0 and target != ABSENT:
            status = check_target(plan, block)
        if status == 0 and dy != ABSENT:
            status = check_samples(plan, block, arg.DY, load(plan, table.DTYPE), table.Y_SHAPE, False)
        if status == 0 and y != ABSENT:
            status = check_samples(plan, block, arg.Y, load(plan, table.DTYPE), table.Y_SHAPE, True)
        # Of two directions that may be left out, one is needed.
        if status == 0 and (v == NEEDED or (v == OPTIONAL and (given(block, arg.V) or not given(block, arg.DX)))):
            status = check_flat(plan, block, arg.V, load(plan, table.N_PARAMS), False, False)
        if status == 0 and grads != ABSENT:
            status = check_flat(plan, block, arg.GRADS, load(plan, table.N_PARAMS), False, True)
        if status == 0:
            status = check_out(plan, block)
        if status == 0 and dx != ABSENT and given(block, arg.DX):
            status = check_samples(plan, block, arg.DX, load(plan, table.DTYPE), table.X_SHAPE, dx_written)
        return check_written(block) if status == 0 else status

    return check


# -- entries -------------------------------------------------------------------------------------------------


@njit
def load_kernels(plan, program):
    """Find every kernel of a program before threads set off: a first find may compile, which needs the interpreter.

    A status: 0, or that a layer has no tangents.
    """
    row = plan + 8 * load(plan, table.PROGRAMS + 2 * program)
    end = plan + 8 * load(plan, table.PROGRAMS + 2 * program + 1)
    if row == end:
        return arg.PLAN * 64 + said.NO_TANGENT
    while row < end:
        find(load(row, table.KERNEL))
        row += 8 * load(row, table.LENGTH)
    return 0


def walk_of(signature):
    """The compiled walk of a function's one program, or of the other one where dx is given."""
    program, with_dx = signature.program, signature.program_with_dx
    if with_dx is None:
        with_dx = program
    lazy = signature.beyond_gradients

    @njit
    def walk(plan, block):
        status = load_kernels(plan, program) if lazy else 0
        if status != 0:
            return status
        return run_program(plan, block, with_dx if given(block, arg.DX) else program)

    return walk


def _entry_signature(dtype):
    return types.int64(types.int64, types.int64)


def entry_of(name, walk=None):
    """The entry of a public function: the checks of its row of the table, then its walk."""
    signature = SIGNATURES[name]
    check, walk = check_of(signature), walk or walk_of(signature)

    @njit
    def entry(plan, block):
        status = check(plan, block)
        return walk(plan, block) if status == 0 else status

    return CompiledEntry(entry, _entry_signature, f"{__name__}.{name}")


# Those whose walk is more than one program are made in derivative_entries.py.
ENTRIES = {name: entry_of(name) for name in ("forward", "value", "value_and_grad", "backward", "vjp", "jvp", "hvp")}
