"""asv's result files as series: one benchmark with one set of parameters on one machine, one point per commit.

Reads the JSON directly (asv's file format 2), so that the gate and the dashboard need neither asv nor its
environment.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.places import REPOSITORY, RESULTS


@dataclass(frozen=True)
class Commit:
    hash: str
    date: float  # seconds since 1970
    subject: str = ""

    @property
    def short(self) -> str:
        return self.hash[:8]


@dataclass(frozen=True)
class Point:
    """A commit's figure with its quartiles (equal to the figure if asv kept no samples)."""

    commit: Commit
    value: float
    q25: float
    q75: float


@dataclass(frozen=True)
class Series:
    benchmark: str
    parameters: tuple[str, ...]
    unit: str
    machine: str
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        return f"{self.benchmark}({', '.join(self.parameters)})" if self.parameters else self.benchmark


def git_commits(repository: Path = REPOSITORY) -> dict[str, tuple[int, str]]:
    """hash -> (position in history, oldest first; subject). Empty if this is not a git repository."""
    log = subprocess.run(
        ["git", "log", "--topo-order", "--reverse", "--format=%H %s"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    lines = log.stdout.splitlines() if log.returncode == 0 else []
    split = (line.partition(" ") for line in lines)
    return {full: (place, subject) for place, (full, _, subject) in enumerate(split)}


def read(results: Path = RESULTS, repository: Path = REPOSITORY) -> list[Series]:
    """Every series in the results folder, points in the order of the commits."""
    known = git_commits(repository)
    units = _units(results)
    gathered: dict[tuple[str, tuple[str, ...], str], dict[str, Point]] = {}
    for path in sorted(results.glob("*/*.json")):
        if path.name == "machine.json":
            continue
        stored = json.loads(path.read_text())
        full = stored["commit_hash"]
        commit = Commit(full, stored["date"] / 1000, known.get(full, (0, ""))[1])
        for benchmark, parameters, value, q25, q75 in _figures(stored):
            series = gathered.setdefault((benchmark, parameters, path.parent.name), {})
            series[full] = Point(commit, value, q25, q75)
    return [
        Series(benchmark, parameters, units.get(benchmark, ""), machine, _ordered(points.values(), known))
        for (benchmark, parameters, machine), points in sorted(gathered.items())
    ]


def _ordered(points: Iterable[Point], known: dict[str, tuple[int, str]]) -> tuple[Point, ...]:
    """By date; commits of the same second by their position in this history."""
    return tuple(sorted(points, key=lambda p: (p.commit.date, known.get(p.commit.hash, (0, ""))[0])))


def _units(results: Path) -> dict[str, str]:
    path = results / "benchmarks.json"
    if not path.exists():
        return {}
    described = json.loads(path.read_text())
    return {name: entry.get("unit", "") for name, entry in described.items() if isinstance(entry, dict)}


def _figures(stored: dict) -> Iterator[tuple[str, tuple[str, ...], float, float, float]]:
    """(benchmark, parameters, value, q25, q75) of everything in a result file; gaps are skipped."""
    columns = stored["result_columns"]
    for benchmark, row in stored["results"].items():
        entry = dict(zip(columns, row, strict=False))  # asv omits empty columns at the end
        values = entry.get("result")
        if not values:
            continue
        quartiles = [entry.get(f"stats_q_{q}") or [None] * len(values) for q in (25, 75)]
        combinations = itertools.product(*(entry.get("params") or []))
        for parameters, value, q25, q75 in zip(combinations, values, *quartiles, strict=True):
            if value is None or not math.isfinite(value):
                continue
            plain = tuple(parameter.strip("'\"") for parameter in parameters)
            yield benchmark, plain, value, _or(q25, value), _or(q75, value)


def _or(quartile: float | None, value: float) -> float:
    return value if quartile is None or not math.isfinite(quartile) else quartile
