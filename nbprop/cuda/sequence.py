"""Launches with a frame and rows of their own, for what is not a plan: optimizers, clipping, gathering batches."""

import numpy as np

from nbprop.cuda import memory, toolkit
from nbprop.cuda.kernels import FRAME_WORDS
from nbprop.program import frame

# Words of the frame that hold array addresses: all before the scalars.
_SPACES = range(1, frame.N)


class Sequence:
    """Kernels with their arrays and numbers, in order. Fill with `add`, then `place`; `write` before `enqueue`."""

    def __init__(self):
        self.words = np.zeros(FRAME_WORDS, np.int64)
        self._launches, self._arrays, self._rows = [], [], []

    def add(self, kernel, dtype, arrays, n=1, **numbers):
        """Append a launch. arrays: device arrays by name, of any element type; the kernel sees them as dtype.

        A number may be a function without arguments, which each `write` calls.
        """
        row = []
        for name in kernel.arrays:
            array = arrays[name]
            row += [self._space(array), 0, array.nbytes // np.dtype(dtype).itemsize]
        known = {name: number for name, number in numbers.items() if not callable(number)}
        blocks = kernel.blocks(known | {"n": n})
        self.words[frame.N] = n
        if blocks:
            start = sum(map(len, self._rows))
            self._rows.append([*row, *(numbers[name] for name in kernel.words)])
            self._launches.append((kernel, np.dtype(dtype), blocks, start))

    def _space(self, array):
        for space, known in zip(_SPACES, self._arrays, strict=False):
            if known is array:
                return space
        self._arrays.append(array)
        space = _SPACES[len(self._arrays) - 1]
        self.words[space] = array.address
        return space

    def place(self):
        """Allocate the frame and the rows on the device."""
        self._buffer = memory.empty(FRAME_WORDS + sum(map(len, self._rows)), np.int64)
        self.frame_address = self._buffer.address
        return self

    def write(self, step, stream):
        """Copy the frame, for this step, and the rows to the device."""
        self.words[frame.STEP] = step
        numbers = [number() if callable(number) else number for row in self._rows for number in row]
        toolkit.write(self.frame_address, np.array([*self.words, *numbers], np.int64), stream)

    def enqueue(self, stream):
        """Launch all kernels."""
        rows = self.frame_address + 8 * FRAME_WORDS
        for kernel, dtype, blocks, start in self._launches:
            kernel.launch(dtype, blocks, stream, self.frame_address, rows + 8 * start)
