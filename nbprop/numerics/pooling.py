"""Max and mean over windows of an image in vector registers, channel by channel, and their backward passes.

Written with llvmlite, as microkernel.py, because early layers often have few channels: a loop vectorised by the
compiler would process six channels one by one, with a branch each, and took 15 times as long. Each call handles `count`
windows of a row, `step` elements of the image apart: one call per window took three times as long.
"""

from numba.core import cgutils, types

from nbprop.compiler.jit import intrinsic
from nbprop.compiler.simd import HALF_BYTES, INT, VECTOR_BYTES, Vectors, call
from nbprop.numerics.streaming import store_past_caches


@intrinsic
def window_max(typingctx, y, argmax, x, row, pixel, i_first, i_stop, j_first, j_stop, columns, channels, count, step):
    """y = the maximum of x[i * row + j * pixel] over i in [i_first, i_stop) and j in [j_first, j_stop).

    argmax = i * columns + j of the maximum, the first of equal ones; NaN counts as the maximum, the last of several. y
    and argmax OUT, x IN: addresses of (channels,) numbers.
    """
    size = types.intp
    signature = types.void(y, argmax, x, *(size,) * 10)

    def codegen(context, builder, signature, args):
        call(builder, "window", _emit_window, signature.args[0], args, True)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def window_sum(typingctx, y, x, row, pixel, i_first, i_stop, j_first, j_stop, factor, channels, count, step):
    """y = factor times the sum of x[i * row + j * pixel] over the same ranges as in `window_max`."""
    size = types.intp
    signature = types.void(y, x, *(size,) * 6, y.dtype, size, size, size)

    def codegen(context, builder, signature, args):
        call(builder, "window", _emit_window, signature.args[0], (args[0], args[0], *args[1:]), False)
        return context.get_dummy_value()

    return signature, codegen


def _in_vectors(builder, pointer_type, channels, body):
    """body(emit, c, mask) for every vector of channels; the mask of the last selects the channels that exist.

    A rest of up to half a vector uses a half vector: a masked store that crosses a cache line is slow.
    """
    emit, short = (Vectors(builder, pointer_type, width) for width in (VECTOR_BYTES, HALF_BYTES))
    whole = builder.and_(channels, INT(-emit.lanes))
    with cgutils.for_range_slice(builder, INT(0), whole, INT(emit.lanes), inc=True) as (c, _):
        body(emit, c, None)
    left = builder.sub(channels, whole)
    some, wide = (builder.icmp_signed(">", left, INT(count)) for count in (0, short.lanes))
    with builder.if_then(some), builder.if_else(wide) as (a_vector, half_a_vector):
        with a_vector:
            body(emit, whole, emit.mask(left))
        with half_a_vector:
            body(short, whole, short.mask(left))


def _range(builder, first, stop):
    return cgutils.for_range_slice(builder, first, stop, INT(1), inc=True)


# Window sizes that are unrolled, (rows, columns): loops over so few pixels took four times as long.
_UNROLLED = ((2, 2), (3, 3))


def _emit_window(
    builder, pointer_type, largest, y, argmax, x, row, pixel, i_first, i_stop, j_first, j_stop, last, channels, count,
    step
):  # fmt: skip
    """`last` is the number of columns for the maximum, the factor for the sum."""
    first = builder.gep(x, [builder.add(builder.mul(i_first, row), builder.mul(j_first, pixel))])
    tap = builder.add(builder.mul(i_first, last), j_first) if largest else INT(0)
    rows, columns = builder.sub(i_stop, i_first), builder.sub(j_stop, j_first)
    operands = [y, argmax, first, row, pixel, rows, columns, tap, last, channels, count, step]
    done = builder.append_basic_block("done")
    for size in (*_UNROLLED, None):
        if size is None:
            call(builder, "windows", _emit_windows, pointer_type, operands, largest, 0, 0)
            builder.branch(done)
            break
        same = (
            builder.icmp_signed("==", given, INT(number)) for given, number in zip((rows, columns), size, strict=True)
        )
        alike, others = builder.append_basic_block("alike"), builder.append_basic_block("others")
        builder.cbranch(builder.and_(*same), alike, others)
        builder.position_at_end(alike)
        call(builder, "windows", _emit_windows, pointer_type, operands, largest, *size)
        builder.branch(done)
        builder.position_at_end(others)
    builder.position_at_end(done)


