"""Arrays in device memory: nbprop's own, and any that speak __cuda_array_interface__ or DLPack.

CuPy, PyTorch and JAX arrays are used in place, without a copy; `Array` speaks both protocols, so that these libraries
take nbprop's arrays too. Arrays are C-contiguous. If another library has filled memory on a stream of its own, that
stream is waited for.
"""

import contextlib
import contextvars
import math

import numpy as np

from nbprop.cuda import dlpack, toolkit
from nbprop.messages import ALIASED, failure

_stream: contextvars.ContextVar = contextvars.ContextVar("nbprop_cuda_stream", default=0)


def current_stream():
    """The stream of nbprop's launches: the default stream, unless inside `use_stream`."""
    return _stream.get()


@contextlib.contextmanager
def use_stream(stream):
    """Send nbprop's launches to a stream of cuda.core's (0: the default stream) within a with block."""
    token = _stream.set(stream)
    try:
        yield stream
    finally:
        _stream.reset(token)


@contextlib.contextmanager
def in_order_with(stream):
    """Let what the block enqueues on a stream of `new_stream` keep its place among the current stream's work."""
    current = current_stream()
    if current:  # the default one keeps order with it by itself
        toolkit.follow(stream, current)
    yield
    if current:
        toolkit.follow(current, stream)


class Array:
    """A C-contiguous array in device memory. Slices along the first axis are views."""

    def __init__(self, shape, dtype, address, owner, device=None):
        self.shape, self.dtype = tuple(int(extent) for extent in shape), np.dtype(dtype)
        self.address, self.owner, self.writable = int(address), owner, True
        self.device = toolkit.current_device() if device is None else device

    @property
    def size(self):
        return math.prod(self.shape)

    @property
    def nbytes(self):
        return self.size * self.dtype.itemsize

    @property
    def ndim(self):
        return len(self.shape)

    def __len__(self):
        return self.shape[0]

    def __repr__(self):
        return f"<nbprop.cuda.Array {self.dtype} {self.shape}>"

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": _handle(current_stream()),
            "version": 3,
        }

    def __dlpack_device__(self):
        return dlpack.DEVICE, self.device

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """A DLPack capsule over the same memory; pending work is waited for, so that any stream may read it."""
        toolkit.synchronize(current_stream())
        return dlpack.capsule(self, self.address, self.shape, self.dtype, self.device)

    def __getitem__(self, where):
        if not isinstance(where, slice) or where.step not in (None, 1) or not self.shape:
            raise TypeError(
                "a device array takes slices along its first axis, such as a[10:20]; copy it with to_host()"
            )
        start, stop, _ = where.indices(self.shape[0])
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        shape = (max(0, stop - start), *self.shape[1:])
        return Array(shape, self.dtype, self.address + start * row, self.owner, self.device)

    def reshape(self, *shape):
        """The same memory in another shape."""
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        if math.prod(shape) != self.size:
            raise ValueError(f"cannot make shape {shape} of {self.size} elements")
        return Array(shape, self.dtype, self.address, self.owner, self.device)

    def copy(self):
        """A copy in device memory."""
        copied = empty(self.shape, self.dtype)
        copied[:] = self
        return copied

    def __setitem__(self, where, value):
        """a[:] = b copies all of b, a device or a host array of the same shape and dtype."""
        if where != slice(None):
            raise TypeError("a device array takes whole assignments, a[:] = b; assign to a slice by a[10:20][:] = b")
        if not isinstance(value, Array):
            self.copy_from(value)
        elif value.shape != self.shape or value.dtype != self.dtype:
            raise ValueError(f"needs {self.dtype} of shape {self.shape}, got {value.dtype} of {value.shape}")
        else:
            toolkit.copy(self.address, value.address, self.nbytes, current_stream())

    def to_host(self):
        """A NumPy copy, made after the pending work of the stream."""
        host = np.empty(self.shape, self.dtype)
        toolkit.read(self.address, host, current_stream())
        return host

    def copy_from(self, host):
        """Overwrite with a host array of the same shape and dtype."""
        host = np.asarray(host)
        if host.shape != self.shape or host.dtype != self.dtype:
            raise ValueError(f"copy_from: needs {self.dtype} of shape {self.shape}, got {host.dtype} of {host.shape}")
        toolkit.write(self.address, host, current_stream())


