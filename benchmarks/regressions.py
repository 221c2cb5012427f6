"""`make bench-gate`: steps in a ratio, with the benchmark and the commits they lie between.

Only ratios are judged (and counts, which do not swing): both sides of a ratio ran in turn on the same
machine, so that a slow machine moves neither. A step is a change that is larger than the threshold, larger
than the spread, and still there at the next measured commits.

    python benchmarks/regressions.py              exit status 1 if a step up still stands
    python benchmarks/regressions.py --last 30    look at the last 30 measured commits
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from history import RESULTS, Commit, Point, Series, read

THRESHOLD = 0.25
JUDGED_UNITS = ("ratio", "allocations", "bytes")  # never seconds: the machine is shared


@dataclass(frozen=True)
class Step:
    """factor > 1: slower (or more) from `after` on. confirmed: a later commit shows it too. stands: not
    undone since."""

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

    Between steps the level is the median of all its points, so that a slow creep is noticed when it has
    added up. A point off the level counts as a step if the quartiles do not overlap the level's and, where
    later points exist, the next ones stay off it: one noisy run in the middle of history is passed over.
    """
    steps: list[Step] = []
    level: list[Point] = []
    points = series.points
    for i, point in enumerate(points):
        if not level or not _off(point, level, threshold):
            level.append(point)
            continue
        following = points[i + 1 : i + 3]
        if following and not _stays(point, following, level, threshold):
            continue
        value_before = _median(level)
        now = _median(points[-3:])
        stands = (now / value_before if value_before else now + 1) > 1 + threshold
        steps.append(Step(series, level[-1].commit, point.commit, value_before, point.value, bool(following), stands))
        level = [point]
    return steps


def _median(points: Iterable[Point]) -> float:
    return statistics.median(point.value for point in points)


def _off(point: Point, level: Sequence[Point], threshold: float) -> bool:
    """Beyond the threshold and clear of the level's own spread."""
    base = _median(level)
    above = point.value > base * (1 + threshold) and point.q25 > statistics.median(p.q75 for p in level)
    below = point.value * (1 + threshold) < base and point.q75 < statistics.median(p.q25 for p in level)
    return above or below


def _stays(point: Point, following: Sequence[Point], level: Sequence[Point], threshold: float) -> bool:
    """The points after are off the level on the same side: both of two, or the only one."""
    up = point.value > _median(level)
    return all(_off(p, level, threshold) and (p.value > _median(level)) == up for p in following)


def regressions(every: Iterable[Series], threshold: float = THRESHOLD, last: int | None = None) -> list[Step]:
    """Steps up in what is judged, newest first; `last`: only those at the last so many measured commits."""
    found = []
    for series in every:
        if series.unit not in JUDGED_UNITS:
            continue
        recent = {point.commit.hash for point in (series.points[-last:] if last else series.points)}
        found += [s for s in find_steps(series, threshold) if s.factor > 1 and s.after.hash in recent]
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
    judged = [series for series in every if series.unit in JUDGED_UNITS]
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
