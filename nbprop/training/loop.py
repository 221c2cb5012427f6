"""Training steps in compiled code: shuffle, gather the rows of a batch, gradient, clip, update, over epochs.

One block of words, the job, holds all addresses and the position of the training. `run_steps` continues from there for
a number of steps; it allocates nothing and knows no shapes, so it is compiled once for all networks, dtypes and data.
The rows of a batch are copied as bytes, by all threads; without shuffling, they are used in place.
"""

import ctypes

import numpy as np
from numba import types

from nbprop.compiler.intrinsics import (
    array_at,
    as_frame,
    call_c,
    indirect_call,
    load,
    load_double,
    store,
    store_double,
    symbol_address,
)
from nbprop.compiler.jit import njit
from nbprop.compiler.native import CompiledEntry
from nbprop.compiler.registry import find
from nbprop.numerics.partition import share
from nbprop.numerics.random import SHUFFLE, bounded, stream
from nbprop.optimizers import clipping, max_norm, proximal
from nbprop.optimizers import update_rules as rules
from nbprop.program import elements, table
from nbprop.runtime import arguments as arg
from nbprop.runtime.walker import walk
from nbprop.training import averaging

# Position of the training.
EPOCH, POSITION, STEP, SHUFFLED, DONE = range(5)  # POSITION: samples of this epoch seen; DONE: steps of this call
LOSS_SUM, WEIGHT_SUM = 5, 6  # float64: of this epoch, sum(loss weight) and sum(weight) over batches
LOWEST, LOWEST_EPOCH = 7, 8  # the lowest mean loss of an epoch (float64), and the number of that epoch
RECORD_COUNT = 9
STATUS, LOSS = 10, 11  # on failure: status of the gradient's call; the loss or norm that is not finite (float64)
# Settings.
ENTRY, PLAN, N, BATCH, EPOCHS, SEED, SHUFFLES, STOPS, THREADS = range(12, 21)  # STOPS: return at the end of each epoch
RATES, RECORDS, ORDER, PARAMS, BEST, PARAM_BYTES, MEMMOVE = range(21, 28)  # addresses
CLIP_VALUE, CLIP_NORM = 28, 29  # fingerprints of kernels, 0 for none
WEIGHT_CODE = 30  # element code of the sample weights, 0 for none
# Four columns of data (x, target, weights, lengths): base, bytes a row, batch buffer.
COLUMNS, N_COLUMNS = 32, 4
BASE, ROW_BYTES, BUFFER, COLUMN = 0, 1, 2, 3
# Snapshots are the parameters, then the layer state. BEGUN: at the beginning of this epoch (0: keep none), BEST: at the
# beginning of the epoch with the lowest mean loss. LAYERS: address of the layer state; LAYER_BYTES: 0 for none.
LAYERS, BEGUN, LAYER_BYTES = range(44, 47)
# Rows of an op table, three words of header each (see table.py): the gather and the update.
GATHER = 48
GATHERED = GATHER + table.OPERANDS  # operands: the job's address, samples
UPDATE = GATHERED + 2
UPDATED = UPDATE + table.OPERANDS
CLIP_VALUE_ROW = UPDATED + proximal.ROW
CLIP_NORM_ROW = CLIP_VALUE_ROW + clipping.ROW
# Shapes of the columns of a batch, and the argument block of the call.
SHAPES = CLIP_NORM_ROW + clipping.ROW
SHAPE = 1 + table.MAX_RANK
CALL = SHAPES + N_COLUMNS * SHAPE
# A row that averages the parameters (averaging.py); how; the first step and the first epoch that count; its rate.
MEAN = CALL + arg.BLOCK
MEANT = MEAN + table.OPERANDS
AVERAGES, MEAN_STEP, MEAN_EPOCH, MEAN_RATE = range(MEANT + averaging.ROW, MEANT + averaging.ROW + 4)
# A row that takes the mean of several batches' gradients; how many (0: each is an update); the sum of their weights.
SUM = MEAN_RATE + 1
SUMMED = SUM + table.OPERANDS
ACCUMULATES, SUM_WEIGHT = SUMMED + averaging.ROW, SUMMED + averaging.ROW + 1
WEIGHT = SUM_WEIGHT + 1  # of the samples that `gradient_of` took (float64)
# A row that projects weights after each update (max_norm.py); its kernel is 0 for none.
PROJECT = WEIGHT + 1
PROJECTED = PROJECT + table.OPERANDS
WORDS = PROJECTED + max_norm.ROW

