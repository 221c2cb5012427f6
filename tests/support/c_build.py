"""Exported C: compiled once for many networks, and called as nbprop's functions are."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import nbprop
from nbprop.export.programs import FUNCTIONS
from support.cases import CASES, Buffers, data
from support.contract import parameters

WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wconversion")
BATCH = 3


def compiler(name="gcc"):
    """The path of a compiler; without it the test is skipped, by its name."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} here")
    return found


def run(command, **options):
    """A command's standard output; the test fails with what it said where the command fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))[:200]}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def stem_of(case, dtype):
    """A C identifier for a case of support/cases.py in a dtype."""
    return f"{case}_{np.dtype(dtype).name}"


def given(case, dtype):
    """(network, loss, params, state or None) of a case; mean squared error where it has no loss of its own."""
    net, loss = CASES[case]
    plan = nbprop.plan(net, loss or "mse", BATCH, mode="inference")
    state = None
    if plan.state_size:
        state = np.random.default_rng(5).uniform(0.5, 1.5, plan.state_size).astype(dtype)
    return net, loss or "mse", parameters(plan, np.random.default_rng(4)).astype(dtype), state


def export(folder, case, dtype):
    """Export a case."""
    net, loss, params, state = given(case, dtype)
    nbprop.export_c(folder / stem_of(case, dtype), net, params, dtype=dtype, batch=BATCH, loss=loss, state=state)


def export_all(folder, cases, dtypes=("float32", "float64")):
    """Export cases in both dtypes."""
    for case in cases:
        for dtype in dtypes:
            export(folder, case, dtype)


class Exported:
    """Whatever has been exported into a folder, compiled by one run of a compiler."""

    def __init__(self, folder):
        self.folder = Path(folder)
        library = self.folder / "all.so"
        flags = ("-std=c99", "-O1", "-ffp-contract=off", "-fPIC", "-shared")
        run([compiler(), *flags, *WARNINGS, *sorted(self.folder.glob("*.c")), "-o", library, "-lm"])
        self.library = ctypes.CDLL(str(library))

    def size(self, stem, name):
        """A size that a header defines."""
        text = (self.folder / f"{stem}.h").read_text()
        return int(text.partition(f"#define {stem.upper()}_{name} ")[2].split()[0])

    def has(self, stem, function):
        return hasattr(self.library, f"{stem}_{function}")

    def step(self, stem, optimizer, params, grads, *rest):
        """Call an optimizer's step: arrays as pointers, then whole numbers and the learning rate."""
        real = ctypes.c_float if params.dtype == np.float32 else ctypes.c_double
        kinds = {np.ndarray: lambda array: ctypes.c_void_p(array.ctypes.data), int: ctypes.c_int, float: real}
        c_function = getattr(self.library, f"{stem}_{optimizer}")
        c_function.restype = None
        c_function(*(kinds[type(argument)](argument) for argument in (params, grads, *rest)))

    def call(self, stem, function, params, arrays, n, scratch):
        """Call a function with arrays in its order; None is NULL."""
        c_function = getattr(self.library, f"{stem}_{function}")
        real = ctypes.c_float if scratch.dtype == np.float32 else ctypes.c_double
        c_function.restype = real if function == "value_and_grad" else None

        def pointer(array):
            return ctypes.c_void_p(None if array is None else array.ctypes.data)

        return c_function(pointer(params), ctypes.c_int(n), *map(pointer, arrays), pointer(scratch))


