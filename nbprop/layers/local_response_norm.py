"""Local response normalization: y_i = x_i / d_i^beta with d_i = k + alpha times the sum of x_j^2 over channels near i.

Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep convolutional neural networks", section 3.3,
with their k = 2, n = 5, alpha = 1e-4 and beta = 0.75. "Near" are the n channels from i - n // 2 to i + (n - 1) // 2
that exist. PyTorch and Caffe divide alpha by n: their alpha is n times the one here.

Backward, with q_j = y_j / d_j:  dx_i = dy_i / d_i^beta - 2 alpha beta x_i times the sum of dy_j q_j over all j that
i is near to.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from nbprop.compiler.intrinsics import double_of_word
from nbprop.compiler.jit import njit
from nbprop.networks.layer import Layer
from nbprop.numerics.elementary import exp, log
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like, scalar_function
from nbprop.program.kernel import kernel
from nbprop.validation import number, positive

# Rows (pixels) that are taken together: powers are then computed over a long stretch, a row being short for vectors.
_ROWS = 16


@njit
def _add_sums(out, a, b, factor, first, last, channels):
    """out_i += factor times the sum of a_j b_j over the channels j from i + first to i + last, in every row."""
    for row in range(out.size // channels):
        start = row * channels
        for offset in range(max(first, 1 - channels), min(last, channels - 1) + 1):
            low, high = start + max(0, -offset), start + min(channels, channels - offset)
            to, a_near, b_near = out[low:high], a[low + offset : high + offset], b[low + offset : high + offset]
            for i in range(to.size):
                to[i] += factor * a_near[i] * b_near[i]


@njit
def _fill(out, value):
    for i in range(out.size):
        out[i] = like(out[i], value)


@scalar_function
def _power(d, beta):
    """d^beta, d > 0."""
    return exp(like(d, beta) * log(d))


class NormSizes(NamedTuple):
    """Arrays (n, pixels, channels), and the settings, the real ones as the bits of a float64."""

    pixels: int  # rows of a sample
    channels: int
    size: int  # channels of a neighbourhood
    alpha_bits: int
    beta_bits: int
    k_bits: int


@njit
def _stretches(n, pixels, part, parts):
    """The range of stretches of `_ROWS` rows that a thread computes."""
    return share((n * pixels + _ROWS - 1) // _ROWS, part, parts)


@njit
def _stretch(index, n, pixels, channels):
    return slice(index * _ROWS * channels, min((index + 1) * _ROWS, n * pixels) * channels)


@kernel
def norm_forward(y, d, x, n, sizes: NormSizes, part, parts):
    """d = k + alpha sum(x^2) over the neighbourhood, y = x / d^beta. y and d OUT, x IN (n, pixels, channels)."""
    pixels, channels, size = sizes.pixels, sizes.channels, sizes.size
    alpha, beta, k = double_of_word(sizes.alpha_bits), double_of_word(sizes.beta_bits), double_of_word(sizes.k_bits)
    start, stop = _stretches(n, pixels, part, parts)
    for index in range(start, stop):
        here = _stretch(index, n, pixels, channels)
        y_here, d_here, x_here = y[here], d[here], x[here]
        _fill(d_here, k)
        _add_sums(d_here, x_here, x_here, like(y[0], alpha), -(size // 2), (size - 1) // 2, channels)
        for i in range(y_here.size):
            y_here[i] = x_here[i] * _power(d_here[i], -beta)


@kernel
def norm_tangent(y_dot, d_dot, x, x_dot, d, n, sizes: NormSizes, part, parts):
    """d' = 2 alpha sum(x x') over the neighbourhood, y' = (x' - beta x d' / d) / d^beta.

    y_dot and d_dot OUT, x, x_dot and d IN (n, pixels, channels).
    """
    pixels, channels, size = sizes.pixels, sizes.channels, sizes.size
    alpha, beta = double_of_word(sizes.alpha_bits), double_of_word(sizes.beta_bits)
    start, stop = _stretches(n, pixels, part, parts)
    for index in range(start, stop):
        here = _stretch(index, n, pixels, channels)
        y_here, d_dot_here, x_here, x_dot_here, d_here = y_dot[here], d_dot[here], x[here], x_dot[here], d[here]
        _fill(d_dot_here, 0.0)
        _add_sums(d_dot_here, x_here, x_dot_here, like(d[0], 2 * alpha), -(size // 2), (size - 1) // 2, channels)
        for i in range(y_here.size):
            change = like(d[0], beta) * x_here[i] * d_dot_here[i] / d_here[i]
            y_here[i] = (x_dot_here[i] - change) * _power(d_here[i], -beta)


@kernel
def norm_backward(dx, scratch, dy, x, y, d, n, sizes: NormSizes, part, parts):
    """dx = dy / d^beta - 2 alpha beta x sum(dy y / d), the sum over the neighbourhood.

    dx OUT, dy, x, y and d IN (n, pixels, channels); scratch: two pieces of pixels per thread.
    """
    pixels, channels, size = sizes.pixels, sizes.channels, sizes.size
    alpha, beta = double_of_word(sizes.alpha_bits), double_of_word(sizes.beta_bits)
    start, stop = _stretches(n, pixels, part, parts)
    room = _ROWS * channels
    scratch = scratch[part * 2 * room : (part + 1) * 2 * room]
    for index in range(start, stop):
        here = _stretch(index, n, pixels, channels)
        dx_here, dy_here, x_here, y_here, d_here = dx[here], dy[here], x[here], y[here], d[here]
        q, s = scratch[: dx_here.size], scratch[room : room + dx_here.size]
        for i in range(q.size):
            q[i] = y_here[i] / d_here[i]
            s[i] = like(q[i], 0.0)
        _add_sums(s, dy_here, q, like(d[0], -2 * alpha * beta), -((size - 1) // 2), size // 2, channels)
        for i in range(q.size):
            dx_here[i] = dy_here[i] * _power(d_here[i], -beta) + x_here[i] * s[i]


@kernel
def norm_second(dx_dot, scratch, dy, dy_dot, x, x_dot, y, y_dot, d, d_dot, n, sizes: NormSizes, part, parts):
    """The tangent of `norm_backward`, with q' = (y' - q d') / d.

    dx_dot OUT, dy, dy_dot, x, x_dot, y, y_dot, d and d_dot IN (n, pixels, channels); scratch: four pieces of pixels per
    thread.
    """
    pixels, channels, size = sizes.pixels, sizes.channels, sizes.size
    alpha, beta = double_of_word(sizes.alpha_bits), double_of_word(sizes.beta_bits)
    factor = like(d[0], -2 * alpha * beta)
    first, last = -((size - 1) // 2), size // 2
    start, stop = _stretches(n, pixels, part, parts)
    room = _ROWS * channels
    scratch = scratch[part * 4 * room : (part + 1) * 4 * room]
    for index in range(start, stop):
        here = _stretch(index, n, pixels, channels)
        out, dy_here, dy_dot_here = dx_dot[here], dy[here], dy_dot[here]
        y_here, y_dot_here, d_here, d_dot_here = y[here], y_dot[here], d[here], d_dot[here]
        q, q_dot = scratch[: out.size], scratch[room : room + out.size]
        s, s_dot = scratch[2 * room : 2 * room + out.size], scratch[3 * room : 3 * room + out.size]
        for i in range(out.size):
            q[i] = y_here[i] / d_here[i]
            q_dot[i] = (y_dot_here[i] - q[i] * d_dot_here[i]) / d_here[i]
            s[i] = s_dot[i] = like(q[i], 0.0)
        _add_sums(s, dy_here, q, factor, first, last, channels)
        _add_sums(s_dot, dy_dot_here, q, factor, first, last, channels)
        _add_sums(s_dot, dy_here, q_dot, factor, first, last, channels)
        x_here, x_dot_here = x[here], x_dot[here]
        for i in range(out.size):
            change = dy_dot_here[i] - like(d[0], beta) * dy_here[i] * d_dot_here[i] / d_here[i]
            out[i] = change * _power(d_here[i], -beta) + x_dot_here[i] * s[i] + x_here[i] * s_dot[i]


@dataclass(frozen=True, repr=False)
class LocalResponseNorm(Layer):
    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    kind = "local_response_norm"
    checks: ClassVar = {"size": positive, "alpha": number(0), "beta": number(0), "k": number(0, ends="()")}
    tangents = True

    def __repr__(self):
        return f"local_response_norm({self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k})"

    def output_shape(self, input_shape):
        if not input_shape:
            raise ValueError("local_response_norm needs an axis of channels")
        return input_shape

    def lower(self, build, x, path, names):
        channels, pixels = x.shape[-1], math.prod(x.shape[:-1])
        alpha, beta, k = (int(np.float64(value).view(np.int64)) for value in (self.alpha, self.beta, self.k))
        shape = {"pixels": pixels, "channels": channels, "size": self.size}
        sizes = NormSizes(**shape, alpha_bits=alpha, beta_bits=beta, k_bits=k)
        room = build.threads * _ROWS * channels
        y, d = build.value(x.shape), build.buffer(build.batch * x.size)
        build.emit(norm_forward, (y.buffer, d), (x.buffer,), sizes)
        if build.with_tangents:
            x_dot = build.whole_tangent(x.buffer)
            y_dot, d_dot = build.new_tangent(y.buffer), build.new_tangent(d)
            build.emit(norm_tangent, (y_dot, d_dot), (x.buffer, x_dot, d), sizes)

        def rule(dy):
            dx = build.buffer(build.batch * x.size)
            build.emit(norm_backward, (dx, build.buffer(2 * room)), (dy, x.buffer, y.buffer, d), sizes)
            if build.with_tangents:
                pairs = ((buffer, build.tangent(buffer)) for buffer in (dy, x.buffer, y.buffer, d))
                reads = tuple(buffer for pair in pairs for buffer in pair)
                build.emit(norm_second, (build.new_tangent(dx), build.buffer(4 * room)), reads, sizes)
            build.accumulate_gradient(x, dx)

        build.on_backward(y, rule)
        return y


def local_response_norm(size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> Layer:
    """Local response normalization over the last axis: y_i = x_i / (k + alpha sum of x_j^2)^beta.

    Parameters
    ----------
    size : int
        Channels in the sum: j from i - size // 2 to i + (size - 1) // 2, as far as they exist.
    alpha, beta, k : float
        As in the paper. PyTorch's alpha is `size` times this one: it is divided by `size` there.

    Krizhevsky et al. 2012, section 3.3.

    >>> local_response_norm()
    local_response_norm(5, alpha=0.0001, beta=0.75, k=2.0)
    """
    return LocalResponseNorm(size, alpha, beta, k)
