"""The measuring tools themselves: rotation, ratios, fits, and equal work for everybody. No timing is asserted."""

import json
import math
import subprocess

import document
import numpy as np
import pytest
from table import Line, quantity, ratio_lines, render

from dashboard.asv_pages import localised
from dashboard.figures import figures, fit
from dashboard.growth import curves, growth
from harness.contender import Contender
from harness.history import read
from harness.machine import untuned
from harness.paired import Spread, difference, ratio, rotate
from harness.places import BENCHMARKS, REPOSITORY, RESULTS, peers_python
from harness.session import Session
from support import bench_history
from workloads.growth import AXES, row_named
from workloads.rows import BY_NAME, ROWS, comparisons, target

HAVE_PEERS = pytest.mark.skipif(not peers_python().exists(), reason=f"no peers' environment at {peers_python()}")


def test_rotation_interleaves_and_turns_round():
    order = []
    times = rotate({name: lambda name=name: order.append(name) or 1.0 for name in "abc"}, 3)
    assert "".join(order) == "abccbaabc"
    assert times == {"a": [1.0] * 3, "b": [1.0] * 3, "c": [1.0] * 3}
    with pytest.raises(ValueError, match="at least 1"):
        rotate({}, 0)


def test_a_ratio_is_paired():
    """A machine that slows down tenfold half-way leaves the ratio as it is."""
    times = {"ours": [1, 1, 10, 10], "peer": [2, 2, 20, 20]}
    assert ratio(times, "ours", "peer") == Spread.of([0.5] * 4)
    assert difference(times, "peer", "ours").median == 5.5


def test_a_contender_chooses_its_kernels_by_itself(monkeypatch):
    """What tunes a BLAS in the environment does not reach it, and it says which kernels it has taken."""
    tuned = {"OPENBLAS_CORETYPE": "Prescott", "OPENBLAS_L2_SIZE": "1", "MKL_CBWR": "COMPATIBLE", "XLA_FLAGS": "x"}
    kept = {"PATH": "/bin", "NUMBA_CACHE_DIR": "/cache", "HOME": "/home/me"}
    assert untuned(tuned | kept) == kept
    chosen = []
    for name in ("OPENBLAS_L2_SIZE", "OPENBLAS_CORETYPE"):
        monkeypatch.setenv(name, tuned[name])
        with Contender("blas", 1) as blas:
            chosen.append(blas.kernels())
    assert " of OpenBLAS " in chosen[0]
    assert chosen[0] == chosen[1]


def test_every_target_is_shown():
    """No goal of the table is lost between the rows and the lines."""
    for row in ROWS:
        for goal in row.targets:
            assert (goal.ours, goal.peer, goal.threads) in comparisons(row)
            assert target(row, goal.ours, goal.peer, goal.threads) == goal.ratio


def test_flops_of_a_step():
    """2 m n k for the forward product and each backward one, without the gradient of the input."""
    assert BY_NAME["gemm_64x32x4"].flops == 2 * 64 * 32 * 4
    step = BY_NAME["tiny_step"]
    assert step.flops == 2 * 64 * (2 * 4 * 32 + 3 * 32 * 32 + 3 * 32 * 1)
    assert step.n_params == 5 * 32 + 33 * 32 + 33


def test_missing_contenders_are_named_in_the_table():
    session = Session(missing={("tiny_step", "torch", 1): "torch needs an environment"})
    text = render(ratio_lines(session, ["tiny_step"]))
    assert "torch needs an environment" in text
    line = Line("w", "nbprop", figure=Spread.of([0.5]), goal=0.4)
    assert line.met is False
    assert "NO" in render([line])


@pytest.mark.parametrize(("value", "text"), [(1.5, "1.5 s"), (2e-3, "2 ms"), (3.25e-6, "3.25 us"), (80e-9, "80 ns")])
def test_quantity(value, text):
    assert quantity(value, "s") == text


def test_fit_finds_the_exponent():
    sizes = np.array([1, 2, 4, 8, 16, 32])
    assert fit(sizes, 3e-6 * sizes**1.5)["exponent"] == pytest.approx(1.5)
    assert fit([4], [1.0])["exponent"] is None


def test_knees_are_what_only_ours_has(tmp_path):
    bench_history.write_growth(tmp_path)
    batch, threads = growth(tmp_path)
    assert [curve["library"] for curve in batch["curves"]] == ["nbprop", "torch", "jax-jit"]
    assert [knee[:2] for knee in batch["own_knees"]] == [[4, 16]]
    assert [knee[:2] for knee in batch["curves"][0]["knees"]] == [[4, 16], [64, 256]]
    assert threads["own_knees"] == []
    assert growth(tmp_path / "none") == []
    slower = {"name": "threads", "title": "threads", "libraries": {"nbprop": [[k, k, k, k, 5.0] for k in (1, 2)]}}
    assert curves(slower)["own_knees"] == [[1, 2, 1.0]]


