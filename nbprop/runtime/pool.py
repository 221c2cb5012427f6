"""Threads that walk one program together: a pool of native workers, led by the caller.

A worker is a Python thread that enters compiled code once and stays there, outside the interpreter. A walk is a
sequence of segments, the rows up to a barrier, and a segment has as many parts as the walk has threads. The caller
opens a segment and does part 0; each worker claims its own part. What no worker has claimed when the caller is done
with part 0, the caller does itself: so a worker that is asleep, late or without a core is never waited for, only one
that is at work. The bits do not depend on who does a part.

Whoever waits spins for a bounded time and then parks on a native lock of CPython's (PyThread_acquire_lock needs no
interpreter and exists wherever CPython does), so a caller that holds the interpreter's lock can wake workers and wait
for them. How many threads walk follows from what it costs: see `admit` and `judge`.

The pool serves one walk at a time. A caller that finds another walk under way walks alone, which gives the same bits:
callers from many threads (or from prange) fill the cores by themselves.
"""

import ctypes
import itertools
import time

import numpy as np

from nbprop import system
from nbprop.compiler.atomics import atomic_exchange, atomic_load, spin_pause
from nbprop.compiler.intrinsics import atomic_replace, call_c, load, load_double, stack_words, store, ticks
from nbprop.compiler.jit import njit

MAX_WORKERS = 255
_LINE = 8  # words in a cache line: words that different threads write stand on lines of their own
ACTIVE = 0 * _LINE  # walks under way of plans that want more than one thread; the first of them owns the pool
SEGMENT = (
    1 * _LINE
)  # the segment's number times 512, plus its parts; grows, so that an old one is never taken for a new
FRAME, ROW, END = SEGMENT + 1, SEGMENT + 2, SEGMENT + 3  # of the open segment
FAILED = 2 * _LINE  # the address of a row whose kernel failed, 0 while all is well
WORKERS = 3 * _LINE  # workers alive
CORES = WORKERS + 1  # the process's share of the processor, when last looked at
QUOTA = WORKERS + 2  # cores that a cgroup's quota is worth, when last looked at
INSIST = WORKERS + 3  # 1: every walk is on all its threads, whatever it costs (for tests)
LEADER_PARKED = 4 * _LINE
LEADER_LOCK = LEADER_PARKED + 1
LIMIT = 5 * _LINE  # threads of a walk, until UNTIL
UNTIL = LIMIT + 1  # when the number of threads is chosen again, in ns; 0: no limit is set
BEGAN, PREVIOUS = LIMIT + 2, LIMIT + 3  # when this walk and the one before it began
PARKED_FOR = LIMIT + 4  # ns that the caller has been parked in this walk
WATCHED = LIMIT + 5  # when the caller's processor time was last looked at
CPU_BEGAN = LIMIT + 6  # the caller's processor time when this walk began; -1: not looked at
RESTED = LIMIT + 7  # for how many times its loss the last lossy walk was followed by walks on fewer threads
ACQUIRE, RELEASE = 6 * _LINE, 6 * _LINE + 1  # addresses of C functions
CLOCK, CPU_CLOCK = 6 * _LINE + 2, 6 * _LINE + 3  # clock_gettime, and its number for a thread's processor time
AFFINITY = 6 * _LINE + 4  # sched_getaffinity
RATE = 6 * _LINE + 5  # a float64, the nanoseconds of a tick; 0: there is no counter, and nothing is measured
_WORKER = 7 * _LINE  # two lines for each worker
CLAIM, DONE = 0, 1  # the last segment whose part was claimed (by the worker or for it), and done (by the worker)
PARKED, LOCK = _LINE, _LINE + 1
WORKER_WORDS = 2 * _LINE
WORDS = _WORKER + (MAX_WORKERS + 1) * WORKER_WORDS
PARTS = 511  # the bits of SEGMENT that hold the parts

# Spins before the caller parks, and before a worker does: on x86 about 40 and 200 microseconds. To wake a parked one
# takes some 40, and a solver in Python may spend 100 between two gradients.
SPINS = 2000
WAITING_SPINS = 10_000

# Nanoseconds. To wake a worker costs the caller 5,000: not for a walk that would be over by then, unless walks come so
# often that the worker stays awake.
WAKE_AFTER = 20_000
OFTEN = 200_000
WATCH_EVERY = 50_000  # looking at the thread's processor time twice may take 2,000
RESTS = 8  # fewer threads walk for up to so many times what was lost: where losses go on, they are a ninth of the time
LONGEST_REST = 1_000_000_000
LOOK_EVERY = 100_000_000  # at the share of cores, where it is less than the threads