MOST_RECORDS = 4096  # epochs in one call; two float64 each: mean loss, learning rate
MOST_RATES = 16384  # steps in one call

# Outcomes of `run_steps`.
GO_ON, EPOCH_ENDED, NOT_FINITE, FAILED = range(4)

_SHUFFLE_PIECE = 1 << 20  # samples shuffled between returns to Python: some 20 ms
_SMALL_ROW = 128  # bytes; a C call would take longer than copying so few
_SPLIT_PARAMS = 1 << 15  # an update of fewer parameters ends before another thread wakes
_SPLIT_BYTES = 1 << 15

ARGUMENTS = (arg.X, arg.TARGET, arg.WEIGHTS, arg.LENGTHS)
_entry_signature = types.int64(types.int64, types.int64)
_call_entry = indirect_call(_entry_signature)
_call_kernel = indirect_call(types.int64(types.int64, types.int64, types.int64, types.int64))


@njit
def _copy_row(target, source, count, memmove):
    """Copy `count` bytes."""
    if count <= _SMALL_ROW and count % 4 == 0:
        words = as_frame(0, np.int32)
        to, of = array_at(words, target, count // 4), array_at(words, source, count // 4)
        for i in range(to.size):
            to[i] = of[i]
    else:
        call_c(memmove, (target, source, count))


def gather(frame, row, part, parts):
    """Copy the rows of a batch, in the shuffled order, into the batch buffers."""
    job, n = load(row, 0), load(row, 1)
    first, last = share(n, part, parts)
    order = array_at(as_frame(0, np.uint32), load(job, ORDER), load(job, N))
    begin, memmove = load(job, POSITION), load(job, MEMMOVE)
    for column in range(N_COLUMNS):
        here = COLUMNS + column * COLUMN
        base, count, buffer = load(job, here + BASE), load(job, here + ROW_BYTES), load(job, here + BUFFER)
        if base != 0:
            for i in range(first, last):
                sample = np.int64(order[begin + i])
                _copy_row(buffer + i * count, base + sample * count, count, memmove)
    return 0


GATHER_OP = CompiledEntry(gather, lambda dtype: types.int64(types.int64, types.int64, types.int64, types.int64))


@njit
def _run_op(job, row, threads):
    """Run one row of an op table within the job."""
    start = job + 8 * row
    return walk(0, start, start + 8 * load(start, table.LENGTH), symbol_address("nbprop_pool"), threads, 0)


@njit
def shuffle_more(job):
    """Continue the permutation of this epoch; returns whether it is complete.

    numerics.random.permutation(seed, epoch), in pieces, since for 1e9 samples it takes seconds.
    """
    n, done = load(job, N), load(job, SHUFFLED)
    order = array_at(as_frame(0, np.uint32), load(job, ORDER), n)
    seed, key = load(job, SEED), stream(SHUFFLE, 0, load(job, EPOCH))
    stop = min(n, done + _SHUFFLE_PIECE)
    for i in range(done, stop):
        j = bounded(seed, key, i, i + 1)
        order[i] = order[j]
        order[j] = i
    store(job, SHUFFLED, stop)
    return stop == n


@njit
def _take_batch(job, n):
    """Point the argument block at the next n samples: gathered into the buffers, or in place."""
    begin = load(job, POSITION)
    if load(job, SHUFFLES):
        store(job, GATHERED + 1, n)
        large = n * load(job, COLUMNS + ROW_BYTES) >= _SPLIT_BYTES
        _run_op(job, GATHER, load(job, THREADS) if large else 1)
    for column in range(N_COLUMNS):
        here = COLUMNS + column * COLUMN
        if load(job, here + BASE) != 0:
            place = load(job, here + BASE) + begin * load(job, here + ROW_BYTES)
            store(job, SHAPES + column * SHAPE, n)
            words = CALL + ARGUMENTS[column] * arg.DESCRIPTION
            store(job, words + arg.DATA, load(job, here + BUFFER) if load(job, SHUFFLES) else place)
    store(job, CALL + arg.SAMPLES, 0)


@njit
def _batch_weight(job, n):
    """The sum of the weights of the batch, in index order; n without weights."""
    code = load(job, WEIGHT_CODE)
    if code == 0:
        return float(n)
    address, total = load(job, CALL + arg.WEIGHTS * arg.DESCRIPTION + arg.DATA), 0.0
    if code == elements.FLOAT32:
        weights = array_at(as_frame(0, np.float32), address, n)
        for i in range(n):
            total += np.float64(weights[i])
    else:
        for i in range(n):
            total += load_double(address, i)
    return total


@njit
def _clip(job):
    """Clip as configured; returns whether the norm, if it is computed, is finite."""
    if load(job, CLIP_VALUE) != 0:
        _call_kernel(find(load(job, CLIP_VALUE)), (0, job + 8 * CLIP_VALUE_ROW, 0, 1))
    if load(job, CLIP_NORM) == 0:
        return True
    _call_kernel(find(load(job, CLIP_NORM)), (0, job + 8 * CLIP_NORM_ROW, 0, 1))
    norm = load_double(job, CLIP_NORM_ROW + clipping.ROW_NORM)
    if np.isfinite(norm):
        return True
    store_double(job, LOSS, norm)
    return False


@njit
def _average(job, rate):
    """Move the mean of the parameters towards these."""
    store_double(job, MEANT + averaging.ROW_RATE, rate)
    large = load(job, UPDATED + rules.N) >= _SPLIT_PARAMS
    _run_op(job, MEAN, load(job, THREADS) if large else 1)


@njit
def _average_step(job):
    """Average after a step, if this run does; until the mean begins, it is the parameters themselves."""
    how = load(job, AVERAGES)
    if how == averaging.EACH_STEP:
        first = load(job, STEP) - load(job, MEAN_STEP) < max(1, load(job, ACCUMULATES))
        _average(job, 1.0 if first else load_double(job, MEAN_RATE))
    elif how == averaging.EACH_EPOCH and load(job, EPOCH) <= load(job, MEAN_EPOCH):
        _average(job, 1.0)


@njit
def _average_epoch(job):
    """Average at the end of an epoch, if this run does."""
    how, ends = load(job, AVERAGES), load(job, EPOCH) - load(job, MEAN_EPOCH) + 1
    if how == averaging.BY_OPTIMIZER or (how == averaging.EACH_EPOCH and ends > 1):
        _average(job, 1.0 / ends)


@njit
def _accumulated(job, n, weight):
    """Add the gradient of n samples to the mean of those before; returns whether it is time for an update."""
    several = load(job, ACCUMULATES)
    if several == 0:
        return True
    begin, batch = load(job, POSITION), load(job, BATCH)
    place = begin // batch % several
    total = weight + (load_double(job, SUM_WEIGHT) if place > 0 else 0.0)
    store_double(job, SUM_WEIGHT, total)
    if weight > 0.0:
        store_double(job, SUMMED + averaging.ROW_RATE, weight / total)
        large = load(job, UPDATED + rules.N) >= _SPLIT_PARAMS
        _run_op(job, SUM, load(job, THREADS) if large else 1)
    return total > 0.0 and (place == several - 1 or begin + n == load(job, N))


@njit
def _update_number(job):
    """The number of the next update, from 0, which a bias correction counts."""
    several = load(job, ACCUMULATES)
    if several == 0:
        return load(job, STEP)
    batches = (load(job, N) + load(job, BATCH) - 1) // load(job, BATCH)
    return load(job, EPOCH) * ((batches + several - 1) // several) + load(job, POSITION) // load(job, BATCH) // several


@njit
def _gradient(job, n, step):
    """The gradient of the next n samples, whose weight and loss are kept as WEIGHT and LOSS; whether it was computed.

    step: keys dropout.
    """
    _take_batch(job, n)
    store(job, CALL + arg.STEP, step)
    weight = _batch_weight(job, n)
    store_double(job, WEIGHT, weight)
    if weight > 0.0:
        failed, status = _call_entry(load(job, ENTRY), (load(job, PLAN), job + 8 * CALL))
        if failed != 0 or status != 0:
            store(job, STATUS, status)
            return False
        store_double(job, LOSS, load_double(job, CALL + arg.RESULT))
    return True


@njit
def gradient_of(job, first, n, step):
    """`_gradient` of samples first .. first + n - 1 of the batch."""
    begin = load(job, POSITION)
    store(job, POSITION, begin + first)
    computed = _gradient(job, n, step)
    store(job, POSITION, begin)
    return computed


@njit
def _one_step(job, rate):
    """One batch: its gradient and an update; returns an outcome. NOT_FINITE and FAILED leave everything unchanged."""
    n = min(load(job, BATCH), load(job, N) - load(job, POSITION))
    if not _gradient(job, n, load(job, STEP)):
        return FAILED
    outcome, updates = update(job, n, rate)
    if outcome == GO_ON:
        end_step(job, n, updates)
    return outcome


@njit
def update(job, n, rate):
    """Update by the gradient of n samples; returns an outcome, and whether it was time for an update."""
    weight = load_double(job, WEIGHT)
    if weight > 0.0 and not np.isfinite(load_double(job, LOSS)):
        return NOT_FINITE, False
    updates = _accumulated(job, n, weight)
    if updates and (weight > 0.0 or load(job, ACCUMULATES) > 0):
        if not _clip(job):
            return NOT_FINITE, False
        store(job, UPDATED + rules.STEP, _update_number(job))
        store_double(job, UPDATED + rules.HYPERPARAMETERS, rate)
        large = load(job, UPDATED + rules.N) >= _SPLIT_PARAMS
        if _run_op(job, UPDATE, load(job, THREADS) if large else 1) != 0:
            store(job, STATUS, arg.FAILED)
            return FAILED, False
    return GO_ON, updates


@njit
def end_step(job, n, updates):
    """What follows the update, of all parameters, by n samples."""
    weight, loss = load_double(job, WEIGHT), load_double(job, LOSS)
    if weight > 0.0:
        store_double(job, LOSS_SUM, load_double(job, LOSS_SUM) + loss * weight)
        store_double(job, WEIGHT_SUM, load_double(job, WEIGHT_SUM) + weight)
    if updates:
        if load(job, PROJECT + table.KERNEL) != 0 and (weight > 0.0 or load(job, ACCUMULATES) > 0):
            large = load(job, UPDATED + rules.N) >= _SPLIT_PARAMS
            _run_op(job, PROJECT, load(job, THREADS) if large else 1)
        _average_step(job)
    store(job, POSITION, load(job, POSITION) + n)
    store(job, STEP, load(job, STEP) + 1)


@njit
def _end_epoch(job, rate):
    """Record the epoch, keep the snapshot of its beginning if its mean loss is the lowest, and begin the next epoch.

    That mean is not the loss of any one set of parameters, since they changed. The beginning of the epoch is safer to
    keep than its end: had the last update before it diverged, the first loss of this epoch would show it.
    """
    loss = load_double(job, LOSS_SUM) / load_double(job, WEIGHT_SUM)
    count = load(job, RECORD_COUNT)
    store_double(load(job, RECORDS), 2 * count, loss)
    store_double(load(job, RECORDS), 2 * count + 1, rate)
    store(job, RECORD_COUNT, count + 1)
    _average_epoch(job)
    if load(job, BEGUN) != 0:
        if loss < load_double(job, LOWEST):
            store_double(job, LOWEST, loss)
            store(job, LOWEST_EPOCH, load(job, EPOCH))
            best = load(job, BEST)
            store(job, BEST, load(job, BEGUN))
            store(job, BEGUN, best)
        begun, size = load(job, BEGUN), load(job, PARAM_BYTES)
        call_c(load(job, MEMMOVE), (begun, load(job, PARAMS), size))
        if load(job, LAYER_BYTES) > 0:
            call_c(load(job, MEMMOVE), (begun + size, load(job, LAYERS), load(job, LAYER_BYTES)))
    store(job, EPOCH, load(job, EPOCH) + 1)
    store(job, POSITION, 0)
    store(job, SHUFFLED, 0)
    store_double(job, LOSS_SUM, 0.0)
    store_double(job, WEIGHT_SUM, 0.0)


@njit
def end_epoch(job, rate):
    """After a step: end the epoch if it was its last; returns whether to return to Python then."""
    if load(job, POSITION) < load(job, N):
        return False
    _end_epoch(job, rate)
    full = load(job, RECORD_COUNT) == MOST_RECORDS
    return full or load(job, STOPS) != 0 or load(job, EPOCH) == load(job, EPOCHS)


@njit
def run_steps(job, steps):
    """Run up to `steps` steps; returns an outcome. RATES holds the learning rate of each."""
    store(job, DONE, 0)
    store(job, RECORD_COUNT, 0)
    for i in range(steps):
        if load(job, SHUFFLES) and load(job, SHUFFLED) < load(job, N) and not shuffle_more(job):
            return GO_ON
        rate = load_double(load(job, RATES), i)
        outcome = _one_step(job, rate)
        if outcome != GO_ON:
            return outcome
        store(job, DONE, i + 1)
        if end_epoch(job, rate):
            return EPOCH_ENDED
    return GO_ON


def memmove_address():
    """The address of C's memmove."""
    return ctypes.cast(ctypes.memmove, ctypes.c_void_p).value
