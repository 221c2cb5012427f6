"""The gated recurrent unit (Cho et al. 2014), in the form whose reset gate acts after the product (PyTorch's, cuDNN's).

With x_t W + b = (r, z, n) and h_{t-1} U = (r', z', n'), blocks of columns in PyTorch's order, s the logistic function:

    r = s(r + r'), z = s(z + z'), q = n' + a, n = tanh(n + r q),   h_t = (1 - z) n + z h_{t-1}

Backward, from the last step to the first, with dh_t the gradient that reaches h_t from above and from step t + 1:

    dn = dh_t (1 - z) (1 - n^2),  dr = dn q r (1 - r),  dz = dh_t (h_{t-1} - n) z (1 - z),
    dh_{t-1} += dh_t z + (dr, dz, dn r) U^T

The gradient by x W + b is (dr, dz, dn), that by h U (dr, dz, dn r). a, the recurrent bias, stands inside the product
with r, so that it is no part of b; PyTorch's other recurrent biases are in b. The gates r, z and n are kept in place of
x W + b, and q is kept.
"""

from dataclasses import dataclass
from typing import Literal

from nbprop.compiler.intrinsics import pointer_to_one
from nbprop.compiler.jit import njit
from nbprop.layers.recurrent import Recurrent, RecurrentSizes, add_product, copy_row
from nbprop.networks.layer import Layer, Parameter
from nbprop.numerics.elementary import sigmoid, tanh
from nbprop.numerics.gemm.blocked import ACCUMULATE, ZERO
from nbprop.numerics.gemm.entry import GEMM, product
from nbprop.numerics.gemm.microkernel import pointer
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.elements import length_at
from nbprop.program.kernel import kernel

# On the device so many threads share the rows that the recurrent bias's gradient sums up.
_LANES = 8


@njit
def _gates(row, width):
    """The blocks r, z, n of a row."""
    return row[:width], row[width : 2 * width], row[2 * width : 3 * width]


@njit
def _apply_gates(row, q, width):
    """r, z and n from their arguments, in place."""
    sides, (r, _, n) = row[: 2 * width], _gates(row, width)
    for j in range(2 * width):
        sides[j] = sigmoid(sides[j])
    for j in range(width):
        n[j] = tanh(n[j] + r[j] * q[j])


@njit
def _cell_backward(dg_row, du_row, dh_before, dh, h_before, row, q, width):
    """The gradients by x W + b and by h U, and dh z added to dh_before (which may be empty)."""
    r, z, n = _gates(row, width)
    (dr, dz, dn), (dr_again, dz_again, dq) = _gates(dg_row, width), _gates(du_row, width)
    one = like(dh[0], 1.0)
    for j in range(width):
        dn[j] = dh[j] * (one - z[j]) * (one - n[j] * n[j])
    for j in range(width):
        dr[j] = dn[j] * q[j] * r[j] * (one - r[j])
    for j in range(width):
        dz[j] = dh[j] * (h_before[j] - n[j]) * z[j] * (one - z[j])
    for j in range(width):
        dq[j] = dn[j] * r[j]
    copy_row(dr_again, dr)
    copy_row(dz_again, dz)
    for j in range(dh_before.size):
        dh_before[j] += dh[j] * z[j]


@njit
def _cell_tangent(h_dot, row_dot, h_before, h_before_dot, row, q, q_dot, width):
    """h', and the gates' derivatives in place of those of their arguments."""
    (r, z, n), (r_dot, z_dot, n_dot) = _gates(row, width), _gates(row_dot, width)
    one = like(h_dot[0], 1.0)
    for j in range(width):
        r_dot[j] *= r[j] * (one - r[j])
        z_dot[j] *= z[j] * (one - z[j])
        n_dot[j] = (n_dot[j] + r_dot[j] * q[j] + r[j] * q_dot[j]) * (one - n[j] * n[j])
        h_dot[j] = n_dot[j] + z_dot[j] * (h_before[j] - n[j]) + z[j] * (h_before_dot[j] - n_dot[j])


