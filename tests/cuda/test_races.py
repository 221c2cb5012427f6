"""Every kernel with stores as late as CUDA allows and blocks in any order (support/races.py); and planted races."""

import itertools

import numpy as np
import pytest
import turns

import nbprop
import nbprop.cuda

if not nbprop.cuda.simulated():
    pytest.skip("on a GPU compute-sanitizer looks for races (on_gpu.py)", allow_module_level=True)

from test_device_contract import CASES, ON_DEVICE, TOLERANCE, on_device, on_host
from test_device_derivatives import both, takes_part

from nbprop.cuda import fused, oneblock
from nbprop.cuda.plan import DevicePlan
from nbprop.cuda.toolkit import THREADS, cuda
from nbprop.losses import loss_named
from support.cases import close, data, kinked, same_bits
from support.races import RaceError, late_stores

IN_TEST = ("dense_wide", "layernorm", "attention", "batchnorm", "embedding", "conv2d")


@pytest.mark.parametrize(
    "case", [case if case in IN_TEST else pytest.param(case, marks=pytest.mark.more) for case in ON_DEVICE]
)
def test_late_stores_change_nothing(case, monkeypatch):
    monkeypatch.setattr(oneblock, "MOST_ELEMENTS", 0)
    net, loss = CASES[case]
    plan, device = (nbprop.plan(net, loss, 6, np.float32, target=target) for target in ("cpu", "cuda"))
    rng = np.random.default_rng(7)
    params = (nbprop.init(net, seed=3) + 0.1 * rng.standard_normal(plan.n_params)).astype(np.float32)
    x, target, weights = data(plan, 5, rng, ties=not kinked(net))
    dy = rng.standard_normal((5, *net.output_shape)).astype(np.float32)
    given = params, x, target, weights.astype(np.float32), dy
    with late_stores():
        found = on_device(device, *given)
    wanted = on_host(plan, *given)
    for name, value in found.items():
        close(name, value, wanted[name], TOLERANCE[np.float32])


# A network of each kind of layer that has kernels of its own for products with second derivatives.
PRODUCTS = {
    *("attention", "batchnorm", "dense_wide", "fourier_features_trained", "fused_softmax", "glu", "gru", "layernorm"),
    *("local_response_norm_inside", "lstm", "prelu", "rnn", "spectral_norm", "standardize", "weight_norm"),
}


def mark(case):
    """One in `make test`, those of PRODUCTS in `make test-more`, all others in `make test-long`."""
    return () if case == "layernorm" else pytest.mark.more if case in PRODUCTS else pytest.mark.long


@pytest.mark.parametrize("case", [pytest.param(c, marks=mark(c)) for c in ON_DEVICE if takes_part(c, "hvp")])
def test_late_stores_change_no_product(case):
    with late_stores():
        found, wanted = both(case, "hvp", np.float32, 5)
    close(case, found, wanted, 5 * TOLERANCE[np.float32])


# By precision: the second one has the kernels of the first, with more of each.
MARKS = {"bfloat16": pytest.mark.more, "bfloat16x3": pytest.mark.long}
# (network, samples), with several tiles where that takes few seconds.
TENSOR_CORES = {
    "dense": (nbprop.network((20,), nbprop.dense(24, "tanh"), nbprop.dense(3)), 33),
    "conv2d": (nbprop.network((3, 4, 2), nbprop.conv2d(5, 2)), 2),
    "attention": (nbprop.network((5, 4), nbprop.attention(1)), 2),
    "fused": (nbprop.network((5,), nbprop.dense(20, "tanh"), nbprop.dense(3)), 33),
}


@pytest.mark.parametrize(
    ("case", "precision"),
    [pytest.param(case, p, marks=marks) for p, marks in MARKS.items() for case in TENSOR_CORES],
)
def test_late_stores_change_no_bit_with_tensor_cores(case, precision, monkeypatch):
    net, n = TENSOR_CORES[case]
    monkeypatch.setattr(fused, "FEWEST_SAMPLES", 1 if case == "fused" else n + 1)
    plan = DevicePlan(net, loss_named("mse"), n, np.dtype(np.float32), 1, "training", precision=precision)
    assert (plan.fused is not None) == (case == "fused")
    rng = np.random.default_rng(7)
    params = (nbprop.init(net, seed=3) + 0.1 * rng.standard_normal(plan.n_params)).astype(np.float32)
    x, target, weights = data(plan, n, rng, ties=False)
    given = (
        params,
        x,
        target,
        weights.astype(np.float32),
        rng.standard_normal((n, *net.output_shape)).astype(np.float32),
    )
    usual = on_device(plan, *given)
    with late_stores():
        late = on_device(plan, *given)
    for name, value in late.items():
        same_bits(name, value, usual[name])


def launch(kernel, blocks, *arrays):
    """Run a function as a kernel, with late stores, over arrays that it may write."""
    device = [nbprop.cuda.to_device(array) for array in arrays]
    with late_stores():
        cuda.jit(kernel)[blocks, THREADS](*map(nbprop.cuda.as_numba, device))
    return [array.to_host() for array in device]


def shifted(y, x):
    """y[i] = 2 x[i + 1], by way of y."""
    i = cuda.threadIdx.x
    y[i] = 2 * x[i]
    cuda.syncthreads()
    value = y[(i + 1) % THREADS]
    cuda.syncthreads()
    y[i] = value


def shifted_too_soon(y, x):
    """The same without barriers."""
    i = cuda.threadIdx.x
    y[i] = 2 * x[i]
    y[i] = y[(i + 1) % THREADS]


def summed_over_blocks(y, x):
    """y[0] = the sum of x, each block adding its own to what it finds."""
    if cuda.threadIdx.x == 0:
        y[0] += x[cuda.blockIdx.x]


def handed_on(y, x):
    """y[block] = x[block] + what the block before has written."""
    if cuda.threadIdx.x == 0:
        block = cuda.blockIdx.x
        y[block] = x[block] + (y[block - 1] if block > 0 else 0)


def test_a_missing_barrier_shows():
    x = np.arange(1.0, THREADS + 1, dtype=np.float32)
    assert np.array_equal(launch(shifted, 1, 0 * x, x)[0], np.roll(2 * x, -1))
    assert not np.array_equal(launch(shifted_too_soon, 1, 0 * x, x)[0], np.roll(2 * x, -1))


def test_blocks_that_add_to_one_place_are_an_error():
    with pytest.raises(RaceError, match="two blocks write"):
        launch(summed_over_blocks, 3, np.zeros(1, np.float32), np.arange(1.0, 4.0, dtype=np.float32))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_block_sees_nothing_of_the_others(order, monkeypatch):
    x = np.arange(1.0, 4.0, dtype=np.float32)
    monkeypatch.setattr(turns.ShuffledBlocks, "ndindex", staticmethod(lambda *shape: [(k, 0, 0) for k in order]))
    assert np.array_equal(launch(handed_on, 3, 0 * x, x)[0], x)
