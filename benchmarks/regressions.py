"""`make bench-gate`: steps in a ratio, with the benchmark and the commits between which they happened.

Ratios are judged, counts, which have no noise, and the start with an empty cache. Both sides of a ratio took turns on
the same machine, so that a slow machine does not change it. A step is a change that exceeds the threshold and the
spread, and is still there at the next measured commits.

    python benchmarks/regressions.py              exit status 1 if a step up has not been undone
    python benchmarks/regressions.py --last 30    judge the last 30 measured commits
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from harness.history import Commit, Point, Series, read
from harness.places import RESULTS

THRESHOLD = 0.25
JUDGED_UNITS = ("ratio", "allocations", "bytes")  # not seconds: the machine is shared
# The start with an empty cache has no peer to be a ratio with. It is one compiler's time, which doubles on a machine
# with other work: only what is above that counts.
JUDGED_SECONDS = {"compiling.Compiling.track_cold_first_gradient": 1.0}


@dataclass(frozen=True)
class Step:
    """factor > 1: slower (or more) from `after` on. confirmed: a later commit shows it too. stands: not yet undone."""

    series: Series
    before: Commit
    after: Commit
    value_before: float
    value_after: float
    confirmed: bool
    stands: bool

    @property
    def factor(self) -> float:
        return self.value_after / self.value_before if self.value_before else float("inf")


def find_steps(series: Series, threshold: float = THRESHOLD) -> list[Step]:
    """The steps of a series, up and down, oldest first.

    Between steps, the level is the median of all its points, so that a slow creep is noticed once it has added up. A
    step is where a point, and the median of the five from it on, leave the level, clear of its quartiles; at the end
    of history two points, or the newest alone, have to suffice. So a single noisy run is ignored, and a step is dated
    by its first commit even if noise hides part of it there.
    """
    steps: list[Step] = []
    level: list[Point] = []
    points = series.points
    for i, point in enumerate(points):
        window = points[i : i + 5]
        if not level or not (_moved(level, window, threshold, 1) or _moved(level, window, threshold, -1)):
            level.append(point)
            continue
        before, after, now = _median(level), _median(window), _median(points[max(i, len(points) - 3) :])
        stands = now > before * (1 + threshold)
        confirmed = len(window) > 1
        steps.append(Step(series, level[-1].commit, point.commit, before, after, confirmed, stands))
        level = [point]
    return steps


def _median(points: Iterable[Point]) -> float:
    return statistics.median(point.value for point in points)


def _moved(level: Sequence[Point], window: Sequence[Point], threshold: float, sign: int) -> bool:
    """Whether the window's points lie off the level, above it (sign 1) or below (sign -1)."""
    base = _median(level)
    limit, half = base * (1 + threshold) ** sign, base * (1 + threshold) ** (sign / 2)
    if sign * (_median(window) - limit) <= 0:
        return False
    judged = window if len(window) < 3 else window[:1]  # among more, the median has outvoted an outlier
    if any(sign * (point.value - half) <= 0 for point in judged):
        return False
    edges = [(p.q75, q.q25) if sign > 0 else (p.q25, q.q75) for p in level for q in window]
    old, new = (statistics.median(side) for side in zip(*edges, strict=True))
    return sign * (new - old) > 0


def threshold_of(series: Series, threshold: float = THRESHOLD) -> float | None:
    """From which change on a series is judged; None if it is not."""
    return threshold if series.unit in JUDGED_UNITS else JUDGED_SECONDS.get(series.benchmark)


def regressions(every: Iterable[Series], threshold: float = THRESHOLD, last: int | None = None) -> list[Step]:
    """Steps up in what is judged, newest first; with `last`, only those at that many last measured commits."""
    found = []
    for series in every:
        limit = threshold_of(series, threshold)
        if limit is None:
            continue
        recent = {point.commit.hash for point in (series.points[-last:] if last else series.points)}
        found += [s for s in find_steps(series, limit) if s.factor > 1 and s.after.hash in recent]
    return sorted(found, key=lambda step: (-step.after.date, -step.factor))


def sentence(step: Step) -> str:
    """A step as the gate prints it."""
    day = datetime.fromtimestamp(step.after.date, UTC).date()
    state = "" if step.stands else "; undone since"
    state += "" if step.confirmed else "; the newest commit, measure again to be sure"
    return (
        f"{step.series.name} on {step.series.machine}: {step.value_before:.4g} -> {step.value_after:.4g} "
        f"({100 * (step.factor - 1):+.0f} %) between {step.before.short} and {step.after.short} "
        f"({day}: {step.after.subject or 'no subject'}){state}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="asv's results folder")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="0.25 is 25 %% (default)")
    parser.add_argument("--last", type=int, default=10, help="how many measured commits to judge (default: 10)")
    options = parser.parse_args(arguments)
    every = read(options.results)
    judged = [series for series in every if threshold_of(series) is not None]
    if not judged:
        print(f"no ratios in {options.results}: run `make bench-quick` first")
        return 2
    steps = regressions(every, options.threshold, options.last)
    for step in steps:
        print(sentence(step))
    standing = [step for step in steps if step.stands]
    commits = {point.commit.hash for series in judged for point in series.points}
    print(f"{len(judged)} series over {len(commits)} commits: {len(standing)} standing regressions")
    return 1 if standing else 0


if __name__ == "__main__":
    raise SystemExit(main())
