"""What rnn, lstm and gru share: the loop over the positions of a sequence, and everything around it.

A sequence x (n, T, C) becomes xt (T, n, C), so that what one step needs lies in one piece. The products of x with the
weight are one matrix product over all T n rows, before the loop; so are the gradients of both weights and of x, after
the backward loop. Only h U and dz U^T have to wait for the step before. A loop is one op: each thread takes some
samples through all of their steps, and since a step of one sample needs nothing of another, no thread waits for
another.

Lengths: at positions beyond its length a sample's state stays what it was, its output is 0, and its x is taken for 0,
whatever it holds. So h_T is always the state at the length, and no gradient enters or leaves beyond it.

The state that calls carry on (`carry`, or mode="decoding") is read before the loop, into h_0, and written after it.
Backpropagation stops at h_0: backprop through time, truncated at the call (Williams and Peng 1990, "An efficient
gradient-based algorithm for on-line training of recurrent network trajectories", Neural Computation 2).
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from nbprop.compiler.jit import njit
from nbprop.layers.dense.kernels import dense_backward_parameters, dense_parameters_tangent, dense_transpose
from nbprop.layers.dense.layer import lower_dense
from nbprop.layers.dense.sizes import DenseSizes
from nbprop.networks.layer import Layer, Parameter
from nbprop.numerics.gemm.blocked import ACCUMULATE, gemm_scratch
from nbprop.numerics.gemm.entry import product_ahead
from nbprop.numerics.gemm.microkernel import pointer
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at
from nbprop.program.kernel import kernel
from nbprop.validation import check_flag, named, positive

OUTPUTS = ("sequence", "last")


class RecurrentSizes(NamedTuple):
    """Arrays over time (positions, n, width), or as x is (n, positions, width)."""

    positions: int  # T, of each sample
    width: int  # elements of a position: features of x, units of a state


@njit
def add_product(c, c_first, c_width, a, a_first, a_width, w, w_first, w_width, rows, columns, scratch, piece, part):
    """C += A W for the rows of one step: C (rows, columns) from element c_first on, A (rows, a_width).

    Rows of C are c_width apart, those of W w_width. `piece` elements of scratch are this thread's.
    """
    add_product_ahead(
        c, c_first, c_width, a, a_first, a_width, w, w_first, w_width, rows, columns, scratch, piece, part, c, 0, 0
    )  # fmt: skip


@njit
def add_product_ahead(
    c, c_first, c_width, a, a_first, a_width, w, w_first, w_width, rows, columns, scratch, piece, part, ahead, at, count
):
    """`add_product`, while `count` elements of `ahead`, from element `at` on, are fetched for what comes next."""
    product_ahead(
        (
            *(pointer(c, c_first), c_width, pointer(a, a_first), a_width, 1, pointer(w, w_first), w_width),
            *(rows, columns, a_width, ACCUMULATE, pointer(c, 0), pointer(scratch, part * piece), piece, 0, 1),
            *(pointer(ahead, at), count),
        )
    )


@njit
def copy_row(y, x):
    """y = x."""
    for j in range(y.size):
        y[j] = x[j]


@kernel
def to_time_major(xt, x, n, sizes: RecurrentSizes, lengths_address, lengths_code, part, parts):
    """xt[t, i] = x[i, t], 0 beyond a length. xt OUT (positions, n, width), x IN (n, positions, width)."""
    positions, width = sizes.positions, sizes.width
    start, stop = share(positions * n, part, parts)
    for row in range(start, stop):
        t, i = row // n, row % n
        to = xt[row * width : (row + 1) * width]
        if t < length_at(lengths_address, lengths_code, i, positions):
            copy_row(to, x[(i * positions + t) * width : (i * positions + t + 1) * width])
        else:
            to[:] = like(to[0], 0.0)


@kernel
def to_sample_major(x, xt, n, sizes: RecurrentSizes, skip, lengths_address, lengths_code, part, parts):
    """x[i, t] = xt[skip + t, i], 0 beyond a length. x OUT (n, positions, width), xt IN (skip + positions, n, width)."""
    positions, width = sizes.positions, sizes.width
    start, stop = share(n * positions, part, parts)
    for row in range(start, stop):
        i, t = row // positions, row % positions
        to = x[row * width : (row + 1) * width]
        if t < length_at(lengths_address, lengths_code, i, positions):
            copy_row(to, xt[((skip + t) * n + i) * width : ((skip + t) * n + i + 1) * width])
        else:
            to[:] = like(to[0], 0.0)


@kernel
def from_last(dh, dy, n, sizes: RecurrentSizes, lengths_address, lengths_code, part, parts):
    """dh[t, i] = dy[i] at the last position of sample i, else 0. dh OUT (positions, n, width), dy IN (n, width)."""
    positions, width = sizes.positions, sizes.width
    start, stop = share(positions * n, part, parts)
    for row in range(start, stop):
        t, i = row // n, row % n
        to = dh[row * width : (row + 1) * width]
        if t == length_at(lengths_address, lengths_code, i, positions) - 1:
            copy_row(to, dy[i * width : (i + 1) * width])
        else:
            to[:] = like(to[0], 0.0)


@kernel
def begin_state(h, state, n, width, restarts, step, first_sample, part, parts):
    """h_0 = the layer's state; 0 where it has none, and at step 0 where it `restarts`.

    h OUT (the first n rows of (1 + positions, n, width)), state IN (batch, width) or empty.
    """
    start, stop = share(n, part, parts)
    zero = state.size == 0 or (restarts == 1 and step == 0)
    for i in range(start, stop):
        to = h[i * width : (i + 1) * width]
        if zero:
            to[:] = like(to[0], 0.0)
        else:
            copy_row(to, state[(first_sample + i) * width : (first_sample + i + 1) * width])


@kernel
def keep_state(state, h, n, sizes: RecurrentSizes, first_sample, part, parts):
    """The layer's state = h_T. state OUT (batch, width), h IN (1 + positions, n, width)."""
    positions, width = sizes.positions, sizes.width
    start, stop = share(n, part, parts)
    for i in range(start, stop):
        to = state[(first_sample + i) * width : (first_sample + i + 1) * width]
        copy_row(to, h[(positions * n + i) * width : (positions * n + i + 1) * width])


