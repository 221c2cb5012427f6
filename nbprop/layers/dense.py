"""Dense (fully connected) layers: y = f(x W + b), over the last axis of x.

Backward, with dz = dy f'(z):  dW = x^T dz,  db = the sum of dz's rows,  dx = dz W^T  (Rumelhart, Hinton and Williams
1986, Nature 323, equations 3 to 6). All three products are the one strided matrix product of numerics/gemm.py.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from nbprop.fields import flag, named, optional, positive, text
from nbprop.jit import kernel, share
from nbprop.layers.activation import ACTIVATIONS, IDENTITY, activate, activation_inplace
from nbprop.layers.dense_few import dense_backward_few, few_scratch, is_few
from nbprop.layers.dense_pieces import dense_sum_of_pieces, gradient_pieces, piece_of
from nbprop.layers.dense_products import sum_of_rows, times_weight, weight_gradient
from nbprop.layers.dense_single import fits_single, lower_single
from nbprop.layers.samples import dense_sample_gradients
from nbprop.network import INITIALIZERS, Layer, Parameter
from nbprop.numerics.activations import value_of
from nbprop.numerics.gemm import ACCUMULATE, BIAS, ZERO, gemm_scratch, transpose
from nbprop.numerics.product import GEMM, product
from nbprop.numerics.scalars import like
from nbprop.numerics.tile import pointer


@kernel(uses=(GEMM,))
def dense_forward(y, scratch, x, w, b, n, rows, n_in, n_out, part, parts):
    """y = x W + b.

    y OUT (n * rows, n_out), x IN (n * rows, n_in), w IN (n_in, n_out), b IN (n_out,) or empty.
    """
    start = BIAS if b.size > 0 else ZERO
    times_weight(y, x, w, start, b, scratch, n * rows, n_in, n_out, part, parts)


@kernel(uses=(GEMM,), optional=("x_dot", "w_dot", "b_dot"))
def dense_tangent(y_dot, scratch, x, x_dot, w, w_dot, b_dot, n, rows, n_in, n_out, part, parts):
    """y' = x W' + b' + x' W, the derivative of y along x' and (W', b'); a direction that is empty is zero.

    y_dot OUT (n * rows, n_out), x and x_dot IN (n * rows, n_in), w and w_dot IN (n_in, n_out), b_dot IN (n_out,).
    """
    start = ZERO
    if w_dot.size > 0:
        start = BIAS if b_dot.size > 0 else ZERO
        times_weight(y_dot, x, w_dot, start, b_dot, scratch, n * rows, n_in, n_out, part, parts)
        start = ACCUMULATE
    if x_dot.size > 0:
        times_weight(y_dot, x_dot, w, start, y_dot, scratch, n * rows, n_in, n_out, part, parts)


@kernel(uses=(GEMM,))
def dense_backward_parameters(
    dw, db, scratch, x, dz, n, rows, n_in, n_out, w_again, b_again, pieces, accumulate, part, parts
):
    """dW = x^T dz, db = sum of dz's rows; added to what dw and db hold when theirs of `again`, or `accumulate`, is 1.

    dw OUT (n_in, n_out), db OUT (n_out,) or empty, x IN (n * rows, n_in), dz IN (n * rows, n_out). pieces: 1 where
    `dense_sum_of_pieces` follows: of several pieces, each one's gradients go to scratch.
    """
    count = gradient_pieces(n * rows, n_in, n_out) if pieces == 1 else 1
    if count > 1:
        first, last = share(count, part, parts)
        for i in range(first, last):
            some_dw, some_db, some_x, some_dz, m = piece_of(scratch, i, count, x, dz, n * rows, n_in, n_out)
            weight_gradient(some_dw, some_x, some_dz, ZERO, scratch[:0], m, n_in, n_out, 0, 1)
            sum_of_rows(some_db[: db.size], some_dz, False, m, n_out, 0, 1)
        return
    start = ACCUMULATE if w_again + accumulate > 0 else ZERO
    weight_gradient(dw, x, dz, start, scratch, n * rows, n_in, n_out, part, parts)
    sum_of_rows(db, dz, b_again + accumulate > 0, n * rows, n_out, part, parts)


@kernel(uses=(GEMM,), optional=("x_dot",))
def dense_parameters_tangent(
    dw_dot, db_dot, scratch, x, x_dot, dz, dz_dot, n, rows, n_in, n_out, w_again, b_again, pieces, part, parts
):
    """(dW)' = x^T dz' + x'^T dz, (db)' = sum of the rows of dz'; added when theirs of `again` is 1.

    dw_dot OUT (n_in, n_out), db_dot OUT (n_out,) or empty, x IN (n * rows, n_in), x_dot the same or empty (zero), dz
    and dz_dot IN (n * rows, n_out). pieces: as in `dense_backward_parameters`.
    """
    count = gradient_pieces(n * rows, n_in, n_out) if pieces == 1 else 1
    if count > 1:
        first, last = share(count, part, parts)
        for i in range(first, last):
            dw, db, some_x, some_dz_dot, m = piece_of(scratch, i, count, x, dz_dot, n * rows, n_in, n_out)
            weight_gradient(dw, some_x, some_dz_dot, ZERO, scratch[:0], m, n_in, n_out, 0, 1)
            if x_dot.size > 0:
                _, _, some_x_dot, some_dz, _ = piece_of(scratch, i, count, x_dot, dz, n * rows, n_in, n_out)
                weight_gradient(dw, some_x_dot, some_dz, ACCUMULATE, scratch[:0], m, n_in, n_out, 0, 1)
            sum_of_rows(db[: db_dot.size], some_dz_dot, False, m, n_out, 0, 1)
        return
    start = ACCUMULATE if w_again > 0 else ZERO
    weight_gradient(dw_dot, x, dz_dot, start, scratch, n * rows, n_in, n_out, part, parts)
    if x_dot.size > 0:
        weight_gradient(dw_dot, x_dot, dz, ACCUMULATE, scratch, n * rows, n_in, n_out, part, parts)
    sum_of_rows(db_dot, dz_dot, b_again > 0, n * rows, n_out, part, parts)


@kernel(optional=("w",))
def dense_transpose(wt, w, n, rows, n_in, n_out, part, parts):
    """wt = W^T. wt OUT (n_out, n_in), w IN (n_in, n_out), or empty: a direction that is zero.

    Nothing where n * rows is 1, for readers that take W itself then; rows is 0 for all others.
    """
    if n * rows == 1:
        return
    if w.size == 0:
        start, stop = share(n_in * n_out, part, parts)
        wt[start:stop] = like(wt[0], 0.0)
        return
    transpose(pointer(wt, 0), pointer(w, 0), n_in, n_out, part, parts)


@kernel(uses=(GEMM,))
def dense_backward_input(dx, scratch, dz, wt, w, n, rows, n_in, n_out, part, parts):
    """dx = dz W^T. dx OUT (n * rows, n_in), dz IN (n * rows, n_out), wt IN (n_out, n_in), w IN (n_in, n_out) or empty.

    For one row, wt is not read where w is given: dx^T = W dz^T. To transpose 32 x 32 took half of a sample's way back.
    """
    if n * rows == 1 and w.size > 0:
        product(
            (
                *(pointer(dx, 0), 1, pointer(w, 0), n_out, 1, pointer(dz, 0), 1, n_in, 1, n_out),
                *(ZERO, pointer(dx, 0), pointer(scratch, 0), scratch.size, part, parts),
            )
        )
        return
    times_weight(dx, dz, wt, ZERO, dx, scratch, n * rows, n_out, n_in, part, parts)


@kernel(uses=(GEMM,))
def dense_input_tangent(dx_dot, scratch, dz, dz_dot, wt, wt_dot, n, rows, n_in, n_out, part, parts):
    """(dx)' = dz' W^T + dz W'^T.

    dx_dot OUT (n * rows, n_in), dz and dz_dot IN (n * rows, n_out), wt and wt_dot IN (n_out, n_in).
    """
    times_weight(dx_dot, dz_dot, wt, ZERO, dx_dot, scratch, n * rows, n_out, n_in, part, parts)
    times_weight(dx_dot, dz, wt_dot, ACCUMULATE, dx_dot, scratch, n * rows, n_out, n_in, part, parts)


def cuda_kernels(cuda):
    """The device's: the tiled product, bias and activation within it; weight gradients in pieces of the batch."""
    from nbprop.cuda.groups import sum_of_slices
    from nbprop.cuda.kernels import on_device
    from nbprop.cuda.products import TILES, pieces
    from nbprop.cuda.toolkit import cover

    found = [kernel for number in range(len(TILES)) for kernel in _cuda_products(number)]
    found += _cuda_small_products(cuda)

    @on_device(
        dense_backward_parameters, blocks=lambda n_in, n_out, one_block: 0 if one_block else cover((n_in + 1) * n_out)
    )
    def parameters(dw, db, partials, n, rows, n_in, n_out, w_again, b_again, accumulate):
        size, count = n_in * n_out, pieces(n_in, n_out, n * rows, dw.itemsize)
        for i in range(cuda.grid(1), size + db.size, cuda.gridsize(1)):
            if i < size:
                total = sum_of_slices(partials, i, size, count)
                dw[i] = total + dw[i] if w_again + accumulate > 0 else total
            else:
                total = sum_of_slices(partials, count * size + i - size, n_out, count)
                db[i - size] = total + db[i - size] if b_again + accumulate > 0 else total

    @on_device(dense_transpose, blocks=lambda n_in, n_out: cover(n_in * n_out))
    def transposed(wt, w, n, n_in, n_out):
        for i in range(cuda.grid(1), n_in * n_out, cuda.gridsize(1)):
            wt[i % n_out * n_in + i // n_out] = w[i]

    return *found, parameters, transposed


def _cuda_products(number):
    """The products that make tiles of one shape."""
    from nbprop.cuda.kernels import on_device
    from nbprop.cuda.products import DTYPES, TILES, blocks_of, in_pieces, pieces, with_bias

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
    def forward(y, x, w, b, n, rows, n_in, n_out):
        times(y, x, w, b, n * rows, n_out, n_in, IDENTITY)

    @on_device(dense_forward, activation_inplace, blocks=of_output, **shape)
    def forward_activated(y, x, w, b, n, rows, n_in, n_out, code):
        times(y, x, w, b, n * rows, n_out, n_in, code)

    @on_device(dense_backward_input, blocks=of_input, **shape)
    def input_gradient(dx, dz, wt, n, rows, n_in, n_out):
        times(dx, dz, wt, dz[:0], n * rows, n_in, n_out, IDENTITY)

    @on_device(dense_backward_parameters, blocks=of_weight, **shape, scratch=in_all_pieces)
    def parameters_in_pieces(partials, x, dz, n, rows, n_in, n_out):
        gradient(partials, x, dz, n_in, n_out, n * rows)

    return forward, forward_activated, input_gradient, parameters_in_pieces


def _cuda_small_products(cuda):
    """The products where one block does a whole program: a thread an element, the operands in the block's cache."""
    from nbprop.cuda.kernels import on_device
    from nbprop.cuda.toolkit import device_function

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
    def small_forward(y, x, w, b, n, rows, n_in, n_out):
        times(y, x, w, b, n * rows, n_out, n_in, IDENTITY)

    @on_device(dense_forward, activation_inplace, blocks=alone)
    def small_forward_activated(y, x, w, b, n, rows, n_in, n_out, code):
        times(y, x, w, b, n * rows, n_out, n_in, code)

    @on_device(dense_backward_input, blocks=alone)
    def small_input_gradient(dx, dz, wt, n, rows, n_in, n_out):
        times(dx, dz, wt, dz[:0], n * rows, n_in, n_out, IDENTITY)

    @on_device(dense_backward_parameters, blocks=alone)
    def small_parameters(dw, db, x, dz, n, rows, n_in, n_out, w_again, b_again, accumulate):
        for i in range(cuda.grid(1), n_in * n_out + db.size, cuda.gridsize(1)):
            row, col, total = i // n_out, i % n_out, like(dw[0], 0.0)
            for step in range(n * rows):
                left = x[step * n_in + row] if row < n_in else like(total, 1.0)
                total += left * dz[step * n_out + col]
            if row < n_in:
                dw[i] = total + dw[i] if w_again + accumulate > 0 else total
            else:
                db[col] = total + db[col] if b_again + accumulate > 0 else total

    return small_forward, small_forward_activated, small_input_gradient, small_parameters


@dataclass(frozen=True, repr=False)
class Dense(Layer):
    units: int
    activation: str = "identity"
    bias: bool = True
    init: str | None = None
    share: str | None = None
    kind = "dense"
    checks: ClassVar = {
        "units": positive,
        "activation": named(ACTIVATIONS),
        "bias": flag,
        "init": optional(named(INITIALIZERS)),
        "share": optional(text),
    }
    tangents = True

    @property
    def sample_gradients(self):
        return not self._transposed

    @property
    def _transposed(self):
        """Whether it takes the transpose of another layer's weight."""
        return self.share is not None and self.share.endswith(".weight.T")

    def __repr__(self):
        options = "" if self.activation == "identity" else f", activation={self.activation!r}"
        options += "" if self.bias else ", bias=False"
        options += "" if self.init is None else f", init={self.init!r}"
        options += "" if self.share is None else f", share={self.share!r}"
        return f"dense({self.units}{options})"

    def output_shape(self, input_shape):
        if not input_shape:
            raise ValueError("dense needs an input of at least one axis")
        return (*input_shape[:-1], self.units)

    def every_parameter(self, input_shape):
        """The weight and the bias, its own or another layer's."""
        init = self.init or ("he_normal" if self.activation in RECTIFIERS else "glorot_uniform")
        weight = Parameter("weight", (input_shape[-1], self.units), init)
        return (weight, Parameter("bias", (self.units,), "zeros")) if self.bias else (weight,)

    def parameters(self, input_shape):
        weight, *bias = self.every_parameter(input_shape)
        if self.share is None:
            return (weight, *bias)
        return tuple(bias) if self.share.endswith((".weight", ".weight.T")) else ()

    def shared(self, input_shape):
        """(path, parameter) of what this layer takes from another one."""
        weight, *bias = self.every_parameter(input_shape)
        if self.share is None:
            return ()
        if self._transposed:
            return ((self.share.removesuffix(".T"), Parameter("weight", weight.shape[::-1], weight.init)),)
        if self.share.endswith(".weight"):
            return ((self.share, weight),)
        return tuple((f"{self.share}.{parameter.name}", parameter) for parameter in (weight, *bias))

    def flops(self, input_shape):
        return 2 * math.prod(input_shape) * self.units

    def lower(self, build, x, path, names):
        paths = {parameter.name: f"{path}.{parameter.name}" for parameter in self.parameters(x.shape)}
        paths |= {parameter.name: owner for owner, parameter in self.shared(x.shape)}
        lower = lower_dense
        if self._transposed:
            from nbprop.layers.tied import lower_tied as lower
        elif fits_single(build, x, self.units):
            return lower_single(build, x, self.units, self.activation, paths["weight"], paths.get("bias"))
        z = lower(build, x, self.units, paths["weight"], paths.get("bias"))
        return activate(build, z, self.activation, overwrite=True)


def lower_dense(build, x, n_out, weight, bias):
    """Emit z = x W + b over the last axis; `weight` and `bias` (or None) are parameters' names in `views`."""
    n_in, rows = x.shape[-1], math.prod(x.shape[:-1])
    sizes, total = (rows, n_in, n_out), build.batch * rows
    w, b = build.parameter(weight), build.parameter(bias) if bias else None

    def scratch(m, n, k):
        size = gemm_scratch(m, n, k, build.threads)
        return build.buffer(size) if size else None

    def transposed(matrix, unless_one=False):
        """The operand of W^T, and of W'^T for W'; a single column is its own transpose."""
        if n_out == 1:
            return matrix
        turned = build.buffer(n_in * n_out)
        build.emit(dense_transpose, (turned,), (matrix,), (rows if unless_one else 0, n_in, n_out))
        return turned

    z = build.value((*x.shape[:-1], n_out))
    build.emit(dense_forward, (z.buffer, scratch(total, n_out, n_in)), (x.buffer, w, b), sizes)
    if build.second:
        x_dot, w_dot = build.tangent(x.buffer), build.direction(weight)
        b_dot = build.direction(bias) if bias else None
        z_dot = build.new_tangent(z.buffer)
        reads = (x.buffer, x_dot, w, w_dot, b_dot)
        build.emit(dense_tangent, (z_dot, scratch(total, n_out, n_in)), reads, sizes)

    def parameters(kernel, target, reads):
        """Emit the gradients of W and b, or their tangents; what emits the rest, behind an op with a barrier.

        `target` gives the operand of a parameter's.
        """
        dw, w_again = target(weight)
        db, b_again = target(bias) if bias else (None, 0)
        if build.stride:
            room, again = scratch(n_in, n_out, rows), (*sizes, build.stride, w_again, b_again)
            build.emit(dense_sample_gradients, (dw, db, room), reads, again, barrier=False)
            return lambda: None
        pieces = gradient_pieces(total, n_in, n_out)
        room = scratch(n_in, n_out, total) if pieces == 1 else build.buffer(pieces * (n_in + 1) * n_out)
        again = (*sizes, w_again, b_again)
        build.emit(kernel, (dw, db, room), reads, (*again, int(pieces > 1)), barrier=False)
        if pieces > 1:
            return lambda: build.emit(dense_sum_of_pieces, (dw, db), (room,), again)
        return lambda: None

    def rule(dz):
        sum_up = parameters(dense_backward_parameters, build.parameter_gradient, (x.buffer, dz))
        dx = build.buffer(total * n_in)
        if build.target == "cpu" and not build.second and is_few(total, n_in, n_out):
            build.emit(dense_backward_few, (dx, build.buffer(few_scratch(total, n_out, build.threads))), (dz, w), sizes)
        else:
            wt = transposed(w, unless_one=not build.second)
            build.emit(dense_backward_input, (dx, scratch(total, n_in, n_out)), (dz, wt, w), sizes)
        sum_up()
        if build.second:
            dz_dot = build.tangent(dz)
            reads = (x.buffer, x_dot, dz, dz_dot)
            sum_up = parameters(dense_parameters_tangent, build.parameter_tangent, reads)
            wt_dot, dx_dot = transposed(w_dot), build.new_tangent(dx)
            reads = (dz, dz_dot, wt, wt_dot)
            build.emit(dense_input_tangent, (dx_dot, scratch(total, n_in, n_out)), reads, sizes)
            sum_up()
        build.contribute(x, dx)

    build.on_backward(z, rule)
    return z


RECTIFIERS = frozenset({"relu", "leaky_relu", "elu", "gelu", "gelu_tanh", "silu", "softplus"})


def dense(units, activation=None, bias=True, init=None, share=None):
    """A dense layer: y = f(x W + b) over the last axis of its input.

    Parameters
    ----------
    units : int
        Outputs. The weight is (inputs, units), the bias (units,).
    activation : str or None
        f, applied in place (see `nbprop.activation`); None is the identity.
    bias : bool
        Whether there is a b.
    init : str or None
        The weight's initializer: "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform",
        "lecun_normal", "orthogonal", "zeros", "normal" (N(0, 1)), "small_normal" (N(0, 0.02^2)). None: He's for
        rectifiers, Glorot's for the others.
    share : str or None
        Weight tying: "0.dense" to use the weight and bias of that earlier layer, "0.dense.weight" for its weight with
        a bias of this layer's own, "0.embedding.weight.T" for the transpose of its weight, as language models tie
        their output to their embedding. Gradients of all uses add up.

    >>> dense(32, activation="tanh")
    dense(32, activation='tanh')
    """
    return Dense(units, "identity" if activation is None else activation, bias, init, share)
