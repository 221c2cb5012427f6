"""Machine-level operations that Numba cannot express, written with llvmlite.

Addresses are plain ``intp`` integers: a kernel table, an op row and a frame are all blocks of 64-bit words. The
register tile of the matrix product, also llvmlite, has a file of its own (numerics/gemm/microkernel.py).
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models, register_default
from numba.core.imputils import impl_ret_borrowed, lower_constant
from numba.extending import NativeValue, register_model, unbox

from nbprop.compiler.jit import intrinsic
from nbprop.system import architecture

WORD = ir.IntType(64)


class FrameType(types.Type):
    """The address of a frame, the buffers of one walk; dtype is that of every float array in it."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(f"nbprop.Frame({dtype})")


@register_default(FrameType)
class FrameModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, WORD)


def _pointer(builder, address, element, index=None):
    pointer = builder.inttoptr(address, element.as_pointer())
    return pointer if index is None else builder.gep(pointer, [index])


@intrinsic
def load(typingctx, address, index):
    """The 64-bit word number `index` at `address` (an integer address or a frame)."""

    def codegen(context, builder, signature, arguments):
        return builder.load(_pointer(builder, arguments[0], WORD, arguments[1]))

    return types.int64(address, types.int64), codegen


@intrinsic
def store(typingctx, address, index, value):
    """Write the 64-bit word number `index` at `address`."""

    def codegen(context, builder, signature, arguments):
        builder.store(arguments[2], _pointer(builder, arguments[0], WORD, arguments[1]))
        return context.get_dummy_value()

    return types.void(address, types.int64, types.int64), codegen


@intrinsic
def load_double(typingctx, address, index):
    """The float64 number `index` at `address`."""

    def codegen(context, builder, signature, arguments):
        return builder.load(_pointer(builder, arguments[0], ir.DoubleType(), arguments[1]))

    return types.float64(address, types.int64), codegen


@intrinsic
def store_double(typingctx, address, index, value):
    """Write the float64 number `index` at `address`."""

    def codegen(context, builder, signature, arguments):
        builder.store(arguments[2], _pointer(builder, arguments[0], ir.DoubleType(), arguments[1]))
        return context.get_dummy_value()

    return types.void(address, types.int64, types.float64), codegen


@intrinsic
def store_float(typingctx, address, index, value):
    """Write the float32 number `index` at `address`, rounded from a float64."""

    def codegen(context, builder, signature, arguments):
        narrow = builder.fptrunc(arguments[2], ir.FloatType())
        builder.store(narrow, _pointer(builder, arguments[0], ir.FloatType(), arguments[1]))
        return context.get_dummy_value()

    return types.void(address, types.int64, types.float64), codegen


@intrinsic(prefer_literal=True)
def load_integer(typingctx, address, offset, width):
    """The integer of a literal width in bytes (negative: signed) at byte `offset`, widened to int64."""
    if not isinstance(width, types.Literal):
        return None
    bits = abs(width.literal_value) * 8
    signed = width.literal_value < 0

    def codegen(context, builder, signature, arguments):
        element = ir.IntType(bits)
        pointer = _pointer(builder, arguments[0], ir.IntType(8), arguments[1])
        pointer = builder.bitcast(pointer, element.as_pointer())
        value = builder.load(pointer, align=1)
        if bits == 64:
            return value
        return builder.sext(value, WORD) if signed else builder.zext(value, WORD)

    return types.int64(types.int64, types.int64, width), codegen


@intrinsic(prefer_literal=True)
def stack_words(typingctx, count):
    """The address of `count` (literal) zeroed words on the stack, allocated once per function, even in a loop."""
    if not isinstance(count, types.Literal):
        return None
    size = count.literal_value

    def codegen(context, builder, signature, arguments):
        block = cgutils.alloca_once(builder, ir.ArrayType(WORD, size))
        builder.store(ir.Constant(block.type.pointee, None), block)
        return builder.ptrtoint(block, WORD)

    return types.int64(count), codegen


@intrinsic
def as_frame(typingctx, address, dtype):
    """Type an address as a frame of the given dtype."""

    def codegen(context, builder, signature, arguments):
        return arguments[0]

    return FrameType(dtype.dtype)(types.int64, dtype), codegen


@intrinsic
def address_of(typingctx, array):
    """The address of an array's first element."""

    def codegen(context, builder, signature, arguments):
        value = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0])
        return builder.ptrtoint(value.data, WORD)

    return types.int64(array), codegen


