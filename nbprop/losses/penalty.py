"""Penalties on parameters, which belong to a plan's loss: R = l2 / 2 sum(w^2) + l1 sum(|w|) over the penalized ones.

A plan with penalties has the loss sum(w_i l_i) / sum(w_i) + R, whatever the batch and its weights. The gradient of R
is l2 w + l1 sign(w), where sign(0) = 0, a subgradient; its Hessian is l2 times the identity on these parameters.

The gradient is added to a parameter's own as soon as that is complete, while it is still in the cache (lowering/
penalties.py), and R is summed in the same op. Per penalized parameter, this reads the parameter and reads and writes
its gradient once: 24 bytes in float64, which only reach main memory where one layer's gradient exceeds the cache.
"""

from dataclasses import dataclass

import numpy as np

from nbprop.arrays import check_vector
from nbprop.compiler.intrinsics import double_of_word
from nbprop.compiler.jit import njit
from nbprop.numerics.partition import share
from nbprop.numerics.reductions import row_dot
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel
from nbprop.validation import check_number

# Elements that are summed in the plan's dtype; the sums of blocks are added in float64, in order.
BLOCK = 4096


@njit
def _magnitudes(w):
    """sum(|w|), in four running sums of every fourth element. w IN (size,)."""
    zero = like(w[0], 0.0)
    a, b, c, d = zero, zero, zero, zero
    whole = w.size // 4 * 4
    for i in range(0, whole, 4):
        a += abs(w[i])
        b += abs(w[i + 1])
        c += abs(w[i + 2])
        d += abs(w[i + 3])
    for i in range(whole, w.size):
        a += abs(w[i])
    return (a + b) + (c + d)


@njit
def _block_penalty(w, l2, l1):
    """l2 / 2 sum(w^2) + l1 sum(|w|). w IN (size,)."""
    total = like(l2, 0.5) * l2 * row_dot(w, w) if l2 > 0 else like(l2, 0.0)
    return total + l1 * _magnitudes(w) if l1 > 0 else total


@kernel
def penalty_value(sums, w, n, first, size, l2_bits, l1_bits, part, parts):
    """sums[first + k] = l2 / 2 sum(w^2) + l1 sum(|w|) over block k of 4096 elements.

    sums INOUT (blocks of all parameters,), w IN (size,); l2_bits, l1_bits: numbers as the bits of a float64.
    """
    l2, l1 = like(w[0], double_of_word(l2_bits)), like(w[0], double_of_word(l1_bits))
    start, stop = share((size + BLOCK - 1) // BLOCK, part, parts)
    for k in range(start, stop):
        sums[first + k] = _block_penalty(w[k * BLOCK : min((k + 1) * BLOCK, size)], l2, l1)


@kernel
def penalty_gradient(grad, sums, w, n, first, size, l2_bits, l1_bits, smooth, part, parts):
    """grad += l2 w + l1 sign(w), without the latter if `smooth`; sums as in `penalty_value`.

    grad INOUT (size,), sums INOUT (blocks of all parameters,), w IN (size,); l2_bits, l1_bits: numbers as the bits of a
    float64.
    """
    l2, l1 = like(w[0], double_of_word(l2_bits)), like(w[0], double_of_word(l1_bits))
    zero = like(l2, 0.0)
    step = zero if smooth else l1
    start, stop = share((size + BLOCK - 1) // BLOCK, part, parts)
    for k in range(start, stop):
        here = slice(k * BLOCK, min((k + 1) * BLOCK, size))
        own, g = w[here], grad[here]
        if step == zero:
            for i in range(g.size):
                g[i] += l2 * own[i]
        else:
            for i in range(g.size):
                g[i] += l2 * own[i] + (step if own[i] > zero else (-step if own[i] < zero else zero))
        sums[first + k] = _block_penalty(own, l2, l1)


@kernel
def penalty_product(out, v, n, size, l2_bits, part, parts):
    """out += l2 v, the penalty's part of a product with second derivatives.

    out INOUT, v IN (size,); l2_bits: l2 as the bits of a float64.
    """
    l2 = like(out[0], double_of_word(l2_bits))
    first, last = share((size + BLOCK - 1) // BLOCK, part, parts)
    out, v = out[first * BLOCK : min(last * BLOCK, size)], v[first * BLOCK : min(last * BLOCK, size)]
    for i in range(out.size):
        out[i] += l2 * v[i]


@kernel
def add_penalty(sums, n, result_bits):
    """The result so far plus the sums, in index order. sums IN (blocks of all parameters,); result_bits: a float64."""
    total = 0.0
    for k in range(sums.size):
        total += sums[k]
    return double_of_word(result_bits) + total


@dataclass(frozen=True)
class Penalty:
    """R over the parameters in `runs`, (begin, stop) each, none of which goes beyond one array of `views`.

    smooth: gradients leave l1's part out, for methods that treat it by proximal steps; the value never does.
    """

    l2: float
    l1: float
    runs: tuple
    smooth: bool = False

    @property
    def l2_bits(self):
        return _bits(self.l2)

    @property
    def l1_bits(self):
        return _bits(self.l1)

    def mask(self, n_params):
        """The penalized parameters, (n_params,) bool."""
        found = np.zeros(n_params, bool)
        for begin, stop in self.runs:
            found[begin:stop] = True
        return found

    def value(self, params):
        """R, as NumPy computes it in float64."""
        chosen = params[self.mask(params.size)].astype(np.float64)
        return 0.5 * self.l2 * float(chosen @ chosen) + self.l1 * float(np.abs(chosen).sum())

    def __str__(self):
        return f"l2={self.l2!r}, l1={self.l1!r}"


def _bits(number):
    return int(np.float64(number).view(np.int64))


def weights_of(net):
    """The parameters that are weights, (n_params,) bool: arrays of two axes and more, and trained.

    Biases, gains and numbers that layers are given are not among them.
    """
    mask = np.zeros(net.n_params, bool)
    for slot in net.slots.values():
        mask[slot.offset : slot.stop] = len(slot.parameter.shape) > 1 and slot.parameter.trained
    return mask


def penalty_of(function, net, l2, l1, penalized):
    """The penalty that a function's arguments ask for; None where there is none."""
    l2, l1 = check_number(f"{function}: l2", l2), check_number(f"{function}: l1", l1)
    if penalized is not None:
        check_vector(f"{function}: penalized", penalized, net.n_params, np.dtype(bool))
    if l2 == l1 == 0.0:
        return None
    mask = weights_of(net) if penalized is None else penalized
    runs: list[tuple[int, int]] = []
    for slot in net.slots.values():
        if slot.parameter.trained:
            edges = np.flatnonzero(np.diff(mask[slot.offset : slot.stop], prepend=False, append=False)) + slot.offset
            runs += zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return Penalty(l2, l1, tuple(runs)) if runs else None
