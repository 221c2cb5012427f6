"""Chunks of samples from .npy, parquet, zarr and HDF5 files, for `fit_chunks`: larger than memory, read in order.

Each file is opened and compared with the first before anything is trained. A chunk is read into arrays of its own,
never mapped: a file that is cut while it is read is an error, not a crash.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbprop.io.array_files import ArrayFileError, file_errors, fill, read_header, refuse_streams
from nbprop.validation import as_dtype, check_integer, shown

_ROWS = 8192
_NAMES = ("x", "target", "weights")
_NUMBERS = "iufb"


def file_chunks(
    files: Any,
    x: str | Sequence[str] = "x",
    target: str | Sequence[str] = "target",
    weights: str | None = None,
    rows: int = _ROWS,
    dtype: Any = None,
) -> "FileChunks":
    """Chunks of samples in files, for `fit_chunks`, which trains on them without holding them in memory.

    Parameters
    ----------
    files : path, tuple of paths, or list of these
        What holds the samples, one after another in a list: a .parquet, .zarr, .h5 or .hdf5 file, or a tuple of .npy
        files (x, target) or (x, target, weights).
    x, target, weights : str
        Names of the arrays in a .zarr or HDF5 file ("group/name" in a group). In a parquet file, of a column, or a list
        of columns, which become the last axis. Not used for .npy files.
    rows : int
        Samples that are read at a time. A multiple of the length of the file's own chunks is read fastest.
    dtype : float32, float64 or None
        What x, weights and a target of floating-point numbers are converted to; None: as they are in the file.

    Returns
    -------
    FileChunks
        A function of an iterator, as `fit_chunks` takes it. `samples` is their number.

    Raises
    ------
    ImportError
        If a format's package is missing: `pip install nbprop[parquet]`, `nbprop[zarr]` or `nbprop[hdf5]`.
    OSError, TypeError, ValueError
        For a file that is missing, cut or of another shape or dtype than the first, with its name; for values of x that
        are not finite, and nulls, when their chunk is read. A zarr or HDF5 array without some of its chunks is not
        refused: these formats leave out those of fill values alone.

    Examples
    --------
    >>> import nbprop, numpy as np, os, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> paths = tuple(os.path.join(folder.name, name) for name in ("x.npy", "target.npy"))
    >>> x = np.linspace(0, 1, 500)[:, None]
    >>> np.save(paths[0], x), np.save(paths[1], 2 * x)
    (None, None)
    >>> chunks = nbprop.file_chunks(paths, rows=100)
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> history = nbprop.fit_chunks(
    ...     net, nbprop.init(net), chunks, "mse", batch=10, epochs=9, window=200, lr=0.05, read_ahead=True
    ... )
    >>> chunks.samples, history.loss[-1] < 0.01
    (500, True)
    >>> folder.cleanup()
    """
    listed = list(files) if isinstance(files, list) else [files]
    if not listed:
        raise ValueError("file_chunks: files must not be an empty list")
    rows = check_integer("file_chunks: rows", rows)
    kind = None if dtype is None else as_dtype(dtype)
    columns = [_names(name, given) for name, given in zip(_NAMES, (x, target, weights), strict=True)]
    return FileChunks([_open(entry, columns) for entry in listed], rows, kind)


class FileChunks:
    """What `file_chunks` returns: a function of an iterator of (x, target) or (x, target, weights)."""

    def __init__(self, files, rows, dtype):
        self._files, self._rows, self._dtype = files, rows, dtype
        first = files[0]
        for file in files:
            if len(file.layout) != len(first.layout):
                raise ValueError(f"file_chunks: {file.path} and {first.path} must both have weights, or neither")
            for name, (shape, kind), (wanted, wanted_kind) in zip(_NAMES, file.layout, first.layout, strict=False):
                if kind.kind not in _NUMBERS:
                    raise TypeError(f"file_chunks: {file.path}: {name} must hold numbers, got {kind}")
                if not shape or shape[0] != file.layout[0][0][0]:
                    count = file.layout[0][0][0]
                    raise ValueError(f"file_chunks: {file.path}: {name} must have {count} samples, got shape {shape}")
                if shape[1:] != wanted[1:] or kind != wanted_kind:
                    raise ValueError(
                        f"file_chunks: {file.path}: samples of {name} must be {kind_of(wanted, wanted_kind)} as in "
                        f"{first.path}, got {kind_of(shape, kind)}"
                    )
        self.samples = sum(file.layout[0][0][0] for file in files)

    def __call__(self) -> Iterator[tuple[NDArray[Any], ...]]:
        for file in self._files:
            begin = 0
            with contextlib.closing(file.pieces(self._rows)) as pieces:
                for arrays in pieces:
                    arrays = tuple(self._converted(name, a) for name, a in zip(_NAMES, arrays, strict=False))
                    _refuse_non_finite(file.path, arrays[0], begin)
                    begin += len(arrays[0])
                    yield arrays

    def _converted(self, name, array):
        kind = array.dtype.newbyteorder("=")
        if self._dtype is not None and (name != "target" or kind.kind == "f"):
            kind = self._dtype
        return np.ascontiguousarray(array, kind)

    def __repr__(self):
        return f"file_chunks({len(self._files)} files, {self.samples} samples)"


def kind_of(shape, kind):
    """A sample as messages say it."""
    return f"{kind}{list(shape[1:])}"


def _refuse_non_finite(path, x, begin):
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        row, *place = np.unravel_index(int(np.argmin(np.isfinite(x))), x.shape)
        where = ", ".join(str(int(k)) for k in (begin + row, *place))
        raise ValueError(f"file_chunks: {path}: x[{where}] is {x[(row, *place)]}; remove or replace such samples")


def _names(argument, given):
    """A name, or a list of names; None for weights that there are not."""
    if given is None and argument == "weights":
        return None
    listed = [given] if isinstance(given, str) else list(given) if isinstance(given, (list, tuple)) else [None]
    if not listed or not all(isinstance(name, str) for name in listed):
        raise TypeError(f"file_chunks: {argument} must be a name, or a list of names of columns, got {shown(given)}")
    return given if isinstance(given, str) else listed


def _open(entry, names):
    if isinstance(entry, tuple):
        return _ArrayFiles(entry)
    if not isinstance(entry, (str, os.PathLike)):
        raise TypeError(f"file_chunks: files must be paths, or tuples of paths of .npy files, got {shown(entry)}")
    suffix = Path(entry).suffix.lower()
    if suffix not in _FORMATS:
        wanted = "a tuple of .npy files, or .parquet, .zarr, .h5 or .hdf5"
        raise ValueError(f"file_chunks: {os.fspath(entry)}: must be {wanted}")
    return _FORMATS[suffix](os.fspath(entry), [name for name in names if name is not None])


class _ArrayFiles:
    """A tuple of .npy files."""

    def __init__(self, paths):
        if len(paths) not in (2, 3) or not all(isinstance(path, (str, os.PathLike)) for path in paths):
            raise TypeError(f"file_chunks: a tuple must be paths (x, target) or (x, target, weights), got {paths!r}")
        self.paths = [os.fspath(path) for path in paths]
        self.path = self.paths[0]
        self.layout, self.offsets = [], []
        for path in self.paths:
            refuse_streams(path)
            with file_errors(path, "not a readable .npy file"), open(path, "rb") as stream:
                shape, by_column, dtype = read_header(stream)
                size = int(np.prod(shape, dtype=object)) * dtype.itemsize
                held = os.path.getsize(path) - stream.tell()
                if size != held:
                    raise ValueError(
                        f"its header promises {size} bytes (shape {shape}, {dtype}), but {held} are stored"
                    )
                if by_column and len(shape) > 1:
                    raise ValueError("it is in Fortran order; save np.ascontiguousarray(array)")
                self.layout.append((shape, dtype))
                self.offsets.append(stream.tell())

    def pieces(self, rows):
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(open(path, "rb", buffering=0)) for path in self.paths]
            for stream, offset in zip(streams, self.offsets, strict=True):
                stream.seek(offset)
            for start in range(0, self.layout[0][0][0], rows):
                yield tuple(
                    self._piece(*file, min(rows, self.layout[0][0][0] - start))
                    for file in zip(self.paths, streams, self.layout, strict=True)
                )

    @staticmethod
    def _piece(path, stream, layout, rows):
        (_, *sample), dtype = layout
        with file_errors(path, "damaged"):
            piece = np.empty((rows, *sample), dtype)
            fill(stream, piece)
        return piece


class _Hdf5:
    """An HDF5 file, by h5py."""

    package, extra, what = "h5py", "hdf5", "HDF5 file"

    def __init__(self, path, names):
        self.path, self.names = path, names
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"file_chunks: {path}: an array of an {self.what} has one name, got {name}")
        os.stat(path)  # an error with its name, where there is none
        self.layout = []
        with file_errors(path, f"not a readable {self.what}"), self._opened() as arrays:
            self.layout = [(tuple(array.shape), np.dtype(array.dtype)) for array in arrays]

    @contextlib.contextmanager
    def _opened(self):
        with imported(self.path, self.package, self.extra).File(self.path, "r") as group:
            yield [self._array(group, name) for name in self.names]

    def _array(self, group, name):
        if name not in group:
            held = ", ".join(sorted(group)) or "none"
            raise ArrayFileError(f"file_chunks: {self.path}: there is no array {name!r}; it holds {held}")
        array = group[name]
        if not hasattr(array, "dtype"):
            raise ArrayFileError(f"file_chunks: {self.path}: {name!r} is a group, not an array")
        return array

    def pieces(self, rows):
        with contextlib.ExitStack() as stack:
            stack.enter_context(file_errors(self.path, f"damaged {self.what}"))
            arrays = stack.enter_context(self._opened())
            for array, (shape, _) in zip(arrays, self.layout, strict=True):
                if tuple(array.shape) != shape:
                    raise ValueError(f"an array had shape {shape} before, and has {tuple(array.shape)} now")
            for start in range(0, self.layout[0][0][0], rows):
                yield tuple(array[start : start + rows] for array in arrays)


class _Zarr(_Hdf5):
    """A zarr group in a folder or .zip, by zarr."""

    package, extra, what = "zarr", "zarr", "zarr group"

    @contextlib.contextmanager
    def _opened(self):
        group = imported(self.path, self.package, self.extra).open_group(self.path, mode="r")
        yield [self._array(group, name) for name in self.names]


class _Parquet:
    """Columns of a parquet file, by pyarrow. A file's row group is what is in memory beside the chunk."""

    def __init__(self, path, names):
        refuse_streams(path)
        self.path, self.names = path, names
        self.columns = list(dict.fromkeys(c for n in names for c in ([n] if isinstance(n, str) else n)))
        with self._opened() as file:
            schema, count = file.schema_arrow, file.metadata.num_rows
            for column in self.columns:
                if schema.names.count(column) != 1:
                    found = ", ".join(schema.names[:20])
                    raise ValueError(f"file_chunks: {path}: needs one column {column!r}; it has {found}")
            kinds = {column: self._dtype(column, schema.field(column).type) for column in self.columns}
        self.layout = []
        for name in names:
            listed = [name] if isinstance(name, str) else name
            shape = (count,) if isinstance(name, str) else (count, len(name))
            self.layout.append((shape, np.result_type(*(kinds[column] for column in listed))))

    @contextlib.contextmanager
    def _opened(self):
        parquet = imported(self.path, "pyarrow.parquet", "parquet")
        arrow = imported(self.path, "pyarrow", "parquet")
        try:
            with parquet.ParquetFile(self.path) as file:
                yield file
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"file_chunks: {self.path}: not a readable parquet file: {error}") from None

    def _dtype(self, column, kind):
        types = imported(self.path, "pyarrow", "parquet").types
        if not any(fits(kind) for fits in (types.is_integer, types.is_floating, types.is_boolean)):
            raise TypeError(f"file_chunks: {self.path}: column {column!r} must hold numbers, got {kind}")
        return np.dtype(bool) if types.is_boolean(kind) else np.dtype(kind.to_pandas_dtype())

    def pieces(self, rows):
        begin = 0
        with self._opened() as file:
            for batch in file.iter_batches(rows, columns=self.columns):
                for column in self.columns:
                    self._refuse_nulls(batch.column(column), column, begin)
                begin += batch.num_rows
                yield tuple(self._array(batch, *one) for one in zip(self.names, self.layout, strict=True))

    def _refuse_nulls(self, array, column, begin):
        if array.null_count:
            row = begin + int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
            raise ValueError(
                f"file_chunks: {self.path}: row {row}, column {column!r} is null; fill it in or leave it out"
            )

    @staticmethod
    def _array(batch, name, layout):
        (_, *sample), dtype = layout
        if not sample:
            return batch.column(name).to_numpy(zero_copy_only=False).astype(dtype, copy=False)
        found = np.empty((batch.num_rows, *sample), dtype)
        for k, column in enumerate(name):
            found[:, k] = batch.column(column).to_numpy(zero_copy_only=False)
        return found


def imported(path, package, extra):
    """A package that a format needs."""
    try:
        return __import__(package, fromlist=["_"])
    except ImportError:
        name = package.partition(".")[0]
        raise ImportError(
            f"file_chunks: reading {path} needs {name}, which is not installed; pip install nbprop[{extra}]"
        ) from None


_FORMATS: dict[str, Any] = {
    **dict.fromkeys((".parquet", ".pq"), _Parquet),
    **dict.fromkeys((".h5", ".hdf5"), _Hdf5),
    ".zarr": _Zarr,
}