def make_array(context, builder, array_type, address, length):
    """An array value over memory that it does not own."""
    value = cgutils.create_struct_proxy(array_type)(context, builder)
    itemsize = context.get_abi_sizeof(context.get_data_type(array_type.dtype))
    context_array = dict(
        data=builder.inttoptr(address, context.get_data_type(array_type.dtype).as_pointer()),
        shape=cgutils.pack_array(builder, [length]),
        strides=cgutils.pack_array(builder, [ir.Constant(WORD, itemsize)]),
        itemsize=ir.Constant(WORD, itemsize),
        nitems=length,
        meminfo=None,
        parent=None,
    )
    for name, part in context_array.items():
        if part is not None:
            setattr(value, name, part)
        else:
            member = getattr(value, name)
            setattr(value, name, ir.Constant(member.type, None))
    return value._getvalue()


@intrinsic
def array_at(typingctx, frame, address, length):
    """A 1-D array of the frame's dtype over the `length` elements at `address`."""
    array_type = types.Array(frame.dtype, 1, "C")

    def codegen(context, builder, signature, arguments):
        return make_array(context, builder, array_type, arguments[1], arguments[2])

    return array_type(frame, types.int64, types.int64), codegen


@intrinsic
def borrowed(typingctx, value):
    """`value`, a tuple of arrays that may be nested, as arrays that do not count the references to them.

    A count is an atomic operation; passing a tuple of eight arrays to a function takes sixteen or more. The caller must
    hold `value` while the result is in use. If `value` has a member in which an array could outlive the call, such as a
    list, it is returned as it is.
    """

    def codegen(context, builder, signature, arguments):
        if _keeps_nothing(context, value):
            return _without_owner(context, builder, value, arguments[0])
        return impl_ret_borrowed(context, builder, value, arguments[0])

    return value(value), codegen


def _members(kind):
    """The types of a tuple's members; None of any other type."""
    return getattr(kind, "types", None) if isinstance(kind, types.BaseTuple) else None


def _keeps_nothing(context, kind):
    """Whether a value of this type has no place to which compiled code could assign an array."""
    members = _members(kind)
    if members is not None:
        return all(_keeps_nothing(context, member) for member in members)
    return isinstance(kind, types.Array) or not context.data_model_manager[kind].contains_nrt_meminfo()


def _without_owner(context, builder, kind, value):
    members = _members(kind)
    if members is not None:
        parts = zip(members, cgutils.unpack_tuple(builder, value), strict=True)
        return context.make_tuple(builder, kind, [_without_owner(context, builder, *part) for part in parts])
    if not isinstance(kind, types.Array):
        return value
    array = cgutils.create_struct_proxy(kind)(context, builder, value)
    array.meminfo, array.parent = (ir.Constant(owner.type, None) for owner in (array.meminfo, array.parent))
    return array._getvalue()


@intrinsic(prefer_literal=True)
def symbol_address(typingctx, name):
    """The address of a process-wide symbol (literal name) that llvmlite.binding.add_symbol has defined."""

    if not isinstance(name, types.Literal):
        return None

    def codegen(context, builder, signature, arguments):
        module = builder.module
        text = name.literal_value
        symbol = module.globals.get(text) or ir.GlobalVariable(module, WORD, text)
        symbol.linkage = "external"
        return builder.ptrtoint(symbol, WORD)

    return types.int64(name), codegen


def _native_call(context, builder, signature, address, arguments, tuple_type):
    """Call a Numba native function by address with a tuple of arguments, each cast to its parameter's type."""
    convention = context.call_conv
    function_type = convention.get_function_type(signature.return_type, signature.args)
    pointer = builder.inttoptr(address, function_type.as_pointer())
    values = [
        context.cast(builder, value, given, wanted)
        for value, given, wanted in zip(
            cgutils.unpack_tuple(builder, arguments), tuple_type.types, signature.args, strict=True
        )
    ]
    return convention.call_function(builder, pointer, signature.return_type, signature.args, values)


