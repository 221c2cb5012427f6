"""The device kernels of embeddings; equations and arrays are those of the CPU's kernels."""

from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import cover
from nbprop.layers.embedding import embedding_backward, embedding_forward
from nbprop.numerics.scalars import like
from nbprop.program.elements import integer_at


def cuda_kernels(cuda):
    """The device's: a thread an element; on the way back one an element of dW, which looks at every position in order.

    So the sums need no atomics; the reads of x are shared by a warp, and grow with vocabulary times positions.
    """

    @on_device(embedding_forward, blocks=lambda n, rows, size: cover(n * rows * size))
    def forward(y, w, n, rows, size, x_address, x_code):
        for i in range(cuda.grid(1), n * rows * size, cuda.gridsize(1)):
            y[i] = w[integer_at(x_address, x_code, i // size) * size + i % size]

    @on_device(embedding_backward, blocks=lambda dw: cover(dw))
    def backward(dw, dy, n, rows, size, again, accumulate, x_address, x_code):
        for k in range(cuda.grid(1), dw.size, cuda.gridsize(1)):
            row, j = k // size, k % size
            total = dw[k] if again + accumulate > 0 else like(dw[k], 0.0)
            for i in range(n * rows):
                if integer_at(x_address, x_code, i) == row:
                    total += dy[i * size + j]
            dw[k] = total

    return forward, backward
