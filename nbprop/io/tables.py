"""What tables in files have in common: columns with numbers and perhaps names, read block by block."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbprop.validation import nearest


@dataclass
class Block:
    """Some records: their line or row numbers, numbers (records, columns) with NaN where missing, fields of text."""

    lines: list
    numbers: np.ndarray
    texts: dict  # column -> list of str, "" where missing


class TextWhereNumber(ValueError):
    """A field that is not a number in a column of numbers."""

    def __init__(self, message, column):
        super().__init__(message)
        self.column = column


class Table:
    """A table's columns: `names` (or None) and `width`; subclasses read them.

    `blocks(numbers, texts)` gives the records, `holds_text(column)` tells which columns are text, and `counts_rows`
    which number the rows. `missing` counts what stood for a missing value, and `line_word` is what records are counted
    by.
    """

    line_word = "line"
    names: Any  # a list of text, or None
    width: int
    missing: Counter[str]

    def __init__(self, path):
        self.path, self.missing = path, Counter()
        self.comments, self.blank = [], 0
        self.unusable = {}  # column -> what it holds, of columns that can be no feature
        self.index_columns: Any = ()  # columns that the file itself says are an index

    def name(self, column):
        """A column as messages name it: its number, and its name."""
        named = self.names is not None and self.names[column] != ""
        return f"column {column + 1}" + (f" '{self.names[column]}'" if named else "")

    def find(self, text):
        """The index of the column with this name, or else this number, counted from 1."""
        if self.names is not None and self.names.count(text) == 1:
            return self.names.index(text)
        if self.names is not None and text in self.names:
            raise ValueError(
                f"{self.path}: {self.names.count(text)} columns are named {text!r}; give the number of one"
            )
        if text.isascii() and text.isdigit() and 1 <= int(text) <= self.width:
            return int(text) - 1
        if (text.isascii() and text.isdigit()) or self.names is None:
            names = "" if self.names is None else " and none of that name"
            raise ValueError(f"{self.path}: no column {text}; it has {self.width}, counted from 1{names}")
        raise ValueError(f"{self.path}: no column named {text!r}; {nearest(text, self.names)}")

    def unnamed(self, column):
        """Whether a column has no name; pandas calls one "Unnamed: 0" when it writes it again."""
        return self.names is None or re.fullmatch(r"(Unnamed: \d+)?", self.names[column]) is not None