@dataclass
class TimeLoop:
    """A recurrent layer as it is lowered: its sizes and buffers, as `emit_forward` and `emit_backward` need them."""

    build: Any  # the Builder
    layer: "Recurrent"
    positions: int
    recurrent: str  # the path of U
    more: list  # paths of parameters of the layer's own
    z: Any  # the Buffer of x W + b, (positions, n, gates * units)
    states: list = field(default_factory=list)  # (the layer's state or None, its (1 + positions, n, units))
    saved: dict = field(default_factory=dict)  # what the backward loop reads, by name

    @property
    def units(self):
        return self.layer.units

    @property
    def sizes(self):
        return RecurrentSizes(positions=self.positions, width=self.units)

    @property
    def piece(self):
        """Elements of scratch that a thread's products of one step need."""
        n, h, z = self.build.batch, self.units, self.units * self.layer.gates
        return max(gemm_scratch(n, z, h, 1), gemm_scratch(n, h, z, 1))

    def scratch(self):
        """A buffer for the products of the loop's threads, None where they need none."""
        return self.build.buffer(self.piece * self.build.threads) if self.piece else None

    def steps(self, width):
        """A buffer (positions, n, width)."""
        return self.build.buffer(self.positions * self.build.batch * width)

    def new_state(self):
        """A buffer (1 + positions, n, units) for what one step hands to the next; what begins it is emitted."""
        build, layer = self.build, self.layer
        buffer = build.buffer((1 + self.positions) * build.batch * layer.units)
        decoding = build.mode == "decoding"
        kept = build.state(layer.units, each_sample=True) if layer.carry or decoding else None
        sizes = (layer.units, int(decoding and not layer.carry))
        build.emit(begin_state, (buffer,), (kept,), sizes)
        if build.with_tangents:
            build.emit(begin_state, (build.new_tangent(buffer),), (None,), sizes)
        self.states.append((kept, buffer))
        return buffer

    def weight(self):
        """The operands of U and, where tangents are asked for, of its part of the direction (else None)."""
        build = self.build
        return build.parameter(self.recurrent), build.direction(self.recurrent) if build.with_tangents else None

    def transposed_weight(self):
        """The same of U^T."""
        return tuple(None if u is None else self._transposed(u) for u in self.weight())

    def _transposed(self, u):
        turned = self.build.buffer(u.size)
        sizes = DenseSizes(rows=0, n_in=self.units, n_out=self.units * self.layer.gates)
        self.build.emit(dense_transpose, (turned,), (u,), sizes)
        return turned

    def emit_recurrent_gradient(self, h, du):
        """Emit dU, the sum of h_{t-1}^T du_t over all rows, and its tangent."""
        build, width = self.build, self.units * self.layer.gates
        sizes, size = DenseSizes(rows=self.positions, n_in=self.units, n_out=width), self.positions * build.batch

        def scratch():
            found = gemm_scratch(self.units, width, size, build.threads)
            return build.buffer(found) if found else None

        gradient, u_accumulate = build.parameter_gradient(self.recurrent)
        build.emit(dense_backward_parameters, (gradient, None, scratch()), (h, du), (sizes, u_accumulate, 0, 0))
        if build.with_tangents:
            gradient, u_accumulate = build.parameter_tangent(self.recurrent)
            reads = (h, build.tangent(h), du, build.tangent(du))
            build.emit(dense_parameters_tangent, (gradient, None, scratch()), reads, (sizes, u_accumulate, 0, 0))


