"""Layers of a user's own, with their kernels in C: `custom(..., c=...)`, and classes with `c_source`."""

import math
from dataclasses import dataclass

import numba
import numpy as np
import pytest

import nbprop
from nbprop.networks.layer import Layer, Parameter
from nbprop.program.kernel import kernel
from support.c_build import Exported

CUBE = """
/* y = x^3. y OUT, x IN (n, size). */
static void cube_forward(real *restrict y, const real *restrict x, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        y[i] = x[i] * x[i] * x[i];
    }
}

/* dx = 3 x^2 dy. */
static void cube_backward(real *restrict dx, const real *restrict dy, const real *restrict x, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        dx[i] = R(3.0) * x[i] * x[i] * dy[i];
    }
}
"""


@numba.njit
def _cube(x):
    return x * x * x


@numba.njit
def _cube_slope(x, y):
    return 3 * x * x


@kernel
def lean_forward(y, x, s, n, size):
    for i in range(n * size):
        y[i] = s[i % size] * x[i]


@kernel
def lean_backward(dx, ds, dy, x, s, n, size, again, accumulate):
    for j in range(size):
        ds[j] = ds[j] if again + accumulate > 0 else 0 * s[j]
        for i in range(j, n * size, size):
            ds[j] += dy[i] * x[i]
            dx[i] = dy[i] * s[j]


@dataclass(frozen=True)
class Lean(Layer):
    """y = s x, whose backward pass is one kernel that writes both gradients."""

    kind = "lean"
    c_source = """
/* y = s x. */
static void lean_forward(real *restrict y, const real *restrict x, const real *restrict s, int n, int size)
{
    for (int i = 0; i < n * size; i++) {
        y[i] = s[i % size] * x[i];
    }
}

/* dx = s dy, ds = the sum of dy x, added to when `again`. */
static void lean_backward(real *restrict dx, real *restrict ds, const real *restrict dy, const real *restrict x,
                          const real *restrict s, int n, int size, int again)
{
    for (int j = 0; j < size; j++) {
        ds[j] = again ? ds[j] : R(0.0);
        for (int i = j; i < n * size; i += size) {
            ds[j] += dy[i] * x[i];
            dx[i] = dy[i] * s[j];
        }
    }
}
"""

    def parameters(self, input_shape):
        return (Parameter("scale", input_shape[-1:], "ones"),)

    def lower(self, build, x, path, names):
        y, s = build.value(x.shape), build.parameter(names[0])
        build.emit(lean_forward, (y.buffer,), (x.buffer, s), (x.size,))

        def rule(dy):
            dx, (ds, again) = build.buffer(build.batch * x.size), build.parameter_gradient(names[0])
            build.emit(lean_backward, (dx, ds), (dy, x.buffer, s), (x.size, again))
            build.accumulate_gradient(x, dx)

        build.on_backward(y, rule)
        return y


def test_own_layers(tmp_path):
    """One kernel that writes both gradients runs for either: those that are not asked for go to scratch."""
    cube = nbprop.elementwise("cube", _cube, _cube_slope, c=CUBE)
    net = nbprop.network((3,), Lean(), cube(), nbprop.dense(4), Lean(), nbprop.dense(2))
    params = nbprop.init(net, seed=1) + 0.25
    nbprop.export_c(tmp_path / "own", net, params, dtype="float64", batch=3, loss="mse")
    exported, rng = Exported(tmp_path), np.random.default_rng(2)
    assert not exported.has("own", "jvp")
    plan = nbprop.plan(net, "mse", 3)
    x, dy = rng.standard_normal((3, 3)), rng.standard_normal((3, 2))
    grads, dx, scratch = np.empty(net.n_params), np.empty((3, 3)), np.empty(exported.size("own", "SCRATCH"))
    nbprop.vjp(plan, params, x, dy, grads, dx, nbprop.workspace(plan))
    for ask_dx, ask_grads in ((True, True), (True, False), (False, True)):
        scratch[:] = math.nan
        got_dx, got = np.empty((3, 3)) if ask_dx else None, np.empty(net.n_params) if ask_grads else None
        exported.call("own", "vjp", params, (x, dy, got_dx, got), 3, scratch)
        for result, wanted in ((got_dx, dx), (got, grads)):
            if result is not None:
                np.testing.assert_allclose(result, wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("c", "told"),
    [
        (None, "layer 0.cube cannot be exported: there is no C function cube_forward for its kernel cube.forward"),
        (CUBE.replace("cube_backward", "back"), "there is no C function cube_backward"),
        (
            CUBE.replace("int size", "int length"),
            "has a parameter length, which the kernel has not; it may take y, x, n",
        ),
        (CUBE.replace("/* dx", "#define X 1\n/* dx"), "the C of layer cube must be static functions and nothing else"),
        (CUBE + CUBE.replace("cube_forward", "copy"), "the C of layer cube defines copy, which is taken"),
        (CUBE + "int more(void);\n", "the C of layer cube must be static functions and nothing else"),
    ],
)
def test_c_that_does_not_fit_is_refused(tmp_path, c, told):
    cube = nbprop.elementwise("cube", _cube, _cube_slope, c=c)
    net = nbprop.network((3,), cube())
    with pytest.raises(ValueError, match=told):
        nbprop.export_c(tmp_path / "own", net, nbprop.init(net))
    assert not list(tmp_path.iterdir())


def test_c_must_be_text():
    for c in (3, ""):
        with pytest.raises(ValueError, match=f"custom: c must .*got {c!r}"):
            nbprop.elementwise("cube", _cube, _cube_slope, c=c)
