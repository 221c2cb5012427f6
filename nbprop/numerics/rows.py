"""Sums, dot products and maxima along a row, vectorised, with the same bits on every processor.

A loop that adds in index order waits for every addition, and only a flag that lets LLVM add in any order would
vectorise it: with other bits on other processors. Here the order is written out. 64 bytes of partial results stand
side by side (16 float32 or 8 float64), four times: element i of a run of 256 bytes goes to partial result i; what is
left over goes to the first 64 bytes. At the end the four are joined, then halves until one number is left. So the error
of a sum grows with the row's size over 64 (32 in float64), not with its size.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import NumbaTypeError
from numba.extending import intrinsic

from nbprop.numerics.vectors import INT, Vectors, call, lane_numbers

_BYTES = 64
_CHAINS = 4


def _add(vectors, total, x):
    return vectors.builder.fadd(total, x)


def _multiply_add(vectors, total, x, y):
    return vectors.fma(x, y, total)


def _larger(vectors, top, x):
    return vectors.builder.select(vectors.builder.fcmp_ordered(">", x, top), x, top)


# name -> (what takes an element in, what joins two partial results, where they start)
_REDUCTIONS = {
    "row_sum": (_add, _add, 0.0),
    "row_dot": (_multiply_add, _add, 0.0),
    "row_max": (_larger, _larger, float("-inf")),
}


def _emit_reduction(builder, pointer_type, name, out, count, *rows):
    """out[0] = the reduction of `count` elements of the rows."""
    take, join, start = _REDUCTIONS[name]
    vectors = Vectors(builder, pointer_type, _BYTES)
    lanes, first = vectors.lanes, ir.Constant(vectors.type, [start] * vectors.lanes)
    partial = [cgutils.alloca_once_value(builder, first) for _ in range(_CHAINS)]

    def absorb(place, at, mask=None):
        elements = [vectors.load(builder.gep(row, [at]), mask) for row in rows]
        if mask is not None and start != 0.0:
            elements = [builder.select(mask, x, first) for x in elements]
        builder.store(take(vectors, builder.load(place), *elements), place)

    runs, whole = (builder.and_(count, INT(-size)) for size in (_CHAINS * lanes, lanes))
    with cgutils.for_range_slice(builder, INT(0), runs, INT(_CHAINS * lanes), inc=True) as (i, _):
        for chain, place in enumerate(partial):
            absorb(place, builder.add(i, INT(chain * lanes)))
    with cgutils.for_range_slice(builder, runs, whole, INT(lanes), inc=True) as (i, _):
        absorb(partial[0], i)
    with builder.if_then(builder.icmp_signed("<", whole, count)):
        absorb(partial[0], whole, vectors.mask(builder.sub(count, whole)))
    results = [builder.load(place) for place in partial]
    while len(results) > 1:
        results = [join(vectors, *pair) for pair in zip(results[::2], results[1::2], strict=True)]
    (result,) = results
    while lanes > 1:
        lanes //= 2
        halves = [lane_numbers(list(range(begin, begin + lanes))) for begin in (0, lanes)]
        result = join(vectors, *(builder.shuffle_vector(result, result, half) for half in halves))
    builder.store(builder.extract_element(result, INT(0)), out)


def _reduce(name, arrays):
    """The signature and the code of a reduction over 1-D contiguous arrays of one size."""
    dtype = arrays[0].dtype
    for array in arrays:
        if not isinstance(array, types.Array) or array.ndim != 1 or array.layout != "C" or array.dtype != dtype:
            raise NumbaTypeError(f"{name}() takes contiguous rows of one dtype, got {array}")

    def codegen(context, builder, signature, arguments):
        rows = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, arguments, strict=True)
        ]
        out = cgutils.alloca_once(builder, context.get_data_type(dtype))
        count = builder.extract_value(rows[0].shape, 0)
        places = [row.data for row in rows]
        _call(builder, name, types.CPointer(dtype), (out, count, *places))
        return builder.load(out)

    return dtype(*arrays), codegen


def _call(builder, name, pointer_type, arguments):
    def emit(body, kind, *given):
        _emit_reduction(body, kind, name, *given)

    call(builder, name, emit, pointer_type, arguments)


@intrinsic
def row_sum(typingctx, x):
    """The sum of a row; 0 of an empty one."""
    return _reduce("row_sum", (x,))


@intrinsic
def row_dot(typingctx, x, y):
    """The sum of x y, each product fused with its addition. x and y have one size."""
    return _reduce("row_dot", (x, y))


@intrinsic
def row_max(typingctx, x):
    """The largest element that is not NaN; -infinity where there is none."""
    return _reduce("row_max", (x,))
