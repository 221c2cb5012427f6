"""The register tile: a small block of C held in vector registers while k runs.

`strip` computes a few whole rows of a matrix product, tile after tile:

    C[i, j] = start[i, j] + sum over l of A[i, l] B[l, j]

with one fused multiply-add for each term, in the order l = 0, 1, ..., k - 1, starting from the start value.  That order is
a promise: the bits of C[i, j] depend on nothing but row i of A, column j of B and the start value (see gemm.py).

This file holds what has to be said in LLVM's own terms: the tiles, dot products for a single column of output, copies, and
`pointer`, which turns an array and an offset into the address the kernels take.  gemm.py is ordinary compiled Python on
top of it.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import NumbaTypeError
from numba.extending import intrinsic

_FEATURES = llvm.get_host_cpu_features()

# Bytes in the widest vector register.  Sixteen is what every 64-bit processor has (SSE2, NEON); where it has no fused
# multiply-add in hardware LLVM calls the C library's, which is slow and has the same bits.
VECTOR_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
HALF_BYTES = max(16, VECTOR_BYTES // 2)

# Rows of a tile.  Twelve rows of two vectors fill 24 of 32 registers, six fill 12 of AVX2's 16.
HEIGHTS = (6, 4, 2, 1) if VECTOR_BYTES == 32 else (12, 8, 4, 1)

# A dot product always has 64 bytes of partial sums, so that its bits are the same on every processor.
_DOT_BYTES = 64
_DOT_ROWS = 8 if VECTOR_BYTES == 64 else 4

_INT = ir.IntType(64)
_INT32 = ir.IntType(32)


def _element(pointer_type):
    """The LLVM type of a scalar, its name inside intrinsic names, and its bytes."""
    return (ir.FloatType(), "f32", 4) if pointer_type.dtype == types.float32 else (ir.DoubleType(), "f64", 8)


@intrinsic
def pointer(typingctx, base, offset):
    """The address of element `offset` of an array (counted in its flat data) or of another pointer.

    An address is one machine word and forgets rank, layout and whether the array is read-only, so kernels that take
    addresses are compiled once for each dtype.  The array must stay alive and in place while the address is used.
    """
    if not isinstance(base, types.Array | types.CPointer):
        raise NumbaTypeError(f"pointer() takes an array or a pointer, got {base}")
    result = types.CPointer(base.dtype)

    def codegen(context, builder, signature, args):
        address, index = args
        if isinstance(signature.args[0], types.Array):
            address = context.make_array(signature.args[0])(context, builder, address).data
        return builder.gep(address, [index])

    return result(base, types.intp), codegen


@intrinsic
def itemsize(typingctx, base):
    """Bytes of the element a pointer points at: a constant when the code is compiled."""
    size = _element(base)[2]

    def codegen(context, builder, signature, args):
        return _INT(size)

    return types.intp(base), codegen


class _Vectors:
    """Emits loads, stores and arithmetic on vectors of one width."""

    def __init__(self, builder, pointer_type, width):
        self.builder, self.module = builder, builder.module
        self.scalar, self.name, self.bytes = _element(pointer_type)
        self.lanes = width // self.bytes
        self.type = ir.VectorType(self.scalar, self.lanes)
        self.mask_type = ir.VectorType(ir.IntType(1), self.lanes)

    def _intrinsic(self, name, result, arguments):
        return cgutils.get_or_insert_function(self.module, ir.FunctionType(result, arguments), name)

    def zero(self):
        return ir.Constant(self.type, [0.0] * self.lanes)

    def splat(self, value, lanes=None):
        """One scalar in every lane."""
        kind = ir.VectorType(self.scalar, lanes or self.lanes)
        empty = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(empty, value, _INT32(0))
        return self.builder.shuffle_vector(first, empty, _lane_numbers([0] * kind.count))

    def mask(self, count):
        """True in the first `count` lanes, 1 <= count <= lanes."""
        bits = ir.IntType(self.lanes)
        absent = self.builder.trunc(self.builder.sub(_INT(self.lanes), count), bits)
        return self.builder.bitcast(self.builder.lshr(bits(-1), absent), self.mask_type)

    def load(self, address, mask=None):
        where = self.type.as_pointer()
        address = self.builder.bitcast(address, where)
        if mask is None:
            vector = self.builder.load(address)
            vector.align = self.bytes
            return vector
        name = f"llvm.masked.load.v{self.lanes}{self.name}.p0"
        function = self._intrinsic(name, self.type, [where, _INT32, self.mask_type, self.type])
        return self.builder.call(function, [address, _INT32(self.bytes), mask, self.zero()])

    def store(self, value, address, mask=None):
        where = self.type.as_pointer()
        address = self.builder.bitcast(address, where)
        if mask is None:
            self.builder.store(value, address).align = self.bytes
            return
        name = f"llvm.masked.store.v{self.lanes}{self.name}.p0"
        function = self._intrinsic(name, ir.VoidType(), [self.type, where, _INT32, self.mask_type])
        self.builder.call(function, [value, address, _INT32(self.bytes), mask])

    def fma(self, a, b, c):
        function = self._intrinsic(f"llvm.fma.v{self.lanes}{self.name}", self.type, [self.type] * 3)
        return self.builder.call(function, [a, b, c])


def _lane_numbers(lanes):
    return ir.Constant(ir.VectorType(_INT32, len(lanes)), lanes)


def _call(builder, name, emit, pointer_type, args, *shape):
    """Call an LLVM function that `emit(builder, pointer_type, *shape, *args)` fills on its first use in a module.

    It is never inlined: in the loops of gemm.py, LLVM would compute the row offsets of all tiles before the loops and keep
    a hundred of them on the stack, which is slower than the calls and slower to compile.
    """
    name = ".".join(("nbprop", name, *map(str, shape), str(pointer_type.dtype)))
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
        function = ir.Function(builder.module, kind, name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        body = ir.IRBuilder(function.append_basic_block("entry"))
        emit(body, pointer_type, *shape, *function.args)
        body.ret_void()
    builder.call(function, args)


def _strip(rows):
    @intrinsic
    def strip(typingctx, c, ldc, a, a_row, a_col, b, b_panel, ldb, columns, k, start, start_row, from_zero):
        """`rows` rows of C and `columns` columns; addresses and element strides as in gemm.py.

        The start value is 0 when `from_zero`, else start[i * start_row + j]: (c, ldc) accumulates, (bias, 0) begins with a
        bias.  B is cut into panels of two vectors of columns, `b_panel` elements apart: two vectors if it is not packed.
        """
        size = types.intp
        signature = types.void(c, size, a, size, size, b, size, size, size, size, start, size, types.boolean)

        def codegen(context, builder, signature, args):
            _call(builder, "strip", _emit_strip, signature.args[0], args, rows)
            return context.get_dummy_value()

        return signature, codegen

    return strip


# One intrinsic for each height.
STRIPS = tuple(_strip(rows) for rows in HEIGHTS)


def _emit_strip(
    builder, pointer_type, rows, c, ldc, a, a_row, a_col, b, b_panel, ldb, columns, k, start, start_row, from_zero
):
    lanes = VECTOR_BYTES // _element(pointer_type)[2]
    half_lanes = HALF_BYTES // _element(pointer_type)[2]

    def tile(j, vectors, masked=True, width=VECTOR_BYTES):
        panels = [
            builder.gep(b, [builder.mul(builder.add(builder.udiv(j, _INT(2 * lanes)), _INT(v)), b_panel)])
            for v in range((vectors + 1) // 2)
        ]
        count = builder.sub(columns, j) if masked else None
        operands = (builder.gep(c, [j]), ldc, a, a_row, a_col, panels, ldb, k, builder.gep(start, [j]), start_row, from_zero)
        _emit_tile(builder, _Vectors(builder, pointer_type, width), rows, vectors, count, *operands)

    done = _INT(0)
    if rows == 1:
        # One accumulator each cannot hide the latency of the multiply-add: take eight.
        done = builder.and_(columns, _INT(-8 * lanes))
        with cgutils.for_range_slice(builder, _INT(0), done, _INT(8 * lanes), inc=True) as (j, _):
            tile(j, 8, masked=False)
    with cgutils.for_range_slice(builder, done, builder.sub(columns, _INT(lanes)), _INT(2 * lanes), inc=True) as (j, _):
        tile(j, 2)
    done = builder.and_(builder.add(columns, _INT(lanes - 1)), _INT(-2 * lanes))
    left = builder.sub(columns, done)
    with builder.if_then(builder.icmp_signed(">", left, _INT(0))):
        with builder.if_else(builder.icmp_signed(">", left, _INT(half_lanes))) as (wide, narrow):
            with wide:
                tile(done, 1)
            with narrow:
                tile(done, 1, width=HALF_BYTES)


def _emit_tile(builder, emit, rows, vectors, columns, c, ldc, a, a_row, a_col, panels, ldb, k, start, start_row, from_zero):
    """One tile of rows x vectors.  `columns` counts its columns and those to its right; None: it is full."""
    lanes = emit.lanes
    masks = [None] * vectors
    if columns is not None:
        before = _INT((vectors - 1) * lanes)
        width = builder.sub(columns, before)
        width = builder.select(builder.icmp_signed("<", width, _INT(lanes)), width, _INT(lanes))
        masks[-1] = emit.mask(width)

    def addresses(base, stride):
        """Element addresses [row][vector] of a matrix whose rows are `stride` apart."""
        lines = [builder.gep(base, [builder.mul(stride, _INT(i))]) for i in range(rows)]
        return [[builder.gep(line, [_INT(v * lanes)]) for v in range(vectors)] for line in lines]

    entry = builder.block
    load_start, begin, loop, done = (builder.append_basic_block(name) for name in ("load", "begin", "loop", "done"))
    builder.cbranch(from_zero, begin, load_start)

    builder.position_at_end(load_start)
    loaded = [[emit.load(p, mask) for p, mask in zip(row, masks, strict=True)] for row in addresses(start, start_row)]
    builder.branch(begin)

    builder.position_at_end(begin)
    first = _phis(builder, emit.type, rows, vectors)
    _feed(first, loaded, load_start)
    _feed(first, [[emit.zero()] * vectors] * rows, entry)
    # A pointer for every three rows, the others one or two strides further: x86 adds twice an index for nothing, and twelve
    # pointers would not fit its sixteen integer registers.
    a_groups = [builder.gep(a, [builder.mul(a_row, _INT(i))]) for i in range(0, rows, 3)]
    strides = [builder.mul(a_row, _INT(i)) for i in range(3)]
    builder.cbranch(builder.icmp_signed(">", k, _INT(0)), loop, done)

    builder.position_at_end(loop)
    left, b_offset = builder.phi(_INT), builder.phi(_INT)
    groups = [builder.phi(a.type) for _ in a_groups]
    totals = _phis(builder, emit.type, rows, vectors)
    b_row = [
        emit.load(builder.gep(builder.gep(panels[v // 2], [b_offset]), [_INT(v % 2 * lanes)]), masks[v])
        for v in range(vectors)
    ]
    sums = []
    for i in range(rows):
        value = emit.splat(builder.load(builder.gep(groups[i // 3], [strides[i % 3]])))
        sums.append([emit.fma(value, b_row[v], totals[i][v]) for v in range(vectors)])
    fewer = builder.sub(left, _INT(1))
    steps = [(left, k, fewer), (b_offset, _INT(0), builder.add(b_offset, ldb))]
    steps += [(now, first_row, builder.gep(now, [a_col])) for now, first_row in zip(groups, a_groups, strict=True)]
    for phi, initial, following in steps:
        phi.add_incoming(initial, begin)
        phi.add_incoming(following, loop)
    _feed(totals, first, begin)
    _feed(totals, sums, loop)
    _no_unrolling(builder, builder.cbranch(builder.icmp_signed(">", fewer, _INT(0)), loop, done))

    builder.position_at_end(done)
    results = _phis(builder, emit.type, rows, vectors)
    _feed(results, first, begin)
    _feed(results, sums, loop)
    for values, places in zip(results, addresses(c, ldc), strict=True):
        for value, place, mask in zip(values, places, masks, strict=True):
            emit.store(value, place, mask)


def _no_unrolling(builder, branch):
    """Keep LLVM from unrolling the loop that `branch` closes: a body this long gains nothing, and its copies cost time."""
    module = builder.module
    disable = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    branch.set_metadata("llvm.loop", module.add_metadata([disable, disable]))


def _phis(builder, kind, rows, vectors):
    return [[builder.phi(kind) for _ in range(vectors)] for _ in range(rows)]


def _feed(phis, values, block):
    """Say which value each phi takes when control comes from `block`."""
    for phi_row, value_row in zip(phis, values, strict=True):
        for phi, value in zip(phi_row, value_row, strict=True):
            phi.add_incoming(value, block)


@intrinsic
def dots(typingctx, c, a, a_row, b, m, k, initial, accumulate):
    """m dot products: c[i] = initial + sum over l of A[i, l] b[l], or c[i] + ... when `accumulate`.

    c is contiguous, and so are the rows of A and b.  `initial` is a scalar.  Sixteen float32 or eight float64 partial sums
    run over l (lane l mod 16 or 8) whatever the processor's vectors are, and `_add_lanes` adds them in a fixed tree: the
    bits depend on row i of A, b and the start value alone.
    """
    size = types.intp
    signature = types.void(c, a, size, b, size, size, c.dtype, types.boolean)

    def codegen(context, builder, signature, args):
        _call(builder, "dots", _emit_all_dots, signature.args[0], args)
        return context.get_dummy_value()

    return signature, codegen


def _emit_all_dots(builder, pointer_type, c, a, a_row, b, m, k, initial, accumulate):
    done = _INT(0)
    for rows in (_DOT_ROWS, 1):
        stop = builder.and_(m, _INT(-rows))
        with cgutils.for_range_slice(builder, done, stop, _INT(rows), inc=True) as (i, _):
            lines = [builder.gep(a, [builder.mul(a_row, builder.add(i, _INT(r)))]) for r in range(rows)]
            _emit_dots(builder, pointer_type, builder.gep(c, [i]), lines, b, k, initial, accumulate)
        done = stop


def _emit_dots(builder, pointer_type, c, lines, b, k, initial, accumulate):
    """Dot products of `lines` (addresses of rows of A) with b."""
    emit = _Vectors(builder, pointer_type, _DOT_BYTES)
    rows, lanes = len(lines), _INT(emit.lanes)

    def advance(totals, place, mask=None):
        factor = emit.load(builder.gep(b, [place]), mask)
        loaded = [emit.load(builder.gep(line, [place]), mask) for line in lines]
        return [emit.fma(value, factor, total) for value, total in zip(loaded, totals, strict=True)]

    entry = builder.block
    head, body, rest, tail, done = (builder.append_basic_block(name) for name in ("head", "body", "rest", "tail", "done"))
    whole = builder.and_(k, _INT(-emit.lanes))
    builder.branch(head)

    builder.position_at_end(head)
    place = builder.phi(_INT)
    totals = [builder.phi(emit.type) for _ in range(rows)]
    builder.cbranch(builder.icmp_signed("<", place, whole), body, rest)

    builder.position_at_end(body)
    sums = advance(totals, place)
    place.add_incoming(_INT(0), entry)
    place.add_incoming(builder.add(place, lanes), body)
    _feed([totals], [[emit.zero()] * rows], entry)
    _feed([totals], [sums], body)
    builder.branch(head)

    builder.position_at_end(rest)
    builder.cbranch(builder.icmp_signed("<", whole, k), tail, done)
    builder.position_at_end(tail)
    last = advance(totals, whole, emit.mask(builder.sub(k, whole)))
    builder.branch(done)

    builder.position_at_end(done)
    results = [builder.phi(emit.type) for _ in range(rows)]
    _feed([results], [totals], rest)
    _feed([results], [last], tail)
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

    Pairs of vectors are folded into one until one is left.  A fold adds the lower and the upper half of every segment (at
    first a segment is a vector) and halves the segments.  Where the halves go is chosen so that each shuffle is one x86
    instruction: across the vector while segments are longer than 128 bits, inside each 128 bits afterwards.
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
        low_lanes, high_lanes = _lane_numbers(low), _lane_numbers([lane + half for lane in low])
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
    order = _lane_numbers([rows.index(i) for i in range(count)])
    return builder.shuffle_vector(total, ir.Constant(emit.type, ir.Undefined), order)


@intrinsic
def copy(typingctx, out, ld_out, source, ld_source, rows, columns):
    """out[i, j] = source[i, j]; ld_out and ld_source elements lie between the rows of the two."""
    size = types.intp
    signature = types.void(out, size, source, size, size, size)

    def codegen(context, builder, signature, args):
        _call(builder, "copy", _emit_copy, signature.args[0], args)
        return context.get_dummy_value()

    return signature, codegen


def _emit_copy(builder, pointer_type, out, ld_out, source, ld_source, rows, columns):
    emit = _Vectors(builder, pointer_type, VECTOR_BYTES)
    lanes = _INT(emit.lanes)
    whole = builder.and_(columns, _INT(-emit.lanes))
    cut = builder.icmp_signed("<", whole, columns)
    mask = emit.mask(builder.sub(columns, whole))
    with cgutils.for_range(builder, rows) as row:
        to = builder.gep(out, [builder.mul(ld_out, row.index)])
        come_from = builder.gep(source, [builder.mul(ld_source, row.index)])
        with cgutils.for_range_slice(builder, _INT(0), whole, lanes, inc=True) as (j, _):
            emit.store(emit.load(builder.gep(come_from, [j])), builder.gep(to, [j]))
        with builder.if_then(cut):
            emit.store(emit.load(builder.gep(come_from, [whole]), mask), builder.gep(to, [whole]), mask)
