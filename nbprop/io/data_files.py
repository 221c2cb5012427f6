"""Data for training and prediction from .csv, .npz and .npy files, piece by piece, with a report of what was found.

A source knows the shape of a sample before it reads one; `pieces` yields (x, y) a few megabytes at a time. Every value
is checked, and errors name its place: `line 4, column 2 'width'` in a text file, `x[3, 0]` in an array.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nbprop.io.array_files import open_array, open_arrays
from nbprop.io.csv_files import TextFormat, TextTable, TextWhereNumber
from nbprop.messages import SAMPLES_DIFFER, failure

_PIECE = 1 << 22  # bytes of a piece
_SHOWN = 8  # maximum number of lines, names or labels listed one by one
_EXACT = 2.0**53  # integers below it are exact in float64


@dataclass(frozen=True)
class Choices:
    """The options of the command line about a file."""

    form: TextFormat = field(default_factory=TextFormat)
    target: tuple = ()  # columns by name or number; by default the last `targets`
    targets: int | None = None
    drop: tuple = ()  # columns to leave out
    index: str = "auto"  # what to do with a first column without a name: "auto", "drop", "keep"
    on_missing: str | float = "refuse"  # "refuse", "drop", or a number to replace them by


@dataclass
class Piece:
    """Samples: x, y (or None), and the place of a value in the file."""

    x: np.ndarray
    y: np.ndarray | None
    rows: np.ndarray  # lines of a text file, indices into an array


@dataclass
class Data:
    """Samples as training takes them; y is (n, ...) numbers, or, if it was text, indices into `labels`."""

    x: np.ndarray
    y: np.ndarray
    rows: np.ndarray
    labels: list | None = None


class Source:
    """What both kinds of files share: missing values, dtypes, and reading all samples."""

    features: list | None = None  # names of the features, if the file has them
    target_names: list | None = None
    text_target: str | None = None  # if the target is text: the message for a loss that needs numbers
    sample_shape: tuple[int, ...] = ()
    row_word = ""  # what `rows` of a piece count

    def __init__(self, path, choices):
        self.path, self.choices = path, choices
        self.count, self.left_out = 0, []

    def without_missing(self, piece):
        """A piece without missing values; None if no sample is left."""
        x, y, wanted = piece.x, piece.y, self.choices.on_missing
        gaps: np.ndarray = np.isnan(x).reshape(len(x), -1) if x.dtype.kind == "f" else np.zeros((len(x), 1), bool)
        target_gaps: Any = np.zeros(len(x), bool)
        if y is not None:
            empty = y == "" if y.dtype.kind == "U" else np.isnan(y) if y.dtype.kind == "f" else np.zeros(y.shape, bool)
            target_gaps = empty.reshape(len(y), -1).any(1)
        wrong = gaps.any(1) | target_gaps
        if wrong.any() and wanted == "drop":
            self.left_out += piece.rows[wrong].tolist()
            piece = Piece(x[~wrong], None if y is None else y[~wrong], piece.rows[~wrong])
        elif wrong.any():
            i = int(np.argmax(target_gaps if wanted != "refuse" and target_gaps.any() else wrong))
            if wanted == "refuse" or target_gaps[i]:
                place = self.place(piece, i, int(np.argmax(gaps[i]))) if gaps[i].any() else self.target_place(piece, i)
                remedy = "--on-missing drop" + ("" if target_gaps[i] else " or a number to replace it")
                raise ValueError(f"{self.path}: {place} is missing; fill it in, or say {remedy}")
            piece.x = np.where(np.isnan(x), x.dtype.type(wanted), x)
        self.count += len(piece.x)
        return piece if len(piece.x) else None

    def converted(self, piece, dtype, limit):
        """The x of a piece in the dtype of the network, or as integers below `limit` if that is not 0."""
        x = piece.x
        with np.errstate(over="ignore", invalid="ignore"):
            if limit:
                out = x.astype(np.int64)
                wrong = (x < 0) | (x >= limit) | (out != x)
                what = f"the network's first layer takes integers in 0..{limit - 1}"
            else:
                out = x.astype(dtype)
                wrong = ~np.isfinite(out)
                what = f"{dtype} cannot represent it" + ("; say --dtype float64" if dtype == np.float32 else "")
        if wrong.any():
            i, j = divmod(int(np.argmax(wrong.reshape(len(x), -1))), max(1, x[0].size))
            value = x.reshape(len(x), -1)[i, j]
            what = what if np.isfinite(value) else "remove such samples, or fill them in"
            raise ValueError(f"{self.path}: {self.place(piece, i, j)} is {value:.17g}; {what}")
        return out

    def read(self, dtype, limit):
        """All samples with their targets."""
        xs, ys, rows = [], [], []
        for piece in self.pieces(dtype, limit):
            xs.append(piece.x)
            ys.append(piece.y)
            rows.append(piece.rows)
        if not xs:
            raise ValueError(f"{self.path}: no samples" + (" without a missing value" if self.left_out else ""))
        x, y, rows = _concatenated(xs), _concatenated(ys), _concatenated(rows)
        labels = None
        if y.dtype.kind == "U":
            if y.ndim > 1 and y[0].size > 1:
                raise ValueError(f"{self.path}: a target of text must be one column, got shape {y.shape}")
            found, y = np.unique(y.reshape(len(y)), return_inverse=True)
            labels = found.tolist()
        elif y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        wrong = ~np.isfinite(y)
        if wrong.any():
            i = int(np.argmax(wrong.reshape(len(y), -1).any(1)))
            raise ValueError(f"{self.path}: {self.target_place(Piece(x, y, rows), i)} is not finite; remove or fill in")
        return Data(x, y, rows, labels)

    def pieces(self, dtype, limit):
        """Pieces with x ready for the network; see `converted`."""
        self.count, self.left_out = 0, []
        for piece in self.raw_pieces():
            piece = self.without_missing(piece)
            if piece is not None:
                piece.x = self.converted(piece, dtype, limit).reshape(len(piece.x), *self.sample_shape)
                yield piece

    def raw_pieces(self) -> Iterator[Piece]:
        """Pieces as in the file."""
        raise NotImplementedError

    def place(self, piece, i, j) -> str:
        """Where number j of sample i of a piece is in the file."""
        raise NotImplementedError

    def target_place(self, piece, i) -> str:
        """Where its target is."""
        raise NotImplementedError

    @staticmethod
    def piece(rows):
        """A piece that is only asked for places."""
        return Piece(rows, None, rows)

    def missing_line(self):
        """What was done about missing values, as a line, or None."""
        if self.left_out:
            return f"left out for a missing value: {_some(self.left_out)} ({self.row_word})"
        return None


class CsvSource(Source):
    """A text file. features: the names of a model, to be found in the header of the file, if it has one."""

    row_word = "lines"

    def __init__(self, path, choices, with_target, features=None):
        super().__init__(path, choices)
        self.table = table = TextTable(path, choices.form, features or ())
        self.remarks, columns = [], list(range(table.width))
        by_name = features is not None and table.names is not None
        for text in choices.drop:
            self._leave_out(columns, table.find(text), "as asked")
        self.targets = self._targets(columns, with_target)
        columns = [column for column in columns if column not in self.targets]
        self.index = None
        columns = self._named(columns, features) if by_name else self._without_index(columns)
        if not columns:
            raise ValueError(f"{path}: its {table.width} columns leave no features; see --target, --targets and --drop")
        self.columns, self.sample_shape = columns, (len(columns),)
        if table.names is not None:
            self.features = [table.names[c] or f"column {c + 1}" for c in columns]
            self.target_names = [table.names[c] or f"column {c + 1}" for c in self.targets]
        else:
            self.features = None
            self.target_names = [f"column {c + 1}" for c in self.targets]
        if not with_target:
            for column in self.targets:
                self.remarks.append(f"left out: {table.name(column)}, as the target")
            self.targets = []

    def _leave_out(self, columns, column, why):
        if column in columns:
            columns.remove(column)
            self.remarks.append(f"left out: {self.table.name(column)}, {why}")

    def _targets(self, columns, with_target):
        if self.choices.target:
            found = [self.table.find(text) for text in self.choices.target]
            for column in found:
                if column not in columns or found.count(column) > 1:
                    raise ValueError(
                        f"{self.path}: {self.table.name(column)} is named twice, as target or to leave out"
                    )
            return found
        count = (1 if with_target else 0) if self.choices.targets is None else self.choices.targets
        if count >= len(columns):
            raise ValueError(
                f"{self.path}: {len(columns)} columns, of which the last {count} are the target, leave none for x; "
                "see --target and --delimiter"
            )
        return columns[len(columns) - count :]

    def _named(self, columns, features):
        """The columns with the names of a model, in its order."""
        names = self.table.names or []
        absent = [name for name in features if names.count(name) != 1]
        if absent:
            shown = ", ".join(map(repr, absent[:_SHOWN]))
            raise ValueError(
                f"{self.path}: the network was trained with {_named_list(features)}; of these the file lacks, or has "
                f"more than once, {shown}; rename its columns, or remove its header if their order is the same"
            )
        found = [names.index(name) for name in features]
        for column in columns:
            if column not in found:
                self.remarks.append(f"left out: {self.table.name(column)}, which the network was not trained with")
        return found

    def _without_index(self, columns):
        """Leave out leading columns that have no name and count the rows."""
        table, index = self.table, self.choices.index
        if index == "drop" and columns and not table.unnamed(columns[0]):
            raise ValueError(f"{self.path}: {table.name(columns[0])} has a name; leave it out with --drop, not --index")
        while columns and table.unnamed(columns[0]) and index != "keep":
            column, counts = columns[0], table.counts_rows(columns[0])
            if index == "drop":
                self._leave_out(columns, column, "as the index")
            elif table.names is not None and counts:
                self.index = column
                why = "which has no name and counts the rows (--index keep takes it as a feature)"
                self._leave_out(columns, column, why)
            elif table.names is not None or (counts and len(table.sample) > 2):
                what = "counts the rows" if counts else "does not count the rows"
                raise ValueError(
                    f"{self.path}: {table.name(column)} has no name and {what}: an index or a feature? "
                    "say --index drop or --index keep"
                )
            if table.names is None:
                break
        for column in columns:
            if not table.unnamed(column) and table.counts_rows(column) and len(table.sample) > 2:
                self.remarks.append(
                    f"note: {table.name(column)} counts the rows and is a feature (--drop {column + 1} leaves it out)"
                )
        return columns

    def raw_pieces(self):
        """Pieces as in the file, in float64."""
        texts: list[int] = self.targets if self.text_target is not None else []
        numbers = self.columns + ([] if texts else self.targets) + ([] if self.index is None else [self.index])
        last = None
        for block in self.table.blocks(numbers, texts):
            x = np.ascontiguousarray(block.numbers[:, : len(self.columns)])
            y = None
            if texts:
                y = np.array([block.texts[column] for column in texts]).T
            elif self.targets:
                y = np.ascontiguousarray(block.numbers[:, len(self.columns) : len(self.columns) + len(self.targets)])
            if self.index is not None:
                last = self._check_index(block, block.numbers[:, -1], last)
            yield Piece(x, y, np.array(block.lines))

    def _check_index(self, block, index, last):
        """Check that the first column continues to count; returns its last number."""
        start = index[0] if last is None else last + 1
        wrong = index != start + np.arange(len(index))
        if wrong.any():
            raise ValueError(
                f"{self.path}: {self.table.name(self.index)} has no name and counts the rows up to line "
                f"{block.lines[int(np.argmax(wrong))]}, then no longer: an index or a feature? say --index drop or keep"
            )
        return index[-1]

    def read(self, dtype, limit):
        """All samples; a target with a field of text is read again as text."""
        try:
            return super().read(dtype, limit)
        except TextWhereNumber as error:
            if self.targets != [error.column]:
                raise
            self.text_target = str(error)
        return super().read(dtype, limit)

    def place(self, piece, i, j):
        return f"line {piece.rows[i]}, {self.table.name(self.columns[j])}"

    def target_place(self, piece, i):
        return f"line {piece.rows[i]}, target " + ", ".join(map(repr, self.target_names or ()))

    def lines(self):
        """A report of what was found, line by line, before the data is read."""
        table = self.table
        yield f"file: {self.path}, columns separated by {table.delimiter!r}, {table.form.encoding}"
        yield "names: " + ("none" if table.names is None else f"line {table.header_line}")
        names = self.features or [f"column {c + 1}" for c in self.columns]
        yield f"features: {_named_list(names)}"
        yield from self.remarks

    def lines_after(self):
        """A report of what was found in the whole file."""
        yield f"rows: {self.count:,}"
        table = self.table
        if table.comments:
            yield f"left out as comments: lines {_some(table.comments)}"
        if table.blank:
            yield f"left out as blank: {table.blank} line{'s' if table.blank > 1 else ''}"
        if table.missing:
            shown = ", ".join(f"{name!r} {count}" for name, count in sorted(table.missing.items()))
            filled = "" if self.choices.on_missing == "drop" else f", taken as {self.choices.on_missing}"
            yield f"missing values: {shown}{filled}"
        if (line := self.missing_line()) is not None:
            yield line


class ArraySource(Source):
    """An .npz of arrays x and y, or an .npy: a table whose last columns are the target, or x alone."""

    row_word = "rows"

    def __init__(self, path, choices, with_target):
        super().__init__(path, choices)
        for name in ("target", "drop"):
            if getattr(choices, name):
                raise ValueError(f"{path}: --{name} is for columns of a .csv file; see --targets")
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
                self.remarks.append(f"left out: {_named_list(others, 'array')}")
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


def open_data(path, choices, with_target, features=None):
    """The source of a file: .csv (or .tsv, .txt) by its name, .npz or .npy.

    with_target : whether to read a target, or to leave out its columns, if given
    features : names that the network was trained with
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".npz", ".npy"):
        return ArraySource(path, choices, with_target)
    if suffix in (".csv", ".tsv"):
        return CsvSource(path, choices, with_target, features)
    raise ValueError(f"{path}: data must be a .npz, .npy, .csv or .tsv file")


def are_classes(y):
    """Whether a target holds integers that float64 represents exactly."""
    if y.dtype.kind in "iub":
        return True
    return bool((np.abs(y) < _EXACT).all() and np.array_equal(y, np.rint(y)))


def _concatenated(parts):
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _some(items):
    shown = ", ".join(map(str, items[:_SHOWN]))
    return shown if len(items) <= _SHOWN else f"{shown} and {len(items) - _SHOWN:,} more"


def _named_list(names, word=""):
    """How many, and their names."""
    return f"{len(names)} {word}{'s' if word and len(names) != 1 else ''}".strip() + f": {_some(names)}"
