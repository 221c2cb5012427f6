"""Normalization beyond the contract: digits at large offsets, rows and features that are cut into parts, refusals."""

import numpy as np
import pytest

import nbprop
from support import naive_network
from support.cases import close, same_bits
from support.contract import everything

pytestmark = pytest.mark.usefixtures("four_cores")


def forward(net, x, params=None):
    params = nbprop.init(net, dtype=x.dtype) if params is None else params
    plan, y = nbprop.plan(net, batch=len(x), dtype=x.dtype), np.full_like(x, np.nan)
    nbprop.forward(plan, params, x, y, nbprop.workspace(plan))
    return y


@pytest.mark.parametrize("offset", [1e4, -3e6])
def test_rows_far_from_zero_keep_their_digits(offset):
    """float32 holds the mean of such a row to a thousandth (a quarter) only; the differences it holds exactly."""
    rng = np.random.default_rng(0)
    x = (offset + rng.integers(-8, 9, (5, 301))).astype(np.float32)
    wanted = x.astype(np.float64)
    wanted -= wanted.mean(axis=1, keepdims=True)
    wanted /= np.sqrt((wanted**2).mean(axis=1, keepdims=True) + 1e-5)
    close("y", forward(nbprop.network((301,), nbprop.layernorm()), x), wanted, 1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_many_rows_and_features(kind, dtype):
    """Several blocks of rows, and features that several threads share."""
    net, rng, n = nbprop.network((131, 150), getattr(nbprop, kind)()), np.random.default_rng(1), 2
    params, x, dy = (rng.standard_normal(shape) for shape in (net.n_params, (n, 131, 150), (n, 131, 150)))
    given = [np.float32(a).astype(dtype) for a in (params, x, dy)]
    results = [
        everything(nbprop.plan(net, batch=n, dtype=dtype, threads=t), *given[:2], None, None, given[2])
        for t in (1, 2, 3)
    ]
    params, x, dy = (a.astype(np.float64) for a in given)
    description = [{"type": kind}]
    grads, dx = naive_network.backward(description, params, x, dy)
    wanted = {"y": naive_network.forward(description, params, x), "grads of dy": grads, "dx": dx}
    for name, value in results[0].items():
        close(name, value, wanted[name], 1e-13 if dtype == np.float64 else 2e-6)
        for other in results[1:]:
            same_bits(name, other[name], value)


def test_names_and_first_values():
    net = nbprop.network((3,), nbprop.layernorm(), nbprop.rmsnorm(), nbprop.layernorm(scale=False))
    views = nbprop.views(net, nbprop.init(net))
    assert {name: view.tolist() for name, view in views.items()} == {
        "0.layernorm.scale": [1, 1, 1],
        "0.layernorm.shift": [0, 0, 0],
        "1.rmsnorm.scale": [1, 1, 1],
        "2.layernorm.shift": [0, 0, 0],
    }
    assert nbprop.Network.from_json(net.to_json()) == net
    assert repr(net.layers[2]) == "layernorm(scale=False)"


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_what_is_refused(kind):
    make = getattr(nbprop, kind)
    for epsilon in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{kind}: epsilon must be a finite number above 0"):
            make(epsilon)
    with pytest.raises(TypeError, match=f"{kind}: epsilon must be a finite number above 0, got '1e-5'"):
        make("1e-5")
    with pytest.raises(ValueError, match=f"{kind} needs an axis to run over"):
        nbprop.network((), make())
