"""Small programs in one launch: a single thread block runs the rows of the table, with a barrier between them.

For a network of a few thousand numbers, a launch costs more than its work. The loops of every kernel stride by the
grid, so its function runs on one block unchanged; here a switch over the kernels of a program calls them row by row, as
the CPU's walker does. What they read and write stays in the cache of the multiprocessor. The results are bitwise those
of the separate launches.
"""

import functools

import numpy as np
from numba import types

from nbprop.compiler.intrinsics import as_frame
from nbprop.cuda import memory, toolkit
from nbprop.cuda.kernels import in_global_memory, simulated_arguments, word_at
from nbprop.cuda.toolkit import SIMULATED, THREADS, cuda, device_function
from nbprop.program.binding import kernel_arguments

# One block runs a program whose largest array has at most this many elements. Not measured.
MOST_ELEMENTS = 8192


def _switch(kernels, dtype, number=0):
    """A device function (chosen, frame, row) that calls the chosen one of some kernels."""
    kernel, rest = kernels[0], kernels[1:]
    bind = kernel_arguments(kernel.contract, null_absent=False)
    body, real = device_function(kernel.function), np.dtype(dtype).type
    others = _switch(rest, dtype, number + 1) if rest else None

    if others is None:

        @device_function
        def run(chosen, frame, row):
            body(*in_global_memory(bind(as_frame(frame, real), row, 0, 1)))

    else:

        @device_function
        def run(chosen, frame, row):
            if chosen == number:
                body(*in_global_memory(bind(as_frame(frame, real), row, 0, 1)))
            else:
                others(chosen, frame, row)

    return run


def entry(kernels, dtype):
    """The function (frame, rows, steps, count) of a walk; steps: (number of the kernel, its row) of each launch."""
    run = _switch(kernels, dtype)

    def walk(frame, rows, steps, count):
        for step in range(count):
            run(word_at(steps, 2 * step), frame, rows + 8 * word_at(steps, 2 * step + 1))
            cuda.syncthreads()

    return walk


SIGNATURE = types.void(types.int64, types.int64, types.int64, types.int64)


@functools.cache
def _compiled(kernels, dtype):
    """One for each set of kernels, whatever the network."""
    return toolkit.compile(_simulated if SIMULATED else entry(kernels, dtype), SIGNATURE, (THREADS, 1))


def _simulated(steps):
    for function, arguments in steps:
        function(*arguments)
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            toolkit.forget_shared_arrays()
        cuda.syncthreads()


class OneBlockLaunch:
    """The launches of a program as a single one."""

    def __init__(self, launches, dtype):
        self.kernels = tuple(dict.fromkeys(launch.kernel for launch in launches))
        self.launches, self.dtype = launches, dtype
        steps = [(self.kernels.index(launch.kernel), launch.row) for launch in launches]
        self._steps = memory.to_device(np.array(steps, np.int64).reshape(-1))

    def launch(self, stream, frame_address, table_address):
        """Enqueue it."""

        def arguments():
            if not SIMULATED:
                return frame_address, table_address, self._steps.address, len(self.launches)
            steps = []
            for launch in self.launches:
                row = table_address + 8 * launch.row
                found = simulated_arguments(launch.kernel, self.dtype, frame_address, row)
                steps.append((launch.kernel.function, toolkit.within_kernel(found)))
            return (steps,)

        toolkit.launch(_compiled(self.kernels, self.dtype), 1, stream, arguments)
