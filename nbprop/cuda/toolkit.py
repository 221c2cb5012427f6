"""The only importer of numba.cuda: the real one, or its simulator if NUMBA_ENABLE_CUDASIM=1 was set before Numba.

Device code in this package and in `cuda_kernels(cuda)` of layers sees the module as `cuda`: cuda.grid, cuda.shared, ...
In the simulator, a running kernel has a module of its own, which plain globals would miss: `cuda` is then a proxy that
looks it up at each use. The simulator's device memory is host memory, and so are its addresses.
"""

import contextlib
import ctypes
import functools
import os
import re
from typing import Any

import numpy as np
from numba import config
from numba import cuda as _numba_cuda

_cuda: Any = _numba_cuda  # numba's annotations are the simulator's, which lacks options of `jit`
SIMULATED = bool(getattr(config, "ENABLE_CUDASIM", False))

# Threads of a block. The simulator starts an operating-system thread for each, which takes 0.4 ms.
THREADS = 8 if SIMULATED else 256
# An H100's.
MULTIPROCESSORS = 1 if SIMULATED else 132
# Most blocks of a loop over elements, which strides by the grid: some 4 per multiprocessor.
MOST_BLOCKS = 3 if SIMULATED else 4 * MULTIPROCESSORS


class _Simulated:
    """numba.cuda as a simulated thread sees it."""

    def __getattr__(self, name):
        from numba.cuda.simulator.kernel import _get_kernel_context

        return getattr(_get_kernel_context() or _cuda, name)


cuda: Any = _Simulated() if SIMULATED else _cuda


# -- a device that is lost -----------------------------------------------------------------------------------

# Errors after which the driver answers no more calls of this process (cuda.h, CUresult).
_LOST = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        *("DEVICE_UNAVAILABLE", "ECC_UNCORRECTABLE", "NVLINK_UNCORRECTABLE", "CONTAINED", "CONTEXT_IS_DESTROYED"),
        *("ILLEGAL_ADDRESS", "LAUNCH_TIMEOUT", "ASSERT", "HARDWARE_STACK_ERROR", "ILLEGAL_INSTRUCTION"),
        *("MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC", "LAUNCH_FAILED", "EXTERNAL_DEVICE", "UNKNOWN"),
    )
)


class DeviceLostError(RuntimeError):
    """The device no longer responds; the contents of its memory are lost."""


def answering(function):
    """The function, raising DeviceLostError instead of the driver's exception if the device is lost."""

    @functools.wraps(function)
    def call(*arguments, **options):
        try:
            return function(*arguments, **options)
        except DeviceLostError:
            raise
        except Exception as error:
            code = re.search(r"CUDA_ERROR_\w+", str(error))
            if code is None or code[0] not in _LOST:
                raise
            raise DeviceLostError(
                f"the CUDA device is lost ({code[0]}) with the contents of its memory; arrays in host memory are "
                "unchanged; start a new process (fit goes on from its checkpoint with resume=True). NVIDIA's driver "
                "writes the cause to the system's log, as an Xid"
            ) from error

    return call


# -- code ----------------------------------------------------------------------------------------------------


# lto=False throughout: by itself numba-cuda links LTO-IR wherever nvJitLink is installed, and makes other machine code
# than the compile gate has seen, of PTX through ptxas.


def device_function(function):
    """Make a function callable from kernels; always inlined, so that arrays it is given can stay in registers."""
    # As its first argument: as a decorator with options, jit forgets about `lto`.
    return function if SIMULATED else _cuda.jit(function, device=True, forceinline=True, lto=False)


def compile(function, signature=None, bounds=None):
    """A kernel for `launch`."""
    if SIMULATED:
        return _cuda.jit(function)
    return _cuda.jit(signature, launch_bounds=bounds, lto=False)(function)


