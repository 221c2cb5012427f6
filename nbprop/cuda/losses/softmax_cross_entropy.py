"""The device kernels of softmax cross-entropy; equations as in nbprop/losses/softmax_cross_entropy.py.

Dimensions: n samples; rows rows a sample; classes logits a row.
"""

from nbprop.cuda import functions as f
from nbprop.cuda.groups import row_factor, row_max, rows_of, team_of, team_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.losses.base import cuda_weight_sum
from nbprop.cuda.toolkit import THREADS
from nbprop.losses.softmax_cross_entropy import softmax_cross_entropy_curvature, softmax_cross_entropy_kernel
from nbprop.numerics.scalars import like
from nbprop.program.elements import integer_at


def cuda_kernels(cuda):
    """The device kernels: one team of threads per row."""

    @on_device(softmax_cross_entropy_kernel, blocks=lambda n, rows, classes: rows_of(n * rows, classes))
    def losses_and_gradient(losses, dy, y, weights, partials, n, rows, classes, target_address, target_code):
        """l = log(sum exp(z)) - z[class] of each row; dy = (softmax(z) - onehot) w / (sum(w) rows), z = y.

        losses OUT (n * rows,), dy OUT (n * rows, classes) or empty, y IN (n * rows, classes), weights IN (n,) or empty;
        partials IN (1,): sum(w); the classes: n * rows integers at target_address.
        """
        space, team = cuda.shared.array(THREADS, y.dtype), team_of(classes)
        for first in range(cuda.blockIdx.x * THREADS, n * rows * team, cuda.gridDim.x * THREADS):
            row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
            start, stop = row * classes, classes if row < n * rows else 0
            maximum, total = row_max(space, y, start, stop, lane, team), like(y[0], 0.0)
            for j in range(lane, stop, team):
                total += f.exp(y[start + j] - maximum)
            total = team_sum(space, total, lane, team)
            if lane < stop:
                chosen = integer_at(target_address, target_code, row)
                if lane == 0:
                    losses[row] = f.log(total) + (maximum - y[start + chosen])
                if dy.size > 0:
                    factor = row_factor(weights, partials, n, rows, row)
                    for j in range(lane, stop, team):
                        p = f.exp(y[start + j] - maximum) / total
                        dy[start + j] = factor * (p - like(p, 1.0) if j == chosen else p)

    @on_device(softmax_cross_entropy_curvature, blocks=lambda n, rows, classes: rows_of(n * rows, classes))
    def curvature(dy_dot, y_dot, y, weights, partials, n, rows, classes):
        """dy' = p (y' - sum(p y')) w / (sum(w) rows) in each row, with p = softmax(y).

        dy_dot OUT, y_dot and y IN (n * rows, classes), weights IN (n,) or empty; partials IN (1,): sum(w).
        """
        space, team = cuda.shared.array(THREADS, y.dtype), team_of(classes)
        for first in range(cuda.blockIdx.x * THREADS, n * rows * team, cuda.gridDim.x * THREADS):
            row, lane = (first + cuda.threadIdx.x) // team, cuda.threadIdx.x % team
            start, stop = row * classes, classes if row < n * rows else 0
            maximum = row_max(space, y, start, stop, lane, team)
            total, along = like(y[0], 0.0), like(y[0], 0.0)
            for j in range(lane, stop, team):
                p = f.exp(y[start + j] - maximum)
                total += p
                along += p * y_dot[start + j]
            total, along = team_sum(space, total, lane, team), team_sum(space, along, lane, team)
            if lane < stop:
                factor = row_factor(weights, partials, n, rows, row) / total
                for j in range(lane, stop, team):
                    p = f.exp(y[start + j] - maximum)
                    dy_dot[start + j] = factor * p * (y_dot[start + j] - along / total)

    sums = (cuda_weight_sum(cuda, loss) for loss in (softmax_cross_entropy_kernel, softmax_cross_entropy_curvature))
    return *sums, losses_and_gradient, curvature
