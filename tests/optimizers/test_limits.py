"""Numbers of any size: activations, optimizers and clipping where squares and powers overflow or vanish."""

import numpy as np
import pytest

import nbprop
from nbprop.layers.activation import _apply, add_curvature, scale_by_derivative
from nbprop.numerics.activations import ACTIVATIONS, NEEDS_INPUT, SELU_ALPHA, SELU_SCALE
from nbprop.optimizers.api import OPTIMIZERS

DTYPES = (np.float32, np.float64)
INF = np.inf

# name: (f, f', f'') at -infinity and at infinity.
ENDS = {
    "identity": ((-INF, 1, 0), (INF, 1, 0)),
    "relu": ((0, 0, 0), (INF, 1, 0)),
    "leaky_relu": ((-INF, 0.01, 0), (INF, 1, 0)),
    "elu": ((-1, 0, 0), (INF, 1, 0)),
    "gelu": ((0, 0, 0), (INF, 1, 0)),
    "gelu_tanh": ((0, 0, 0), (INF, 1, 0)),
    "silu": ((0, 0, 0), (INF, 1, 0)),
    "softplus": ((0, 0, 0), (INF, 1, 0)),
    "sigmoid": ((0, 0, 0), (1, 0, 0)),
    "tanh": ((-1, 0, 0), (1, 0, 0)),
    "mish": ((0, 0, 0), (INF, 1, 0)),
    "selu": ((-SELU_SCALE * SELU_ALPHA, 0, 0), (INF, SELU_SCALE, 0)),
    "hard_sigmoid": ((0, 0, 0), (1, 0, 0)),
    "hard_tanh": ((-1, 0, 0), (1, 0, 0)),
    "hard_swish": ((0, 0, 0), (INF, 1, 0)),
    "softsign": ((-1, 0, 0), (1, 0, 0)),
}
# Where an activation has reached its ends, and a bound of its derivatives.
BEYOND, STEEPEST = {"softsign": 1e17}, {"selu": 1.76, "hard_swish": 1.5, "softsign": 2.0}


def magnitudes(dtype):
    """Numbers of every size and sign, infinities and zeros; a few of each, to fill vectors and tails."""
    info = np.finfo(dtype)
    exponents = np.arange(np.log2(info.smallest_subnormal), np.log2(float(info.max)))
    sizes = np.concatenate([[0.0], 2.0**exponents, [float(info.max), INF]]).astype(dtype)
    return np.concatenate([-sizes, sizes])


def derivatives(name, x):
    """f, f' and f'' of an activation, as layers compute them."""
    code = ACTIVATIONS[name]
    y, slope, bend = np.empty_like(x), np.ones_like(x), np.zeros_like(x)
    _apply(y, x, code)
    known = x if code in NEEDS_INPUT else y
    scale_by_derivative(slope, known, code)
    # For a function of y, f'' is the derivative of f' by y, times f'.
    add_curvature(bend, np.ones_like(x), known, np.ones_like(x) if code in NEEDS_INPUT else slope, code)
    return y, slope, bend


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(set(ACTIVATIONS) - {"softmax", "sine"}))
def test_activations_at_every_magnitude(name, dtype):
    x, far = magnitudes(dtype), BEYOND.get(name, 2000)
    for part, values in enumerate(derivatives(name, x)):
        for beyond, limit in ((x < -far, ENDS[name][0][part]), (x > far, ENDS[name][1][part])):
            if np.isfinite(limit):
                np.testing.assert_array_equal(values[beyond], np.full(beyond.sum(), dtype(limit)))
        assert not np.isnan(values).any(), f"f{chr(39) * part} is NaN at {x[np.isnan(values)]}"
        if part > 0:
            assert np.abs(values).max() <= STEEPEST.get(name, 1.2)
        else:
            assert np.isfinite(values[np.abs(x) < np.finfo(dtype).max / 2]).all()  # selu of the largest overflows
            ends = values[x == -INF], values[x == INF]
            assert [end.item() for end in ends] == [pytest.approx(limit[0]) for limit in ENDS[name]]
    nan = np.full(9, np.nan, dtype)
    assert np.isnan(derivatives(name, nan)[0]).all() or name == "identity"


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sine_at_every_magnitude(dtype):
    """sin, cos and -sin of every finite number, as NumPy has them; NaN for what is not finite."""
    x = magnitudes(dtype)
    finite = np.isfinite(x)
    wanted = np.sin(x[finite].astype(np.float64)), np.cos(x[finite].astype(np.float64))
    with np.errstate(invalid="ignore"):
        y, slope, bend = derivatives("sine", x)
    for found, exact in ((y, wanted[0]), (slope, wanted[1]), (bend, -wanted[0])):
        np.testing.assert_allclose(found[finite], exact, rtol=0, atol=np.finfo(dtype).eps)
        assert np.isnan(found[~finite]).all()
    assert np.isnan(derivatives("sine", np.full(9, np.nan, dtype))).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizers_at_large_gradients(name, dtype):
    """For gradients of any finite size the state stays finite, and rates that adapt take their usual step."""
    root = float(np.finfo(dtype).max) ** 0.5
    scales = np.array([1.0, root / 3, root, 30 * root, float(np.finfo(dtype).max) / 16], dtype)
    params, state = np.zeros(5, dtype), nbprop.optimizer_state(name, 5, dtype)
    for step in range(4):
        OPTIMIZERS[name](params, scales, state, step, lr=1e-3)
        assert np.isfinite(state).all()
    assert np.isfinite(params).all()
    divide = ("adam", "adamw", "rmsprop", "adagrad", "amsgrad", "nadam", "adadelta", "schedule_free_adamw")
    if name in (*divide, "rprop", "lion"):
        np.testing.assert_allclose(params, params[0], rtol=1e-3 if name != "adagrad" else 0.3)
    if name in divide:
        before = params.copy()
        with np.errstate(invalid="ignore"):
            OPTIMIZERS[name](params, np.array([np.nan, INF, -INF, 1, 1], dtype), state, 4)
        assert np.isnan(params[:3]).all(), "what is not finite is not hidden"
        assert (params[3:] <= before[3:]).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_norm_at_every_magnitude(dtype, masked):
    info, rng = np.finfo(dtype), np.random.default_rng(0)
    direction = rng.standard_normal(301) + 3
    trainable = np.arange(301) % 3 > 0 if masked else None
    counted = direction if trainable is None else direction[trainable]
    for exponent in range(info.minexp + info.nmant + 8, info.maxexp - 8, 31):
        scale = 2.0**exponent
        grads = (direction * scale).astype(dtype)
        norm, limit = float(np.linalg.norm(counted)) * scale, float(np.linalg.norm(counted)) / 2
        assert nbprop.clip_norm(grads, limit, trainable) == pytest.approx(norm, rel=1e-6)
        wanted = limit if norm + 1e-6 > limit else norm
        kept = grads if trainable is None else grads[trainable]
        largest = float(np.abs(kept).max())
        assert float(np.linalg.norm(kept.astype(np.float64) / largest)) * largest == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_norm_of_what_is_not_finite(dtype):
    assert nbprop.clip_norm(np.zeros(5, dtype), 1.0) == 0
    assert nbprop.clip_norm(np.array([1, INF, 2], dtype), 1.0) == INF
    assert np.isnan(nbprop.clip_norm(np.array([np.nan, INF, 2], dtype), 1.0))
    assert nbprop.clip_norm(np.array([1, INF, 2], dtype), 10.0, np.array([True, False, True])) == pytest.approx(5**0.5)
