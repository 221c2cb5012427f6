"""Long short-term memory (Hochreiter and Schmidhuber 1997; with a forget gate, Gers et al. 2000), without peepholes.

With x_t W + b + h_{t-1} U = (i, f, g, o), four blocks of columns in PyTorch's order, and s the logistic function:

    i = s(i), f = s(f), g = tanh(g), o = s(o),   c_t = f c_{t-1} + i g,   h_t = o tanh(c_t)

Backward, from the last step to the first, with dh_t the gradient that reaches h_t from above and from step t + 1:

    dc_t = dc_{t+1} f_{t+1} + dh_t o (1 - tanh(c_t)^2),   dh_{t-1} += dz_t U^T,
    dz_t = (dc_t g i (1 - i), dc_t c_{t-1} f (1 - f), dc_t i (1 - g^2), dh_t tanh(c_t) o (1 - o))

The gates are kept, in place of z; tanh(c) is computed again, which costs less than its way through memory.
Loops stay short and write one array each: with several, LLVM gives up telling the arrays apart and vectorises nothing.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from nbprop.compiler.jit import njit
from nbprop.layers.recurrent import Recurrent, RecurrentSizes, add_product, add_product_ahead, copy_row
from nbprop.networks.layer import Layer, Parameter
from nbprop.numerics.elementary import sigmoid, tanh
from nbprop.numerics.gemm.entry import GEMM
from nbprop.numerics.gemm.microkernel import HEIGHTS
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at
from nbprop.program.kernel import kernel
from nbprop.validation import check_flag

_HEIGHT = HEIGHTS[0]


@njit
def _gates(row, width):
    """The blocks i, f, g, o of a row."""
    return row[:width], row[width : 2 * width], row[2 * width : 3 * width], row[3 * width : 4 * width]


@njit
def _apply_gates(row, width):
    """i, f, g and o from their arguments, in place."""
    sides, g, o = row[: 2 * width], row[2 * width : 3 * width], row[3 * width : 4 * width]
    for j in range(2 * width):
        sides[j] = sigmoid(sides[j])
    for j in range(width):
        g[j] = tanh(g[j])
    for j in range(width):
        o[j] = sigmoid(o[j])


@njit
def _cell(h, c, c_before, row, width):
    """c = f c_before + i g, h = o tanh(c), from a row of gates."""
    i, f, g, o = _gates(row, width)
    for j in range(width):
        c[j] = f[j] * c_before[j] + i[j] * g[j]
    for j in range(width):
        h[j] = o[j] * tanh(c[j])


@njit
def _cell_backward(dz_row, dc, dh, c, c_before, row, width):
    """dz from dh, and dc from the gradient that reaches c from the step after to that which reaches c_before."""
    i, f, g, o = _gates(row, width)
    di, df, dg, do = _gates(dz_row, width)
    one = like(dc[0], 1.0)
    for j in range(width):
        do[j] = tanh(c[j])
    for j in range(width):
        dc[j] += dh[j] * o[j] * (one - do[j] * do[j])
    for j in range(width):
        do[j] *= dh[j] * o[j] * (one - o[j])
    for j in range(width):
        di[j] = dc[j] * g[j] * i[j] * (one - i[j])
    for j in range(width):
        df[j] = dc[j] * c_before[j] * f[j] * (one - f[j])
    for j in range(width):
        dg[j] = dc[j] * i[j] * (one - g[j] * g[j])
    for j in range(width):
        dc[j] *= f[j]


@njit
def _cell_tangent(h_dot, c_dot, row_dot, c, c_before, c_before_dot, row, width):
    """c' and h', and the gates' derivatives in place of those of their arguments."""
    i, f, g, o = _gates(row, width)
    i_dot, f_dot, g_dot, o_dot = _gates(row_dot, width)
    one = like(h_dot[0], 1.0)
    for j in range(width):
        i_dot[j] *= i[j] * (one - i[j])
        f_dot[j] *= f[j] * (one - f[j])
        g_dot[j] *= one - g[j] * g[j]
        o_dot[j] *= o[j] * (one - o[j])
        c_dot[j] = f_dot[j] * c_before[j] + f[j] * c_before_dot[j] + i_dot[j] * g[j] + i[j] * g_dot[j]
        t = tanh(c[j])
        h_dot[j] = o_dot[j] * t + o[j] * (one - t * t) * c_dot[j]


