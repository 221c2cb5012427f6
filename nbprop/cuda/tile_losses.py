"""The losses on a tile in shared memory (see tile.py): a thread a sample, the scalar functions of the losses' files.

Each function takes a sample's output, element j at space[y + j * lead], and returns its loss l; with `gradient` it puts
dL/dy = factor dl/dy there.
"""

from nbprop.compiler.jit import njit
from nbprop.cuda.functions import exp, log
from nbprop.cuda.toolkit import device_function
from nbprop.losses.binary_cross_entropy import BinaryCrossEntropy, cross_entropy, cross_entropy_slope
from nbprop.losses.gaussian_nll import GaussianNLL
from nbprop.losses.huber import Huber, huber_slope, huber_value
from nbprop.losses.mse import MeanSquaredError, squared_error, squared_error_slope
from nbprop.losses.softmax_cross_entropy import SoftmaxCrossEntropy
from nbprop.numerics.scalars import like
from nbprop.program.elements import integer_at

MSE, BINARY, HUBER, SOFTMAX, GAUSSIAN = range(5)
NUMBERS = {MeanSquaredError: MSE, BinaryCrossEntropy: BINARY, Huber: HUBER, SoftmaxCrossEntropy: SOFTMAX}
NUMBERS[GaussianNLL] = GAUSSIAN

_VALUES = tuple(map(njit, (squared_error, cross_entropy, huber_value)))
_SLOPES = tuple(map(njit, (squared_error_slope, cross_entropy_slope, huber_slope)))


def _elementwise(value, slope):
    """The mean over a sample's outputs of value(y, t, delta)."""

    @device_function
    def loss(space, outputs, target, first, factor, delta, gradient):
        total, (y, lead, width) = like(space[0], 0.0), outputs
        size = like(total, width)
        for j in range(0, width * lead, lead):
            output, wanted = space[y + j], target[first]
            total += value(output, wanted, delta)
            if gradient:
                space[y + j] = factor / size * slope(output, wanted, delta)
            first += 1
        return total / size

    return loss


_mse, _binary, _huber = map(_elementwise, _VALUES, _SLOPES)


@device_function
def _softmax(space, outputs, chosen, factor, gradient):
    y, lead, width = outputs
    top, total = space[y], like(space[0], 0.0)
    for j in range(lead, width * lead, lead):
        value = space[y + j]
        if value > top or value != value:
            top = value
    for j in range(0, width * lead, lead):
        total += exp(space[y + j] - top)
    found = log(total) + (top - space[y + chosen * lead])
    if gradient:
        for j in range(0, width * lead, lead):
            p = exp(space[y + j] - top) / total
            p = p - like(p, 1.0) if j == chosen * lead else p
            space[y + j] = factor * p
    return found


@device_function
def _gaussian(space, outputs, target, first, factor, gradient):
    y, lead, width = outputs
    size, half, total = width // 2, like(space[0], 0.5), like(space[0], 0.0)
    each = factor / like(total, size)
    for j in range(size):
        mean, spread = j * lead, (size + j) * lead
        log_variance = space[y + spread]
        error, precision = space[y + mean] - target[first + j], exp(-log_variance)
        total += half * (log_variance + error * error * precision)
        if gradient:
            space[y + mean] = each * error * precision
            slope = half * (like(half, 1.0) - error * error * precision)
            space[y + spread] = each * slope
    return total / like(total, size)


@device_function
def loss_of_sample(number, space, outputs, target, wanted, factor, delta, gradient):
    """The loss of a sample by its number in NUMBERS.

    outputs: (its place y, lead, width). target (n, width), or (n, width / 2) for GAUSSIAN; wanted: (address of the
    targets, code of their type, which sample).
    """
    (address, code, i), width = wanted, outputs[2]
    if number == SOFTMAX:
        return _softmax(space, outputs, integer_at(address, code, i), factor, gradient)
    if number == GAUSSIAN:
        return _gaussian(space, outputs, target, i * (width // 2), factor, gradient)
    if number == HUBER:
        return _huber(space, outputs, target, i * width, factor, delta, gradient)
    if number == BINARY:
        return _binary(space, outputs, target, i * width, factor, delta, gradient)
    return _mse(space, outputs, target, i * width, factor, delta, gradient)
