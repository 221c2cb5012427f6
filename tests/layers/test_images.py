"""Convolutions, pooling and local response normalization beyond the contract: sizes that are cut into parts, second
derivatives, NaNs and ties, threads with one sample, and what is refused."""

import numpy as np
import pytest

import nbprop
from support import naive_network
from support.cases import close, same_bits
from support.contract import everything

pytestmark = pytest.mark.usefixtures("four_cores")
conv2d = nbprop.conv2d

# More window elements than a packed part holds rows, more filters than it holds columns; several strips and blocks.
LARGE = {
    "filters": ((7, 6, 130), {"filters": 530, "kernel": 3, "padding": 1}, 3),
    "pixels": ((33, 31, 2), {"filters": 3, "kernel": [4, 5], "stride": [1, 2], "padding": 2}, 4),
    "channels": ((3, 4, 700), {"filters": 9, "kernel": 2}, 2),
    "strided groups": ((7, 6, 160), {"filters": 6, "kernel": 3, "stride": 2, "groups": 2}, 2),
    "groups": ((9, 8, 34), {"filters": 74, "kernel": 3, "groups": 2, "dilation": 2, "padding": 2}, 3),
}


@pytest.mark.parametrize("case", list(LARGE))
def test_large_convolutions(case):
    shape, options, n = LARGE[case]
    description = [{"type": "conv2d", **options}]
    net = nbprop.network(shape, conv2d(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}))
    rng = np.random.default_rng(0)
    params, x = rng.standard_normal(net.n_params), rng.standard_normal((n, *shape))
    dy = rng.standard_normal((n, *net.output_shape))
    grads, dx = naive_network.backward(description, params, x, dy)
    wanted = {"y": naive_network.forward(description, params, x), "grads of dy": grads, "dx": dx}
    results = [everything(nbprop.plan(net, batch=n, threads=threads), params, x, None, None, dy) for threads in (1, 3)]
    for name, value in results[0].items():
        close(name, value, wanted[name], 1e-13)
        same_bits(name, results[1][name], value)


# Convolutions under a max pool: their activation runs behind it, their weight gradient over its windows. Few channels,
# overlapping windows with padding, lines in groups, lines longer than what the registers hold and more of them.
POOLED = {
    "one channel": ((11, 14, 1), {"filters": 6, "kernel": 5, "padding": 2, "activation": "tanh"}, {"kernel": 2}),
    "overlap": (
        (9, 10, 3),
        {"filters": 5, "kernel": 3, "stride": [1, 2], "activation": "relu"},
        {"kernel": 3, "stride": 2, "padding": 1},
    ),
    "groups": (
        (8, 9, 6),
        {"filters": 10, "kernel": [2, 3], "dilation": [1, 2], "groups": 2, "activation": "sigmoid"},
        {"kernel": [2, 3], "stride": [2, 1]},
    ),
    "long lines": ((9, 7, 67), {"filters": 3, "kernel": [7, 3], "activation": "softplus"}, {"kernel": [3, 2]}),
}