@njit
def _cell_second(dg_dot, du_dot, before_dot, dh, dh_dot, h_before, h_before_dot, row, row_dot, q, q_dot, width):
    """The tangent of `_cell_backward`."""
    (r, z, n), (r_dot, z_dot, n_dot) = _gates(row, width), _gates(row_dot, width)
    (dr_dot, dz_dot, dn_dot), (dr_again, dz_again, dq_dot) = _gates(dg_dot, width), _gates(du_dot, width)
    one, two = like(dh[0], 1.0), like(dh[0], 2.0)
    for j in range(width):
        rest, dn = one - n[j] * n[j], dh[j] * (one - z[j]) * (one - n[j] * n[j])
        through = dh_dot[j] * (one - z[j]) - dh[j] * z_dot[j]
        dn_dot[j] = through * rest - two * dh[j] * (one - z[j]) * n[j] * n_dot[j]
        slope, slope_dot = r[j] * (one - r[j]), r_dot[j] * (one - two * r[j])
        dr_dot[j] = (dn_dot[j] * q[j] + dn * q_dot[j]) * slope + dn * q[j] * slope_dot
        slope, slope_dot = z[j] * (one - z[j]), z_dot[j] * (one - two * z[j])
        apart, apart_dot = h_before[j] - n[j], h_before_dot[j] - n_dot[j]
        dz_dot[j] = (dh_dot[j] * apart + dh[j] * apart_dot) * slope + dh[j] * apart * slope_dot
        dq_dot[j] = dn_dot[j] * r[j] + dn * r_dot[j]
    copy_row(dr_again, dr_dot)
    copy_row(dz_again, dz_dot)
    for j in range(before_dot.size):
        before_dot[j] += dh_dot[j] * z[j] + dh[j] * z_dot[j]


@njit
def _add_products(g, q, t, h, u, n, width, first, last, scratch, piece, part):
    """The step's products: h U's blocks r and z are added to g's rows, its block n to q's."""
    rows, at, gates = last - first, t * n + first, 3 * width
    add_product(g, at * gates, gates, h, at * width, width, u, 0, gates, rows, 2 * width, scratch, piece, part)
    add_product(q, at * width, width, h, at * width, width, u, 2 * width, gates, rows, width, scratch, piece, part)


@kernel(uses=(GEMM,))
def gru_forward(h, g, q, scratch, u, a, n, sizes: RecurrentSizes, piece, lengths_address, lengths_code, part, parts):
    """h_t for t = 1, ..., positions; unchanged beyond a length.

    h INOUT (1 + positions, n, width): h_0 in, the rest out; g INOUT (positions, n, 3 width): x W + b in, the gates out;
    q OUT (positions, n, width); u IN (width, 3 width), a IN (width,); scratch: `piece` elements per thread.
    """
    positions, width = sizes.positions, sizes.width
    first, last = share(n, part, parts)
    gates = 3 * width
    for t in range(positions):
        for k in range(t * n + first, t * n + last):
            copy_row(q[k * width : (k + 1) * width], a)
        _add_products(g, q, t, h, u, n, width, first, last, scratch, piece, part)
        for k in range(t * n + first, t * n + last):
            row, here = g[k * gates : (k + 1) * gates], slice(k * width, (k + 1) * width)
            _apply_gates(row, q[here], width)
            _, z, new = _gates(row, width)
            h_row, h_before = h[(n + k) * width : (n + k + 1) * width], h[here]
            if t < length_at(lengths_address, lengths_code, k - t * n, positions):
                for j in range(width):
                    h_row[j] = new[j] + z[j] * (h_before[j] - new[j])
            else:
                copy_row(h_row, h_before)


