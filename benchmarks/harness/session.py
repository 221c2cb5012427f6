"""One measuring session: all contenders of some rows, each started once and timed in rotation."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from harness.contender import Contender
from harness.paired import Spread, ratio, rotate
from workloads.rows import OURS, Row, comparisons


def quiet(message: str) -> None:
    """Say nothing."""


@dataclass
class Session:
    """times[row][library, threads] -> seconds per unit, for each rotation; `missing` says why a contender is absent."""

    times: dict[str, dict[tuple[str, int], list[float]]] = field(default_factory=dict)
    checks: dict[str, dict[str, float]] = field(default_factory=dict)
    prepare: dict[str, dict[tuple[str, int], float]] = field(default_factory=dict)
    missing: dict[tuple[str, str, int], str] = field(default_factory=dict)
    kernels: dict[str, str] = field(default_factory=dict)  # library -> the kernels it chose for this processor

    def ratio(self, row: str, ours: str, peer: str, threads: int) -> Spread | None:
        """Our time divided by the peer's, or None if one of them is missing."""
        times = self.times.get(row, {})
        if (ours, threads) not in times or (peer, threads) not in times:
            return None
        return ratio({"ours": times[ours, threads], "peer": times[peer, threads]}, "ours", "peer")

    def disagreements(self, row: Row, tolerance: float = 1e-3) -> list[str]:
        """Contenders whose check differs from the others' by more than `tolerance` (relative): they did other work."""
        checks = self.checks.get(row.name, {})
        if row.kind == "solver" or not checks:  # there the check is the number of iterations
            expected = 200.0 if row.kind == "solver" else 0.0
        else:
            expected = sorted(checks.values())[len(checks) // 2]
        scale = max(abs(expected), 1e-6)
        return [
            f"{who}: {c:.6g}, not {expected:.6g}" for who, c in checks.items() if abs(c - expected) > tolerance * scale
        ]


def measure(
    rows: Iterable[Row],
    seconds: float,
    rotations: int,
    libraries: Iterable[str] | None = None,
    log: Callable[[str], None] = quiet,
) -> Session:
    """Time rows in slices of `seconds`, over `rotations`; with `libraries`, only those.

    A contender that this commit or this machine lacks is recorded in `missing`, and the others are measured.
    """
    session, wanted = Session(), None if libraries is None else set(libraries)
    with contextlib.ExitStack() as stack:
        running: dict[tuple[str, int], Contender] = {}
        for row in rows:
            slices: dict[tuple[str, int], Callable[[], float]] = {}
            session.checks[row.name], session.prepare[row.name] = {}, {}
            for library, threads in taking_part(row):
                if wanted is not None and library not in wanted:
                    continue
                if wanted is None and library not in OURS and not slices:
                    continue  # this commit lacks the row: peers come first only if ours is absent
                key = (library, threads)
                try:
                    if key not in running:
                        running[key] = stack.enter_context(Contender(library, threads))
                    answer = running[key].prepare(row.name)
                    if library not in session.kernels:
                        session.kernels[library] = running[key].kernels()
                except (NotImplementedError, FileNotFoundError, RuntimeError) as error:
                    session.missing[row.name, library, threads] = str(error)
                    log(f"{row.name}: {library} left out: {error}")
                    continue
                if answer["check"] is not None:
                    session.checks[row.name][f"{library}, {threads} threads"] = answer["check"]
                session.prepare[row.name][key] = answer["seconds"]
                slices[key] = functools.partial(running[key].slice, row.name, seconds)
            log(f"{row.name}: {len(slices)} contenders, {rotations} rotations")
            session.times[row.name] = rotate(slices, rotations)
    return session


def taking_part(row: Row) -> list[tuple[str, int]]:
    """(library, threads) of all contenders in the row's comparisons, ours first; any others run on one thread."""
    pairs = {(library, threads): None for ours, peer, threads in comparisons(row) for library in (ours, peer)}
    pairs |= {(library, 1): None for library in row.contenders}
    return sorted(pairs, key=lambda pair: (row.contenders.index(pair[0]), pair[1]))
