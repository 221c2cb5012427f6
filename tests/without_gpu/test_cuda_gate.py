"""The compile gate: every device kernel in every dtype to PTX, and through ptxas for two architectures; needs no GPU.

What only a compiler knows: types that the simulator is lax about (a stray float64), registers, and arrays that were
meant for registers and went to memory.
"""

import importlib
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numba import config

import nbprop
from nbprop.program import table

PACKAGE = Path(nbprop.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if re.search(r"^(def cuda_kernels\(cuda|@on_device\(|CUDA_KERNELS = )", path.read_text(), re.M)
)
ARCHITECTURES = ("sm_80", "sm_90")


@pytest.fixture(scope="module")
def ptxas():
    """The assembler, of the wheel or of an installed toolkit."""
    pytest.importorskip("numba_cuda", reason='the compile gate needs numba-cuda: pip install "nbprop[cuda-gate]"')
    if config.ENABLE_CUDASIM:
        pytest.skip("the simulator compiles nothing")
    import nvidia

    found = [path for folder in nvidia.__path__ for path in Path(folder).glob("*/bin/ptxas")]
    found += [path for path in (shutil.which("ptxas"),) if path]
    if not found:
        pytest.skip('the compile gate needs ptxas: pip install "nbprop[cuda-gate]"')
    return str(found[0])


@pytest.fixture
def no_device(monkeypatch):
    """Let kernels that call compiled functions compile without a GPU."""
    from numba.cuda import dispatcher

    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(8, 0)))


def assemble(ptxas, ptx, architecture):
    """ptxas's account of a kernel: (registers, what is not as it should be)."""
    done = subprocess.run(
        [ptxas, f"-arch={architecture}", "-v", "-", "-o", "/dev/null"], input=ptx, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (registers,) = re.findall(r"Used (\d+) registers", done.stderr)
    memory = re.findall(r"(\d+) bytes (stack frame|spill stores|spill loads)", done.stderr)
    assert memory, done.stderr
    return int(registers), [f"{size} bytes {kind}" for size, kind in memory if size != "0"]


def to_ptx(kernel, dtype):
    from numba import cuda

    from nbprop.cuda.kernels import SIGNATURE

    entry = kernel.entry(dtype)
    ptx, _ = cuda.compile_ptx(entry, SIGNATURE, cc=(8, 0), launch_bounds=kernel.bounds)
    return ptx


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.usefixtures("no_device")
def test_kernels_compile(module, ptxas):
    from nbprop.cuda.kernels import DeviceKernel, kernels_of
    from nbprop.cuda.toolkit import THREADS

    loaded = importlib.import_module(module)
    kernels = kernels_of(loaded) or getattr(loaded, "CUDA_KERNELS", None)
    kernels = kernels or [k for k in vars(loaded).values() if isinstance(k, DeviceKernel)]
    assert kernels
    for kernel in kernels:
        most = 65536 // (THREADS * kernel.resident)
        for dtype in kernel.dtypes:
            ptx = to_ptx(kernel, dtype)
            if dtype == np.float32:
                assert ".f64" not in ptx, f"{kernel.name} in float32 computes in float64"
            for architecture in ARCHITECTURES:
                registers, wrong = assemble(ptxas, ptx, architecture)
                assert not wrong, f"{kernel.name}, {dtype}, {architecture}: {', '.join(wrong)}"
                assert registers <= most, f"{kernel.name}, {dtype}, {architecture}: {registers} registers"


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
            _, wrong = assemble(ptxas, ptx, architecture)
            assert not wrong, f"{dtype}, {architecture}: {wrong}"


@pytest.mark.usefixtures("no_device")
def test_networks_inside_kernels_compile(ptxas):
    """The pendulums' network in each thread: all in registers forward, no spills on the way back."""
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

    for kernel, arrays, allowed in ((evaluate, 3, ()), (differentiate, 5, ("stack frame",))):
        ptx, _ = cuda.compile_ptx(kernel, (float32[::1],) * arrays + (int64,), cc=(8, 0))
        assert ".f64" not in ptx
        for architecture in ARCHITECTURES:
            _, wrong = assemble(ptxas, ptx, architecture)
            assert not [text for text in wrong if not text.endswith(allowed)], wrong


def test_there_are_modules_with_kernels():
    assert {"nbprop.cuda.layers.dense", "nbprop.cuda.losses.mse"} <= set(MODULES)
