"""Atomic operations on words shared by threads, and the pause instruction for spin loops."""

from llvmlite import ir
from numba import types
from numba.core import cgutils

from nbprop.compiler.intrinsics import WORD, _pointer
from nbprop.compiler.jit import intrinsic
from nbprop.system import architecture


@intrinsic
def atomic_load(typingctx, address, index):
    """Read a word. Sequentially consistent: if two threads each write a word, then read the other's, one sees it."""

    def codegen(context, builder, signature, arguments):
        pointer = _pointer(builder, arguments[0], WORD, arguments[1])
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_add(typingctx, address, index, value):
    """Add to a word; returns what it held before. Sequentially consistent."""

    def codegen(context, builder, signature, arguments):
        pointer = _pointer(builder, arguments[0], WORD, arguments[1])
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def atomic_exchange(typingctx, address, index, value):
    """Write a word; returns what it held before. Sequentially consistent."""

    def codegen(context, builder, signature, arguments):
        pointer = _pointer(builder, arguments[0], WORD, arguments[1])
        return builder.atomic_rmw("xchg", pointer, arguments[2], "seq_cst")

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def spin_pause(typingctx):
    """The pause instruction of a spin loop (x86 PAUSE, AArch64 YIELD, nothing elsewhere).

    Inline assembly aborts the process under Numba's JIT, hence the LLVM intrinsics.
    """

    def codegen(context, builder, signature, arguments):
        if architecture() == "x86":
            function_type = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.sse2.pause"), [])
        elif architecture() == "arm":
            function_type = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            hint = cgutils.get_or_insert_function(builder.module, function_type, "llvm.aarch64.hint")
            builder.call(hint, [ir.Constant(ir.IntType(32), 1)])
        return context.get_dummy_value()

    return types.void(), codegen