def indirect_call(signature):
    """An intrinsic ``call(address, arguments) -> (status, result)`` for compiled functions of one signature.

    The callee is a Numba native function; an exception in it becomes a nonzero status (without details), whereas a C
    callback would print and swallow it. A function without a return value gives 0.
    """
    result_type = types.int64 if signature.return_type == types.void else signature.return_type
    pair = types.Tuple((types.int64, result_type))

    @intrinsic
    def call(typingctx, address, arguments):
        def codegen(context, builder, typed, values):
            address, given = values
            status, result = _native_call(context, builder, signature, address, given, typed.args[1])
            code = builder.sext(status.code, WORD)
            code = builder.select(status.is_error, code, ir.Constant(WORD, 0))
            if signature.return_type == types.void:
                result = ir.Constant(WORD, 0)
            return context.make_tuple(builder, pair, [code, result])

        return pair(types.int64, arguments), codegen

    return call


def propagating_call(signature):
    """An intrinsic ``call(address, arguments)`` that propagates exceptions of the callee."""

    @intrinsic
    def call(typingctx, address, arguments):
        def codegen(context, builder, typed, values):
            address, given = values
            status, result = _native_call(context, builder, signature, address, given, typed.args[1])
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.return_status_propagate(builder, status)
            return result

        return signature.return_type(types.int64, arguments), codegen

    return call


@intrinsic
def call_c(typingctx, address, arguments):
    """Call the C function ``int64 f(int64, ...)`` at `address` with a tuple of integers."""

    def codegen(context, builder, signature, values):
        unpacked = cgutils.unpack_tuple(builder, values[1])
        pointer = builder.inttoptr(values[0], ir.FunctionType(WORD, [WORD] * len(unpacked)).as_pointer())
        return builder.call(pointer, unpacked)

    return types.int64(types.int64, types.UniTuple(types.int64, len(arguments))), codegen


@intrinsic
def atomic_replace(typingctx, address, index, expected, value):
    """Write a word if it holds `expected`; returns what it held before. Sequentially consistent."""

    def codegen(context, builder, signature, arguments):
        pointer = _pointer(builder, arguments[0], WORD, arguments[1])
        found = builder.cmpxchg(pointer, arguments[2], arguments[3], "seq_cst", "seq_cst")
        return builder.extract_value(found, 0)

    return types.int64(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def ticks(typingctx):
    """A time counter that takes some 10 ns to read, where reading a clock may take 600; 0 if there is none."""
    counters = {"x86": "cycle", "arm": "steady"}  # ARM's cycle counter is not for user code

    def codegen(context, builder, signature, arguments):
        if architecture() not in counters:
            return ir.Constant(WORD, 0)
        name = f"llvm.read{counters[architecture()]}counter"
        return builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(WORD, []), name), [])

    return types.int64(), codegen


@intrinsic
def double_of_word(typingctx, word):
    """The float64 whose bits a word holds: how a row holds a real number."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), codegen


def register_address_type(numba_type, attribute, words):
    """Represent a Python object in compiled code by an address; returns the intrinsic that reads the address.

    `attribute` of the object is the address. As a global, the object is frozen like a global array: `words(object)`,
    its int64 words, become a constant of the compiled code, which a disk cache may store.
    """

    @register_model(numba_type)
    class AddressModel(models.PrimitiveModel):
        def __init__(self, dmm, fe_type):
            super().__init__(dmm, fe_type, WORD)

    @unbox(numba_type)
    def unbox_address(typ, obj, c):
        number = c.pyapi.object_getattr_string(obj, attribute)
        address = c.pyapi.long_as_longlong(number)
        c.pyapi.decref(number)
        return NativeValue(address, is_error=cgutils.is_not_null(c.builder, c.pyapi.err_occurred()))

    @lower_constant(numba_type)
    def constant_address(context, builder, typ, value):
        content = ir.Constant(ir.ArrayType(WORD, len(words(value))), [int(word) for word in words(value)])
        constant = cgutils.global_constant(builder, "nbprop_words", content)
        constant.align = 8
        return builder.ptrtoint(constant, WORD)

    @intrinsic
    def address(typingctx, value):
        def codegen(context, builder, signature, arguments):
            return arguments[0]

        return types.int64(value), codegen

    return address


@intrinsic
def pointer_to_one(typingctx, array):
    """A pointer to a constant 1 of the array's dtype: with strides of 0, a matrix of ones without memory."""

    def codegen(context, builder, signature, arguments):
        element = context.get_data_type(array.dtype)
        return cgutils.global_constant(builder, "nbprop_one", ir.Constant(element, 1.0))

    return types.CPointer(array.dtype)(array), codegen
