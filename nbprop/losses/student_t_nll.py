"""Negative log-likelihood of Student's t with predicted location and log squared scale: outliers count little.

With nu degrees of freedom, e = m - t, r = exp(-s) and a = e^2 r / nu,

    l = (s + (nu + 1) log(1 + a)) / 2,    dl/dm = c e r,    dl/ds = (1 - (nu + 1) a / (1 + a)) / 2,

c = (nu + 1) / (nu (1 + a)). As nu grows, l becomes that of a Gaussian with log variance s.
"""

from dataclasses import dataclass

import numpy as np

from nbprop.compiler.intrinsics import double_of_word
from nbprop.losses.base import Loss, row_scale, total_weight
from nbprop.losses.gaussian_nll import GaussianNLL
from nbprop.numerics.elementary import exp, log1p
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel
from nbprop.validation import number


@kernel
def student_t_nll_kernel(losses, dy, y, target, weights, n, rows, size, delta_bits, part, parts):
    """l = mean over k of (s + (nu + 1) log(1 + a)) / 2, where a row of y holds k locations m, then k s.

    losses OUT (n * rows,), dy OUT (n * rows, 2 size) or empty, y IN (n * rows, 2 size), target IN (n * rows, size),
    weights IN (n,) or empty; size is k; delta_bits: nu as the bits of a float64. Constants of nu are left out.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    nu, half, one = like(y[0], double_of_word(delta_bits)), like(y[0], 0.5), like(y[0], 1.0)
    for i in range(first, last):
        y_row, t_row = y[2 * i * size : 2 * (i + 1) * size], target[i * size : (i + 1) * size]
        total = like(half, 0.0)
        for j in range(size):
            error, r = y_row[j] - t_row[j], exp(-y_row[size + j])
            total += half * (y_row[size + j] + (nu + one) * log1p(error * error * r / nu))
        losses[i] = total / like(total, size)
        if dy.size > 0:
            factor = like(half, row_scale(weights, weight_sum, rows, i) / size)
            d_row = dy[2 * i * size : 2 * (i + 1) * size]
            for j in range(size):
                error, r = y_row[j] - t_row[j], exp(-y_row[size + j])
                a = error * error * r / nu
                d_row[j] = factor * (nu + one) / (nu * (one + a)) * error * r
                d_row[size + j] = factor * half * (one - (nu + one) * (a / (one + a)))


@kernel
def student_t_nll_curvature(dy_dot, y_dot, y, target, weights, n, rows, size, delta_bits, part, parts):
    """dy_dot = H y_dot: with b = (nu + 1) / (1 + a)^2, H = b [[(1 - a) r / nu, -e r / nu], [-e r / nu, a / 2]].

    dy_dot OUT, y_dot and y IN (n * rows, 2 size), target IN (n * rows, size), weights IN (n,) or empty; size is k;
    delta_bits: nu as the bits of a float64.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    nu, half, one = like(y[0], double_of_word(delta_bits)), like(y[0], 0.5), like(y[0], 1.0)
    for i in range(first, last):
        here = slice(2 * i * size, 2 * (i + 1) * size)
        y_row, change, out, t_row = y[here], y_dot[here], dy_dot[here], target[i * size : (i + 1) * size]
        factor = like(half, row_scale(weights, weight_sum, rows, i) / size)
        for j in range(size):
            error, r = y_row[j] - t_row[j], exp(-y_row[size + j])
            a = error * error * r / nu
            b = factor * (nu + one) / ((one + a) * (one + a))
            across = -error * r / nu
            out[j] = b * ((one - a) * r / nu * change[j] + across * change[size + j])
            out[size + j] = b * (across * change[j] + half * a * change[size + j])


@kernel
def student_t_nll_fisher(dy_dot, y_dot, y, target, weights, n, rows, size, delta_bits, part, parts):
    """dy_dot = E[H] y_dot, with E[H] = [[(nu + 1) r, 0], [0, nu / 2]] / (nu + 3) (Lange et al. 1989, appendix B).

    dy_dot OUT, y_dot and y IN (n * rows, 2 size), target IN (n * rows, size), weights IN (n,) or empty; size is k;
    delta_bits: nu as the bits of a float64; target is not read.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    nu = like(y[0], double_of_word(delta_bits))
    location, scale = (nu + like(nu, 1.0)) / (nu + like(nu, 3.0)), like(nu, 0.5) * nu / (nu + like(nu, 3.0))
    for i in range(first, last):
        here = slice(2 * i * size, 2 * (i + 1) * size)
        y_row, change, out = y[here], y_dot[here], dy_dot[here]
        factor = like(nu, row_scale(weights, weight_sum, rows, i) / size)
        for j in range(size):
            out[j] = factor * location * exp(-y_row[size + j]) * change[j]
            out[size + j] = factor * scale * change[size + j]


@dataclass(frozen=True)
class StudentTNLL(GaussianNLL):
    nu: float = 4.0
    kind = "student_t_nll"
    kernel = student_t_nll_kernel
    curvature = student_t_nll_curvature
    fisher = student_t_nll_fisher

    def __post_init__(self):
        object.__setattr__(self, "nu", number(0, ends="()")("student_t_nll: nu", self.nu))

    def summands(self, y, target):
        m, s = np.split(y, 2, axis=1)
        a = (target - m) ** 2 * np.exp(-s) / self.nu
        return np.concatenate([s, (self.nu + 1) * np.log1p(a)], 1) / y.shape[1]

    def sizes(self, output_shape):
        return (*super().sizes(output_shape), int(np.float64(self.nu).view(np.int64)))


def student_t_nll(nu: float = 4.0) -> Loss:
    """Student's t negative log-likelihood, mean over the batch and the k targets, in nats without constants.

    nu : degrees of freedom, fixed; few mean heavy tails

    The output (n, 2k) is k locations, then k logarithms of squared scales; the target is (n, k), any finite numbers.

    >>> import nbprop, numpy as np
    >>> plan = nbprop.plan(nbprop.network((1,), nbprop.dense(2)), loss=nbprop.student_t_nll())
    >>> x, target = np.ones((1, 1)), np.array([[2.0]])
    >>> round(nbprop.value(plan, np.zeros(4), x, target, nbprop.workspace(plan)), 6)  # 5 / 2 log 2
    1.732868
    """
    return StudentTNLL(nu)
