"""Softmax and cross-entropy in one: l = log(sum exp(z)) - z[class], whose gradient is softmax(z) - onehot(class)."""

from dataclasses import dataclass

import numpy as np

from nbprop.compiler.intrinsics import double_of_word
from nbprop.layers.activation import softmax_row
from nbprop.losses.base import Loss, row_scale, total_weight
from nbprop.losses.elementwise import keep_observed, lower_mean_of_observed, weight_of_observed
from nbprop.numerics.elementary import exp, log
from nbprop.numerics.partition import share
from nbprop.numerics.reductions import row_dot, row_max
from nbprop.numerics.scalars import like
from nbprop.program.elements import integer_at, length_at
from nbprop.program.kernel import kernel
from nbprop.validation import check_number, integer


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


@kernel
def smoothed_cross_entropy_kernel(
    losses, dy, y, weights, n, rows, classes, smoothing_bits, ignored, target_address, target_code, part, parts
):
    """As `softmax_cross_entropy_kernel` for the target (1 - e) onehot + e / classes; rows of an ignored class have 0.

    losses OUT (n * rows,), dy OUT (n * rows, classes) or empty, y IN (n * rows, classes), weights IN (n,) or empty;
    smoothing_bits: e as the bits of a float64; ignored: no class, or 0 for none. l = log(sum exp(z)) - (1 - e) z[class]
    - e mean(z), and dy = (softmax(z) - target) w / (sum(w) rows).
    """
    first, last = share(n * rows, part, parts)
    weight_sum = total_weight(weights, n) * rows
    e = like(y[0], double_of_word(smoothing_bits))
    each = e / like(e, classes)
    for i in range(first, last):
        z = y[i * classes : (i + 1) * classes]
        chosen = integer_at(target_address, target_code, i)
        if ignored != 0 and chosen == ignored:
            losses[i] = like(e, 0.0)
            if dy.size > 0:
                dy[i * classes : (i + 1) * classes] = like(e, 0.0)
            continue
        z_max, total, spread = row_max(z), like(e, 0.0), like(e, 0.0)
        for j in range(classes):
            total += exp(z[j] - z_max)
            spread += z_max - z[j]
        losses[i] = log(total) + (like(e, 1.0) - e) * (z_max - z[chosen]) + each * spread
        if dy.size > 0:
            p, factor = dy[i * classes : (i + 1) * classes], like(e, row_scale(weights, weight_sum, rows, i))
            for j in range(classes):
                p[j] = factor * (exp(z[j] - z_max) / total - each)
            p[chosen] -= factor * (like(e, 1.0) - e)


@kernel
def keep_classes(dy, n, rows, classes, ignored, target_address, target_code, part, parts):
    """dy = 0 in the rows of an ignored class. dy INOUT (n * rows, classes)."""
    first, last = share(n * rows, part, parts)
    for i in range(first, last):
        if integer_at(target_address, target_code, i) == ignored:
            dy[i * classes : (i + 1) * classes] = like(dy[0], 0.0)


@kernel
def classes_ratio(
    ratio, weights, n, positions, rows, ignored, target_address, target_code, lengths_address, lengths_code
):
    """ratio = the weight of all rows over that of those whose class is not ignored, within lengths; 0 where none is.

    ratio OUT (1,), weights IN (n,) or empty; the classes: (n, positions, rows) integers at target_address.
    """
    observed = 0.0
    for i in range(n):
        own, first = 0.0, i * positions * rows
        for r in range(first, first + length_at(lengths_address, lengths_code, i, positions) * rows):
            own += 0.0 if integer_at(target_address, target_code, r) == ignored else 1.0
        observed += own if weights.size == 0 else weights[i] * own
    whole = total_weight(weights, n) * positions * rows
    ratio[0] = like(ratio[0], whole / observed if observed > 0.0 else 0.0)


