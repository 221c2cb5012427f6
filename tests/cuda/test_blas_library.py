"""cuBLASLt itself, where a GPU and nvmath-python are: each kind of product that a plan asks it for, against float64."""

import numpy as np
import pytest
from test_blas import NET, device_plan

import nbprop
import nbprop.cuda
from nbprop.cuda import blas, oneblock
from support.cases import close

N = 7


@pytest.fixture
def library(monkeypatch):
    """The library for products of any size, and the recording of how many it made."""
    if nbprop.cuda.simulated():
        pytest.skip("cuBLASLt needs a GPU")
    if blas.library(nbprop.cuda.memory.toolkit.current_device()) is None:
        pytest.skip('needs nvmath-python and cuBLAS: pip install "nbprop[cuda-blas]"')
    monkeypatch.setattr(blas, "CROSSOVER", 1)
    monkeypatch.setattr(oneblock, "MOST_ELEMENTS", 0)
    made, enqueue = [], blas.Product.enqueue

    def counted(product, *arguments):
        made.append(product)
        enqueue(product, *arguments)

    monkeypatch.setattr(blas.Product, "enqueue", counted)
    return made


@pytest.mark.parametrize("wide", [False, True])
def test_its_products_are_those_of_float64(library, wide):
    """Extents and addresses that are multiples of nothing, and of much; a bias or none, ReLU, the bias's gradient."""
    net, n = NET, N
    if wide:
        layers = (
            nbprop.dense(256, activation="relu"),
            nbprop.dense(128, activation="tanh"),
            nbprop.dense(64, bias=False),
        )
        net, n = nbprop.network((128,), *layers), 512
    plan, host, rng = device_plan(net, batch=n), nbprop.plan(net, "mse", n), np.random.default_rng(4)
    params = (nbprop.init(net, seed=1) + 0.1 * rng.standard_normal(net.n_params)).astype(np.float32)
    x, target = (rng.standard_normal((n, *shape)).astype(np.float32) for shape in (net.input_shape, net.output_shape))
    exact = [a.astype(np.float64) for a in (params, x, target)]
    grads, there = np.empty(net.n_params), [nbprop.cuda.to_device(a) for a in (params, x, target)]
    loss = nbprop.value_and_grad(host, *exact, grads, nbprop.workspace(host))
    on_device = nbprop.cuda.zeros(net.n_params)
    found = nbprop.value_and_grad(plan, *there, on_device, nbprop.workspace(plan))
    assert library, "no product was the library's"
    close("loss", found, loss, 1e-5)
    close("grads", on_device.to_host(), grads, 1e-5)
