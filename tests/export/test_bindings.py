"""Exports called from Fortran, from CasADi and in WebAssembly: what nbprop computes, in each."""

import json

import numpy as np
import pytest

import nbprop
from support import ROOT
from support.c_build import WARNINGS, compiler, run

dense = nbprop.dense
NET = nbprop.network((3,), dense(6, "tanh"), nbprop.residual(dense(6, "softplus")), dense(2))
PARAMS = nbprop.init(NET, seed=3)
STRICT = ("-std=f2018", "-Wall", "-Wextra", "-Wno-compare-reals", "-Werror", "-O1")

PROGRAM = """
program main
    use, intrinsic :: iso_c_binding, only: c_{kind}, c_int
    use net
    implicit none
    integer, parameter :: n = 2
    real(c_{kind}) :: x(net_input, n), y(net_output, n), target(net_target, n), dy(net_output, n), dx(net_input, n)
    real(c_{kind}) :: grads(net_n_params), weights(net_n_params), scratch(net_selftest_scratch), loss
    integer :: k
    if (net_selftest(scratch) /= 0) stop 1
    x = reshape([(0.125 * k, k = 1, net_input * n)], shape(x))
    target = 0.5
    dy = 1
    weights = net_params
    call net_forward(weights, int(n, c_int), x, y, scratch)
    print *, y
    call net_vjp(weights, int(n, c_int), x, dy, dx=dx, scratch=scratch)
    print *, dx
    loss = net_value_and_grad(weights, int(n, c_int), x, target, grads, scratch)
    print *, loss, grads
    call net_sgd(weights, grads, 0.5_c_{kind})
    print *, net_value_and_grad(weights, int(n, c_int), x, target, scratch=scratch)
end program main
"""


@pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=pytest.mark.more), pytest.param("float64", id="float64")]
)
def test_a_fortran_program(tmp_path, dtype):
    """With strict warnings as errors: forward, a gradient without the other, a loss with its gradient, a step."""
    gfortran, functions = (
        compiler("gfortran"),
        ["forward", "vjp", "jvp", "hvp", "value_and_grad", "sgd", "adam", "hvp_x"],
    )
    params = PARAMS.astype(dtype)
    nbprop.export_c(tmp_path / "net", NET, params, functions, dtype, 2, "mse", bindings=["fortran"])
    text = PROGRAM.replace("{kind}", "float" if dtype == "float32" else "double")
    (tmp_path / "main.f90").write_text(text)
    run([compiler(), "-std=c99", "-O1", *WARNINGS, "-c", "net.c"], cwd=tmp_path)
    run([gfortran, *STRICT, "net.f90", "main.f90", "net.o", "-lm", "-o", "main"], cwd=tmp_path)
    numbers = np.array(run([tmp_path / "main"]).split(), float)
    plan = nbprop.plan(NET, "mse", 2, np.float64, mode="inference")
    weights, work = params.astype(np.float64), nbprop.workspace(plan)
    x, target = 0.125 * np.arange(1, 7).reshape(2, 3), np.full((2, 2), 0.5)
    y, dx, grads = np.empty((2, 2)), np.empty((2, 3)), np.empty(NET.n_params)
    nbprop.forward(plan, weights, x, y, work)
    nbprop.vjp(plan, weights, x, np.ones((2, 2)), grads, dx, work)
    loss = nbprop.value_and_grad(plan, weights, x, target, grads, work)
    after = nbprop.value(plan, weights - 0.5 * grads, x, target, work)
    wanted = np.concatenate([y.ravel(), dx.ravel(), [loss], grads, [after]])
    np.testing.assert_allclose(numbers, wanted, rtol=100 * np.finfo(dtype).eps, atol=100 * np.finfo(dtype).eps)


# -- CasADi ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    """(casadi, the exported network, the same one as CasADi's expressions)."""
    casadi = pytest.importorskip("casadi", reason="there is no CasADi here")
    folder = tmp_path_factory.mktemp("casadi")
    nbprop.export_c(folder / "plant", NET, PARAMS, ["forward"], "float64", bindings=["casadi"])
    sources = ["plant.c", "plant_casadi.c"]
    run([compiler(), "-std=c99", "-O2", *WARNINGS, "-fPIC", "-shared", *sources, "-o", "plant.so", "-lm"], cwd=folder)
    external = casadi.external("plant", str(folder / "plant.so"))
    parts, x = nbprop.views(NET, PARAMS), casadi.SX.sym("x", 3)

    def layer(name, h):
        return parts[f"{name}.weight"].T @ h + parts[f"{name}.bias"]

    h = casadi.tanh(layer("0.dense", x))
    h = h + casadi.log(1 + casadi.exp(layer("1.residual.0.dense", h)))
    return casadi, external, casadi.Function("plant", [x], [layer("2.dense", h)])


