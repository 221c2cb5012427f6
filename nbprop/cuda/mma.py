"""Tensor cores: products of small bfloat16 matrices that a warp holds in its registers, by inline PTX.

    pack(low, high)               two float32 as a word of two bfloat16, rounded to the nearest (even)
    low_of(word), high_of(word)   a half of a word as float32, which is exact
    ldmatrix(to, at, source, index), ldmatrix_turned(...)    four 8 x 8 matrices from shared memory
    mma(acc, at, a, a_at, b, b_at)                           acc (16, 8) += A (16, 16) B (16, 8)
    fetch(source, index), put(to, index, value)              an element of shared memory, by 32-bit arithmetic
    read(source, index), write(to, index, value)             an element of global memory
    read_if(inside, source, index)                           source[index], or 0, without a branch
    read4_if(to, at, inside, source, index)                  four of them to registers, in one load
    put2(to, index, first, second)                           two words to shared memory, in one store

All lanes of a warp call ldmatrix and mma together. Registers are local arrays with constant indices: words (uint32) for
bfloat16, float32 for sums. Of lane 4 g + t, in the notation of the PTX ISA ("Matrix fragments for mma.m16n8k16"), a
pair of neighbouring columns (rows for B) to a word:

    A, 4 words: rows g, g + 8, g, g + 8; columns from 2 t, 2 t, 2 t + 8, 2 t + 8
    B, 2 words: rows from 2 t, 2 t + 8 of column g
    C, 4 numbers: row g, columns 2 t and 2 t + 1; row g + 8, the same columns

So the C of two products side by side, packed in pairs, is the A of the next product.

ldmatrix: lane 8 q + r gives the place of row r of matrix q, four words, and receives the word in row g and columns from
2 t of each matrix; with _turned, that of its transpose.

Each has a twin for the simulator that follows this layout. It adds up in float64 and rounds once; the hardware's order
and rounding are not specified beyond "at least single precision".
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from nbprop.compiler.jit import intrinsic
from nbprop.cuda.toolkit import SIMULATED
from nbprop.cuda.warps import exchange

_WORD, _REAL = ir.IntType(32), ir.FloatType()

# -- the instructions ----------------------------------------------------------------------------------------


def _address(context, builder, array_type, array, index):
    """The address of an array's element."""
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def _registers(context, builder, array_type, array, at, count):
    """The addresses of `count` neighbouring elements of a local array."""
    places = [builder.add(at, ir.Constant(at.type, k)) for k in range(count)]
    return [_address(context, builder, array_type, array, place) for place in places]


def _emit(builder, text, results, operands, constraints, side_effect=False):
    """Emit an instruction that a whole warp executes; returns its results."""
    made = results[0] if len(results) == 1 else ir.LiteralStructType(results)
    kind = ir.FunctionType(made, [operand.type for operand in operands])
    call = builder.asm(kind, text, constraints, operands, side_effect)
    call.attributes.add("convergent")
    return [call] if len(results) == 1 else [builder.extract_value(call, k) for k in range(len(results))]


@intrinsic
def _pack(typingctx, low, high):
    def codegen(context, builder, signature, arguments):
        low, high = arguments
        (word,) = _emit(builder, "cvt.rn.bf16x2.f32 $0, $1, $2;", [_WORD], [high, low], "=r,f,f")
        return word

    return types.uint32(types.float32, types.float32), codegen


@intrinsic
def _low_of(typingctx, word):
    def codegen(context, builder, signature, arguments):
        return builder.bitcast(builder.shl(arguments[0], ir.Constant(_WORD, 16)), _REAL)

    return types.float32(types.uint32), codegen


@intrinsic
def _high_of(typingctx, word):
    def codegen(context, builder, signature, arguments):
        return builder.bitcast(builder.and_(arguments[0], ir.Constant(_WORD, 0xFFFF0000)), _REAL)

    return types.float32(types.uint32), codegen


def _shared(context, builder, array_type, array, index):
    """The place of an element in shared memory, a number of 32 bits; negative indices have no meaning here."""
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    base = builder.ptrtoint(builder.addrspacecast(data, ir.PointerType(_WORD, addrspace=3)), _WORD)
    return builder.add(base, builder.shl(builder.trunc(index, _WORD), ir.Constant(_WORD, 2)))


def _shared_pointer(context, builder, array_type, array, index):
    element = context.get_data_type(array_type.dtype)
    place = _shared(context, builder, array_type, array, index)
    return builder.inttoptr(place, ir.PointerType(element, addrspace=3))


@intrinsic
def _fetch(typingctx, source, index):
    def codegen(context, builder, signature, arguments):
        return builder.load(_shared_pointer(context, builder, signature.args[0], *arguments), align=4)

    return source.dtype(source, types.int64), codegen


@intrinsic
def _put(typingctx, to, index, value):
    def codegen(context, builder, signature, arguments):
        to, index, value = arguments
        builder.store(value, _shared_pointer(context, builder, signature.args[0], to, index), align=4)
        return context.get_dummy_value()

    return types.void(to, types.int64, to.dtype), codegen


