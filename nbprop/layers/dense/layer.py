"""Dense as a layer: its arguments, its parameters, weight tying, and how it is lowered."""

import math
from dataclasses import dataclass
from typing import ClassVar

from nbprop.layers.activation import activate
from nbprop.layers.dense.few_rows import dense_backward_few, few_scratch, is_few
from nbprop.layers.dense.kernels import (
    dense_backward_input,
    dense_backward_parameters,
    dense_forward,
    dense_input_tangent,
    dense_parameters_tangent,
    dense_tangent,
    dense_transpose,
)
from nbprop.layers.dense.pieces import dense_sum_of_pieces, gradient_pieces
from nbprop.layers.dense.sample_gradients import dense_sample_gradients
from nbprop.layers.dense.single import fits_single, lower_single
from nbprop.layers.dense.sizes import DenseSizes
from nbprop.layers.dense.tied import lower_tied
from nbprop.networks.layer import INITIALIZERS, Layer, Parameter
from nbprop.numerics.activations import ACTIVATIONS
from nbprop.numerics.gemm.blocked import gemm_scratch
from nbprop.validation import check_flag, named, optional, positive, text


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
        "bias": check_flag,
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
        init = self.init or default_init(self.activation)
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

    def _paths(self, path):
        """The names in `views` of the weight and of the bias (or None) that this layer takes."""
        weight, owner = f"{path}.weight", path
        if self.share is not None and self.share.endswith((".weight", ".weight.T")):
            weight = self.share.removesuffix(".T")
        elif self.share is not None:
            weight, owner = f"{self.share}.weight", self.share
        return weight, f"{owner}.bias" if self.bias else None

    def lower(self, build, x, path, names):
        weight, bias = self._paths(path)
        if not self._transposed and fits_single(build, x, self.units):
            return lower_single(build, x, self.units, self.activation, weight, bias)
        lower = lower_tied if self._transposed else lower_dense
        z = lower(build, x, self.units, weight, bias)
        return activate(build, z, self.activation, overwrite=True)


def lower_dense(build, x, n_out, weight, bias):
    """Emit z = x W + b over the last axis; `weight` and `bias` (or None) are parameters' names in `views`."""
    n_in, rows = x.shape[-1], math.prod(x.shape[:-1])
    sizes, total = DenseSizes(rows=rows, n_in=n_in, n_out=n_out), build.batch * rows
    w, b = build.parameter(weight), build.parameter(bias) if bias else None

    def scratch(m, n, k):
        size = gemm_scratch(m, n, k, build.threads)
        return build.buffer(size) if size else None

    def transposed(matrix, unless_one=False):
        """The operand of W^T, and of W'^T for W'; a single column is its own transpose."""
        if n_out == 1:
            return matrix
        turned = build.buffer(n_in * n_out)
        build.emit(dense_transpose, (turned,), (matrix,), sizes if unless_one else sizes._replace(rows=0))
        return turned

    z = build.value((*x.shape[:-1], n_out))
    build.emit(dense_forward, (z.buffer, scratch(total, n_out, n_in)), (x.buffer, w, b), sizes)
    if build.with_tangents:
        x_dot, w_dot = build.tangent(x.buffer), build.direction(weight)
        b_dot = build.direction(bias) if bias else None
        z_dot = build.new_tangent(z.buffer)
        reads = (x.buffer, x_dot, w, w_dot, b_dot)
        build.emit(dense_tangent, (z_dot, scratch(total, n_out, n_in)), reads, sizes)

    def parameters(kernel, target, reads):
        """Emit the gradients of W and b, or their tangents; what emits the rest, behind an op with a barrier.

        `target` gives the operand of a parameter's.
        """
        dw, w_accumulate = target(weight)
        db, b_accumulate = target(bias) if bias else (None, 0)
        if build.stride:
            apart = (sizes, build.stride, w_accumulate, b_accumulate)
            build.emit(dense_sample_gradients, (dw, db, scratch(n_in, n_out, rows)), reads, apart, barrier=False)
            return lambda: None
        pieces = gradient_pieces(total, n_in, n_out)
        room = scratch(n_in, n_out, total) if pieces == 1 else build.buffer(pieces * (n_in + 1) * n_out)
        given = (sizes, w_accumulate, b_accumulate)
        build.emit(kernel, (dw, db, room), reads, (*given, int(pieces > 1)), barrier=False)
        if pieces > 1:
            return lambda: build.emit(dense_sum_of_pieces, (dw, db), (room,), given)
        return lambda: None

    def rule(dz):
        sum_up = parameters(dense_backward_parameters, build.parameter_gradient, (x.buffer, dz))
        dx = build.buffer(total * n_in)
        if build.target == "cpu" and not build.with_tangents and is_few(total, n_in, n_out):
            build.emit(dense_backward_few, (dx, build.buffer(few_scratch(total, n_out, build.threads))), (dz, w), sizes)
        else:
            wt = transposed(w, unless_one=not build.with_tangents)
            build.emit(dense_backward_input, (dx, scratch(total, n_in, n_out)), (dz, wt, w), sizes)
        sum_up()
        if build.with_tangents:
            dz_dot = build.tangent(dz)
            reads = (x.buffer, x_dot, dz, dz_dot)
            sum_up = parameters(dense_parameters_tangent, build.parameter_tangent, reads)
            wt_dot, dx_dot = transposed(w_dot), build.new_tangent(dx)
            reads = (dz, dz_dot, wt, wt_dot)
            build.emit(dense_input_tangent, (dx_dot, scratch(total, n_in, n_out)), reads, sizes)
            sum_up()
        build.accumulate_gradient(x, dx)

    build.on_backward(z, rule)
    return z


_RECTIFIERS = ("relu", "leaky_relu", "elu", "gelu", "gelu_tanh", "silu", "softplus", "mish", "hard_swish")
_INITS = dict.fromkeys(_RECTIFIERS, "he_normal") | {"selu": "lecun_normal"}  # of Klambauer et al. 2017, section 2


def default_init(activation):
    """The initializer of a weight before an activation."""
    return _INITS.get(activation, "glorot_uniform")


def dense(
    units: int, activation: str | None = None, bias: bool = True, init: str | None = None, share: str | None = None
) -> Layer:
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
        rectifiers, LeCun's for selu, Glorot's for the others.
    share : str or None
        Weight tying: "0.dense" to use the weight and bias of that earlier layer, "0.dense.weight" for its weight with
        a bias of this layer's own, "0.embedding.weight.T" for the transpose of its weight, as language models tie
        their output to their embedding. Gradients of all uses add up.

    >>> dense(32, activation="tanh")
    dense(32, activation='tanh')
    """
    return Dense(units, "identity" if activation is None else activation, bias, init, share)
