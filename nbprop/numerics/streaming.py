"""Results larger than every cache: written past the caches, while what is read next is fetched.

An ordinary store reads the cache line that it writes, and evicts another. A non-temporal one does neither: an op that
reads and writes 64 MB moves 128 MB instead of 192. So a kernel computes a piece of its result on the stack, with the
same loops as otherwise, and `stream` moves it: the bits are the same. A processor reads ahead only while it reads, so
between two pieces a kernel also prefetches a piece of what comes next (`fetch`).

Another core sees such stores in order only after `settle`, which a kernel calls last.
"""

from llvmlite import ir
from numba.core import cgutils, types

from nbprop.compiler.intrinsics import make_array
from nbprop.compiler.jit import intrinsic, njit
from nbprop.compiler.simd import INT, INT32, VECTOR_BYTES, Vectors, call
from nbprop.system import architecture

LINE_BYTES = 64

# An op that touches more bytes than this finds nothing of what it wrote first in a cache: more than the last level's
# part that a core reaches on most processors.
_LARGE = 64 * 2**20

# Elements of a piece: more would write and prefetch in bursts, between which the memory waits.
PIECE = 256

# Elements ahead of what is read, at most, that a row is prefetched: they have to stay in the second-level cache.
AHEAD = 4096


@njit
def exceeds_caches(array, elements):
    """Whether an op that reads and writes so many elements of the array's dtype should stream."""
    return elements * array.itemsize > _LARGE


@intrinsic(prefer_literal=True)
def on_stack(typingctx, array, size):
    """An array on the stack of `size` (literal) elements of the array's dtype, the same one in every turn of a loop."""
    if not isinstance(size, types.Literal):
        return None
    array_type, count = types.Array(array.dtype, 1, "C"), size.literal_value

    def codegen(context, builder, signature, arguments):
        with builder.goto_entry_block():
            block = builder.alloca(ir.ArrayType(context.get_data_type(array.dtype), count))
            block.align = LINE_BYTES
        return make_array(context, builder, array_type, builder.ptrtoint(block, INT), INT(count))

    return array_type(array, size), codegen


def store_past_caches(vectors, value, address):
    """A non-temporal store of a vector, at an address that is a multiple of its size."""
    builder = vectors.builder
    store = builder.store(value, builder.bitcast(address, vectors.type.as_pointer()))
    store.align = vectors.lanes * vectors.bytes
    store.set_metadata("nontemporal", builder.module.add_metadata([INT32(1)]))


@intrinsic
def stream(typingctx, y, x):
    """y = x, not through the caches. y OUT, x IN (size,), which do not overlap."""

    def codegen(context, builder, signature, arguments):
        views = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, arguments, strict=True)
        ]
        count = builder.extract_value(views[0].shape, 0)
        call(builder, "stream", _emit_stream, types.CPointer(y.dtype), (*(view.data for view in views), count))
        return context.get_dummy_value()

    return types.void(y, x), codegen


def _emit_stream(builder, pointer_type, y, x, count):
    """Whole lines of y by non-temporal vectors, what lies before and after them element by element."""
    vectors = Vectors(builder, pointer_type, VECTOR_BYTES)
    line = LINE_BYTES // vectors.bytes
    number = builder.lshr(builder.ptrtoint(y, INT), INT(vectors.bytes.bit_length() - 1))
    before = builder.and_(builder.neg(number), INT(line - 1))
    before = builder.select(builder.icmp_signed("<", before, count), before, count)
    whole = builder.add(before, builder.and_(builder.sub(count, before), INT(-line)))

    def one_by_one(first, stop):
        with cgutils.for_range_slice(builder, first, stop, INT(1), inc=True) as (i, _):
            builder.store(builder.load(builder.gep(x, [i])), builder.gep(y, [i]))

    one_by_one(INT(0), before)
    with cgutils.for_range_slice(builder, before, whole, INT(line), inc=True) as (i, _):
        for lane in range(0, line, vectors.lanes):
            at = [builder.add(i, INT(lane))]
            store_past_caches(vectors, vectors.load(builder.gep(x, at)), builder.gep(y, at))
    one_by_one(whole, count)


@intrinsic
def fetch(typingctx, array, first, count):
    """Prefetch `count` elements of an array from number `first` on; they need not exist, as it is a hint."""

    def codegen(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        vectors = Vectors(builder, types.CPointer(array.dtype), VECTOR_BYTES)
        step = INT(LINE_BYTES // vectors.bytes)
        with cgutils.for_range_slice(builder, INT(0), arguments[2], step, inc=True) as (i, _):
            vectors.prefetch(builder.gep(data, [builder.add(arguments[1], i)]), to_write=False)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), codegen


@intrinsic
def settle(typingctx):
    """Order the stores of `stream` before all that follow."""

    def codegen(context, builder, signature, arguments):
        if architecture() == "x86":
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.sfence"), [])
        else:
            builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen
