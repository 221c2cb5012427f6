"""Losses that are a mean of l(y, t) over outputs: kernels made from scalar functions, and targets that are missing.

l, its derivative and its second derivative by y are functions (y, t, delta), where delta is a number of the loss or 0.

With output weights f, of mean 1, an output counts as f times. With missing="ignore", a target that is NaN has neither
loss nor gradient, and the loss of a call is the mean over the others, sum(w f l) / sum(w f). Kernels compute the mean
over all, as other losses do; `keep_observed` and `mean_of_observed` convert it.

Dimensions: n samples; rows rows a sample, of size outputs; positions of a sequence.
"""

import math
from dataclasses import dataclass, field, fields
from typing import ClassVar

import numpy as np

from nbprop.compiler.intrinsics import double_of_word
from nbprop.losses.base import Loss, row_scale, total_weight
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at
from nbprop.program.kernel import kernel
from nbprop.validation import choose, shown


def kernels_of(kind, value, derivative, second, module=None):
    """The four kernels of a loss: (losses and gradient, product with the curvature), then both with factors.

    module: of a user's functions, whose code may change within a process.
    """
    functions = value, derivative, second
    return *_plain_kernels_of(kind, *functions, module), *observed_kernels_of(kind, *functions, module)


def _named(kernels, suffixes, kind, module):
    """Kernels with the names that files, packs and the devices' kernels know them by; each name is taken once."""
    for made, suffix in zip(kernels, suffixes, strict=True):
        made.name = f"{module or f'nbprop.losses.{kind}'}.{kind}_{suffix}"
        if module is not None:
            made.function.__module__ = module
    return kernels


def _plain_kernels_of(kind, value, derivative, second, module):
    """Losses and gradient, product with the curvature."""

    @kernel
    def losses_and_gradient(losses, dy, y, target, weights, n, rows, size, delta_bits, part, parts):
        """l = mean over a row of value(y, t); dy = derivative(y, t) w / (sum(w) rows size).

        losses OUT (n * rows,), dy OUT (n * rows, size) or empty, y and target IN (n * rows, size), weights IN (n,) or
        empty; delta_bits: delta as the bits of a float64.
        """
        first, last = share(n * rows, part, parts)
        weight_sum = total_weight(weights, n) * rows
        delta = like(y[0], double_of_word(delta_bits))
        for i in range(first, last):
            y_row, t_row = y[i * size : (i + 1) * size], target[i * size : (i + 1) * size]
            total = like(delta, 0.0)
            for j in range(size):
                total += like(total, value(y_row[j], t_row[j], delta))
            losses[i] = total / like(total, size)
            if dy.size > 0:
                factor = like(delta, row_scale(weights, weight_sum, rows, i) / size)
                d_row = dy[i * size : (i + 1) * size]
                for j in range(size):
                    d_row[j] = factor * like(total, derivative(y_row[j], t_row[j], delta))

    @kernel
    def curvature(dy_dot, y_dot, y, target, weights, n, rows, size, delta_bits, part, parts):
        """dy_dot = second(y, t) y_dot w / (sum(w) rows size).

        dy_dot OUT, y_dot, y and target IN (n * rows, size), weights IN (n,) or empty; delta_bits: delta as the bits of
        a float64.
        """
        first, last = share(n * rows, part, parts)
        weight_sum = total_weight(weights, n) * rows
        delta = like(y[0], double_of_word(delta_bits))
        for i in range(first, last):
            factor = like(delta, row_scale(weights, weight_sum, rows, i) / size)
            here = slice(i * size, (i + 1) * size)
            y_row, t_row, change, out = y[here], target[here], y_dot[here], dy_dot[here]
            for j in range(size):
                out[j] = factor * like(delta, second(y_row[j], t_row[j], delta)) * change[j]

    return _named((losses_and_gradient, curvature), ("kernel", "curvature"), kind, module)


def observed_kernels_of(kind, value, derivative, second, module=None):
    """The same with factors; alone for a loss that has kernels of its own without."""

    @kernel
    def losses_and_gradient_observed(
        losses, dy, y, target, weights, factors, n, rows, size, delta_bits, missing, part, parts
    ):
        """As `losses_and_gradient`, each output times its factor; with `missing`, 0 where the target is NaN.

        losses OUT (n * rows,), dy OUT (n * rows, size) or empty, y and target IN (n * rows, size), weights IN (n,) or
        empty, factors IN (rows * size,) or empty; delta_bits: delta as the bits of a float64.
        """
        first, last = share(n * rows, part, parts)
        weight_sum = total_weight(weights, n) * rows
        delta = like(y[0], double_of_word(delta_bits))
        one, zero = like(delta, 1.0), like(delta, 0.0)
        for i in range(first, last):
            y_row, t_row, own = y[i * size : (i + 1) * size], target[i * size : (i + 1) * size], i % rows * size
            total, scale = zero, like(delta, row_scale(weights, weight_sum, rows, i) / size)
            for j in range(size):
                f = factors[own + j] if factors.size > 0 else one
                absent = missing != 0 and t_row[j] != t_row[j]
                t = y_row[j] if absent else t_row[j]
                total += zero if absent else f * like(total, value(y_row[j], t, delta))
                if dy.size > 0:
                    slope = like(total, derivative(y_row[j], t, delta))
                    dy[i * size + j] = zero if absent else scale * f * slope
            losses[i] = total / like(total, size)

    @kernel
    def curvature_observed(dy_dot, y_dot, y, target, weights, factors, n, rows, size, delta_bits, missing, part, parts):
        """As `curvature`, each output times its factor; with `missing`, 0 where the target is NaN.

        dy_dot OUT, y_dot, y and target IN (n * rows, size), weights IN (n,) or empty, factors IN (rows * size,) or
        empty; delta_bits: delta as the bits of a float64.
        """
        first, last = share(n * rows, part, parts)
        weight_sum = total_weight(weights, n) * rows
        delta = like(y[0], double_of_word(delta_bits))
        one, zero = like(delta, 1.0), like(delta, 0.0)
        for i in range(first, last):
            scale, own = like(delta, row_scale(weights, weight_sum, rows, i) / size), i % rows * size
            for j in range(size):
                k = i * size + j
                f = factors[own + j] if factors.size > 0 else one
                absent = missing != 0 and target[k] != target[k]
                bend = like(delta, second(y[k], y[k] if absent else target[k], delta))
                dy_dot[k] = zero if absent else scale * f * bend * y_dot[k]

    kernels = losses_and_gradient_observed, curvature_observed
    return _named(kernels, ("observed_kernel", "observed_curvature"), kind, module)


@kernel
def put_number(numbers, n, at, value_bits):
    """numbers[at] = value. numbers INOUT (any,); value_bits: the bits of a float64."""
    numbers[at] = like(numbers[at], double_of_word(value_bits))


@kernel
def observed_ratio(ratio, target, weights, factors, n, positions, size, lengths_address, lengths_code):
    """ratio = the weight of all targets over that of those that are not NaN, within lengths; 0 where none is.

    ratio OUT (1,), target IN (n, positions, size), weights IN (n,) or empty, factors IN (positions * size,) or empty.
    """
    observed = 0.0
    for i in range(n):
        own, first = 0.0, i * positions * size
        for k in range(length_at(lengths_address, lengths_code, i, positions) * size):
            f = float(factors[k]) if factors.size > 0 else 1.0
            own += f if target[first + k] == target[first + k] else 0.0
        observed += own if weights.size == 0 else weights[i] * own
    whole = total_weight(weights, n) * positions * size
    ratio[0] = like(ratio[0], whole / observed if observed > 0.0 else 0.0)


