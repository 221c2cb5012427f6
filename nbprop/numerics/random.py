"""Counter-based random numbers: every value is a function of (seed, stream, position) alone.

The generator is Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011, section 3.3): ten rounds of two 32 x 32 -> 64 bit products turn a 128-bit counter and a 64-bit key into
four 32-bit words. The key is the seed; the counter's low half counts blocks of four words, its high half is the
stream. No state is kept, so values can be computed in any order, by any number of threads and on a GPU, with the
same result.

A float32 takes one word and a float64 two. 256 positions of a stream in float32 read 64 blocks: first the first
word of each, then the second, the third and the fourth; 128 positions in float64 read the first two words of 64
blocks, then the other two. So runs of values and of blocks are both contiguous, and filling an array costs a fourth
(a half) of computing one value at a time. Use a stream for one purpose and one dtype; `stream` computes its number.
"""

import numpy as np
from numba import types

from nbprop.compiler.jit import njit
from nbprop.numerics.elementary_f64 import log_f64
from nbprop.numerics.scalars import scalar_function, specialise

# Purposes, for `stream`.
INITIAL_WEIGHTS, SHUFFLE, DROPOUT, USER, GENERATE = 0, 1, 2, 3, 4

_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@scalar_function
def stream(purpose, part, step):
    """The stream of one purpose (below 2**8), one part such as a layer (below 2**16), one step (below 2**40)."""
    return (np.uint64(purpose) << np.uint64(56)) | (np.uint64(part) << np.uint64(40)) | np.uint64(step)


