"""Numba's simulator with the threads of a block taking turns, each running to its next barrier, and blocks likewise.

The simulator's own main thread polls for barriers and holds Python's lock for 5 ms at a time while it does: taking
turns, the same kernels take a tenth of the time. The order of the turns is drawn anew at each barrier, so that a kernel
in which a thread needs what another one has written has its barrier there, or fails sooner or later. Warps, too, take
turns: one runs to the next barrier of the block before another begins. The order of the blocks is drawn for each
launch. support/races.py also delays what they write.
"""

import random
import threading

import numpy as np
from numba.cuda.simulator import kernel

from nbprop.cuda.warps import LANES

_RANDOM = random.Random(0)
# Called with a block's threads whenever all of them have come to a barrier, or to their end.
AT_BARRIERS = []


class ShuffledBlocks:
    """NumPy for the simulator's kernels, which ask it for the order of their blocks."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def ndindex(*shape):
        """The points of a grid in a random order."""
        points = list(np.ndindex(*shape))
        _RANDOM.shuffle(points)
        return points


class Thread(kernel.BlockThread):
    """A thread of a block. It runs between `step` and its end, or the barrier of its block or warp that it comes to."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._begin, self._done, self.ended, self.in_warp = threading.Lock(), threading.Lock(), False, False
        self._begin.acquire()
        self._done.acquire()

    def run(self):
        self._begin.acquire()
        super().run()
        self.ended = True
        self._done.release()

    def syncthreads(self):
        self._done.release()
        self._begin.acquire()
        if self.abort:
            raise RuntimeError("another thread of the block has failed")

    def syncwarp(self):
        self.in_warp = True
        self.syncthreads()

    def step(self):
        """Let it run."""
        self.in_warp = False
        self._begin.release()
        self._done.acquire()


def run(block, grid_point, *arguments):
    """What a `kernel.BlockManager` does in place of its own `run`."""
    points = np.ndindex(*block._block_dim)
    threads = [Thread(lambda: block._f(*arguments), block, grid_point, point, block._debug) for point in points]
    for thread in threads:
        thread.start()
    warps = [threads[k : k + LANES] for k in range(0, len(threads), LANES)]
    while threads:
        _RANDOM.shuffle(warps)
        for warp in warps:
            running = [thread for thread in warp if not thread.ended]
            while running:  # until all lanes are at a barrier of the block
                _RANDOM.shuffle(running)
                for thread in running:
                    thread.step()
                waiting = [thread for thread in running if thread.in_warp]
                if any(thread.exception for thread in running):
                    break
                assert len(waiting) in (0, len(running)), "lanes of a warp are at different barriers"
                running = waiting
        for hook in AT_BARRIERS:
            hook(threads)
        failed = [thread.exception for thread in threads if thread.exception]
        threads = [thread for thread in threads if not thread.ended]
        if failed:
            for thread in threads:
                thread.abort = True
                thread.step()
            error, traceback = failed[0]
            raise error.with_traceback(traceback)
