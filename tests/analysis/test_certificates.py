"""Bounds over a box are bounds: no output leaves them, exact or computed; for linear networks they are exact."""

import mpmath
import numpy as np
import pytest

import nbprop
from nbprop.analysis.bounds import _LAYERS
from nbprop.analysis.enclosures import _FUNCTIONS, _LIPSCHITZ, _range, _relaxed
from support.c_build import given
from support.cases import CASES

dense = nbprop.dense


def bounded(net):
    names = {getattr(layer, "activation", getattr(layer, "name", "identity")) for _, layer in net.nodes}
    return all(layer.kind in _LAYERS for _, layer in net.nodes) and names <= {*_FUNCTIONS, "identity", "softmax"}


NAMES = [name for name, (net, loss) in CASES.items() if loss is None and bounded(net)]


def computed(net, params, x, state, dtype):
    plan = nbprop.plan(net, batch=len(x), dtype=dtype, mode="inference")
    y = np.empty((len(x), *net.output_shape), dtype)
    state = None if state is None else state.astype(dtype)
    nbprop.forward(plan, params.astype(dtype), x.astype(dtype), y, nbprop.workspace(plan), state)
    return y.astype(np.float64)


def points(low, high, rng, n):
    """Points of a box, its corners among them, exactly representable in float32."""
    where = rng.random((n, *low.shape))
    where[: n // 2] = where[: n // 2] > 0.5
    x = (low + where * (high - low)).astype(np.float32)
    return np.clip(x, low, high)


def check(name, rng, width, dtypes):
    net, _, params, state = given(name, np.float32)
    center = rng.standard_normal(net.input_shape).astype(np.float32)
    low, high = center - np.float32(width), center + np.float32(width)
    x = points(low, high, rng, 40)
    for dtype in dtypes:
        wide = None if state is None else state.astype(dtype)
        found = nbprop.bounds(net, params.astype(dtype), low, high, wide)
        y = computed(net, params, x, state, dtype)
        assert (y >= found.low - found.rounding).all(), (name, dtype)
        assert (y <= found.high + found.rounding).all(), (name, dtype)
        exact = computed(net, params, x, state, np.float64)  # to 1e-12, a small part of float32's rounding
        assert (np.abs(y - exact) <= found.rounding + 1e-12).all(), (name, dtype)
        assert (found.rounding > 0).all()
        assert (found.rounding < 2e3 * np.finfo(dtype).eps * (1 + np.abs(y).max())).all(), (name, dtype)


def test_no_output_leaves_its_bounds():
    rng = np.random.default_rng(0)
    for name in NAMES[::15]:
        check(name, rng, 0.5, [np.float64])


@pytest.mark.more
@pytest.mark.parametrize("width", [0.0, 0.01, 0.5, 20.0])
def test_no_output_leaves_its_bounds_in_either_precision(width):
    rng = np.random.default_rng(1)
    for name in NAMES:
        check(name, rng, width, [np.float32, np.float64])


def test_linear_networks_have_exact_bounds():
    """Of each output, the minimum and the maximum are at corners that its row of the product gives."""
    rng = np.random.default_rng(2)
    net = nbprop.network((3,), dense(7), nbprop.residual(dense(5), dense(7)), nbprop.standardize(), dense(2))
    params = rng.standard_normal(net.n_params)
    parts = nbprop.views(net, params)
    parts["2.standardize.std"][:] = rng.uniform(0.5, 2, 7)
    low, high = np.array([-1.0, 0.5, 2.0]), np.array([1.0, 0.5, 5.0])
    x = np.vstack([np.zeros(3), np.eye(3)])
    at = computed(net, params, x, None, np.float64)
    matrix, shift = (at[1:] - at[0]).T, at[0]
    center, radius = (low + high) / 2, (high - low) / 2
    middle, spread = matrix @ center + shift, np.abs(matrix) @ radius
    found = nbprop.bounds(net, params, low, high)
    np.testing.assert_allclose(found.low, middle - spread, rtol=1e-11)
    np.testing.assert_allclose(found.high, middle + spread, rtol=1e-11)
    assert (found.low <= middle - spread + 1e-9).all()


def test_exact_values_and_rounding_by_mpmath():
    """A tanh network in 50 digits: within the bounds; and what float32 makes of it, within the rounding."""
    rng = np.random.default_rng(3)
    net = nbprop.network((2,), dense(5, "tanh"), dense(4, "softplus"), dense(1))
    params = rng.standard_normal(net.n_params).astype(np.float32)
    low, high = np.float32([-0.5, 0.25]), np.float32([0.5, 0.75])
    found, x = nbprop.bounds(net, params, low, high), points(low, high, rng, 30)
    y = computed(net, params, x, None, np.float32)
    parts = nbprop.views(net, params)
    with mpmath.workdps(50):
        for row, got in zip(x, y, strict=True):
            h = [mpmath.mpf(float(value)) for value in row]
            for k, f in ((0, mpmath.tanh), (1, lambda z: mpmath.log(1 + mpmath.exp(z))), (2, lambda z: z)):
                w, b = parts[f"{k}.dense.weight"], parts[f"{k}.dense.bias"]
                h = [
                    f(mpmath.fsum([mpmath.mpf(float(b[j])), *(h[i] * float(w[i, j]) for i in range(len(h)))]))
                    for j in range(len(b))
                ]
            assert found.low[0] <= h[0] <= found.high[0]
            assert abs(float(got[0]) - h[0]) <= found.rounding[0]


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_relaxations_hold_everywhere(name):
    rng = np.random.default_rng(4)
    for scale in (0.01, 1.0, 5.0, 200.0):
        low = rng.standard_normal(2000) * scale
        high = low + rng.random(2000) * scale
        f, (down, up) = _FUNCTIONS[name], _range(name, low, high)
        slope, shift, radius = _relaxed(name, low, high, down, up)
        steepest = 0.0
        for where in (*np.linspace(0, 1, 21), *rng.random(20)):
            x = low + where * (high - low)
            assert (f(x) >= down).all()
            assert (f(x) <= up).all()
            assert (np.abs(f(x) - slope * x - shift) <= radius).all()
            steepest = max(steepest, float(np.abs((f(x + 1e-6) - f(x - 1e-6)) / 2e-6).max()))
        assert steepest <= _LIPSCHITZ[name] + 1e-6
        assert (radius <= (up - down) / 2 + 1e-11 * (1 + np.abs(up))).all()


def test_bounds_are_narrow_where_a_box_is_small():
    rng = np.random.default_rng(5)
    net = nbprop.network((4,), dense(32, "tanh"), dense(32, "tanh"), dense(1))
    params, center = nbprop.init(net, seed=1), rng.standard_normal(4)
    x = center + 0.01 * rng.uniform(-1, 1, (4000, 4))
    seen = np.ptp(computed(net, params, x, None, np.float64))
    found = nbprop.bounds(net, params, center - 0.01, center + 0.01)
    assert seen <= found.high - found.low < 1.6 * seen


def test_overflow_is_no_bound():
    net = nbprop.network((2,), dense(2), dense(1))
    params = np.full(net.n_params, 1e25, np.float32)
    found = nbprop.bounds(net, params, np.zeros(2), np.ones(2))
    assert np.isinf(found.rounding).all()
    assert np.isfinite(found.high).all()


_NET = nbprop.network((3,), dense(2))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"net": 3}, "net must be what nbprop.network"),
        ({"params": np.zeros(3)}, r"params must have shape \(8,\)"),
        ({"params": np.full(8, np.nan)}, "params must be finite"),
        ({"low": np.ones(3), "high": np.zeros(3)}, "low must not be above high, got it at element 0"),
        ({"low": np.zeros(4)}, r"low must have shape \(3,\)"),
        ({"high": np.full(3, np.inf)}, "high must be finite"),
        ({"state": np.zeros(2)}, "state is for networks with running statistics"),
        ({"net": nbprop.network((3,), nbprop.batchnorm()), "params": np.ones(6)}, "give state"),
        (
            {"net": nbprop.network((3,), nbprop.layernorm()), "params": np.ones(6)},
            "layer 0.layernorm, which has no bounds",
        ),
        ({"net": nbprop.network((3,), nbprop.activation("mish")), "params": np.ones(0)}, "0.activation: .*mish"),
        ({"net": nbprop.network((3,), nbprop.embedding(4, 2)), "params": np.ones(8)}, "x holds integers"),
    ],
)
def test_wrong_arguments(arguments, told):
    given = {"net": _NET, "params": np.zeros(8), "low": np.zeros(3), "high": np.ones(3)} | arguments
    with pytest.raises((TypeError, ValueError), match=f"bounds: .*{told}"):
        nbprop.bounds(**given)
