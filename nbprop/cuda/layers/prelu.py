"""The device kernels of PReLU; equations and arrays are those of nbprop/layers/prelu.py."""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.prelu import prelu_backward, prelu_forward, prelu_parameters
from nbprop.numerics.scalars import like
from nbprop.program.sizes import Rows


def cuda_kernels(cuda):
    """The device kernels: one thread per element; for the sums over rows, one per feature."""

    def elements(n, rows, size):
        return grid_size(n * rows * size)

    @on_device(prelu_forward, blocks=elements)
    def forward(y, x, a, n, sizes: Rows):
        """y = x, or a x where x <= 0. y OUT, x IN (n * rows, size); a IN (size,)."""
        rows, size = sizes.rows, sizes.size
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            y[k] = a[k % size] * x[k] if x[k] <= 0 else x[k]

    @on_device(prelu_backward, blocks=elements)
    def backward(dx, dy, x, a, n, sizes: Rows):
        """dx = dy, or a dy where x <= 0. dx OUT, dy, x IN (n * rows, size); a IN (size,)."""
        rows, size = sizes.rows, sizes.size
        for k in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            dx[k] = a[k % size] * dy[k] if x[k] <= 0 else dy[k]

    @on_device(prelu_parameters, blocks=lambda size: grid_size(size))
    def parameters(da, dy, x, n, sizes: Rows, a_accumulate, accumulate):
        """da = sum of dy x over the rows where x <= 0. da OUT (size,), dy, x IN (n * rows, size)."""
        rows, size = sizes.rows, sizes.size
        for j in range(cuda.grid(1), size, cuda.gridsize(1)):
            total = like(dy[0], 0.0)
            for i in range(n * rows):
                k = i * size + j
                total += dy[k] * x[k] if x[k] <= 0 else like(total, 0.0)
            da[j] = total + (da[j] if a_accumulate + accumulate > 0 else like(total, 0.0))

    return forward, backward, parameters
