"""The losses on a tile in shared memory (see tile.py): one thread per sample, with the losses' own scalar functions.

Each function takes the output of a sample, element j at space[y + j * lead], and returns its loss l; with `gradient`,
dL/dy = factor dl/dy overwrites the output.
"""

from nbprop.compiler.jit import njit
from nbprop.cuda.functions import exp, log
from nbprop.cuda.toolkit import device_function
from nbprop.losses.binary_cross_entropy import BinaryCrossEntropy, cross_entropy, cross_entropy_derivative
from nbprop.losses.gaussian_nll import GaussianNLL
from nbprop.losses.huber import Huber, huber_derivative, huber_value
from nbprop.losses.mse import MeanSquaredError, squared_error, squared_error_derivative
from nbprop.losses.softmax_cross_entropy import SoftmaxCrossEntropy
from nbprop.numerics.scalars import like
from nbprop.program.elements import integer_at

MSE, BINARY, HUBER, SOFTMAX, GAUSSIAN = range(5)
NUMBERS = {MeanSquaredError: MSE, BinaryCrossEntropy: BINARY, Huber: HUBER, SoftmaxCrossEntropy: SOFTMAX}
NUMBERS[GaussianNLL] = GAUSSIAN

_VALUES = tuple(map(njit, (squared_error, cross_entropy, huber_value)))
_DERIVATIVES = tuple(map(njit, (squared_error_derivative, cross_entropy_derivative, huber_derivative)))


def _elementwise(value, derivative):
    """A device function: the mean over the outputs of a sample of value(y, t, delta)."""

    @device_function
    def loss(space, outputs, target, first, factor, delta, gradient):
        total, (y, lead, width) = like(space[0], 0.0), outputs
        size = like(total, width)
        for j in range(0, width * lead, lead):
            output, wanted = space[y + j], target[first]
            total += value(output, wanted, delta)
            if gradient:
                space[y + j] = factor / size * derivative(output, wanted, delta)
            first += 1
        return total / size

    return loss


_mse, _binary, _huber = map(_elementwise, _VALUES, _DERIVATIVES)


@device_function
def _softmax(space, outputs, chosen, factor, gradient):
    y, lead, width = outputs
    maximum, total = space[y], like(space[0], 0.0)
    for j in range(lead, width * lead, lead):
        value = space[y + j]
        if value > maximum or value != value:
            maximum = value
    for j in range(0, width * lead, lead):
        total += exp(space[y + j] - maximum)
    found = log(total) + (maximum - space[y + chosen * lead])
    if gradient:
        for j in range(0, width * lead, lead):
            p = exp(space[y + j] - maximum) / total
            p = p - like(p, 1.0) if j == chosen * lead else p
            space[y + j] = factor * p
    return found


@device_function
def _gaussian(space, outputs, target, first, factor, gradient):
    y, lead, width = outputs
    size, half, total = width // 2, like(space[0], 0.5), like(space[0], 0.0)
    each = factor / like(total, size)
    for j in range(size):
        mean, log_variance_at = j * lead, (size + j) * lead
        log_variance = space[y + log_variance_at]
        error, precision = space[y + mean] - target[first + j], exp(-log_variance)
        total += half * (log_variance + error * error * precision)
        if gradient:
            space[y + mean] = each * error * precision
            derivative = half * (like(half, 1.0) - error * error * precision)
            space[y + log_variance_at] = each * derivative
    return total / like(total, size)


@device_function
def loss_of_sample(number, space, outputs, target, wanted, factor, delta, gradient):
    """The loss of a sample, chosen by its number in NUMBERS.

    space INOUT: shared memory; outputs: (offset y of its output, lead, width); target IN (n, width), for GAUSSIAN (n,
    width / 2); wanted: (address of the classes, code of their type, number of the sample).
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
