"""What the 32 lanes of a warp do together: barriers of a warp; and for the simulator, an exchange among its lanes.

Numba's simulator knows blocks and threads, but no warps. Here threads with neighbouring numbers are the lanes of a
warp, and `exchange` hands each lane what all of them gave: the twins of warp instructions (mma.py) are written with it.
All lanes of a warp have to take part, as on a device.
"""

import functools
import threading
from typing import Any

from llvmlite import ir
from numba import types

from nbprop.compiler.jit import intrinsic
from nbprop.cuda.toolkit import SIMULATED, cuda, device_function

LANES = 32


class _Warp:
    """A simulated warp: where its lanes meet, and what they exchange."""

    def __init__(self, lanes):
        self.barrier = threading.Barrier(lanes)
        # Two of them: a lane that is ahead may give for the next exchange while others still read this one.
        self.given: list[list[Any]] = [[None] * lanes for _ in range(2)]
        self.made: list[dict[str, Any]] = [{}, {}]


def _warp_of(thread):
    """The warp of a simulated thread."""
    warps = thread._manager.__dict__.setdefault("warps", {})
    number = thread.thread_id // LANES
    threads = functools.reduce(lambda a, b: a * b, thread._manager._block_dim)
    return warps.setdefault(number, _Warp(min(LANES, threads - number * LANES)))


def _simulated_sync_warp():
    """Wait for the warp's other lanes."""
    thread = threading.current_thread()
    if hasattr(thread, "syncwarp"):  # threads that take turns (tests/cuda/turns.py)
        thread.syncwarp()
    else:
        _warp_of(thread).barrier.wait(timeout=60)


def exchange(value, make):
    """(number of this lane, make([what each lane gave])), made once for the whole warp; for the simulator alone."""
    thread: Any = threading.current_thread()
    warp, turn = _warp_of(thread), getattr(thread, "exchanges", 0) % 2
    lane, thread.exchanges = thread.thread_id % LANES, turn + 1
    warp.given[turn][lane] = value
    warp.made[1 - turn].clear()
    _simulated_sync_warp()
    found = warp.made[turn].get("it")
    if found is None:
        found = warp.made[turn]["it"] = make(warp.given[turn])
    return lane, found


def _sync_warp():
    """A barrier for the lanes of a warp, behind which they see each other's stores to shared memory."""
    cuda.syncwarp()


sync_warp = _simulated_sync_warp if SIMULATED else device_function(_sync_warp)


def _simulated_xor_lane(value, bit):
    lane, given = exchange(value, list)
    return given[lane ^ int(bit)]


def _xor_lane(value, bit):
    """The value of the lane whose number differs in `bit`."""
    return cuda.shfl_xor_sync(0xFFFFFFFF, value, bit)


xor_lane = _simulated_xor_lane if SIMULATED else device_function(_xor_lane)


@intrinsic
def _thread(typingctx):
    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), [])
        number = builder.asm(kind, "mov.u32 $0, %tid.x;", "=r", [], True)
        return builder.zext(number, ir.IntType(64))

    return types.int64(), codegen


def _simulated_thread():
    return cuda.threadIdx.x


# The number of this thread, asked for again at each call: what the compiler derives from it then lives no longer than
# it is needed, where it would else keep a hundred places in registers through a loop.
thread_again = _simulated_thread if SIMULATED else _thread
