"""What the front page shows, computed from the series: one plain dictionary, which build_dashboard.py writes as JSON.

Times are in seconds, rates in operations per second; a ratio is our time divided by theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from regressions import find_steps, regressions

from dashboard.growth import fit, growth
from harness.history import Point, Series
from workloads.rows import BY_NAME, LIMITS, PEERS, target

RATIO, SECONDS = "ratios.Ratio.track_ratio", "ratios.Seconds.track_seconds"
COMPILING, MEMORY = "compiling.", "memory."


def figures(series: Sequence[Series], results: Path) -> dict:
    """All figures of one machine: the one with the newest result."""
    machine = newest_machine(series)
    here = [s for s in series if s.machine == machine]
    return {
        "machine": describe_machine(results / machine) if machine else {},
        "others": sorted({s.machine for s in series} - {machine}),
        "versions": versions(results),
        "commits": commits(here),
        "ratios": ratios(here),
        "roofline": roofline(here),
        "scaling": scaling(here),
        "growth": growth(results),
        "histories": histories(here),
        "regressions": [regression(step) for step in regressions(here)],
    }


def newest_machine(series: Sequence[Series]) -> str:
    return max(series, key=lambda s: s.points[-1].commit.date).machine if series else ""


def describe_machine(folder: Path) -> dict[str, str]:
    """asv's own description of the machine."""
    stored = json.loads((folder / "machine.json").read_text())
    return {key: str(value) for key, value in stored.items() if key != "version" and value}


def versions(results: Path) -> dict[str, str]:
    """The versions in the last `make bench`, if there is one; asv does not know the peers' environment."""
    path = results / "table.json"
    return json.loads(path.read_text())["versions"] if path.exists() else {}


def commits(series: Sequence[Series]) -> list[dict]:
    """Every commit with a result, oldest first; points refer to them by hash."""
    found = {p.commit.hash: p.commit for s in series for p in s.points}
    ordered = sorted(found.values(), key=lambda c: c.date)
    return [{"hash": c.hash, "date": c.date, "subject": c.subject} for c in ordered]


def points(series: Series) -> list[dict]:
    return [{"commit": p.commit.hash, "value": p.value, "q25": p.q25, "q75": p.q75} for p in series.points]


def last(series: Sequence[Series], benchmark: str) -> dict[str, Point]:
    """joined parameters -> the newest point of that benchmark."""
    return {"/".join(s.parameters): s.points[-1] for s in series if s.benchmark == benchmark}


def ratios(series: Sequence[Series]) -> list[dict]:
    """One entry for each comparison, in the order of the rows; those no longer in the table are omitted."""
    seconds = last(series, SECONDS)
    entries = []
    for s in series:
        if s.benchmark != RATIO:
            continue
        row, ours, peer, threads = s.parameters[0].split("/")
        if row not in BY_NAME:
            continue
        goal = target(BY_NAME[row], ours, peer, int(threads))
        now = s.points[-1]
        times = {side: seconds.get(f"{row}/{name}/{threads}") for side, name in (("ours", ours), ("peer", peer))}
        entries.append(
            {
                "key": s.parameters[0],
                "row": row,
                "title": BY_NAME[row].title,
                "ours": ours,
                "peer": peer,
                "peer_name": (PEERS | LIMITS)[peer],
                "threads": int(threads),
                "times": {side: point.value if point else None for side, point in times.items()},
                "now": {"value": now.value, "q25": now.q25, "q75": now.q75},
                "goal": goal,
                "met": None if goal is None else now.value <= goal,
                "points": points(s),
                "steps": [step.after.hash for step in find_steps(s)],
            }
        )
    return sorted(entries, key=lambda e: (list(BY_NAME).index(e["row"]), e["threads"]))


def roofline(series: Sequence[Series]) -> dict:
    """The newest rates of one thread over arithmetic intensity, below the ceilings of the same session."""
    work, peaks, copies = [], {}, []
    for key, point in last(series, SECONDS).items():
        name, library, threads = key.split("/")
        row = BY_NAME.get(name)
        # A solver's evaluations are not counted, and some rows have no arithmetic, or no bytes, worth counting.
        if row is None or threads != "1" or row.kind == "solver" or not (row.flops and row.bytes):
            continue
        rate = row.flops / point.value
        if library == "fma":
            peaks.setdefault(row.dtype, []).append(rate)
        elif library == "copy":
            copies.append(row.bytes / point.value)
        else:
            intensity = row.flops / row.bytes
            work.append({"name": row.title, "library": library, "intensity": intensity, "rate": rate})
    return {
        "work": sorted(work, key=lambda w: w["intensity"]),
        "peaks": {dtype: float(np.median(found)) for dtype, found in peaks.items()},
        "bandwidth": float(np.median(copies)) if copies else None,
    }


def scaling(series: Sequence[Series]) -> list[dict]:
    """One chart for each class of suites/scaling.py: sizes, the newest commit's times, the fitted exponent."""
    grouped: dict[str, list[tuple[float, Point]]] = {}
    for s in series:
        if s.benchmark.startswith("scaling.") and len(s.parameters) == 1:
            grouped.setdefault(s.benchmark, []).append((float(s.parameters[0]), s.points[-1]))
    charts = []
    for benchmark, found in sorted(grouped.items()):
        newest = max(point.commit.date for _, point in found)
        measured = sorted((size, p.value, p.q25, p.q75) for size, p in found if p.commit.date == newest)
        sizes, times, q25, q75 = (list(column) for column in zip(*measured, strict=True))
        charts.append(
            {
                "name": benchmark.split(".")[1].lower(),
                "sizes": sizes,
                "times": times,
                "q25": q25,
                "q75": q75,
                **fit(sizes, times),
            }
        )
    return charts


def histories(series: Sequence[Series]) -> list[dict]:
    """Compile times, start, import and memory: small charts over the commits."""
    shown = [s for s in series if s.benchmark.startswith((COMPILING, MEMORY))]
    return [
        {
            "name": readable(s),
            "kind": "compiling" if s.benchmark.startswith(COMPILING) else "memory",
            "unit": s.unit,
            "points": points(s),
        }
        for s in shown
    ]


def readable(series: Series) -> str:
    """compiling.Compiling.track_cold_first_gradient -> "cold first gradient"."""
    name = re.sub(r"^(track|time|peakmem|mem)_", "", series.benchmark.rsplit(".", 1)[1]).replace("_", " ")
    if series.benchmark.startswith(MEMORY):
        name = f"{series.benchmark.split('.')[1].lower()}, {name}"
    return f"{name}, {', '.join(series.parameters)}" if series.parameters else name


def plain_name(series: Series) -> str:
    """A judged series in words: what is compared with what."""
    if series.benchmark != RATIO:
        return readable(series)
    row, ours, peer, threads = series.parameters[0].split("/")
    title = BY_NAME[row].title if row in BY_NAME else row.replace("_", " ")
    caller = "Python" if ours == "nbprop" else "@njit"
    peer = (PEERS | LIMITS)[peer]
    return f"{title}: nbprop from {caller} compared with {peer}, {threads} thread{'s' if threads != '1' else ''}"


def regression(step) -> dict:
    return {
        "benchmark": step.series.name,
        "name": plain_name(step.series),
        "key": step.series.parameters[0] if step.series.benchmark == RATIO else None,
        "before": step.before.hash,
        "after": step.after.hash,
        "date": step.after.date,
        "subject": step.after.subject,
        "value_before": step.value_before,
        "value_after": step.value_after,
        "factor": step.factor,
        "confirmed": step.confirmed,
        "stands": step.stands,
    }