def _global_pointer(context, builder, array_type, array, index):
    """The place of an element in global memory.

    Each access names the memory. In kernels without tensor cores, arrays are cast once (`kernels.in_global_memory`);
    here, with thousands of accesses in code without loops, NVVM for compute_80 and compute_90 did not end with that in
    minutes, and takes half a second with this.
    """
    address = builder.ptrtoint(_address(context, builder, array_type, array, index), ir.IntType(64))
    return builder.inttoptr(address, ir.PointerType(context.get_data_type(array_type.dtype), addrspace=1))


@intrinsic
def _read(typingctx, source, index):
    def codegen(context, builder, signature, arguments):
        return builder.load(_global_pointer(context, builder, signature.args[0], *arguments), align=4)

    return source.dtype(source, types.int64), codegen


@intrinsic
def _read_if(typingctx, inside, source, index):
    def codegen(context, builder, signature, arguments):
        inside, source, index = arguments
        index = builder.select(inside, index, ir.Constant(index.type, 0))
        value = builder.load(_global_pointer(context, builder, signature.args[1], source, index), align=4)
        return builder.select(inside, value, ir.Constant(value.type, 0.0))

    return source.dtype(types.boolean, source, types.int64), codegen


@intrinsic
def _read4_if(typingctx, to, at, inside, source, index):
    def codegen(context, builder, signature, arguments):
        to, at, inside, source, index = arguments
        index = builder.select(inside, index, ir.Constant(index.type, 0))
        place = _global_pointer(context, builder, signature.args[3], source, index)
        four = ir.VectorType(_REAL, 4)
        found = builder.load(builder.bitcast(place, ir.PointerType(four, addrspace=1)), align=16)
        for k, register in enumerate(_registers(context, builder, signature.args[0], to, at, 4)):
            value = builder.extract_element(found, ir.Constant(_WORD, k))
            builder.store(builder.select(inside, value, ir.Constant(_REAL, 0.0)), register)
        return context.get_dummy_value()

    return types.void(to, types.int64, types.boolean, source, types.int64), codegen


@intrinsic
def _put2(typingctx, to, index, first, second):
    def codegen(context, builder, signature, arguments):
        to, index, *words = arguments
        pair = ir.Constant(ir.VectorType(_WORD, 2), ir.Undefined)
        for k, word in enumerate(words):
            pair = builder.insert_element(pair, word, ir.Constant(_WORD, k))
        place = _shared(context, builder, signature.args[0], to, index)
        builder.store(pair, builder.inttoptr(place, ir.PointerType(pair.type, addrspace=3)), align=8)
        return context.get_dummy_value()

    return types.void(to, types.int64, types.uint32, types.uint32), codegen


@intrinsic
def _write(typingctx, to, index, value):
    def codegen(context, builder, signature, arguments):
        to, index, value = arguments
        builder.store(value, _global_pointer(context, builder, signature.args[0], to, index), align=4)
        return context.get_dummy_value()

    return types.void(to, types.int64, to.dtype), codegen


def _loader(turned):
    """The intrinsic of ldmatrix, with or without the transposes."""
    text = f"ldmatrix.sync.aligned.m8n8.x4{'.trans' if turned else ''}.shared.b16 {{$0, $1, $2, $3}}, [$4];"

    @intrinsic
    def load(typingctx, to, at, source, index):
        def codegen(context, builder, signature, arguments):
            to_type, _, source_type, _ = signature.args
            operands = [_shared(context, builder, source_type, *arguments[2:])]
            # Volatile, and a clobber: it reads what has been stored before, and must stay behind barriers.
            found = _emit(builder, text, [_WORD] * 4, operands, "=r,=r,=r,=r,r,~{memory}", True)
            places = _registers(context, builder, to_type, arguments[0], arguments[1], 4)
            for place, word in zip(places, found, strict=True):
                builder.store(word, place)
            return context.get_dummy_value()

        return types.void(to, types.int64, source, types.int64), codegen

    return load


@intrinsic
def _mma(typingctx, acc, at, a, a_at, b, b_at):
    text = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, "
    text += "{$10, $11, $12, $13};"
    constraints = ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4)

    def codegen(context, builder, signature, arguments):
        acc_type, _, a_type, _, b_type, _ = signature.args
        acc, at, a, a_at, b, b_at = arguments
        sums = _registers(context, builder, acc_type, acc, at, 4)
        words = _registers(context, builder, a_type, a, a_at, 4) + _registers(context, builder, b_type, b, b_at, 2)
        operands = [builder.load(place) for place in words + sums]
        for place, value in zip(sums, _emit(builder, text, [_REAL] * 4, operands, constraints), strict=True):
            builder.store(value, place)
        return context.get_dummy_value()

    return types.void(acc, types.int64, a, types.int64, b, types.int64), codegen


# -- their twins ---------------------------------------------------------------------------------------------


def rounded(values):
    """The upper halves of float32 numbers rounded to bfloat16: to the nearest, ties to even; NaN becomes 0x7fff."""
    values = np.asarray(values, np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    halves = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FFF, halves).astype(np.uint32)


