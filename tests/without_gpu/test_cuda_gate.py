"""The compile gate: every device kernel in every dtype to PTX, and through ptxas for two architectures; needs no GPU.

What only a compiler knows: types that the simulator is lax about (a stray float64), registers, and arrays that were
meant for registers and went to memory. nbprop's kernels go by PTX on a device, too; a user's kernels with networks
inside go by LTO-IR and nvJitLink where that is installed. `make test-long` compiles all of them by both ways for
compute_90a, as numba-cuda does on an H100; `make test` assembles one PTX, of compute_80, for both architectures, and
`make test-more` does so for the modules that take longest.
"""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

import nbprop
from nbprop.program import table
from support import sass
from support.cubins import HOPPER, assemble, link, to_ltoir, to_ptx

PACKAGE = Path(nbprop.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if re.search(r"^(def cuda_kernels\(cuda|@on_device\(|CUDA_KERNELS = )", path.read_text(), re.M)
    and not path.name.startswith("tensor_")  # test_tensor_gate.py has these
)
# Modules whose kernels take longest to compile, with products unrolled.
SLOW = {
    "fused_kernels",
    "layers.activation",
    "layers.attention",
    "layers.attention_tangents",
    "layers.batchnorm",
    "layers.conv",
    "layers.dense",
    "layers.fourier",
    "layers.gru",
    "layers.layernorm",
    "layers.lstm",
    "layers.rnn",
    "layers.scaling",
    "layers.spectral_norm",
    "losses.elementwise",
    "losses.huber",
    "proximal",
    "update_rules",
}
SLOW = {f"nbprop.cuda.{name}" for name in SLOW}
BY_TIME = [pytest.param(name, marks=[pytest.mark.more] if name in SLOW else []) for name in MODULES]
ARCHITECTURES = ("sm_80", "sm_90a")


def kernels_in(module):
    """The device kernels of a module."""
    from nbprop.cuda.kernels import DeviceKernel, kernels_of

    loaded = importlib.import_module(module)
    kernels = kernels_of(loaded) or getattr(loaded, "CUDA_KERNELS", None)
    kernels = kernels or [k for k in vars(loaded).values() if isinstance(k, DeviceKernel)]
    assert kernels
    return kernels


def check(name, kernel, assembled):
    """What must hold of every kernel in machine code.

    No memory that was meant to be registers, and no more of these than the kernel's blocks have together. No access to
    memory of any kind but by bytes, as those to integers of any width: where an array lies in global memory has to be
    known, or its loads would wait for stores to shared memory.
    """
    from nbprop.cuda.toolkit import THREADS

    (code,) = sass.kernels(assembled.cubin).values()
    generic = {one.name for one in code if one.name.split(".")[0] in ("LD", "ST")} - {"LD.8"}
    assert not generic, f"{name}: {generic}"
    assert not assembled.wrong, f"{name}: {', '.join(assembled.wrong)}"
    assert assembled.registers <= 65536 // (THREADS * kernel.resident), f"{name}: {assembled.registers} registers"


@pytest.mark.parametrize("module", BY_TIME)
@pytest.mark.usefixtures("no_device")
def test_kernels_compile(module, ptxas):
    """In float32 for Hopper; float64 and the older architecture are left to test-more."""
    for kernel in kernels_in(module):
        if np.float32 in kernel.dtypes:
            ptx = to_ptx(kernel, np.float32)
            assert ".f64" not in ptx, f"{kernel.name} in float32 computes in float64"
            check(f"{kernel.name}, float32", kernel, assemble(ptxas, ptx, ARCHITECTURES[-1]))


@pytest.mark.more
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.usefixtures("no_device")
def test_kernels_compile_in_both_precisions(module, ptxas):
    for kernel in kernels_in(module):
        for dtype in kernel.dtypes:
            ptx, rest = to_ptx(kernel, dtype), ARCHITECTURES if dtype != np.float32 else ARCHITECTURES[:-1]
            for architecture in rest:
                check(f"{kernel.name}, {dtype}, {architecture}", kernel, assemble(ptxas, ptx, architecture))


# By kernel (its module, and its number there): multiply-adds, 128-bit loads from shared and from global memory in its
# inner loop, what else there is at most (with both ways to load, one of which runs), and registers at most.
FIGURES = {
    "product": ("nbprop.cuda.layers.dense", 8, {"FFMA": 512, "LDS.128": 32, "LDG.128": 2}, 140, 200),
    "weight gradient": ("nbprop.cuda.layers.dense", 11, {"FFMA": 512, "LDS.128": 32, "LDG.128": 2}, 220, 200),
    "attention": ("nbprop.cuda.layers.attention", 0, {"FFMA": 256, "LDS.128": 32}, 190, 255),
}


@pytest.mark.more
@pytest.mark.parametrize("name", list(FIGURES))
@pytest.mark.usefixtures("no_device")
def test_inner_loops_are_arithmetic(name, ptxas):
    module, number, wanted, rest, registers = FIGURES[name]
    ptx = to_ptx(kernels_in(module)[number], np.float32)
    for architecture in (*ARCHITECTURES, "sm_100"):
        assembled = assemble(ptxas, ptx, architecture)
        (code,) = sass.kernels(assembled.cubin).values()
        inner = sass.busiest(code)
        found = {kind: inner[kind] for kind in wanted}
        if architecture == "sm_100":  # whose multiply-adds may come in pairs
            found["FFMA"] += 2 * inner["FFMA2"]
        assert found == wanted, (architecture, inner)
        assert inner["all"] - sum(wanted.values()) <= rest, (architecture, inner)
        assert assembled.registers <= registers