@njit
def _cell_second(out, dc_dot, dc, dh_dot, dh, c, c_dot, c_before, c_before_dot, row, row_dot, width):
    """The tangent of `_cell_backward` into the row `out`, and its dc."""
    i, f, g, o = _gates(row, width)
    i_dot, f_dot, g_dot, o_dot = _gates(row_dot, width)
    di_dot, df_dot, dg_dot, do_dot = _gates(out, width)
    one, two = like(dc[0], 1.0), like(dc[0], 2.0)
    for j in range(width):
        t = tanh(c[j])
        rest = one - t * t
        t_dot = rest * c_dot[j]
        slope, slope_dot = o[j] * (one - o[j]), o_dot[j] * (one - two * o[j])
        do_dot[j] = dh_dot[j] * t * slope + dh[j] * (t_dot * slope + t * slope_dot)
        dc[j] += dh[j] * o[j] * rest
        dc_dot[j] += (dh_dot[j] * o[j] + dh[j] * o_dot[j]) * rest - two * dh[j] * o[j] * t * t_dot
        slope, slope_dot = i[j] * (one - i[j]), i_dot[j] * (one - two * i[j])
        di_dot[j] = (dc_dot[j] * g[j] + dc[j] * g_dot[j]) * slope + dc[j] * g[j] * slope_dot
        slope, slope_dot = f[j] * (one - f[j]), f_dot[j] * (one - two * f[j])
        df_dot[j] = (dc_dot[j] * c_before[j] + dc[j] * c_before_dot[j]) * slope + dc[j] * c_before[j] * slope_dot
        rest = one - g[j] * g[j]
        dg_dot[j] = (dc_dot[j] * i[j] + dc[j] * i_dot[j]) * rest - two * dc[j] * i[j] * g[j] * g_dot[j]
        dc_dot[j] = dc_dot[j] * f[j] + dc[j] * f_dot[j]
        dc[j] *= f[j]


@kernel(uses=(GEMM,))
def lstm_forward(h, c, z, scratch, u, n, sizes: RecurrentSizes, piece, lengths_address, lengths_code, part, parts):
    """h_t and c_t for t = 1, ..., positions; both unchanged beyond a length.

    h and c INOUT (1 + positions, n, width): the first of each in, the rest out; z INOUT (positions, n, 4 width): x W +
    b in, the gates out; u IN (width, 4 width); scratch: `piece` elements per thread.
    """
    positions, width = sizes.positions, sizes.width
    first, last = share(n, part, parts)
    rows, gates = last - first, 4 * width
    for t in range(positions):
        at = t * n + first
        following, count = (at + n) * gates, rows * gates
        add_product_ahead(
            *(z, at * gates, gates, h, at * width, width, u, 0, gates, rows, gates, scratch, piece, part),
            *(z, following, count),
        )
        for k in range(at, at + rows):
            row, here = z[k * gates : (k + 1) * gates], slice((n + k) * width, (n + k + 1) * width)
            before = slice(k * width, (k + 1) * width)
            _apply_gates(row, width)
            if t < length_at(lengths_address, lengths_code, k - t * n, positions):
                _cell(h[here], c[here], c[before], row, width)
            else:
                copy_row(h[here], h[before])
                copy_row(c[here], c[before])


