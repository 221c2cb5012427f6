"""The compiled walker: take a row of the table, find its kernel, call it, go on."""

import numpy as np
from numba import types

from nbprop.compiler.atomics import atomic_add, atomic_exchange, atomic_load
from nbprop.compiler.intrinsics import (
    indirect_call,
    load,
    load_double,
    stack_words,
    store,
    store_double,
    symbol_address,
    ticks,
)
from nbprop.compiler.jit import njit
from nbprop.compiler.registry import find
from nbprop.program import frame, table
from nbprop.runtime import arguments as arg
from nbprop.runtime import pool as threads

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

# A walk may pause if it takes so many multiplications, or its plan a workspace of so many elements: milliseconds, in
# which to look at the time after each row costs nothing that could be measured.
_LONG, _LARGE = 1 << 24, 1 << 22
_PIECE = 80_000_000  # nanoseconds that a walk takes before it pauses


@njit
def walk_alone(frame_address, begin, end, until):
    """Run the rows in [begin, end) on this thread; returns what `walk` does."""
    row = begin
    while row < end:
        kernel = find(load(row, table.KERNEL))
        if kernel == 0:
            return row
        status, value = _call_kernel(kernel, (frame_address, row + 8 * table.OPERANDS, 0, 1))
        if status != 0 or value != 0:
            return row
        row += 8 * load(row, table.LENGTH)
        if until != 0 and row < end and ticks() >= until:
            return -row
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
def walk_together(pool, frame_address, begin, end, parts, until):
    """Run rows on several threads, led by this one; returns what `walk` does."""
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
        if until != 0 and row < end and ticks() >= until:
            return -row
    return 0


@njit
def walk(frame_address, begin, end, pool, wanted, until):
    """Run rows on up to `wanted` threads.

    Returns 0, or the address of a row whose kernel failed, or minus the address of the row to go on with, where the
    count of `ticks` has reached `until` (0: it never does).
    """
    if wanted <= 1:
        return walk_alone(frame_address, begin, end, until)
    parts = threads.begin(pool, wanted) if atomic_add(pool, threads.ACTIVE, 1) == 0 else 1
    if parts > 1:
        failed = walk_together(pool, frame_address, begin, end, parts, until)
        threads.end(pool, parts)
    else:
        failed = walk_alone(frame_address, begin, end, until)
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
def pause_at(plan, block):
    """The count of ticks at which a walk that begins now pauses; 0: it does not, as it is short or may not."""
    if load(block, arg.MAY_PAUSE) == 0:
        return 0
    if load(block, arg.SAMPLES) * load(plan, table.N_PARAMS) < _LONG and load(plan, table.WORK) < _LARGE:
        return 0
    rate = load_double(symbol_address("nbprop_pool"), threads.RATE)
    # Where the rate is not known yet, at once: who resumes the walk finds it out.
    return ticks() + np.int64(_PIECE / rate) if rate > 0.0 else 1


@njit
def run_program(plan, block, program):
    """Walk a program with the arrays of a checked call's block; a status."""
    here = stack_words(_FRAME_WORDS)
    fill_frame(here, block)
    store_double(here, frame.RESULT, load_double(block, arg.RESULT))
    begin, resume = load(plan, table.PROGRAMS + 2 * program), load(block, arg.RESUME) & (arg.STAGE - 1)
    begin = plan + 8 * (resume if resume != 0 else begin)
    end = plan + 8 * load(plan, table.PROGRAMS + 2 * program + 1)
    pool, wanted = symbol_address("nbprop_pool"), load(plan, table.THREADS)
    failed = walk(here, begin, end, pool, wanted, pause_at(plan, block))
    store_double(block, arg.RESULT, load_double(here, frame.RESULT))
    if failed == 0:
        return 0
    return arg.FAILED + (failed - plan) // 8 if failed > 0 else arg.PAUSED + (-failed - plan) // 8
