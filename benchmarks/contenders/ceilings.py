"""The machine's own limits, measured alongside everything else: multiply-add peak, copy bandwidth, and BLAS.

A time divided by that of "fma" says how many times longer the work took than its multiply-adds alone at the peak just
measured; its inverse is the fraction of the peak. Two threads run independent loops that share nothing, so their
speedup is the most that any two-threaded program can reach on this machine at this moment.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable

import llvmlite.binding as llvm
import numpy as np

from harness.work import Work
from workloads.growth import row_named
from workloads.rows import Row, aligned

# independent accumulators: a latency of 4-5 on two units needs 10; 12 and two operands fit 16 registers
CHAINS = 12
COPY_BYTES = 128 * 2**20  # an array of this size exceeds every cache


def build(library: str, name: str, threads: int) -> Work:
    row = row_named(name)
    return {"fma": fma_work, "copy": copy_work, "blas": blas_work}[library](row, threads)


def vector_bits() -> int:
    """The widest vector register of this processor, in bits, as LLVM names its features."""
    features = llvm.get_host_cpu_features()
    return 512 if features.get("avx512f") else 256 if features.get("avx2") else 128


def _fma_source(name: str, scalar: str, width: int) -> str:
    """LLVM IR of `void name(int64 n, scalar *out)`: n times CHAINS independent a <- a * 0.5 + 1."""
    vector, tag = f"<{width} x {scalar}>", f"v{width}f{32 if scalar == 'float' else 64}"
    half, one = (f"<{', '.join([f'{scalar} {value}'] * width)}>" for value in ("0.5", "1.0"))
    phis = "\n".join(
        f"  %a{i} = phi {vector} [ {_constant(scalar, width, i)}, %entry ], [ %b{i}, %loop ]" for i in range(CHAINS)
    )
    fmas = "\n".join(
        f"  %b{i} = call {vector} @llvm.fma.{tag}({vector} %a{i}, {vector} {half}, {vector} {one})"
        for i in range(CHAINS)
    )
    sums = "\n".join(f"  %s{i} = fadd {vector} {'%b0' if i == 1 else f'%s{i - 1}'}, %b{i}" for i in range(1, CHAINS))
    return f"""
declare {vector} @llvm.fma.{tag}({vector}, {vector}, {vector})
define void @{name}(i64 %n, {scalar}* %out) {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
{phis}
{fmas}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop, label %done
done:
{sums}
  %first = extractelement {vector} %s{CHAINS - 1}, i32 0
  store {scalar} %first, {scalar}* %out
  ret void
}}"""


def _constant(scalar: str, width: int, i: int) -> str:
    return f"<{', '.join([f'{scalar} {float(i)}'] * width)}>"


@functools.cache
def _fma_engine(dtype: str) -> tuple[object, Callable[[int], None], int]:
    """The compiled loop (kept alive by its engine) and the floating-point operations of one iteration."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    scalar, ctype = ("float", ctypes.c_float) if dtype == "float32" else ("double", ctypes.c_double)
    width = vector_bits() // (8 * np.dtype(dtype).itemsize)
    module = llvm.parse_assembly(_fma_source("fma_loop", scalar, width))
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    # releases the interpreter's lock
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.POINTER(ctype))
    function = prototype(engine.get_function_address("fma_loop"))

    def loop(iterations: int) -> None:
        out = ctype()
        function(max(1, iterations), ctypes.byref(out))

    return engine, loop, 2 * CHAINS * width


def fma_loop(dtype: str, threads: int) -> tuple[Callable[[int], None], int]:
    """loop(n), and the operations of each of its n iterations, which are divided among the threads."""
    _, loop, flops = _fma_engine(dtype)
    if threads == 1:
        return loop, flops

    def parallel(iterations: int) -> None:
        workers = [threading.Thread(target=loop, args=(iterations // threads,)) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return parallel, flops


def fma_work(row: Row, threads: int) -> Work:
    """As many multiply-adds as the row's products."""
    loop, flops = fma_loop(row.dtype, threads)
    return Work(lambda n: loop(round(n * row.flops / flops)))


def copy_work(row: Row, threads: int) -> Work:
    """As many bytes, read and written, as the row must move.

    One copy stands for several calls of a small row, several copies for one call of a row larger than the arrays here.
    """
    units, passes = max(1, round(2 * COPY_BYTES / row.bytes)), max(1, round(row.bytes / (2 * COPY_BYTES)))
    elements = round(row.bytes * units / passes / 16)
    source, destination = np.ones(elements), np.empty(elements)

    def copy(n: int) -> None:
        for _ in range(n * passes):
            np.copyto(destination, source)

    return Work(copy, units=units)


def blas_work(row: Row, threads: int) -> Work:
    """SciPy's OpenBLAS, called by Numba without Python in between, as an @njit program would call it."""
    import numba

    a, b = row.matrices()
    c = aligned(np.zeros((a.shape[0], b.shape[1]), a.dtype))

    @numba.njit
    def products(a, b, c, n):
        for _ in range(n):
            np.dot(a, b, c)

    products(a, b, c, 1)
    return Work(lambda n: products(a, b, c, n), check=float(c.sum(dtype=np.float64)))
