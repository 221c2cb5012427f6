"""The compile gate: every device kernel in every dtype to PTX, and through ptxas for two architectures; needs no GPU.

What only a compiler knows: types that the simulator is lax about (a stray float64), registers, and arrays that were
meant for registers and went to memory. nbprop's kernels go by PTX on a device, too; a user's kernels with networks
inside go by LTO-IR and nvJitLink where that is installed. `make test-more` compiles all of them by both ways for
compute_90a, as numba-cuda does on an H100; `make test` assembles one PTX, of compute_80, for both architectures.
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
ARCHITECTURES = ("sm_80", "sm_90a")
HOPPER = (9, 0, "a")


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


@pytest.fixture
def nvjitlink():
    """What links LTO-IR; numba-cuda takes it for kernels of a user's own where it is installed."""
    pytest.importorskip("numba_cuda", reason='the compile gate needs numba-cuda: pip install "nbprop[cuda-gate]"')
    from numba.cuda.cudadrv import driver

    if config.ENABLE_CUDASIM or not driver._have_nvjitlink():
        pytest.skip('this part of the compile gate needs nvJitLink: pip install "nbprop[cuda-gate]"')
    from cuda.bindings import nvjitlink

    return nvjitlink


def assemble(ptxas, ptx, architecture):
    """ptxas's account of a kernel: (registers, what is not as it should be)."""
    done = subprocess.run(
        [ptxas, f"-arch={architecture}", "-v", "-", "-o", "/dev/null"], input=ptx, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return account(done.stderr)


def link(nvjitlink, code, architecture):
    """The same of a kernel's LTO-IR, linked by nvJitLink."""
    handle = nvjitlink.create(3, [f"-arch={architecture}", "-lto", "-verbose"])
    nvjitlink.add_data(handle, nvjitlink.InputType.LTOIR, code, len(code), "kernel")
    nvjitlink.complete(handle)
    log = bytearray(nvjitlink.get_info_log_size(handle))
    nvjitlink.get_info_log(handle, log)
    return account(log.decode())


def account(log):
    """(registers, what is not as it should be) of a kernel, as the assembler tells."""
    (registers,) = re.findall(r"Used (\d+) registers", log)
    memory = re.findall(r"(\d+) bytes (stack frame|spill stores|spill loads)", log)
    assert memory, log
    return int(registers), [f"{size} bytes {kind}" for size, kind in memory if size != "0"]


def to_ptx(kernel, dtype, cc=(8, 0)):
    from numba import cuda

    from nbprop.cuda.kernels import SIGNATURE

    entry = kernel.entry(dtype)
    ptx, _ = cuda.compile_ptx(entry, SIGNATURE, cc=cc, launch_bounds=kernel.bounds)
    return ptx


def to_ltoir(function, signature, bounds=None):
    """A kernel's LTO-IR for an H100."""
    from numba import cuda

    kind = {"device": False, "abi": "numba", "output": "ltoir"}
    code, _ = cuda.compile(function, signature, cc=HOPPER, launch_bounds=bounds, **kind)
    return code


def kernels_in(module):
    """The device kernels of a module."""
    from nbprop.cuda.kernels import DeviceKernel, kernels_of

    loaded = importlib.import_module(module)
    kernels = kernels_of(loaded) or getattr(loaded, "CUDA_KERNELS", None)
    kernels = kernels or [k for k in vars(loaded).values() if isinstance(k, DeviceKernel)]
    assert kernels
    return kernels


def check(name, kernel, registers, wrong):
    """No memory that was meant to be registers, and no more of these than the kernel's blocks have together."""
    from nbprop.cuda.toolkit import THREADS

    assert not wrong, f"{name}: {', '.join(wrong)}"
    assert registers <= 65536 // (THREADS * kernel.resident), f"{name}: {registers} registers"


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.usefixtures("no_device")
def test_kernels_compile(module, ptxas):
    for kernel in kernels_in(module):
        for dtype in kernel.dtypes:
            ptx = to_ptx(kernel, dtype)
            if dtype == np.float32:
                assert ".f64" not in ptx, f"{kernel.name} in float32 computes in float64"
            for architecture in ARCHITECTURES:
                check(f"{kernel.name}, {dtype}, {architecture}", kernel, *assemble(ptxas, ptx, architecture))


@pytest.mark.more
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.usefixtures("no_device")
def test_kernels_compile_by_both_ways_on_hopper(module, ptxas, nvjitlink):
    """As PTX of compute_90a, which is what runs there; and as LTO-IR, which would run without lto=False."""
    from nbprop.cuda.kernels import SIGNATURE

    for kernel in kernels_in(module):
        for dtype in kernel.dtypes:
            name = f"{kernel.name}, {dtype}"
            check(f"{name}, PTX", kernel, *assemble(ptxas, to_ptx(kernel, dtype, HOPPER), "sm_90a"))
            code = to_ltoir(kernel.entry(dtype), SIGNATURE, kernel.bounds)
            check(f"{name}, LTO-IR", kernel, *link(nvjitlink, code, "sm_90a"))


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
            _, wrong = assemble(ptxas, ptx, architecture)
            assert not [text for text in wrong if not text.endswith(allowed)], wrong


@pytest.mark.usefixtures("no_device")
def test_networks_inside_kernels_link(nvjitlink, inside_kernels):
    """The same by LTO-IR."""
    for kernel, signature, allowed in inside_kernels:
        _, wrong = link(nvjitlink, to_ltoir(kernel, signature), "sm_90a")
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
