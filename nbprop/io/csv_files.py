"""Tables of numbers and labels in text files: detects header, delimiter and missing values.

Nothing about a file is decided silently. What the format options leave open is inferred from the first lines, and
reported; if the lines are ambiguous, the file is refused, with the option that resolves it. Lines are numbered as in an
editor, columns from 1.

Python's csv module reads the files. Blocks of lines that hold only numbers, and no quotes, go to a faster reader, which
gives the same bits: pyarrow's where it is installed and the file has a megabyte (importing it takes a tenth of a
second), else NumPy's. What it does not accept is read again by the csv module, which reports what is wrong.
"""

import codecs
import csv
import itertools
import math
import os
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from nbprop.io import number_readers
from nbprop.io.array_files import refuse_streams
from nbprop.io.tables import Block, Table, TextWhereNumber

MISSING = ("", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", "None")
_DELIMITERS = (",", ";", "\t", "|")
_SAMPLE, _BLOCK = 50, 4096  # records that are inspected, lines that are read at a time
_WORTH_ARROW = 1 << 20  # bytes of a file
_UNDECODED = re.compile("[\udc80-\udcff]")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?|[+-]?\d+,([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


@dataclass(frozen=True)
class TextFormat:
    """The format of a text file as far as it is given; None for what is to be inferred from its first lines."""

    header: bool | None = None  # whether the first line holds names
    delimiter: str | None = None  # one character
    comment: str | None = None  # lines that begin with it are skipped
    missing: tuple = MISSING  # fields that represent a missing value
    encoding: str = "utf-8"
    decimal: str | None = None  # "." or ","


class TextTable(Table):
    """A text file's columns: `names` (or None), `width`, `header_line`, and the records block by block.

    known : feature names of an existing model; a first line that contains all of them is a header
    """

    def __init__(self, path, form=None, known=()):
        super().__init__(path)
        self.form = form or TextFormat()
        refuse_streams(path)
        self.delimiter = self.form.delimiter or self._find_delimiter()
        sample = self._sample(self.delimiter)
        if not sample:
            raise ValueError(f"{path}: no samples")
        self.header_line, first = sample[0]
        self.width = len(first)
        for line, row in sample:
            self._check_width(line, row, first)
        self.decimal = self.form.decimal or self._find_decimal(sample)
        header = self.form.header
        if header is None:
            header = self._is_header(first, [row for _, row in sample[1:]], known)
        self.names = [field.strip() for field in first] if header else None
        self.sample = sample[1:] if header else sample
        if not self.sample:
            raise ValueError(f"{path}: no samples; line {self.header_line} holds names and nothing follows")

    # -- columns

    def counts_rows(self, column):
        """Whether a column holds 0, 1, 2, ... or 1, 2, 3, ... in the first records."""
        return _running([row[column].strip() for _, row in self.sample])

    def holds_text(self, column):
        """Whether most values of a column in the first records are text."""
        kinds = Counter(self._kind(row[column].strip()) for _, row in self.sample)
        return kinds["text"] > kinds["number"]

    def described(self):
        """What was found of the format, line by line."""
        comma = ", decimal comma" if self.decimal == "," else ""
        yield f"file: {self.path}, columns separated by {self.delimiter!r}{comma}, {self.form.encoding}"
        yield "names: " + ("none" if self.names is None else f"line {self.header_line}")

    # -- inferring the format

    def _sample(self, delimiter):
        with self._open() as lines:
            return list(itertools.islice(self._records(lines, delimiter), _SAMPLE))

    def _find_delimiter(self):
        """The usual delimiter that splits all of the first records into the same number of columns.

        Of several, the one with the most numbers among its fields, as in `1,5;2,5;1`; else the first.
        """
        numbers = {}
        for delimiter in _DELIMITERS:
            try:
                rows = [row for _, row in self._sample(delimiter)]
            except csv.Error:
                continue
            if len({len(row) for row in rows}) == 1 and len(rows[0]) > 1:
                fields = [field.strip() for row in rows for field in row]
                found = [field for field in fields if _number(field) is not None or _DECIMAL_COMMA.fullmatch(field)]
                numbers[delimiter] = len(found) / len(fields)
        return max(numbers, key=lambda delimiter: numbers[delimiter], default=",")

    def _find_decimal(self, sample):
        """The decimal mark: a comma where fields look like 3,14 and none like 3.14."""
        fields = [field.strip() for _, row in sample for field in row]
        with_comma = [field for field in fields if _DECIMAL_COMMA.fullmatch(field)]
        if not with_comma or any("." in field and _number(field) is not None for field in fields):
            return "."
        if all(_THOUSANDS.fullmatch(field) for field in with_comma):
            raise ValueError(
                f"{self.path}: is {with_comma[0]} a number with a decimal comma, or are these thousands? say "
                "--decimal comma, or write the numbers without separators between thousands"
            )
        return ","

    def _is_header(self, first, others, known):
        """Whether the first record holds names."""
        fields = [field.strip() for field in first]
        if known and set(known) <= set(fields):
            return True
        kinds = [self._kind(field) for field in fields]
        below = [self._column_kind(others, column) for column in range(self.width)]
        unlike = [j for j, kind in enumerate(kinds) if kind == "text" and below[j] == "number"]
        numbers = [j for j, kind in enumerate(kinds) if kind == "number"]
        if fields[0] == "" and len(fields) > 1 and others and self._index_below(others):
            return True  # as pandas and R write it: names, without one for the index
        if "text" in kinds and not numbers and (unlike or "missing" not in kinds[fields[0] == "" :]):
            return True
        if unlike or ("text" in kinds and not numbers):
            j = unlike[0] if unlike else kinds.index("text")
            raise self._unclear(
                first, f"{fields[j]!r} is not a number like those below it, but other fields could be values"
            )
        if _running(fields) and "text" not in kinds:
            raise self._unclear(first, "consecutive numbers are what pandas writes for columns without names")
        if others and kinds.count("number") == self.width and self._all_quoted():
            raise self._unclear(first, "all of it is quoted, and the next line is not")
        return False

    def _unclear(self, first, why):
        start = self.delimiter.join(first)[:60]
        return ValueError(
            f"{self.path}: line {self.header_line} ({start}): names or a sample? {why}; say --header yes or --header no"
        )

    def _index_below(self, others):
        return _running([row[0].strip() for row in others])

    def _all_quoted(self):
        """Whether each field of the first line is quoted and some field of the second is not."""
        with self._open() as lines:
            first, second = itertools.islice((line.strip() for _, line in lines if line.strip()), 2)
        quoted = re.compile('"[^"]*"' + f'({re.escape(self.delimiter)}"[^"]*")*')
        return bool(quoted.fullmatch(first)) and not quoted.fullmatch(second)

    def _kind(self, field):
        if field in self.form.missing:
            return "missing"
        return "text" if self._number(field) is None else "number"

    def _number(self, field):
        """The number in a field, or None; as float() reads it, but without underscores and non-ASCII digits."""
        if self.decimal == ",":
            return None if "." in field else _number(field.replace(",", "."))  # 1.500 may be thousands
        return _number(field)

    def _column_kind(self, rows, column):
        kinds = {self._kind(row[column].strip()) for row in rows} - {"missing"}
        return kinds.pop() if len(kinds) == 1 else "text" if kinds else None

    # -- reading

    def blocks(self, numbers, texts=()):
        """The records, in blocks. numbers, texts : the columns to read, as numbers and as text."""
        self.missing.clear()
        with self._open(count=True) as lines:
            if self.names is not None:
                next(self._records(lines, self.delimiter))
            while block := list(itertools.islice(lines, _BLOCK)):
                if any('"' in line for _, line in block):  # a record may extend beyond the block
                    yield from self._by_csv(itertools.chain(block, lines), numbers, texts)
                    return
                found = self._by_reader(block, numbers) if not texts else None
                yield from self._by_csv(block, numbers, texts) if found is None else (found,)

    def _by_reader(self, block, columns, quick=None):
        """A block that holds only numbers, else None. quick: the reader of its lines."""
        rows = [(number, line) for number, line in block if line.strip()]
        if not rows or not all(line.count(self.delimiter) == self.width - 1 for _, line in rows):
            return None
        lines = [line for _, line in rows]
        if self.decimal == ",":
            if any("." in line for line in lines):
                return None
            lines = [line.replace(",", ".") for line in lines]
        if quick is None:
            worth_it = os.path.getsize(self.path) >= _WORTH_ARROW and number_readers.arrow() is not None
            quick = number_readers.arrow_numbers if worth_it else number_readers.numpy_numbers
        numbers = quick(lines, self.delimiter, self.width, columns)
        if numbers is None or len(numbers) != len(rows) or not np.isfinite(numbers).all():
            return None
        self.blank += len(block) - len(rows)
        return Block([number for number, _ in rows], numbers, {})

    def _by_csv(self, lines, columns, texts):
        records = self._records(iter(lines), self.delimiter, count=True)
        while block := list(itertools.islice(records, _BLOCK)):
            for line, row in block:
                self._check_width(line, row, self.names or self.sample[0][1])
            rows = [row for _, row in block]
            numbers = np.empty((len(rows), len(columns)))
            for j, column in enumerate(columns):
                numbers[:, j] = self._numbers(block, column)
            yield Block([line for line, _ in block], numbers, {j: [self._text(row[j]) for row in rows] for j in texts})

    def _check_width(self, line, row, first):
        if len(row) == self.width:
            return
        text = f"{self.path}: line {line} has {len(row)} fields and line {self.header_line} {self.width}"
        for place, mark in {line: row[0][:1], self.header_line: first[0][:1]}.items():
            if mark in ("#", "%") and self.form.comment is None:
                raise ValueError(f"{text}; if line {place} is a comment, say --comment '{mark}'")
        raise ValueError(f"{text}; columns are separated by {self.delimiter!r} here, see --delimiter")

    def _numbers(self, block, column):
        fields = [row[column].strip() for _, row in block]
        joined = "".join(fields)
        if self.decimal == "." and "_" not in joined and joined.isascii():
            try:
                found = list(map(float, fields))
                if all(map(math.isfinite, found)):
                    return found
            except ValueError:
                pass
        found = []
        for (line, _), field in zip(block, fields, strict=True):
            if field in self.form.missing:
                self.missing[field] += 1
                found.append(math.nan)
                continue
            value = self._number(field)
            if value is None:
                raise TextWhereNumber(self._no_number(line, column, field), column)
            if not math.isfinite(value):
                raise ValueError(
                    f"{self.path}: line {line}, {self.name(column)}: {field} is not finite; remove the line, "
                    f"or say --missing '{field}' if it represents a missing value"
                )
            found.append(value)
        return found

    def _no_number(self, line, column, field):
        shown = field if len(field) <= 40 else field[:37] + "..."
        text = f"{self.path}: line {line}, {self.name(column)}: {shown!r} is not a number"
        other = next((mark for mark in _DELIMITERS if mark in field and mark != self.delimiter), None)
        if other is not None:
            return f"{text}; if {other!r} separates columns, say --delimiter '{other}'"
        return (
            f"{text}; leave the column out with --drop, say --category {column + 1} if its values are categories, or "
            f"--missing '{shown}' if it represents a missing value"
        )

    def _text(self, field):
        field = field.strip()
        if field in self.form.missing:
            self.missing[field] += 1
            return ""
        return field

    def _open(self, count=False):
        """(number, line) of the lines that are not comments."""
        return _Lines(self, count)

    def _records(self, lines, delimiter, count=False):
        """(number of the record's first line, its fields); blank lines are skipped."""
        start = last = 0

        def feed():
            nonlocal start, last
            for last, line in lines:
                start = start or last
                yield line

        reader = csv.reader(feed(), delimiter=delimiter, strict=True)
        while True:
            start = 0
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise CsvError(f"{self.path}: line {last}: {error}; is there a quote without its partner?") from None
            if row is None:
                return
            if not row or (len(row) == 1 and row[0] != "" and not row[0].strip()):
                self.blank += count
                continue
            yield start, row


class CsvError(csv.Error, ValueError):
    """A record that the csv module refuses."""


class _Lines:
    """The lines of a file with their numbers, comments left out and decoding checked; a context and an iterator."""

    def __init__(self, table, count):
        self.path, self.form, self.count, self.table = table.path, table.form, count, table
        if count:
            table.comments, table.blank = [], 0
        name = "utf-8-sig" if self.form.encoding.lower() in ("utf-8", "utf8") else self.form.encoding
        try:
            codecs.lookup(name)
        except LookupError:
            raise ValueError(
                f"{self.path}: no encoding is named {self.form.encoding!r}; try utf-8 or latin-1"
            ) from None
        self.file = open(self.path, encoding=name, newline="", errors="surrogateescape")  # noqa: SIM115
        self.lines = self._numbered()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.lines)

    def _numbered(self):
        number = 0
        while True:
            try:
                line = self.file.readline()
            except UnicodeError as error:
                raise self._undecodable(f"after line {number}", getattr(error, "reason", error)) from None
            if not line:
                return
            number += 1
            if not line.isascii() and _UNDECODED.search(line):
                raise self._undecodable(f"line {number}", "it holds bytes that this encoding does not have")
            if "\0" in line:
                raise self._undecodable(f"line {number}", "it holds a zero byte")
            if self.form.comment is not None and line.startswith(self.form.comment):
                if self.count:
                    self.table.comments.append(number)
                continue
            yield number, line

    def _undecodable(self, where, why):
        return ValueError(
            f"{self.path}: {where}: not text in {self.form.encoding}: {why}; name the file's own with --encoding, "
            "such as latin-1 or utf-16"
        )


def _number(field):
    """The number in a field, or None: as float() reads it, but without underscores and non-ASCII digits."""
    if "_" in field or not field.isascii():
        return None
    try:
        return float(field)
    except ValueError:
        return None


def _running(fields):
    """Whether fields are 0, 1, 2, ... or 1, 2, 3, ..., written as integers."""
    return any(fields == [str(k) for k in range(first, first + len(fields))] for first in (0, 1))
