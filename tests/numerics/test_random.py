"""The counter-based generator: known answers, distributions, and the same values in any order."""

import re

import llvmlite.binding
import numba
import numpy as np
import pytest
from numba.core.errors import TypingError
from scipy import special, stats

from nbprop.compiler.jit import FLAGS, njit
from nbprop.numerics import random
from support.streams import CHANCE, block_of_stream

DTYPES = (np.float32, np.float64)

# Random123 1.14, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return np.array([int(word, 16) for word in text.split()], np.uint64)


@njit
def philox(counter, key):
    return random.philox4x32(counter[0], counter[1], counter[2], counter[3], key[0], key[1])


@njit
def uniform_backwards(out, seed, stream, start):
    for i in range(out.size - 1, -1, -1):
        out[i] = random.uniform(seed, stream, start + i, out.dtype)


@njit
def bounded_values(out, seed, stream, n):
    for i in range(out.size):
        out[i] = random.bounded(seed, stream, i, n)


@njit
def tail_quantiles(z, p):
    for i in range(p.size):
        z[i] = random._tail_quantile(p[i])


@njit
def stream_number(purpose, part, step):
    return random.stream(purpose, part, step)


def filled(fill, n, dtype, seed=5, stream=9, start=0):
    out = np.full(n, np.nan, dtype)
    fill(out, seed, stream, start)
    return out


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, result):
    assert philox(words(counter), words(key)) == tuple(words(result))


def test_a_block_is_philox_of_position_stream_and_seed():
    seed, stream, index = 0x0123456789ABCDEF, 0x7EDCBA9876543210, 0x1122334455667788
    counter = words("55667788 11223344 76543210 7edcba98")
    assert block_of_stream(seed, stream, index) == philox(counter, words("89abcdef 01234567"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_is_the_same_in_any_order_and_any_pieces(dtype):
    whole = filled(random.fill_uniform, 1500, dtype)
    backwards = np.empty_like(whole)
    uniform_backwards(backwards, 5, 9, 0)
    np.testing.assert_array_equal(backwards, whole)
    for begin, end in ((0, 1), (3, 200), (255, 257), (128, 640), (700, 1500), (40, 40)):
        piece = filled(random.fill_uniform, end - begin, dtype, start=begin)
        np.testing.assert_array_equal(piece, whole[begin:end])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_word_is_used_once(dtype):
    n = 1024  # positions that read exactly the blocks 0 .. n * words / 4 - 1
    per_value = 1 if dtype == np.float32 else 2
    blocks = np.array([block_of_stream(5, 9, b) for b in range(n * per_value // 4)], np.uint64)
    if per_value == 1:
        expected = (blocks.ravel() >> np.uint64(8)) * 2.0**-24
    else:
        pairs = blocks.reshape(-1, 2)
        expected = ((pairs[:, 0] >> np.uint64(5)) * 2.0**26 + (pairs[:, 1] >> np.uint64(6))) * 2.0**-53
    got = filled(random.fill_uniform, n, dtype)
    np.testing.assert_array_equal(np.sort(got), np.sort(expected.astype(dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_distribution(dtype):
    u = filled(random.fill_uniform, 200_000, dtype)
    assert u.min() >= 0
    assert stats.kstest(u.astype(float), "uniform").pvalue > CHANCE
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.01
    # The last bits are as random as the first.
    bits = 24 if dtype == np.float32 else 53
    low = (u.astype(float) * 2.0**bits) % 64
    assert stats.chisquare(np.bincount(low.astype(int), minlength=64)).pvalue > CHANCE


def test_the_largest_word_is_below_one():
    @njit
    def largest():
        word = np.uint64(0xFFFFFFFF)
        return random._unit_f32(word), random._unit_f64(word, word)

    single, double = largest()
    assert single == 1 - 2.0**-24
    assert double == 1 - 2.0**-53


def test_seeds_streams_and_positions_are_independent():
    draws = [
        filled(random.fill_uniform, 4096, np.float64, seed, stream, start)
        for seed, stream, start in ((1, 1, 0), (2, 1, 0), (1, 2, 0), (1, 1, 4096), (1, 1, 2**40), (1, 2**40, 0))
    ]
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 0.06


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_is_the_quantile_of_uniform(dtype):
    u = filled(random.fill_uniform, 100_000, np.float64)
    z = filled(random.fill_normal, 100_000, dtype)
    np.testing.assert_allclose(z, special.ndtri(u), rtol=1e-13 if dtype == np.float64 else 1e-7, atol=1e-15)
    assert stats.kstest(z.astype(float), "norm").pvalue > CHANCE


def test_normal_tail():
    p = np.geomspace(2.0**-54, 0.075, 500)
    z = np.empty_like(p)
    tail_quantiles(z, p)
    np.testing.assert_allclose(z, -special.ndtri(p), rtol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 10, 1000, 2**32 - 1])
def test_bounded_integers_are_uniform(n):
    values = np.empty(50_000, np.int64)
    bounded_values(values, 3, 4, n)
    assert values.min() >= 0
    assert values.max() < n
    if n > 1:
        cells = np.bincount(values * min(n, 1000) // n)
        assert stats.chisquare(cells).pvalue > CHANCE


@pytest.mark.parametrize("n", [0, 1, 2, 1797])
def test_permutation_is_a_permutation_that_differs_by_step_and_seed(n):
    orders = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
        out = np.full(n, -1)
        random.permutation(seed, step, out)
        np.testing.assert_array_equal(np.sort(out), np.arange(n))
        orders.append(out)
    np.testing.assert_array_equal(orders[0], orders[3])
    if n > 2:
        assert not np.array_equal(orders[0], orders[1])
        assert not np.array_equal(orders[0], orders[2])


def test_permutation_is_the_same_everywhere():
    out = np.empty(10, np.int64)
    random.permutation(0, 0, out)
    assert out.tolist() == [8, 2, 1, 6, 4, 3, 0, 9, 5, 7]  # by a loop over Python integers


def test_all_orders_are_alike_likely():
    counts, out = {}, np.empty(4, np.int64)
    for step in range(24_000):
        random.permutation(7, step, out)
        counts[tuple(out)] = counts.get(tuple(out), 0) + 1
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > CHANCE


@pytest.mark.skipif(not llvmlite.binding.get_process_triple().startswith("x86_64"), reason="reads x86-64 assembly")
@pytest.mark.parametrize("dtype", DTYPES)
def test_filling_is_vectorised(dtype):
    fill = numba.njit(**FLAGS)(random.fill_uniform.py_func)
    signature = (numba.typeof(np.empty(1, dtype)), numba.int64, numba.int64, numba.int64)
    fill.compile(signature)
    features = numba.config.CPU_FEATURES or llvmlite.binding.get_host_cpu_features().flatten()
    wide = "[yz]mm" if "+avx2" in features else "xmm"
    assert re.search(rf"v?pmuludq\s.*%{wide}", fill.inspect_asm(signature))


def test_streams_of_different_purposes_parts_and_steps_differ():
    numbers = {stream_number(*parts) for parts in np.ndindex(4, 5, 6)}
    assert len(numbers) == 4 * 5 * 6
    assert stream_number(255, 2**16 - 1, 2**40 - 1) == 2**64 - 1


def test_other_dtypes_are_refused():
    with pytest.raises(TypingError, match="uniform"):
        uniform_backwards(np.zeros(3, np.int64), 0, 0, 0)
    with pytest.raises(TypeError, match="uniform is for compiled code"):
        random.uniform(0, 0, 0, np.float32)