@kernel(uses=(GEMM,), optional=("u_dot",))
def gru_tangent(
    h_dot,
    g_dot,
    q_dot,
    scratch,
    h,
    g,
    q,
    u,
    u_dot,
    a_dot,
    n,
    sizes: RecurrentSizes,
    piece,
    lengths_address,
    lengths_code,
    part,
    parts,
):
    """The derivative h'_t of `gru_forward` along g', U' and a'.

    h_dot INOUT (1 + positions, n, width): h'_0 in, the rest out; g_dot INOUT (positions, n, 3 width): (x W + b)' in,
    those of the gates out; q_dot OUT (positions, n, width); h IN (1 + positions, n, width), g IN (positions, n, 3
    width), q IN (positions, n, width); u and u_dot IN (width, 3 width), a_dot IN (width,); scratch: `piece` elements
    per thread.
    """
    positions, width = sizes.positions, sizes.width
    first, last = share(n, part, parts)
    gates = 3 * width
    for t in range(positions):
        for k in range(t * n + first, t * n + last):
            copy_row(q_dot[k * width : (k + 1) * width], a_dot)
        _add_products(g_dot, q_dot, t, h, u_dot, n, width, first, last, scratch, piece, part)
        _add_products(g_dot, q_dot, t, h_dot, u, n, width, first, last, scratch, piece, part)
        for k in range(t * n + first, t * n + last):
            row, here = slice(k * gates, (k + 1) * gates), slice(k * width, (k + 1) * width)
            h_row = h_dot[(n + k) * width : (n + k + 1) * width]
            _cell_tangent(h_row, g_dot[row], h[here], h_dot[here], g[row], q[here], q_dot[here], width)
            if t >= length_at(lengths_address, lengths_code, k - t * n, positions):
                copy_row(h_row, h_dot[here])


@kernel(uses=(GEMM,))
def gru_backward(dg, du, dh, scratch, h, g, q, ut, n, sizes: RecurrentSizes, piece, part, parts):
    """The gradients dg by x W + b and du by h U, and dh_{t-1}, from the last step to the first.

    dg and du OUT (positions, n, 3 width); dh INOUT (positions, n, width): from above in, the total out; h IN (1 +
    positions, n, width), g IN (positions, n, 3 width): the gates; q IN (positions, n, width); ut IN (3 width, width);
    scratch: `piece` elements per thread. Beyond a length dh is 0, and so is all that follows from it.
    """
    positions, width = sizes.positions, sizes.width
    first, last = share(n, part, parts)
    gates = 3 * width
    for t in range(positions - 1, -1, -1):
        for k in range(t * n + first, t * n + last):
            row, here = slice(k * gates, (k + 1) * gates), slice(k * width, (k + 1) * width)
            before = slice((k - n) * width, (k - n + 1) * width) if t > 0 else slice(0, 0)
            _cell_backward(dg[row], du[row], dh[before], dh[here], h[here], g[row], q[here], width)
        if t > 0:
            at, before = (t * n + first) * gates, ((t - 1) * n + first) * width
            add_product(dh, before, width, du, at, gates, ut, 0, width, last - first, width, scratch, piece, part)


@kernel(uses=(GEMM,))
def gru_second(
    dg_dot,
    du_dot,
    dh_dot,
    scratch,
    du,
    dh,
    h,
    h_dot,
    g,
    g_dot,
    q,
    q_dot,
    ut,
    ut_dot,
    n,
    sizes: RecurrentSizes,
    piece,
    part,
    parts,
):
    """The tangent of `gru_backward`.

    dg_dot and du_dot OUT (positions, n, 3 width); dh_dot INOUT (positions, n, width); du IN (positions, n, 3 width); dh
    IN (positions, n, width): the total; h and h_dot IN (1 + positions, n, width); g and g_dot IN (positions, n, 3
    width); q and q_dot IN (positions, n, width); ut and ut_dot IN (3 width, width); scratch: `piece` elements per
    thread.
    """
    positions, width = sizes.positions, sizes.width
    first, last = share(n, part, parts)
    rows, gates = last - first, 3 * width
    for t in range(positions - 1, -1, -1):
        for k in range(t * n + first, t * n + last):
            row, here = slice(k * gates, (k + 1) * gates), slice(k * width, (k + 1) * width)
            before = dh_dot[(k - n) * width : (k - n + 1) * width] if t > 0 else dh_dot[:0]
            cells = (dh[here], dh_dot[here], h[here], h_dot[here], g[row], g_dot[row], q[here], q_dot[here])
            _cell_second(dg_dot[row], du_dot[row], before, *cells, width)
        if t > 0:
            at, before_at = (t * n + first) * gates, ((t - 1) * n + first) * width
            add_product(dh_dot, before_at, width, du_dot, at, gates, ut, 0, width, rows, width, scratch, piece, part)
            add_product(dh_dot, before_at, width, du, at, gates, ut_dot, 0, width, rows, width, scratch, piece, part)


