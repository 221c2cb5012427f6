"""The device kernels of dense layers; the equations and arrays are those of nbprop/layers/dense/kernels.py.

Dimensions: n samples; rows rows a sample; n_in inputs and n_out outputs of the layer.
"""

from nbprop.cuda.groups import sum_of_slices
from nbprop.cuda.kernels import on_device
from nbprop.cuda.products import DTYPES, TILES, blocks_of, in_pieces, pieces, two_products, with_bias
from nbprop.cuda.toolkit import cuda, device_function, grid_size
from nbprop.layers.activation import activation_inplace
from nbprop.layers.dense.kernels import (
    dense_backward_input,
    dense_backward_parameters,
    dense_forward,
    dense_input_tangent,
    dense_parameters_tangent,
    dense_tangent,
    dense_transpose,
)
from nbprop.layers.dense.sizes import DenseSizes
from nbprop.numerics.activations import IDENTITY, value_of
from nbprop.numerics.scalars import like


@device_function
def sum_pieces(dw, db, partials, n, n_in, n_out, w_again, b_again):
    """dw and db = the sums of their pieces, in order, added to with `again`; as `parameters` has it."""
    size, count = n_in * n_out, pieces(n_in, n_out, n, dw.itemsize)
    for i in range(cuda.grid(1), size + db.size, cuda.gridsize(1)):
        if i < size:
            total = sum_of_slices(partials, i, size, count)
            dw[i] = total + dw[i] if w_again > 0 else total
        else:
            total = sum_of_slices(partials, count * size + i - size, n_out, count)
            db[i - size] = total + db[i - size] if b_again > 0 else total


