"""Threads that walk one program together: a pool of native workers, and a barrier.

A worker is a Python thread that enters compiled code once and stays there, outside the interpreter: it waits for a
ticket, first spinning, then parked on a native lock of CPython's (PyThread_acquire_lock needs no interpreter
and exists wherever CPython does). So a caller that holds the interpreter's lock can wake workers and wait for them.

The pool serves one walk at a time. A caller that finds another walk under way walks alone, which gives the same bits:
callers from many threads (or from prange) fill the cores by themselves.
"""

import ctypes
import os
import sys
import threading
import time

import numpy as np

from nbprop.jit import define_symbol, njit
from nbprop.numerics.intrinsics import (
    atomic_add,
    atomic_exchange,
    atomic_load,
    call_c,
    load,
    spin_pause,
    store,
)

MAX_WORKERS = 255
_LINE = 8  # words in a cache line: words that different threads write stand on lines of their own
ACTIVE = 0 * _LINE  # walks under way of plans that want more than one thread; the first of them owns the pool
ARRIVED = 1 * _LINE  # how often threads have come to a barrier in this walk
FAILED = 2 * _LINE  # the address of a row whose kernel failed, 0 while all is well
FINISHED = 3 * _LINE  # workers that are done with this walk
WORKERS = 4 * _LINE  # workers alive
JOB = 5 * _LINE  # frame, begin, end, parts
ACQUIRE, RELEASE, YIELD = 6 * _LINE, 6 * _LINE + 1, 6 * _LINE + 2  # addresses of C functions
_TICKET = 7 * _LINE  # a line for each worker: ticket, parked, lock
TICKET, PARKED, LOCK = 0, 1, 2
WORDS = _TICKET + (MAX_WORKERS + 1) * _LINE

# Spins before a thread at a barrier yields its core, and before a worker without a walk parks: on x86 about 40 and 200
# microseconds. To wake a parked one takes some 40, and a solver in Python may spend 100 between two gradients.
SPINS = 2000
WAITING_SPINS = 10_000

_pool = np.zeros(WORDS + _LINE, np.int64)
POOL_ADDRESS = (_pool.ctypes.data + 63) // 64 * 64
_words = _pool[(POOL_ADDRESS - _pool.ctypes.data) // 8 :][:WORDS]
_starting = threading.Lock()
define_symbol("nbprop_pool", POOL_ADDRESS)


def _c_functions():
    """Addresses of CPython's native lock and of the system's yield (0 where there is none)."""
    api = ctypes.pythonapi
    acquire = ctypes.cast(api.PyThread_acquire_lock, ctypes.c_void_p).value
    release = ctypes.cast(api.PyThread_release_lock, ctypes.c_void_p).value
    if sys.platform == "win32":
        give_way = ctypes.WinDLL("kernel32").SwitchToThread
    else:
        give_way = getattr(ctypes.CDLL(None), "sched_yield", None)
    return acquire, release, ctypes.cast(give_way, ctypes.c_void_p).value if give_way else 0


def processor_share():
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@njit
def pause_or_yield(pool, spins):
    """One turn of a waiting loop: a processor pause at first, then the system's yield."""
    if spins < SPINS:
        spin_pause()
    else:
        give_way = load(pool, YIELD)
        if give_way != 0:
            call_c(give_way, (0,))


@njit
def barrier(pool, target):
    """Wait until threads have come to barriers `target` times in this walk."""
    atomic_add(pool, ARRIVED, 1)
    spins = 0
    while atomic_load(pool, ARRIVED) < target:
        pause_or_yield(pool, spins)
        spins += 1


@njit
def next_ticket(pool, line, seen):
    """Wait for a ticket other than `seen`: spin a while, then park on this worker's lock."""
    while True:
        for _ in range(WAITING_SPINS):
            ticket = atomic_load(pool, line + TICKET)
            if ticket != seen:
                return ticket
            spin_pause()
        atomic_exchange(pool, line + PARKED, 1)
        # A ticket written before PARKED was seen brings no wake-up; whoever takes the 1 back decides.
        if atomic_load(pool, line + TICKET) == seen or atomic_exchange(pool, line + PARKED, 0) == 0:
            call_c(load(pool, ACQUIRE), (load(pool, line + LOCK), 1))


@njit
def hire(pool, frame_address, begin, end, parts):
    """Send the workers off on a walk; the caller owns the pool and walks along as part 0."""
    store(pool, ARRIVED, 0)
    store(pool, FAILED, 0)
    store(pool, FINISHED, 0)
    store(pool, JOB, frame_address)
    store(pool, JOB + 1, begin)
    store(pool, JOB + 2, end)
    store(pool, JOB + 3, parts)
    for worker in range(1, parts):
        line = _TICKET + worker * _LINE
        atomic_add(pool, line + TICKET, 1)
        if atomic_exchange(pool, line + PARKED, 0) == 1:
            call_c(load(pool, RELEASE), (load(pool, line + LOCK),))


@njit
def dismiss(pool, parts):
    """Wait for the workers to be done with the walk; returns the row that failed, or 0."""
    spins = 0
    while atomic_load(pool, FINISHED) < parts - 1:
        pause_or_yield(pool, spins)
        spins += 1
    return load(pool, FAILED)


def _work(pool, worker):
    from nbprop.walk import worker_loop

    worker_loop(pool, worker)


def ensure(threads):
    """Start workers until `threads` threads (the caller included) can walk together; returns how many can.

    Capped at the process's share of the processor: more threads than cores make each barrier a thousandfold dearer.
    """
    wanted = min(threads, processor_share(), MAX_WORKERS + 1)
    with _starting:
        if not _words[ACQUIRE]:
            _words[ACQUIRE], _words[RELEASE], _words[YIELD] = _c_functions()
        for worker in range(int(_words[WORKERS]) + 1, wanted):
            line = _TICKET + worker * _LINE
            api = ctypes.pythonapi
            api.PyThread_allocate_lock.restype = ctypes.c_void_p
            lock = api.PyThread_allocate_lock()
            api.PyThread_acquire_lock(ctypes.c_void_p(lock), 1)
            _words[line : line + _LINE] = 0
            _words[line + LOCK] = lock
            name = f"nbprop-{worker}"
            threading.Thread(target=_work, args=(POOL_ADDRESS, worker), name=name, daemon=True).start()
            # A worker counts itself once it is outside the interpreter: counted sooner, a walk that holds the
            # interpreter's lock could wait for a worker that needs it.
            while _words[WORKERS] < worker:
                time.sleep(0.0002)
    return max(1, wanted)


def _after_fork():
    """A child inherits the pool's memory but none of its threads: begin anew with as many."""
    global _starting
    _starting = threading.Lock()
    before = int(_words[WORKERS])
    _words[:] = 0
    if before:
        ensure(before + 1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