def _emit_windows(
    builder, pointer_type, largest, unrolled_rows, unrolled_columns, y, argmax, x, row, pixel, rows, columns, tap, last,
    channels, count, step
):  # fmt: skip
    """Windows of rows x columns pixels: unrolled for a constant size, or with loops if that is 0."""

    def body(emit, c, mask):
        best, index = (cgutils.alloca_once(builder, emit.type) for _ in range(2))

        def take(i, j):
            offset = builder.add(builder.add(builder.mul(i, row), builder.mul(j, pixel)), c)
            value, before = emit.load(builder.gep(window, [offset]), mask), builder.load(best)
            if not largest:
                builder.store(builder.fadd(before, value), best)
                return
            larger = builder.fcmp_ordered(">", value, before)
            larger = builder.or_(larger, builder.fcmp_unordered("uno", value, value))
            number = builder.add(builder.add(builder.mul(i, last), j), tap)
            number = emit.splat(builder.sitofp(number, emit.scalar))
            builder.store(builder.select(larger, value, before), best)
            builder.store(builder.select(larger, number, builder.load(index)), index)

        builder.store(emit.load(builder.gep(window, [c]), mask) if largest else emit.zero(), best)
        builder.store(emit.splat(builder.sitofp(tap, emit.scalar)), index)
        if unrolled_rows:
            for i in range(unrolled_rows):
                for j in range(unrolled_columns):
                    take(INT(i), INT(j))
        else:
            with _range(builder, INT(0), rows) as (i, _), _range(builder, INT(0), columns) as (j, _):
                take(i, j)
        result = builder.load(best)
        if largest:
            emit.store(builder.load(index), builder.gep(argmax, [builder.add(here, c)]), mask)
        else:
            result = builder.fmul(result, emit.splat(last))
        emit.store(result, builder.gep(y, [builder.add(here, c)]), mask)

    with cgutils.for_range(builder, count) as q:
        window, here = builder.gep(x, [builder.mul(q.index, step)]), builder.mul(q.index, channels)
        _in_vectors(builder, pointer_type, channels, body)


@intrinsic
def spread_argmax(typingctx, dx, dy, argmax, pixel, j_first, j_stop, first_tap, channels, count, step):
    """dx[j * pixel] += dy where argmax is first_tap + j, for j in [j_first, j_stop): one row of a window."""
    return _spread_argmax(dx, dy, argmax, "add")


@intrinsic
def place_argmax(typingctx, dx, dy, argmax, pixel, j_first, j_stop, first_tap, channels, count, step):
    """As `spread_argmax`, but dx[j * pixel] = dy or 0, for windows that do not overlap.

    A load of what the neighbouring window has just stored through a mask stalls: for few channels, adding takes five
    times as long.
    """
    return _spread_argmax(dx, dy, argmax, "place")


@intrinsic
def stream_argmax(typingctx, dx, dy, argmax, pixel, j_first, j_stop, first_tap, channels, count, step):
    """As `place_argmax`, but not through the caches: dx, pixel and channels are multiples of a vector."""
    return _spread_argmax(dx, dy, argmax, "stream")


def _spread_argmax(dx, dy, argmax, how):
    signature = types.void(dx, dy, argmax, *(types.intp,) * 7)

    def codegen(context, builder, signature, args):
        call(builder, "spread", _emit_spread, signature.args[0], args, True, how)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def spread(typingctx, dx, dy, pixel, j_first, j_stop, factor, channels, count, step):
    """dx[j * pixel] += factor dy for j in [j_first, j_stop): one row of a window."""
    size = types.intp
    signature = types.void(dx, dy, size, size, size, dx.dtype, size, size, size)

    def codegen(context, builder, signature, args):
        call(builder, "spread", _emit_spread, signature.args[0], (*args[:2], args[1], *args[2:]), False, "add")
        return context.get_dummy_value()

    return signature, codegen


def _emit_spread(
    builder, pointer_type, chosen, how, dx, dy, argmax, pixel, j_first, j_stop, last, channels, count, step
):
    """`last` is the index of the first pixel if `chosen` (a max pool), else the factor."""

    def body(emit, c, mask):
        given = emit.load(builder.gep(dy, [builder.add(here, c)]), mask)
        numbers = emit.load(builder.gep(argmax, [builder.add(here, c)]), mask) if chosen else None
        gradient = given if chosen else builder.fmul(given, emit.splat(last))
        with _range(builder, j_first, j_stop) as (j, _):
            place = builder.gep(window, [builder.add(builder.mul(j, pixel), c)])
            if chosen:
                tap = emit.splat(builder.sitofp(builder.add(last, j), emit.scalar))
                gradient = builder.select(builder.fcmp_ordered("==", numbers, tap), given, emit.zero())
            if how == "stream" and mask is None:
                store_past_caches(emit, gradient, place)
            else:
                emit.store(builder.fadd(emit.load(place, mask), gradient) if how == "add" else gradient, place, mask)

    with cgutils.for_range(builder, count) as q:
        window, here = builder.gep(dx, [builder.mul(q.index, step)]), builder.mul(q.index, channels)
        _in_vectors(builder, pointer_type, channels, body)