def _pack_simulated(low, high):
    low, high = rounded(np.array([low, high], np.float32))
    return np.uint32(low | high << np.uint32(16))


def _low_of_simulated(word):
    return np.uint32(int(word) << 16 & 0xFFFFFFFF).view(np.float32)


def _high_of_simulated(word):
    return np.uint32(int(word) & 0xFFFF0000).view(np.float32)


def pairs_of(words):
    """The two bfloat16 of each word as float64, (..., 2)."""
    words = np.asarray(words, np.uint32)
    return np.stack([words << np.uint32(16), words & np.uint32(0xFFFF0000)], -1).view(np.float32).astype(np.float64)


def _matrices(rows, turned):
    """What each lane receives, (32, 4) words, of the rows that each lane has given."""
    halves = np.array(rows, np.uint32).view(np.uint16).reshape(4, 8, 8)  # matrix, row, column
    if turned:
        halves = halves.transpose(0, 2, 1)
    words = np.ascontiguousarray(halves).reshape(4, 8, 4, 2).view(np.uint32)  # matrix, g, t
    return words.reshape(4, 32).T


def _fetch_simulated(source, index):
    assert index >= 0
    return source[index]


def _put_simulated(to, index, value):
    assert index >= 0
    to[index] = value


def _read_if_simulated(inside, source, index):
    assert source.size > 0, "nothing to read instead"
    return _fetch_simulated(source, index) if inside else np.float32(0)


def _read4_if_simulated(to, at, inside, source, index):
    assert not inside or (index % 4 == 0 and index + 4 <= source.size), "not aligned, or beyond"
    for k in range(4):
        to[at + k] = _read_if_simulated(inside, source, index + k)


def _put2_simulated(to, index, first, second):
    assert index % 2 == 0, "not aligned"
    _put_simulated(to, index, first)
    _put_simulated(to, index + 1, second)


def _loader_simulated(turned):
    def load(to, at, source, index):
        assert index >= 0
        assert index % 4 == 0, "not aligned"
        row = np.array(source[index : index + 4])
        assert row.size == 4, "beyond shared memory"
        lane, words = exchange(row, lambda rows: _matrices(rows, turned))
        to[at : at + 4] = words[lane]

    return load


def _product(given):
    """C - C' of all lanes, (32, 4) float64, of what they hold of A, B and C'."""
    a = pairs_of([a for a, _ in given]).reshape(8, 4, 2, 2, 2)  # g, t, half of the columns, half of the rows, pair
    b = pairs_of([b for _, b in given]).reshape(8, 4, 2, 2)  # g, t, half of the rows, pair
    a = a.transpose(3, 0, 2, 1, 4).reshape(16, 16)
    b = b.transpose(2, 1, 3, 0).reshape(16, 8)
    with np.errstate(invalid="ignore", over="ignore"):
        c = a @ b
    return c.reshape(2, 8, 4, 2).transpose(1, 2, 0, 3).reshape(32, 4)


def _mma_simulated(acc, at, a, a_at, b, b_at):
    lane, found = exchange((np.array(a[a_at : a_at + 4]), np.array(b[b_at : b_at + 2])), _product)
    with np.errstate(invalid="ignore", over="ignore"):
        acc[at : at + 4] = (acc[at : at + 4].astype(np.float64) + found[lane]).astype(np.float32)


fetch, put = (_fetch_simulated, _put_simulated) if SIMULATED else (_fetch, _put)
read, write = (_fetch_simulated, _put_simulated) if SIMULATED else (_read, _write)
# Where it is not inside, element 0 is read instead: the array must not be empty.
read_if = _read_if_simulated if SIMULATED else _read_if
# The array is aligned to 16 bytes, and index a multiple of 4.
read4_if = _read4_if_simulated if SIMULATED else _read4_if
put2 = _put2_simulated if SIMULATED else _put2  # index is even
pack = _pack_simulated if SIMULATED else _pack
low_of = _low_of_simulated if SIMULATED else _low_of
high_of = _high_of_simulated if SIMULATED else _high_of
ldmatrix, ldmatrix_turned = map(_loader_simulated if SIMULATED else _loader, (False, True))
mma = _mma_simulated if SIMULATED else _mma


# -- loops without a loop ------------------------------------------------------------------------------------


def unrolled(count, body):
    """A device function run(given) that calls body(0, given) to body(count - 1, given), each with a constant number.

    LLVM unrolls no long loop, and an array that a loop indexes stays in memory. `body` is a device function; `given` a
    tuple of what it needs.
    """
    if SIMULATED:

        def repeat(given):
            for number in range(count):
                body(number, given)

        return repeat

    @intrinsic
    def run(typingctx, given):
        kind = typingctx.resolve_value_type(body)
        called = kind.get_call_type(typingctx, (types.int64, given), {})

        def codegen(context, builder, signature, arguments):
            call = context.get_function(kind, called)
            for number in range(count):
                call(builder, [context.get_constant(types.int64, number), arguments[0]])
            return context.get_dummy_value()

        return types.void(given), codegen

    return run
