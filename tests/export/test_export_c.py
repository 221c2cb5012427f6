"""Exported C: the results of nbprop to rounding, clean under warnings and sanitizers, and nothing but functions."""

import re
from pathlib import Path

import numpy as np
import pytest

import nbprop
from nbprop.export.library import functions_for, functions_of, sources
from nbprop.export.programs import FUNCTIONS, not_possible, programs
from nbprop.losses import loss_named
from support import c_build
from support.c_build import Exported, compare, compiler, export_all, run, selftest, stem_of
from support.cases import CASES

# One of each kind of kernel; `make test-more` exports all the others.
HANDFUL = (
    *("concat", "embedding", "attention", "conv2d_options", "layernorm", "batchnorm", "lstm_last", "fused_softmax"),
    *("loss_softmax_cross_entropy_positions", "no_parameters", "elementwise"),
)
REST = tuple(case for case in CASES if case not in HANDFUL)
# Errors in units of the largest number of a result: sums run in other orders, and without fused multiply-adds.
ULPS = 32


def check(folder, cases):
    """All cases in both precisions, by one run of the compiler: two of the parallel tests would run it twice."""
    export_all(folder, cases)
    exported, failures = Exported(folder), []
    for case in cases:
        for dtype in ("float32", "float64"):
            for n in (1, c_build.BATCH):
                errors = compare(exported, case, dtype, n)
                failures += [
                    f"{case}, {name}, {n} in {dtype}: {error / np.finfo(dtype).eps:.1f} units"
                    for name, error in errors.items()
                    if not error <= ULPS * np.finfo(dtype).eps
                ]
            if selftest(exported, stem_of(case, dtype), dtype) != 0:
                failures.append(f"{case}: the self-test in {dtype}")
    assert not failures
    return exported


def test_same_results(tmp_path):
    exported = check(tmp_path, HANDFUL)
    assert not exported.has("embedding_float32", "jvp")
    assert not exported.has("no_parameters_float32", "hvp")
    assert exported.has("lstm_last_float32", "hvp")


def test_every_network_has_its_c():
    """Without a compiler: a C function for every kernel, whose parameters the kernel has."""
    for net, loss in CASES.values():
        loss = loss_named(loss or "mse")
        names = [name for name in FUNCTIONS if not not_possible(name, net, loss)]
        found, _ = programs(net, loss, 3, np.dtype(np.float32), names, functions_for(net, "float32"), str)
        assert [program.name for program in found] == names


@pytest.mark.more
def test_same_results_of_the_rest(tmp_path):
    check(tmp_path, REST)


@pytest.mark.more
def test_hessians_by_the_input(tmp_path):
    """hvp_x of every network that has one: central differences of vjp's dx."""
    cases = [
        case
        for case, (net, loss) in CASES.items()
        if loss is None and case != "elementwise" and not not_possible("hvp_x", net, None)
    ]
    assert len(cases) > 60
    for case in cases:
        net, _, params, state = c_build.given(case, np.float64)
        nbprop.export_c(tmp_path / case, net, params, ["vjp", "hvp_x"], "float64", c_build.BATCH, state=state)
    exported, rng, n, h = Exported(tmp_path), np.random.default_rng(0), c_build.BATCH, 1e-5
    for case in cases:
        net, _, params, _ = c_build.given(case, np.float64)
        x, v = rng.standard_normal((2, n, *net.input_shape))
        dy, scratch = rng.standard_normal((n, *net.output_shape)), np.full(exported.size(case, "SCRATCH"), np.nan)
        hv, above, below = np.empty_like(x), np.empty_like(x), np.empty_like(x)
        exported.call(case, "hvp_x", params, (x, dy, v, hv), n, scratch)
        for at, dx in ((x + h * v, above), (x - h * v, below)):
            exported.call(case, "vjp", params, (at, dy, dx, None), n, scratch)
        wanted = (above - below) / (2 * h)
        assert np.abs(hv - wanted).max() <= 1e-6 * max(np.abs(wanted).max(), 1e-3), case


