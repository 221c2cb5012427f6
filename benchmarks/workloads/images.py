"""Convolution, pooling, LeNet-5 and AlexNet, each for nbprop and PyTorch.

Images are in the memory order that is fastest for each: NHWC for both (PyTorch's channels_last took 0.4 to 0.8 of the
time of its default).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from harness.work import Work
from workloads.rows import RATE, Row, aligned

# name -> (input shape, batch)
SIZES = {
    "conv2d": ((28, 28, 64), 16),
    "pool_64mb": ((128, 128, 64), 16),
    "lenet_step": ((28, 28, 1), 128),
    "alexnet_gradient": ((224, 224, 3), 16),
}


def images(row: Row) -> np.ndarray:
    shape, batch = SIZES[row.name]
    return aligned(np.random.default_rng(1).standard_normal((batch, *shape), np.float32))


def classes(row: Row, count: int) -> np.ndarray:
    return aligned(np.random.default_rng(2).integers(0, count, SIZES[row.name][1]))


def nbprop(row: Row, threads: int) -> Work:
    return {"conv2d": _conv, "lenet_step": _lenet, "alexnet_gradient": _alexnet}[row.name](row, threads)


def nbprop_njit(row: Row, threads: int) -> Work:
    """2 x 2 pooling alone, forward and backward: its kernels as a plan calls them, without the copies to the caller's
    arrays that a network of one layer would need."""
    from nbprop.layers.pool import Pools, max_pool_backward, max_pool_forward

    x = images(row)
    n, height, width, channels = x.shape
    pools = Pools(height, width, channels, 2, 2, 2, 2, 0, 0, height // 2, width // 2)
    dx, (y, argmax) = np.empty(x.size, np.float32), np.empty((2, x.size // 4), np.float32)
    x, dy = x.reshape(-1), np.ones_like(y)
    # Before commits whose kernels take their sizes as a NamedTuple, one by one.
    sizes = (pools,) if hasattr(max_pool_forward, "contract") else tuple(pools)

    def run(count: int) -> None:
        for _ in range(count):
            max_pool_forward(y, argmax, x, n, *sizes, 0, 1)
            max_pool_backward(dx, dy, argmax, n, *sizes, 0, 1)

    run(1)
    return Work(run, check=float(y.mean()))


def _arrays(net, plan):
    import nbprop as nb

    params = nb.init(net, 0, np.float32)
    return aligned(params), np.empty_like(params), nb.workspace(plan)


def _conv(row: Row, threads: int) -> Work:
    import nbprop as nb

    x = images(row)
    net = nb.network(x.shape[1:], nb.conv2d(64, 3, padding=1))
    plan = nb.plan(net, batch=len(x), dtype=np.float32, threads=threads)
    params, grads, work = _arrays(net, plan)
    y, dy, dx = np.empty_like(x), aligned(np.ones_like(x)), np.empty_like(x)

    def run(count: int) -> None:
        for _ in range(count):
            nb.forward(plan, params, x, y, work)
            nb.backward(plan, params, x, dy, grads, dx, work)

    run(1)
    return Work(run)


def _lenet(row: Row, threads: int) -> Work:
    import nbprop as nb

    x, target = images(row), classes(row, 10)
    net = nb.network(
        x.shape[1:],
        *(nb.conv2d(6, 5, padding=2, activation="tanh"), nb.max_pool2d(2)),
        *(nb.conv2d(16, 5, activation="tanh"), nb.max_pool2d(2), nb.flatten()),
        *(nb.dense(120, "tanh"), nb.dense(84, "tanh"), nb.dense(10)),
    )
    plan = nb.plan(net, "softmax_cross_entropy", len(x), np.float32, threads)
    params, grads, work = _arrays(net, plan)
    state, step = nb.optimizer_state("adam", net.n_params, np.float32), 0

    def run(count: int) -> None:
        nonlocal step
        for _ in range(count):
            nb.value_and_grad(plan, params, x, target, grads, work)
            nb.adam(params, grads, state, step, RATE)
            step += 1

    return Work(run)


def _alexnet(row: Row, threads: int) -> Work:
    import nbprop as nb

    x, target = images(row), classes(row, 1000)

    def conv(filters, kernel, **options):
        return nb.conv2d(filters, kernel, activation="relu", **options)

    norm, pool = nb.local_response_norm(), nb.max_pool2d(3, 2)
    net = nb.network(
        x.shape[1:],
        *(conv(96, 11, stride=4, padding=2), norm, pool, conv(256, 5, padding=2, groups=2), norm, pool),
        *(conv(384, 3, padding=1), conv(384, 3, padding=1, groups=2), conv(256, 3, padding=1, groups=2), pool),
        *(nb.flatten(), nb.dense(4096, "relu"), nb.dropout(0.5), nb.dense(4096, "relu"), nb.dropout(0.5)),
        nb.dense(1000),
    )
    plan = nb.plan(net, "softmax_cross_entropy", len(x), np.float32, threads)
    params, grads, work = _arrays(net, plan)

    def run(count: int) -> None:
        for step in range(count):
            nb.value_and_grad(plan, params, x, target, grads, work, step=step)

    return Work(run)


def torch(row: Row, threads: int) -> Work:
    import torch as tc

    tc.set_num_threads(threads)
    tc.manual_seed(0)
    x = tc.from_numpy(images(row)).permute(0, 3, 1, 2)  # channels_last in memory
    make: dict[str, Callable] = {
        "conv2d": _torch_conv,
        "pool_64mb": _torch_pool,
        "lenet_step": _torch_lenet,
        "alexnet_gradient": _torch_alexnet,
    }
    once = make[row.name](tc, row, x)

    def run(count: int) -> None:
        for _ in range(count):
            once()

    return Work(run)


def _torch_conv(tc, row: Row, x):
    layer = tc.nn.Conv2d(64, 64, 3, padding=1).to(memory_format=tc.channels_last)
    x, dy = x.requires_grad_(), tc.ones_like(x)
    return lambda: tc.autograd.grad(layer(x), (x, *layer.parameters()), dy)


def _torch_pool(tc, row: Row, x):
    x = x.requires_grad_()
    dy = tc.ones_like(tc.nn.functional.max_pool2d(x, 2))
    return lambda: tc.autograd.grad(tc.nn.functional.max_pool2d(x, 2), x, dy)


def _torch_lenet(tc, row: Row, x):
    nn = tc.nn
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
    ).to(memory_format=tc.channels_last)
    optimizer, target = tc.optim.Adam(model.parameters(), RATE), tc.from_numpy(classes(row, 10))

    def once() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()

    return once


def _torch_alexnet(tc, row: Row, x):
    nn = tc.nn
    norm, pool = nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0), nn.MaxPool2d(3, 2)
    model = nn.Sequential(
        *(nn.Conv2d(3, 96, 11, 4, 2), nn.ReLU(), norm, pool),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), norm, pool),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), pool, nn.Flatten()),
        *(nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()),
        nn.Linear(4096, 1000),
    ).to(memory_format=tc.channels_last)
    target = tc.from_numpy(classes(row, 1000))
    return lambda: tc.autograd.grad(nn.functional.cross_entropy(model(x), target), tuple(model.parameters()))
