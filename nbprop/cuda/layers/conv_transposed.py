"""The device kernels of a bias alone; equations and arrays are those of nbprop/layers/conv/transposed.py."""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.conv.transposed import bias_backward, bias_forward
from nbprop.numerics.scalars import like
from nbprop.program.sizes import Rows


def cuda_kernels(cuda):
    """The device kernels: one thread per element; for the sum over rows, one per feature."""

    @on_device(bias_forward, blocks=lambda n, rows, size: grid_size(n * rows * size))
    def forward(y, b, n, sizes: Rows):
        """y += b in each row. y INOUT (n * rows, size), b IN (size,)."""
        rows, size = sizes.rows, sizes.size
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            y[k] += b[k % size]

    @on_device(bias_backward, blocks=lambda size: grid_size(size))
    def backward(db, dy, n, sizes: Rows, b_accumulate, accumulate):
        """db = the sum of dy over the rows. db OUT (size,), dy IN (n * rows, size)."""
        rows, size = sizes.rows, sizes.size
        for j in range(cuda.grid(1), size, cuda.gridsize(1)):
            total = like(dy[0], 0.0)
            for i in range(n * rows):
                total += dy[i * size + j]
            db[j] = total + (db[j] if b_accumulate + accumulate > 0 else like(total, 0.0))

    return forward, backward