def _time_major(build, x):
    """Emit xt (T, n, C) of a value x (n, T, C), 0 beyond lengths."""
    xt, sizes = build.value(x.shape), RecurrentSizes(positions=x.shape[0], width=x.shape[1])
    build.linear(to_time_major, (xt.buffer,), (x.buffer,), sizes)

    def rule(dxt):
        dx = build.buffer(build.batch * x.size)
        build.linear(to_sample_major, (dx,), (dxt,), (sizes, 0))
        build.accumulate_gradient(x, dx)

    build.on_backward(xt, rule)
    return xt


class Recurrent(Layer):
    """A layer with a time loop. Subclasses are frozen dataclasses that have `units`, `output` and `carry`, and give

    gates : how many blocks of `units` columns the weights have
    emit_forward(loop) : emits the loop; the buffer of h (1 + positions, n, units)
    emit_backward(loop, dh) : emits the backward loop from dh (positions, n, units), which it may overwrite; the
        gradients by x W + b and by h U, buffers (positions, n, gates * units)
    """

    units: int
    output: str
    carry: bool
    tangents = True
    takes_lengths = True
    gates = 1
    checks: ClassVar = {"units": positive, "output": named(OUTPUTS), "carry": check_flag}

    def __repr__(self):
        options = [
            f", {item.name}={getattr(self, item.name)!r}"
            for item in dataclasses.fields(self)
            if item.name != "units" and getattr(self, item.name) != item.default
        ]
        return f"{self.kind}({self.units}{''.join(options)})"

    def output_shape(self, input_shape):
        if len(input_shape) != 2:
            raise ValueError(f"{self.kind} needs sequences: an input of two axes, (positions, features)")
        return (input_shape[0], self.units) if self.output == "sequence" else (self.units,)

    def parameters(self, input_shape):
        width = self.gates * self.units
        return (
            Parameter("weight", (input_shape[-1], width), ("glorot_uniform",) * self.gates),
            Parameter("recurrent_weight", (self.units, width), ("orthogonal",) * self.gates),
            Parameter("bias", (width,), "zeros"),
        )

    def flops(self, input_shape):
        positions, features = input_shape
        return 2 * positions * (features + self.units) * self.gates * self.units

    def lower(self, build, x, path, names):
        positions, units = x.shape[0], self.units
        weight, recurrent, bias, *more = names
        z = lower_dense(build, _time_major(build, x), self.gates * units, weight, bias)
        loop = TimeLoop(build, self, positions, recurrent, more, z.buffer)
        h = self.emit_forward(loop)
        for kept, state in loop.states:
            if kept is not None:
                build.emit(keep_state, (kept,), (state,), loop.sizes)
        whole = self.output == "sequence"
        y = build.value((positions, units) if whole else (units,))
        view = (loop.sizes, 1) if whole else (loop.sizes._replace(positions=1), positions)
        build.linear(to_sample_major, (y.buffer,), (h,), view)

        def rule(dy):
            dh = loop.steps(units)
            build.linear(to_time_major if whole else from_last, (dh,), (dy,), loop.sizes)
            dz, du = self.emit_backward(loop, dh)
            loop.emit_recurrent_gradient(h, du)
            build.accumulate_gradient(z, dz)

        build.on_backward(y, rule)
        return y

    def emit_forward(self, loop):
        raise NotImplementedError

    def emit_backward(self, loop, dh):
        raise NotImplementedError
