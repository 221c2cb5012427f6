"""Large products by cuBLASLt: what it is asked for, with a stand-in that computes by the layouts it is given.

The stand-in reads the addresses of arrays, which are a device's on a GPU: there test_blas_library.py asks the library.
"""

import threading

import numpy as np
import pytest
from blas_stand_in import Epilogue, stand_in

import nbprop
import nbprop.cuda
from nbprop.cuda import blas, oneblock
from nbprop.cuda.plan import DevicePlan
from nbprop.losses import loss_named
from support.cases import close

pytestmark = pytest.mark.skipif(not nbprop.cuda.simulated(), reason="the stand-in reads device addresses on the host")

# Different extents throughout; a bias or none; an activation within the product, behind it, apart from it, and none.
NET = nbprop.network(
    (3,),
    *(nbprop.dense(5, activation="relu"), nbprop.dense(4, activation="relu", bias=False)),
    *(nbprop.dense(7, activation="tanh"), nbprop.dense(2, bias=False)),
)
N = 7


@pytest.fixture
def library(monkeypatch):
    """A stand-in that takes products of any size.

    Weights lie anywhere among the parameters: it checks that no address is less aligned than was promised.
    """
    found, recorded = stand_in()
    monkeypatch.setattr(blas, "library", lambda device: found)
    monkeypatch.setattr(blas, "CROSSOVER", 1)
    monkeypatch.setattr(blas, "WORKSPACE", 512)
    monkeypatch.setattr(oneblock, "MOST_ELEMENTS", 0)
    return recorded


def device_plan(net, dtype=np.float32, batch=N):
    """A plan of its own: `nbprop.plan` may have kept one from before the fixture."""
    return DevicePlan(net, loss_named("mse"), batch, np.dtype(dtype), 1, "training")


def on_both(net, accumulate=False):
    """{what: (on the device, on the CPU)} of a loss and its gradients, and of dx."""
    rng = np.random.default_rng(2)
    params = (nbprop.init(net, seed=1) + 0.1 * rng.standard_normal(net.n_params)).astype(np.float32)
    x, target = (rng.standard_normal((N, *shape)).astype(np.float32) for shape in (net.input_shape, net.output_shape))
    host, plan = nbprop.plan(net, "mse", N, np.float32), device_plan(net)
    grads, dx, work = np.ones_like(params), np.empty_like(x), nbprop.workspace(host)
    loss = nbprop.value_and_grad(host, params, x, target, grads, work, accumulate=accumulate)
    there = [nbprop.cuda.to_device(a) for a in (params, x, target)]
    on_device, device_work = nbprop.cuda.to_device(np.ones_like(params)), nbprop.workspace(plan)
    found = nbprop.value_and_grad(plan, *there, on_device, device_work, accumulate=accumulate)
    result = {"loss": (found, loss), "grads": (on_device.to_host(), grads.copy())}
    nbprop.vjp(host, params, x, target, grads, dx, work)
    device_dx = nbprop.cuda.zeros(x.shape)
    nbprop.vjp(plan, there[0], there[1], there[2], on_device, device_dx, device_work)
    return result | {"dx": (device_dx.to_host(), dx), "grads of dy": (on_device.to_host(), grads)}


def agree(results):
    for name, (found, wanted) in results.items():
        close(name, found, wanted, 1e-5)


def test_the_library_is_asked_for_the_same_products(library):
    agree(on_both(NET))
    forward = ["RELU_BIAS", "RELU", "BIAS", "DEFAULT"]
    # From the last layer on: the parameters' gradients, the input's; without dx in the end only for the parameters.
    back = ["DEFAULT", "DEFAULT", "BGRADA", "DEFAULT", "DEFAULT", "DEFAULT", "BGRADA"]
    assert library.calls == forward + back + forward + [*back, "DEFAULT"]


def test_gradients_that_add_up_are_not_the_librarys(library):
    agree(on_both(NET, accumulate=True))
    back = library.calls[4:7]
    assert back == ["DEFAULT", "DEFAULT", "DEFAULT"], "the backward pass's products by dx alone"


def test_what_the_library_does_not_support_is_done_here(monkeypatch, library):
    found, recorded = stand_in(refuses={Epilogue.BGRADA, Epilogue.RELU_BIAS})
    monkeypatch.setattr(blas, "library", lambda device: found)
    agree(on_both(NET))
    assert {"BIAS", "RELU", "DEFAULT"} == set(recorded.calls)


def test_small_products_and_float64_are_not_the_librarys(monkeypatch, library):
    for dtype, crossover in ((np.float32, 10**9), (np.float64, 1)):
        monkeypatch.setattr(blas, "CROSSOVER", crossover)
        plan = device_plan(NET, dtype)
        launches = [launch for program in plan.programs.values() for launch in program]
        assert not any(isinstance(launch, blas.ProductLaunch) for launch in launches)


def test_a_recorded_step_runs_with_the_library(library):
    x, target = nbprop.cuda.zeros((N, 3)), nbprop.cuda.zeros((N, 2))
    plan = device_plan(NET)
    step = nbprop.cuda.TrainingStep(plan, nbprop.cuda.to_device(nbprop.init(NET, dtype=np.float32)), x, target)
    step()
    warmed, run = library.calls[:11], library.calls[11:]
    assert warmed == run


def test_threads_that_share_a_product_have_their_own_bias(library, monkeypatch):
    """Of two calls with other biases, one comes between the other's setting of its own and the product."""
    found, rng, others = blas.library(0), np.random.default_rng(3), []
    m, n, k = 3, 4, 5
    a, b, biases = rng.random((m, k), np.float32), rng.random((k, n), np.float32), rng.random((2, n), np.float32)
    results, workspace = np.zeros((2, m, n), np.float32), np.empty(blas.WORKSPACE + 256, np.uint8)
    shared = blas.product(found, m, n, k, False, int(Epilogue.BIAS), 4, 4, 4, 4)
    place, multiply = workspace.ctypes.data + -workspace.ctypes.data % 256, library.matmul

    def enqueue(which):
        shared.enqueue(*(array.ctypes.data for array in (results[which], a, b, biases[which])), place, 0)

    def matmul(*arguments):
        if not others:  # the first product: the other thread calls meanwhile, as far as it may
            others.append(threading.Thread(target=enqueue, args=(1,)))
            others[0].start()
            others[0].join(0.3)
        multiply(*arguments)

    monkeypatch.setattr(library, "matmul", matmul)
    enqueue(0)
    others[0].join()
    np.testing.assert_allclose(results, a @ b + biases[:, None], rtol=1e-6)
