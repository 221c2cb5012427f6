"""Four neighbouring floats in one 128-bit memory access, which Numba cannot express, so written with llvmlite.

The index of the first must be a multiple of 4, and the array aligned to 16 bytes. (Four float64 are two accesses.)
"""

import functools

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from nbprop.compiler.intrinsics import address_of
from nbprop.compiler.jit import intrinsic
from nbprop.cuda.toolkit import SIMULATED, cuda, device_function

_ALIGNMENT = 16
# The third argument of cuda.shared.array for an array with accesses of four; the simulator takes none.
ALIGNMENT = None if SIMULATED else _ALIGNMENT


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
    for k in range(4):
        to[at + k] = source[index + k]


def _store4_simulated(to, index, source, at):
    assert index % 4 == 0, "not aligned"
    for k in range(4):
        to[index + k] = source[at + k]


# load4(to, at, source, index): to[at : at + 4] = source[index : index + 4], in one load.
load4 = _load4_simulated if SIMULATED else _load4
# store4(to, index, source, at): to[index : index + 4] = source[at : at + 4], in one store.
store4 = _store4_simulated if SIMULATED else _store4


def _address_simulated(array):
    return (array if hasattr(array, "ctypes") else array._item._ary).ctypes.data


# address(array): of its first element.
address = _address_simulated if SIMULATED else address_of


@device_function
def fours(array, stride, first):
    """Whether accesses of four are possible in all rows of an array, `stride` apart from element `first` on."""
    return address(array) % _ALIGNMENT == 0 and stride % 4 == 0 and first % 4 == 0


@functools.cache
def runs(count):
    """Device functions (load, store) as load4 and store4, for `count` neighbours: one access if that is 4."""
    if count == 4:
        return load4, store4

    @device_function
    def load(to, at, source, index):
        for k in range(count):
            to[at + k] = source[np.uint64(index + k)]

    @device_function
    def store(to, index, source, at):
        for k in range(count):
            to[np.uint64(index + k)] = source[at + k]

    return load, store


def mapped(function, inputs):
    """A device function run(y, a, b, total, code): y[i] = function(a[i], b[i], code), in any order; y may be a or b.

    Four elements at a time where the arrays allow it. inputs: 1 where b is not read.
    """

    @device_function
    def run(y, a, b, total, code):
        left, right = cuda.local.array(4, y.dtype), cuda.local.array(4, y.dtype)
        whole = total // 4 * 4 if fours(y, 4, 0) and fours(a, 4, 0) and (inputs == 1 or fours(b, 4, 0)) else 0
        for i in range(4 * cuda.grid(1), whole, 4 * cuda.gridsize(1)):
            load4(left, 0, a, i)
            if inputs > 1:
                load4(right, 0, b, i)
            # Not a loop: with a long function it would stay one, and `left` would be in memory.
            left[0] = function(left[0], right[0], code)
            left[1] = function(left[1], right[1], code)
            left[2] = function(left[2], right[2], code)
            left[3] = function(left[3], right[3], code)
            store4(y, i, left, 0)
        for i in range(whole + cuda.grid(1), total, cuda.gridsize(1)):
            y[i] = function(a[i], b[i] if inputs > 1 else a[i], code)

    return run
