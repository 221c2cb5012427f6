"""Products of one row, for networks on a single sample: y = x W, and the gradient of W, x^T dy.

The general product (gemm/blocked.py) works in tiles of several rows and is called by address; for one row of a small
matrix this costs more than the arithmetic. Here the row stays in registers, up to eight vectors of columns at a time,
enough to hide the latency of a multiply-add. The results are bitwise those of the general product.
"""

from numba.core import types

from nbprop.compiler.jit import intrinsic
from nbprop.compiler.simd import INT, VECTOR_BYTES, Vectors, call, feed, keep_rolled, phis

_VECTORS = (8, 4, 2, 1)  # vectors of columns at a time
_CHAINS = 4  # partial sums of a column: as many as hide the latency of an addition


@intrinsic
def row_times(typingctx, y, x, w, n_in, n_out, start, from_zero):
    """y (n_out,) = start + x (n_in,) W (n_in, n_out): pointers. start (n_out,) is not read when from_zero is true."""
    size = types.intp
    signature = types.void(y, x, w, size, size, start, types.boolean)

    def codegen(context, builder, signature, args):
        call(builder, "row_times", _emit_row_times, signature.args[0], args)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def outer(typingctx, g, x, dy, n_in, n_out, adding):
    """G (n_in, n_out) = x (n_in,)^T dy (n_out,), added to what G holds when `adding`: pointers.

    Accumulating into rows narrower than a vector is slow: the stores of one row overlap the loads of the next.
    """
    size = types.intp
    signature = types.void(g, x, dy, size, size, types.boolean)

    def codegen(context, builder, signature, args):
        call(builder, "outer", _emit_outer, signature.args[0], args)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def sums_of_columns(typingctx, out, d, m, n, row, adding):
    """out (n,) = the sum of the rows of D (m, n), `row` elements apart, added to what out holds when `adding`.

    Rows i, i + 4, i + 8, ... are summed for i = 0 to 3, then these four sums; the rows beyond a multiple of four are
    added to the first. In a product with a row of ones, each addition would wait for the one before.
    """
    size = types.intp
    signature = types.void(out, d, size, size, size, types.boolean)

    def codegen(context, builder, signature, args):
        call(builder, "column_sums", _emit_sums, signature.args[0], args)
        return context.get_dummy_value()

    return signature, codegen


def _by_columns(builder, pointer_type, n_out, emit, counts=_VECTORS):
    """Call emit(first column, vectors, columns left) until n_out are covered; the last vector may be partial."""
    lanes = Vectors(builder, pointer_type, VECTOR_BYTES).lanes
    done = INT(0)
    for count in counts:
        step = INT(count * lanes)
        # Use the largest group that fits; the last group is one vector, whole or partial.
        least = step if count > 1 else INT(1)
        entry = builder.block
        check, body, after = (builder.append_basic_block(f"{name}{count}") for name in ("check", "body", "after"))
        builder.branch(check)
        builder.position_at_end(check)
        j = builder.phi(INT)
        j.add_incoming(done, entry)
        left = builder.sub(n_out, j)
        builder.cbranch(builder.icmp_signed(">=", left, least), body, after)
        builder.position_at_end(body)
        emit(j, count, left)
        j.add_incoming(builder.add(j, step), builder.block)
        keep_rolled(builder.module, builder.branch(check))
        builder.position_at_end(after)
        done = j


def _mask(builder, vectors, count, left):
    """The mask of the last of `count` vectors: only a single vector may be partial."""
    if count > 1:
        return None
    lanes = INT(vectors.lanes)
    return vectors.mask(builder.select(builder.icmp_signed("<", left, lanes), left, lanes))


def _places(builder, vectors, base, count):
    return [builder.gep(base, [INT(v * vectors.lanes)]) for v in range(count)]


def _over_rows(builder, n_in, pointers, strides, totals, body):
    """A loop over n_in rows: body(pointers of the row, totals so far) returns the new totals; returns the last."""
    entry = builder.block
    loop, done = (builder.append_basic_block(name) for name in ("rows", "done"))
    builder.cbranch(builder.icmp_signed(">", n_in, INT(0)), loop, done)
    builder.position_at_end(loop)
    left, *rows = (builder.phi(kind) for kind in (INT, *(pointer.type for pointer in pointers)))
    sums = [builder.phi(total.type) for total in totals]
    new = body(rows, sums)
    fewer = builder.sub(left, INT(1))
    after = [builder.gep(row, [stride]) for row, stride in zip(rows, strides, strict=True)]
    for phi, first, following in zip((left, *rows), (n_in, *pointers), (fewer, *after), strict=True):
        phi.add_incoming(first, entry)
        phi.add_incoming(following, loop)
    feed([sums], [totals], entry)
    feed([sums], [new], loop)
    keep_rolled(builder.module, builder.cbranch(builder.icmp_signed(">", fewer, INT(0)), loop, done))
    builder.position_at_end(done)
    results = [builder.phi(total.type) for total in totals]
    feed([results], [totals], entry)
    feed([results], [new], loop)
    return results