def compare(exported, case, dtype, n):
    """The largest error of each result, in units of the largest number of that result: {name: error}."""
    net, loss, params, state = given(case, dtype)
    # In float64, from the numbers that a float32 export gets: its errors are then its own, and float64 alone compiles.
    state = None if state is None else state.astype(np.float64)
    stem = stem_of(case, dtype)
    plan = nbprop.plan(net, loss, n, mode="inference")
    rng, buffers = np.random.default_rng(6), Buffers()
    x, target, _ = data(plan, n, rng, ties=False)
    shapes = {"dy": (n, *net.output_shape), "dx": (n, *net.input_shape), "v": plan.n_params}
    values = {"params": params, "x": x, "target": target}
    values |= {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    rounded = {name: a.astype(np.int32 if a.dtype.kind == "i" else dtype) for name, a in values.items()}
    in_c = {name: buffers.constant(a) for name, a in rounded.items()}
    params, x, target, dy, dx, v = (a if a.dtype.kind == "i" else a.astype(np.float64) for a in rounded.values())
    work = nbprop.workspace(plan)
    scratch = buffers.poisoned((exported.size(stem, "SCRATCH"),), dtype)
    errors = {}

    def empty(shape):
        return buffers.poisoned(shape, dtype)

    def note(function, **pairs):
        for name, (got, wanted) in pairs.items():
            scale = max(np.abs(wanted).max(initial=0.0), np.finfo(dtype).tiny)
            difference = np.abs(np.asarray(got, np.float64) - np.asarray(wanted, np.float64)).max(initial=0.0)
            errors[f"{function} {name}"] = float(difference / scale)

    def call(function, *arrays):
        scratch[:] = np.nan
        return exported.call(stem, function, in_c["params"], arrays, n, scratch)

    y, wanted_y = empty(dy.shape), np.empty_like(dy)
    call("forward", in_c["x"], y)
    nbprop.forward(plan, params, x, wanted_y, work, _copy(state))
    note("forward", y=(y, wanted_y))

    real_x = not plan.x_classes
    grads, wanted_grads, x_grads, wanted_dx = empty(v.shape), np.empty_like(v), empty(dx.shape), np.empty_like(dx)
    call("vjp", in_c["x"], in_c["dy"], *([x_grads] if real_x else []), grads)
    nbprop.vjp(plan, params, x, dy, wanted_grads, wanted_dx if real_x else None, work, state=_copy(state))
    note("vjp", grads=(grads, wanted_grads))
    if real_x:
        note("vjp", dx=(x_grads, wanted_dx))
        apart, apart_dx = empty(v.shape), empty(dx.shape)
        call("vjp", in_c["x"], in_c["dy"], None, apart)
        call("vjp", in_c["x"], in_c["dy"], apart_dx, None)
        np.testing.assert_array_equal(apart, grads)
        np.testing.assert_array_equal(apart_dx, x_grads)

    grads, out = empty(v.shape), np.empty_like(v)
    loss_in_c = call("value_and_grad", in_c["x"], in_c["target"], grads)
    wanted = nbprop.value_and_grad(plan, params, x, target, out, work, state=_copy(state))
    note("value_and_grad", grads=(grads, out), loss=([loss_in_c], [wanted]))
    assert call("value_and_grad", in_c["x"], in_c["target"], None) == loss_in_c
    if exported.has(stem, "jvp"):
        change, out = empty(dy.shape), np.empty_like(dy)
        call("jvp", in_c["x"], in_c["dx"], change)
        nbprop.jvp(plan, params, None, x, dx, out, work, _copy(state))
        note("jvp", dy=(change, out))
    if exported.has(stem, "hvp"):
        product, out = empty(v.shape), np.empty_like(v)
        call("hvp", in_c["x"], in_c["target"], in_c["v"], product)
        nbprop.hvp(plan, params, v, x, target, out, work, state=_copy(state))
        note("hvp", hv=(product, out))
    buffers.check()
    return errors


def selftest(exported, stem, dtype):
    """What `stem_selftest` returns, with just as much scratch as the header asks for."""
    buffers = Buffers()
    scratch = buffers.poisoned((exported.size(stem, "SELFTEST_SCRATCH"),), dtype)
    found = getattr(exported.library, f"{stem}_selftest")(ctypes.c_void_p(scratch.ctypes.data))
    buffers.check()
    return found


def _copy(state):
    return None if state is None else state.copy()


__all__ = [
    "BATCH",
    "FUNCTIONS",
    "WARNINGS",
    "Exported",
    "compare",
    "compiler",
    "export",
    "given",
    "run",
    "selftest",
    "stem_of",
]
