"""One minus the cosine of the angle between an output and its target: only directions count.

With A = |y|^2 + 1e-12, B = |t|^2 + 1e-12 (as PyTorch has them), S = sqrt(A B) and c = y.t / S:

    l = 1 - c,    dl/dy = c y / A - t / S,
    H v = (c v + (E/S - c D/A) y) / A - 2 c D y / A^2 + D t / (S A) with D = y.v, E = t.v.
"""

import math
from dataclasses import dataclass

import numpy as np

from nbprop.losses.base import Loss, row_scale, total_weight
from nbprop.numerics.partition import share
from nbprop.numerics.reductions import row_dot
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel

_LEAST = 1e-12


@kernel
def cosine_kernel(losses, dy, y, target, weights, n, rows, size, part, parts):
    """l = 1 - c of each row; dy = (c y / A - t / S) w / (sum(w) rows).

    losses OUT (n * rows,), dy OUT (n * rows, size) or empty, y and target IN (n * rows, size), weights IN (n,) or
    empty.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    for i in range(first, last):
        u, t = y[i * size : (i + 1) * size], target[i * size : (i + 1) * size]
        a, b = row_dot(u, u) + like(y[0], _LEAST), row_dot(t, t) + like(y[0], _LEAST)
        s = math.sqrt(a) * math.sqrt(b)
        c = row_dot(u, t) / s
        losses[i] = like(c, 1.0) - c
        if dy.size > 0:
            factor, d_row = like(c, row_scale(weights, weight_sum, rows, i)), dy[i * size : (i + 1) * size]
            for j in range(size):
                d_row[j] = factor * (c / a * u[j] - t[j] / s)


@kernel
def cosine_curvature(dy_dot, y_dot, y, target, weights, n, rows, size, part, parts):
    """dy_dot = H y_dot w / (sum(w) rows).

    dy_dot OUT, y_dot, y and target IN (n * rows, size), weights IN (n,) or empty.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    for i in range(first, last):
        here = slice(i * size, (i + 1) * size)
        u, t, v, out = y[here], target[here], y_dot[here], dy_dot[here]
        a, b = row_dot(u, u) + like(y[0], _LEAST), row_dot(t, t) + like(y[0], _LEAST)
        s, d = math.sqrt(a) * math.sqrt(b), row_dot(u, v) / a
        c, e = row_dot(u, t) / s, row_dot(t, v) / s
        factor = like(c, row_scale(weights, weight_sum, rows, i))
        along = (e - like(c, 3.0) * c * d) / a
        for j in range(size):
            out[j] = factor * (c / a * v[j] + along * u[j] + d / s * t[j])


@dataclass(frozen=True)
class Cosine(Loss):
    kind = "cosine"
    kernel = cosine_kernel
    curvature = cosine_curvature

    def summands(self, y, target):
        norms = np.sqrt(((y * y).sum(1) + _LEAST) * ((target * target).sum(1) + _LEAST))
        return np.concatenate([np.ones((len(y), 1)), y * target / norms[:, None]], 1)


def cosine() -> Loss:
    """1 - cos of the angle between output and target along the last axis, mean over the batch, in 0..2.

    Targets are any finite numbers; their lengths do not count.

    >>> import nbprop, numpy as np
    >>> plan = nbprop.plan(nbprop.network((1,), nbprop.dense(2)), loss=nbprop.cosine())
    >>> x, target = np.ones((1, 1)), np.array([[-1.0, -1.0]])
    >>> round(nbprop.value(plan, np.ones(4), x, target, nbprop.workspace(plan)), 6)
    2.0
    """
    return Cosine()
