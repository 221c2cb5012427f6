"""Races in simulated kernels: stores to global memory are seen by others as late as CUDA allows.

What a thread writes, its block sees from the next barrier on, and other blocks once the launch is over: without fences
and atomics, of which nbprop's kernels have none, nothing sooner is promised (CUDA programming guide, "Memory Fence
Functions"). So a thread that reads what another has written without a barrier between them, or a block that reads what
another block of the launch has written, gets what was there before. Two threads that write different numbers to one
place, without a barrier between them, are an error, and so are two blocks. What happens sooner than it must is the
simulator's usual way (tests/cuda/turns.py).
"""

import contextlib
import threading

import turns
from numba.cuda.simulator.cudadrv.devicearray import FakeWithinKernelCUDAArray
from numba.cuda.simulator.kernel import BlockThread, FakeCUDAKernel


class RaceError(AssertionError):
    """Two threads wrote different numbers to one place."""


class _Launch:
    """What the threads of a launch have written, by address: (array, index, number)."""

    def __init__(self):
        self.of_threads, self.of_block, self.of_others, self.point, self.error = {}, {}, {}, None, None

    def read(self, array, index):
        place, thread = _address(array, index), threading.current_thread()
        self._enter(thread)
        for written in (self.of_threads.get(thread, {}), self.of_block):
            if place in written:
                return written[place][2]
        return array[index]

    def write(self, array, index, number):
        written = self.of_threads.setdefault(threading.current_thread(), {})
        written[_address(array, index)] = array, index, array.dtype.type(number)

    def barrier(self, threads):
        """Let a block see what its threads have written since the last barrier."""
        self._enter(threads[0])
        together = {}
        for thread in threads:
            self._merge(together, self.of_threads.pop(thread, {}), "threads of a block")
        self.of_block |= together

    def _enter(self, thread):
        """End the block before, where this thread is the first of another that reads or comes to a barrier."""
        point = tuple(thread.blockIdx)
        if point != self.point:
            self.end_block()
            self.point = point

    def end_block(self):
        """Keep what a block has written for the end of the launch."""
        self._merge(self.of_others, self.of_block, "blocks")
        self.of_block = {}

    def end(self):
        """Write all of it to memory."""
        self.end_block()
        for array, index, number in self.of_others.values():
            array[index] = number
        if self.error:
            raise RaceError(self.error)

    def _merge(self, before, new, writers):
        for place, (array, index, number) in new.items():
            if place in before and before[place][2].tobytes() != number.tobytes():
                self.error = f"two {writers} write {before[place][2]} and {number} to element {index} of {array.size}"
        before.update(new)


def _address(array, index):
    return array.ctypes.data + (index if index >= 0 else index + array.size) * array.itemsize


@contextlib.contextmanager
def late_stores():
    """Delay the stores of all kernels launched within; raises RaceError at the end of a launch."""
    launch = None

    def simple(array, index):
        within = isinstance(threading.current_thread(), BlockThread) and launch is not None
        return within and array.ndim == 1 and not isinstance(index, (slice, tuple, str))

    def get(self, index):
        array = self._item._ary
        return launch.read(array, int(index)) if simple(array, index) else before[0](self, index)

    def put(self, index, number):
        array = self._item._ary
        if simple(array, index):
            launch.write(array, int(index), number)
        else:
            before[1](self, index, number)

    def call(self, *arguments):
        nonlocal launch
        if launch is not None:  # a device function called by a kernel
            return before[2](self, *arguments)
        launch = _Launch()
        try:
            result = before[2](self, *arguments)
            launch.end()
            return result
        finally:
            launch = None

    def hook(threads):
        launch.barrier(threads)

    kind = FakeWithinKernelCUDAArray
    before = kind.__getitem__, kind.__setitem__, FakeCUDAKernel.__call__
    kind.__getitem__, kind.__setitem__, FakeCUDAKernel.__call__ = get, put, call
    turns.AT_BARRIERS.append(hook)
    try:
        yield
    finally:
        turns.AT_BARRIERS.remove(hook)
        kind.__getitem__, kind.__setitem__, FakeCUDAKernel.__call__ = before
