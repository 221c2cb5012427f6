"""The elementary functions against mpmath, at their edges, and their vector bodies against their scalar tails."""

import re

import llvmlite.binding
import mpmath
import numba
import numpy as np
import pytest
from numba.core.errors import TypingError

from nbprop.compiler.jit import FLAGS
from nbprop.numerics import elementary as functions
from nbprop.numerics import trigonometric

DTYPES = (np.float32, np.float64)
MP = mpmath.mp.clone()
MP.prec = 120

# name: (exact function, argument range to sample, bound in ulp for float32 and for float64).
# The bounds are those of the docstrings.
FUNCTIONS = {
    "exp": (MP.exp, (-110, 750), (1.1, 1.1)),
    "expm1": (MP.expm1, (-50, 750), (1.8, 2.3)),
    "log": (MP.log, (0, np.inf), (1.0, 1.0)),
    "log1p": (MP.log1p, (-1, np.inf), (1.6, 1.5)),
    "tanh": (MP.tanh, (-25, 25), (2.1, 2.3)),
    "sigmoid": (lambda x: 1 / (1 + MP.exp(-x)), (-750, 50), (2.5, 2.5)),
    "softplus": (lambda x: MP.log1p(MP.exp(x)), (-750, 750), (1.9, 2.3)),
    "erf": (MP.erf, (-7, 7), (2.3, 3.2)),
}


def loop(function):
    """y[i] = function(x[i]): not through our cache, which does not tell apart the closures of one source line."""

    @numba.njit(**FLAGS)
    def evaluate(y, x):
        for i in range(x.size):
            y[i] = function(x[i])

    return evaluate


LOOPS = {name: loop(getattr(functions, name)) for name in (*FUNCTIONS, "normal_cdf", "normal_pdf")}


def evaluate(name, x):
    """The function of every element of x, in one loop."""
    y = np.full_like(x, np.nan)
    LOOPS[name](y, x)
    return y


def samples(name, dtype):
    """Finite arguments: log-spaced magnitudes, uniform ones, the domain's ends, and random bit patterns."""
    low, high = FUNCTIONS[name][1]
    info = np.finfo(dtype)
    rng = np.random.default_rng(list(FUNCTIONS).index(name))
    magnitudes = np.geomspace(float(info.smallest_normal), float(info.max) * 0.999, 300)
    narrow = np.concatenate([np.geomspace(1e-9, 30, 300), rng.uniform(0, 3, 600), rng.uniform(0, 20, 200)])
    patterns = rng.integers(0, 256, (300, info.bits // 8), np.uint8).view(dtype).ravel()
    ends = [e for e in (low, high, low / 7, high / 7) if np.isfinite(e)]
    steps = np.concatenate([np.nextafter(np.array(ends, dtype), dtype(s)) for s in (-np.inf, np.inf)])
    subnormal = rng.integers(1, 1000, 20) * float(info.smallest_subnormal)
    positive = np.concatenate([magnitudes, narrow, subnormal]).astype(dtype)
    x = np.concatenate([positive, -positive, patterns, steps, np.array(ends, dtype)])
    with np.errstate(invalid="ignore"):
        return x[np.isfinite(x) & (x > low) & (x < high)]


def error_in_ulp(y, x, exact):
    """|y - exact(x)| in units in the last place of exact(x); where that rounds to infinity, y must too."""
    info = np.finfo(y.dtype)
    errors = np.zeros(y.size)
    for i in range(y.size):
        reference = exact(MP.mpf(float(x[i])))
        if abs(reference) >= MP.mpf(float(info.max)) + MP.mpf(2) ** (info.maxexp - info.nmant - 2):
            errors[i] = 0.0 if y[i] == np.sign(float(reference)) * np.inf else np.inf
        elif not np.isfinite(y[i]):
            errors[i] = np.inf
        else:
            exponent = max(MP.frexp(reference)[1] - 1, int(info.minexp)) if reference else int(info.minexp)
            errors[i] = float(abs(MP.mpf(float(y[i])) - reference) * MP.mpf(2) ** (info.nmant - exponent))
    return errors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_error_is_within_the_documented_bound(name, dtype):
    exact, _, bounds = FUNCTIONS[name]
    x = samples(name, dtype)
    errors = error_in_ulp(evaluate(name, x), x, exact)
    worst = np.argmax(errors)
    assert errors[worst] <= bounds[DTYPES.index(dtype)], f"{errors[worst]} ulp at {x[worst]!r}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_docstring_states_the_tested_bounds(name):
    stated = re.search(r"below ([\d.]+) and ([\d.]+) ulp", getattr(functions, name).__doc__)
    assert tuple(map(float, stated.groups())) == FUNCTIONS[name][2]


NAN, INF = np.nan, np.inf
EDGES = {
    "exp": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (1000.0, INF), (-1000.0, 0.0)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1.0), (1000.0, INF), (-1000.0, -1.0)],
    "log": [(1.0, 0.0), (0.0, -INF), (-0.0, -INF), (INF, INF), (-1.0, NAN), (-1e-40, NAN), (-INF, NAN)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1.0, -INF), (INF, INF), (-2.0, NAN), (-INF, NAN)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (50.0, 1.0), (-50.0, -1.0)],
    "sigmoid": [(0.0, 0.5), (-0.0, 0.5), (INF, 1.0), (-INF, 0.0), (1000.0, 1.0), (-1000.0, 0.0)],
    "softplus": [(INF, INF), (-INF, 0.0), (1000.0, 1000.0), (-1000.0, 0.0)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (10.0, 1.0), (-10.0, -1.0)],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EDGES)
