"""Sums, dot products and maxima along a row, vectorised, with the same bits on every processor.

A loop that adds in index order has to wait for every addition; only a flag that lets LLVM reorder additions would
vectorise it, with other bits on other processors. Here the order is explicit. There are 64 bytes of partial results (16
float32 or 8 float64), four times: element i of a run of 256 bytes goes to partial result i; the remaining elements go
to the first 64 bytes. At the end the four are combined, then halves until one number is left. So the error of a sum
grows with the size of the row over 64 (32 in float64), rather than with its size.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import NumbaTypeError

from nbprop.compiler.jit import intrinsic
from nbprop.compiler.simd import INT, Vectors, call, lane_numbers

_BYTES = 64
_CHAINS = 4


def _sum(vectors, totals, x):
    return [vectors.builder.fadd(totals[0], x)]


def _dot(vectors, totals, x, y):
    return [vectors.fma(x, y, totals[0])]


def _max(vectors, totals, x):
    return [vectors.builder.select(vectors.builder.fcmp_ordered(">", x, totals[0]), x, totals[0])]


def _largest(vectors, totals, x):
    negative = vectors.builder.fcmp_ordered("<", x, ir.Constant(vectors.type, [0.0] * vectors.lanes))
    return _max(vectors, totals, vectors.builder.select(negative, vectors.builder.fneg(x), x))


def _moments(vectors, totals, x, mean):
    distance = vectors.builder.fsub(x, mean)
    return [vectors.builder.fadd(totals[0], distance), vectors.fma(distance, distance, totals[1])]


def _squares_between(vectors, totals, x, y):
    distance = vectors.builder.fsub(x, y)
    return [vectors.fma(distance, distance, totals[0])]


def _dots_about(vectors, totals, g, x, mean):
    distance = vectors.builder.fsub(x, mean)
    return [vectors.builder.fadd(totals[0], g), vectors.fma(g, distance, totals[1])]


def _scaled_dots_about(vectors, totals, g, s, x, mean):
    return _dots_about(vectors, totals, vectors.builder.fmul(g, s), x, mean)


# name -> (adds the next elements, combines two partial results, their initial value, the number of results)
_REDUCTIONS: dict[str, tuple[Any, Any, float, int]] = {
    "row_sum": (_sum, _sum, 0.0, 1),
    "row_dot": (_dot, _sum, 0.0, 1),
    "row_max": (_max, _max, float("-inf"), 1),
    "row_largest": (_largest, _max, 0.0, 1),
    "row_squares_between": (_squares_between, _sum, 0.0, 1),
    "row_moments": (_moments, _sum, 0.0, 2),
    "row_dots_about": (_dots_about, _sum, 0.0, 2),
    "row_scaled_dots_about": (_scaled_dots_about, _sum, 0.0, 2),
}


def _emit_reduction(builder, pointer_type, name, row_count, out, count, *given):
    """out[0], ... = the results of a reduction over `count` elements of the rows; given: the rows, then scalars."""
    take, join, start, results = _REDUCTIONS[name]
    vectors = Vectors(builder, pointer_type, _BYTES)
    lanes, first = vectors.lanes, ir.Constant(vectors.type, [start] * vectors.lanes)
    rows, scalars = given[:row_count], [vectors.splat(scalar) for scalar in given[row_count:]]
    chains = [[cgutils.alloca_once_value(builder, first) for _ in range(results)] for _ in range(_CHAINS)]

    def absorb(chain, at, mask=None):
        before = [builder.load(place) for place in chain]
        elements = [vectors.load(builder.gep(row, [at]), mask) for row in rows]
        for place, old, new in zip(chain, before, take(vectors, before, *elements, *scalars), strict=True):
            builder.store(new if mask is None else builder.select(mask, new, old), place)

    runs, whole = (builder.and_(count, INT(-size)) for size in (_CHAINS * lanes, lanes))
    with cgutils.for_range_slice(builder, INT(0), runs, INT(_CHAINS * lanes), inc=True) as (i, _):
        for number, chain in enumerate(chains):
            absorb(chain, builder.add(i, INT(number * lanes)))
    with cgutils.for_range_slice(builder, runs, whole, INT(lanes), inc=True) as (i, _):
        absorb(chains[0], i)
    with builder.if_then(builder.icmp_signed("<", whole, count)):
        absorb(chains[0], whole, vectors.mask(builder.sub(count, whole)))
    for k in range(results):
        partial = [builder.load(chain[k]) for chain in chains]
        while len(partial) > 1:
            pairs = zip(partial[::2], partial[1::2], strict=True)
            partial = [join(vectors, [x], y)[0] for x, y in pairs]
        builder.store(_across(vectors, partial[0], join), builder.gep(out, [INT(k)]))


def _across(vectors, partial, join):
    """The lanes of a vector combined, halves at a time."""
    lanes, builder = vectors.lanes, vectors.builder
    while lanes > 1:
        lanes //= 2
        halves = [lane_numbers(list(range(begin, begin + lanes))) for begin in (0, lanes)]
        low, high = (builder.shuffle_vector(partial, partial, half) for half in halves)
        partial = join(vectors, [low], high)[0]
    return builder.extract_element(partial, INT(0))


def _reduce(name, arrays, scalars=()):
    """The signature and the code of a reduction over 1-D contiguous arrays of one size, with scalars of their dtype."""
    dtype, results = arrays[0].dtype, _REDUCTIONS[name][3]
    for array in arrays:
        if not isinstance(array, types.Array) or array.ndim != 1 or array.layout != "C" or array.dtype != dtype:
            raise NumbaTypeError(f"{name}() takes contiguous rows of one dtype, got {array}")

    def emit(body, kind, *given):
        _emit_reduction(body, kind, name, len(arrays), *given)

    def codegen(context, builder, signature, arguments):
        rows = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, arguments[: len(arrays)], strict=False)
        ]
        out = cgutils.alloca_once(builder, context.get_data_type(dtype), size=INT(results))
        count = builder.extract_value(rows[0].shape, 0)
        places = [row.data for row in rows]
        call(builder, name, emit, types.CPointer(dtype), (out, count, *places, *arguments[len(arrays) :]))
        found = [builder.load(builder.gep(out, [INT(k)])) for k in range(results)]
        return found[0] if results == 1 else context.make_tuple(builder, signature.return_type, found)

    answer = dtype if results == 1 else types.UniTuple(dtype, results)
    return answer(*arrays, *(dtype for _ in scalars)), codegen


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


@intrinsic
def row_largest(typingctx, x):
    """The largest magnitude among the elements that are not NaN; 0 where there is none."""
    return _reduce("row_largest", (x,))


@intrinsic
def row_squares_between(typingctx, x, y):
    """The sum of (x - y)^2. x and y have one size."""
    return _reduce("row_squares_between", (x, y))


@intrinsic
def row_moments(typingctx, x, mean):
    """(the sum of x - mean, the sum of (x - mean)^2)."""
    return _reduce("row_moments", (x,), (mean,))


@intrinsic
def row_dots_about(typingctx, g, x, mean):
    """(the sum of g, the sum of g (x - mean)). g and x have one size."""
    return _reduce("row_dots_about", (g, x), (mean,))


@intrinsic
def row_scaled_dots_about(typingctx, g, s, x, mean):
    """(the sum of g s, the sum of g s (x - mean)). g, s and x have one size."""
    return _reduce("row_scaled_dots_about", (g, s, x), (mean,))
