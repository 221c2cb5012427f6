"""The native threads of the pool: started when a plan asks for them, once a process."""

import threading
import time

import numpy as np

from nbprop import system
from nbprop.compiler.registry import define_symbol
from nbprop.runtime.cores import processor_share
from nbprop.runtime.pool import (
    _WORKER,
    ACQUIRE,
    AFFINITY,
    CLOCK,
    CORES,
    CPU_CLOCK,
    INSIST,
    LEADER_LOCK,
    LOCK,
    MAX_WORKERS,
    POOL_ADDRESS,
    QUOTA,
    RATE,
    RELEASE,
    WORKER_WORDS,
    WORKERS,
    _c_functions,
    _nanoseconds_of_a_tick,
    _new_lock,
    _words,
)
from nbprop.runtime.walker import worker_loop

_starting = threading.Lock()
define_symbol("nbprop_pool", POOL_ADDRESS)


def _work(pool, worker):
    worker_loop(pool, worker)


def ensure(threads):
    """Start workers until `threads` threads (the caller included) can walk together; returns how many can.

    Capped at the process's share of the processor: more threads than cores only take each other's turns.
    """
    available = processor_share()
    wanted = min(threads, available, MAX_WORKERS + 1)
    with _starting:
        _words[CORES] = _words[QUOTA] = available
        for worker in range(int(_words[WORKERS]) + 1, wanted):
            if not _words[ACQUIRE]:
                _words[[ACQUIRE, RELEASE, CLOCK, AFFINITY, CPU_CLOCK]] = _c_functions()
                know_clock()
                _words[LEADER_LOCK] = _new_lock()
            line = _WORKER + worker * WORKER_WORDS
            _words[line : line + WORKER_WORDS] = 0
            _words[line + LOCK] = _new_lock()
            name = f"nbprop-{worker}"
            threading.Thread(target=_work, args=(POOL_ADDRESS, worker), name=name, daemon=True).start()
            # A worker counts itself once it is outside the interpreter: counted sooner, a walk that holds the
            # interpreter's lock could wait for a worker that needs it.
            while _words[WORKERS] < worker:
                time.sleep(0.0002)
    return max(1, wanted)


def know_clock():
    """Measure the rate of the ticks by which compiled code tells the time, once a process; it takes a millisecond."""
    if not _words[RATE]:
        _words[RATE] = np.float64(_nanoseconds_of_a_tick()).view(np.int64)


def insist(on):
    """Have every walk be on all the threads it asks for, and wait for each of them. For tests of what threads share."""
    _words[INSIST] = on


def _after_fork():
    """A child inherits the pool's memory but none of its threads: begin anew with as many."""
    global _starting
    _starting = threading.Lock()
    before, insists = int(_words[WORKERS]), _words[INSIST]
    _words[:] = 0
    _words[INSIST] = insists
    if before:
        ensure(before + 1)


system.in_forked_children(_after_fork)