@kernel(uses=(GEMM,), optional=("u_dot",))
def lstm_tangent(
    h_dot,
    c_dot,
    z_dot,
    scratch,
    h,
    c,
    z,
    u,
    u_dot,
    n,
    sizes: RecurrentSizes,
    piece,
    lengths_address,
    lengths_code,
    part,
    parts,
):
    """The derivatives h'_t and c'_t of `lstm_forward` along z' and U'.

    h_dot and c_dot INOUT (1 + positions, n, width): the first of each in, the rest out; z_dot INOUT (positions, n, 4
    width): (x W + b)' in, those of the gates out; h and c IN (1 + positions, n, width), z IN (positions, n, 4 width); u
    and u_dot IN (width, 4 width); scratch: `piece` elements per thread.
    """
    positions, width = sizes.positions, sizes.width
    first, last = share(n, part, parts)
    rows, gates = last - first, 4 * width
    for t in range(positions):
        at = t * n + first
        add_product(z_dot, at * gates, gates, h, at * width, width, u_dot, 0, gates, rows, gates, scratch, piece, part)
        add_product(z_dot, at * gates, gates, h_dot, at * width, width, u, 0, gates, rows, gates, scratch, piece, part)
        for k in range(at, at + rows):
            row, here = slice(k * gates, (k + 1) * gates), slice((n + k) * width, (n + k + 1) * width)
            before = slice(k * width, (k + 1) * width)
            _cell_tangent(h_dot[here], c_dot[here], z_dot[row], c[here], c[before], c_dot[before], z[row], width)
            if t >= length_at(lengths_address, lengths_code, k - t * n, positions):
                copy_row(h_dot[here], h_dot[before])
                copy_row(c_dot[here], c_dot[before])


@kernel(uses=(GEMM,))
def lstm_backward(dz, dc, dh, scratch, c, z, ut, n, sizes: RecurrentSizes, piece, part, parts):
    """dz_t, dc_t and dh_{t-1} += dz_t U^T, from the last step to the first.

    dz OUT (positions, n, 4 width); dc OUT (n, width), scratch; dh INOUT (positions, n, width): from above in, the total
    out; c IN (1 + positions, n, width), z IN (positions, n, 4 width): the gates; ut IN (4 width, width); scratch:
    `piece` elements per thread. Beyond a length dh is 0, and so is all that follows from it.
    """
    positions, width = sizes.positions, sizes.width
    first, last = share(n, part, parts)
    rows, gates = last - first, 4 * width
    for j in range(first * width, last * width):
        dc[j] = like(dc[j], 0.0)
    for t in range(positions - 1, -1, -1):
        at = t * n + first
        for k in range(at, at + rows):
            row, here = slice(k * gates, (k + 1) * gates), slice(k * width, (k + 1) * width)
            after, sample = slice((n + k) * width, (n + k + 1) * width), k - t * n
            dc_row = dc[sample * width : (sample + 1) * width]
            _cell_backward(dz[row], dc_row, dh[here], c[after], c[here], z[row], width)
        if t > 0:
            # The step before reads and writes as much as this product does not touch: fetched meanwhile, in two halves.
            before, half = at - n, (rows + _HEIGHT) // (2 * _HEIGHT) * _HEIGHT
            for ahead, begin, end in ((z, 0, half), (dz, half, rows)):
                add_product_ahead(
                    *(dh, (before + begin) * width, width, dz, (at + begin) * gates, gates, ut, 0, width),
                    *(end - begin, width, scratch, piece, part, ahead, before * gates, rows * gates),
                )


@kernel(uses=(GEMM,))
def lstm_second(
    dz_dot,
    dc_dot,
    dc,
    dh_dot,
    scratch,
    dz,
    dh,
    c,
    c_dot,
    z,
    z_dot,
    ut,
    ut_dot,
    n,
    sizes: RecurrentSizes,
    piece,
    part,
    parts,
):
    """The tangent of `lstm_backward`: dz'_t, dc'_t (and dc_t again) and dh'_{t-1} += dz'_t U^T + dz_t U'^T.

    dz_dot OUT (positions, n, 4 width), dc_dot and dc OUT (n, width), scratch; dh_dot INOUT (positions, n, width); dz IN
    (positions, n, 4 width); dh IN (positions, n, width): the total; c and c_dot IN (1 + positions, n, width); z and
    z_dot IN (positions, n, 4 width): the gates; ut and ut_dot IN (4 width, width); scratch: `piece` elements per
    thread.
    """
    positions, width = sizes.positions, sizes.width
    first, last = share(n, part, parts)
    rows, gates = last - first, 4 * width
    for j in range(first * width, last * width):
        dc[j] = like(dc[j], 0.0)
        dc_dot[j] = like(dc[j], 0.0)
    for t in range(positions - 1, -1, -1):
        at = t * n + first
        for k in range(at, at + rows):
            row, here = slice(k * gates, (k + 1) * gates), slice(k * width, (k + 1) * width)
            after, sample = slice((n + k) * width, (n + k + 1) * width), k - t * n
            of = slice(sample * width, (sample + 1) * width)
            cells = (c[after], c_dot[after], c[here], c_dot[here], z[row], z_dot[row])
            _cell_second(dz_dot[row], dc_dot[of], dc[of], dh_dot[here], dh[here], *cells, width)
        if t > 0:
            before = (at - n) * width
            add_product(
                dh_dot, before, width, dz_dot, at * gates, gates, ut, 0, width, rows, width, scratch, piece, part
            )
            add_product(
                dh_dot, before, width, dz, at * gates, gates, ut_dot, 0, width, rows, width, scratch, piece, part
            )