@kernel(uses=(GEMM,))
def gru_recurrent_bias(da, du, n, sizes: RecurrentSizes, a_accumulate, accumulate, part, parts):
    """da = the sum of the last block of du's rows; added when `a_accumulate` or `accumulate`.

    da OUT (width,), du IN (positions * n, 3 width). A product with a row of ones, as dense layers sum their biases'.
    """
    positions, width = sizes.positions, sizes.width
    start, gates = ACCUMULATE if a_accumulate + accumulate > 0 else ZERO, 3 * width
    product(
        (
            *(pointer(da, 0), width, pointer_to_one(da), 0, 0, pointer(du, 2 * width), gates, 1, width, positions * n),
            *(start, pointer(da, 0), pointer(da, 0), 0, part, parts),
        )
    )


@dataclass(frozen=True, repr=False)
class GRU(Recurrent):
    units: int
    output: str = "sequence"
    carry: bool = False
    kind = "gru"
    gates = 3

    def parameters(self, input_shape):
        return (*super().parameters(input_shape), Parameter("recurrent_bias", (self.units,), "zeros"))

    def emit_forward(self, loop):
        build, g, (u, u_dot), h = loop.build, loop.z, loop.weight(), loop.new_state()
        (bias,), q, sizes = loop.more, loop.steps(self.units), (loop.sizes, loop.piece)
        inplace = (h, g, q, loop.scratch())
        build.emit(gru_forward, (), (u, build.parameter(bias)), sizes, inplace=inplace)
        if build.with_tangents:
            inplace = (build.tangent(h), build.tangent(g), build.new_tangent(q), loop.scratch())
            reads = (h, g, q, u, u_dot, build.direction(bias))
            build.emit(gru_tangent, (), reads, sizes, inplace=inplace)
        loop.saved |= {"h": h, "q": q}
        return h

    def emit_backward(self, loop, dh):
        build, g, h, q, (ut, ut_dot) = loop.build, loop.z, loop.saved["h"], loop.saved["q"], loop.transposed_weight()
        (bias,), sizes = loop.more, (loop.sizes, loop.piece)
        dg, du = loop.steps(3 * self.units), loop.steps(3 * self.units)
        build.emit(gru_backward, (dg, du), (h, g, q, ut), sizes, inplace=(dh, loop.scratch()))
        da, a_accumulate = build.parameter_gradient(bias)
        build.emit(gru_recurrent_bias, (da,), (du,), (loop.sizes, a_accumulate))
        if build.with_tangents:
            tangents = {id(buffer): build.tangent(buffer) for buffer in (h, g, q, dh)}
            writes = (build.new_tangent(dg), build.new_tangent(du))
            reads = (du, dh, h, tangents[id(h)], g, tangents[id(g)], q, tangents[id(q)], ut, ut_dot)
            build.emit(gru_second, writes, reads, sizes, inplace=(tangents[id(dh)], loop.scratch()))
            da, a_accumulate = build.parameter_tangent(bias)
            build.emit(gru_recurrent_bias, (da,), (build.tangent(du),), (loop.sizes, a_accumulate))
        return dg, du


def gru(units: int, output: Literal["sequence", "last"] = "sequence", carry: bool = False) -> Layer:
    """A gated recurrent unit over sequences.

    Parameters
    ----------
    units : int
        H. x is (n, T, C); the weight is (C, 3 H), the recurrent weight (H, 3 H), the bias (3 H,), each in blocks for r,
        z and n: PyTorch's weight_ih^T, weight_hh^T, and its bias_ih plus, in blocks r and z, its bias_hh. The recurrent
        bias (H,) is block n of PyTorch's bias_hh.
    output : "sequence" or "last"
        y is h at every position, (n, T, H), or at the last one, (n, H).
    carry : bool
        Whether a call begins with the h that the call before ended with, sample by sample, kept in the layer state:
        backprop through time, truncated at the call (in `fit`, with shuffle=False). Zero a sample's state to begin a
        new sequence.

    A call's `lengths` say where each sample's sequence ends: beyond, x is not looked at, h stays, and the output is 0;
    the last output is that at the length. Each gate's weight is Glorot's, its recurrent one orthogonal, biases 0. In
    mode="decoding" a call brings one position, and h lies in the layer state; step 0 begins a new sequence, unless
    `carry`. Source: Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder", EMNLP.

    >>> gru(64, carry=True)
    gru(64, carry=True)
    """
    return GRU(units, output, carry)
