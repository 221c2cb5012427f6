"""One window of an image in vector registers, channel by channel: its largest number or its mean, and the ways back.

In words of LLVM's, as tile.py, because few channels are the common case of early layers: a loop that the compiler
vectorises does six channels one by one, with a branch each, and took 15 times as long.
"""

from numba.core import cgutils, types
from numba.extending import intrinsic

from nbprop.numerics.vectors import INT, VECTOR_BYTES, Vectors, call


@intrinsic
def window_max(typingctx, y, taken, x, row, pixel, i_first, i_stop, j_first, j_stop, columns, channels):
    """y = the largest of x[i * row + j * pixel] over i in [i_first, i_stop) and j in [j_first, j_stop).

    taken = i * columns + j of the first of equal ones; a NaN is the largest, and of several the last. y, taken, x are
    addresses, of `channels` numbers each.
    """
    size = types.intp
    signature = types.void(y, taken, x, *(size,) * 8)

    def codegen(context, builder, signature, args):
        call(builder, "window", _emit_window, signature.args[0], args, True)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def window_sum(typingctx, y, x, row, pixel, i_first, i_stop, j_first, j_stop, factor, channels):
    """y = factor times the sum of x[i * row + j * pixel] over the same ranges as in `window_max`."""
    size = types.intp
    signature = types.void(y, x, *(size,) * 6, y.dtype, size)

    def codegen(context, builder, signature, args):
        call(builder, "window", _emit_window, signature.args[0], (args[0], args[0], *args[1:]), False)
        return context.get_dummy_value()

    return signature, codegen


def _in_vectors(builder, pointer_type, channels, body):
    """body(emit, c, mask) for every vector of channels; the last one's mask says which of it exist."""
    emit = Vectors(builder, pointer_type, VECTOR_BYTES)
    whole = builder.and_(channels, INT(-emit.lanes))
    with cgutils.for_range_slice(builder, INT(0), whole, INT(emit.lanes), inc=True) as (c, _):
        body(emit, c, None)
    with builder.if_then(builder.icmp_signed("<", whole, channels)):
        body(emit, whole, emit.mask(builder.sub(channels, whole)))


def _range(builder, first, stop):
    return cgutils.for_range_slice(builder, first, stop, INT(1), inc=True)


def _emit_window(
    builder, pointer_type, largest, y, taken, x, row, pixel, i_first, i_stop, j_first, j_stop, last, channels
):
    """`last` is the number of columns for the largest, the factor for the sum."""

    def place(i, j, c):
        return builder.gep(x, [builder.add(builder.add(builder.mul(i, row), builder.mul(j, pixel)), c)])

    def tap(emit, i, j):
        return emit.splat(builder.sitofp(builder.add(builder.mul(i, last), j), emit.scalar))

    def body(emit, c, mask):
        best, index = (cgutils.alloca_once(builder, emit.type) for _ in range(2))
        if largest:
            builder.store(emit.load(place(i_first, j_first, c), mask), best)
            builder.store(tap(emit, i_first, j_first), index)
        else:
            builder.store(emit.zero(), best)
        with _range(builder, i_first, i_stop) as (i, _), _range(builder, j_first, j_stop) as (j, _):
            value, before = emit.load(place(i, j, c), mask), builder.load(best)
            if largest:
                larger = builder.fcmp_ordered(">", value, before)
                larger = builder.or_(larger, builder.fcmp_unordered("uno", value, value))
                builder.store(builder.select(larger, value, before), best)
                builder.store(builder.select(larger, tap(emit, i, j), builder.load(index)), index)
            else:
                builder.store(builder.fadd(before, value), best)
        result = builder.load(best)
        if largest:
            emit.store(builder.load(index), builder.gep(taken, [c]), mask)
        else:
            result = builder.fmul(result, emit.splat(last))
        emit.store(result, builder.gep(y, [c]), mask)

    _in_vectors(builder, pointer_type, channels, body)


@intrinsic
def spread_taken(typingctx, dx, dy, taken, pixel, j_first, j_stop, first_tap, channels):
    """dx[j * pixel] += dy where taken is first_tap + j, for j in [j_first, j_stop): a row of a window."""
    return _spread_taken(dx, dy, taken, True)


@intrinsic
def place_taken(typingctx, dx, dy, taken, pixel, j_first, j_stop, first_tap, channels):
    """As `spread_taken`, but dx[j * pixel] = dy or 0, for windows that do not overlap.

    Reading what the neighbour has just written through a mask waits until it has arrived: adding takes five times as
    long for few channels.
    """
    return _spread_taken(dx, dy, taken, False)


def _spread_taken(dx, dy, taken, adding):
    signature = types.void(dx, dy, taken, *(types.intp,) * 5)

    def codegen(context, builder, signature, args):
        call(builder, "spread", _emit_spread, signature.args[0], args, True, adding)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def spread(typingctx, dx, dy, pixel, j_first, j_stop, factor, channels):
    """dx[j * pixel] += factor dy for j in [j_first, j_stop): a row of a window."""
    size = types.intp
    signature = types.void(dx, dy, size, size, size, dx.dtype, size)

    def codegen(context, builder, signature, args):
        call(builder, "spread", _emit_spread, signature.args[0], (*args[:2], args[1], *args[2:]), False, True)
        return context.get_dummy_value()

    return signature, codegen


def _emit_spread(builder, pointer_type, chosen, adding, dx, dy, taken, pixel, j_first, j_stop, last, channels):
    """`last` is the first pixel's number where the taken are chosen, else the factor."""

    def body(emit, c, mask):
        given = emit.load(builder.gep(dy, [c]), mask)
        numbers = emit.load(builder.gep(taken, [c]), mask) if chosen else None
        share = given if chosen else builder.fmul(given, emit.splat(last))
        with _range(builder, j_first, j_stop) as (j, _):
            place = builder.gep(dx, [builder.add(builder.mul(j, pixel), c)])
            if chosen:
                tap = emit.splat(builder.sitofp(builder.add(last, j), emit.scalar))
                share = builder.select(builder.fcmp_ordered("==", numbers, tap), given, emit.zero())
            emit.store(builder.fadd(emit.load(place, mask), share) if adding else share, place, mask)

    _in_vectors(builder, pointer_type, channels, body)