_pool = np.zeros(WORDS + _LINE, np.int64)
POOL_ADDRESS = (_pool.ctypes.data + 63) // 64 * 64
_words = _pool[(POOL_ADDRESS - _pool.ctypes.data) // 8 :][:WORDS]


# -- waiting -------------------------------------------------------------------------------------------------


@njit
def now(pool):
    """Nanoseconds since some moment."""
    return np.int64(ticks() * load_double(pool, RATE))


@njit
def wake(pool, parked, lock):
    """Wake whoever has parked there, if nobody else does."""
    if atomic_load(pool, parked) != 0 and atomic_exchange(pool, parked, 0) == 1:
        call_c(load(pool, RELEASE), (load(pool, lock),))


@njit
def next_segment(pool, line, worker, seen):
    """Wait for a segment other than `seen` with a part for this worker; spin a while, then park on its lock."""
    spins = 0
    while True:
        word = atomic_load(pool, SEGMENT)
        if word != seen and word & PARTS > worker:
            return word
        if spins < WAITING_SPINS:
            spin_pause()
            spins += 1
            continue
        atomic_exchange(pool, line + PARKED, 1)
        # A segment opened before PARKED was seen brings no wake-up; whoever takes the 1 back decides.
        word = atomic_load(pool, SEGMENT)
        mine = word != seen and word & PARTS > worker
        if not mine or atomic_exchange(pool, line + PARKED, 0) == 0:
            call_c(load(pool, ACQUIRE), (load(pool, line + LOCK), 1))
        spins = 0


@njit
def await_part(pool, line, segment):
    """The caller waits for a worker that is at work on its part: spins a while, then parks."""
    for _ in range(SPINS):
        if atomic_load(pool, line + DONE) == segment:
            return
        spin_pause()
    since = now(pool)
    while atomic_load(pool, line + DONE) != segment:
        atomic_exchange(pool, LEADER_PARKED, 1)
        if atomic_load(pool, line + DONE) != segment or atomic_exchange(pool, LEADER_PARKED, 0) == 0:
            call_c(load(pool, ACQUIRE), (load(pool, LEADER_LOCK), 1))
    store(pool, PARKED_FOR, load(pool, PARKED_FOR) + now(pool) - since)


# -- parts of segments ---------------------------------------------------------------------------------------


@njit
def open_segment(pool, row, parts):
    """Let the workers see the rows from `row` on; the segment's word. The caller owns the pool."""
    store(pool, ROW, row)
    segment = ((load(pool, SEGMENT) & ~PARTS) + PARTS + 1) | parts
    atomic_exchange(pool, SEGMENT, segment)
    for worker in range(1, parts):
        line = _WORKER + worker * WORKER_WORDS
        if atomic_load(pool, line + PARKED) != 0 and worth_waking(pool):
            wake(pool, line + PARKED, line + LOCK)
    return segment


@njit
def worth_waking(pool):
    """Whether this walk is long enough, or the walks are close enough to each other, to wake a parked worker."""
    if load(pool, INSIST) != 0 or load_double(pool, RATE) == 0.0:
        return True
    began = load(pool, BEGAN)
    return now(pool) - began >= WAKE_AFTER or began - load(pool, PREVIOUS) < OFTEN


@njit
def claim(pool, line, segment):
    """Whether the caller of this is the one who does the part; for each segment one is."""
    seen = atomic_load(pool, line + CLAIM)
    while seen < segment:
        before = atomic_replace(pool, line + CLAIM, seen, segment)
        if before == seen:
            return True
        seen = before
    return False


@njit
def left_to_caller(pool, line, segment):
    """Whether no worker has begun with a part; it is the caller's then."""
    return load(pool, INSIST) == 0 and claim(pool, line, segment)


@njit
def finish_part(pool, line, segment):
    """A worker is done with its part."""
    atomic_exchange(pool, line + DONE, segment)
    wake(pool, LEADER_PARKED, LEADER_LOCK)


# -- how many threads ----------------------------------------------------------------------------------------
#
# Threads pay where each has a core. Where other processes want the cores too, a worker is taken off its core in the
# middle of a part, or takes the caller's, and a walk of microseconds lasts for milliseconds. So what a walk has lost,
# the time in which the caller was parked or without a core, is held against the time that it took; where it is too
# much, walks are on fewer threads for a multiple of what was lost, and then try again.


@njit
def cores_now(pool):
    """The process's share of the processor at this moment, asked for without the interpreter."""
    cores, ask = load(pool, CORES), load(pool, AFFINITY)
    mask = stack_words(16)
    if ask != 0 and call_c(ask, (0, 8 * 16, mask)) & 0x7FFFFFFF == 0:
        cores = 0
        for k in range(16):
            word = load(mask, k)
            while word != 0:
                word &= word - 1
                cores += 1
        cores = min(cores, load(pool, QUOTA))
    return max(cores, 1)


@njit
def processor_time(pool):
    """Nanoseconds that this thread has had a core."""
    here = stack_words(2)
    call_c(load(pool, CLOCK), (load(pool, CPU_CLOCK), here))
    return load(here, 0) * 1_000_000_000 + load(here, 1)


@njit
def admit(pool, wanted, time):
    """How many threads a walk that begins at `time` is on."""
    most = load(pool, WORKERS) + 1
    until = load(pool, UNTIL)
    if until != 0 and time >= until:
        limit, cores = min(2 * load(pool, LIMIT), most), cores_now(pool)
        store(pool, LIMIT, limit)
        store(pool, CORES, cores)
        store(pool, WATCHED, 0)
        until = time + LOOK_EVERY if min(limit, cores) < most else 0
        store(pool, UNTIL, until)
    parts = min(wanted, most, load(pool, CORES))
    return min(parts, load(pool, LIMIT)) if until != 0 else parts


@njit
def judge(pool, parts, time, lasted, lost):
    """Think the number of threads over, after a walk on `parts` threads that lasted `lasted` and lost `lost` of it.

    Two threads that lose a third take at most 1.5 times as long as one. Of more, half as many without a loss would have
    been as fast as these if they lost half. The rest begins with once the loss, since it may not come again, and
    doubles while it does.
    """
    rests = load(pool, RESTED)
    if lost * (3 if parts == 2 else 2) <= lasted:
        store(pool, RESTED, rests // 2)
        return
    rests = max(1, min(2 * rests, RESTS))
    store(pool, RESTED, rests)
    store(pool, LIMIT, parts // 2)
    store(pool, CORES, cores_now(pool))
    store(pool, UNTIL, time + min(rests * lost, LONGEST_REST))


@njit
def begin(pool, wanted):
    """Begin a walk that owns the pool; returns how many threads it is on."""
    if load(pool, INSIST) != 0:
        return min(wanted, load(pool, WORKERS) + 1)
    if load_double(pool, RATE) == 0.0:
        return min(wanted, load(pool, WORKERS) + 1, load(pool, CORES))
    time = now(pool)
    parts = admit(pool, wanted, time)
    store(pool, PREVIOUS, load(pool, BEGAN))
    store(pool, BEGAN, time)
    store(pool, PARKED_FOR, 0)
    store(pool, CPU_BEGAN, -1)
    if parts > 1 and load(pool, CLOCK) != 0 and time - load(pool, WATCHED) >= WATCH_EVERY:
        store(pool, CPU_BEGAN, processor_time(pool))
        store(pool, BEGAN, now(pool))
    return parts


@njit
def end(pool, parts):
    """End a walk on more than one thread."""
    watching = load(pool, CPU_BEGAN)
    if load(pool, INSIST) != 0 or load_double(pool, RATE) == 0.0 or (watching < 0 and load(pool, PARKED_FOR) == 0):
        return
    time, lost = now(pool), load(pool, PARKED_FOR)
    lasted = time - load(pool, BEGAN)
    if watching >= 0:
        store(pool, WATCHED, time)
        lost = max(lost, lasted - (processor_time(pool) - watching))
    judge(pool, parts, time, lasted, lost)


# -- the workers ---------------------------------------------------------------------------------------------


def _c_functions():
    """Addresses, 0 for what the system lacks, and the number of the clock of a thread's processor time."""
    api, number = ctypes.pythonapi, system.processor_time_clock()
    acquire, release = (
        ctypes.cast(f, ctypes.c_void_p).value for f in (api.PyThread_acquire_lock, api.PyThread_release_lock)
    )
    clock = system.c_function("clock_gettime") if number is not None and _is_fine(number) else 0
    return acquire, release, clock, system.c_function("sched_getaffinity"), number if clock else 0


def _is_fine(number):
    """Whether a clock of processor time goes by microseconds, not by the system's ticks."""
    readings = [time.clock_gettime_ns(number) for _ in range(100)]
    steps = [b - a for a, b in itertools.pairwise(readings)]
    return 0 < sorted(steps)[len(steps) // 2] < 50_000


@njit
def _ticks():
    return ticks()


def _both_clocks():
    """(ticks, nanoseconds) of one moment: of several readings the one that nothing came between."""
    readings = []
    for _ in range(20):
        before = time.perf_counter_ns()
        count = _ticks()
        readings.append((time.perf_counter_ns() - before, count, before))
    taken, count, before = min(readings)
    return count, before + taken / 2


def _nanoseconds_of_a_tick():
    """Measured for a millisecond; 0.0 where there is no counter."""
    ticks_before, before = _both_clocks()
    while time.perf_counter_ns() < before + 1_000_000:
        pass
    ticks_after, after = _both_clocks()
    return (after - before) / (ticks_after - ticks_before) if ticks_after > ticks_before else 0.0


def _new_lock():
    """The address of a native lock, taken."""
    api = ctypes.pythonapi
    api.PyThread_allocate_lock.restype = ctypes.c_void_p
    lock = api.PyThread_allocate_lock()
    api.PyThread_acquire_lock(ctypes.c_void_p(lock), 1)
    return lock