@answering
def launch(kernel, blocks, stream, arguments, shared=0, threads=THREADS):
    """Enqueue kernel(*arguments()) on a stream or in a graph; where that is REHEARSAL, make it ready and no more.

    shared: bytes of shared memory beside what the kernel's code asks for.
    """
    if SIMULATED:
        _simulated_stream(stream).enqueue(lambda: kernel[blocks, threads, 0, shared](*arguments()))
        return
    _load(kernel, current_device(), shared > 0)
    if stream is not REHEARSAL:
        _configured(kernel, blocks, stream, shared, threads)(*arguments())


@functools.cache
def _load(kernel, device, much_shared):
    """Link a compiled kernel for a device and load it there, which may not happen while a graph is recorded.

    much_shared: let its launches ask for more than 48 KiB of shared memory, up to the device's most.
    """
    from numba.cuda.cudadrv.driver import binding, driver

    attribute = binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    for compiled in kernel.overloads.values():
        function = compiled._codelibrary.get_cufunc()
        driver.cuFuncLoad(driver.cuKernelGetFunction(function.handle))
        if much_shared:
            most = shared_memory_of_a_block() - function.attrs.shared
            driver.cuKernelSetAttribute(attribute, most, function.handle, function.device.id)


def _configured(kernel, blocks, stream, shared, threads):
    """kernel[blocks, threads, stream, shared], without Numba's warning of few blocks: small work is meant."""
    from numba.cuda import config

    of_launches: Any = config
    before, of_launches.CUDA_LOW_OCCUPANCY_WARNINGS = of_launches.CUDA_LOW_OCCUPANCY_WARNINGS, 0
    try:
        return kernel[blocks, threads, stream, shared]
    finally:
        of_launches.CUDA_LOW_OCCUPANCY_WARNINGS = before


def shared_memory_of_a_block():
    """The most bytes of shared memory that a block of the current device may have, if its kernel opts in."""
    if SIMULATED:
        return 227 * 1024  # an H100's
    return _cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN


