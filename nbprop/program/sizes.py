"""Sizes that the kernels of several layers take; those of one layer stand beside its kernels (see contract.py)."""

from typing import NamedTuple


class Rows(NamedTuple):
    """The rows of an array along its last axis; a call has n * rows of them."""

    rows: int  # rows of a sample
    size: int  # elements of a row
