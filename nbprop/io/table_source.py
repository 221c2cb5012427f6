"""Samples from a table: which columns are features and target, and how categories and missing values become numbers.

A column of text is taken as categories: one column of zeros and ones for each of its values, in the order of the
alphabet. What a network was trained with goes with it (`Columns`): the names of its features, their categories, and
what stands for a missing number. So another table becomes the same numbers, whatever the order of its columns.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nbprop.io.sources import SHOWN, Piece, Source, named_list, some
from nbprop.io.tables import TextWhereNumber

# A column of text with more values than this, most of which occur once, identifies rows and is no category.
_FEW = 20


@dataclass
class Columns:
    """The features of a network that was trained on a table; one entry each."""

    names: list | None = None  # None: the table had no names
    categories: list = field(default_factory=list)  # list of str, or None for a column of numbers
    fills: list = field(default_factory=list)  # what is filled in where a number is missing, or None


class TableSource(Source):
    """A table's samples. known: the columns of a model, to be found by name if the table has names."""

    def __init__(self, table, choices, with_target, known=None):
        super().__init__(table.path, choices)
        self.table, self.row_word = table, f"{table.line_word}s"
        self.remarks, columns = [], list(range(table.width))
        for text in choices.drop:
            self._leave_out(columns, table.find(text), "as asked")
        for column, what in table.unusable.items():
            self._leave_out(columns, column, f"which holds {what}")
        for column in table.index_columns:
            self._leave_out(columns, column, "the index")
        self.targets = self._targets(columns, with_target)
        columns = [column for column in columns if column not in self.targets]
        self.index = None
        if known is not None and known.names is not None and table.names is not None:
            columns = self._named(columns, known.names)
        else:
            columns = self._without_index(columns)
        self.columns = columns
        self.target_names = [self._shown(column) for column in self.targets]
        if not with_target:
            for column in self.targets:
                self.remarks.append(f"left out: {table.name(column)}, as the target")
            self.targets = []
        elif len(self.targets) == 1 and table.holds_text(self.targets[0]):
            self.text_target = f"{self.path}: the target {table.name(self.targets[0])} is text"
        self.fills = None
        self.categories = self._find_categories() if with_target and known is None else self._given_categories(known)
        if not self.columns:
            raise ValueError(
                f"{self.path}: its {table.width} columns leave no features; see --target, --targets and --drop"
            )
        self.features = None if table.names is None else [self._shown(column) for column in self.columns]
        widths = [1 if kinds is None else len(kinds) for kinds in self.categories]
        self.first = np.cumsum([0, *widths])  # where the numbers of each column begin
        self.sample_shape = (int(self.first[-1]),)

    def _shown(self, column):
        names = self.table.names
        return (names[column] if names is not None else "") or f"column {column + 1}"

    def _leave_out(self, columns, column, why):
        if column in columns:
            columns.remove(column)
            self.remarks.append(f"left out: {self.table.name(column)}, {why}")

    # -- which columns

    def _targets(self, columns, with_target):
        if self.choices.target:
            found = [self.table.find(text) for text in self.choices.target]
            for column in found:
                if column in self.table.unusable:
                    raise ValueError(
                        f"{self.path}: {self.table.name(column)} holds {self.table.unusable[column]}, which cannot be "
                        "a target"
                    )
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
        names = self.table.names
        absent = [name for name in features if names.count(name) != 1]
        if absent:
            shown = ", ".join(map(repr, absent[:SHOWN]))
            raise ValueError(
                f"{self.path}: the network was trained with {named_list(features)}; of these the file lacks, or has "
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

    # -- categories

    def _find_categories(self):
        """The categories of each column of text, which are read once for them; columns of names are left out."""
        asked = {self.table.find(text) for text in self.choices.category}
        for column in asked - set(self.columns):
            raise ValueError(f"{self.path}: --category names {self.table.name(column)}, which is no feature")
        texts = [column for column in self.columns if column in asked or self.table.holds_text(column)]
        counts: dict[int, Any] = {column: Counter() for column in texts}
        for block in self.table.blocks([], texts) if texts else ():
            for column in texts:
                counts[column].update(block.texts[column])
        for column in texts:
            values = counts[column].total() - counts[column][""]
            different = len(counts[column]) - ("" in counts[column])
            if column not in asked and different > max(_FEW, values / 2):
                self._leave_out(
                    self.columns,
                    column,
                    f"text with {different:,} different values in {values:,} {self.row_word} "
                    f"(--category {column + 1} takes them as categories)",
                )
            counts[column] = sorted(value for value, count in counts[column].items() if count)
        return [counts.get(column) for column in self.columns]

    def _given_categories(self, known):
        """Those of a model."""
        if known is None or not known.categories:
            return [None] * len(self.columns)
        if len(known.categories) != len(self.columns):
            raise ValueError(
                f"{self.path} has {len(self.columns)} columns for features, the network was trained with "
                f"{len(known.categories)}"
            )
        fills = zip(known.fills, known.categories, strict=True)
        repeated = [np.repeat(np.nan if fill is None else fill, len(kinds or [0])) for fill, kinds in fills]
        self.fills = np.concatenate(repeated)
        return known.categories

    def known(self, means):
        """The `Columns` of a network that is trained on this source, given the mean of each number of x, or None."""
        wanted = self.choices.on_missing
        fills: list[float | None] = [None] * len(self.columns)
        for number, (kinds, at) in enumerate(zip(self.categories, self.first, strict=False)):
            if kinds is None and isinstance(wanted, float):
                fills[number] = wanted
            elif kinds is None and means is not None:
                fills[number] = float(means[at])
        return Columns(self.features, self.categories, fills)

    def _in_x(self, block):
        """The numbers of x (records, numbers) in a block."""
        x = np.zeros((len(block.lines), *self.sample_shape))
        position = 0
        for column, kinds, at in zip(self.columns, self.categories, self.first, strict=False):
            if kinds is None:
                x[:, at] = block.numbers[:, position]
                position += 1
                continue
            number_of = {kind: number for number, kind in enumerate(kinds)}
            codes = np.array([number_of.get(text, -1) for text in block.texts[column]])
            unknown = [i for i in np.flatnonzero(codes < 0) if block.texts[column][i] != ""]
            if unknown and self.choices.on_unknown != "zeros":
                value, known = block.texts[column][unknown[0]], ", ".join(kind or "(missing)" for kind in kinds)
                raise ValueError(
                    f"{self.path}: {self.table.line_word} {block.lines[unknown[0]]}, {self.table.name(column)}: "
                    f"{value!r} is none of the categories that the network was trained with: {known}; say "
                    "--on-unknown zeros to take it as none of them"
                )
            rows = np.flatnonzero(codes >= 0)
            x[rows, at + codes[rows]] = 1.0
        return x

    # -- reading

    def raw_pieces(self):
        """Pieces as in the file, in float64."""
        as_text: list[int] = self.targets if self.text_target is not None else []
        texts = [*as_text, *(c for c, kinds in zip(self.columns, self.categories, strict=True) if kinds is not None)]
        numbers = [c for c, kinds in zip(self.columns, self.categories, strict=True) if kinds is None]
        features = len(numbers)
        numbers += ([] if as_text else self.targets) + ([] if self.index is None else [self.index])
        last = None
        for block in self.table.blocks(numbers, texts):
            y = None
            if as_text:
                y = np.array([block.texts[column] for column in as_text]).T
            elif self.targets:
                y = np.ascontiguousarray(block.numbers[:, features : features + len(self.targets)])
            if self.index is not None:
                last = self._check_index(block, block.numbers[:, -1], last)
            yield Piece(self._in_x(block), y, np.array(block.lines))

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
        column = self.columns[int(np.searchsorted(self.first, j, "right")) - 1]
        return f"{self.table.line_word} {piece.rows[i]}, {self.table.name(column)}"

    def target_place(self, piece, i):
        return f"{self.table.line_word} {piece.rows[i]}, target " + ", ".join(map(repr, self.target_names))

    # -- the report

    def lines(self):
        """A report of what was found, line by line, before the data is read."""
        yield from self.table.described()
        yield f"features: {named_list([self._shown(column) for column in self.columns])}"
        for column, kinds in zip(self.columns, self.categories, strict=True):
            if kinds is not None:
                of = some([kind or "(missing)" for kind in kinds])
                yield f"categories: {self.table.name(column)}, {len(kinds)}: {of}"
        yield from self.remarks

    def lines_after(self):
        """A report of what was found in the whole file."""
        yield f"rows: {self.count:,}"
        table = self.table
        if table.comments:
            yield f"left out as comments: lines {some(table.comments)}"
        if table.blank:
            yield f"left out as blank: {table.blank} line{'s' if table.blank > 1 else ''}"
        if table.missing:
            shown = ", ".join(f"{name!r} {count}" for name, count in sorted(table.missing.items()))
            wanted = self.choices.on_missing
            filled = {"drop": "", "fill": ", filled in with the mean of the column in training"}.get(
                wanted, f", taken as {wanted}"
            )
            yield f"missing values: {shown}{filled}"
        if (line := self.missing_line()) is not None:
            yield line
