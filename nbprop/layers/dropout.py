"""Dropout (Srivastava et al. 2014, JMLR 15, section 4): y = x m / (1 - rate), each m 0 with probability `rate`, else 1.

Scaled in training ("inverted"), so that the layer is the identity in use. The mask m is never stored: it is a function
of (seed, the layer's number in the network, step, position), and the backward pass and every derivative compute it
again.

Positions count the elements of the whole batch. 128 of them take the 64 words of 16 blocks of the generator
(numerics/random.py), each word twice: 16 positions take the blocks' first words, the next 16 the same with their halves
swapped, then follow the second words, and so on. Both halves of a word are random, so a word and its swapped self are
two numbers: below a threshold of 2**32 rate each with exactly that probability, and together with a probability
that is off by less than 2**-15. That halves the generator's work. Runs of 16 keep what is read and written at a time
within a few cache lines: with runs of 64 the same arithmetic took three times as long on arrays of 64 MB.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from nbprop.compiler.intrinsics import double_of_word
from nbprop.compiler.jit import njit
from nbprop.networks.layer import Layer
from nbprop.numerics.partition import share
from nbprop.numerics.random import DROPOUT, block, stream
from nbprop.numerics.scalars import like, scalar_function
from nbprop.program.kernel import kernel
from nbprop.validation import check_seed, number

_CHUNK, _RUN = 128, 16
_HALF, _WORD = np.uint64(16), np.uint64(0xFFFFFFFF)


@scalar_function
def _swapped(word):
    """A 32-bit word with its halves exchanged."""
    return ((word << _HALF) | (word >> _HALF)) & _WORD


@njit
def dropped(seed, key, position, threshold):
    """Whether the mask is 0 at a position."""
    chunk, place = position // _CHUNK, position % _CHUNK
    w0, w1, w2, w3 = block(seed, key, _RUN * chunk + place % _RUN)
    run = place // _RUN
    word = w0 if run < 2 else w1 if run < 4 else w2 if run < 6 else w3
    word = _swapped(word) if run % 2 == 1 else word
    return word < np.uint64(threshold)


@njit
def _mask_chunks(y, x, scale, seed, key, chunk, threshold):
    """y = x m scale over whole chunks, the first of them number `chunk`. y OUT, x IN (a multiple of 128,)."""
    drop, low = like(scale, 0.0), np.uint64(threshold)
    for c in range(y.size // _CHUNK):
        a, b = y[_CHUNK * c : _CHUNK * (c + 1)], x[_CHUNK * c : _CHUNK * (c + 1)]
        for i in range(_RUN):
            w0, w1, w2, w3 = block(seed, key, _RUN * (chunk + c) + i)
            # A product, not a choice between x and 0: what is NaN stays NaN.
            a[i] = b[i] * (drop if w0 < low else scale)
            a[i + 16] = b[i + 16] * (drop if _swapped(w0) < low else scale)
            a[i + 32] = b[i + 32] * (drop if w1 < low else scale)
            a[i + 48] = b[i + 48] * (drop if _swapped(w1) < low else scale)
            a[i + 64] = b[i + 64] * (drop if w2 < low else scale)
            a[i + 80] = b[i + 80] * (drop if _swapped(w2) < low else scale)
            a[i + 96] = b[i + 96] * (drop if w3 < low else scale)
            a[i + 112] = b[i + 112] * (drop if _swapped(w3) < low else scale)


@njit
def _mask_piece(y, x, scale, seed, key, position, threshold):
    """The same from any position on, as far as y goes, one element at a time."""
    for i in range(y.size):
        y[i] = x[i] * (like(scale, 0.0) if dropped(seed, key, position + i, threshold) else scale)


class Mask(NamedTuple):
    """What a mask depends on besides step and position."""

    number: int  # the layer's number in the network
    seed: int
    threshold: int  # 2**32 rate
    scale_bits: int  # 1 / (1 - rate), as the bits of a float64


@kernel
def dropout_mask(y, x, n, size, mask: Mask, step, first_sample, part, parts):
    """y = x m / (1 - rate), the mask m by (seed, number, step, position); also dx from dy, and any tangent.

    y OUT, x IN (n, size). Threads share the chunks of 128 positions.
    """
    seed, threshold = mask.seed, mask.threshold
    key, scale = stream(DROPOUT, mask.number, step), like(y[0], double_of_word(mask.scale_bits))
    begin, end = first_sample * size, (first_sample + n) * size
    first, last = share((end + _CHUNK - 1) // _CHUNK - begin // _CHUNK, part, parts)
    if first == last:
        return
    start = max(begin, (begin // _CHUNK + first) * _CHUNK)
    stop = min(end, (begin // _CHUNK + last) * _CHUNK)
    # The first and the last chunk of a batch may be cut.
    whole = min(stop, (start + _CHUNK - 1) // _CHUNK * _CHUNK)
    rest = max(whole, stop // _CHUNK * _CHUNK)
    y, x = y[start - begin : stop - begin], x[start - begin : stop - begin]
    _mask_piece(y[: whole - start], x[: whole - start], scale, seed, key, start, threshold)
    middle = slice(whole - start, rest - start)
    _mask_chunks(y[middle], x[middle], scale, seed, key, whole // _CHUNK, threshold)
    _mask_piece(y[rest - start :], x[rest - start :], scale, seed, key, rest, threshold)


@njit
def _key(number, step):
    return stream(DROPOUT, number, step)


@dataclass(frozen=True, repr=False)
class Dropout(Layer):
    rate: float = 0.5
    seed: int = 0
    kind = "dropout"
    checks: ClassVar = {"rate": number(0, 1, "[)"), "seed": check_seed}
    tangents = True
    modal = True

    def __repr__(self):
        return f"dropout({self.rate})" if self.seed == 0 else f"dropout({self.rate}, seed={self.seed})"

    def lower(self, build, x, path, names):
        number = build.number()
        if build.mode != "training" or self.rate == 0:
            return x
        scale_bits = int(np.float64(1 / (1 - self.rate)).view(np.int64))
        mask = Mask(number=number, seed=self.seed, threshold=round(2**32 * self.rate), scale_bits=scale_bits)
        sizes = (x.size, mask)
        y = build.value(x.shape)
        build.linear(dropout_mask, (y.buffer,), (x.buffer,), sizes)

        def rule(dy):
            dx = build.buffer(build.batch * x.size)
            build.linear(dropout_mask, (dx,), (dy,), sizes)
            build.accumulate_gradient(x, dx)

        build.on_backward(y, rule)
        return y


def dropout(rate: float = 0.5, seed: int = 0) -> Layer:
    """Dropout: in training an element is 0 with probability `rate`, else divided by 1 - rate; in use nothing happens.

    Parameters
    ----------
    rate : float in [0, 1)
    seed : int
        The mask is a function of this seed, the layer's place among the layers with random numbers, the `step` of the
        call, and the element's position in the batch: the same on any number of threads and in both precisions. Give
        each step its own number (`fit` does), and `backward` the number that `forward` had.

    Plans made with mode="inference" or "decoding" pass x through. Source: Srivastava et al. 2014, JMLR 15.

    >>> dropout(0.2)
    dropout(0.2)
    """
    return Dropout(rate, seed)