@pytest.mark.parametrize("case", list(POOLED))
def test_convolutions_under_a_max_pool(case):
    shape, options, pool = POOLED[case]
    description = [{"type": "conv2d", **options}, {"type": "max_pool2d", **pool}]
    options, pool = (
        {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        for given in (options, pool)
    )
    net, n = nbprop.network(shape, conv2d(**options), nbprop.max_pool2d(**pool)), 3
    rng = np.random.default_rng(0)
    params, x = rng.standard_normal(net.n_params), rng.standard_normal((n, *shape))
    dy = rng.standard_normal((n, *net.output_shape))
    grads, dx = naive_network.backward(description, params, x, dy)
    wanted = {"y": naive_network.forward(description, params, x), "grads of dy": grads, "dx": dx}
    results = [everything(nbprop.plan(net, batch=n, threads=threads), params, x, None, None, dy) for threads in (1, 3)]
    for name, value in results[0].items():
        close(name, value, wanted[name], 1e-13)
        same_bits(name, results[1][name], value)
    plan, twice = nbprop.plan(net, batch=n), np.empty_like(grads)
    work, y = nbprop.workspace(plan), np.empty((n, *net.output_shape))
    nbprop.forward(plan, params, x, y, work)
    twice[:] = 1
    nbprop.backward(plan, params, x, dy, twice, None, work, accumulate=True)
    close("accumulated", twice - 1, grads, 1e-13)


def every_layer():
    """All layers on images, in one network of smooth parts; (5, 6, 4) -> (3,)."""
    return nbprop.network(
        (5, 6, 4),
        conv2d(6, (3, 2), padding=(1, 0), groups=2, activation="tanh"),
        nbprop.local_response_norm(3, alpha=0.5, beta=0.6, k=1),
        nbprop.max_pool2d(3, stride=(2, 1), padding=1),
        conv2d(4, 2, padding="same", dilation=2, activation="gelu"),
        nbprop.avg_pool2d(2, stride=1, padding=1),
        conv2d(5, 1, activation="tanh"),
        nbprop.reshape((24, 5)),
        nbprop.conv1d(4, 3, stride=2, activation="tanh"),
        nbprop.max_pool1d(2, stride=1),
        nbprop.global_avg_pool(),
        nbprop.dense(3),
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_second_derivatives_are_differences_of_gradients(threads):
    net, n, step = every_layer(), 3, 1e-6
    rng = np.random.default_rng(3)
    plan = nbprop.plan(net, "mse", batch=n + 1, threads=threads)
    params, v = nbprop.init(net, seed=1) + 0.1 * rng.standard_normal(net.n_params), rng.standard_normal(net.n_params)
    x, dx, target = (rng.standard_normal((n, *shape)) for shape in (net.input_shape, net.input_shape, (3,)))
    high, low, out, work = *(np.empty(net.n_params) for _ in range(3)), np.full(plan.work_size, np.nan)
    nbprop.hvp(plan, params, v, x, target, out, work)
    nbprop.value_and_grad(plan, params + step * v, x, target, high, work)
    nbprop.value_and_grad(plan, params - step * v, x, target, low, work)
    close("hvp", out, (high - low) / (2 * step), 1e-7)
    for along_params, along_x in ((v, dx), (v, None), (None, dx)):
        y_dot, y_high, y_low = (np.empty((n, 3)) for _ in range(3))
        work[:] = np.nan
        nbprop.jvp(plan, params, along_params, x, along_x, y_dot, work)
        p, d = 0 if along_params is None else step * v, 0 if along_x is None else step * dx
        nbprop.forward(plan, params + p, x + d, y_high, work)
        nbprop.forward(plan, params - p, x - d, y_low, work)
        close("jvp", y_dot, (y_high - y_low) / (2 * step), 1e-7)


def test_even_windows_of_the_normalization_have_second_derivatives():
    """An even window is not its own mirror image; nor does it have a middle."""
    norm = nbprop.local_response_norm(4, alpha=0.5, beta=1.2, k=0.5)
    net = nbprop.network((2, 3), nbprop.dense(5, activation="tanh"), norm, nbprop.dense(2))
    plan, rng, hessian = nbprop.plan(net, "mse", batch=2), np.random.default_rng(0), np.empty((net.n_params,) * 2)
    x, target = rng.standard_normal((2, 2, 3)), rng.standard_normal((2, 2, 2))
    nbprop.hessian(plan, nbprop.init(net), x, target, hessian, nbprop.workspace(plan))
    assert np.abs(hessian).max() > 0.1
    assert np.abs(hessian - hessian.T).max() < 1e-14


@pytest.mark.parametrize("layer", [nbprop.max_pool2d(2), nbprop.max_pool2d((1, 2)), nbprop.global_max_pool()])
def test_ties_go_to_the_first_and_nan_is_the_largest(layer):
    net = nbprop.network((2, 2, 3), layer)
    plan = nbprop.plan(net, batch=4)
    x = np.zeros((4, 2, 2, 3))
    x[0, :, 0] = np.nan
    x[1, 0, 1] = np.nan
    x[2, 0, 1] = x[2, 1, 0] = 1
    x[3] = -np.inf
    params, grads, y, dx = np.empty(0), np.empty(0), np.empty((4, *net.output_shape)), np.empty_like(x)
    work = nbprop.workspace(plan)
    nbprop.forward(plan, params, x, y, work)
    nbprop.backward(plan, params, x, np.ones_like(y), grads, dx, work)
    taken = dx[..., 0].reshape(4, 4)
    if layer == nbprop.max_pool2d((1, 2)):
        assert taken.tolist() == [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [1, 0, 1, 0]]
    else:
        assert np.isnan(y[:2]).all()
        assert y[2:].ravel().tolist() == [1, 1, 1, *[-np.inf] * 3]
        # Of two NaNs the last, as in PyTorch.
        assert taken.tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    assert (dx[..., 1:] == dx[..., :1]).all()


def test_a_nan_passes_through_convolutions_and_means():
    for layer in (conv2d(20, 2), nbprop.avg_pool2d(2), nbprop.local_response_norm()):
        net = nbprop.network((3, 3, 20), layer)
        plan, x, y = nbprop.plan(net, batch=1), np.ones((1, 3, 3, 20)), np.empty((1, *net.output_shape))
        x[0, 1, 1, 7] = np.nan
        nbprop.forward(plan, nbprop.init(net), x, y, nbprop.workspace(plan))
        assert np.isnan(y).any()


def network(*layers, shape=(5, 4, 6)):
    return lambda: nbprop.network(shape, *layers)


REFUSED = {
    "window, height": (
        network(nbprop.max_pool2d(2), conv2d(4, (3, 1))),
        r"layer 1\.conv2d on an input of shape \(2, 2, 6\): a window of 3 does not fit the height of 2 with padding 0",
    ),
    "window, width": (network(conv2d(4, 3, dilation=2)), r"0\.conv2d .*: a window of 5 does not fit the width of 4"),
    "window, pool": (network(nbprop.avg_pool2d(5)), r"0\.avg_pool2d .*: a window of 5 does not fit the width of 4"),
    "window, sequence": (network(nbprop.conv1d(2, 6), shape=(5, 3)), r"does not fit the length of 5"),
    "groups, channels": (network(conv2d(8, 1, groups=4)), r"0\.conv2d .*: groups=4 must divide the input's 6 channels"),
    "groups, filters": (lambda: conv2d(5, 1, groups=2), "groups=2 must divide the 5 filters"),
    "no image": (network(conv2d(3, 1), shape=(5, 4)), r"conv2d needs images \(height, width, channels\): .*, got 2"),
    "no sequence": (network(nbprop.max_pool1d(2)), r"max_pool1d needs sequences \(time, channels\): .* 2 axes, got 3"),
    "no positions": (network(nbprop.global_avg_pool(), shape=(4,)), r"global_avg_pool needs images .*, got \(4,\)"),
    "filters": (lambda: conv2d(0, 3), "filters must be a positive integer, got 0"),
    "kernel": (lambda: conv2d(2, (3, 0)), "kernel must be a positive integer, got 0"),
    "kernel, three": (lambda: conv2d(2, (3, 3, 3)), r"kernel must be an integer or 2 of them, got \(3, 3, 3\)"),
    "stride": (lambda: nbprop.max_pool2d(2, stride=0), "stride must be a positive integer, got 0"),
    "padding": (lambda: conv2d(2, 3, padding=-1), "padding must be an integer of at least 0, or 2 of them, got -1"),
    "padding, name": (lambda: conv2d(2, 3, padding="sane"), "padding: unknown name 'sane'; did you mean 'same'"),
    "padding, pool": (lambda: nbprop.max_pool2d(3, padding=2), "padding 2 must be at most half of the kernel 3"),
    "activation": (lambda: conv2d(2, 3, activation="rleu"), "activation: unknown name 'rleu'; did you mean 'relu'"),
    "init": (lambda: conv2d(2, 3, init="he"), "init: unknown name 'he'"),
    "size": (lambda: nbprop.local_response_norm(0), "size must be a positive integer, got 0"),
    "k": (lambda: nbprop.local_response_norm(k=0), "k must be a finite number above 0, got 0"),
    "alpha": (lambda: nbprop.local_response_norm(alpha=float("nan")), "alpha must be .* at least 0, got nan"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(REFUSED))
def test_what_does_not_fit_is_refused(what):
    make, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "layer",
    [
        conv2d(4, 3, padding="same", groups=2),
        conv2d(4, (3, 2), stride=(1, 2), padding=(1, 0), activation="relu", bias=False),
        nbprop.max_pool2d(3, stride=2, padding=(1, 0)),
        nbprop.local_response_norm(alpha=0.1),
    ],
)
def test_descriptions_survive_json(layer):
    net = nbprop.network((5, 4, 6), layer)
    assert nbprop.Network.from_json(net.to_json()) == net
    assert eval(repr(layer), vars(nbprop)) == layer
