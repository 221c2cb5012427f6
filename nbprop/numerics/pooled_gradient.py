"""The weight gradient of a convolution under a max pool: sums of windows of the image at each argmax.

Of all the pixels in a window of the pool, only the maximum has a gradient. So the weight gradient is a sum over the
windows of the pool, of one window of the convolution's input each; with 2 x 2 pools, a quarter of the multiply-adds
remains. Written with llvmlite, as microkernel.py: which window comes next is known only when its index is read.
"""

from llvmlite import ir
from numba.core import cgutils, types

from nbprop.compiler.jit import intrinsic, njit
from nbprop.compiler.simd import HALF_BYTES, INT, INT32, VECTOR_BYTES, Vectors, call, element, keep_rolled, lane_numbers
from nbprop.numerics.gemm.microkernel import itemsize, pointer

# Lines of a window, and vectors of a line, that stay in registers: eighteen of 32 registers, or twelve of AVX2's 16.
_LINES = 6
_VECTORS = 3 if VECTOR_BYTES == 64 else 2


@intrinsic
def argmax_offsets(typingctx, offsets, argmax, count, kernel_w, row, pixel):
    """offsets[e] = the offset in the image, from the window, of the pixel with index argmax[e] within the window.

    offsets : OUT, address of (count,) integers as wide as the floats, and of one more vector, which is overwritten
    argmax : IN, address of (count,): indices of pixels, in rows of kernel_w
    row, pixel : strides of the image, in elements, between rows of pixels and between pixels
    """
    size = types.intp
    signature = types.void(offsets, argmax, size, size, size, size)

    def codegen(context, builder, signature, args):
        call(builder, "offsets", _emit_offsets, signature.args[0], args)
        return context.get_dummy_value()

    return signature, codegen


def _emit_offsets(builder, pointer_type, offsets, argmax, count, kernel_w, row, pixel):
    emit = Vectors(builder, pointer_type, VECTOR_BYTES)
    integer = ir.IntType(8 * element(pointer_type)[2])
    integers = ir.VectorType(integer, emit.lanes)

    def splat(value):
        value = value if integer == INT else builder.trunc(value, integer)
        first = builder.insert_element(ir.Constant(integers, ir.Undefined), value, INT32(0))
        return builder.shuffle_vector(first, first, lane_numbers([0] * emit.lanes))

    # A tap is i * kernel_w + j, its offset i * row + j * pixel; i is computed by a product, since divisions are slow.
    # Adding half a tap keeps rounding from changing the integer part.
    half = ir.Constant(emit.type, [0.5] * emit.lanes)
    factor = emit.splat(builder.fdiv(emit.scalar(1.0), builder.sitofp(kernel_w, emit.scalar)))
    back, along = splat(builder.sub(row, builder.mul(kernel_w, pixel))), splat(pixel)
    with cgutils.for_range_slice(builder, INT(0), count, INT(emit.lanes), inc=True) as (e, _):
        left = builder.sub(count, e)
        lanes = builder.select(builder.icmp_signed("<", left, INT(emit.lanes)), left, INT(emit.lanes))
        numbers = emit.load(builder.gep(argmax, [e]), emit.mask(lanes))
        i = builder.fptosi(builder.fmul(builder.fadd(numbers, half), factor), integers)
        places = builder.add(builder.mul(builder.fptosi(numbers, integers), along), builder.mul(i, back))
        builder.store(places, builder.bitcast(builder.gep(offsets, [e]), integers.as_pointer())).align = emit.bytes


@njit
def sum_of_argmax_windows(
    total, x, distance, lines, length, dy, offsets, filters, rows, columns, row_step, column_step
):
    """total[l, k] += the sum over the windows of a pool of dy times x[at + l * distance + k], in window order.

    total : INOUT, address of (lines, length)
    x : IN, address of (height, width, channels), an image, from the window of its first output pixel on
    dy, offsets : IN, addresses of (rows, columns), `filters` elements apart, one per output of the pool: gradients, and
        the offsets from `argmax_offsets`
    row_step, column_step : elements of x between rows of windows of the pool, and between windows
    """
    lanes = VECTOR_BYTES // itemsize(total)
    line, count = 0, (lines + _LINES - 1) // _LINES
    for piece in range(count, 0, -1):
        # Pieces as equal as possible: a piece of a single line would expose the latency of every multiply-add.
        cut = (lines - line + piece - 1) // piece
        for k in range(0, length, _VECTORS * lanes):
            _sum_of_piece(
                *(pointer(total, line * length + k), length, pointer(x, line * distance + k), distance, cut),
                *(min(length - k, _VECTORS * lanes), dy, offsets, filters, rows, columns, row_step, column_step),
            )
        line += cut


