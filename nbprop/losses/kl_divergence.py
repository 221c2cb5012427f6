"""Losses of probabilities as targets, on logits: cross-entropy, and Kullback and Leibler's divergence.

With p = softmax(z) and T = sum(t), cross-entropy is sum(t (log(sum(exp(z))) - z)), its gradient T p - t and its
Hessian T (diag(p) - p p^T). The divergence sum(t log(t / p)) differs by sum(t log t), which does not depend on z.
"""

from dataclasses import dataclass

import numpy as np

from nbprop.layers.activation import softmax_row
from nbprop.losses.base import Loss, row_scale, total_weight
from nbprop.losses.softmax_cross_entropy import SoftmaxCrossEntropy
from nbprop.numerics.elementary import exp, log
from nbprop.numerics.partition import share
from nbprop.numerics.reductions import row_dot, row_max, row_sum
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel


@kernel
def soft_cross_entropy_kernel(losses, dy, y, target, weights, n, rows, size, entropy, part, parts):
    """l = sum(t (log(sum exp(z)) - z)), plus sum(t log t) if `entropy`; dy = (T softmax(z) - t) w / (sum(w) rows).

    losses OUT (n * rows,), dy OUT (n * rows, size) or empty, y and target IN (n * rows, size), weights IN (n,) or
    empty.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    for i in range(first, last):
        z, t = y[i * size : (i + 1) * size], target[i * size : (i + 1) * size]
        z_max, whole, zero = row_max(z), row_sum(t), like(y[0], 0.0)
        total, loss = zero, zero
        for j in range(size):
            total += exp(z[j] - z_max)
        log_total = log(total)
        for j in range(size):
            own = log_total + (z_max - z[j])
            if entropy != 0:
                own += log(t[j]) if t[j] > zero else zero
            loss += t[j] * own
        losses[i] = loss
        if dy.size > 0:
            factor, d_row = like(total, row_scale(weights, weight_sum, rows, i)), dy[i * size : (i + 1) * size]
            for j in range(size):
                d_row[j] = factor * (whole * (exp(z[j] - z_max) / total) - t[j])


@kernel
def soft_cross_entropy_curvature(dy_dot, y_dot, y, target, weights, n, rows, size, entropy, part, parts):
    """dy_dot = T p (y_dot - sum(p y_dot)) w / (sum(w) rows) in each row, with p = softmax(y).

    dy_dot OUT, y_dot, y and target IN (n * rows, size), weights IN (n,) or empty.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    for i in range(first, last):
        here = slice(i * size, (i + 1) * size)
        p, change = dy_dot[here], y_dot[here]
        softmax_row(p, y[here])
        along = row_dot(p, change)
        factor = like(along, row_scale(weights, weight_sum, rows, i)) * row_sum(target[here])
        for j in range(size):
            p[j] *= factor * (change[j] - along)


@dataclass(frozen=True)
class SoftCrossEntropy(Loss):
    kind = "soft_cross_entropy"
    kernel = soft_cross_entropy_kernel
    curvature = soft_cross_entropy_curvature
    target_range = (0.0, 1.0)
    applies = ("softmax", "sigmoid")
    entropy = 0
    has_classes = True
    classes_of, probabilities_of = SoftmaxCrossEntropy.classes_of, SoftmaxCrossEntropy.probabilities_of

    def summands(self, y, target):
        z_max = y.max(1, keepdims=True)
        each = np.log(np.exp(y - z_max).sum(1, keepdims=True)) + z_max - y
        return target * (each + self.entropy * np.log(np.where(target > 0, target, 1)))

    def sizes(self, output_shape):
        return (*super().sizes(output_shape), self.entropy)


@dataclass(frozen=True)
class KLDivergence(SoftCrossEntropy):
    kind = "kl_divergence"
    entropy = 1


def soft_cross_entropy() -> Loss:
    """Cross-entropy of softmax(logits) and probabilities of the classes, mean over the batch (and positions), in nats.

    The target has the output's shape and holds the classes' probabilities, in 0..1, others are refused; those of a row
    sum to 1, or to a weight of the row.

    >>> import nbprop, numpy as np
    >>> plan = nbprop.plan(nbprop.network((1,), nbprop.dense(2)), loss=nbprop.soft_cross_entropy())
    >>> x, target = np.ones((1, 1)), np.array([[0.5, 0.5]])
    >>> round(nbprop.value(plan, np.zeros(4), x, target, nbprop.workspace(plan)), 6)  # log 2
    0.693147
    """
    return SoftCrossEntropy()


def kl_divergence() -> Loss:
    """Kullback and Leibler's divergence of softmax(logits) from a target distribution, mean over the batch, in nats.

    sum(t log(t / p)), which is 0 where they are equal. The target is as of `soft_cross_entropy`, whose gradient this
    loss has: probabilities in 0..1, others are refused.

    >>> import nbprop, numpy as np
    >>> plan = nbprop.plan(nbprop.network((1,), nbprop.dense(2)), loss=nbprop.kl_divergence())
    >>> x, target = np.ones((1, 1)), np.array([[0.5, 0.5]])
    >>> round(nbprop.value(plan, np.zeros(4), x, target, nbprop.workspace(plan)), 6)
    0.0
    """
    return KLDivergence()
