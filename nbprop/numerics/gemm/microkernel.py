"""The register tile: a small block of C held in vector registers while k runs.

`block` computes a matrix product strip by strip (a few rows) and tile by tile (two vectors of columns):

    C[i, j] = start[i, j] + sum over l of A[i, l] B[l, j]

with one fused multiply-add for each term, in the order l = 0, 1, ..., k - 1, starting from the start value.  That
order is guaranteed: the bits of C[i, j] depend only on row i of A, column j of B and the start value
(gemm/blocked.py).

Rows of A may consist of several segments of k elements each, with a jump from the end of one to the next: so a window
of an image, whose lines are a line of the image apart, is a row (convolution.py).  The rows of B have no jumps.

The other functions that need LLVM directly are here too: dot products for a single column of output, copies,
transposes, and `pointer`, which turns an array and an offset into the address that all of them take.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import NumbaTypeError

from nbprop.compiler.jit import intrinsic
from nbprop.compiler.simd import (
    HALF_BYTES,
    INT,
    VECTOR_BYTES,
    Vectors,
    call,
    element,
    feed,
    keep_rolled,
    lane_numbers,
    phis,
)

# Rows of a tile.  Twelve rows of two vectors fill 24 of 32 registers, six fill 12 of AVX2's 16.  The other heights
# cover the remaining rows.
HEIGHTS = (6, 5, 4, 3, 2, 1) if VECTOR_BYTES == 32 else (12, 8, 5, 4, 3, 2, 1)
# The height of the next tile by the number of remaining rows, up to the last entry: ten as 5 + 5, thirteen as 8 + 5.
# Fewer than four chains of multiply-adds, in tiles one vector wide, would not hide their latency.
_NEXT_HEIGHT = range(7) if VECTOR_BYTES == 32 else (0, 1, 2, 3, 4, 5, 3, 4, 8, 5, 5, 8, 12, 8, 5, 12, 8, 12)

# Only tiles at least this high prefetch, and they prefetch tiles of C only for k at least this large: for others the
# prefetches are not hidden (a row times 32 x 32: 8 %), or come too late.
_FETCHING_ROWS, _FETCHING_DEPTH = 4, 64

# A dot product always has 64 bytes of partial sums, so that its bits are the same on every processor.
_DOT_BYTES = 64
_DOT_ROWS = 8 if VECTOR_BYTES == 64 else 4


@intrinsic
def pointer(typingctx, base, offset):
    """The address of element `offset` of an array (counted in its flat data) or of another pointer.

    An address is one machine word, without rank, layout or writability, so kernels that take addresses are compiled
    once per dtype.  The array must stay alive and in place while the address is used.

    The address of an empty array is null, whatever the offset, so that an operand which the caller did not give is
    never mistaken for memory at the offset.  `is_null` tests for it; a product with it is a product with zeros.
    """
    if not isinstance(base, types.Array | types.CPointer):
        raise NumbaTypeError(f"pointer() takes an array or a pointer, got {base}")
    result = types.CPointer(base.dtype)

    def codegen(context, builder, signature, args):
        address, index = args
        if not isinstance(signature.args[0], types.Array):
            return builder.gep(address, [index])
        array = context.make_array(signature.args[0])(context, builder, address)
        empty = builder.icmp_signed("==", array.nitems, INT(0))
        return builder.select(empty, array.data.type(None), builder.gep(array.data, [index]))

    return result(base, types.intp), codegen


@intrinsic
def is_null(typingctx, base):
    """Whether a pointer is that of an empty array."""

    def codegen(context, builder, signature, args):
        return builder.icmp_unsigned("==", args[0], args[0].type(None))

    return types.boolean(base), codegen


@intrinsic
def itemsize(typingctx, base):
    """Bytes of the element a pointer points at: a constant when the code is compiled."""
    size = element(base)[2]

    def codegen(context, builder, signature, args):
        return INT(size)

    return types.intp(base), codegen


@intrinsic
def block(
    typingctx, c, ldc, a, a_row, a_col, a_jump, b, b_panel, ldb, m, n, k, segments, start, start_row, from_zero, ahead,
    ahead_row, pace, once
):  # fmt: skip
    """C (m, n) = start + A B, strips of a few rows one after the other; addresses and strides as in blocked.py.

    The start value is 0 when `from_zero`, else start[i * start_row + j]: (c, ldc) accumulates, (bias, 0) begins with a
    bias.  B is cut into panels of two vectors of columns, `b_panel` elements apart: two vectors if it is not packed.
    A has k columns, `segments` times; `a_jump` is added to the place between two segments.

    Meanwhile, each step over k prefetches a cache line of what is needed next into the L2 cache: from ahead +
    i * ahead_row on when row i of C begins a strip, `pace` elements further with each step; `once`: in the first tile
    of a strip only.  This is a hint, and the address need not be valid.
    """
    size = types.intp
    signature = types.void(
        *(c, size, a, size, size, size, b, size, size, size, size, size, size, start, size, types.boolean),
        *(ahead, size, size, types.boolean),
    )

    def codegen(context, builder, signature, args):
        call(builder, "block", _emit_block, signature.args[0], args)
        return context.get_dummy_value()

    return signature, codegen


# What all tiles of a block have in common, passed through memory, so that the six changing arguments fit the argument
# registers.  Besides, LLVM cannot see that the group offsets are multiples of a_row, and keeps one offset per group of
# three rows; if it could, it would compute twelve addresses in one chain of twelve additions, longer than the
# arithmetic of a narrow tile.  Neighbours here are not neighbours among the arguments of `block`: LLVM would copy two
# at once, and a load wider than the stores it reads stalls the processor for some fifteen cycles.
_SHARED = (
    *("ahead", "b_panel", "ldc", "ldb", "a_row", "k", "a_col", "start_row", "group1", "from_zero", "group2"),
    *("segments", "group3", "a_jump", "pace", "pace_after"),
)


def _shared_place(builder, shared, name):
    return builder.gep(shared, [INT(_SHARED.index(name))])


def _emit_block(
    builder, pointer_type, c, ldc, a, a_row, a_col, a_jump, b, b_panel, ldb, m, n, k, segments, start, start_row,
    from_zero, ahead, ahead_row, pace, once
):  # fmt: skip
    shared = builder.alloca(INT, len(_SHARED))
    group1, group2, group3 = (builder.mul(a_row, INT(i)) for i in (3, 6, 9))
    zero = builder.zext(from_zero, INT)
    pace = builder.mul(pace, INT(element(pointer_type)[2]))
    values = (
        *(INT(0), b_panel, ldc, ldb, a_row, k, a_col, start_row, group1, zero, group2, segments, group3, a_jump, pace),
        builder.select(once, INT(0), pace),
    )
    for index, value in enumerate(values):
        builder.store(value, builder.gep(shared, [INT(index)]))

    def strip(i, rows):
        if rows >= _FETCHING_ROWS:
            place = builder.ptrtoint(builder.gep(ahead, [builder.mul(i, ahead_row)]), INT)
            for name, value in (("ahead", place), ("pace", pace)):
                builder.store(value, _shared_place(builder, shared, name))
        first = [builder.gep(base, [builder.mul(i, row)]) for base, row in ((c, ldc), (a, a_row), (start, start_row))]
        operands = [first[0], first[1], b, first[2], n, shared]
        call(builder, "strip", _emit_strip, pointer_type, operands, rows)

    heights = cgutils.global_constant(
        builder,
        "nbprop_heights",
        ir.Constant(ir.ArrayType(INT, len(_NEXT_HEIGHT)), [INT(rows) for rows in _NEXT_HEIGHT]),
    )
    before, loop, done = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("done")
    builder.cbranch(builder.icmp_signed(">", m, INT(0)), loop, done)
    builder.position_at_end(loop)
    i = builder.phi(INT)
    left, most = builder.sub(m, i), INT(len(_NEXT_HEIGHT) - 1)
    index = builder.select(builder.icmp_signed("<", left, most), left, most)
    rows = builder.load(builder.gep(heights, [INT(0), index]))
    following = builder.append_basic_block("following")
    choice = builder.switch(rows, following)
    for height in HEIGHTS:
        choice.add_case(INT(height), builder.append_basic_block(f"rows{height}"))
        builder.position_at_end(choice.cases[-1][1])
        strip(i, height)
        builder.branch(following)
    builder.position_at_end(following)
    further = builder.add(i, rows)
    i.add_incoming(INT(0), before)
    i.add_incoming(further, following)
    builder.cbranch(builder.icmp_signed("<", further, m), loop, done)
    builder.position_at_end(done)


def _emit_strip(builder, pointer_type, rows, c, a, b, start, columns, shared):
    """A few rows and all columns of a block, in tiles two vectors wide."""
    lanes = VECTOR_BYTES // element(pointer_type)[2]
    half_lanes = HALF_BYTES // element(pointer_type)[2]
    k, ldc, b_panel, pace_after = (
        builder.load(_shared_place(builder, shared, name)) for name in ("k", "ldc", "b_panel", "pace_after")
    )
    if rows >= _FETCHING_ROWS:
        _fetch_tile(builder, pointer_type, builder.gep(c, [builder.mul(INT(rows), ldc)]), ldc, k, rows, 2)

    def tile(j, vectors, width=VECTOR_BYTES, full=False, within=None):
        """Columns from j on, which begin a panel or are `within` elements from its begin."""
        panel = builder.gep(b, [builder.mul(builder.udiv(j, INT(2 * lanes)), b_panel)])
        if within is not None:
            panel = builder.gep(panel, [within])
        operands = [builder.gep(c, [j]), a, panel, builder.gep(start, [j]), builder.sub(columns, j), shared]
        call(builder, "tile", _emit_tile, pointer_type, operands, rows, vectors, width, full)
        if rows >= _FETCHING_ROWS:
            builder.store(pace_after, _shared_place(builder, shared, "pace"))

    done = INT(0)
    if rows == 1:
        # One accumulator a vector cannot hide the latency of the multiply-add: take eight vectors.
        done = builder.and_(columns, INT(-8 * lanes))
        with cgutils.for_range_slice(builder, INT(0), done, INT(8 * lanes), inc=True) as (j, _):
            tile(j, 8, full=True)
    if VECTOR_BYTES == 16:
        # NEON and SSE have no masked loads and stores: a mask is a branch a lane, inside the loop over k.
        pairs, whole = builder.and_(columns, INT(-2 * lanes)), builder.and_(columns, INT(-lanes))
        with cgutils.for_range_slice(builder, done, pairs, INT(2 * lanes), inc=True) as (j, _):
            tile(j, 2, full=True)
        with builder.if_then(builder.icmp_signed("<", pairs, whole)):
            tile(pairs, 1, full=True)
        with cgutils.for_range_slice(builder, whole, columns, INT(1), inc=True) as (j, _):
            tile(j, 1, VECTOR_BYTES // lanes, full=True, within=builder.sub(j, pairs))
        return
    with cgutils.for_range_slice(builder, done, builder.sub(columns, INT(lanes)), INT(2 * lanes), inc=True) as (j, _):
        if VECTOR_BYTES == 64:
            tile(j, 2)
        else:
            # Without AVX-512, a masked store costs many times an ordinary one, even if it stores all lanes.
            fits = builder.icmp_signed(">=", builder.sub(columns, j), INT(2 * lanes))
            with builder.if_else(fits) as (whole, cut):
                with whole:
                    tile(j, 2, full=True)
                with cut:
                    tile(j, 2)
    done = builder.and_(builder.add(columns, INT(lanes - 1)), INT(-2 * lanes))
    left = builder.sub(columns, done)
    some, wide = (builder.icmp_signed(">", left, INT(count)) for count in (0, half_lanes))
    with builder.if_then(some), builder.if_else(wide) as (a_vector, half_a_vector):
        with a_vector:
            tile(done, 1)
        with half_a_vector:
            tile(done, 1, HALF_BYTES)


def _fetch_tile(builder, pointer_type, c, ldc, k, rows, vectors):
    """Prefetch the next tile of C: the one to the right, or the first one of the next strip.

    A tile begins by loading C, which takes 130 ns if it comes from beyond the L2 cache.
    """
    emit = Vectors(builder, pointer_type, VECTOR_BYTES)
    with builder.if_then(builder.icmp_signed(">=", k, INT(_FETCHING_DEPTH))):
        for i in range(rows):
            line = builder.gep(c, [builder.mul(ldc, INT(i))])
            for v in range(vectors):
                emit.prefetch(builder.gep(line, [INT(v * emit.lanes)]), to_write=True)


def _emit_tile(builder, pointer_type, rows, vectors, width, full, c, a, b, start, columns, shared):
    """One tile of rows x vectors.

    `columns` counts its columns and those to the right: the last vector may be partial, unless the tile is `full`.
    """
    emit = Vectors(builder, pointer_type, width)
    lanes = emit.lanes
    (
        ahead,
        b_panel,
        ldc,
        ldb,
        a_row,
        k,
        a_col,
        start_row,
        group1,
        from_zero,
        group2,
        segments,
        group3,
        a_jump,
        pace,
        _,
    ) = (builder.load(builder.gep(shared, [INT(index)])) for index in range(len(_SHARED)))
    present = builder.sub(columns, INT((vectors - 1) * lanes))
    present = builder.select(builder.icmp_signed("<", present, INT(lanes)), present, INT(lanes))
    masks = [None] * (vectors - 1) + [None if full else emit.mask(present)]

    def addresses(base, stride):
        """Element addresses [row][vector] of a matrix whose rows are `stride` apart."""
        lines = [builder.gep(base, [builder.mul(stride, INT(i))]) for i in range(rows)]
        return [[builder.gep(line, [INT(v * lanes)]) for v in range(vectors)] for line in lines]

    fetches = rows >= _FETCHING_ROWS
    if fetches:
        _fetch_tile(builder, pointer_type, builder.gep(c, [INT(vectors * lanes)]), ldc, k, rows, vectors)
    entry = builder.block
    names = ("load", "begin", "segment", "loop", "jump", "done")
    load_start, begin, segment, loop, jump, done = (builder.append_basic_block(name) for name in names)
    builder.cbranch(builder.icmp_signed("!=", from_zero, INT(0)), begin, load_start)

    builder.position_at_end(load_start)
    loaded = [[emit.load(p, mask) for p, mask in zip(row, masks, strict=True)] for row in addresses(start, start_row)]
    builder.branch(begin)

    builder.position_at_end(begin)
    first = phis(builder, emit.type, rows, vectors)
    feed(first, loaded, load_start)
    feed(first, [[emit.zero()] * vectors] * rows, entry)
    # x86 addressing adds one or two strides to a pointer at no cost, so one pointer serves three rows.
    group_starts = [a, *(builder.gep(a, [group]) for group in (group1, group2, group3))][: -(-rows // 3)]
    strides = [builder.mul(a_row, INT(i)) for i in range(3)]
    panels = [builder.gep(b, [builder.mul(b_panel, INT(v))]) for v in range((vectors + 1) // 2)]
    builder.cbranch(builder.icmp_signed(">", k, INT(0)), segment, done)

    builder.position_at_end(segment)
    segments_left, segment_b = builder.phi(INT), builder.phi(INT)
    segment_ahead = [builder.phi(INT)] if fetches else []
    segment_rows = [builder.phi(a.type) for _ in group_starts]
    before = phis(builder, emit.type, rows, vectors)
    builder.branch(loop)

    builder.position_at_end(loop)
    left, b_offset = builder.phi(INT), builder.phi(INT)
    places_ahead = [builder.phi(INT) for _ in segment_ahead]
    group_rows = [builder.phi(a.type) for _ in group_starts]
    totals = phis(builder, emit.type, rows, vectors)
    b_row = [
        emit.load(builder.gep(panels[v // 2], [builder.add(b_offset, INT(v % 2 * lanes))]), mask)
        for v, mask in enumerate(masks)
    ]
    sums = []
    for i in range(rows):
        value = emit.splat(builder.load(builder.gep(group_rows[i // 3], [strides[i % 3]])))
        sums.append([emit.fma(value, b_row[v], totals[i][v]) for v in range(vectors)])
    for place in places_ahead:
        emit.prefetch(builder.inttoptr(place, emit.scalar.as_pointer()), to_write=False)
    fewer, following_b = builder.sub(left, INT(1)), builder.add(b_offset, ldb)
    further_ahead = [builder.add(place, pace) for place in places_ahead]
    following_rows = [builder.gep(row, [a_col]) for row in group_rows]
    for phi, initial, following in zip(
        (left, b_offset, *places_ahead, *group_rows),
        (k, segment_b, *segment_ahead, *segment_rows),
        (fewer, following_b, *further_ahead, *following_rows),
        strict=True,
    ):
        phi.add_incoming(initial, segment)
        phi.add_incoming(following, loop)
    feed(totals, before, segment)
    feed(totals, sums, loop)
    keep_rolled(builder.module, builder.cbranch(builder.icmp_signed(">", fewer, INT(0)), loop, jump))

    builder.position_at_end(jump)
    fewer = builder.sub(segments_left, INT(1))
    jumped = [builder.gep(row, [a_jump]) for row in following_rows]
    for phi, initial, following in zip(
        (segments_left, segment_b, *segment_ahead, *segment_rows),
        (segments, INT(0), *([ahead] if fetches else []), *group_starts),
        (fewer, following_b, *further_ahead, *jumped),
        strict=True,
    ):
        phi.add_incoming(initial, begin)
        phi.add_incoming(following, jump)
    feed(before, first, begin)
    feed(before, sums, jump)
    for place in further_ahead:
        builder.store(place, _shared_place(builder, shared, "ahead"))
    keep_rolled(builder.module, builder.cbranch(builder.icmp_signed(">", fewer, INT(0)), segment, done))

    builder.position_at_end(done)
    results = phis(builder, emit.type, rows, vectors)
    feed(results, first, begin)
    feed(results, sums, jump)
    for values, places in zip(results, addresses(c, ldc), strict=True):
        for value, place, mask in zip(values, places, masks, strict=True):
            emit.store(value, place, mask)


@intrinsic
def dots(typingctx, c, a, a_row, b, m, k, initial, accumulate):
    """m dot products: c[i] = initial + sum over l of A[i, l] b[l], or c[i] + ... when `accumulate`.

    c is contiguous, and so are the rows of A and b.  `initial` is a scalar.  Sixteen float32 or eight float64 partial
    sums run over l (lane l mod 16 or 8), whatever the vector width of the processor, and `_add_lanes` adds them in a
    fixed tree: the bits depend on row i of A, b and the start value alone.
    """
    size = types.intp
    signature = types.void(c, a, size, b, size, size, c.dtype, types.boolean)

    def codegen(context, builder, signature, args):
        call(builder, "dots", _emit_dots, signature.args[0], args)
        return context.get_dummy_value()

    return signature, codegen


def _emit_dots(builder, pointer_type, c, a, a_row, b, m, k, initial, accumulate):
    done = INT(0)
    for rows in (_DOT_ROWS, 1):
        stop = builder.and_(m, INT(-rows))
        with cgutils.for_range_slice(builder, done, stop, INT(rows), inc=True) as (i, _):
            operands = [builder.gep(c, [i]), builder.gep(a, [builder.mul(a_row, i)]), a_row, b, k, initial, accumulate]
            call(builder, "dot_rows", _emit_dot_rows, pointer_type, operands, rows)
        done = stop


def _emit_dot_rows(builder, pointer_type, rows, c, a, a_row, b, k, initial, accumulate):
    emit = Vectors(builder, pointer_type, _DOT_BYTES)
    lanes = INT(emit.lanes)
    lines = [builder.gep(a, [builder.mul(a_row, INT(i))]) for i in range(rows)]

    def advance(totals, place, mask=None):
        factor = emit.load(builder.gep(b, [place]), mask)
        loaded = [emit.load(builder.gep(line, [place]), mask) for line in lines]
        return [emit.fma(value, factor, total) for value, total in zip(loaded, totals, strict=True)]

    entry = builder.block
    loop, rest, tail, done = (builder.append_basic_block(name) for name in ("loop", "rest", "tail", "done"))
    whole = builder.and_(k, INT(-emit.lanes))
    builder.cbranch(builder.icmp_signed(">", whole, INT(0)), loop, rest)

    builder.position_at_end(loop)
    place = builder.phi(INT)
    (totals,) = phis(builder, emit.type, 1, rows)
    sums = advance(totals, place)
    following = builder.add(place, lanes)
    place.add_incoming(INT(0), entry)
    place.add_incoming(following, loop)
    feed([totals], [[emit.zero()] * rows], entry)
    feed([totals], [sums], loop)
    keep_rolled(builder.module, builder.cbranch(builder.icmp_signed("<", following, whole), loop, rest))

    builder.position_at_end(rest)
    (before,) = phis(builder, emit.type, 1, rows)
    feed([before], [[emit.zero()] * rows], entry)
    feed([before], [sums], loop)
    builder.cbranch(builder.icmp_signed("<", whole, k), tail, done)

    builder.position_at_end(tail)
    last = advance(before, whole, emit.mask(builder.sub(k, whole)))
    builder.branch(done)

    builder.position_at_end(done)
    (results,) = phis(builder, emit.type, 1, rows)
    feed([results], [before], rest)
    feed([results], [last], tail)
    total = _add_lanes(emit, results)
    where = builder.bitcast(c, total.type.as_pointer())
    start, add_to_c = emit.splat(initial, rows), builder.append_basic_block("accumulate")
    write = builder.append_basic_block("write")
    builder.cbranch(accumulate, add_to_c, write)
    builder.position_at_end(add_to_c)
    present = builder.load(where)
    present.align = emit.bytes
    builder.branch(write)
    builder.position_at_end(write)
    begin = builder.phi(total.type)
    begin.add_incoming(start, done)
    begin.add_incoming(present, add_to_c)
    builder.store(builder.fadd(begin, total), where).align = emit.bytes


def _add_lanes(emit, vectors):
    """The sums over the lanes of each of `vectors`, together in one short vector.

    Pairs of vectors are folded into one until one is left.  A fold adds the lower and the upper half of every segment
    (at first a segment is a vector) and halves the segments.  Where the halves go is chosen so that each shuffle is one
    x86 instruction: across the vector while segments are longer than 128 bits, inside each 128 bits afterwards.
    """
    builder, lanes = emit.builder, emit.lanes
    quarter = 16 // emit.bytes
    count, segment = len(vectors), lanes
    folded = [(vector, [i] * lanes) for i, vector in enumerate(vectors)]  # with the row that owns each lane
    while segment > 1:
        block, half = lanes if segment > quarter else quarter, segment // 2
        low = [
            source + start + offset + lane
            for start in range(0, lanes, block)
            for source in (0, lanes)
            for offset in range(0, block, segment)
            for lane in range(half)
        ]
        low_lanes, high_lanes = lane_numbers(low), lane_numbers([lane + half for lane in low])
        pairs = list(zip(folded[::2], folded[1::2], strict=True)) if len(folded) > 1 else [(folded[0], folded[0])]
        folded = [
            (
                builder.fadd(builder.shuffle_vector(x, y, low_lanes), builder.shuffle_vector(x, y, high_lanes)),
                [(x_rows + y_rows)[lane] for lane in low],
            )
            for (x, x_rows), (y, y_rows) in pairs
        ]
        segment = half
    ((total, rows),) = folded
    order = lane_numbers([rows.index(i) for i in range(count)])
    return builder.shuffle_vector(total, ir.Constant(emit.type, ir.Undefined), order)


@intrinsic
def copy(typingctx, out, ld_out, source, ld_source, rows, columns):
    """out[i, j] = source[i, j]; ld_out and ld_source elements lie between the rows of the two."""
    return _move(out, source, False)


@intrinsic
def add(typingctx, out, ld_out, source, ld_source, rows, columns):
    """out[i, j] += source[i, j], a row after the other: rows of out may overlap."""
    return _move(out, source, True)


def _move(out, source, adding):
    size = types.intp
    signature = types.void(out, size, source, size, size, size)

    def codegen(context, builder, signature, args):
        call(builder, "move", _emit_move, signature.args[0], args, adding)
        return context.get_dummy_value()

    return signature, codegen


def _emit_move(builder, pointer_type, adding, out, ld_out, source, ld_source, rows, columns):
    emit = Vectors(builder, pointer_type, VECTOR_BYTES)
    lanes = INT(emit.lanes)
    whole = builder.and_(columns, INT(-emit.lanes))
    cut = builder.icmp_signed("<", whole, columns)
    mask = emit.mask(builder.sub(columns, whole))

    def move(to, come_from, mask=None):
        value = emit.load(come_from, mask)
        emit.store(builder.fadd(emit.load(to, mask), value) if adding else value, to, mask)

    with cgutils.for_range(builder, rows) as row:
        to = builder.gep(out, [builder.mul(ld_out, row.index)])
        come_from = builder.gep(source, [builder.mul(ld_source, row.index)])
        with cgutils.for_range_slice(builder, INT(0), whole, lanes, inc=True) as (j, _):
            move(builder.gep(to, [j]), builder.gep(come_from, [j]))
        with builder.if_then(cut):
            move(builder.gep(to, [whole]), builder.gep(come_from, [whole]), mask)


@intrinsic
def transpose_square(typingctx, out, ld_out, source, ld_source, rows, columns):
    """out[j, i] = source[i, j] for i < rows and j < columns, both between 1 and the lanes of a vector."""
    size = types.intp
    signature = types.void(out, size, source, size, size, size)

    def codegen(context, builder, signature, args):
        call(builder, "transpose", _emit_transpose, signature.args[0], args)
        return context.get_dummy_value()

    return signature, codegen


def _emit_transpose(builder, pointer_type, out, ld_out, source, ld_source, rows, columns):
    """Load the rows, exchange ever larger blocks between pairs of vectors, store the columns.

    Rows beyond the last are read as copies of the last one.  Columns beyond the last are written to its address, before
    the last itself: so only masks along the vectors are needed, and no branches.
    """
    emit = Vectors(builder, pointer_type, VECTOR_BYTES)
    lanes = emit.lanes

    def line(base, stride, index, count):
        last = builder.sub(count, INT(1))
        inside = builder.icmp_signed("<", INT(index), last)
        return builder.gep(base, [builder.mul(stride, builder.select(inside, INT(index), last))])

    row_mask, column_mask = emit.mask(rows), emit.mask(columns)
    vectors = [emit.load(line(source, ld_source, i, rows), column_mask) for i in range(lanes)]
    size = 1
    while size < lanes:
        low = lane_numbers([lanes + i - size if i & size else i for i in range(lanes)])
        high = lane_numbers([lanes + i if i & size else i + size for i in range(lanes)])
        for i in range(lanes):
            if not i & size:
                x, y = vectors[i], vectors[i + size]
                vectors[i], vectors[i + size] = builder.shuffle_vector(x, y, low), builder.shuffle_vector(x, y, high)
        size *= 2
    for j in reversed(range(lanes)):
        emit.store(vectors[j], line(out, ld_out, j, columns), row_mask)
