"""Result folders for the tests of the dashboard and the gate, in asv's file format, and the folder of benchmarks.

One real result file (recorded/ratios.json, measured) is repeated over many commits with noise like that between real
reruns, so that a test can plant a change of known size at a known commit.
"""

import json
import subprocess
from pathlib import Path

import numpy as np

from support import ROOT, TESTS

BENCHMARKS = ROOT / "benchmarks"
RECORDED = TESTS / "recorded"
MACHINE = "test-machine"
RATIO = "ratios.Ratio.track_ratio"
FIRST_DAY = 1_767_225_600  # 2026-01-01


def fake_commits(count):
    """(hash, date in seconds) a day apart, of no repository."""
    return [(f"{i + 1:08x}" * 5, FIRST_DAY + 86_400 * i) for i in range(count)]


def real_commits(folder, count):
    """A git repository with so many commits; returns their (hash, date), oldest first."""

    def git(*arguments, **environment):
        run = subprocess.run(
            ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments],
            cwd=folder, check=True, capture_output=True, text=True,
            env={"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": str(folder), **environment},
        )  # fmt: skip
        return run.stdout.strip()

    git("init", "-q", "-b", "main")
    commits = []
    for i in range(count):
        date = FIRST_DAY + 86_400 * i
        stamp = f"{date} +0000"
        git("commit", "-q", "--allow-empty", "-m", f"Change {i + 1}", GIT_COMMITTER_DATE=stamp, GIT_AUTHOR_DATE=stamp)
        commits.append((git("rev-parse", "HEAD"), date))
    return commits


def write_results(folder, commits, noise=0.02, seed=0, planted=None, spikes=None):
    """Write results/, a file a commit; returns the folder.

    noise: standard deviation of the figures from commit to commit, relative. planted: {text: (commit index, factor)}
    multiplies every ratio whose name contains text from that commit on. spikes: the same for that commit alone, with
    the spread of a disturbed run.
    """
    results = Path(folder) / "results"
    (results / MACHINE).mkdir(parents=True)
    (results / "benchmarks.json").write_text((RECORDED / "benchmarks.json").read_text())
    (results / MACHINE / "machine.json").write_text(json.dumps(_machine()))
    recorded = json.loads((RECORDED / "ratios.json").read_text())
    rng = np.random.default_rng(seed)
    for i, (commit, date) in enumerate(commits):
        stored = json.loads(json.dumps(recorded))
        stored.update(commit_hash=commit, date=date * 1000)
        stored["params"]["machine"] = MACHINE
        for name, row in stored["results"].items():
            _change(stored["result_columns"], name, row, i, rng, noise, planted or {}, spikes or {})
        (results / MACHINE / f"{commit[:8]}-virtualenv-py3.11.json").write_text(json.dumps(stored))
    return results


def write_growth(results):
    """Write growth.json as benchmarks/growth.py does, with a knee of nbprop's alone and one that torch has, too."""
    sizes = [1, 4, 16, 64, 256]

    def points(factor, *knees):
        times = [factor * (size + 1) * 4.0 ** sum(size >= knee for knee in knees) for size in sizes]
        return [[size, t, 0.98 * t, 1.03 * t, 100.0 * size] for size, t in zip(sizes, times, strict=True)]

    batch = {"nbprop": points(1e-6, 16, 256), "torch": points(3e-6, 256), "jax-jit": points(2e-6)}
    threads = {"nbprop": [[k, t, t, t, 1e9] for k, t in ((1, 4e-3), (2, 2.1e-3), (4, 2.2e-3))]}
    axes = [
        {"name": "batch", "title": "batch", "libraries": batch, "missing": {}},
        {"name": "threads", "title": "threads", "libraries": threads, "missing": {}},
    ]
    (results / "growth.json").write_text(json.dumps({"axes": axes}))


def _change(columns, name, row, commit, rng, noise, planted, spikes):
    """Noise on one benchmark's figures, and what was planted: values and quartiles move together."""
    where = {column: columns.index(column) for column in ("result", "params", "stats_q_25", "stats_q_75")}
    values = row[where["result"]]
    parameters = _combinations(row[where["params"]])
    for j, value in enumerate(values):
        if value is None:
            continue
        factor = float(np.exp(rng.normal(0, noise))) if noise else 1.0
        spread = 1.0
        if name == RATIO:
            for text, (since, change) in planted.items():
                factor *= change if text in parameters[j] and commit >= since else 1.0
            for text, (at, change) in spikes.items():
                if text in parameters[j] and commit == at:
                    factor, spread = factor * change, change
        values[j] = value * factor
        for side, widening in (("stats_q_25", 1 / spread), ("stats_q_75", spread)):
            if len(row) > where[side] and row[where[side]]:
                row[where[side]][j] *= factor * widening


def _combinations(params):
    return [values.strip("'") for values in params[0]] if len(params) == 1 else ["" for _ in range(10_000)]


def _machine():
    return {
        "arch": "x86_64", "cpu": "Test processor", "machine": MACHINE, "num_cpu": "2", "os": "Linux", "ram": "24000000",
        "version": 1,
    }  # fmt: skip