def grid_size(total, each=THREADS):
    """Blocks for `total` items at `each` a block, in a loop that strides by the grid."""
    return min(-(-total // each), MOST_BLOCKS)


# -- memory --------------------------------------------------------------------------------------------------


def bits_of(number, dtype):
    """The bits of a number in a dtype, as the word that kernels take."""
    return int(np.array(number, dtype).view(np.int32 if dtype == np.float32 else np.int64))


def host_array(address, size, dtype):
    """The array at an address of this process; empty at 0."""
    dtype = np.dtype(dtype)
    if address == 0 or size == 0:
        return np.empty(0, dtype)
    return np.frombuffer((ctypes.c_char * (size * dtype.itemsize)).from_address(address), dtype)


def _bytes_at(address, size):
    description = {"shape": (size,), "typestr": "|u1", "data": (address, False), "strides": None, "version": 3}
    return _cuda.from_cuda_array_interface(description)


def simulated(array):
    """An array in the simulator's memory, which a kernel writes to directly, not to a copy that is copied back."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    return FakeCUDAArray(array)


def within_kernel(arguments):
    """Arguments as a simulated kernel sees them."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray, FakeWithinKernelCUDAArray

    return [FakeWithinKernelCUDAArray(a) if isinstance(a, FakeCUDAArray) else a for a in arguments]


def forget_shared_arrays():
    """Let a simulated block allocate new shared arrays: the simulator identifies them by source line alone."""
    from numba.cuda.simulator.kernel import _get_kernel_context

    _get_kernel_context().shared._allocations.clear()


def as_numba(array):
    """A device array as Numba's own kernels take it, over the same memory."""
    if SIMULATED:
        return simulated(host_array(array.address, array.size, array.dtype).reshape(array.shape))
    return _cuda.as_cuda_array(array, sync=False)


@answering
def allocate(size):
    """(address, owner) of `size` bytes of new device memory, aligned to 256; freed with its owner."""
    if SIMULATED:
        owner = np.empty(size + 256, np.uint8)
        return owner.ctypes.data + -owner.ctypes.data % 256, owner
    try:
        owner = _cuda.device_array(max(1, size), np.uint8)
    except Exception as error:
        # Numba's exception carries the driver's code; 2 is out of memory (cuda.h, CUDA_ERROR_OUT_OF_MEMORY).
        if int(getattr(error, "code", 0)) != 2:
            raise
        free, total = _cuda.current_context().get_memory_info()
        raise MemoryError(
            f"the device has no room for {size / 2**20:.1f} MiB: {free / 2**20:.1f} of its {total / 2**20:.1f} MiB are "
            "free; use a smaller batch, or free other arrays"
        ) from error
    return owner.__cuda_array_interface__["data"][0], owner


@answering
def write(address, host, stream=0):
    """Copy a contiguous host array to device memory, and wait until it is there.

    A copy from pageable memory may return before it is done, and only its own stream would know: so no stream has to
    order its reads behind a write, and the host array may change or go once this returns.
    """
    host = np.ascontiguousarray(host).reshape(-1).view(np.uint8)
    if SIMULATED:
        _simulated_stream(stream).enqueue(functools.partial(_copy_here, address, host.ctypes.data, host.size))
    elif host.size:
        _bytes_at(address, host.size).copy_to_device(host, stream=stream)
    synchronize(stream)


@answering
def read(address, host, stream=0):
    """Copy device memory to a contiguous host array, after the pending work of the stream."""
    flat = host.reshape(-1).view(np.uint8)
    if SIMULATED:
        _simulated_stream(stream).enqueue(functools.partial(_copy_here, flat.ctypes.data, address, flat.size))
    elif flat.size:
        _bytes_at(address, flat.size).copy_to_host(flat, stream=stream)
    synchronize(stream)


@answering
def copy(target, source, size, stream=0):
    """Enqueue a copy of `size` bytes within device memory."""
    if SIMULATED:
        _simulated_stream(stream).enqueue(functools.partial(_copy_here, target, source, size))
    elif size:
        _bytes_at(target, size).copy_to_device(_bytes_at(source, size), stream=stream)


def _copy_here(target, source, size):
    host_array(target, size, np.uint8)[:] = host_array(source, size, np.uint8)


# -- the device and its streams ------------------------------------------------------------------------------


def current_device():
    """The number of the device that launches go to."""
    return 0 if SIMULATED else _cuda.get_current_device().id


def visible_devices():
    """What identifies each device that this process may use, in the order of their numbers.

    The simulator has a device in each process, its memory.
    """
    if SIMULATED:
        return [f"simulated in process {os.getpid()}"]
    return [_cuda.gpus[number]._device.uuid for number in range(len(_cuda.gpus))]


def identity_of_device():
    """What identifies the current device, whichever devices a process sees."""
    return visible_devices()[current_device()]


def kind_of_device():
    """What the bits of a result on the current device depend on, by name."""
    if SIMULATED:
        return {"the device": "the simulator's"}
    from nbprop.cuda import versions

    major, minor = _cuda.get_current_device().compute_capability
    kind, compiler = f"compute capability {major}.{minor}", versions()["numba-cuda"]
    return {"the device": kind, "the version of numba-cuda": compiler}


def select_device(number):
    """Make a device the current one of this thread."""
    if not SIMULATED:
        _cuda.select_device(number)
        _core_device()


def require_tensor_cores(precision):
    """Raise RuntimeError where the current device multiplies no bfloat16: before compute capability 8.0 (Ampere)."""
    if SIMULATED:
        return
    found = _cuda.get_current_device().compute_capability
    if found < (8, 0):
        raise RuntimeError(
            f"plan: precision={precision!r} needs tensor cores for bfloat16 (compute capability 8.0 or newer), and "
            f"this device has {found[0]}.{found[1]}; leave precision out"
        )


def device_of(address):
    """The number of the device whose memory an address lies in; None where the driver does not know it."""
    if SIMULATED or address == 0:
        return current_device()
    from cuda.bindings import driver

    attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    status, device = driver.cuPointerGetAttribute(attribute, address)
    return int(device) if int(status) == 0 else None


class SimulatedStream:
    """A stream of the simulator's: what is enqueued runs at once. tests/cuda/delayed.py has one that puts it off."""

    def enqueue(self, work):
        work()

    def sync(self):
        pass

    def wait(self, other):
        pass

    def __cuda_stream__(self):
        return 0, 0


class SimulatedGraph:
    """A graph of the simulator's, and its own builder: what is enqueued is kept, to run at each launch."""

    def __init__(self):
        self._works = []

    def enqueue(self, work):
        self._works.append(work)

    def begin_building(self):
        return self

    end_building = complete = begin_building

    def close(self):
        pass

    def launch(self, stream):
        for work in self._works:
            _simulated_stream(stream).enqueue(work)


class _Rehearsal:
    """Where launches are made ready, compiled and loaded, and nothing runs."""

    def enqueue(self, work):
        pass


REHEARSAL = _Rehearsal()
_default_stream = SimulatedStream() if SIMULATED else None


def _simulated_stream(stream):
    return stream or _default_stream


@answering
def synchronize(stream=0):
    """Wait for a stream's work; for the default stream's, that of every blocking stream is part of it."""
    if SIMULATED:
        _simulated_stream(stream).sync()
    elif stream:
        stream.sync()
    else:
        # By an event, which is the stream's own work: the driver orders that behind the blocking streams'.
        _legacy_stream().record().sync()


def _legacy_stream():
    _cuda.current_context()  # cuda.core takes the context that is current, and a new thread has none
    from cuda.core import LEGACY_DEFAULT_STREAM

    return LEGACY_DEFAULT_STREAM


@answering
def follow(stream, other):
    """Let what is enqueued on a stream from now on wait for what another has been given so far; 0: the default one."""
    if SIMULATED:
        _simulated_stream(stream).wait(_simulated_stream(other))
    else:
        (stream or _legacy_stream()).wait(other or _legacy_stream())


def handle_of(stream):
    """The driver's handle of a stream, or of the graph being recorded on it; 0 for the default stream."""
    return int(stream.__cuda_stream__()[1]) if stream else 0


@answering
def call_library(function, stream):
    """function(handle): what another library enqueues on a stream or in a graph; nothing where that is REHEARSAL."""
    if SIMULATED:
        _simulated_stream(stream).enqueue(lambda: function(0))
    elif stream is not REHEARSAL:
        function(handle_of(stream))


@answering
def wait_for(handle):
    """Wait for the work of another library's stream (its handle in __cuda_array_interface__)."""
    if not SIMULATED:
        _cuda.external_stream(handle).synchronize()


def _core_device():
    """The current device, as cuda.core has it."""
    from cuda.core import Device

    device = Device(current_device())
    device.set_current()
    return device


@answering
def new_stream():
    """A stream of its own, as launches and graphs take it (cuda.core's), in order with the default stream.

    Each waits for what the other was given before: cuda.core's own streams do not, unless asked to block.
    """
    if SIMULATED:
        return SimulatedStream()
    from cuda.core import StreamOptions

    return _core_device().create_stream(options=StreamOptions(nonblocking=False))


def _graph_builder():
    """What records launches, on a stream of its own that no other work can come upon while it does."""
    return SimulatedGraph() if SIMULATED else _core_device().create_graph_builder()


class Capture:
    """What `enqueue(stream)` launches, recorded once as a CUDA graph: nothing of it runs before `replay`."""

    @answering
    def __init__(self, enqueue):
        enqueue(REHEARSAL)
        builder = _graph_builder()
        try:
            builder.begin_building()
            enqueue(builder)
            self._graph = builder.end_building().complete()
        except BaseException:
            with contextlib.suppress(Exception):  # the driver's complaint about a capture that has failed
                builder.close()
            raise
        builder.close()

    @answering
    def replay(self, stream):
        """Enqueue all of it on a stream, by one call."""
        self._graph.launch(stream)
