"""Paired, interleaved timing: reliable ratios on a machine that is not idle.

Each rotation times every contender once, one after the other. Ratios are formed within a rotation, from slices a
fraction of a second apart, so that anything that slows the machine down slows both sides. Rotations alternate between
forward and reverse order, which cancels a steady drift. The figure is the median over the rotations, with quartiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """The median of some samples, with the quartiles around it."""

    median: float
    q25: float
    q75: float
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        q25, median, q75 = np.percentile(np.asarray(samples, dtype=float), (25, 50, 75))
        return cls(float(median), float(q25), float(q75), tuple(float(s) for s in samples))


def rotate(contenders: Mapping[str, Callable[[], float]], rotations: int) -> dict[str, list[float]]:
    """Call each contender once per rotation; returns name -> what its calls returned (seconds), in order."""
    if rotations < 1:
        raise ValueError(f"rotations is {rotations}; it must be at least 1")
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rotations):
        for name in order:
            times[name].append(contenders[name]())
        order.reverse()
    return times


def ratio(times: Mapping[str, Sequence[float]], ours: str, peer: str) -> Spread:
    """Our time divided by the peer's, rotation by rotation."""
    return Spread.of([a / b for a, b in zip(times[ours], times[peer], strict=True)])


def difference(times: Mapping[str, Sequence[float]], ours: str, peer: str) -> Spread:
    """Our time minus the peer's, rotation by rotation, in seconds."""
    return Spread.of([a - b for a, b in zip(times[ours], times[peer], strict=True)])
