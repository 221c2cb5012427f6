"""The compiled walker, and the entry of every public function that walks.

An entry checks its arguments, fills a frame on its own stack and walks one program of the plan's table; it allocates
nothing. Entries take two addresses, a plan's table and a call's block (arguments.py), and return a status.
"""

from numba import types

from nbprop import arguments as arg
from nbprop import frame, table, threads
from nbprop.arguments import (
    check_classes,
    check_flat,
    check_lengths,
    check_samples,
    check_target_range,
    check_written,
)
from nbprop.jit import Untyped, find, njit
from nbprop.numerics.intrinsics import (
    atomic_add,
    atomic_exchange,
    atomic_load,
    indirect_call,
    load,
    load_double,
    stack_words,
    store,
    store_double,
    symbol_address,
)

_FRAME_WORDS = frame.WORDS
SPACE_OF_ARGUMENT = (
    (arg.PARAMS, frame.PARAMS),
    (arg.X, frame.X),
    (arg.TARGET, frame.TARGET),
    (arg.GRADS, frame.GRADS),
    (arg.WORK, frame.WORK),
    (arg.WEIGHTS, frame.WEIGHTS),
    (arg.STATE, frame.STATE),
    (arg.Y, frame.Y),
    (arg.DY, frame.DY),
    (arg.DX, frame.DX),
    (arg.V, frame.TANGENT),
    (arg.OUT, frame.OUT),
    (arg.LENGTHS, frame.LENGTHS),
)

_call_kernel = indirect_call(types.int64(types.int64, types.int64, types.int64, types.int64))


@njit
def walk_alone(frame_address, begin, end):
    """Run the rows in [begin, end) on this thread; 0, or the address of the row whose kernel failed."""
    row = begin
    while row < end:
        kernel = find(load(row, table.KERNEL))
        if kernel == 0:
            return row
        status, value = _call_kernel(kernel, (frame_address, row + 8 * table.OPERANDS, 0, 1))
        if status != 0 or value != 0:
            return row
        row += 8 * load(row, table.LENGTH)
    return 0


@njit
def run_part(pool, frame_address, begin, end, part, parts):
    """One part of the segment that begins at a row; returns where the next begins. A failed kernel ends the part."""
    row = begin
    while row < end:
        kernel = find(load(row, table.KERNEL))
        failed = kernel == 0
        if not failed:
            status, value = _call_kernel(kernel, (frame_address, row + 8 * table.OPERANDS, part, parts))
            failed = status != 0 or value != 0
        if failed:
            atomic_exchange(pool, threads.FAILED, row)
            return end
        last = load(row, table.BARRIER) != 0
        row += 8 * load(row, table.LENGTH)
        if last:
            break
    return row


@njit
def worker_loop(pool, worker):
    """A worker's whole life: wait for a segment, do its part unless the caller has, again."""
    line = threads._WORKER + worker * threads.WORKER_WORDS
    segment = 0
    atomic_add(pool, threads.WORKERS, 1)
    while True:
        segment = threads.next_segment(pool, line, worker, segment)
        if threads.claim(pool, line, segment):
            # The segment stays open until this part is done.
            run_part(
                pool,
                load(pool, threads.FRAME),
                load(pool, threads.ROW),
                load(pool, threads.END),
                worker,
                segment & threads.PARTS,
            )
            threads.finish_part(pool, line, segment)


@njit
def walk_together(pool, frame_address, begin, end, parts):
    """Run rows on several threads, led by this one; 0, or the address of a row whose kernel failed."""
    store(pool, threads.FAILED, 0)
    store(pool, threads.FRAME, frame_address)
    store(pool, threads.END, end)
    row = begin
    while row < end:
        segment = threads.open_segment(pool, row, parts)
        behind = run_part(pool, frame_address, row, end, 0, parts)
        for part in range(1, parts):
            line = threads._WORKER + part * threads.WORKER_WORDS
            if threads.left_to_caller(pool, line, segment):
                run_part(pool, frame_address, row, end, part, parts)
            else:
                threads.await_part(pool, line, segment)
        failed = atomic_load(pool, threads.FAILED)
        if failed != 0:
            return failed
        row = behind
    return 0


@njit
def walk(frame_address, begin, end, pool, wanted):
    """Run rows on up to `wanted` threads; 0, or the address of the row whose kernel failed."""
    if wanted <= 1:
        return walk_alone(frame_address, begin, end)
    parts = threads.begin(pool, wanted) if atomic_add(pool, threads.ACTIVE, 1) == 0 else 1
    if parts > 1:
        failed = walk_together(pool, frame_address, begin, end, parts)
        threads.end(pool, parts)
    else:
        failed = walk_alone(frame_address, begin, end)
    atomic_add(pool, threads.ACTIVE, -1)
    return failed


@njit
def fill_frame(here, block):
    """Set a frame's bases and scalars from a checked call's block."""
    for argument, space in SPACE_OF_ARGUMENT:
        store(here, space, load(block, argument * arg.DESCRIPTION + arg.DATA))
    store(here, frame.N, load(block, arg.SAMPLES))
    store(here, frame.ACCUMULATE, load(block, arg.ACCUMULATE))
    store(here, frame.STEP, load(block, arg.STEP))
    store(here, frame.FIRST_SAMPLE, 0)
    store(here, frame.X_CODE, load(block, arg.X * arg.DESCRIPTION + arg.CODE))
    store(here, frame.TARGET_CODE, load(block, arg.TARGET * arg.DESCRIPTION + arg.CODE))
    store(here, frame.LENGTHS_CODE, load(block, arg.LENGTHS * arg.DESCRIPTION + arg.CODE))


@njit
def run_program(plan, block, program):
    """Walk a program with the arrays of a checked call's block."""
    here = stack_words(_FRAME_WORDS)
    fill_frame(here, block)
    begin = plan + 8 * load(plan, table.PROGRAMS + 2 * program)
    end = plan + 8 * load(plan, table.PROGRAMS + 2 * program + 1)
    failed = walk(here, begin, end, symbol_address("nbprop_pool"), load(plan, table.THREADS))
    store_double(block, arg.RESULT, load_double(here, frame.RESULT))
    return arg.FAILED + (failed - plan) // 8 if failed != 0 else 0


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
    if status == 0 and load(plan, table.X_CODE) == arg.ANY_INTEGER:
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
    if status == 0 and code == arg.ANY_INTEGER:
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
    if status == 0 and given(block, arg.DX) and load(plan, table.X_CODE) == arg.ANY_INTEGER:
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
