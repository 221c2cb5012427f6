"""The products of dense layers with tensor cores; equations and arrays as in dense.py, for plans with a precision."""

import numpy as np

from nbprop.cuda.groups import sum_of_slices
from nbprop.cuda.kernels import PLANES, on_device
from nbprop.cuda.tensor_products import TILE, in_pieces, pieces, tiles, with_bias
from nbprop.cuda.toolkit import cuda, grid_size
from nbprop.layers.activation import activation_inplace
from nbprop.layers.dense.kernels import dense_backward_input, dense_backward_parameters, dense_forward
from nbprop.layers.dense.sizes import DenseSizes
from nbprop.numerics.activations import IDENTITY


def _products(precision):
    """The kernels of one precision."""
    planes = PLANES[precision]
    shape = {"dtypes": (np.float32,), "resident": 1, "apart": True, "threads": TILE.threads, "precision": precision}
    shape |= {"shared": lambda: TILE.shared(planes), "casts": False}
    times, gradient = with_bias(planes), in_pieces(planes)

    def of_output(n, rows, n_out):
        return int(tiles(n * rows, n_out))

    def of_input(n, rows, n_in):
        return int(tiles(n * rows, n_in))

    def of_weight(n, rows, n_in, n_out):
        return int(tiles(n_in, n_out) * pieces(n_in, n_out, n * rows))

    def in_all_pieces(n, rows, n_in, n_out):
        return int(pieces(n_in, n_out, n * rows)) * (n_in + 1) * n_out

    @on_device(dense_forward, blocks=of_output, **shape)
    def tensor_forward(y, x, w, b, n, sizes: DenseSizes):
        """y = x W + b. y OUT (n * rows, n_out), x IN (n * rows, n_in), w IN (n_in, n_out), b IN (n_out,) or empty."""
        times(y, x, w, b, n * sizes.rows, sizes.n_out, sizes.n_in, IDENTITY)

    @on_device(dense_forward, activation_inplace, blocks=of_output, **shape)
    def tensor_forward_activated(y, x, w, b, n, sizes: DenseSizes, code):
        """y = f(x W + b).

        y OUT (n * rows, n_out), x IN (n * rows, n_in), w IN (n_in, n_out), b IN (n_out,) or empty; code: which f.
        """
        times(y, x, w, b, n * sizes.rows, sizes.n_out, sizes.n_in, code)

    @on_device(dense_backward_input, blocks=of_input, **shape)
    def tensor_input_gradient(dx, dz, wt, n, sizes: DenseSizes):
        """dx = dz W^T. dx OUT (n * rows, n_in), dz IN (n * rows, n_out), wt IN (n_out, n_in)."""
        times(dx, dz, wt, dz[:0], n * sizes.rows, sizes.n_in, sizes.n_out, IDENTITY)

    @on_device(dense_backward_parameters, blocks=of_weight, **shape, scratch=in_all_pieces)
    def tensor_parameters_in_pieces(partials, x, dz, n, sizes: DenseSizes):
        """Pieces of dW = x^T dz and of db = the sum of the rows of dz; `tensor_parameters` adds them up.

        partials OUT (pieces, n_in + 1, n_out): the weights of all pieces, then the biases; x IN (n * rows, n_in), dz IN
        (n * rows, n_out).
        """
        gradient(partials, x, dz, sizes.n_in, sizes.n_out, n * sizes.rows)

    @on_device(
        dense_backward_parameters,
        blocks=lambda n_in, n_out: grid_size((n_in + 1) * n_out),
        dtypes=(np.float32,),
        precision=precision,
    )
    def tensor_parameters(dw, db, partials, n, sizes: DenseSizes, w_accumulate, b_accumulate, accumulate):
        """dW and db = the sums of their pieces, in order. One thread per element.

        dw OUT (n_in, n_out), db OUT (n_out,) or empty; added to where `w_accumulate`, `b_accumulate` or `accumulate`
        is 1; partials IN (pieces, n_in + 1, n_out): the weights of all pieces, then the biases.
        """
        n_in, n_out = sizes.n_in, sizes.n_out
        size, count = n_in * n_out, pieces(n_in, n_out, n * sizes.rows)
        for i in range(cuda.grid(1), size + db.size, cuda.gridsize(1)):
            if i < size:
                total = sum_of_slices(partials, i, size, count)
                dw[i] = total + dw[i] if w_accumulate + accumulate > 0 else total
            else:
                total = sum_of_slices(partials, count * size + i - size, n_out, count)
                db[i - size] = total + db[i - size] if b_accumulate + accumulate > 0 else total

    return (
        tensor_forward,
        tensor_forward_activated,
        tensor_input_gradient,
        tensor_parameters_in_pieces,
        tensor_parameters,
    )


CUDA_KERNELS = tuple(kernel for precision in PLANES for kernel in _products(precision))