def test_edges_are_exact_to_the_sign_of_zero(name, dtype):
    pairs = np.array([(NAN, NAN), *EDGES[name]], dtype).repeat(20, axis=0)  # in vector body and scalar tail
    y, expected = evaluate(name, np.ascontiguousarray(pairs[:, 0])), pairs[:, 1]
    np.testing.assert_array_equal(y, expected)
    signed = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(y)[signed], np.signbit(expected)[signed])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_at_a_time_gives_the_bits_of_the_loop(name, dtype):
    low, high = FUNCTIONS[name][1]
    rng = np.random.default_rng(1)
    x = rng.uniform(max(low, -20), min(high, 20), 4099).astype(dtype)
    y, one = evaluate(name, x), np.empty_like(x)
    for i in range(x.size):
        LOOPS[name](one[i : i + 1], x[i : i + 1])
    np.testing.assert_array_equal(one.view(np.uint8), y.view(np.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_values_stay_in_range(dtype):
    x = np.linspace(-45, 45, 20011).astype(dtype)
    for name, lowest in (("tanh", -1), ("sigmoid", 0), ("erf", -1), ("normal_cdf", 0)):
        y = evaluate(name, x)
        assert y.min() >= lowest, name
        assert y.max() == 1, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal_distribution(dtype):
    x = np.linspace(-6, 6, 501).astype(dtype)
    eps = np.finfo(dtype).eps
    for name, exact, tolerance in (
        ("normal_cdf", MP.ncdf, 1.5 * eps * np.ones_like(x)),
        ("normal_pdf", MP.npdf, (2.5 + x * x / 2) * eps * np.exp(-x * x / 2) * 0.4),
    ):
        expected = [exact(MP.mpf(float(v))) for v in x]
        errors = [float(abs(MP.mpf(float(v)) - e)) for v, e in zip(evaluate(name, x), expected, strict=True)]
        assert np.all(errors <= tolerance), name


def registers():
    """The vector registers a loop should use on the processor that Numba compiles for (x86-64 only)."""
    features = numba.config.CPU_FEATURES or llvmlite.binding.get_host_cpu_features().flatten()
    return "[yz]mm" if "+avx2" in features else "xmm"


@pytest.mark.skipif(not llvmlite.binding.get_process_triple().startswith("x86_64"), reason="reads x86-64 assembly")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOOPS)
def test_the_loop_is_vectorised_and_stays_in_its_dtype(name, dtype):
    evaluate(name, np.ones(3, dtype))
    array = numba.typeof(np.empty(1, dtype))
    assembly = LOOPS[name].inspect_asm((array, array))
    kind = "s" if dtype == np.float32 else "d"
    assert re.search(rf"v?(mul|fn?m(add|sub)\d*)p{kind}\s.*%{registers()}", assembly)
    assert not re.search(r"cvts[sd]2s[sd]|cvtp[sd]2p[sd]", assembly), "changes precision"
    assert not re.search(r"\$_?_?(exp|expm1|log|log1p|tanh|erf|pow|fma)f?\b", assembly), "calls the C library"


def test_other_types_are_refused():
    with pytest.raises(TypingError, match="tanh"):
        LOOPS["tanh"](np.zeros(3), np.zeros(3, np.int64))
    with pytest.raises(TypeError, match="tanh is for compiled code"):
        functions.tanh(np.float32(0))


@numba.njit(**FLAGS)
def _on_the_device(sine, cosine, x):
    for i in range(x.size):
        sine[i], cosine[i] = trigonometric.sin_or_nan(x[i]), trigonometric.cos_or_nan(x[i])


@pytest.mark.parametrize(
    ("dtype", "limit", "most"), [(np.float32, 8192.0, 1.6 * 2.0**-24), (np.float64, 1e6, 2.0**-52)]
)
def test_the_devices_sine_stays_in_its_precision(dtype, limit, most):
    """float32 without float64, to a limit beyond which it is NaN."""
    rng = np.random.default_rng(0)
    turns = np.arange(-5000, 5000) * (np.pi / 2)
    x = np.concatenate([np.linspace(-limit, limit, 100_001), rng.normal(size=10_000), turns]).astype(dtype)
    sine, cosine = np.empty_like(x), np.empty_like(x)
    _on_the_device(sine, cosine, x)
    exact = x.astype(np.float64)
    assert np.abs(sine - np.sin(exact)).max() <= most
    assert np.abs(cosine - np.cos(exact)).max() <= most
    code = [
        text for types, text in _on_the_device.inspect_llvm().items() if types[0].dtype.name == np.dtype(dtype).name
    ]
    assert (" double " in code[0]) == (dtype == np.float64)
    beyond = np.array([limit * 1.01, -1e30, np.inf, np.nan], dtype)
    sine, cosine = np.empty_like(beyond), np.empty_like(beyond)
    _on_the_device(sine, cosine, beyond)
    assert np.isnan(sine).all()
    assert np.isnan(cosine).all()
