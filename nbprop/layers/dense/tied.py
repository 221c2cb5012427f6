"""Dense with the transpose of another layer's weight: z = x E^T + b, as a language model's logits use its embedding E.

Press and Wolf 2017, "Using the output embedding to improve language models". E is (n_out, n_in), so

    dE = dz^T x,   dx = dz E,   db = the sum of dz's rows:

the products of dense/layer.py with E in the places of W^T and of dW^T. Only forward needs E transposed; one position at
a time (decoding) not even that, since each output is then a dot product with a row of E.
"""

import math

from nbprop.layers.dense.kernels import (
    dense_backward_input,
    dense_backward_parameters,
    dense_forward,
    dense_input_tangent,
    dense_parameters_tangent,
    dense_tangent,
    dense_transpose,
)
from nbprop.layers.dense.products import sum_of_rows
from nbprop.layers.dense.sizes import DenseSizes
from nbprop.numerics.gemm.blocked import ACCUMULATE, ZERO, gemm_scratch
from nbprop.numerics.gemm.entry import GEMM, product
from nbprop.numerics.gemm.microkernel import pointer
from nbprop.numerics.partition import share
from nbprop.program.kernel import kernel


@kernel(uses=(GEMM,))
def tied_decode(y, x, e, b, n, sizes: DenseSizes, part, parts):
    """y = E x + b of each row.

    y OUT (n * rows, n_out), x IN (n * rows, n_in), e IN (n_out, n_in), b IN (n_out,) or empty.
    """
    rows, n_in, n_out = sizes.rows, sizes.n_in, sizes.n_out
    first, last = share(n_out, part, parts)
    start = ACCUMULATE if b.size > 0 else ZERO
    for i in range(n * rows):
        out = y[i * n_out + first : i * n_out + last]
        if b.size > 0:
            out[:] = b[first:last]
        product(
            (
                *(pointer(out, 0), 1, pointer(e, first * n_in), n_in, 1, pointer(x, i * n_in), 1),
                *(last - first, 1, n_in, start, pointer(out, 0), pointer(out, 0), 0, 0, 1),
            )
        )


@kernel(uses=(GEMM,))
def tied_backward_bias(db, dz, n, rows, n_out, b_accumulate, accumulate, part, parts):
    """db = the sum of dz's rows, added to what db holds when `b_accumulate` or `accumulate`.

    db OUT (n_out,), dz IN (n * rows, n_out).
    """
    sum_of_rows(db, dz, b_accumulate + accumulate > 0, n * rows, n_out, part, parts)


def lower_tied(build, x, n_out, weight, bias):
    """Emit z = x E^T + b over the last axis; `weight` and `bias` (or None) are parameters' names in `views`."""
    n_in, rows = x.shape[-1], math.prod(x.shape[:-1])
    sizes, swapped = (DenseSizes(rows=rows, n_in=a, n_out=b) for a, b in ((n_in, n_out), (n_out, n_in)))
    total = build.batch * rows
    e, b = build.parameter(weight), build.parameter(bias) if bias else None
    z = build.value((*x.shape[:-1], n_out))
    if build.mode == "decoding":
        build.emit(tied_decode, (z.buffer,), (x.buffer, e, b), sizes)
        return z

    def scratch(m, n, k):
        size = gemm_scratch(m, n, k, build.threads)
        return build.buffer(size) if size else None

    def transposed(matrix):
        turned = build.buffer(n_in * n_out)
        build.emit(dense_transpose, (turned,), (matrix,), swapped._replace(rows=0))
        return turned

    w = transposed(e)
    build.emit(dense_forward, (z.buffer, scratch(total, n_out, n_in)), (x.buffer, w, b), sizes)
    if build.with_tangents:
        e_dot, b_dot = build.direction(weight), build.direction(bias) if bias else None
        w_dot, x_dot, z_dot = transposed(e_dot), build.whole_tangent(x.buffer), build.new_tangent(z.buffer)
        reads = (x.buffer, x_dot, w, w_dot, b_dot)
        build.emit(dense_tangent, (z_dot, scratch(total, n_out, n_in)), reads, sizes)

    def parameters(target, kernel, reads, bias_change):
        """Emit the gradient of E and b, or its tangent; `target` gives the operand of a parameter's."""
        de, e_accumulate = target(weight)
        build.emit(kernel, (de, None, scratch(n_out, n_in, total)), reads, (swapped, e_accumulate, 0, 0))
        if bias:
            db, b_accumulate = target(bias)
            build.emit(tied_backward_bias, (db,), (bias_change,), (rows, n_out, b_accumulate))

    def rule(dz):
        dx = build.buffer(total * n_in)
        parameters(build.parameter_gradient, dense_backward_parameters, (dz, x.buffer), dz)
        build.emit(dense_backward_input, (dx, scratch(total, n_in, n_out)), (dz, e, None), sizes)
        if build.with_tangents:
            dz_dot = build.tangent(dz)
            parameters(build.parameter_tangent, dense_parameters_tangent, (dz, dz_dot, x.buffer, x_dot), dz_dot)
            out = (build.new_tangent(dx), scratch(total, n_in, n_out))
            build.emit(dense_input_tangent, out, (dz, dz_dot, e, e_dot), sizes)
        build.accumulate_gradient(x, dx)

    build.on_backward(z, rule)
    return z