@intrinsic
def _sum_of_piece(
    typingctx, total, ld, x, distance, lines, length, dy, offsets, filters, rows, columns, row_step, column_step
):  # fmt: skip
    """As `sum_of_argmax_windows`, for lines and vectors that fit in registers."""
    size = types.intp
    signature = types.void(total, size, x, size, size, size, dy, offsets, size, size, size, size, size)

    def codegen(context, builder, signature, args):
        call(builder, "argmax", _emit_piece, signature.args[0], args)
        return context.get_dummy_value()

    return signature, codegen


def _emit_piece(
    builder, pointer_type, total, ld, x, distance, lines, length, dy, offsets, filters, rows, columns, row_step,
    column_step
):  # fmt: skip
    """Jump to the code for this many lines and vectors."""
    size = element(pointer_type)[2]
    half, lanes = HALF_BYTES // size, VECTOR_BYTES // size
    operands = (total, ld, x, distance, length, dy, offsets, filters, rows, columns, row_step, column_step)
    widths = [(half, HALF_BYTES, 1)] if half < lanes else []
    widths += [(lanes * vectors, VECTOR_BYTES, vectors) for vectors in range(1, _VECTORS + 1)]
    # The narrowest width that holds a line: each case handles the lengths above those of the case before.
    above = 0
    for most, width, vectors in widths:
        inside = builder.and_(
            builder.icmp_signed(">", length, INT(above)), builder.icmp_signed("<=", length, INT(most))
        )
        with builder.if_then(inside):
            for count in range(1, _LINES + 1):
                with builder.if_then(builder.icmp_signed("==", lines, INT(count))):
                    call(builder, "argmax_lines", _emit_lines, pointer_type, operands, count, vectors, width)
        above = most


def _emit_lines(
    builder, pointer_type, lines, vectors, width, total, ld, x, distance, length, dy, offsets, filters, rows, columns,
    row_step, column_step
):  # fmt: skip
    emit = Vectors(builder, pointer_type, width)
    masks = [None] * (vectors - 1) + [emit.mask(builder.sub(length, INT((vectors - 1) * emit.lanes)))]
    sums = [[cgutils.alloca_once(builder, emit.type) for _ in range(vectors)] for _ in range(lines)]

    def places(base, stride):
        """(sum, address of its vector, mask of the vector); one address serves three lines, as in the product."""
        strides = [builder.mul(stride, INT(i)) for i in range(3)]
        for line in range(lines):
            group = builder.gep(base, [builder.mul(stride, INT(line // 3 * 3))])
            first = builder.gep(group, [strides[line % 3]])
            for v in range(vectors):
                yield sums[line][v], builder.gep(first, [INT(v * emit.lanes)]), masks[v]

    for variable, address, mask in places(total, ld):
        builder.store(emit.load(address, mask), variable)
    integer = ir.IntType(8 * emit.bytes)
    offsets = builder.bitcast(offsets, integer.as_pointer())
    with cgutils.for_range(builder, rows) as p:
        first = builder.mul(builder.mul(p.index, columns), filters)
        corner = builder.gep(x, [builder.mul(p.index, row_step)])
        before, loop, done = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        left, window, at = builder.phi(INT), builder.phi(INT), builder.phi(x.type)
        given = emit.splat(builder.load(builder.gep(dy, [window])))
        offset = builder.load(builder.gep(offsets, [window]))
        place = builder.gep(at, [offset if integer == INT else builder.sext(offset, INT)])
        for variable, address, mask in places(place, distance):
            builder.store(emit.fma(emit.load(address, mask), given, builder.load(variable)), variable)
        fewer = builder.sub(left, INT(1))
        following = builder.add(window, filters), builder.gep(at, [column_step])
        for phi, initial, after in zip((left, window, at), (columns, first, corner), (fewer, *following), strict=True):
            phi.add_incoming(initial, before)
            phi.add_incoming(after, loop)
        keep_rolled(builder.module, builder.cbranch(builder.icmp_signed(">", fewer, INT(0)), loop, done))
        builder.position_at_end(done)
    for variable, address, mask in places(total, ld):
        emit.store(builder.load(variable), address, mask)