@scalar_function
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10: four random words, from a counter of four words and a key of two.

    Words are 32 bits in a uint64 each: on CPUs and GPUs alike, the product of two is one instruction, and a loop over
    counters vectorises.
    """
    for _ in range(10):
        product_0, product_1 = _MULTIPLIER_0 * c0, _MULTIPLIER_1 * c2
        c0, c2 = (product_1 >> _SHIFT) ^ c1 ^ k0, (product_0 >> _SHIFT) ^ c3 ^ k1
        c1, c3 = product_1 & _LOW, product_0 & _LOW
        k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
    return c0, c1, c2, c3


@scalar_function
def block(seed, stream, index):
    """The four words of one block of a stream."""
    s, t, b = np.uint64(seed), np.uint64(stream), np.uint64(index)
    return philox4x32(b & _LOW, b >> _SHIFT, t & _LOW, t >> _SHIFT, s & _LOW, s >> _SHIFT)


@scalar_function
def _unit_f32(word):
    """24 bits of a word as a float32 in [0, 1 - 2**-24]."""
    return np.float32(np.int32(word >> np.uint64(8))) * np.float32(2.0**-24)


@scalar_function
def _unit_f64(high, low):
    """27 and 26 bits of two words as a float64 in [0, 1 - 2**-53]: AVX2 converts int32, but not int64."""
    upper, lower = np.int32(high >> np.uint64(5)), np.int32(low >> np.uint64(6))
    return (np.float64(upper) * 2.0**26 + np.float64(lower)) * 2.0**-53


@scalar_function
def uniform_f32(seed, stream, position):
    """A float32 in [0, 1): one of 2**24 multiples of 2**-24, never 1."""
    p = np.uint64(position)
    w0, w1, w2, w3 = block(seed, stream, ((p >> np.uint64(8)) << np.uint64(6)) | (p & np.uint64(63)))
    low = w1 if p & np.uint64(64) else w0
    high = w3 if p & np.uint64(64) else w2
    return _unit_f32(high if p & np.uint64(128) else low)


@scalar_function
def _word_pair(seed, stream, position):
    p = np.uint64(position)
    w0, w1, w2, w3 = block(seed, stream, ((p >> np.uint64(7)) << np.uint64(6)) | (p & np.uint64(63)))
    second = p & np.uint64(64)
    return (w2 if second else w0), (w3 if second else w1)


@scalar_function
def uniform_f64(seed, stream, position):
    """A float64 in [0, 1): one of 2**53 multiples of 2**-53, never 1."""
    high, low = _word_pair(seed, stream, position)
    return _unit_f64(high, low)


def uniform(seed, stream, position, dtype):
    """A number in [0, 1) of dtype: np.float32, np.float64, or the `dtype` of an array. For compiled code."""
    raise TypeError("uniform is for compiled code: call it from an @njit function")


def _select_uniform(seed, stream, position, dtype):
    if isinstance(dtype, types.NumberClass | types.DType):
        if dtype.dtype == types.float32:
            return lambda seed, stream, position, dtype: uniform_f32(seed, stream, position)
        if dtype.dtype == types.float64:
            return lambda seed, stream, position, dtype: uniform_f64(seed, stream, position)
    return None


specialise(uniform, _select_uniform)


@scalar_function
def bounded(seed, stream, position, n):
    """An integer in [0, n), 1 <= n < 2**32: the top of a 64-bit random integer times n; bias below n / 2**64."""
    high, low = _word_pair(seed, stream, position)
    limit = np.uint64(n)
    return np.int64((high * limit + ((low * limit) >> _SHIFT)) >> _SHIFT)


@scalar_function
def _central_quantile(q):
    """The normal quantile of 1/2 + q, |q| <= 0.425 (Wichura 1988, algorithm AS 241, PPND16)."""
    r = 0.180625 - q * q
    a = ((2.5090809287301226727e3 * r + 3.3430575583588128105e4) * r + 6.7265770927008700853e4) * r
    a = ((a + 4.5921953931549871457e4) * r + 1.3731693765509461125e4) * r + 1.9715909503065514427e3
    a = (a * r + 1.3314166789178437745e2) * r + 3.3871328727963666080e0
    b = ((5.2264952788528545610e3 * r + 2.8729085735721942674e4) * r + 3.9307895800092710610e4) * r
    b = ((b + 2.1213794301586595867e4) * r + 5.3941960214247511077e3) * r + 6.8718700749205790830e2
    b = (b * r + 4.2313330701600911252e1) * r + 1.0
    return q * a / b


@scalar_function
def _tail_quantile(p):
    """Minus the normal quantile of p, 0 < p < 0.075 (the same algorithm)."""
    r = np.sqrt(-log_f64(p))
    if r <= 5.0:
        r -= 1.6
        a = ((7.74545014278341407640e-4 * r + 2.27238449892691845833e-2) * r + 2.41780725177450611770e-1) * r
        a = ((a + 1.27045825245236838258e0) * r + 3.64784832476320460504e0) * r + 5.76949722146069140550e0
        a = (a * r + 4.63033784615654529590e0) * r + 1.42343711074968357734e0
        b = ((1.05075007164441684324e-9 * r + 5.47593808499534494600e-4) * r + 1.51986665636164571966e-2) * r
        b = ((b + 1.48103976427480074590e-1) * r + 6.89767334985100004550e-1) * r + 1.67638483018380384940e0
        b = (b * r + 2.05319162663775882187e0) * r + 1.0
    else:
        r -= 5.0
        a = ((2.01033439929228813265e-7 * r + 2.71155556874348757815e-5) * r + 1.24266094738807843860e-3) * r
        a = ((a + 2.65321895265761230930e-2) * r + 2.96560571828504891230e-1) * r + 1.78482653991729133580e0
        a = (a * r + 5.46378491116411436990e0) * r + 6.65790464350110377720e0
        b = ((2.04426310338993978564e-15 * r + 1.42151175831644588870e-7) * r + 1.84631831751005468180e-5) * r
        b = ((b + 7.86869131145613259100e-4) * r + 1.48753612908506148525e-2) * r + 1.36929880922735805310e-1
        b = (b * r + 5.99832206555887937690e-1) * r + 1.0
    return a / b


@scalar_function
def normal(seed, stream, position):
    """A standard normal number: the normal quantile of `uniform_f64` at the same position; |z| < 8.3."""
    u = uniform_f64(seed, stream, position)
    q = u - 0.5
    if abs(q) <= 0.425:
        return _central_quantile(q)
    p = u if q < 0.0 else 1.0 - u
    z = _tail_quantile(p if p > 0.0 else 2.0**-54)
    return -z if q < 0.0 else z


@scalar_function
def _fill_chunk_f32(out, seed, stream, chunk):
    """out, (256,) float32: positions 256 chunk, ..., 256 chunk + 255."""
    first, second, third, fourth = out[:64], out[64:128], out[128:192], out[192:]
    for i in range(64):
        w0, w1, w2, w3 = block(seed, stream, 64 * chunk + i)
        first[i], second[i] = _unit_f32(w0), _unit_f32(w1)
        third[i], fourth[i] = _unit_f32(w2), _unit_f32(w3)


@scalar_function
def _fill_chunk_f64(out, seed, stream, chunk):
    """out, (128,) float64: positions 128 chunk, ..., 128 chunk + 127."""
    first, second = out[:64], out[64:]
    for i in range(64):
        w0, w1, w2, w3 = block(seed, stream, 64 * chunk + i)
        first[i], second[i] = _unit_f64(w0, w1), _unit_f64(w2, w3)


def _fill_chunk(out, seed, stream, chunk):
    """`_fill_chunk_f32` or `_fill_chunk_f64`, by the dtype of out, once compiled."""


def _select_fill_chunk(out, seed, stream, chunk):
    return {types.float32: _fill_chunk_f32, types.float64: _fill_chunk_f64}.get(out.dtype)


specialise(_fill_chunk, _select_fill_chunk)


@njit
def fill_uniform(out, seed, stream, start=0):
    """out[i] = uniform(seed, stream, start + i, out.dtype).

    out : OUT (n,), float32 or float64
    seed, stream, start : integers, not negative
    """
    start = np.int64(start)
    size = 1024 // out.itemsize
    i = min(-start % size, out.size)
    for k in range(i):
        out[k] = uniform(seed, stream, start + k, out.dtype)
    while i + size <= out.size:
        _fill_chunk(out[i : i + size], seed, stream, (start + i) // size)
        i += size
    rest = out[i:]
    for k in range(rest.size):
        rest[k] = uniform(seed, stream, start + i + k, out.dtype)


@njit
def fill_normal(out, seed, stream, start=0):
    """out[i] = normal(seed, stream, start + i), rounded to the dtype of out. out OUT (n,); as `fill_uniform`."""
    start = np.int64(start)
    for i in range(out.size):
        out[i] = normal(seed, stream, start + i)


@njit
def permutation(seed, step, out):
    """out = a random permutation of 0 .. n - 1 by (seed, step), all equally likely: the shuffle of Fisher and Yates.

    out : OUT (n,) integers; n < 2**32
    """
    key = stream(SHUFFLE, 0, step)
    for i in range(out.size):
        out[i] = bounded(seed, key, i, i + 1)
    for i in range(out.size):
        # "Inside out": the first i entries are a permutation of 0 .. i - 1; i replaces any of them, which moves to i.
        j = out[i]
        out[i] = out[j]
        out[j] = i
