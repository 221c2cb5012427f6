"""Softmax and cross-entropy in one: l = log(sum exp(z)) - z[class], whose gradient is softmax(z) - onehot(class)."""

from dataclasses import dataclass

import numpy as np

from nbprop.layers.activation import softmax_row
from nbprop.losses.base import Loss, row_scale, total_weight
from nbprop.numerics.elementary import exp, log
from nbprop.numerics.partition import share
from nbprop.numerics.reductions import row_dot, row_max
from nbprop.numerics.scalars import like
from nbprop.program.elements import integer_at
from nbprop.program.kernel import kernel


@kernel
def softmax_cross_entropy_kernel(
    losses, dy, y, target, weights, n, rows, classes, target_address, target_code, part, parts
):
    """l = log(sum exp(z)) - z[class] of each row; dy = (softmax(z) - onehot) w / (sum(w) rows), with z = y.

    losses OUT (n * rows,), dy OUT (n * rows, classes) or empty, y IN (n * rows, classes), weights IN (n,) or empty;
    target IN (0,), empty: the classes are n * rows integers of any width at target_address.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    for i in range(first, last):
        z = y[i * classes : (i + 1) * classes]
        chosen = integer_at(target_address, target_code, i)
        z_max = row_max(z)
        if dy.size > 0:
            p = dy[i * classes : (i + 1) * classes]
            for j in range(classes):
                p[j] = exp(z[j] - z_max)
            total = p[0]
            for j in range(1, classes):
                total += p[j]
            factor = like(total, row_scale(weights, weight_sum, rows, i))
            scale = factor / total
            for j in range(classes):
                p[j] *= scale
            p[chosen] -= factor
        else:
            total = exp(z[0] - z_max)
            for j in range(1, classes):
                total += exp(z[j] - z_max)
        losses[i] = log(total) + (z_max - z[chosen])


@kernel
def softmax_cross_entropy_curvature(dy_dot, y_dot, y, target, weights, n, rows, classes, part, parts):
    """dy_dot = p (y_dot - sum(p y_dot)) w / (sum(w) rows) in each row, with p = softmax(y).

    dy_dot OUT, y_dot and y IN (n * rows, classes), weights IN (n,) or empty; target IN (0,), empty.
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    for i in range(first, last):
        here = slice(i * classes, (i + 1) * classes)
        p, change = dy_dot[here], y_dot[here]
        softmax_row(p, y[here])
        along = row_dot(p, change)
        factor = like(along, row_scale(weights, weight_sum, rows, i))
        for j in range(classes):
            p[j] *= factor * (change[j] - along)


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Loss):
    kind = "softmax_cross_entropy"
    kernel = softmax_cross_entropy_kernel
    curvature = softmax_cross_entropy_curvature
    fisher = softmax_cross_entropy_curvature
    applies = ("softmax", "sigmoid")
    has_classes = True

    def classes_of(self, y):
        return y.argmax(-1)

    def probabilities_of(self, y):
        found = np.exp(y - y.max(-1, keepdims=True))
        return found / found.sum(-1, keepdims=True)

    def summands(self, y, target):
        z_max = y.max(1)
        total = np.log(np.exp(y - z_max[:, None]).sum(1))
        return np.stack([total, z_max - y[np.arange(len(y)), target]], 1)

    def target(self, output_shape):
        if not output_shape:
            raise ValueError("softmax_cross_entropy: the network's output needs an axis of classes")
        return output_shape[:-1], output_shape[-1]


def softmax_cross_entropy() -> Loss:
    """Cross-entropy of softmax(logits) and integer classes, mean over the batch (and positions), in nats.

    The target holds class numbers of any integer type, shape (n, *output_shape[:-1]), in 0..k - 1 for k
    logits; others are refused.

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(4))
    >>> plan = nbprop.plan(net, loss="softmax_cross_entropy")
    >>> round(nbprop.value(plan, np.zeros(8), np.ones((1, 1)), np.array([2]), nbprop.workspace(plan)), 6)  # log 4
    1.386294
    """
    return SoftmaxCrossEntropy()