def test_growth_varies_one_size():
    """Each row is what the axis says, and is found again by its name in the contenders' processes."""
    for axis in AXES:
        for row, sizes in axis.rows(cores=2).items():
            found = row_named(row.name)
            assert (found.widths, found.batch, found.kind, found.module) == (
                row.widths,
                row.batch,
                row.kind,
                row.module,
            )
            if axis.name == "threads":
                assert sizes == row.threads == (1, 2, 4)
            elif axis.name in ("width", "parameters", "positions", "batch"):
                assert sizes[0] in (*row.widths, row.batch)
            else:
                assert len(row.widths) == sizes[0] + 2
    assert row_named("tiny_step") is BY_NAME["tiny_step"]


@pytest.mark.more
@HAVE_PEERS
def test_growth_is_measured_quickly(tmp_path):
    """Two axes at their ends, by the script itself: all three libraries, and what the dashboard reads."""
    import growth as script

    assert script.main(["--quick", "--axes", "depth", "threads", "--output", str(tmp_path / "growth.json")]) == 0
    depth, threads = growth(tmp_path)
    assert {curve["library"] for curve in depth["curves"]} == {"nbprop", "torch", "jax-jit"}
    assert all(len(curve["sizes"]) == 2 and curve["exponent"] > 0.1 for curve in depth["curves"])
    assert threads["curves"][0]["sizes"][0] == 1


def test_figures_are_plain_json(tmp_path):
    """Gaps (NaN in asv's files) are left out, and what remains can be written for a browser."""
    results = bench_history.write_results(tmp_path, bench_history.fake_commits(3))
    path = next(p for p in results.glob("*/*.json") if p.name != "machine.json")
    stored = json.loads(path.read_text())
    stored["results"][bench_history.RATIO][0][0] = math.nan
    path.write_text(json.dumps(stored))
    data = figures(read(results, tmp_path), results)
    json.dumps(data, allow_nan=False)
    assert {len(entry["points"]) for entry in data["ratios"]} <= {2, 3}
    assert data["roofline"]["peaks"]["float32"] > 1e9


def test_asv_pages_refuse_an_unknown_library():
    page = '<script src="https://example.org/lib/jquery-3.3.1.min.js" integrity="x" crossorigin="anonymous"></script>'
    assert localised(page) == '<script src="vendor/jquery/dist/jquery.min.js"></script>'
    with pytest.raises(RuntimeError, match="no local copy"):
        localised('<script src="https://example.org/new.js"></script>')


@pytest.mark.parametrize("place", list(document.tables()), ids="/".join)
def test_documents_show_the_stored_results(place):
    """Every figure of the documents' tables is one of results/, rounded by one rule."""
    name, marker = place
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    assert document.between(marker).search(text)[2] == document.tables()[place], "run `make bench-docs`"


def test_ratios_of_documents_do_not_flatter():
    assert [document.ratio(value) for value in (0.0007, 0.031, 0.949, 0.955, 1.032, 10.6)] == [
        *("0.0007", "0.031", "0.95", "0.955", "1.03", "10.6")
    ]


@HAVE_PEERS
def test_asv_keeps_the_stored_results():
    """asv drops results whose benchmark has another version: a hash of its source, unless it says which."""
    program = """
import json, sys
from asv_runner.discovery import disc_benchmarks
sys.path.insert(0, ".")
print(json.dumps({b.name.removeprefix("suites."): b.version for b in disc_benchmarks("suites")}))
"""
    command = [peers_python(), "-c", program]
    run = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    described = json.loads((RESULTS / "benchmarks.json").read_text())
    stored = {name: entry["version"] for name, entry in described.items() if isinstance(entry, dict)}
    found = json.loads(run.stdout)
    assert stored
    assert {name: found.get(name) for name in stored} == stored


@HAVE_PEERS
@pytest.mark.parametrize("row", ["tiny_step", "medium_step", "tiny_gradient", "one_sample"])
def test_contenders_do_the_same_work(row):
    """The loss at the tenth step, or the output, agrees between torch, JAX and nbprop."""
    session = Session()
    session.checks[row] = {}
    for library in BY_NAME[row].contenders:
        if library in ("fma", "sklearn", "nbprop-njit"):
            continue
        with Contender(library, 1) as contender:
            try:
                session.checks[row][library] = contender.prepare(row)["check"]
            except NotImplementedError as error:  # how a contender says that its version lacks the feature
                pytest.skip(str(error))
    assert len(session.checks[row]) >= 3
    assert session.disagreements(BY_NAME[row]) == []
