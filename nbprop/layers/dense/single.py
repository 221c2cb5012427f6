"""Dense layers of one sample at a time, as controllers and simulations ask for them: a layer is one op each way.

y = f(x W + b); backward, with dz = dy f'(z): dW = x^T dz, db = dz, dx = W dz. The same mathematics as dense/layer.py;
there a layer is two ops forward and four back, which for one sample cost more than the arithmetic.
"""

from typing import NamedTuple

from nbprop.compiler.intrinsics import pointer_to_one
from nbprop.compiler.jit import njit
from nbprop.layers.activation import activate, apply_inplace, scale_by_derivative
from nbprop.numerics.activations import ACTIVATIONS, IDENTITY, NEEDS_INPUT, SOFTMAX
from nbprop.numerics.gemm.gemv import outer, row_times
from nbprop.numerics.gemm.microkernel import dots, pointer
from nbprop.numerics.scalars import like
from nbprop.program import frame
from nbprop.program.kernel import kernel

# Weights of more elements are worth the general product, which threads share.
_MOST = 1 << 15
_NARROW = 16  # columns that may be fewer than a vector's lanes


class SingleSizes(NamedTuple):
    """x (n_in,), y (n_out,), the weight (n_in, n_out)."""

    n_in: int
    n_out: int


@kernel
def dense_single(y, x, w, b, n, sizes: SingleSizes, code):
    """y = f(x W + b). y OUT (n_out,), x IN (n_in,), w IN (n_in, n_out), b IN (n_out,) or empty."""
    n_in, n_out = sizes.n_in, sizes.n_out
    if n_out == 1:
        first = b[0] if b.size > 0 else like(y[0], 0.0)
        dots(pointer(y, 0), pointer(x, 0), n_in, pointer(w, 0), 1, n_in, first, False)
    else:
        row_times(pointer(y, 0), pointer(x, 0), pointer(w, 0), n_in, n_out, pointer(b, 0), b.size == 0)
    apply_inplace(y, code)


@njit
def _weight_gradient(dw, x, d, n_in, n_out, adding):
    """dw = x^T d, added to what dw holds when `adding`."""
    if n_out == 1:
        outer(pointer(dw, 0), pointer(d, 0), pointer(x, 0), 1, n_in, adding)
    elif n_out >= _NARROW or not adding:
        outer(pointer(dw, 0), pointer(x, 0), pointer(d, 0), n_in, n_out, adding)
    else:
        for i in range(n_in):
            for j in range(n_out):
                dw[i * n_out + j] += x[i] * d[j]


@kernel
def dense_single_backward(dx, dw, db, d, s, x, w, n, sizes: SingleSizes, code, w_accumulate, b_accumulate, accumulate):
    """dz = dy f'; dW = x^T dz, db = dz, added to where `w_accumulate`, `b_accumulate` or `accumulate` is 1; dx = W dz.

    d INOUT (n_out,): dy, then dz; s IN (n_out,): y; dx OUT (n_in,), dw OUT (n_in, n_out) and db OUT (n_out,), each may
    be empty; x IN (n_in,), w IN (n_in, n_out).
    """
    n_in, n_out = sizes.n_in, sizes.n_out
    scale_by_derivative(d, s, code)
    if dw.size > 0:
        _weight_gradient(dw, x, d, n_in, n_out, w_accumulate + accumulate > 0)
    if db.size > 0:
        outer(pointer(db, 0), pointer_to_one(db), pointer(d, 0), 1, n_out, b_accumulate + accumulate > 0)
    if dx.size > 0:
        dots(pointer(dx, 0), pointer(w, 0), n_out, pointer(d, 0), n_in, n_out, like(d[0], 0.0), False)


def fits_single(build, x, units):
    """Whether a dense layer of `units` on x is to be lowered here."""
    one = build.target == "cpu" and build.batch == 1 and x.size == x.shape[-1]
    return one and not build.with_tangents and not build.watch and x.size * units <= _MOST


def lower_single(build, x, n_out, activation, weight, bias):
    """Emit y = f(x W + b); `weight` and `bias` (or None) are parameters' names in `views`."""
    n_in, code = x.shape[-1], ACTIVATIONS[activation]
    shape = SingleSizes(n_in=n_in, n_out=n_out)
    apart = code in NEEDS_INPUT or code == SOFTMAX
    if apart:
        code = IDENTITY
    w, b = build.parameter(weight), build.parameter(bias) if bias else None
    y = build.value((*x.shape[:-1], n_out))
    build.emit(dense_single, (y.buffer,), (x.buffer, w, b), (shape, code))

    def rule(dy):
        dw, w_accumulate = build.parameter_gradient(weight)
        db, b_accumulate = build.parameter_gradient(bias) if bias else (None, 0)
        dx, sizes = build.buffer(n_in), (shape, code, w_accumulate, b_accumulate)
        reads = (y.buffer, x.buffer, w)
        if x.buffer.space == frame.X:
            # The input's gradient apart: only some programs ask for it.
            build.emit(dense_single_backward, (None, dw, db), reads, sizes, inplace=(dy,))
            dw, db, sizes = None, None, (shape, IDENTITY, 0, 0)
        build.emit(dense_single_backward, (dx, dw, db), reads, sizes, inplace=(dy,))
        build.accumulate_gradient(x, dx)

    build.on_backward(y, rule)
    return activate(build, y, activation, overwrite=True) if apart else y
