# ruff: noqa: E402
"""The matrix product alone, on one thread, compared with OpenBLAS and the processor's multiply-add peak.

    python benchmarks/kernel_gemm.py [float32|float64]

Four contenders take turns, slice by slice (see harness/paired.py): nbprop's product, called from compiled code;
OpenBLAS's routine, called from compiled code through its address, without any Python; `numpy.dot(a, b, out=c)`, called
from Python; and a loop of independent multiply-adds. "T" marks a product whose A is stored transposed, as in a weight
gradient. GFLOP/s are those of the fastest slice; a ratio is the median over the rotations, with its quartiles: how many
times faster nbprop is.
"""

import os

from harness.machine import untuned

# Before NumPy and SciPy load their copies of OpenBLAS, which read it once.
_environment = untuned(os.environ) | {"OPENBLAS_NUM_THREADS": "1"}
os.environ.clear()
os.environ.update(_environment)

import ctypes
import sys
import time

import numba
import numpy as np
from numba.extending import get_cython_function_address

from contenders.ceilings import fma_loop
from contenders.ours import product_loop
from harness.paired import ratio, rotate
from workloads.rows import aligned

# (m, n, k, A is stored transposed): forward, weight gradient and input gradient of small, medium and large layers.
SHAPES = [
    *((64, 32, 32, False), (64, 32, 4, False), (64, 1, 32, False), (32, 32, 64, True), (4, 32, 64, True)),
    *((32, 1, 64, True), (64, 32, 1, False), (64, 4, 32, False), (7, 33, 50, False)),
    *((1, 32, 4, False), (1, 32, 32, False), (1, 1, 32, False), (1, 1024, 1024, False)),
    *((64, 64, 64, False), (256, 256, 256, False), (1024, 1024, 1024, False)),
    *(
        (128, 128, 784, False),
        (784, 128, 128, True),
        (128, 10, 128, False),
        (128, 10, 128, True),
        (128, 128, 10, False),
    ),
    *((256, 1024, 784, False), (784, 1024, 256, True), (256, 1024, 1024, False), (1024, 1024, 256, True)),
]
SLICE = 20e-6  # seconds: short, so that some slices have the core to themselves
ROTATIONS = 400
LONGEST = 2.0  # seconds for all rotations of one shape


def blas_runner(dtype):
    """A compiled loop over OpenBLAS's sgemm or dgemm, called as a C function (Fortran order: C^T = B^T A^T)."""
    name = {"float32": "sgemm", "float64": "dgemm"}[dtype]
    address = get_cython_function_address("scipy.linalg.cython_blas", name)
    routine = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 13)(address)

    @numba.njit(nogil=True)
    def run(c, a, b, letters, sizes, scalars, repeats):
        for _ in range(repeats):
            routine(
                *(letters[0:].ctypes, letters[1:].ctypes, sizes[0:].ctypes, sizes[1:].ctypes, sizes[2:].ctypes),
                *(scalars[0:].ctypes, b.ctypes, sizes[0:].ctypes, a.ctypes, sizes[3:].ctypes),
                *(scalars[1:].ctypes, c.ctypes, sizes[0:].ctypes),
            )

    return run


def timed(run, repeats):
    """A contender: runs `repeats` times and returns the seconds of one."""

    def contender():
        start = time.perf_counter()
        run(repeats)
        return (time.perf_counter() - start) / repeats

    return contender


def measure(m, n, k, transposed, dtype, run_gemm, gemm_scratch, run_blas):
    """The times of all contenders, and their names: ours, sgemm, numpy.dot, peak."""
    rng = np.random.default_rng(0)
    a, b, c, expected = (aligned(rng.standard_normal(size).astype(dtype)) for size in (m * k, k * n, m * n, m * n))
    scratch = aligned(np.zeros(gemm_scratch(m, n, k, 1) + 1, dtype))
    strides = (1, m) if transposed else (k, 1)
    matrix = a.reshape(k, m).T if transposed else a.reshape(m, k)
    sizes = np.array([n, m, k, m if transposed else k], np.int32)
    letters = np.frombuffer(b"NT" if transposed else b"NN", np.uint8)
    scalars = np.array([1, 0], dtype)
    loop, flops = fma_loop(dtype, 1)
    iterations = max(1, round(2 * m * n * k / flops))

    def dot(repeats):
        for _ in range(repeats):
            np.dot(matrix, b.reshape(k, n), out=expected.reshape(m, n))

    runs = {
        "ours": lambda repeats: run_gemm(c, a, *strides, b, m, n, k, scratch, repeats),
        "blas": lambda repeats: run_blas(expected, a, b, letters, sizes, scalars, repeats),
        "dot": dot,
        "peak": lambda repeats: loop(repeats * iterations),
    }
    for run in runs.values():
        run(1)
    np.testing.assert_allclose(c, expected, rtol=1e-3, atol=1e-3)
    repeats = 1
    while (once := timed(runs["ours"], repeats)()) * repeats < SLICE:
        repeats *= 2
    rotations = int(min(ROTATIONS, max(9, LONGEST / (4 * repeats * once))))
    return rotate({name: timed(run, repeats) for name, run in runs.items()}, rotations)


def main(dtype="float32"):
    runners = *product_loop(dtype), blas_runner(dtype)
    print(f"{dtype}, one thread; GFLOP/s of the fastest slice; how many times faster, median (quartiles)")
    print(f"{'m x n x k':>17} {'nbprop':>7} {'BLAS':>6} {'dot':>6} {'peak':>6} {'of peak':>8} {'ns':>9}  ", end="")
    print(f"{'over BLAS':<20} over numpy.dot")
    for m, n, k, transposed in SHAPES:
        times = measure(m, n, k, transposed, dtype, *runners)
        best = {name: min(values) for name, values in times.items()}
        speeds = {name: 2e-9 * m * n * k / seconds for name, seconds in best.items()}
        blas, dot = (ratio(times, peer, "ours") for peer in ("blas", "dot"))
        print(
            f"{f'{m}x{n}x{k}' + ('T' if transposed else ' '):>17} {speeds['ours']:7.1f} {speeds['blas']:6.1f}", end=""
        )
        print(f" {speeds['dot']:6.1f} {speeds['peak']:6.1f} {speeds['ours'] / speeds['peak']:8.0%}", end="")
        print(f" {best['ours'] * 1e9:9.0f}  {blas.median:.2f} ({blas.q25:.2f}-{blas.q75:.2f})", end="")
        print(f"     {dot.median:.2f} ({dot.q25:.2f}-{dot.q75:.2f})", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
