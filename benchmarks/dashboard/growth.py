"""What the front page shows of benchmarks/growth.py: a chart for each size that grows, a curve for each library.

A knee is a step from one size to the next over which time grows with an exponent that exceeds the operations' by more
than KNEE: a cache that no longer suffices, or threads that are in each other's way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

KNEE = 0.3


def growth(results: Path) -> list[dict]:
    """All axes of the stored run; none if there is none."""
    path = results / "growth.json"
    return [curves(axis) for axis in json.loads(path.read_text())["axes"]] if path.exists() else []


def curves(axis: dict) -> dict:
    """An axis with fitted exponents, and the knees of nbprop's curve that no peer's has."""
    found = []
    for library, points in axis["libraries"].items():
        sizes, times, q25, q75, operations = (list(column) for column in zip(*points, strict=True))
        curve = {"library": library, "sizes": sizes, "times": times, "q25": q25, "q75": q75}
        found.append(curve | fit(sizes, times) | {"knees": knees(sizes, times, operations)})
    ours = [knee for curve in found if curve["library"] == "nbprop" for knee in curve["knees"]]
    peers = [knee for curve in found if curve["library"] != "nbprop" for knee in curve["knees"]]
    alone = [knee for knee in ours if not any(_touch(knee, other) for other in peers)]
    return {"name": axis["name"], "title": axis["title"], "curves": found, "own_knees": alone}


def _touch(knee: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two steps share a size: caches do not end at the same place for all."""
    return knee[0] <= other[1] and other[0] <= knee[1]


def knees(sizes: Sequence[float], times: Sequence[float], operations: Sequence[float]) -> list[list[float]]:
    """[[from, to, exponent], ...] of the steps that are steeper than the operations."""
    slopes, expected = (np.diff(np.log(column)) / np.diff(np.log(sizes)) for column in (times, operations))
    steep = np.flatnonzero(slopes > expected + KNEE)
    return [[sizes[k], sizes[k + 1], float(slopes[k])] for k in steep]


def fit(sizes: Sequence[float], times: Sequence[float]) -> dict:
    """time = factor * size^exponent by least squares on logarithms, over the larger half of the sizes: the small ones
    measure the overhead of a call. A single size has no exponent."""
    half = min(len(sizes) // 2, len(sizes) - 3) if len(sizes) > 3 else 0
    if len(sizes) < 2:
        return {"exponent": None, "factor": None, "fitted_from": None}
    x, y = np.log(sizes[half:]), np.log(times[half:])
    exponent, constant = np.polyfit(x, y, 1)
    return {"exponent": float(exponent), "factor": float(np.exp(constant)), "fitted_from": float(sizes[half])}