@pytest.mark.long
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.usefixtures("no_device")
def test_kernels_compile_by_both_ways_on_hopper(module, ptxas, nvjitlink):
    """As PTX of compute_90a, which is what runs there; and as LTO-IR, which would run without lto=False."""
    from nbprop.cuda.kernels import SIGNATURE

    for kernel in kernels_in(module):
        for dtype in kernel.dtypes:
            name = f"{kernel.name}, {dtype}"
            check(f"{name}, PTX", kernel, assemble(ptxas, to_ptx(kernel, dtype, HOPPER), "sm_90a"))
            code = to_ltoir(kernel.entry(dtype), SIGNATURE, kernel.bounds)
            check(f"{name}, LTO-IR", kernel, link(nvjitlink, code, "sm_90a"))


@pytest.mark.more
@pytest.mark.parametrize("loss", ["mse", "softmax_cross_entropy"])
@pytest.mark.usefixtures("no_device")
def test_whole_programs_in_one_block_compile(ptxas, loss, monkeypatch):
    from numba import cuda

    from nbprop.cuda import oneblock, toolkit
    from nbprop.cuda.plan import DevicePlan
    from nbprop.losses import loss_named

    monkeypatch.setattr(toolkit, "current_device", lambda: 0)
    layers = nbprop.dense(32, activation="tanh"), nbprop.dense(32, activation="gelu"), nbprop.dense(3)
    net, words = nbprop.network((4,), *layers), np.ones(64, np.int64)
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        plan = DevicePlan(net, loss_named(loss), 64, dtype, 1, "training")
        launches = [launch for launch in plan.programs[table.VALUE_AND_GRAD] if launch.blocks(64, words, True)]
        kernels = tuple(dict.fromkeys(launch.kernel for launch in launches))
        bounds = (toolkit.THREADS, 1)
        entry = oneblock.entry(kernels, dtype)
        ptx, _ = cuda.compile_ptx(entry, oneblock.SIGNATURE, cc=(8, 0), launch_bounds=bounds)
        assert dtype == np.float64 or ".f64" not in ptx
        for architecture in ARCHITECTURES:
            wrong = assemble(ptxas, ptx, architecture).wrong
            assert not wrong, f"{dtype}, {architecture}: {wrong}"


@pytest.fixture(scope="module")
def inside_kernels():
    """[(kernel, its signature, what it may have in memory)]: the pendulums' network in each thread."""
    pytest.importorskip("numba_cuda", reason='the compile gate needs numba-cuda: pip install "nbprop[cuda-gate]"')
    from numba import cuda, float32, int64

    import nbprop.cuda.inside as inside

    net = nbprop.network((4,), nbprop.dense(16, activation="tanh"), nbprop.dense(1))
    forward, vjp, size = inside.forward_thread(net), inside.vjp_thread(net), inside.trace_size(net)

    def evaluate(y, x, params, n):
        i = cuda.grid(1)
        forward(y[i : i + 1], x[4 * i : 4 * i + 4], params, i, n, cuda.local.array(size, float32))

    def differentiate(grads, dx, dy, x, params, n):
        i, trace = cuda.grid(1), cuda.local.array(size, float32)
        forward(cuda.local.array(1, float32), x[4 * i : 4 * i + 4], params, i, n, trace)
        vjp(grads, i, n, dx[4 * i : 4 * i + 4], dy[i : i + 1], params, i, n, trace)

    kernels = (evaluate, 3, ()), (differentiate, 5, ("stack frame",))
    return [(kernel, (float32[::1],) * arrays + (int64,), allowed) for kernel, arrays, allowed in kernels]


@pytest.mark.usefixtures("no_device")
def test_networks_inside_kernels_compile(ptxas, inside_kernels):
    """All in registers forward, no spills in the backward pass."""
    from numba import cuda

    for kernel, signature, allowed in inside_kernels:
        ptx, _ = cuda.compile_ptx(kernel, signature, cc=(8, 0))
        assert ".f64" not in ptx
        for architecture in ARCHITECTURES:
            wrong = assemble(ptxas, ptx, architecture).wrong
            assert not [text for text in wrong if not text.endswith(allowed)], wrong


@pytest.mark.usefixtures("no_device")
def test_networks_inside_kernels_link(nvjitlink, inside_kernels):
    """The same by LTO-IR."""
    for kernel, signature, allowed in inside_kernels:
        wrong = link(nvjitlink, to_ltoir(kernel, signature), "sm_90a").wrong
        assert not [text for text in wrong if not text.endswith(allowed)], wrong


@pytest.mark.parametrize("nvjitlink_is_there", [True, False])
def test_kernels_are_never_left_to_lto(nvjitlink_is_there, ptxas, monkeypatch):
    """numba-cuda's default depends on what is installed; what the gate has seen must not."""
    from numba.cuda import decorators

    from nbprop.cuda import toolkit

    monkeypatch.setattr(decorators, "_have_nvjitlink", lambda: nvjitlink_is_there)
    assert toolkit.device_function(lambda x: x).targetoptions["lto"] is False
    for name in ("compile", "disable_compile"):  # which need a device
        monkeypatch.setattr(decorators.CUDADispatcher, name, lambda *given: None)
    kernel = toolkit.compile(lambda frame, row: None, "void(int64, int64)", (256, 1))
    assert kernel.targetoptions["lto"] is False


def test_there_are_modules_with_kernels():
    assert {"nbprop.cuda.layers.dense", "nbprop.cuda.losses.mse"} <= set(MODULES)
