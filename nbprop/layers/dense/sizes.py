"""The sizes of a dense layer, as its kernels take them."""

from typing import NamedTuple


class DenseSizes(NamedTuple):
    """x (n * rows, n_in), y (n * rows, n_out), the weight (n_in, n_out)."""

    rows: int  # rows of a sample
    n_in: int  # inputs of a row
    n_out: int  # outputs of a row
