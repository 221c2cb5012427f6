"""Networks inside a user's own kernels, by thread and by block, against the CPU; and the example."""

import importlib.util

import numpy as np
import pytest
from numba import cuda, float64

import nbprop
import nbprop.cuda
from support import ROOT
from support.cases import close

dense = nbprop.dense
NETWORKS = {
    "tanh": nbprop.network((3,), dense(5, activation="tanh"), dense(2)),
    "gelu": nbprop.network((3,), dense(4, activation="gelu"), dense(3, activation="silu", bias=False)),
    "alone": nbprop.network(
        (2, 2), nbprop.flatten(), nbprop.activation("softplus"), dense(3), nbprop.activation("gelu")
    ),
}
N = 3  # threads, or blocks


def expected(net, params, x, dy):
    """y, the parameters' gradients and dx of each sample by itself."""
    plan = nbprop.plan(net)
    work, y, grads, dx = nbprop.workspace(plan), np.empty_like(dy), np.zeros((len(x), net.n_params)), np.empty_like(x)
    for i in range(len(x)):
        here = slice(i, i + 1)
        nbprop.forward(plan, params[i], x[here], y[here], work)
        nbprop.backward(plan, params[i], x[here], dy[here], grads[i], dx[here], work)
    return y, grads, dx


def given(net):
    rng = np.random.default_rng(6)
    params = np.stack([nbprop.init(net, seed=i) + 0.1 for i in range(N)])
    return params, rng.standard_normal((N, *net.input_shape)), rng.standard_normal((N, *net.output_shape))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_network_in_each_thread(name):
    """Each thread has its own parameters, side by side; gradients add up over two calls."""
    net = NETWORKS[name]
    forward, vjp = nbprop.cuda.forward_thread(net), nbprop.cuda.vjp_thread(net)
    size, inputs, outputs = nbprop.cuda.trace_size(net), int(np.prod(net.input_shape)), net.output_shape[0]

    @cuda.jit
    def kernel(ys, grads, dxs, xs, params, dys):
        i, n = cuda.grid(1), ys.shape[0]
        if i < n:
            trace = cuda.local.array(size, float64)
            forward(ys[i], xs[i], params, i, n, trace)
            for _ in range(2):
                vjp(grads, i, n, dxs[i], dys[i], params, i, n, trace)

    params, x, dy = given(net)
    wanted = expected(net, params, x, dy)
    y, grads, dx = np.zeros_like(dy), np.zeros(net.n_params * N), np.zeros((N, inputs))
    kernel[1, 4](y, grads, dx, x.reshape(N, inputs), params.T.ravel(), dy)
    close("y", y, wanted[0], 1e-13)
    close("grads", grads.reshape(net.n_params, N).T, 2 * wanted[1], 1e-13)
    close("dx", dx, wanted[2].reshape(N, inputs), 1e-13)
    assert outputs == y.shape[1]


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_network_for_a_block(name):
    net = NETWORKS[name]
    forward, vjp = nbprop.cuda.forward_block(net), nbprop.cuda.vjp_block(net)
    size, inputs = nbprop.cuda.trace_size(net), int(np.prod(net.input_shape))

    @cuda.jit
    def kernel(ys, grads, dxs, xs, params, dys):
        i = cuda.blockIdx.x
        trace = cuda.shared.array(size, float64)  # on a line of its own: the simulator tells arrays apart by lines
        adjoint = cuda.shared.array(size, float64)
        first = i * (params.size // ys.shape[0])
        forward(ys[i], xs[i], params, first, 1, trace)
        vjp(grads, first, 1, dxs[i], dys[i], params, first, 1, trace, adjoint)

    params, x, dy = given(net)
    wanted = expected(net, params, x, dy)
    y, grads, dx = np.zeros_like(dy), np.zeros(net.n_params * N), np.zeros((N, inputs))
    kernel[N, 4](y, grads, dx, x.reshape(N, inputs), params.ravel(), dy)
    close("y", y, wanted[0], 1e-13)
    close("grads", grads.reshape(N, net.n_params), wanted[1], 1e-13)
    close("dx", dx, wanted[2].reshape(N, inputs), 1e-13)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nbprop.network((2, 3), dense(2)), "0.dense: dense over several positions"),
        (nbprop.network((3,), dense(2, activation="softmax")), "0.dense: softmax does not"),
        (nbprop.network((4,), nbprop.slicing(0, 2)), "0.slicing does not run inside a kernel"),
    ],
)
def test_other_layers_are_refused_by_name(net, message):
    for make in (nbprop.cuda.forward_thread, nbprop.cuda.vjp_thread, nbprop.cuda.forward_block, nbprop.cuda.vjp_block):
        with pytest.raises(ValueError, match=message):
            make(net)


def test_pendulums_learn_and_their_gradient_is_a_difference():
    path = ROOT / "examples" / "cuda_pendulums.py"
    spec = importlib.util.spec_from_file_location("cuda_pendulums", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    costs = [cost for cost, _ in example.train(pendulums=3, horizon=4, steps=4, lr=0.002)]
    assert costs == sorted(costs, reverse=True)

    kernel, n, horizon = example.make_kernel(), 2, 5
    params = np.repeat(nbprop.init(example.NET, seed=1, dtype=np.float32), n)
    start = np.array([0.4, -0.3, 0.1, 0.2], np.float32)

    def run(params):
        costs, grads, states = (np.zeros(size, np.float32) for size in (n, params.size, 2 * n * (horizon + 1)))
        kernel[1, n](costs, grads, states, params, start, n, horizon)
        return costs.astype(np.float64), grads

    _, grads = run(params)
    for k in (3, 70, 96):  # a weight of each layer and the last bias, of pendulum 1
        steps = [
            run(params + h * (np.arange(params.size) == k * n + 1).astype(np.float32))[0][1] for h in (0.05, -0.05)
        ]
        close(f"parameter {k}", grads[k * n + 1], (steps[0] - steps[1]) / 0.1, 5e-3)
