"""Arrays in .npy and .npz files, read piece by piece.

The header of an array is checked against the size of its file before anything is allocated; nothing is unpickled, and
only the requested arrays of an .npz are unpacked. Every fault of a file becomes a ValueError that names the file.
"""

import contextlib
import math
import os
import stat
import struct
import tokenize
import warnings
import zipfile
import zlib

import numpy as np

_DEFLATE = 1032  # maximum compression ratio of deflate
_FAULTS = (
    *(ValueError, TypeError, KeyError, EOFError, SyntaxError, OverflowError, RecursionError, NotImplementedError),
    *(RuntimeError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


@contextlib.contextmanager
def file_errors(path, what):
    """Convert whatever the contents of a file raise into ArrayFileError."""
    try:
        yield
    except ArrayFileError:
        raise
    except (OSError, *_FAULTS) as error:
        if isinstance(error, OSError) and error.filename is not None:  # from opening the file, not from its contents
            raise
        raise ArrayFileError(f"{path}: {what}: {error or type(error).__name__}") from None


@contextlib.contextmanager
def _without_warnings():
    """Suppress NumPy's warnings about headers written by Python 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_header(stream):
    """(shape, whether it is by column, dtype) of an array, from the beginning of an .npy stream."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format {version} is not for arrays of numbers or text")
    with _without_warnings():
        shape, by_column, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never unpickled")
    if min(shape, default=0) < 0:
        raise ValueError(f"its header promises the shape {shape}")
    return shape, by_column, dtype


def fill(stream, piece):
    """Read an array from a stream; ValueError if it ends before."""
    view, filled = memoryview(piece.reshape(-1).view(np.uint8)), 0
    while filled < len(view):
        count = stream.readinto(view[filled : filled + (1 << 20)])
        if not count:
            raise ValueError(f"it ends {len(view) - filled} bytes early")
        filled += count


class ArrayFileError(ValueError):
    """A file with invalid contents."""


class StoredArray:
    """An array in a file: name, shape and dtype; `pieces` reads it."""

    def __init__(self, path, name, shape, dtype, by_column):
        self.path, self.name, self.shape, self.dtype, self.by_column = path, name, shape, dtype, by_column
        if dtype.kind not in "biufU":
            raise ArrayFileError(f"{path}: {name} must be an array of numbers or text, got {dtype}")
        if len(shape) == 0:
            raise ArrayFileError(f"{path}: {name} must have samples along its first axis, got a single value")

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.dtype.itemsize

    def rows_of(self, piece_bytes):
        """The number of rows in a piece of about `piece_bytes` bytes."""
        return max(1, piece_bytes // max(1, self.nbytes // max(1, self.shape[0])))


class _Mapped(StoredArray):
    """The array of an .npy file, as a memory map."""

    def __init__(self, path, name):
        with file_errors(path, "not a readable .npy file"), _without_warnings():
            self.array = np.lib.format.open_memmap(path, mode="r")
        super().__init__(path, name, self.array.shape, self.array.dtype, False)

    def pieces(self, rows):
        for start in range(0, len(self.array), rows):
            yield np.array(self.array[start : start + rows])


class _Member(StoredArray):
    """An array of an .npz file."""

    def __init__(self, path, name, member):
        self.member = member
        with (
            file_errors(path, f"{name} is damaged"),
            zipfile.ZipFile(path) as archive,
            archive.open(member) as stream,
        ):
            shape, by_column, dtype = read_header(stream)
            info, size = archive.getinfo(member), math.prod(shape) * dtype.itemsize
            if info.file_size != stream.tell() + size:
                raise ValueError(
                    f"its header promises {size} bytes (shape {shape}, {dtype}), but {info.file_size - stream.tell()} "
                    "are stored"
                )
            held = os.path.getsize(path)
            if info.compress_size > held or info.file_size > _DEFLATE * (info.compress_size + 8):
                raise ValueError(f"{info.file_size} bytes cannot come from {info.compress_size} of {held}")
        super().__init__(path, name, shape, dtype, by_column and len(shape) > 1)

    def pieces(self, rows):
        if self.by_column:
            (whole,) = self._read(self.shape[::-1], max(1, self.shape[-1]))
            for start in range(0, self.shape[0], rows):
                yield np.ascontiguousarray(whole.T[start : start + rows])
            return
        yield from self._read(self.shape, rows)

    def _read(self, shape, rows):
        archive = zipfile.ZipFile(self.path)
        with file_errors(self.path, f"{self.name} is damaged"), archive, archive.open(self.member) as stream:
            stream.read(archive.getinfo(self.member).file_size - self.nbytes)  # the header
            for start in range(0, shape[0], rows):
                piece = np.empty((min(rows, shape[0] - start), *shape[1:]), self.dtype)
                fill(stream, piece)
                yield piece
            if stream.read(1):  # read to the end, where the checksum is verified
                raise ValueError("it has extra bytes")


def open_arrays(path, names):
    """({name: StoredArray}, names of the arrays that are not used) of an .npz, for {name: accepted spellings}.

    Raises ArrayFileError for a file that is damaged or lacks an array, OSError for one that cannot be opened.
    """
    refuse_streams(path)
    with file_errors(path, "not a readable .npz file"), zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
    found = {}
    for wanted, spellings in names.items():
        name = next((name for name in spellings if name in members), None)
        if name is None:
            held = ", ".join(members) or "no array"
            raise ArrayFileError(f"{path}: needs an array named {' or '.join(spellings)}; it holds {held}")
        found[wanted] = _Member(path, name, members[name])
    used = {array.name for array in found.values()}
    return found, [name for name in members if name not in used]


def open_array(path, name="x"):
    """The array of an .npy file, memory-mapped."""
    refuse_streams(path)
    return _Mapped(path, name)


def refuse_streams(path):
    """Refuse a pipe or a device, which cannot be read twice, and may block for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ArrayFileError(f"{path}: not a regular file; copy its contents into one")
