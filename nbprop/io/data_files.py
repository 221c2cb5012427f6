"""Data for training and prediction from .csv, .parquet, .npz and .npy files, with a report of what was found."""

from pathlib import Path

import numpy as np

from nbprop.io.array_files import open_array, open_arrays
from nbprop.io.csv_files import TextTable
from nbprop.io.parquet_files import ParquetTable
from nbprop.io.sources import Choices, Data, Piece, Source, named_list
from nbprop.io.table_source import TableSource
from nbprop.messages import SAMPLES_DIFFER, failure

__all__ = ["Choices", "Data", "Piece", "Source", "are_classes", "open_data"]

_PIECE = 1 << 22  # bytes of a piece
_EXACT = 2.0**53  # integers below it are exact in float64


class ArraySource(Source):
    """An .npz of arrays x and y, or an .npy: a table whose last columns are the target, or x alone."""

    row_word = "rows"

    def __init__(self, path, choices, with_target):
        super().__init__(path, choices)
        for name in ("target", "drop", "category"):
            if getattr(choices, name):
                raise ValueError(f"{path}: --{name} is for columns of a table; see --targets")
        self.remarks, self.y, self.split = [], None, 0
        if Path(path).suffix == ".npy":
            self.x = open_array(path)
            self.split = (1 if with_target else 0) if choices.targets is None else choices.targets
            if self.split and len(self.x.shape) != 2:
                raise ValueError(f"{path}: an array with a target among its columns must be 2-D, got {self.x.shape}")
            if self.split and self.split >= self.x.shape[1]:
                raise ValueError(
                    f"{path}: {self.x.shape[1]} columns, the last {self.split} the target, leave none for x"
                )
        else:
            wanted = {"x": ("x",), "y": ("y", "target")} if with_target else {"x": ("x",)}
            found, others = open_arrays(path, wanted)
            self.x, self.y = found["x"], found.get("y")
            if others:
                self.remarks.append(f"left out: {named_list(others, 'array')}")
        if self.x.dtype.kind == "U":
            raise ValueError(f"{path}: {self.x.name} must be an array of numbers, got {self.x.dtype}")
        if self.x.nbytes == 0:
            raise ValueError(f"{path}: no samples; {self.x.name} has shape {self.x.shape}")
        shape = self.x.shape[1:] or (1,)
        self.sample_shape = (*shape[:-1], shape[-1] - self.split)
        self.target_names = [f"the last {self.split} columns"] if self.split else [self.y.name] if self.y else None
        if self.y is not None and self.y.shape[0] != self.x.shape[0]:
            got = f"{self.y.shape[0]} for {self.x.shape[0]}"
            raise failure(SAMPLES_DIFFER, f"{path}: {self.y.name}", got=got)

    def raw_pieces(self):
        rows = self.x.rows_of(_PIECE)
        targets = self.y.pieces(rows) if self.y is not None else None
        start = 0
        for x in self.x.pieces(rows):
            x, y = x.reshape(len(x), -1), None if targets is None else next(targets)
            if self.split:
                x, y = x[:, : -self.split], np.ascontiguousarray(x[:, -self.split :])
            yield Piece(x, y, np.arange(start, start + len(x)))
            start += len(x)
        for _ in targets or ():  # to the end, where the checksum is compared
            pass

    def place(self, piece, i, j):
        where = [piece.rows[i]]
        if len(self.x.shape) > 1:
            where += np.unravel_index(j, self.sample_shape)
        return f"{self.x.name}[{', '.join(str(int(k)) for k in where)}]"

    def target_place(self, piece, i):
        return f"{'target' if self.y is None else self.y.name}[{piece.rows[i]}]"

    def lines(self):
        of = f", {self.y.name} {self.y.shape} {self.y.dtype}" if self.y is not None else ""
        yield f"file: {self.path}, {self.x.name} {self.x.shape} {self.x.dtype}{of}"
        yield f"features: samples of shape {self.sample_shape}"
        yield from self.remarks

    def lines_after(self):
        yield f"rows: {self.count:,}"
        if (line := self.missing_line()) is not None:
            yield line


def open_data(path, choices, with_target, known=None):
    """The source of a file, by its suffix: .csv or .tsv, .parquet, .npz or .npy.

    with_target : whether to read a target, or to leave out its columns, if given
    known : the `Columns` that the network was trained with
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".npz", ".npy"):
        return ArraySource(path, choices, with_target)
    if suffix in (".csv", ".tsv"):
        names = (known.names if known is not None else None) or ()
        return TableSource(TextTable(path, choices.form, names), choices, with_target, known)
    if suffix in (".parquet", ".pq"):
        return TableSource(ParquetTable(path), choices, with_target, known)
    raise ValueError(f"{path}: data must be a .npz, .npy, .csv, .tsv or .parquet file")


def are_classes(y):
    """Whether a target holds integers that float64 represents exactly."""
    if y.dtype.kind in "iub":
        return True
    return bool((np.abs(y) < _EXACT).all() and np.array_equal(y, np.rint(y)))
