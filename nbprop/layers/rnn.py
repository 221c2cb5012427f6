"""The simple recurrent layer: h_t = f(x_t W + b + h_{t-1} U) (Elman 1990, "Finding structure in time").

Backward, from the last step to the first (Werbos 1990, "Backpropagation through time", Proc. IEEE 78): with dh_t the
gradient that reaches h_t from above and from step t + 1,

    dz_t = dh_t f'(z_t),   dh_{t-1} += dz_t U^T,   and after the loop   dW = x^T dz,  dU = h_{t-1}^T dz,  db = sum dz.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from nbprop.layers.activation import add_curvature, apply_inplace, scale_by_derivative
from nbprop.layers.recurrent import Recurrent, RecurrentSizes, add_product, copy_row
from nbprop.networks.layer import Layer
from nbprop.numerics.activations import ACTIVATIONS, NEEDS_INPUT, SOFTMAX
from nbprop.numerics.gemm.entry import GEMM
from nbprop.numerics.partition import share
from nbprop.program.elements import length_at
from nbprop.program.kernel import kernel
from nbprop.validation import named

# f' has to be a function of h, which is all that is kept of a step.
CHOICES = tuple(name for name, code in ACTIVATIONS.items() if code not in NEEDS_INPUT and code != SOFTMAX)


@kernel(uses=(GEMM,))
def rnn_forward(h, z, scratch, u, n, sizes: RecurrentSizes, code, piece, lengths_address, lengths_code, part, parts):
    """h_t = f(z_t + h_{t-1} U) for t = 1, ..., positions; h_t = h_{t-1} beyond a length.

    h INOUT (1 + positions, n, width): h_0 in, the rest out; z INOUT (positions, n, width): x W + b in, the argument of
    f out; u IN (width, width); scratch: `piece` elements per thread.
    """
    positions, width = sizes.positions, sizes.width
    first, last = share(n, part, parts)
    for t in range(positions):
        at, next_at = (t * n + first) * width, ((t + 1) * n + first) * width
        add_product(z, at, width, h, at, width, u, 0, width, last - first, width, scratch, piece, part)
        for i in range(last - first):
            h_row = h[next_at + i * width : next_at + (i + 1) * width]
            if t < length_at(lengths_address, lengths_code, first + i, positions):
                copy_row(h_row, z[at + i * width : at + (i + 1) * width])
                apply_inplace(h_row, code)
            else:
                copy_row(h_row, h[at + i * width : at + (i + 1) * width])


@kernel(uses=(GEMM,), optional=("u_dot",))
def rnn_tangent(
    h_dot,
    z_dot,
    scratch,
    h,
    u,
    u_dot,
    n,
    sizes: RecurrentSizes,
    code,
    piece,
    lengths_address,
    lengths_code,
    part,
    parts,
):
    """h'_t = f'(z_t) (z'_t + h_{t-1} U' + h'_{t-1} U), the derivative of `rnn_forward` along z' and U'.

    h_dot INOUT (1 + positions, n, width): h'_0 in, the rest out; z_dot INOUT (positions, n, width); h IN (1 +
    positions, n, width); u and u_dot IN (width, width); scratch: `piece` elements per thread.
    """
    positions, width = sizes.positions, sizes.width
    first, last = share(n, part, parts)
    rows = last - first
    for t in range(positions):
        at, next_at = (t * n + first) * width, ((t + 1) * n + first) * width
        add_product(z_dot, at, width, h, at, width, u_dot, 0, width, rows, width, scratch, piece, part)
        add_product(z_dot, at, width, h_dot, at, width, u, 0, width, rows, width, scratch, piece, part)
        for i in range(rows):
            here = slice(next_at + i * width, next_at + (i + 1) * width)
            before = slice(at + i * width, at + (i + 1) * width)
            if t < length_at(lengths_address, lengths_code, first + i, positions):
                copy_row(h_dot[here], z_dot[before])
                scale_by_derivative(h_dot[here], h[here], code)
            else:
                copy_row(h_dot[here], h_dot[before])


@kernel(uses=(GEMM,))
def rnn_backward(dz, dh, scratch, h, ut, n, sizes: RecurrentSizes, code, piece, part, parts):
    """dz_t = dh_t f'(z_t), dh_{t-1} += dz_t U^T, from the last step to the first.

    dz OUT (positions, n, width); dh INOUT (positions, n, width): from above in, the total out; h IN (1 + positions, n,
    width); ut IN (width, width); scratch: `piece` elements per thread.
    """
    positions, width = sizes.positions, sizes.width
    first, last = share(n, part, parts)
    for t in range(positions - 1, -1, -1):
        at, next_at = (t * n + first) * width, ((t + 1) * n + first) * width
        for i in range(last - first):
            row = slice(at + i * width, at + (i + 1) * width)
            copy_row(dz[row], dh[row])
            scale_by_derivative(dz[row], h[next_at + i * width : next_at + (i + 1) * width], code)
        if t > 0:
            before = ((t - 1) * n + first) * width
            add_product(dh, before, width, dz, at, width, ut, 0, width, last - first, width, scratch, piece, part)


@kernel(uses=(GEMM,))
def rnn_second(
    dz_dot, dh_dot, scratch, dz, dh, h, h_dot, ut, ut_dot, n, sizes: RecurrentSizes, code, piece, part, parts
):
    """dz'_t = dh'_t f' + dh_t f'' along the direction, dh'_{t-1} += dz'_t U^T + dz_t U'^T: `rnn_backward`'s tangent.

    dz_dot OUT (positions, n, width), dh_dot INOUT (positions, n, width); dz IN (positions, n, width); dh IN (positions,
    n, width): the total; h and h_dot IN (1 + positions, n, width); ut and ut_dot IN (width, width); scratch: `piece`
    elements per thread.
    """
    positions, width = sizes.positions, sizes.width
    first, last = share(n, part, parts)
    rows = last - first
    for t in range(positions - 1, -1, -1):
        at, next_at = (t * n + first) * width, ((t + 1) * n + first) * width
        for i in range(rows):
            row = slice(at + i * width, at + (i + 1) * width)
            after = slice(next_at + i * width, next_at + (i + 1) * width)
            copy_row(dz_dot[row], dh_dot[row])
            scale_by_derivative(dz_dot[row], h[after], code)
            add_curvature(dz_dot[row], dh[row], h[after], h_dot[after], code)
        if t > 0:
            before = ((t - 1) * n + first) * width
            add_product(dh_dot, before, width, dz_dot, at, width, ut, 0, width, rows, width, scratch, piece, part)
            add_product(dh_dot, before, width, dz, at, width, ut_dot, 0, width, rows, width, scratch, piece, part)


@dataclass(frozen=True, repr=False)
class RNN(Recurrent):
    units: int
    activation: str = "tanh"
    output: str = "sequence"
    carry: bool = False
    kind = "rnn"
    checks: ClassVar = Recurrent.checks | {"activation": named(CHOICES)}

    def _sizes(self, loop):
        return loop.sizes, ACTIVATIONS[self.activation], loop.piece

    def emit_forward(self, loop):
        build, (u, u_dot), h = loop.build, loop.weight(), loop.new_state()
        build.emit(rnn_forward, (), (u,), self._sizes(loop), inplace=(h, loop.z, loop.scratch()))
        if build.with_tangents:
            inplace = (build.tangent(h), build.tangent(loop.z), loop.scratch())
            build.emit(rnn_tangent, (), (h, u, u_dot), self._sizes(loop), inplace=inplace)
        loop.saved["h"] = h
        return h

    def emit_backward(self, loop, dh):
        build, h, (ut, ut_dot) = loop.build, loop.saved["h"], loop.transposed_weight()
        dz = loop.steps(self.units)
        build.emit(rnn_backward, (dz,), (h, ut), self._sizes(loop), inplace=(dh, loop.scratch()))
        if build.with_tangents:
            inplace = (build.tangent(dh), loop.scratch())
            reads = (dz, dh, h, build.tangent(h), ut, ut_dot)
            build.emit(rnn_second, (build.new_tangent(dz),), reads, self._sizes(loop), inplace=inplace)
        return dz, dz


def rnn(
    units: int, activation: str = "tanh", output: Literal["sequence", "last"] = "sequence", carry: bool = False
) -> Layer:
    """A simple recurrent layer over sequences: h_t = f(x_t W + b + h_{t-1} U).

    Parameters
    ----------
    units : int
        H. x is (n, T, C); the weight is (C, H), the recurrent weight (H, H), the bias (H,): PyTorch's weight_ih^T,
        weight_hh^T, and the sum of its two biases, of which one is redundant.
    activation : str
        f: "tanh", "relu", "sigmoid", "identity", or another whose derivative is a function of its value.
    output : "sequence" or "last"
        y is h at every position, (n, T, H), or at the last one, (n, H).
    carry : bool
        Whether a call begins with the h that the call before ended with, sample by sample, kept in the layer state:
        backprop through time, truncated at the call (in `fit`, with shuffle=False). Zero a sample's state to begin a
        new sequence.

    A call's `lengths` say where each sample's sequence ends: beyond, x is not looked at, h stays, and the output is 0;
    the last output is that at the length. The initial weight is Glorot's, the recurrent one orthogonal, the bias 0.
    In mode="decoding" a call brings one position, and h lies in the layer state; step 0 begins a new sequence, unless
    `carry`. Source: Elman 1990, Cognitive Science 14.

    >>> rnn(32, activation="relu", output="last")
    rnn(32, activation='relu', output='last')
    """
    return RNN(units, activation, output, carry)
