"""The gate on recorded results: a planted slowdown is caught, named and dated; noise, spikes and gains are not."""

import pytest
import regressions

from harness.history import Commit, Point, Series, read
from support import bench_history

PRODUCT = "gemm_256x256x256/nbprop-njit/blas/1"


def steps(tmp_path, count=12, **changes):
    commits = bench_history.fake_commits(count)
    results = bench_history.write_results(tmp_path, commits, **changes)
    return commits, results, regressions.regressions(read(results, tmp_path))


@pytest.mark.parametrize("at", [1, 5, 10, 11])
def test_planted_slowdown_is_named_and_dated(tmp_path, capsys, at):
    """30 % on one product, from one commit on: that commit and the one before it, and nothing else."""
    commits, results, found = steps(tmp_path, planted={PRODUCT: (at, 1.33)})
    assert [(s.series.parameters, s.before.hash, s.after.hash) for s in found] == [
        ((PRODUCT,), commits[at - 1][0], commits[at][0])
    ]
    assert found[0].factor == pytest.approx(1.33, rel=0.06)
    assert found[0].confirmed == (at < 11)
    assert regressions.main(["--results", str(results), "--last", "12"]) == 1
    printed = capsys.readouterr().out
    for expected in (PRODUCT, commits[at - 1][0][:8], commits[at][0][:8], f"2026-01-{at + 1:02}"):
        assert expected in printed


@pytest.mark.parametrize("seed", range(5))
def test_noisy_reruns_pass(tmp_path, capsys, seed):
    """The same program measured twelve times over, with twice the usual noise."""
    _, results, found = steps(tmp_path, noise=0.04, seed=seed)
    assert found == []
    assert regressions.main(["--results", str(results)]) == 0
    assert "0 standing" in capsys.readouterr().out


def test_one_disturbed_run_is_passed_over(tmp_path):
    """A run twice as slow in the middle of history, and one with a wide spread at its end."""
    assert steps(tmp_path / "middle", spikes={PRODUCT: (5, 2.0)})[2] == []
    assert steps(tmp_path / "end", spikes={PRODUCT: (11, 1.5)})[2] == []


def test_a_gain_is_no_regression(tmp_path):
    assert steps(tmp_path, planted={PRODUCT: (6, 0.6)})[2] == []


def test_undone_slowdown_is_reported_but_does_not_fail(tmp_path):
    commits = bench_history.fake_commits(12)
    results = bench_history.write_results(tmp_path, commits, planted={PRODUCT: (4, 1.5), "gemm_256x": (8, 1 / 1.5)})
    found = regressions.regressions(read(results, tmp_path))
    assert [(s.after.hash, s.stands) for s in found] == [(commits[4][0], False)]
    assert regressions.main(["--results", str(results), "--last", "12"]) == 0


def test_only_the_last_commits_are_judged(tmp_path):
    _, results, _ = steps(tmp_path, count=16, planted={PRODUCT: (2, 1.5)})
    assert regressions.main(["--results", str(results), "--last", "10"]) == 0
    assert regressions.main(["--results", str(results), "--last", "16"]) == 1


def test_times_are_never_judged(tmp_path):
    """Every figure in seconds doubles; the ratios stay."""
    points = tuple(
        Point(Commit(commit, date), value, value, value)
        for (commit, date), value in zip(bench_history.fake_commits(6), [1, 1, 1, 2, 2, 2], strict=True)
    )
    ratio, seconds = (Series("b", (), unit, "m", points) for unit in ("ratio", "seconds"))
    assert len(regressions.regressions([ratio])) == 1
    assert regressions.regressions([seconds]) == []


def test_creep_is_noticed_when_it_has_added_up():
    """4 % a commit: no single step, and yet a step is found."""
    points = tuple(
        Point(Commit(commit, date), 1.04**i, 1.04**i, 1.04**i)
        for i, (commit, date) in enumerate(bench_history.fake_commits(20))
    )
    assert regressions.find_steps(Series("b", (), "ratio", "m", points))


def test_nothing_measured(tmp_path):
    (tmp_path / "results").mkdir()
    assert regressions.main(["--results", str(tmp_path / "results")]) == 2
