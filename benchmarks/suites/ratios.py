"""The history of the comparison table: each ratio to a peer or a limit, commit by commit.

One session measures all rows, paired and interleaved, in `setup_cache`; the benchmarks below only pass its figures to
asv, with each rotation as a sample, so that asv keeps the spread as well. A comparison is named row/ours/peer/threads.
"""

from __future__ import annotations

import os

from harness.session import measure, taking_part
from workloads.rows import ROWS as ALL_ROWS
from workloads.rows import comparisons

# set by `make bench-quick`: the same figures with more spread
QUICK = bool(os.environ.get("NBPROP_BENCH_QUICK"))
SLICE, ROTATIONS = (0.05, 7) if QUICK else (0.2, 15)

ROWS = [row for row in ALL_ROWS if not (QUICK and row.slow)]
COMPARISONS = [f"{row.name}/{ours}/{peer}/{threads}" for row in ALL_ROWS for ours, peer, threads in comparisons(row)]
CONTENDERS = ["/".join(map(str, (row.name, *two))) for row in ALL_ROWS for two in taking_part(row)]


class Paired:
    """The session that the classes below share: asv runs an inherited setup_cache once."""

    timeout = 60

    def setup_cache(self) -> dict[str, list[float]]:
        session = measure(ROWS, SLICE, ROTATIONS, log=print)
        samples: dict[str, list[float]] = {}
        for comparison in COMPARISONS:
            row, ours, peer, threads = comparison.split("/")
            spread = session.ratio(row, ours, peer, int(threads))
            if spread is not None:
                samples[comparison] = list(spread.samples)
        for contender in CONTENDERS:
            row, library, threads = contender.split("/")
            times = session.times.get(row, {}).get((library, int(threads)))
            if times is not None:
                samples[contender] = times
        return samples

    setup_cache.__dict__["timeout"] = 1800  # asv reads it from the function

    def setup(self, samples: dict[str, list[float]], name: str) -> None:
        if name not in samples:
            raise NotImplementedError(f"{name} was not measured on this commit")


class Ratio(Paired):
    """Our time divided by theirs: below 1 nbprop is faster; with "fma", how far it is from the machine's limit."""

    params = (COMPARISONS,)
    param_names = ("comparison",)
    unit = "ratio"

    def track_ratio(self, samples: dict[str, list[float]], name: str) -> dict:
        return {"samples": samples[name], "number": 1}


class Seconds(Paired):
    """The times on both sides of the ratios. They drift with the machine: only compare them with each other."""

    params = (CONTENDERS,)
    param_names = ("contender",)
    unit = "seconds"

    def track_seconds(self, samples: dict[str, list[float]], name: str) -> dict:
        return {"samples": samples[name], "number": 1}