def _emit_row_times(builder, pointer_type, y, x, w, n_in, n_out, start, from_zero):
    def group(j, count, left):
        first = [builder.gep(base, [j]) for base in (y, w, start)]
        operands = [first[0], x, first[1], n_in, n_out, first[2], from_zero, left]
        call(builder, "row_group", _emit_row_group, pointer_type, operands, count)

    _by_columns(builder, pointer_type, n_out, group)


def _emit_row_group(builder, pointer_type, count, y, x, w, n_in, n_out, start, from_zero, left):
    vectors = Vectors(builder, pointer_type, VECTOR_BYTES)
    mask = _mask(builder, vectors, count, left)
    entry = builder.block
    load, begin = (builder.append_basic_block(name) for name in ("load", "begin"))
    builder.cbranch(from_zero, begin, load)
    builder.position_at_end(load)
    loaded = [vectors.load(place, mask) for place in _places(builder, vectors, start, count)]
    builder.branch(begin)
    builder.position_at_end(begin)
    (first,) = phis(builder, vectors.type, 1, count)
    feed([first], [[vectors.zero()] * count], entry)
    feed([first], [loaded], load)

    def add_row(rows, sums):
        factor = vectors.splat(builder.load(rows[0]))
        loaded = [vectors.load(place, mask) for place in _places(builder, vectors, rows[1], count)]
        return [vectors.fma(factor, value, total) for value, total in zip(loaded, sums, strict=True)]

    results = _over_rows(builder, n_in, [x, w], [INT(1), n_out], first, add_row)
    for value, place in zip(results, _places(builder, vectors, y, count), strict=True):
        vectors.store(value, place, mask)


def _emit_outer(builder, pointer_type, g, x, dy, n_in, n_out, adding):
    def group(j, count, left):
        operands = [builder.gep(g, [j]), x, builder.gep(dy, [j]), n_in, n_out, left]
        with builder.if_else(adding) as (accumulate, overwrite):
            for branch, adds in ((accumulate, True), (overwrite, False)):
                with branch:
                    call(builder, "outer_group", _emit_outer_group, pointer_type, operands, count, adds)

    _by_columns(builder, pointer_type, n_out, group)


def _emit_outer_group(builder, pointer_type, count, adds, g, x, dy, n_in, n_out, left):
    vectors = Vectors(builder, pointer_type, VECTOR_BYTES)
    mask = _mask(builder, vectors, count, left)
    factors = [vectors.load(place, mask) for place in _places(builder, vectors, dy, count)]

    def write_row(rows, _):
        factor = vectors.splat(builder.load(rows[0]))
        for place, value in zip(_places(builder, vectors, rows[1], count), factors, strict=True):
            before = vectors.load(place, mask) if adds else vectors.zero()
            vectors.store(vectors.fma(factor, value, before), place, mask)
        return []

    _over_rows(builder, n_in, [x, g], [INT(1), n_out], [], write_row)


def _emit_sums(builder, pointer_type, out, d, m, n, row, adding):
    def group(j, count, left):
        operands = [builder.gep(out, [j]), builder.gep(d, [j]), m, row, adding, left]
        call(builder, "sums_group", _emit_sums_group, pointer_type, operands, count)

    _by_columns(builder, pointer_type, n, group, (2, 1))


def _emit_sums_group(builder, pointer_type, count, out, d, m, row, adding, left):
    vectors = Vectors(builder, pointer_type, VECTOR_BYTES)
    mask = _mask(builder, vectors, count, left)

    def add_rows(rows, sums):
        loaded = [
            vectors.load(place, mask)
            for i in range(len(sums) // count)
            for place in _places(builder, vectors, builder.gep(rows[0], [builder.mul(row, INT(i))]), count)
        ]
        return [builder.fadd(total, value) for total, value in zip(sums, loaded, strict=True)]

    whole, chains = builder.lshr(m, INT(2)), _CHAINS * count
    sums = _over_rows(builder, whole, [d], [builder.shl(row, INT(2))], [vectors.zero()] * chains, add_rows)
    rest = builder.gep(d, [builder.mul(builder.shl(whole, INT(2)), row)])
    sums[:count] = _over_rows(builder, builder.and_(m, INT(3)), [rest], [row], sums[:count], add_rows)
    while len(sums) > count:
        sums = [builder.fadd(a, b) for a, b in zip(sums[: len(sums) // 2], sums[len(sums) // 2 :], strict=True)]
    for total, place in zip(sums, _places(builder, vectors, out, count), strict=True):
        before = builder.select(adding, vectors.load(place, mask), vectors.zero())
        vectors.store(builder.fadd(before, total), place, mask)
