"""Reductions along a row: against exact sums, in a fixed order, at every size around a vector's."""

import math

import numpy as np
import pytest

from nbprop.compiler.jit import njit
from nbprop.numerics.reductions import (
    row_dot,
    row_dots_about,
    row_max,
    row_moments,
    row_scaled_dots_about,
    row_squares_between,
    row_sum,
)
from support.cases import same_bits

SIZES = [*range(1, 20), 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000]
DTYPES = [np.float32, np.float64]


@njit
def reductions(x, y):
    return row_sum(x), row_dot(x, y), row_max(x)


@njit
def about(x, y, mean):
    dots = *row_dots_about(y, x, mean), *row_scaled_dots_about(y, y, x, mean)
    return *row_moments(x, mean), *dots, row_squares_between(x, y)


def in_order(terms, join):
    """The reduction as the module's docstring tells it, one element at a time."""
    lanes = 64 // terms.itemsize
    whole, partial = len(terms) // (4 * lanes) * 4 * lanes, [None] * 4 * lanes
    for i, term in enumerate(terms):
        place = i % (4 * lanes) if i < whole else i % lanes
        partial[place] = term if partial[place] is None else join(partial[place], term)
    partial = [terms.dtype.type(0) if p is None else p for p in partial]
    width = lanes
    partial = [join(join(partial[i], partial[i + lanes]), join(partial[i + 2 * lanes], partial[i + 3 * lanes]))
               for i in range(lanes)]  # fmt: skip
    while width > 1:
        width //= 2
        partial = [join(partial[i], partial[i + width]) for i in range(width)]
    return partial[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_reductions(size, dtype):
    rng = np.random.default_rng(size)
    # Offset by one element: rows begin anywhere.
    x, y = (rng.standard_normal(size + 1).astype(dtype)[1:] for _ in range(2))
    total, along, top = reductions(x, y)
    same_bits("sum", dtype(total), in_order(x, lambda a, b: dtype(a + b)))
    terms = x.astype(np.float64) * y.astype(np.float64)
    scale = np.finfo(dtype).eps * np.abs(terms).sum()
    assert abs(along - math.fsum(terms)) <= 8 * scale
    assert top == x.max()
    mean = dtype(100.25)
    distance = (x + mean).astype(np.float64) - mean
    g = y.astype(np.float64)
    between = ((x + mean) - y).astype(np.float64)
    wanted = distance, distance**2, g, g * distance, g**2, g**2 * distance, between**2
    for got, terms in zip(about(x + mean, y, mean), wanted, strict=True):
        assert abs(got - math.fsum(terms)) <= 8 * np.finfo(dtype).eps * np.abs(terms).sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_keep_their_digits(dtype):
    """A sum of 65,536 equal numbers; added in index order it is off by more than 4,000 epsilon."""
    x = np.full(1 << 16, 0.1, dtype)
    assert abs(reductions(x, x)[0] / (x[0].astype(np.float64) * x.size) - 1) < 300 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_maximum_passes_over_nan_and_sums_do_not(dtype):
    for size in (1, 5, 70, 300):
        for place in {0, size // 2, size - 1}:
            x = np.full(size, -3.0, dtype)
            x[place] = np.nan
            total, along, top = reductions(x, x)
            assert np.isnan(total)
            assert np.isnan(along)
            assert top == (-np.inf if size == 1 else -3)
