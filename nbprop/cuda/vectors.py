"""Four neighbouring floats in one 128-bit memory access, which Numba cannot express, so written with llvmlite.

The index of the first must be a multiple of 4, and the array aligned to 16 bytes.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils

from nbprop.compiler.jit import intrinsic
from nbprop.cuda.toolkit import SIMULATED

_ALIGNMENT = 16


def _four(context, builder, array_type, array, index):
    """The address of four elements, as a pointer to a vector."""
    element = context.get_data_type(array_type.dtype)
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(element, 4).as_pointer())


@intrinsic
def _load4(typingctx, to, at, source, index):
    def codegen(context, builder, signature, arguments):
        to_type, _, source_type, _ = signature.args
        four = builder.load(_four(context, builder, source_type, arguments[2], arguments[3]), align=_ALIGNMENT)
        data = cgutils.create_struct_proxy(to_type)(context, builder, arguments[0]).data
        for k in range(4):
            place = builder.add(arguments[1], ir.Constant(arguments[1].type, k))
            builder.store(builder.extract_element(four, ir.Constant(ir.IntType(32), k)), builder.gep(data, [place]))
        return context.get_dummy_value()

    return types.void(to, types.int64, source, types.int64), codegen


@intrinsic
def _store4(typingctx, to, index, source, at):
    def codegen(context, builder, signature, arguments):
        to_type, _, source_type, _ = signature.args
        element = context.get_data_type(to_type.dtype)
        data = cgutils.create_struct_proxy(source_type)(context, builder, arguments[2]).data
        four = ir.Constant(ir.VectorType(element, 4), ir.Undefined)
        for k in range(4):
            place = builder.add(arguments[3], ir.Constant(arguments[3].type, k))
            four = builder.insert_element(
                four, builder.load(builder.gep(data, [place])), ir.Constant(ir.IntType(32), k)
            )
        builder.store(four, _four(context, builder, to_type, arguments[0], arguments[1]), align=_ALIGNMENT)
        return context.get_dummy_value()

    return types.void(to, types.int64, source, types.int64), codegen


def _load4_simulated(to, at, source, index):
    assert index % 4 == 0, "not aligned"
    to[at : at + 4] = source[index : index + 4]


def _store4_simulated(to, index, source, at):
    assert index % 4 == 0, "not aligned"
    to[index : index + 4] = source[at : at + 4]


# load4(to, at, source, index): to[at : at + 4] = source[index : index + 4], in one load.
load4 = _load4_simulated if SIMULATED else _load4
# store4(to, index, source, at): to[index : index + 4] = source[at : at + 4], in one store.
store4 = _store4_simulated if SIMULATED else _store4
