"""The matrix product has the bits of a scalar loop of fused multiply-adds, whatever tiles, shares and vectors are."""

import ctypes
import ctypes.util
import importlib.util
import sys
from fractions import Fraction

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbprop.compiler import simd as vectors_module
from nbprop.compiler.jit import FLAGS
from nbprop.numerics.gemm import blocked as gemm_module
from nbprop.numerics.gemm import microkernel as tile_module
from nbprop.numerics.gemm.blocked import ACCUMULATE, BIAS, ZERO, gemm_ahead, gemm_scratch, transpose
from nbprop.numerics.gemm.microkernel import pointer

GUARD = 7
NOWHERE = 1 << 40  # elements past a buffer: no memory is there
STARTS = (ZERO, ACCUMULATE, BIAS)
DTYPES = (np.float32, np.float64)


# -- a fused multiply-add that is not nbprop's: the C library's, one call an element ---------------------------------

LIBRARY = ctypes.CDLL(ctypes.util.find_library("m") or "ucrtbase")


def elementwise(name, real, dtype):
    function = getattr(LIBRARY, name)
    function.argtypes, function.restype = [real] * 3, real
    kind = numba.from_dtype(np.dtype(dtype))
    return numba.vectorize([kind(kind, kind, kind)])(lambda a, b, c: function(a, b, c))


FMA = {
    np.dtype(np.float32): elementwise("fmaf", ctypes.c_float, np.float32),
    np.dtype(np.float64): elementwise("fma", ctypes.c_double, np.float64),
}


