"""The device kernels of activations; the equations and arrays are those of nbprop/layers/activation.py.

Dimensions: n samples; rows rows a sample; size elements a row, or a sample where there are no rows.
"""

from nbprop.compiler.jit import njit
from nbprop.cuda.functions import exp as exponential
from nbprop.cuda.groups import row_max, rows_of, team_of, team_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import THREADS, device_function, grid_size
from nbprop.cuda.vectors import mapped
from nbprop.layers.activation import (
    activation_backward,
    activation_forward,
    activation_inplace,
    activation_second,
    softmax_backward,
    softmax_forward,
    softmax_second,
)
from nbprop.numerics import activations as f
from nbprop.numerics.scalars import like


@njit
def curvature(s, code):
    """The derivative of f' by s, which is x for the codes in NEEDS_INPUT, else y."""
    zero, one, two = like(s, 0.0), like(s, 1.0), like(s, 2.0)
    if (code == f.ELU) | (code == f.SELU):
        return zero if s > zero else one
    if code == f.GELU:
        return f.gelu_second_derivative(s)
    if code == f.GELU_TANH:
        return f.gelu_tanh_second_derivative(s)
    if code == f.SILU:
        return f.silu_second_derivative(s)
    if code == f.SOFTPLUS:
        return exponential(-s)
    if code == f.SIGMOID:
        return one - two * s
    if code == f.TANH:
        return -two * s
    if code == f.MISH:
        return f.mish_second_derivative(s)
    if code == f.HARD_SWISH:
        return f.hard_swish_second_derivative(s)
    if code == f.SOFTSIGN:
        return f.softsign_bend(s)
    if code == f.SINE:
        return -f.value_of(s, f.SINE)
    return zero


def cuda_kernels(cuda):
    """The device kernels: a thread for four elements at a time; for softmax, a team of threads per row."""

    @device_function
    def value(x, _, code):
        return f.value_of(x, code)

    @device_function
    def times_derivative(d, s, code):
        return d * f.derivative_of(s, code)

    values, products = mapped(value, 1), mapped(times_derivative, 2)

    def elements(n, size):
        return grid_size(n * size)

    def teams(n, rows, size):
        return rows_of(n * rows, size)

    @on_device(activation_forward, blocks=elements)
    def forward(y, x, n, size, code):
        """y = f(x). y OUT, x IN (n, size); code: which f."""
        values(y, x, x, n * size, code)

    @on_device(activation_inplace, blocks=elements)
    def inplace(y, n, size, code):
        """y = f(y). y INOUT (n, size); code: which f."""
        values(y, y, y, n * size, code)

    @on_device(activation_backward, blocks=elements)
    def backward(d, s, n, size, code):
        """d = d f'.

        d INOUT (n, size): dy, then dx; s IN (n, size): x for gelu, gelu_tanh and silu, else y; code: which f.
        """
        products(d, d, s, n * size, code)

    @on_device(softmax_forward, blocks=teams)
    def softmax(y, x, n, rows, size):
        """y = softmax(x) in each row. y OUT, x IN (n * rows, size)."""
        space, team = cuda.shared.array(THREADS, y.dtype), team_of(size)
        for first in range(cuda.blockIdx.x * THREADS, n * rows * team, cuda.gridDim.x * THREADS):
            row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
            start, stop = row * size, size if row < n * rows else 0
            maximum, total = row_max(space, x, start, stop, lane, team), like(x[0], 0.0)
            for j in range(lane, stop, team):
                y[start + j] = exponential(x[start + j] - maximum)
                total += y[start + j]
            total = team_sum(space, total, lane, team)
            for j in range(lane, stop, team):
                y[start + j] /= total

    @on_device(softmax_backward, blocks=teams)
    def softmax_back(d, y, n, rows, size):
        """d = y (d - sum(d y)) in each row. d INOUT (n * rows, size): dy, then dx; y IN (n * rows, size)."""
        space, team = cuda.shared.array(THREADS, y.dtype), team_of(size)
        for first in range(cuda.blockIdx.x * THREADS, n * rows * team, cuda.gridDim.x * THREADS):
            row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
            start, stop, along = row * size, size if row < n * rows else 0, like(y[0], 0.0)
            for j in range(lane, stop, team):
                along += d[start + j] * y[start + j]
            along = team_sum(space, along, lane, team)
            for j in range(lane, stop, team):
                d[start + j] = y[start + j] * (d[start + j] - along)

    @on_device(activation_second, blocks=elements)
    def second(d_dot, d, s, s_dot, n, size, code):
        """d_dot = d_dot f' + d (f')', then d = d f'.

        d_dot and d INOUT (n, size); s and s_dot IN (n, size): x and x' for the codes in NEEDS_INPUT, else y and y';
        code: which f.
        """
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            slope, given = f.derivative_of(s[i], code), d[i]
            d_dot[i] = d_dot[i] * slope + given * s_dot[i] * curvature(s[i], code)
            d[i] = given * slope

    @on_device(softmax_second, blocks=teams)
    def softmax_back_tangent(d_dot, d, y, y_dot, n, rows, size):
        """d' = y' (d - sum(d y)) + y (d' - sum(d' y + d y')), then d = y (d - sum(d y)), in each row.

        d_dot and d INOUT, y and y_dot IN (n * rows, size).
        """
        space, team = cuda.shared.array(THREADS, y.dtype), team_of(size)
        for first in range(cuda.blockIdx.x * THREADS, n * rows * team, cuda.gridDim.x * THREADS):
            row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
            start, stop = row * size, size if row < n * rows else 0
            along, change = like(y[0], 0.0), like(y[0], 0.0)
            for j in range(start + lane, start + stop, team):
                along += d[j] * y[j]
                change += d_dot[j] * y[j] + d[j] * y_dot[j]
            along, change = team_sum(space, along, lane, team), team_sum(space, change, lane, team)
            for j in range(start + lane, start + stop, team):
                d_dot[j] = y_dot[j] * (d[j] - along) + y[j] * (d_dot[j] - change)
                d[j] = y[j] * (d[j] - along)

    return forward, inplace, backward, softmax, softmax_back, second, softmax_back_tangent