def test_no_memory_of_their_own(tmp_path):
    """Nothing is allocated, and nothing is kept but constants: no symbol lies in memory that can be written."""
    export_all(tmp_path, ["lstm_last", "batchnorm"], ["float32"])
    for path in tmp_path.glob("*.c"):
        assert not re.search(r"\b(malloc|calloc|realloc|free|alloca)\b", path.read_text(encoding="utf-8"))
        run([compiler(), "-std=c99", "-c", path, "-o", tmp_path / "one.o"])
        lines = run([compiler("nm"), tmp_path / "one.o"]).splitlines()
        assert lines
        assert not [line for line in lines if line.split()[-2] in "dDbBC"]


# A small processor without a unit for double: float networks alone.
BOARDS = {
    "clang": ("-fsyntax-only",),
    "avr-gcc": ("-c", "-Os", "-mmcu=atmega2560"),
}


@pytest.mark.more
@pytest.mark.parametrize("name", BOARDS)
def test_other_compilers_warn_of_nothing(tmp_path, name):
    command = [compiler(name), "-std=c99", *c_build.WARNINGS, *BOARDS[name]]
    export_all(tmp_path, HANDFUL, ["float32"] if name == "avr-gcc" else ["float32", "float64"])
    run([*command, *sorted(tmp_path.glob("*.c"))], cwd=tmp_path)


@pytest.mark.more
def test_sanitizers_find_nothing(tmp_path):
    """Every self-test, each with memory of just the size that its header asks for."""
    export_all(tmp_path, HANDFUL)
    files = sorted(tmp_path.glob("*.c"))
    main = tmp_path / "main.c"
    main.write_text(_selftests(files, "malloc({0}_SELFTEST_SCRATCH * sizeof({1}))", "free"), encoding="utf-8")
    flags = ("-std=c99", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    run([compiler(), *flags, *c_build.WARNINGS, main, *files, "-o", tmp_path / "main", "-lm"])
    run([tmp_path / "main"])


@pytest.mark.more
def test_on_a_cortex_m4(tmp_path):
    """The float networks' self-tests on the processor of a board, as qemu has it, without an operating system."""
    arm, qemu = compiler("arm-none-eabi-gcc"), compiler("qemu-system-arm")
    export_all(tmp_path, HANDFUL, ["float32"])
    files, here = sorted(tmp_path.glob("*.c")), Path(__file__).parent / "cortex_m"
    main = tmp_path / "main.c"
    main.write_text(_selftests(files, "(sizeof room < {0}_SELFTEST_SCRATCH * sizeof({1}) ? NULL : room)", "(void)"))
    cpu = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
    bare = ("-nostartfiles", "--specs=nosys.specs", "-T", here / "memory.ld", here / "start.c")
    image = tmp_path / "image.elf"
    run([arm, "-std=c99", "-O2", *cpu, *c_build.WARNINGS, *files, "-c"], cwd=tmp_path)
    run([arm, "-std=c99", "-O2", *cpu, *bare, main, *sorted(tmp_path.glob("*.o")), "-o", image, "-lm"])
    semihosting = ("-semihosting-config", "enable=on,target=native")
    run([qemu, "-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none", *semihosting, "-kernel", image])


def _selftests(files, memory, release):
    """A C program that runs the self-test of every file, and ends with the number of the first that fails.

    memory: the C text of scratch, of a stem in capitals and its type.
    """
    lines = ["#include <stdlib.h>", *(f'#include "{path.stem}.h"' for path in files), "static float room[50000];"]
    lines += ["int main(void)", "{", "    (void)room;"]
    for number, path in enumerate(files, 1):
        real = "float" if path.stem.endswith("float32") else "double"
        lines += [
            f"    {real} *p{number} = {memory.format(path.stem.upper(), real)};",
            f"    if (p{number} == NULL || {path.stem}_selftest(p{number}) != 0) {{",
            f"        return {number};",
            "    }",
            f"    {release}(p{number});",
        ]
    return "\n".join([*lines, "    return 0;", "}", ""])


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.more)])
def test_weights_in_a_file(tmp_path, dtype):
    """What C reads from it are the parameters; the C file has none, whatever they are."""
    net = nbprop.network((3,), nbprop.dense(5, activation="tanh"), nbprop.dense(2))
    params = nbprop.init(net, dtype=np.dtype(dtype))
    nbprop.export_c(tmp_path / "net", net, params, ["forward"], dtype, weights="file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.c", "net.h", "net.params"]
    np.testing.assert_array_equal(np.fromfile(tmp_path / "net.params", dtype), params)
    real = "float" if dtype == "float32" else "double"
    (tmp_path / "main.c").write_text(
        f"""
#include <stdio.h>
#include "net.h"
int main(void)
{{
    {real} params[NET_N_PARAMS], scratch[NET_SELFTEST_SCRATCH];
    FILE *file = fopen("net.params", "rb");
    if (file == NULL || fread(params, sizeof params[0], NET_N_PARAMS, file) != NET_N_PARAMS) {{
        return 99;
    }}
    fclose(file);
    return net_selftest(params, scratch);
}}
""",
        encoding="utf-8",
    )
    run([compiler(), "-std=c99", *c_build.WARNINGS, "main.c", "net.c", "-o", "main", "-lm"], cwd=tmp_path)
    run([tmp_path / "main"], cwd=tmp_path)
    source = (tmp_path / "net.c").read_bytes()
    nbprop.export_c(tmp_path / "net", net, params, ["jvp"], dtype, weights="file")
    nbprop.export_c(tmp_path / "net", net, params, ["forward"], dtype, weights="file")
    assert (tmp_path / "net.c").read_bytes() == source
    with pytest.raises(ValueError, match="export_c: weights: unknown name 'disk'"):
        nbprop.export_c(tmp_path / "net", net, params, weights="disk")
    with pytest.raises(ValueError, match='bindings need weights="source"'):
        nbprop.export_c(tmp_path / "net", net, params, weights="file", bindings=["fortran"])


