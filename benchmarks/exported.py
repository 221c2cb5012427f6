"""An exported network beside nbprop itself, hand-written C and ONNX Runtime: microseconds for one sample.

    python benchmarks/exported.py

4-32-32-1 with tanh in float32: forward, and the Jacobian by the input. All in one process, in turns, slice by slice;
figures are medians of the slices' times, with their quartiles. The C is built with -O3 -march=native, and called from C
loops, so that no call from Python is in a figure but ONNX Runtime's, which has none without. With CasADi there, also an
evaluation of its external function beside the same network as CasADi's expressions.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np

import nbprop
from harness.paired import Spread, ratio, rotate

ROTATIONS, CALLS = 15, 20_000
NET = nbprop.network((4,), nbprop.dense(32, "tanh"), nbprop.dense(32, "tanh"), nbprop.dense(1))
FLAGS = ("-std=c99", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared")

# Loops over the exported functions, and a network as one writes it by hand for a fixed size (with libm's tanh).
LOOPS = """
#include <math.h>
#include "net.h"

void many_forwards(int calls, float *x, float *y, float *scratch)
{
    for (int k = 0; k < calls; k++) {
        net_forward(net_params, 1, x, y, scratch);
        x[0] = 0.25f + 0.001f * y[0];
    }
}

void many_jacobians(int calls, float *x, float *dx, float *scratch)
{
    const float one = 1.0f;
    for (int k = 0; k < calls; k++) {
        net_vjp(net_params, 1, x, &one, dx, 0, scratch);
        x[0] = 0.25f + 0.001f * dx[0];
    }
}

static void layer(float *restrict y, const float *restrict x, const float *restrict w, const float *restrict b,
                  int inputs, int outputs)
{
    for (int j = 0; j < outputs; j++) {
        y[j] = b[j];
    }
    for (int k = 0; k < inputs; k++) {
        for (int j = 0; j < outputs; j++) {
            y[j] += x[k] * w[k * outputs + j];
        }
    }
}

void by_hand(int calls, float *x, float *y)
{
    const float *p = net_params;
    float a[32], b[32];
    for (int k = 0; k < calls; k++) {
        layer(a, x, p, p + 128, 4, 32);
        for (int j = 0; j < 32; j++) {
            a[j] = tanhf(a[j]);
        }
        layer(b, a, p + 160, p + 1184, 32, 32);
        for (int j = 0; j < 32; j++) {
            b[j] = tanhf(b[j]);
        }
        layer(y, b, p + 1216, p + 1248, 32, 1);
        x[0] = 0.25f + 0.001f * y[0];
    }
}
"""


@numba.njit
def forwards(plan, params, x, y, work, calls):
    for _ in range(calls):
        nbprop.forward(plan, params, x, y, work)
        x[0, 0] = np.float32(0.25) + np.float32(0.001) * y[0, 0]


def timed(run: Callable[[int], object], calls: int = CALLS) -> Callable[[], float]:
    """Microseconds a call, of `calls` calls."""
    run(2)

    def measure() -> float:
        begin = time.perf_counter()
        run(calls)
        return (time.perf_counter() - begin) / calls * 1e6

    return measure


def in_c(folder: Path, params: np.ndarray) -> dict[str, Callable[[], float]]:
    nbprop.export_c(folder / "net", NET, params, ["forward", "vjp"])
    (folder / "loops.c").write_text(LOOPS, encoding="utf-8")
    command = ["gcc", *FLAGS, "net.c", "loops.c", "-o", "net.so", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    library = ctypes.CDLL(str(folder / "net.so"))
    arrays = [np.full(4, 0.25, np.float32), np.zeros(4, np.float32), np.zeros(10_000, np.float32)]
    x, y, scratch = (ctypes.c_void_p(array.ctypes.data) for array in arrays)
    library.keeps = arrays  # as long as the functions
    return {
        "exported C, forward": timed(lambda calls: library.many_forwards(calls, x, y, scratch)),
        "exported C, Jacobian": timed(lambda calls: library.many_jacobians(calls, x, y, scratch)),
        "C by hand, forward": timed(lambda calls: library.by_hand(calls, x, y)),
    }


def in_numba(params: np.ndarray) -> dict[str, Callable[[], float]]:
    plan = nbprop.plan(NET, batch=1, dtype=np.float32, mode="inference")
    x, y, work = np.full((1, 4), 0.25, np.float32), np.empty((1, 1), np.float32), nbprop.workspace(plan)
    return {"nbprop in @njit, forward": timed(lambda calls: forwards(plan, params, x, y, work, calls))}


def in_onnxruntime(folder: Path, params: np.ndarray) -> dict[str, Callable[[], float]]:
    import onnxruntime

    nbprop.to_onnx(folder / "net.onnx", NET, params)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "net.onnx", options, providers=["CPUExecutionProvider"])
    x = {"x": np.full((1, 4), 0.25, np.float32)}
    return {"ONNX Runtime from Python, forward": timed(lambda calls: [session.run(None, x) for _ in range(calls)], 500)}


def in_casadi(folder: Path, params: np.ndarray) -> dict[str, Callable[[], float]]:
    import casadi

    wide = params.astype(np.float64)
    nbprop.export_c(folder / "wide", NET, wide, ["forward"], "float64", bindings=["casadi"])
    command = ["gcc", *FLAGS, "wide.c", "wide_casadi.c", "-o", "wide.so", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    parts, x = nbprop.views(NET, wide), casadi.SX.sym("x", 4)
    h = x
    for k in range(3):
        h = parts[f"{k}.dense.weight"].T @ h + parts[f"{k}.dense.bias"]
        h = casadi.tanh(h) if k < 2 else h
    found = {}
    for name, function in (
        ("external", casadi.external("wide", str(folder / "wide.so"))),
        ("expressions", casadi.Function("wide", [x], [h])),
    ):
        at = casadi.MX.sym("at", 4)
        hessian = casadi.Function("hessian", [at], [casadi.hessian(function(at), at)[0]])
        for what, call in (("forward", function), ("Hessian", hessian)):
            buffer, run = call.buffer()
            arrays = np.full(4, 0.25), np.zeros(call.nnz_out(0))
            buffer.set_arg(0, memoryview(arrays[0]))
            buffer.set_res(0, memoryview(arrays[1]))
            found[f"CasADi, {name}, {what}"] = timed(
                lambda calls, run=run, kept=(buffer, arrays): [run() for _ in range(calls)], 500
            )
    return found


def main() -> None:
    params = nbprop.init(NET, dtype=np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name), in_numba(params)
        runs |= in_c(folder, params) if shutil.which("gcc") else {}
        has = importlib.util.find_spec
        runs |= in_onnxruntime(folder, params) if has("onnx") and has("onnxruntime") else {}
        runs |= in_casadi(folder, params) if has("casadi") and shutil.which("gcc") else {}
        times = rotate(runs, ROTATIONS)
    for name, values in times.items():
        spread = Spread.of(values)
        print(f"{name:<36} {spread.median:8.3f} us  ({spread.q25:.3f} to {spread.q75:.3f})")
    exported = "exported C, forward"
    if exported in times:
        for other in ("nbprop in @njit, forward", "C by hand, forward"):
            print(f"exported forward / {other}: {ratio(times, exported, other).median:.2f}")
        print(f"Jacobian / forward, exported: {ratio(times, 'exported C, Jacobian', exported).median:.2f}")


if __name__ == "__main__":
    main()
