"""The compile gate of the kernels with tensor cores: their machine code has what they were written for, and no more."""

import importlib

import numpy as np
import pytest

from nbprop.numerics.activations import IDENTITY, RELU, TANH
from support import sass
from support.cubins import HOPPER, assemble, to_ptx

ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
pytestmark = pytest.mark.usefixtures("no_device")


def compiled(ptxas, kernel, cc=(8, 0), architectures=ARCHITECTURES, spilled=0, generic=("LD.8",)):
    """{architecture: counts of the kernel's instructions}.

    No more bytes spilled, nothing in float64, and no access to memory of any kind but by `generic`: LD.8, to integers
    of any width.
    """
    ptx, found = to_ptx(kernel, np.dtype(np.float32), cc), {}
    assert ".f64" not in ptx
    for architecture in architectures:
        done = assemble(ptxas, ptx, architecture)
        wrong = [text for text in done.wrong if int(text.split()[0]) > spilled]
        assert not wrong, f"{kernel.name}, {kernel.precision}, {architecture}: {', '.join(wrong)}"
        assert done.registers <= min(255, 65536 // (kernel.threads * kernel.resident))
        (code,) = sass.kernels(done.cubin).values()
        found[architecture] = sass.counts(code)
        anywhere = {name for name in found[architecture] if name.split(".")[0] in ("LD", "ST")} - set(generic)
        assert not anywhere, f"{kernel.name}, {architecture}: {anywhere}"
        found[architecture]["registers"] = done.registers
    return found


# -- fused training ------------------------------------------------------------------------------------------


def fused_kernel(layers, planes, warps, keeps):
    from nbprop.cuda import tensor_fused

    shape = tensor_fused.Shape(layers, planes, warps)
    assert shape.keeps == keeps
    return tensor_fused.kernel_of(shape)


def products_of(layers, planes, warps, keeps):
    """(HMMA, LDSM) that a kernel needs, where each run of layers has its code once, but for kept weight gradients."""
    from nbprop.cuda import tensor_fused, tensor_tile

    shape = tensor_fused.Shape(layers, planes, warps)
    factors, mma, ldsm = {1: 1, 2: 3}[planes], 0, 0
    last = (*layers[-1], layers[-2][2] if len(layers) > 1 else None, len(layers) - 1, 1)
    for down, across, _, below, _, count in [*shape.runs(), last]:
        passes = 1 if below is None else 2  # forward, and the gradient by the layer's input
        mma += passes * 2 * down * across * factors + 2 * planes  # and the bias
        ldsm += passes * down * across * planes + planes
        rows, columns = tensor_tile.tiles_of_warp(down, across, warps)
        copies = count if keeps else 1
        mma += copies * 2 * rows * columns * factors
        ldsm += copies * (rows * planes + rows * columns * planes)
    return mma, ldsm


SMALL = ((1, 2, RELU), (2, 1, IDENTITY))
DEEP = ((2, 4, TANH), *[(4, 4, TANH)] * 4, (4, 1, IDENTITY))
WIDE = ((8, 8, TANH), (8, 8, TANH), (8, 1, IDENTITY))
# Bytes that are spilled nevertheless: at 128 wide, outputs and operands alone take 96 registers.
SPILLED = {WIDE: 64}


def check_fused(ptxas, layers, planes, warps, keeps, cc=(8, 0), architectures=ARCHITECTURES):
    kernel = fused_kernel(layers, planes, warps, keeps)
    # A loss reads its targets and weights, a few numbers a sample, by functions that do not know where these are.
    counts = compiled(ptxas, kernel, cc, architectures, SPILLED.get(layers, 0), ("LD.8", "LD.32"))
    mma, ldsm = products_of(layers, planes, warps, keeps)
    for architecture, found in counts.items():
        print(f"{architecture}: {found['registers']} registers, {found['HMMA']} HMMA, {found['LDSM']} LDSM")
        assert found["HMMA"] == mma
        assert found["LDSM"] <= ldsm  # ptxas finds some that are the same
        local = sum(count for name, count in found.items() if name.startswith(("LDL", "STL")))
        assert 4 * local <= 2 * SPILLED.get(layers, 0)


@pytest.mark.more
def test_a_fused_network_compiles_to_tensor_cores(ptxas):
    """Exactly the instructions of its products: forward, both gradients, biases."""
    check_fused(ptxas, SMALL, 1, 8, True)


@pytest.mark.parametrize(
    ("layers", "planes", "warps", "keeps"),
    [
        pytest.param(DEEP, 1, 8, True, marks=pytest.mark.more),
        pytest.param(DEEP, 2, 4, False, marks=pytest.mark.long),
        pytest.param(WIDE, 1, 8, False, marks=pytest.mark.long),
    ],
)
def test_larger_fused_networks_compile_to_tensor_cores(ptxas, layers, planes, warps, keeps):
    """64 wide with five hidden layers, in both precisions, and 128 wide; as PTX of compute_80."""
    check_fused(ptxas, layers, planes, warps, keeps)


@pytest.mark.long
def test_the_fused_network_of_the_benchmark_compiles_on_hopper(ptxas):
    """As numba-cuda compiles it there."""
    check_fused(ptxas, DEEP, 1, 8, True, HOPPER, ("sm_90a",))


def test_the_fused_network_of_the_benchmark_is_planned_so():
    """64 wide, 5 hidden layers: 128 samples a block in bfloat16, with the gradients in registers; 64 in bfloat16x3."""
    pytest.importorskip("numba_cuda", reason='the compile gate needs numba-cuda: pip install "nbprop[cuda-gate]"')
    from nbprop.cuda import tensor_fused, toolkit

    layers = [(32, 64, 0, 0, TANH), *[(64, 64, 0, 0, TANH)] * 4, (64, 4, 0, 0, IDENTITY)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolkit, "shared_memory_of_a_block", lambda: 227 * 1024)
        chains = [tensor_fused.chain_of(layers, planes) for planes in (1, 2)]
    assert [(chain.shape.warps, chain.shape.keeps) for chain in chains] == [(8, True), (4, False)]
    assert all(chain.shape.layers == DEEP for chain in chains)


# -- products ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "precision"),
    [
        pytest.param("dense", "bfloat16", marks=pytest.mark.more),
        pytest.param("dense", "bfloat16x3", marks=pytest.mark.long),
        pytest.param("conv", "bfloat16", marks=pytest.mark.long),
        pytest.param("conv", "bfloat16x3", marks=pytest.mark.long),
    ],
)
def test_products_compile_to_tensor_cores(ptxas, layer, precision):
    """A step over k: 16 products, each with three of its factors in bfloat16x3; 8 loads, each with two planes.

    The first slices and those of each step of a dense layer are 6 loads of 128 bits from global memory, where rows
    allow it, and as many stores of 64 bits.
    """
    from nbprop.cuda.kernels import PLANES

    planes, module = PLANES[precision], importlib.import_module(f"nbprop.cuda.layers.tensor_{layer}")
    kernels = [kernel for kernel in module.CUDA_KERNELS if kernel.precision == precision]
    assert len(kernels) == {"dense": 5, "conv": 4}[layer]
    for kernel in kernels:
        multiplies = kernel.name.rsplit(".", 1)[-1] != "tensor_parameters"
        for found in compiled(ptxas, kernel).values():
            assert found["HMMA"] == multiplies * 16 * {1: 1, 2: 3}[planes], kernel
            assert found["LDSM"] == multiplies * 8 * planes, kernel
            if layer == "dense":
                assert (found["LDG.128"], found["STS.64"]) == (multiplies * 12, multiplies * 12 * planes), kernel


@pytest.mark.parametrize(
    "precision",
    [pytest.param("bfloat16", marks=pytest.mark.more), pytest.param("bfloat16x3", marks=pytest.mark.long)],
)
def test_attention_compiles_to_tensor_cores(ptxas, precision):
    """A block of 64 rows and 32 columns of scores, 64 features: 16 products a warp for each of its matrix products."""
    from nbprop.cuda.kernels import PLANES
    from nbprop.cuda.layers import tensor_attention

    products = {"tensor_forward": 2, "deltas": 0, "tensor_keys_and_values": 4, "tensor_queries": 3}
    kernels = [kernel for kernel in tensor_attention.CUDA_KERNELS if kernel.precision == precision]
    assert len(kernels) == 4
    for kernel in kernels:
        wanted = 16 * products[kernel.name.rsplit(".", 1)[-1]] * {1: 1, 2: 3}[PLANES[precision]]
        for found in compiled(ptxas, kernel, spilled=64).values():
            assert found["HMMA"] == wanted, kernel
