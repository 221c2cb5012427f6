"""DLPack: capsules over nbprop's arrays, and views of other libraries' arrays.

The structures are those of dlpack.h, version 0.8 (https://dmlc.github.io/dlpack/latest/c_api.html): an unversioned
DLManagedTensor in a capsule named "dltensor", which its consumer renames "used_dltensor".
"""

import ctypes
import math

import numpy as np

from nbprop.cuda import toolkit

_CPU, _CUDA, _MANAGED = 1, 2, 13
# In the simulator, device memory is the host's.
DEVICE = _CPU if toolkit.SIMULATED else _CUDA
DEVICES = (_CPU,) if toolkit.SIMULATED else (_CUDA, _MANAGED)
_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLDataTypeCode


class _Device(ctypes.Structure):
    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", _Deleter))

_python = ctypes.pythonapi
_python.PyCapsule_New.restype = ctypes.py_object
_python.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_python.PyCapsule_GetPointer.restype = ctypes.c_void_p
_python.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _python))

# What capsules point to, by address, until it is released by a consumer or with the capsule.
_alive: dict[int, tuple] = {}


@_Deleter
def _release(managed):
    _alive.pop(ctypes.addressof(managed.contents), None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _destroy_capsule(capsule):
    """Release the tensor of a capsule that was not consumed, which still has its first name."""
    if _is_valid(capsule, b"dltensor"):
        pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
            ("PyCapsule_GetPointer", _python)
        )(capsule, b"dltensor")
        _alive.pop(pointer, None)


def capsule(owner, address, shape, dtype, device):
    """A capsule over an array's memory; keeps `owner` alive until the consumer is done."""
    extents = (ctypes.c_int64 * max(1, len(shape)))(*shape)
    managed = _Managed()
    managed.tensor.data, managed.tensor.ndim = address, len(shape)
    managed.tensor.device = _Device(DEVICE, device)
    managed.tensor.dtype = _DataType(_KINDS[dtype.kind], 8 * dtype.itemsize, 1)
    managed.tensor.shape = ctypes.cast(extents, ctypes.POINTER(ctypes.c_int64))
    managed.deleter = _release
    _alive[ctypes.addressof(managed)] = managed, extents, owner
    return _python.PyCapsule_New(ctypes.addressof(managed), b"dltensor", ctypes.cast(_destroy_capsule, ctypes.c_void_p))


def view(name, value, stream):
    """(shape, dtype, address) of another library's array, whose producer orders its pending work before `stream`."""
    # 1 names the legacy default stream (Python array API standard, __dlpack__).
    found = value.__dlpack__(**({} if toolkit.SIMULATED else {"stream": int(stream.handle) if stream else 1}))
    managed = ctypes.cast(_python.PyCapsule_GetPointer(found, b"dltensor"), ctypes.POINTER(_Managed)).contents
    tensor = managed.tensor
    kinds = {code: kind for kind, code in _KINDS.items()}
    if tensor.dtype.code not in kinds or tensor.dtype.lanes != 1:
        raise TypeError(f"{name} holds a type that nbprop does not know (DLPack type code {tensor.dtype.code})")
    dtype = np.dtype(f"{kinds[tensor.dtype.code]}{tensor.dtype.bits // 8}")
    shape = tuple(tensor.shape[k] for k in range(tensor.ndim))
    if tensor.strides and math.prod(shape):
        strides = [tensor.strides[k] * dtype.itemsize for k in range(tensor.ndim)]
        check_strides(name, shape, strides, dtype.itemsize)
    # The capsule is not consumed: its memory stays the producer's, which the caller keeps alive.
    return shape, dtype, (tensor.data or 0) + tensor.byte_offset


def check_strides(name, shape, strides, itemsize):
    """Refuse an array that is not C-contiguous; strides in bytes, None for contiguous."""
    expected = itemsize
    for extent, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        if extent > 1 and stride != expected:
            raise ValueError(f"{name} must be C-contiguous; copy it once with its library's ascontiguousarray")
        expected *= extent