@pytest.mark.more
def test_valgrind_finds_nothing(tmp_path):
    """Every self-test, with scratch of just the size that its header asks for: no read of what nobody has written."""
    valgrind = compiler("valgrind")
    export_all(tmp_path, HANDFUL, ["float32"])
    files, main = sorted(tmp_path.glob("*.c")), tmp_path / "main.c"
    main.write_text(_selftests(files, "malloc({0}_SELFTEST_SCRATCH * sizeof({1}))", "free"), encoding="utf-8")
    run([compiler(), "-std=c99", "-g", "-O1", main, *files, "-o", tmp_path / "main", "-lm"])
    run([valgrind, "--quiet", "--error-exitcode=9", "--leak-check=full", tmp_path / "main"])


@pytest.mark.more
def test_a_small_network_fits_a_small_board(tmp_path, capsys):
    """4-8-1 with its gradient, on an ATmega2560 (256 KB of program, 8 KB of memory); the sizes are printed."""
    command, size = compiler("avr-gcc"), compiler("avr-size")
    net = nbprop.network((4,), nbprop.dense(8, activation="tanh"), nbprop.dense(1))
    functions = {"forward": ["forward"], "gradient": ["forward", "value_and_grad", "sgd"]}
    for name, chosen in functions.items():
        nbprop.export_c(tmp_path / name, net, nbprop.init(net), chosen, loss="mse")
        flags = ("-std=c99", "-Os", "-mmcu=atmega2560", "-ffunction-sections")
        run([command, *flags, "-c", f"{name}.c", "-o", f"{name}.o"], cwd=tmp_path)
        text, data, bss = map(int, run([size, f"{name}.o"], cwd=tmp_path).splitlines()[1].split()[:3])
        with capsys.disabled():
            print(f"\n4-8-1 on an AVR, {name}: {text:,} bytes of program, {data + bss:,} of memory")
        assert text + data < 16_000
        assert data + bss <= 4 * net.n_params + 64


