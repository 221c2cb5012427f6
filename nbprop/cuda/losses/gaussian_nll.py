"""The device kernels of the Gaussian negative log-likelihood; equations as in nbprop/losses/gaussian_nll.py.

Dimensions: n samples; rows rows a sample; size targets a row.
"""

from nbprop.cuda.functions import exp as exponential
from nbprop.cuda.groups import row_factor, rows_of, team_of, team_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.losses.base import cuda_weight_sum
from nbprop.cuda.toolkit import THREADS, grid_size
from nbprop.losses.gaussian_nll import gaussian_nll_curvature, gaussian_nll_fisher, gaussian_nll_kernel
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: one team of threads per row."""

    @on_device(gaussian_nll_kernel, blocks=lambda n, rows, size: rows_of(n * rows, size))
    def losses_and_gradient(losses, dy, y, target, weights, partials, n, rows, size):
        """l = mean over a row of (s + (t - m)^2 e^-s) / 2 for means m, log variances s; dy = dl/dy w / (sum(w) rows).

        losses OUT (n * rows,), dy OUT (n * rows, 2 size) or empty, y IN (n * rows, 2 size): means, then log variances;
        target IN (n * rows, size), weights IN (n,) or empty; partials IN (1,): sum(w).
        """
        space, team, half = cuda.shared.array(THREADS, y.dtype), team_of(size), like(y[0], 0.5)
        for first in range(cuda.blockIdx.x * THREADS, n * rows * team, cuda.gridDim.x * THREADS):
            row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
            stop, total = size if row < n * rows else 0, like(half, 0.0)
            for j in range(lane, stop, team):
                mean, log_variance = 2 * row * size + j, y[(2 * row + 1) * size + j]
                error = y[mean] - target[row * size + j]
                total += half * (log_variance + error * error * exponential(-log_variance))
            total = team_sum(space, total, lane, team)
            if lane < stop:
                if lane == 0:
                    losses[row] = total / like(total, size)
                if dy.size > 0:
                    factor = row_factor(weights, partials, n, rows, row) / like(total, size)
                    for j in range(lane, stop, team):
                        mean = 2 * row * size + j
                        error, precision = y[mean] - target[row * size + j], exponential(-y[mean + size])
                        dy[mean] = factor * error * precision
                        dy[mean + size] = factor * half * (like(half, 1.0) - error * error * precision)

    def elements(n, rows, size):
        return grid_size(n * rows * size)

    @on_device(gaussian_nll_curvature, blocks=elements)
    def curvature(dy_dot, y_dot, y, target, weights, partials, n, rows, size):
        """dy' = H y': with e = m - t and r = exp(-s), H = [[r, -e r], [-e r, e^2 r / 2]] for each target.

        dy_dot OUT, y_dot and y IN (n * rows, 2 size), target IN (n * rows, size), weights IN (n,) or empty; partials IN
        (1,): sum(w).
        """
        half = like(y[0], 0.5)
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            row = k // size
            mean = row * size + k
            error, precision = y[mean] - target[k], exponential(-y[mean + size])
            factor = row_factor(weights, partials, n, rows, row) / like(half, size)
            of_mean, of_variance = y_dot[mean], y_dot[mean + size]
            dy_dot[mean] = factor * precision * (of_mean - error * of_variance)
            dy_dot[mean + size] = factor * precision * error * (half * error * of_variance - of_mean)

    @on_device(gaussian_nll_fisher, blocks=elements)
    def fisher(dy_dot, y_dot, y, weights, partials, n, rows, size):
        """dy' = E[H] y': with r = exp(-s), E[H] = [[r, 0], [0, 1 / 2]].

        dy_dot OUT, y_dot and y IN (n * rows, 2 size), weights IN (n,) or empty; partials IN (1,): sum(w).
        """
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            row = k // size
            mean = row * size + k
            factor = row_factor(weights, partials, n, rows, row) / like(y[0], size)
            dy_dot[mean] = factor * exponential(-y[mean + size]) * y_dot[mean]
            dy_dot[mean + size] = factor * like(factor, 0.5) * y_dot[mean + size]

    sums = (cuda_weight_sum(cuda, loss) for loss in (gaussian_nll_kernel, gaussian_nll_curvature, gaussian_nll_fisher))
    return *sums, losses_and_gradient, curvature, fisher
