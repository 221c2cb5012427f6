"""The device kernels of activations; equations and arrays are those of the CPU's kernels."""

from nbprop.cuda.functions import exp as exponential
from nbprop.cuda.groups import row_top, rows_of, team_of, team_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import THREADS, cover
from nbprop.layers.activation import (
    activation_backward,
    activation_forward,
    activation_inplace,
    softmax_backward,
    softmax_forward,
)
from nbprop.numerics import activations as f
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device's: a thread an element; for softmax, a team of threads a row."""

    def elements(n, size):
        return cover(n * size)

    def teams(n, rows, size):
        return rows_of(n * rows, size)

    @on_device(activation_forward, blocks=elements)
    def forward(y, x, n, size, code):
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            y[i] = f.value_of(x[i], code)

    @on_device(activation_inplace, blocks=elements)
    def inplace(y, n, size, code):
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            y[i] = f.value_of(y[i], code)

    @on_device(activation_backward, blocks=elements)
    def backward(d, s, n, size, code):
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            d[i] *= f.slope_of(s[i], code)

    @on_device(softmax_forward, blocks=teams)
    def softmax(y, x, n, rows, size):
        space, team = cuda.shared.array(THREADS, y.dtype), team_of(size)
        for first in range(cuda.blockIdx.x * THREADS, n * rows * team, cuda.gridDim.x * THREADS):
            row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
            start, stop = row * size, size if row < n * rows else 0
            top, total = row_top(space, x, start, stop, lane, team), like(x[0], 0.0)
            for j in range(lane, stop, team):
                y[start + j] = exponential(x[start + j] - top)
                total += y[start + j]
            total = team_sum(space, total, lane, team)
            for j in range(lane, stop, team):
                y[start + j] /= total

    @on_device(softmax_backward, blocks=teams)
    def softmax_back(d, y, n, rows, size):
        space, team = cuda.shared.array(THREADS, y.dtype), team_of(size)
        for first in range(cuda.blockIdx.x * THREADS, n * rows * team, cuda.gridDim.x * THREADS):
            row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
            start, stop, along = row * size, size if row < n * rows else 0, like(y[0], 0.0)
            for j in range(lane, stop, team):
                along += d[start + j] * y[start + j]
            along = team_sum(space, along, lane, team)
            for j in range(lane, stop, team):
                d[start + j] = y[start + j] * (d[start + j] - along)

    return forward, inplace, backward, softmax, softmax_back