@dataclass(frozen=True, repr=False)
class LSTM(Recurrent):
    units: int
    output: str = "sequence"
    carry: bool = False
    unit_forget_bias: bool = True
    kind = "lstm"
    checks: ClassVar = Recurrent.checks | {"unit_forget_bias": check_flag}
    gates = 4

    def parameters(self, input_shape):
        *weights, bias = super().parameters(input_shape)
        if self.unit_forget_bias:
            bias = Parameter("bias", bias.shape, ("zeros", "ones", "zeros", "zeros"))
        return (*weights, bias)

    def emit_forward(self, loop):
        build, (u, u_dot), z = loop.build, loop.weight(), loop.z
        h, c = loop.new_state(), loop.new_state()
        sizes = (loop.sizes, loop.piece)
        build.emit(lstm_forward, (), (u,), sizes, inplace=(h, c, z, loop.scratch()))
        if build.with_tangents:
            inplace = (*(build.tangent(buffer) for buffer in (h, c, z)), loop.scratch())
            build.emit(lstm_tangent, (), (h, c, z, u, u_dot), sizes, inplace=inplace)
        loop.saved["c"] = c
        return h

    def emit_backward(self, loop, dh):
        build, c, z, (ut, ut_dot) = loop.build, loop.saved["c"], loop.z, loop.transposed_weight()
        sizes, cells = (loop.sizes, loop.piece), build.batch * self.units
        dz = loop.steps(4 * self.units)
        build.emit(lstm_backward, (dz, build.buffer(cells)), (c, z, ut), sizes, inplace=(dh, loop.scratch()))
        if build.with_tangents:
            writes = (build.new_tangent(dz), build.buffer(cells), build.buffer(cells))
            inplace = (build.tangent(dh), loop.scratch())
            reads = (dz, dh, c, build.tangent(c), z, build.tangent(z), ut, ut_dot)
            build.emit(lstm_second, writes, reads, sizes, inplace=inplace)
        return dz, dz


def lstm(
    units: int, output: Literal["sequence", "last"] = "sequence", carry: bool = False, unit_forget_bias: bool = True
) -> Layer:
    """A long short-term memory over sequences.

    Parameters
    ----------
    units : int
        H. x is (n, T, C); the weight is (C, 4 H), the recurrent weight (H, 4 H), the bias (4 H,), each in blocks for
        the gates i, f, g, o: PyTorch's weight_ih^T, weight_hh^T, and the sum of its two biases (one is redundant).
    output : "sequence" or "last"
        y is h at every position, (n, T, H), or at the last one, (n, H).
    carry : bool
        Whether a call begins with the h and c that the call before ended with, sample by sample, kept in the layer
        state: backprop through time, truncated at the call (in `fit`, with shuffle=False). Zero a sample's state to
        begin a new sequence.
    unit_forget_bias : bool
        Whether the forget gate's bias begins at 1 rather than 0, so that a new network remembers (Jozefowicz et al.
        2015).

    A call's `lengths` say where each sample's sequence ends: beyond, x is not looked at, h and c stay, and the output
    is 0; the last output is that at the length. Each gate's weight is Glorot's, its recurrent one orthogonal, biases 0.
    In mode="decoding" a call brings one position, and h and c lie in the layer state; step 0 begins a new sequence,
    unless `carry`. Sources: Hochreiter and Schmidhuber 1997, Neural Computation 9; Gers et al. 2000, the same, 12.

    >>> lstm(128, output="last")
    lstm(128, output='last')
    """
    return LSTM(units, output, carry, unit_forget_bias)
