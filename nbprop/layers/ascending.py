"""A head whose outputs rise: y_1 = x_1, y_k = y_(k-1) + softplus(x_k) within each group, so that quantiles never cross.

Backward, from the end of a group: with s_k the sum of dy_k .. dy_q, dx_1 = s_1 and dx_k = s_k sigmoid(x_k).
"""

from dataclasses import dataclass
from typing import ClassVar

from nbprop.networks.layer import Layer
from nbprop.numerics.elementary import sigmoid, softplus
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel
from nbprop.validation import positive


@kernel
def ascending_forward(y, x, n, groups, size, part, parts):
    """y_1 = x_1, y_k = y_(k-1) + softplus(x_k) in each group. y OUT, x IN (n * groups, size)."""
    start, stop = share(n * groups, part, parts)
    for i in range(start, stop):
        out, given = y[i * size : (i + 1) * size], x[i * size : (i + 1) * size]
        out[0] = given[0]
        for k in range(1, size):
            out[k] = out[k - 1] + softplus(given[k])


@kernel
def ascending_tangent(y_dot, x, x_dot, n, groups, size, part, parts):
    """y'_1 = x'_1, y'_k = y'_(k-1) + sigmoid(x_k) x'_k. y_dot OUT, x and x_dot IN (n * groups, size)."""
    start, stop = share(n * groups, part, parts)
    for i in range(start, stop):
        here = slice(i * size, (i + 1) * size)
        out, given, change = y_dot[here], x[here], x_dot[here]
        out[0] = change[0]
        for k in range(1, size):
            out[k] = out[k - 1] + sigmoid(given[k]) * change[k]


@kernel
def ascending_backward(dx, dy, x, n, groups, size, part, parts):
    """dx_1 = s_1, dx_k = s_k sigmoid(x_k), s_k the sum of dy_k .. dy_q. dx OUT, dy, x IN (n * groups, size)."""
    start, stop = share(n * groups, part, parts)
    for i in range(start, stop):
        here = slice(i * size, (i + 1) * size)
        out, change, given = dx[here], dy[here], x[here]
        behind = like(change[0], 0.0)
        for k in range(size - 1, 0, -1):
            behind += change[k]
            out[k] = behind * sigmoid(given[k])
        out[0] = behind + change[0]


@kernel
def ascending_second(dx_dot, dy, dy_dot, x, x_dot, n, groups, size, part, parts):
    """The tangent of `ascending_backward`: dx'_k = s'_k p + s_k p (1 - p) x'_k with p = sigmoid(x_k).

    dx_dot OUT, dy, dy_dot, x and x_dot IN (n * groups, size).
    """
    start, stop = share(n * groups, part, parts)
    for i in range(start, stop):
        here = slice(i * size, (i + 1) * size)
        out, own, change, given, along = dx_dot[here], dy[here], dy_dot[here], x[here], x_dot[here]
        behind, behind_dot = like(own[0], 0.0), like(own[0], 0.0)
        for k in range(size - 1, 0, -1):
            behind += own[k]
            behind_dot += change[k]
            p = sigmoid(given[k])
            out[k] = p * (behind_dot + behind * (like(p, 1.0) - p) * along[k])
        out[0] = behind_dot + change[0]


@dataclass(frozen=True, repr=False)
class Ascending(Layer):
    size: int
    kind = "ascending"
    checks: ClassVar = {"size": positive}
    tangents = True

    def __repr__(self):
        return f"ascending({self.size})"

    def output_shape(self, input_shape):
        if not input_shape or input_shape[-1] % self.size:
            raise ValueError(f"ascending({self.size}) needs a last axis that is a multiple of {self.size}")
        return input_shape

    def lower(self, build, x, path, names):
        y, sizes = build.value(x.shape), (x.size // self.size, self.size)
        build.emit(ascending_forward, (y.buffer,), (x.buffer,), sizes)
        if build.with_tangents:
            x_dot = build.whole_tangent(x.buffer)
            build.emit(ascending_tangent, (build.new_tangent(y.buffer),), (x.buffer, x_dot), sizes)

        def rule(dy):
            dx = build.buffer(build.batch * x.size)
            build.emit(ascending_backward, (dx,), (dy, x.buffer), sizes)
            if build.with_tangents:
                reads = (dy, build.tangent(dy), x.buffer, x_dot)
                build.emit(ascending_second, (build.new_tangent(dx),), reads, sizes)
            build.accumulate_gradient(x, dx)

        build.on_backward(y, rule)
        return y


def ascending(size: int) -> Layer:
    """A layer whose outputs rise in each group of `size` along the last axis: the head for `nbprop.quantile`.

    The first output of a group is its first input; each of the others lies above the one before by softplus(x).

    >>> import nbprop
    >>> net = nbprop.network((4,), nbprop.dense(3), nbprop.ascending(3))
    >>> plan = nbprop.plan(net, loss=nbprop.quantile((0.1, 0.5, 0.9)), batch=32)
    """
    return Ascending(size)
