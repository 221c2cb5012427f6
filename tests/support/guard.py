"""Memory that ends at a page nobody may touch: an access beside an array stops the process at once.

Buffers inside a workspace lie apart the same way (`isolated_buffers`, `Workspace`), so that a kernel that leaves one of
its buffers for the next is caught too.
"""

import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
_NONE, _READ, _WRITE = 0, 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_PRIVATE_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def _map(pages):
    address = _libc.mmap(None, pages * PAGE, _NONE, _PRIVATE_ANONYMOUS, -1, 0)
    assert address not in (None, ctypes.c_void_p(-1).value), "no memory"
    return address


def _protect(address, pages, access):
    assert _libc.mprotect(address, pages * PAGE, access) == 0


def _array_at(address, shape, dtype):
    count = int(np.prod(shape, dtype=np.int64))
    if count == 0:
        return np.empty(shape, dtype)
    return np.frombuffer((ctypes.c_char * (count * dtype.itemsize)).from_address(address), dtype).reshape(shape)


class Arena:
    """Arrays whose last ("end") or first ("start") element touches a forbidden page."""

    def __init__(self, side):
        self._side, self._maps = side, []

    def _new(self, shape, dtype):
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        pages = max(1, -(-nbytes // PAGE))
        base = _map(pages + 2)
        _protect(base + PAGE, pages, _READ | _WRITE)
        self._maps.append((base, pages))
        first = base + PAGE + (pages * PAGE - nbytes if self._side == "end" else 0)
        return _array_at(first, shape, dtype)

    def poisoned(self, shape, dtype):
        """A NaN-filled array that may be written."""
        array = self._new(shape, dtype)
        array[...] = np.nan
        return array

    def writable(self, values):
        """A copy that may be written; None stays None."""
        if values is None:
            return None
        array = self._new(values.shape, values.dtype)
        array[...] = values
        return array

    def constant(self, values):
        """A copy in memory that cannot be written; None stays None."""
        array = self.writable(values)
        if array is not None:
            base, pages = self._maps[-1]
            _protect(base + PAGE, pages, _READ)
            array.flags.writeable = False
        return array

    def close(self):
        for base, pages in self._maps:
            _libc.munmap(base, (pages + 2) * PAGE)
        self._maps = []


def isolated_buffers(side):
    """A stand-in for `nbprop.lowering.place_buffers`: every buffer of a workspace has pages of its own."""

    def place(timeline, itemsize, kept=(), watched=()):
        buffers = {id(b): b for op in timeline for b in op.operands if b is not None and b.space == _work_space()}
        unit, offset = PAGE // itemsize, 0
        for buffer in buffers.values():
            room = max(1, -(-buffer.size // unit)) * unit
            buffer.offset = offset + (room - buffer.size if side == "end" else 0)
            offset += room + unit
        return offset, offset

    return place


def _work_space():
    from nbprop.program import frame

    return frame.WORK


class Workspace:
    """The workspace of a plan whose buffers lie apart. `open` lets a call touch its programs' buffers, and no more."""

    def __init__(self, plan):
        self._plan, itemsize = plan, plan.dtype.itemsize
        self._pages = -(-plan.work_size * itemsize // PAGE) + 1
        self._base = _map(self._pages)
        self.array = _array_at(self._base, (plan.work_size,), plan.dtype)

    def open(self, programs):
        _protect(self._base, self._pages, _NONE)
        plan, ranges = self._plan, [(self._plan.unit_offset, self._plan.unit_size)]
        for program in programs:
            for op in plan.ops(program):
                ranges += [(b.offset, b.size) for b in op.operands if b is not None and b.space == _work_space()]
        for offset, size in ranges:
            first = offset * plan.dtype.itemsize // PAGE
            stop = -(-(offset + size) * plan.dtype.itemsize // PAGE)
            _protect(self._base + first * PAGE, stop - first, _READ | _WRITE)

    def close(self):
        _libc.munmap(self._base, self._pages * PAGE)