def test_selftest_tells_a_broken_build(tmp_path):
    net = nbprop.network((3,), nbprop.dense(5, activation="tanh"), nbprop.dense(2))
    nbprop.export_c(tmp_path / "sound", net, nbprop.init(net), loss="mse")
    changes = {
        "forward": ("y[j] += x[k] * w", "y[j] += 2.0f * x[k] * w"),
        "gradient": ("return d * (1.0f - s * s)", "return d * s"),
    }
    for stem, (before, after) in changes.items():
        for suffix in (".c", ".h"):
            text = (tmp_path / f"sound{suffix}").read_text(encoding="utf-8")
            assert suffix == ".h" or before in text
            text = text.replace(before, after, 1).replace("sound", stem).replace("SOUND", stem.upper())
            (tmp_path / f"{stem}{suffix}").write_text(text, encoding="utf-8")
    exported = Exported(tmp_path)
    assert [selftest(exported, stem, "float32") for stem in ("sound", "forward", "gradient")] == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_source_is_functions_with_comments(dtype):
    """What the reader of the sources does not take for a function would be lost without a word."""
    for name, text in sources(dtype).items():
        _, _, body = text.partition("\n\n")
        assert "\n".join(function.text for function in functions_of(body)) == body, name


def test_an_old_export_is_replaced_and_a_new_one_is_the_same(tmp_path):
    net = nbprop.network((3,), nbprop.dense(2))
    (tmp_path / "net.c").write_text("old")
    for _ in range(2):
        nbprop.export_c(tmp_path / "net", net, nbprop.init(net, dtype=np.float32), functions=["forward"])
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    nbprop.export_c(tmp_path / "net", net, nbprop.init(net, dtype=np.float32), functions=["forward"])
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(files) == ["net.c", "net.h"]
    assert b"net_vjp" not in files["net.h"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_device_can_learn(tmp_path, dtype):
    """Thirty steps in C are those of nbprop's sgd and adam."""
    net, eps = nbprop.network((3,), nbprop.dense(5, activation="tanh"), nbprop.dense(2)), np.finfo(dtype).eps
    start, rng = nbprop.init(net, dtype=np.dtype(dtype)), np.random.default_rng(3)
    functions = ("value_and_grad", "adam", "sgd")
    nbprop.export_c(tmp_path / "net", net, start, functions, dtype, batch=4, loss="mse")
    nbprop.export_c(tmp_path / "steps_alone", net, start, ["sgd"], dtype)
    exported, plan = Exported(tmp_path), nbprop.plan(net, "mse", 4, np.dtype(dtype))
    x, target = (rng.standard_normal((4, size)).astype(dtype) for size in (3, 2))
    grads, work, scratch = (
        np.empty_like(start),
        nbprop.workspace(plan),
        np.empty(exported.size("net", "SCRATCH"), dtype),
    )
    for name, step, lr in (("sgd", nbprop.sgd, 0.1), ("adam", nbprop.adam, 0.01)):
        ours, theirs = start.copy(), start.copy()
        state = nbprop.optimizer_state(name, net.n_params, np.dtype(dtype))
        their_state = [np.zeros(exported.size("net", "ADAM_STATE"), dtype)] if name == "adam" else []
        for k in range(30):
            loss = nbprop.value_and_grad(plan, ours, x, target, grads, work)
            step(ours, grads, state, k, lr=lr)
            in_c = exported.call("net", "value_and_grad", theirs, (x, target, grads), 4, scratch)
            assert abs(in_c - loss) <= 100 * eps * loss
            exported.step("net", name, theirs, grads, *their_state, *([k] if their_state else []), lr)
        assert np.abs(ours - theirs).max() <= 100 * eps
        assert np.abs(ours - start).max() > 0.05


def test_a_folder_in_the_way_is_told_before_anything_is_written(tmp_path):
    net = nbprop.network((3,), nbprop.dense(2))
    (tmp_path / "net.h").mkdir()
    with pytest.raises(IsADirectoryError, match=r"export_c: .*net\.h is a folder"):
        nbprop.export_c(tmp_path / "net", net, nbprop.init(net))
    assert [path.name for path in tmp_path.iterdir()] == ["net.h"]


_NET = nbprop.network((3,), nbprop.dense(2))
_PARAMS = nbprop.init(_NET)
_INTEGERS = nbprop.network((3,), nbprop.embedding(7, 5))
_CARRYING = nbprop.network((3, 2), nbprop.rnn(5, carry=True))
_STATISTICS = nbprop.network((3,), nbprop.batchnorm())


def _with_nan(index):
    params = _PARAMS.copy()
    params[index] = np.nan
    return params


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"stem": "2nd"}, "stem must end in a C identifier.*'2nd'"),
        ({"stem": "net.c"}, "stem must end in a C identifier.*'net.c'"),
        ({"stem": "float"}, "stem must end in a C identifier"),
        ({"stem": "lstm"}, "stem 'lstm' would name a function lstm_forward, as a kernel is"),
        ({"stem": "nowhere/net"}, "there is no folder .*nowhere"),
        ({"stem": 3}, "stem must be a str or a path, got int"),
        ({"net": 3}, "net must be what nbprop.network.* returns, got int"),
        ({"params": np.zeros(3)}, r"params must have shape \(8,\), got \(3,\)"),
        ({"params": np.zeros(8, int)}, "params must hold float32 or float64, got int64"),
        ({"params": _with_nan(5)}, "params must be finite in float32, got nan at element 5"),
        ({"params": np.full(8, 1e300)}, "params must be finite in float32, got 1e.300 at element 0"),
        ({"functions": "forward"}, "functions must be a list of names"),
        ({"functions": ["foward"]}, "functions: unknown name 'foward'; did you mean 'forward'"),
        ({"functions": ["hvp"]}, 'functions: "hvp" needs a loss'),
        ({"functions": []}, "functions must be a list of names"),
        ({"dtype": "float16"}, "dtype must be float32 or float64"),
        ({"batch": 0}, "batch must be a positive integer"),
        ({"batch": 2**31 - 1}, "more than C's int counts; make batch smaller"),
        ({"loss": "rms"}, "loss: unknown name 'rms'"),
        ({"loss": "gaussian_nll", "net": nbprop.network((3,), nbprop.dense(3))}, "must be even"),
        ({"state": np.zeros(3)}, "state is for networks with running statistics"),
        ({"net": _INTEGERS, "functions": ["jvp"]}, "holds integers for layer 0.embedding"),
        ({"net": _CARRYING}, "layer 0.rnn carries state from call to call"),
        ({"net": _STATISTICS}, "layer 0.batchnorm has running statistics; give state"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(tmp_path, arguments, told):
    given = {"stem": "net", "net": _NET} | arguments
    if isinstance(given["stem"], str):
        given["stem"] = str(tmp_path / given["stem"])
    if "params" not in given:
        given["params"] = nbprop.init(given["net"]) if isinstance(given["net"], nbprop.Network) else _PARAMS
    with pytest.raises((ValueError, TypeError, OSError), match=told) as caught:
        nbprop.export_c(**given)
    assert "export_c" in str(caught.value) or "dtype" in told or "loss" in told or "even" in told
    assert list(tmp_path.iterdir()) == []


def test_the_header_holds_what_bounds_proves(tmp_path):
    net = nbprop.network((2,), nbprop.dense(3, activation="tanh"), nbprop.dense(2))
    params, low, high = nbprop.init(net, dtype=np.float32), np.float32([-1, 0]), np.float32([1, 0.5])
    nbprop.export_c(tmp_path / "net", net, params, ["forward"], box=(low, high))
    found, text = nbprop.bounds(net, params, low, high), (tmp_path / "net.h").read_text()
    lines = re.findall(r"(\S+) <= y\[(\d)\] <= (\S+), of which rounding is at most (\S+)$", text, re.M)
    for (least, index, most, error), k in zip(lines, range(2), strict=True):
        assert int(index) == k
        assert float(least) <= found.low[k] - found.rounding[k]
        assert float(most) >= found.high[k] + found.rounding[k]
        assert found.rounding[k] <= float(error) <= 1.001 * found.rounding[k]
    with pytest.raises(ValueError, match="export_c: box: bounds: low must not be above high"):
        nbprop.export_c(tmp_path / "net", net, params, ["forward"], box=(high, low))
    with pytest.raises(TypeError, match=r"export_c: box must be \(low, high\), got 3"):
        nbprop.export_c(tmp_path / "net", net, params, ["forward"], box=3)