@dataclass(frozen=True, repr=False)
class SoftmaxCrossEntropy(Loss):
    label_smoothing: float = 0.0
    ignore_index: int | None = None
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

    def __post_init__(self):
        smoothing = check_number("softmax_cross_entropy: label_smoothing", self.label_smoothing, 0.0, 1.0)
        object.__setattr__(self, "label_smoothing", smoothing)
        if self.ignore_index is not None:
            ignored = integer("softmax_cross_entropy: ignore_index", self.ignore_index)
            object.__setattr__(self, "ignore_index", ignored)
            if self.ignore_index == 0:
                raise ValueError("softmax_cross_entropy: ignore_index must be no class, such as -100, got 0")

    def __repr__(self):
        given = {"label_smoothing": self.label_smoothing or None, "ignore_index": self.ignore_index}
        text = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
        return f"SoftmaxCrossEntropy({text})"

    @property
    def plain(self):
        """Whether it is the loss without smoothing, in which every row counts."""
        return self.label_smoothing == 0 and self.ignore_index is None

    @property
    def couples_samples(self):
        return self.ignore_index is not None

    @property
    def ignored(self):
        return self.ignore_index or 0

    def counted(self, target, weights, lengths=None):
        if self.ignore_index is None:
            return super().counted(target, weights)
        return weight_of_observed(target != self.ignore_index, weights, lengths)

    def lower(self, build, y, dy):
        if self.plain:
            super().lower(build, y, dy)
            return
        rows, classes = self.rows(y.shape), y.shape[-1]
        losses, weights = build.buffer(build.batch * rows), build.outside("weights", build.batch)
        sizes = (rows, classes, int(np.float64(self.label_smoothing).view(np.int64)), self.ignored)
        build.emit(smoothed_cross_entropy_kernel, (losses, dy), (y.buffer, weights), sizes)
        if self.ignore_index is None:
            self.lower_mean(build, y, dy, losses, weights)
        else:
            lower_mean_of_observed(build, y, dy, losses, weights, self._ratio(build, y, weights))

    def lower_curvature(self, build, y, y_dot, dy_dot, expected=False):
        if self.ignore_index is None:
            super().lower_curvature(build, y, y_dot, dy_dot, expected)
            return
        rows, weights, positions = (
            self.rows(y.shape),
            build.outside("weights", build.batch),
            build.positions_of(y.shape),
        )
        reads = (y_dot, y.buffer, None, weights)
        build.emit(softmax_cross_entropy_curvature, (dy_dot,), reads, (rows, y.shape[-1]))
        build.emit(keep_classes, (), (), (rows, y.shape[-1], self.ignored), inplace=(dy_dot,))
        ratio = self._ratio(build, y, weights)
        build.emit(keep_observed, (), (ratio,), (positions, y.size // positions), inplace=(dy_dot,))

    def _ratio(self, build, y, weights):
        ratio, positions = build.buffer(1), build.positions_of(y.shape)
        build.emit(classes_ratio, (ratio,), (weights,), (positions, self.rows(y.shape) // positions, self.ignored))
        return ratio

    def summands(self, y, target):
        z_max, e, seen = y.max(1), self.label_smoothing, target != (self.ignore_index or -1)
        total = np.log(np.exp(y - z_max[:, None]).sum(1))
        chosen = z_max - y[np.arange(len(y)), np.where(seen, target, 0)]
        terms = np.stack([total, (1 - e) * chosen, e * (z_max - y.mean(1))][: 2 if e == 0 else 3], 1)
        return terms * seen[:, None]

    def target(self, output_shape):
        if not output_shape:
            raise ValueError("softmax_cross_entropy: the network's output needs an axis of classes")
        return output_shape[:-1], output_shape[-1]


def softmax_cross_entropy(label_smoothing: float = 0.0, ignore_index: int | None = None) -> Loss:
    """Cross-entropy of softmax(logits) and integer classes, mean over the batch (and positions), in nats.

    The target holds class numbers of any integer type, shape (n, *output_shape[:-1]), in 0..k - 1 for k
    logits; others are refused. For probabilities as targets, see `soft_cross_entropy`.

    label_smoothing : in 0..1; this part of each target is spread evenly over all classes (Szegedy et al. 2016)
    ignore_index : an integer that is no class, such as -100, or None; rows with this target have no loss, and the mean
        runs over the others

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(4))
    >>> plan = nbprop.plan(net, loss="softmax_cross_entropy")
    >>> round(nbprop.value(plan, np.zeros(8), np.ones((1, 1)), np.array([2]), nbprop.workspace(plan)), 6)  # log 4
    1.386294
    >>> loss = nbprop.softmax_cross_entropy(label_smoothing=0.1, ignore_index=-100)
    """
    return SoftmaxCrossEntropy(label_smoothing, ignore_index)