def fma(a, b, c):
    """a * b + c with one rounding, elementwise."""
    return FMA[np.result_type(a)](a, b, c)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fma_rounds_once(dtype):
    """The reference itself, against rational numbers."""
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((3, 500)).astype(dtype)
    c[::2] = -(a * b)[::2] * dtype(1 + np.finfo(dtype).eps)  # cancellation
    c[::5] *= dtype(2.0**40)
    for x, y, z, got in zip(a, b, c, fma(a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        gap = abs(Fraction(float(got)) - exact)
        for neighbour in (np.nextafter(got, dtype(np.inf)), np.nextafter(got, dtype(-np.inf))):
            assert gap <= abs(Fraction(float(neighbour)) - exact)


# -- the product under test, called between guard values -----------------------------------------------------


def make_runner(pointer, gemm_ahead, count=0):
    @numba.njit(nogil=True)
    def run(c, c_first, ldc, a, a_first, a_row, a_col, b, b_first, ldb, m, n, k, start, bias, scratch, part, parts):
        gemm_ahead(
            pointer(c, c_first), ldc, pointer(a, a_first), a_row, a_col, pointer(b, b_first), ldb, m, n, k, start,
            pointer(bias, 0), pointer(scratch, GUARD), scratch.size - 2 * GUARD, part, parts, pointer(c, NOWHERE),
            count,
        )  # fmt: skip

    return run


run = make_runner(pointer, gemm_ahead)


class Case:
    """A, B, bias and C inside larger poisoned buffers; `product` returns C and asserts that nothing else changed."""

    def __init__(self, m, n, k, dtype, transposed=False, padding=0, seed=0):
        rng = np.random.default_rng((m, n, k, seed))
        self.m, self.n, self.k, self.dtype = m, n, k, dtype
        self.a_row, self.a_col = (1, m + padding) if transposed else (k + padding, 1)
        self.ldb = self.ldc = n + padding
        self.a, self.b = (np.full(GUARD + size, np.nan, dtype) for size in (self.a_size() + padding, k * self.ldb))
        self.A = self.matrix(self.a, m, k, self.a_row, self.a_col)
        self.B = self.matrix(self.b, k, n, self.ldb, 1)
        self.A[...] = rng.standard_normal((m, k))
        self.B[...] = rng.standard_normal((k, n))
        self.bias = rng.standard_normal(max(n, 1)).astype(dtype)
        self.before = rng.standard_normal((m, n)).astype(dtype)

    def a_size(self):
        return max(0, (self.m - 1) * self.a_row + (self.k - 1) * self.a_col + 1)

    @staticmethod
    def matrix(buffer, rows, columns, row, column):
        size = buffer.itemsize
        return np.lib.stride_tricks.as_strided(buffer[GUARD:], (rows, columns), (row * size, column * size))

    def first(self, start):
        zero = np.zeros((self.m, self.n), self.dtype)
        return {ZERO: zero, ACCUMULATE: self.before, BIAS: zero + self.bias[: self.n]}[start]

    def product(self, start, parts=1, only=None, run=run, scratch_size=None):
        c = np.full(2 * GUARD + max(self.m, 1) * self.ldc, 1234.5, self.dtype)
        C = self.matrix(c, self.m, self.n, self.ldc, 1)
        C[...] = self.before if start == ACCUMULATE else np.nan
        elements = gemm_scratch(self.m, self.n, self.k, parts) if scratch_size is None else scratch_size
        scratch = np.full(elements + 2 * GUARD, 77.0, self.dtype)
        scratch[GUARD : GUARD + elements] = np.nan
        for part in range(parts) if only is None else (only,):
            run(
                c, GUARD, self.ldc, self.a, GUARD, self.a_row, self.a_col, self.b, GUARD, self.ldb,
                self.m, self.n, self.k, start, self.bias, scratch, part, parts,
            )  # fmt: skip
        result = C.copy()
        C[...] = 1234.5
        assert (c == 1234.5).all()
        assert (scratch[:GUARD] == 77).all()
        assert (scratch[GUARD + elements :] == 77).all()
        return result


def scalar_loop(first, A, B):
    """c = first; for l: c = fma(A[:, l], B[l, :], c)."""
    c = first.copy()
    for column, row in zip(A.T, B, strict=True):
        c = fma(column[:, None], row[None, :], c)
    return c


def lane_loop(first, A, b):
    """The order of one output column: partial sums over l mod lanes, then a tree of halves."""
    lanes = 64 // A.itemsize
    m, k = A.shape
    padded = -(-k // lanes) * lanes
    A = np.pad(A, ((0, 0), (0, padded - k))).reshape(m, padded // lanes, lanes)
    b = np.pad(b, (0, padded - k)).reshape(-1, lanes)
    sums = np.zeros((m, lanes), A.dtype)
    for chunk in range(padded // lanes):
        sums = fma(A[:, chunk], b[chunk], sums)
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return first + sums


def expected(case, start):
    if case.n == 1 and case.a_col == 1 and case.ldb == 1 and case.ldc == 1:
        return lane_loop(case.first(start), case.A, case.B[:, 0])
    return scalar_loop(case.first(start), case.A, case.B)


def bits(array):
    return np.ascontiguousarray(array).view(np.int32 if array.dtype == np.float32 else np.int64)


# Every tile height (12 8 4 3 2 1, or 6 5 4 3 2 1) and width (8, 2, 1 and half a vector) with full and cut tails, for
# 16, 8, 4 and 2 lanes; one row; one column; nothing at all; and products so large that they are packed, at block edges.
SHAPES = [
    (1, 1, 1), (1, 32, 32), (1, 300, 5), (2, 3, 4), (3, 8, 2), (4, 9, 7), (5, 16, 3), (12, 32, 8), (13, 33, 9),
    (25, 47, 6), (7, 48, 5), (64, 32, 4), (27, 64, 1), (11, 65, 3), (1, 7, 40), (64, 1, 32), (19, 1, 37), (1, 1, 100),
    (9, 1, 16), (30, 5, 11), (14, 7, 3), (6, 10, 0), (0, 5, 3), (5, 0, 3), (9, 1, 0), (1, 5, 0),
]  # fmt: skip
LARGE = [(50, 530, 260), (61, 1025, 129), (48, 40, 3300), (195, 530, 260)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("padding", [0, 3])
def test_bits_of_the_scalar_loop(dtype, transposed, padding):
    for m, n, k in SHAPES:
        case = Case(m, n, k, dtype, transposed, padding)
        for start in STARTS:
            result = case.product(start)
            assert np.array_equal(bits(result), bits(expected(case, start))), (m, n, k, start)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_bits_of_packed_products(dtype, transposed):
    for m, n, k in LARGE:
        assert gemm_scratch(m, n, k, 1) > 0
        case = Case(m, n, k, dtype, transposed, padding=1)
        for start in STARTS:
            result = case.product(start)
            assert np.array_equal(bits(result), bits(expected(case, start))), (m, n, k, start)


@pytest.mark.parametrize("dtype", DTYPES)
def test_too_little_scratch_is_left_alone(dtype):
    """A product packs only into scratch that is long enough; without it the bits are the same."""
    for m, n, k in LARGE:
        case = Case(m, n, k, dtype)
        wanted = case.product(ZERO)
        for parts in (1, 3):
            for elements in (0, 1, gemm_scratch(m, n, k, parts) - 1):
                found = case.product(ZERO, parts, scratch_size=elements)
                assert np.array_equal(bits(found), bits(wanted)), (m, n, k, elements)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_operand_is_a_matrix_of_zeros(dtype):
    """The address of an empty array is null whatever the offset, and nothing is read there."""
    for m, n, k in [(5, 7, 3), (1, 33, 4), (9, 1, 6), LARGE[0]]:
        for name in ("a", "b"):
            case = Case(m, n, k, dtype)
            setattr(case, name, np.empty(0, dtype))
            for start in STARTS:
                assert np.array_equal(bits(case.product(start)), bits(case.first(start))), (m, n, k, name, start)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shares_cover_the_product_once_with_the_same_bits(dtype):
    for m, n, k in [*SHAPES[:-5], LARGE[0]]:
        for transposed in (False, True):
            case = Case(m, n, k, dtype, transposed)
            whole = case.product(ZERO)
            for parts in (2, 3, 5):
                assert np.array_equal(bits(case.product(ZERO, parts)), bits(whole)), (m, n, k, parts)
                written = sum(~np.isnan(case.product(ZERO, parts, only=part)) for part in range(parts))
                assert (written == 1).all(), (m, n, k, parts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_and_columns_do_not_know_their_neighbours(dtype):
    """A block of rows and columns, computed alone, has the bits it has in the whole."""
    whole = Case(40, 70, 33, dtype)
    result = whole.product(BIAS)
    for rows in (slice(0, 1), slice(3, 17), slice(30, 40)):
        for columns in (slice(0, 2), slice(5, 38), slice(69, 70)):
            A, B = np.ascontiguousarray(whole.A[rows]), np.ascontiguousarray(whole.B[:, columns])
            part = Case(*A.shape[:1], B.shape[1], 33, dtype, padding=2)
            part.A[...], part.B[...], part.bias = A, B, whole.bias[columns]
            assert np.array_equal(bits(part.product(BIAS)), bits(result[rows, columns]))


def test_a_hint_at_nothing_changes_nothing():
    run_ahead = make_runner(pointer, gemm_ahead, count=5000)
    for m, n, k in [(1, 300, 5), (25, 47, 70), LARGE[0]]:
        case = Case(m, n, k, np.float32)
        assert np.array_equal(bits(case.product(BIAS, run=run_ahead)), bits(case.product(BIAS))), (m, n, k)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 70),
    st.integers(0, 70),
    st.integers(0, 40),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.integers(0, 5),
    st.sampled_from(STARTS),
    st.integers(1, 4),
)
def test_any_shape(m, n, k, dtype, transposed, padding, start, parts):
    case = Case(m, n, k, dtype, transposed, padding)
    assert np.array_equal(bits(case.product(start, parts)), bits(expected(case, start)))


def test_overlapping_rows_of_a():
    """A convolution's A: the rows are windows of one line, each starting one step after the last."""
    case = Case(20, 24, 15, np.float32)
    line = np.random.default_rng(1).standard_normal(20 * 2 + 15).astype(np.float32)
    case.a = np.concatenate([np.full(GUARD, np.nan, np.float32), line])
    case.a_row, case.a_col = 2, 1
    case.A = case.matrix(case.a, 20, 15, 2, 1)
    assert np.array_equal(bits(case.product(ZERO)), bits(expected(case, ZERO)))


@pytest.mark.parametrize("n", [1, 5, 40])
def test_nan_and_infinity_reach_their_outputs_only(n):
    case = Case(20, n, 18, np.float32)
    clean = case.product(ZERO)
    case.A[3, 5], case.A[11, 17] = np.nan, np.inf
    result = case.product(ZERO)
    assert np.isnan(result[3]).all()
    assert not np.isfinite(result[11]).any()
    others = np.delete(np.arange(20), [3, 11])
    assert np.array_equal(bits(result[others]), bits(clean[others]))


def other_width(monkeypatch, features):
    """The modules as a processor with other vectors would see them, freshly compiled."""
    monkeypatch.setattr(numba.config, "CPU_FEATURES", features)
    modules = {}
    for module in (vectors_module, tile_module, gemm_module):
        specification = importlib.util.spec_from_file_location(module.__name__, module.__file__)
        modules[module.__name__] = importlib.util.module_from_spec(specification)
        monkeypatch.setitem(sys.modules, module.__name__, modules[module.__name__])
        specification.loader.exec_module(modules[module.__name__])
    tile, product = modules[tile_module.__name__], modules[gemm_module.__name__]
    return product, make_runner(tile.pointer, numba.njit(**FLAGS)(product.gemm_ahead.py_func))


@pytest.mark.parametrize(("features", "width"), [("+avx", 32), ("", 16), ("+avx,+avx512f", 64)])
def test_bits_do_not_depend_on_the_vector_width(monkeypatch, features, width):
    if width > vectors_module.VECTOR_BYTES:
        pytest.skip("this processor has no such vectors")
    product, run_other = other_width(monkeypatch, features)
    assert width == product.VECTOR_BYTES
    for m, n, k in [(13, 33, 9), (64, 1, 37), (1, 300, 5), (7, 5, 6), (12, 15, 7), (5, 6, 3), LARGE[0], LARGE[3]]:
        for transposed in (False, True):
            case = Case(m, n, k, np.float32, transposed)
            size = product.gemm_scratch.py_func(m, n, k, 1)
            other = case.product(BIAS, run=run_other, scratch_size=size)
            assert np.array_equal(bits(other), bits(case.product(BIAS))), (m, n, k, transposed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_transpose(dtype):
    @numba.njit(nogil=True)
    def run_transpose(out, w, rows, cols, part, parts):
        transpose(pointer(out, GUARD), pointer(w, 0), rows, cols, part, parts)

    for rows, cols in [(1, 1), (1, 9), (9, 1), (16, 16), (17, 35), (64, 40), (3, 100)]:
        w = np.random.default_rng(rows).standard_normal((rows, cols)).astype(dtype)
        for parts in (1, 3):
            out = np.full(2 * GUARD + w.size, 5.5, dtype)
            out[GUARD:-GUARD] = np.nan
            for part in range(parts):
                run_transpose(out, w.reshape(-1), rows, cols, part, parts)
            assert np.array_equal(out[GUARD:-GUARD].reshape(cols, rows), w.T)
            assert (out[:GUARD] == 5.5).all()
            assert (out[-GUARD:] == 5.5).all()


def test_small_products_need_no_scratch():
    assert gemm_scratch(64, 32, 32, 4) == 0
    assert gemm_scratch(1024, 1024, 1024, 3) == 3 * gemm_scratch(1024, 1024, 1024, 1)
