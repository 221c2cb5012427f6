"""What data for training and prediction is: samples with their places in a file, checked, a few megabytes at a time.

A source knows the shape of a sample before it reads one; `pieces` yields (x, y). Every value is checked, and errors
name its place: `line 4, column 2 'width'` in a text file, `x[3, 0]` in an array.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nbprop.io.csv_files import TextFormat

SHOWN = 8  # maximum number of lines, names or labels listed one by one


@dataclass(frozen=True)
class Choices:
    """The options of the command line about a file."""

    form: TextFormat = field(default_factory=TextFormat)
    target: tuple = ()  # columns by name or number; by default the last `targets`
    targets: int | None = None
    drop: tuple = ()  # columns to leave out
    index: str = "auto"  # what to do with a first column without a name: "auto", "drop", "keep"
    category: tuple = ()  # columns whose values are categories although they are numbers
    # "refuse", "drop", a number to replace them by, or "fill": leave NaN in x, for who fills in the means, and drop
    # samples without a target.
    on_missing: str | float = "refuse"
    on_unknown: str = "refuse"  # or "zeros": what to do with a category that the network was not trained with


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
    target_names: Any = None  # a list of text, or None
    text_target: str | None = None  # if the target is text: the message for a loss that needs numbers
    fills: np.ndarray | None = None  # (numbers of a sample,) what the network was trained with for missing ones

    # Of each kind of file: what places in it are called, the shape of a sample, and its pieces as they are read.
    place: Callable[..., str]
    target_place: Callable[..., str]
    row_word: str
    sample_shape: tuple[int, ...]
    raw_pieces: Callable[[], Iterator[Piece]]

    def __init__(self, path, choices):
        self.path, self.choices = path, choices
        self.fills_later = False  # whether who reads the samples fills in means
        self.count, self.left_out = 0, []

    def without_missing(self, piece):
        """A piece without missing values; None if no sample is left."""
        x, y, wanted = piece.x, piece.y, self.choices.on_missing
        gaps = np.isnan(x).reshape(len(x), -1) if x.dtype.kind == "f" else np.zeros((len(x), 1), bool)
        target_gaps = np.zeros(len(x), bool)
        if y is not None:
            empty: Any = (
                y == "" if y.dtype.kind == "U" else np.isnan(y) if y.dtype.kind == "f" else np.zeros(y.shape, bool)
            )
            target_gaps = empty.reshape(len(y), -1).any(1)
        if wanted == "fill" and self.fills is not None and gaps.any():
            x = piece.x = np.where(gaps.reshape(x.shape), self.fills, x)
            gaps = np.isnan(x).reshape(len(x), -1)  # a column for which the network knows none
        if wanted == "fill":
            wanted = "drop" if self.fills_later else "refuse"
        wrong = target_gaps if self.fills_later else gaps.any(1) | target_gaps
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
                wrong = ~np.isfinite(out) & ~(np.isnan(x) & self.fills_later)
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

    @staticmethod
    def piece(rows):
        """A piece that is only asked for places."""
        return Piece(rows, None, rows)

    def missing_line(self):
        """What was done about missing values, as a line, or None."""
        if self.left_out:
            return f"left out for a missing value: {some(self.left_out)} ({self.row_word})"
        return None


def _concatenated(parts):
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def some(items):
    shown = ", ".join(map(str, items[:SHOWN]))
    return shown if len(items) <= SHOWN else f"{shown} and {len(items) - SHOWN:,} more"


def named_list(names, word=""):
    """How many, and their names."""
    return f"{len(names)} {word}{'s' if word and len(names) != 1 else ''}".strip() + f": {some(names)}"