def test_values_jacobians_and_hessians_of_casadi(plant):
    casadi, external, expression = plant
    assert external.name_in() == ["x"]
    assert external.name_out() == ["y"]
    x, weights = casadi.MX.sym("x", 3), casadi.MX.sym("w", 2)
    rng = np.random.default_rng(0)
    calls = []
    for function in (external, expression):
        y = function(x)
        hessian, gradient = casadi.hessian(casadi.dot(weights, y) + y[0] * y[1], x)
        direction = casadi.MX.sym("d", 3)
        along = casadi.jtimes(gradient, x, direction)
        outputs = [y, casadi.jacobian(y, x), gradient, hessian, along]
        calls.append(casadi.Function("all", [x, weights, direction], outputs))
    for _ in range(5):
        at = rng.standard_normal(3), rng.standard_normal(2), rng.standard_normal(3)
        for got, wanted in zip(calls[0](*at), calls[1](*at), strict=True):
            np.testing.assert_allclose(np.array(got), np.array(wanted), rtol=1e-12, atol=1e-13)


def test_an_optimal_control_problem_with_a_learnt_plant(plant):
    """Multiple shooting with IPOPT, exact Hessians: the same optimum as with the network as expressions."""
    casadi, external, expression = plant
    found = []
    for function in (external, expression):
        problem, steps = casadi.Opti(), 12
        x, u = problem.variable(2, steps + 1), problem.variable(1, steps)
        cost = 0
        problem.subject_to(x[:, 0] == casadi.DM([1.0, -0.5]))
        for k in range(steps):
            problem.subject_to(x[:, k + 1] == x[:, k] + 0.1 * function(casadi.vertcat(x[:, k], u[k])))
            cost += casadi.sumsqr(x[:, k + 1]) + 0.05 * u[k] ** 2
        problem.subject_to(problem.bounded(-3, u, 3))
        problem.minimize(cost)
        problem.solver("ipopt", {"print_time": False}, {"print_level": 0, "sb": "yes", "tol": 1e-10})
        solution = problem.solve()
        found.append((solution.value(cost), solution.value(u), solution.stats()["iter_count"]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-10)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-7)
    assert abs(found[0][2] - found[1][2]) <= 1


# -- WebAssembly -------------------------------------------------------------------------------------------------------

# As much of C's library as exports need, for a target that has none.
HEADERS = ROOT / "examples" / "deploy" / "wasm"
SCRIPT = """
const fs = require("fs");
const wasm = new WebAssembly.Instance(new WebAssembly.Module(fs.readFileSync("net.wasm")), {}).exports;
const floats = (pointer, size) => new Float32Array(wasm.memory.buffer, pointer, size);
const base = wasm.__heap_base.value, x = floats(base, 3), y = floats(base + 12, 2), scratch = base + 20;
const failed = wasm.net_selftest(scratch);
const results = [];
for (let k = 0; k < 3; k++) {
    x.set([0.1 * k, -0.2, 0.3 - k]);
    wasm.net_forward(wasm.net_params.value, 1, base, base + 12, scratch);
    results.push(Array.from(y));
}
console.log(JSON.stringify({failed, results}));
"""


def test_webassembly_in_node(tmp_path):
    clang, node = compiler("clang"), compiler("node")
    compiler("wasm-ld")
    nbprop.export_c(tmp_path / "net", NET, PARAMS.astype(np.float32), ["forward"])
    exports = [f"-Wl,--export={name}" for name in ("net_forward", "net_selftest", "net_params", "__heap_base")]
    flags = ("--target=wasm32", "-std=c99", "-O2", "-nostdlib", "-ffreestanding", "-Wl,--no-entry", "-I", HEADERS)
    run([clang, *flags, *WARNINGS, *exports, "net.c", "-o", "net.wasm"], cwd=tmp_path)
    (tmp_path / "run.js").write_text(SCRIPT)
    found = json.loads(run([node, "run.js"], cwd=tmp_path))
    assert found["failed"] == 0
    plan, y = nbprop.plan(NET, batch=3, mode="inference"), np.empty((3, 2))
    x = np.array([[0.1 * k, -0.2, 0.3 - k] for k in range(3)])
    nbprop.forward(plan, PARAMS, x, y, nbprop.workspace(plan))
    np.testing.assert_allclose(found["results"], y, rtol=2e-6, atol=1e-6)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"bindings": "fortran"}, "bindings must be a list of names"),
        ({"bindings": ["pascal"]}, "bindings: unknown name 'pascal'"),
        ({"bindings": ["casadi"]}, 'bindings: "casadi" computes in double'),
        ({"bindings": ["fortran"], "stem": "n" * 60}, "longer than a name of Fortran"),
        (
            {"bindings": ["casadi"], "dtype": "float64", "net": nbprop.network((3,), nbprop.embedding(5, 2))},
            'bindings: "casadi" needs "jvp", which takes a derivative by x',
        ),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(tmp_path, arguments, told):
    given = {"stem": "net", "net": NET} | arguments
    given["stem"], given["params"] = tmp_path / given["stem"], nbprop.init(given["net"])
    with pytest.raises((TypeError, ValueError), match=f"export_c: .*{told}"):
        nbprop.export_c(**given)
    assert list(tmp_path.iterdir()) == []
