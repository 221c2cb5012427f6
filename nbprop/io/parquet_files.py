"""Tables in parquet files, read by pyarrow (extra `nbprop[parquet]`)."""

import json

import numpy as np

from nbprop.io.array_files import refuse_streams
from nbprop.io.tables import Block, Table

_BLOCK = 1 << 14  # rows


class ParquetTable(Table):
    """The columns of a parquet file: numbers and booleans, and text with its categories. Nulls and NaN are missing.

    The index that pandas writes is left out; columns of other types cannot be features (`unusable`).
    """

    line_word = "row"

    def __init__(self, path):
        super().__init__(path)
        refuse_streams(path)
        self._arrow, parquet = _pyarrow(path)
        try:
            self.file = parquet.ParquetFile(path)
            self.schema = self.file.schema_arrow
        except (self._arrow.ArrowException, ValueError, OSError) as error:
            raise ValueError(f"{path}: not a readable parquet file: {error}") from None
        self.names, self.width = list(self.schema.names), len(self.schema.names)
        self.rows = self.file.metadata.num_rows
        if self.rows == 0 or self.width == 0:
            raise ValueError(f"{path}: no samples")
        self.sample = range(min(50, self.rows))
        types = [self.schema.field(column).type for column in range(self.width)]
        self._text = {column for column, kind in enumerate(types) if self._is_text(kind)}
        self.unusable = {c: str(kind) for c, kind in enumerate(types) if c not in self._text and not self._number(kind)}
        stated = json.loads((self.schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
        self.index_columns = [self.names.index(name) for name in stated if name in self.names]

    def _is_text(self, kind):
        types = self._arrow.types
        if types.is_dictionary(kind):
            kind = kind.value_type
        return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)

    def _number(self, kind):
        types = self._arrow.types
        return any(found(kind) for found in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal))

    def holds_text(self, column):
        """Whether a column holds text, or categories of text."""
        return column in self._text

    def counts_rows(self, column):
        """Whether a column holds 0, 1, 2, ... or 1, 2, 3, ... in the first rows."""
        if column in self._text or column in self.unusable:
            return False
        first = next(self.blocks([column])).numbers[: len(self.sample), 0]
        return any(np.array_equal(first, np.arange(start, start + len(first))) for start in (0, 1))

    def described(self):
        """What was found of the format, line by line."""
        yield f"file: {self.path}, parquet, {self.width} columns"

    def blocks(self, numbers, texts=()):
        """The records, in blocks. numbers, texts : the columns to read, as numbers and as text."""
        self.missing.clear()
        arrow, row = self._arrow, 0
        # By number: names may be there twice. iter_batches takes names, so all columns are read where one is.
        wanted = [self.names[column] for column in (*numbers, *texts)]
        unique = all(self.names.count(name) == 1 for name in wanted)
        try:
            for batch in self.file.iter_batches(_BLOCK, columns=wanted if unique else None):
                place = {c: batch.schema.get_field_index(self.names[c]) if unique else c for c in (*numbers, *texts)}
                found = np.empty((batch.num_rows, len(numbers)))
                for j, column in enumerate(numbers):
                    found[:, j] = self._as_numbers(batch.column(place[column]), column, row)
                fields = {c: self._as_text(batch.column(place[c])) for c in texts}
                yield Block(list(range(row, row + batch.num_rows)), found, fields)
                row += batch.num_rows
        except arrow.ArrowException as error:
            raise ValueError(f"{self.path}: damaged parquet file: {error}") from None

    def _as_numbers(self, array, column, row):
        arrow = self._arrow
        if self.holds_text(column):
            raise ValueError(f"{self.path}: {self.name(column)} holds text, where the network was trained with numbers")
        kind = arrow.int8() if arrow.types.is_boolean(array.type) else array.type
        found = array.cast(kind).cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False)
        if not np.isfinite(found).all():
            absent = np.isnan(found)
            if np.isinf(found).any():
                i = int(np.argmax(np.isinf(found)))
                raise ValueError(
                    f"{self.path}: row {row + i}, {self.name(column)}: {found[i]} is not finite; remove the row"
                )
            self.missing["null"] += int(absent.sum())
        return found

    def _as_text(self, array):
        arrow = self._arrow
        if arrow.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        fields = [field or "" for field in array.cast(arrow.string()).to_pylist()]
        if empty := fields.count(""):
            self.missing["null"] += empty
        return fields


def _pyarrow(path):
    """(pyarrow, pyarrow.parquet)."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{path}: reading parquet needs pyarrow, which is not installed; pip install 'nbprop[parquet]'"
        ) from None
    return pyarrow, pyarrow.parquet
