"""Vector instructions from Python, in which microkernel.py writes its kernels.

A kernel is an LLVM function, built instruction by instruction. `Vectors` emits loads, stores and fused multiply-adds on
vectors of one width; `call` defines a kernel on first use and calls it.
"""

from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba.core import cgutils, types

config: Any = numba.config  # a module whose attributes are set when it is imported


def instruction_sets():
    """The instruction sets that Numba compiles for: those of the processor, or NUMBA_CPU_FEATURES if that is set."""
    if config.CPU_FEATURES is None:
        return {name for name, present in llvm.get_host_cpu_features().items() if present}
    return {flag[1:] for flag in config.CPU_FEATURES.split(",") if flag.startswith("+")}


# Bytes in the widest vector register.  Every 64-bit processor has sixteen (SSE2, NEON); without fused multiply-add
# in hardware, LLVM calls the C library's, which is slow and gives the same bits.
VECTOR_BYTES = 64 if "avx512f" in instruction_sets() else 32 if "avx" in instruction_sets() else 16
HALF_BYTES = max(16, VECTOR_BYTES // 2)

INT = ir.IntType(64)
INT32 = ir.IntType(32)


def element(pointer_type):
    """The LLVM type of a scalar, its name inside intrinsic names, and its bytes."""
    return (ir.FloatType(), "f32", 4) if pointer_type.dtype == types.float32 else (ir.DoubleType(), "f64", 8)


class Vectors:
    """Emits loads, stores and arithmetic on vectors of one width."""

    def __init__(self, builder, pointer_type, width):
        self.builder, self.module = builder, builder.module
        self.scalar, self.name, self.bytes = element(pointer_type)
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
        first = self.builder.insert_element(empty, value, INT32(0))
        return self.builder.shuffle_vector(first, empty, lane_numbers([0] * kind.count))

    def mask(self, count):
        """True in the first `count` lanes, 1 <= count <= lanes."""
        bits = ir.IntType(self.lanes)
        absent = self.builder.trunc(self.builder.sub(INT(self.lanes), count), bits)
        return self.builder.bitcast(self.builder.lshr(bits(-1), absent), self.mask_type)

    def load(self, address, mask=None):
        where = self.type.as_pointer()
        address = self.builder.bitcast(address, where)
        if mask is None:
            vector = self.builder.load(address)
            vector.align = self.bytes
            return vector
        name = f"llvm.masked.load.v{self.lanes}{self.name}.p0"
        function = self._intrinsic(name, self.type, [where, INT32, self.mask_type, self.type])
        return self.builder.call(function, [address, INT32(self.bytes), mask, self.zero()])

    def store(self, value, address, mask=None):
        where = self.type.as_pointer()
        address = self.builder.bitcast(address, where)
        if mask is None:
            self.builder.store(value, address).align = self.bytes
            return
        name = f"llvm.masked.store.v{self.lanes}{self.name}.p0"
        function = self._intrinsic(name, ir.VoidType(), [self.type, where, INT32, self.mask_type])
        self.builder.call(function, [value, address, INT32(self.bytes), mask])

    def prefetch(self, address, *, to_write):
        """Prefetch the cache line at an address, which may be invalid: into the L1 cache to write, else the L2."""
        address = self.builder.bitcast(address, self.scalar.as_pointer())
        function = self._intrinsic("llvm.prefetch.p0", ir.VoidType(), [address.type, INT32, INT32, INT32])
        write, level, data = INT32(int(to_write)), INT32(3 if to_write else 2), INT32(1)
        self.builder.call(function, [address, write, level, data])

    def fma(self, a, b, c):
        function = self._intrinsic(f"llvm.fma.v{self.lanes}{self.name}", self.type, [self.type] * 3)
        return self.builder.call(function, [a, b, c])


def lane_numbers(lanes):
    return ir.Constant(ir.VectorType(INT32, len(lanes)), lanes)


def call(builder, name, emit, pointer_type, args, *shape):
    """Call an LLVM function that `emit(builder, pointer_type, *shape, *args)` fills on its first use in a module.

    It is never inlined: LLVM would compute the row offsets of all tiles before the surrounding loops, and keep a
    hundred of them on the stack, which is slower than the calls, and slower to compile.
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


def keep_rolled(module, branch):
    """Keep LLVM from unrolling the loop that `branch` closes, whose body is too long to gain by it."""
    disable = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    loop = module.add_metadata([ir.MetaDataString(module, str(len(module.metadata)))])
    loop.operands = (loop, disable)  # a loop's identity is a node that names itself
    branch.set_metadata("llvm.loop", loop)


def phis(builder, kind, rows, vectors):
    return [[builder.phi(kind) for _ in range(vectors)] for _ in range(rows)]


def feed(phis, values, block):
    """Set the value of each phi when control comes from `block`."""
    for phi_row, value_row in zip(phis, values, strict=True):
        for phi, value in zip(phi_row, value_row, strict=True):
            phi.add_incoming(value, block)