@kernel
def keep_observed(dy, ratio, n, positions, size, lengths_address, lengths_code, part, parts):
    """From the gradient of the mean over all targets to that over the observed: dy *= ratio; 0 beyond lengths.

    dy INOUT (n, positions, size), ratio IN (1,). Also for the product with the curvature.
    """
    start, stop = share(n * positions, part, parts)
    for row in range(start, stop):
        here = dy[row * size : (row + 1) * size]
        if row % positions < length_at(lengths_address, lengths_code, row // positions, positions):
            for j in range(size):
                here[j] *= ratio[0]
        else:
            here[:] = like(ratio[0], 0.0)


@kernel
def mean_of_observed(losses, weights, ratio, n, positions, rows, lengths_address, lengths_code):
    """The weighted mean of the losses of observed targets, within lengths.

    losses IN (n, positions, rows), weights IN (n,) or empty, ratio IN (1,).
    """
    total = 0.0
    for i in range(n):
        sample, first = 0.0, i * positions * rows
        for r in range(first, first + length_at(lengths_address, lengths_code, i, positions) * rows):
            sample += losses[r]
        total += sample * (weights[i] if weights.size > 0 else 1.0)
    return total / (total_weight(weights, n) * positions * rows) * ratio[0]


def lower_mean_of_observed(build, y, dy, losses, weights, ratio):
    """Emit the mean over observed targets and, unless dy is None, the conversion of its gradient."""
    positions = build.positions_of(y.shape)
    if dy is not None:
        build.emit(keep_observed, (), (ratio,), (positions, y.size // positions), inplace=(dy,))
    rows = losses.size // build.batch
    build.emit(mean_of_observed, (), (losses, weights, ratio), (positions, rows // positions))


def weight_of_observed(seen, weights, lengths, factors=1.0):
    """sum(w f) over the targets that are `seen` (n, ...), within lengths, over the number of targets of a sample."""
    if lengths is not None:
        within = np.arange(seen.shape[1]) < lengths[:, None]
        seen = seen & within.reshape(within.shape + (1,) * (seen.ndim - 2))
    each = (seen.reshape(len(seen), -1) * factors).mean(1)
    return float(each.sum() if weights is None else each @ weights.astype(np.float64))


@dataclass(frozen=True, repr=False)
class ElementwiseLoss(Loss):
    """A loss whose kernels `kernels_of` makes: `kernel` and `curvature`, and `observed`, the two with factors.

    observed_fisher: as `fisher`, with factors.
    """

    missing: str | None = field(default=None, kw_only=True)
    output_weights: tuple | None = field(default=None, kw_only=True)
    observed: ClassVar[tuple] = (None, None)
    observed_fisher = None

    @property
    def number(self):
        """delta."""
        return 0.0

    residual = None  # (r, its derivative by y) where l = r^2, as functions of arrays (y, t)

    def __post_init__(self):
        if self.missing is not None:
            choose(f"{self.kind}: missing", self.missing, ("ignore",))
        if self.output_weights is not None:
            object.__setattr__(self, "output_weights", _checked_weights(self.kind, self.output_weights))

    def __repr__(self):
        shown_fields = (f for f in fields(self) if not (f.kw_only and getattr(self, f.name) is None))
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown_fields)})"

    @property
    def plain(self):
        """Whether every output counts alike, and none may be missing."""
        return self.missing is None and self.output_weights is None

    @property
    def couples_samples(self):
        return self.missing is not None

    def factors(self, output_shape):
        """The outputs' factors, (outputs of a sample,) of mean 1; None where all are 1."""
        if self.output_weights is None:
            return None
        given, size = np.array(self.output_weights), math.prod(output_shape)
        if given.size not in (size, output_shape[-1] if output_shape else 1):
            raise ValueError(
                f"{self.kind}: output_weights must have one number for each of the last axis's outputs of "
                f"{output_shape}, or for every output, got {given.size}"
            )
        return np.resize(given / given.mean(), size)

    def counted(self, target, weights, lengths=None):
        if self.missing is None:
            return super().counted(target, weights)
        factors = self.factors(target.shape[1:])
        return weight_of_observed(~np.isnan(target), weights, lengths, 1.0 if factors is None else factors)

    def sizes(self, output_shape):
        return (*super().sizes(output_shape), int(np.float64(self.number).view(np.int64)))

    def lower(self, build, y, dy):
        if self.plain:
            super().lower(build, y, dy)
            return
        losses, weights, target, factors = self._operands(build, y)
        sizes = (self.rows(y.shape), *ElementwiseLoss.sizes(self, y.shape), self.missing is not None)
        build.emit(self.observed[0], (losses, dy), (y.buffer, target, weights, factors), sizes)
        if self.missing is None:
            self.lower_mean(build, y, dy, losses, weights)
        else:
            ratio = self._ratio(build, y, target, weights, factors)
            lower_mean_of_observed(build, y, dy, losses, weights, ratio)

    def lower_curvature(self, build, y, y_dot, dy_dot, expected=False):
        if self.plain:
            super().lower_curvature(build, y, y_dot, dy_dot, expected)
            return
        _, weights, target, factors = self._operands(build, y)
        sizes = (self.rows(y.shape), *ElementwiseLoss.sizes(self, y.shape), self.missing is not None)
        kernel = self.observed_fisher if expected else self.observed[1]
        build.emit(kernel, (dy_dot,), (y_dot, y.buffer, target, weights, factors), sizes)
        positions = build.positions_of(y.shape)
        if self.missing is None:
            self.lower_positions(build, y, weights, dy_dot)
        else:
            ratio = self._ratio(build, y, target, weights, factors)
            build.emit(keep_observed, (), (ratio,), (positions, y.size // positions), inplace=(dy_dot,))

    def _operands(self, build, y):
        """(losses, weights, target, factors) as operands."""
        losses, weights = build.buffer(build.batch * self.rows(y.shape)), build.outside("weights", build.batch)
        given, factors = self.factors(y.shape), None
        if given is not None:
            factors = build.buffer(given.size)
            for at, number in enumerate(given):
                build.emit(put_number, (), (), (at, int(number.view(np.int64))), inplace=(factors,))
        return losses, weights, build.outside("target", build.batch * y.size), factors

    def _ratio(self, build, y, target, weights, factors):
        ratio, positions = build.buffer(1), build.positions_of(y.shape)
        build.emit(observed_ratio, (ratio,), (target, weights, factors), (positions, y.size // positions))
        return ratio


def _checked_weights(kind, given):
    """Output weights as a tuple of floats."""
    try:
        found = np.asarray(given, np.float64).reshape(-1)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.size == 0 or not (np.isfinite(found).all() and found.min() >= 0 and found.max() > 0):
        raise ValueError(f"{kind}: output_weights must be numbers, none negative and not all 0, got {shown(given)}")
    return tuple(found.tolist())