def cuda_kernels(cuda):
    """The device kernels: the tiled product, bias and activation fused; weight gradients in pieces of the batch."""

    found = [kernel for number in range(len(TILES)) for kernel in _cuda_products(number)]
    found += _cuda_small_products(cuda)

    @on_device(
        dense_backward_parameters,
        blocks=lambda n_in, n_out, one_block: 0 if one_block else grid_size((n_in + 1) * n_out),
    )
    def parameters(dw, db, partials, n, sizes: DenseSizes, w_accumulate, b_accumulate, accumulate):
        """dW and db = the sums of their pieces, in order. One thread per element.

        dw OUT (n_in, n_out), db OUT (n_out,) or empty; added to where `w_accumulate`, `b_accumulate` or `accumulate`
        is 1; partials IN (pieces, n_in + 1, n_out): the weights of all pieces, then the biases.
        """
        again = w_accumulate + accumulate, b_accumulate + accumulate
        sum_pieces(dw, db, partials, n * sizes.rows, sizes.n_in, sizes.n_out, *again)

    @on_device(dense_transpose, blocks=lambda n_in, n_out: grid_size(n_in * n_out))
    def transposed(wt, w, n, sizes: DenseSizes):
        """wt = W^T. wt OUT (n_out, n_in), w IN (n_in, n_out), or empty for zeros. One thread per element."""
        n_in, n_out = sizes.n_in, sizes.n_out
        for i in range(cuda.grid(1), n_in * n_out, cuda.gridsize(1)):
            wt[i % n_out * n_in + i // n_out] = w[i] if w.size > 0 else like(wt[0], 0.0)

    return *found, parameters, transposed, *_cuda_tangents(cuda)


def _cuda_products(number):
    """The products in tiles of one shape."""

    tile = TILES[number]
    shape = {"dtypes": DTYPES[number], "resident": 1}
    times, gradient = with_bias(tile), in_pieces(tile)

    def of_output(n, rows, n_out, itemsize, one_block):
        return 0 if one_block else blocks_of(number, n * rows, n_out, itemsize)

    def of_input(n, rows, n_in, itemsize, one_block):
        return 0 if one_block else blocks_of(number, n * rows, n_in, itemsize)

    def of_weight(n, rows, n_in, n_out, itemsize, one_block):
        cuts = int(pieces(n_in, n_out, n * rows, itemsize))
        return 0 if one_block else blocks_of(number, n_in, n_out, itemsize, cuts)

    def in_all_pieces(n, rows, n_in, n_out, itemsize):
        return int(pieces(n_in, n_out, n * rows, itemsize)) * (n_in + 1) * n_out

    @on_device(dense_forward, blocks=of_output, **shape)
    def forward(y, x, w, b, n, sizes: DenseSizes):
        """y = x W + b. y OUT (n * rows, n_out), x IN (n * rows, n_in), w IN (n_in, n_out), b IN (n_out,) or empty."""
        times(y, x, w, b, n * sizes.rows, sizes.n_out, sizes.n_in, IDENTITY)

    @on_device(dense_forward, activation_inplace, blocks=of_output, **shape)
    def forward_activated(y, x, w, b, n, sizes: DenseSizes, code):
        """y = f(x W + b).

        y OUT (n * rows, n_out), x IN (n * rows, n_in), w IN (n_in, n_out), b IN (n_out,) or empty; code: which f.
        """
        times(y, x, w, b, n * sizes.rows, sizes.n_out, sizes.n_in, code)

    @on_device(dense_backward_input, blocks=of_input, **shape)
    def input_gradient(dx, dz, wt, n, sizes: DenseSizes):
        """dx = dz W^T. dx OUT (n * rows, n_in), dz IN (n * rows, n_out), wt IN (n_out, n_in)."""
        times(dx, dz, wt, dz[:0], n * sizes.rows, sizes.n_in, sizes.n_out, IDENTITY)

    @on_device(dense_backward_parameters, blocks=of_weight, **shape, scratch=in_all_pieces)
    def parameters_in_pieces(partials, x, dz, n, sizes: DenseSizes):
        """Pieces of dW = x^T dz and of db = the sum of the rows of dz; `parameters` adds them up.

        partials OUT (pieces, n_in + 1, n_out): the weights of all pieces, then the biases; x IN (n * rows, n_in), dz IN
        (n * rows, n_out).
        """
        gradient(partials, x, dz, x, dz, sizes.n_in, sizes.n_out, n * sizes.rows)

    return forward, forward_activated, input_gradient, parameters_in_pieces


def _cuda_small_products(cuda):
    """The products where one thread block runs a whole program: one thread per element, operands in its cache."""

    def alone(one_block):
        return int(one_block)

    @device_function
    def times(y, a, w, b, m, n, k, code):
        """y = f(a w + b): y (m, n), a (m, k), w (k, n), b (n,) or empty."""
        for i in range(cuda.grid(1), m * n, cuda.gridsize(1)):
            row, col, total = i // n, i % n, like(y[0], 0.0)
            for step in range(k):
                total += a[row * k + step] * w[step * n + col]
            y[i] = value_of(total + b[col] if b.size > 0 else total, code)

    @on_device(dense_forward, blocks=alone)
    def small_forward(y, x, w, b, n, sizes: DenseSizes):
        """y = x W + b. One thread per element.

        y OUT (n * rows, n_out), x IN (n * rows, n_in), w IN (n_in, n_out), b IN (n_out,) or empty.
        """
        times(y, x, w, b, n * sizes.rows, sizes.n_out, sizes.n_in, IDENTITY)

    @on_device(dense_forward, activation_inplace, blocks=alone)
    def small_forward_activated(y, x, w, b, n, sizes: DenseSizes, code):
        """y = f(x W + b). One thread per element.

        y OUT (n * rows, n_out), x IN (n * rows, n_in), w IN (n_in, n_out), b IN (n_out,) or empty; code: which f.
        """
        times(y, x, w, b, n * sizes.rows, sizes.n_out, sizes.n_in, code)

    @on_device(dense_backward_input, blocks=alone)
    def small_input_gradient(dx, dz, wt, n, sizes: DenseSizes):
        """dx = dz W^T. One thread per element.

        dx OUT (n * rows, n_in), dz IN (n * rows, n_out), wt IN (n_out, n_in).
        """
        times(dx, dz, wt, dz[:0], n * sizes.rows, sizes.n_in, sizes.n_out, IDENTITY)

    @on_device(dense_backward_parameters, blocks=alone)
    def small_parameters(dw, db, x, dz, n, sizes: DenseSizes, w_accumulate, b_accumulate, accumulate):
        """dW = x^T dz, db = the sum of the rows of dz. One thread per element.

        dw OUT (n_in, n_out), db OUT (n_out,) or empty; added to where `w_accumulate`, `b_accumulate` or `accumulate`
        is 1; x IN (n * rows, n_in), dz IN (n * rows, n_out).
        """
        rows, n_in, n_out = sizes.rows, sizes.n_in, sizes.n_out
        for i in range(cuda.grid(1), n_in * n_out + db.size, cuda.gridsize(1)):
            row, col, total = i // n_out, i % n_out, like(dw[0], 0.0)
            for step in range(n * rows):
                left = x[step * n_in + row] if row < n_in else like(total, 1.0)
                total += left * dz[step * n_out + col]
            if row < n_in:
                dw[i] = total + dw[i] if w_accumulate + accumulate > 0 else total
            else:
                db[col] = total + db[col] if b_accumulate + accumulate > 0 else total

    return small_forward, small_forward_activated, small_input_gradient, small_parameters


def _cuda_tangents(cuda):
    """The derivatives of the three products along a direction, in tiles as these."""
    found = [kernel for number in range(len(TILES)) for kernel in _cuda_tangents_in_tiles(number)]

    @on_device(dense_parameters_tangent, blocks=lambda n_in, n_out: grid_size((n_in + 1) * n_out))
    def parameters_tangent(dw_dot, db_dot, partials, n, sizes: DenseSizes, w_accumulate, b_accumulate):
        """(dW)' and (db)' = the sums of their pieces, in order. One thread per element.

        dw_dot OUT (n_in, n_out), db_dot OUT (n_out,) or empty; added to where `w_accumulate`, `b_accumulate` is 1;
        partials IN (pieces, n_in + 1, n_out): the weights of all pieces, then the biases.
        """
        again = w_accumulate, b_accumulate
        sum_pieces(dw_dot, db_dot, partials, n * sizes.rows, sizes.n_in, sizes.n_out, *again)

    return *found, parameters_tangent


def _cuda_tangents_in_tiles(number):
    shape = {"dtypes": DTYPES[number], "resident": 1}
    times, gradient = two_products(TILES[number]), in_pieces(TILES[number], second=True)

    def of_output(n, rows, n_out, itemsize):
        return blocks_of(number, n * rows, n_out, itemsize)

    def of_input(n, rows, n_in, itemsize):
        return blocks_of(number, n * rows, n_in, itemsize)

    def of_weight(n, rows, n_in, n_out, itemsize):
        return blocks_of(number, n_in, n_out, itemsize, int(pieces(n_in, n_out, n * rows, itemsize)))

    def in_all_pieces(n, rows, n_in, n_out, itemsize):
        return int(pieces(n_in, n_out, n * rows, itemsize)) * (n_in + 1) * n_out

    @on_device(dense_tangent, blocks=of_output, **shape)
    def tangent(y_dot, x, x_dot, w, w_dot, b_dot, n, sizes: DenseSizes):
        """y' = x W' + x' W + b'; an empty direction is zero.

        y_dot OUT (n * rows, n_out), x and x_dot IN (n * rows, n_in), w and w_dot IN (n_in, n_out), b_dot IN (n_out,).
        """
        times(y_dot, x, w_dot, x_dot, w, b_dot, n * sizes.rows, sizes.n_out, sizes.n_in)

    @on_device(dense_input_tangent, blocks=of_input, **shape)
    def input_tangent(dx_dot, dz, dz_dot, wt, wt_dot, n, sizes: DenseSizes):
        """(dx)' = dz' W^T + dz W'^T.

        dx_dot OUT (n * rows, n_in), dz and dz_dot IN (n * rows, n_out), wt and wt_dot IN (n_out, n_in).
        """
        times(dx_dot, dz_dot, wt, dz, wt_dot, dz[:0], n * sizes.rows, sizes.n_in, sizes.n_out)

    @on_device(dense_parameters_tangent, blocks=of_weight, **shape, scratch=in_all_pieces)
    def tangent_in_pieces(partials, x, x_dot, dz, dz_dot, n, sizes: DenseSizes):
        """Pieces of (dW)' = x^T dz' + x'^T dz and of (db)' = the sum of the rows of dz'.

        partials OUT (pieces, n_in + 1, n_out): the weights of all pieces, then the biases; x and x_dot IN (n * rows,
        n_in), x_dot may be empty; dz and dz_dot IN (n * rows, n_out).
        """
        gradient(partials, x, dz_dot, x_dot, dz, sizes.n_in, sizes.n_out, n * sizes.rows)

    return tangent, input_tangent, tangent_in_pieces
