"""The device kernels of embeddings; the equations and arrays are those of nbprop/layers/embedding.py.

Dimensions: n samples; rows indices a sample; size features an index.
"""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import grid_size
from nbprop.layers.embedding import embedding_backward, embedding_forward
from nbprop.numerics.scalars import like
from nbprop.program.elements import integer_at


def cuda_kernels(cuda):
    """The device kernels: one thread per element; in the backward pass, one per element of dW.

    A thread of dW looks at all positions in order, so the sums need no atomics. A warp shares its reads of x, whose
    number grows with vocabulary times positions.
    """

    @on_device(embedding_forward, blocks=lambda n, rows, size: grid_size(n * rows * size))
    def forward(y, w, n, rows, size, x_address, x_code):
        """y = W[x]. y OUT (n * rows, size), w IN (vocabulary, size); x: n * rows integers at x_address."""
        for i in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            y[i] = w[integer_at(x_address, x_code, i // size) * size + i % size]

    @on_device(embedding_backward, blocks=lambda dw: grid_size(dw))
    def backward(dw, dy, n, rows, size, w_accumulate, accumulate, x_address, x_code):
        """dW[x] += dy, from 0 unless `w_accumulate` or `accumulate`.

        dw OUT (vocabulary, size), dy IN (n * rows, size); x: n * rows integers at x_address.
        """
        for k in range(cuda.grid(1), dw.size, cuda.gridsize(1)):
            row, j = k // size, k % size
            total = dw[k] if w_accumulate + accumulate > 0 else like(dw[k], 0.0)
            for i in range(n * rows):
                if integer_at(x_address, x_code, i) == row:
                    total += dy[i * size + j]
            dw[k] = total

    return forward, backward