def empty(shape, dtype=np.float32):
    """A new device array, uninitialised. Raises MemoryError with what is needed and what is free."""
    shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    return Array(shape, dtype, *toolkit.allocate(math.prod(shape) * np.dtype(dtype).itemsize))


def to_device(array):
    """A device copy of a host array, in C order."""
    array = np.asarray(array)
    copy = empty(array.shape, array.dtype)
    copy.copy_from(array)
    return copy


def zeros(shape, dtype=np.float32):
    """A new device array of zeros."""
    return to_device(np.zeros(shape, dtype))


def is_device_array(value):
    """Whether a value is an array in device memory, of whichever library."""
    if isinstance(value, (Array, np.ndarray)):
        return isinstance(value, Array)
    if hasattr(value, "__cuda_array_interface__"):
        return True
    return hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) in dlpack.DEVICES


def as_array(name, value):
    """Any device array as an `Array` over the same memory; `name` is that of the argument, for errors.

    Raises TypeError for a host array or anything else, ValueError for a strided array or memory of another device.
    """
    here = toolkit.current_device()
    if isinstance(value, Array):
        if value.device != here:
            raise _elsewhere(name, value.device, here)
        return value
    if isinstance(value, np.ndarray):
        raise TypeError(
            f"{name} is a NumPy array in host memory, but this runs on the device; copy it once with "
            "nbprop.cuda.to_device"
        )
    if hasattr(value, "__cuda_array_interface__"):
        found = _from_interface(name, value)
    elif is_device_array(value):
        shape, dtype, address = dlpack.view(name, value, current_stream())
        found = Array(shape, dtype, address, value)
    else:
        raise TypeError(
            f"{name} must be a device array (of nbprop.cuda, CuPy, PyTorch, JAX, ...), got {type(value).__name__}"
        )
    there = toolkit.device_of(found.address)
    if found.size and there != here:
        raise _elsewhere(name, there, here)
    return found


def _elsewhere(name, there, here):
    where = "no device that the driver knows" if there is None else f"device {there}"
    return ValueError(f"{name} lies in the memory of {where}, but the plan runs on device {here}; copy it there")


def check_separate(function, written, read):
    """Refuse written arrays that share memory with another; written and read are {name: Array}."""
    arrays = [*written.items(), *read.items()]
    for k, (name, mine) in enumerate(arrays[: len(written)]):
        for other, array in arrays[k + 1 :]:
            if array.address < mine.address + mine.nbytes and mine.address < array.address + array.nbytes:
                raise failure(ALIASED, f"{function}: {name}", detail=other)


def _from_interface(name, value):
    description = value.__cuda_array_interface__
    dtype, shape = np.dtype(description["typestr"]), tuple(description["shape"])
    dlpack.check_strides(name, shape, description.get("strides"), dtype.itemsize)
    if description.get("mask") is not None:
        raise ValueError(f"{name} has a mask; pass a plain array")
    stream = description.get("stream")
    if stream == 0:
        raise ValueError(
            f"{name} names stream 0, which __cuda_array_interface__ does not define; pass its stream's number"
        )
    if stream is not None and stream != _handle(current_stream()):
        toolkit.wait_for(stream)
    found = Array(shape, dtype, description["data"][0], value)
    found.writable = not description["data"][1]
    return found


def _handle(stream):
    """The number of a stream in __cuda_array_interface__, where 1 is the default stream."""
    return toolkit.handle_of(stream) or 1
