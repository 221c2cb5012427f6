"""The device kernels of samples' own gradients; equations as in nbprop/layers/dense/sample_gradients.py.

Dimensions: n samples; rows rows a sample; n_in inputs and n_out outputs of the layer; size elements of a sample.
"""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.dense.sample_gradients import dense_sample_gradients, repeat_row, times_samples
from nbprop.layers.dense.sizes import DenseSizes
from nbprop.numerics.scalars import like


def cuda_kernels(cuda):
    """The device kernels: one thread per element."""

    @on_device(dense_sample_gradients, blocks=lambda n, n_in, n_out: grid_size(n * (n_in + 1) * n_out))
    def of_samples(dw, db, x, dz, n, sizes: DenseSizes, stride, w_accumulate, b_accumulate):
        """dW = x^T dz and db = the sum of the rows of dz, over the rows of each sample.

        dw OUT (n, n_in, n_out) and db OUT (n, n_out) or empty, with `stride` elements between samples; added to
        where `w_accumulate`, `b_accumulate` is 1; x IN (n * rows, n_in), dz IN (n * rows, n_out).
        """
        rows, n_in, n_out = sizes.rows, sizes.n_in, sizes.n_out
        each = n_in * n_out + (n_out if db.size > 0 else 0)
        for item in range(cuda.grid(1), n * each, cuda.gridsize(1)):
            sample = item // each
            i = item - sample * each
            row, col, total = i // n_out, i % n_out, like(dz[0], 0.0)
            for step in range(sample * rows, (sample + 1) * rows):
                left = x[step * n_in + row] if row < n_in else like(total, 1.0)
                total += left * dz[step * n_out + col]
            if row < n_in:
                place = sample * stride + i
                dw[place] = total + dw[place] if w_accumulate > 0 else total
            else:
                place = sample * stride + col
                db[place] = total + db[place] if b_accumulate > 0 else total

    @on_device(repeat_row, blocks=lambda n, size: grid_size(n * size))
    def repeated(y, row, n, size):
        """Each sample of y = row. y OUT (n, size), row IN (size,)."""
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            y[i] = row[i % size]

    @on_device(times_samples, blocks=lambda n, size: grid_size(n * size))
    def multiplied(dy, n, size):
        """dy *= n. dy INOUT (n, size)."""
        for i in range(cuda.grid(1), n * size, cuda.gridsize(1)):
            dy[i] *= like(dy[i], n)

    return of_samples, repeated, multiplied
