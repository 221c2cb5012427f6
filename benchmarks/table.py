"""`make bench`: the comparison table, measured here and now, and the same as JSON.

python benchmarks/table.py            the whole table, some minutes
python benchmarks/table.py --quick    short slices and few rotations: to try it out, not to quote
python benchmarks/table.py --rows tiny_step,solver --libraries nbprop,torch
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from harness import absolutes, machine
from harness.paired import Spread, difference, ratio, rotate
from harness.places import RESULTS, peers_python
from harness.session import Session, measure
from workloads.rows import BY_NAME, ROWS, comparisons, target

RESULT = RESULTS / "table.json"


@dataclass(frozen=True)
class Line:
    """One line of the table: our time next to that of a peer or a limit.

    figure is what the goal is about: a "ratio" of times, seconds ("s") or a "count". ours_time and peer_time are the
    two times (or speedups, "x") that are compared. Smaller figures are better.
    """

    work: str
    ours: str
    peer: str = "-"
    threads: int = 1
    ours_time: float | None = None
    peer_time: float | None = None
    time_unit: str = "s"
    figure: Spread | None = None
    figure_unit: str = "ratio"
    goal: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if there is no goal or no measurement."""
        return None if self.goal is None or self.figure is None else self.figure.median <= self.goal

    @property
    def of_peak(self) -> float | None:
        """The fraction of the multiply-add peak, if that is what the line compares with."""
        return 1 / self.figure.median if self.peer == "fma" and self.figure and self.time_unit == "s" else None


def median(times: dict[tuple[str, int], list[float]], library: str, threads: int) -> float | None:
    return Spread.of(times[library, threads]).median if (library, threads) in times else None


def ratio_lines(session: Session, names: list[str]) -> list[Line]:
    """One line for each comparison of each row."""
    lines = []
    for name in names:
        row, times = BY_NAME[name], session.times.get(name, {})
        for ours, peer, threads in comparisons(row):
            absent = [session.missing.get((name, library, threads), "") for library in (ours, peer)]
            lines.append(
                Line(
                    row.title,
                    ours,
                    peer,
                    threads,
                    median(times, ours, threads),
                    median(times, peer, threads),
                    figure=session.ratio(name, ours, peer, threads),
                    goal=target(row, ours, peer, threads),
                    note="; ".join(reason for reason in absent if reason),
                )
            )
    return lines


def derived_lines(session: Session) -> list[Line]:
    """Rows derived from the same slices: the time of one sample, the overhead of a call, the speedup of threads."""
    lines = []
    sample = session.times.get("one_sample", {})
    if ("nbprop-njit", 1) in sample:
        spread = Spread.of(sample["nbprop-njit", 1])
        title = BY_NAME["one_sample"].title + ", called from @njit"
        lines.append(Line(title, "nbprop-njit", ours_time=spread.median, figure=spread, figure_unit="s", goal=250e-9))
    gradient = session.times.get("tiny_gradient", {})
    if {("nbprop", 1), ("nbprop-njit", 1)} <= gradient.keys():
        extra = difference({who: gradient[who, 1] for who in ("nbprop", "nbprop-njit")}, "nbprop", "nbprop-njit")
        title = "value_and_grad called from Python, above the same from @njit"
        times = (median(gradient, "nbprop", 1), median(gradient, "nbprop-njit", 1))
        lines.append(Line(title, "nbprop", "nbprop-njit", 1, *times, figure=extra, figure_unit="s", goal=5e-6))
    for name, goal in (("lbfgs", 0.55), ("fleet", 1 / 1.9)):
        times = session.times.get(name, {})
        if {("nbprop", 1), ("nbprop", 2)} <= times.keys():
            figure = ratio({who: times["nbprop", who] for who in (1, 2)}, 2, 1)
            both = (median(times, "nbprop", 2), median(times, "nbprop", 1))
            title = BY_NAME[name].title + ", beside 1 thread"
            lines.append(Line(title, "nbprop", "nbprop", 2, *both, figure=figure, goal=goal))
    large = session.times.get("large_step", {})
    if {(who, threads) for who in ("nbprop", "fma") for threads in (1, 2)} <= large.keys():
        ours, limit = (
            [one / two for one, two in zip(large[who, 1], large[who, 2], strict=True)] for who in ("nbprop", "fma")
        )
        lost = Spread.of([most / gained for most, gained in zip(limit, ours, strict=True)])
        gains = (Spread.of(ours).median, Spread.of(limit).median)
        title = "2 threads over 1 on the large net: the gain of two independent loops over ours"
        lines.append(Line(title, "nbprop", "fma", 2, *gains, time_unit="x", figure=lost, goal=1 / 0.93))
    return lines


def process_lines(rotations: int, cold: bool, log: Callable[[str], None]) -> list[Line]:
    """Starting, importing, compiling, memory: each in processes of its own, in rotation."""
    peers = peers_python().exists()
    lines = []

    def attempt(work: str, goal: float, unit: str, measured: Callable[[], tuple[str, dict, Spread]]) -> None:
        """measured() -> (peer, name -> samples, the figure)."""
        log(work)
        try:
            peer, times, spread = measured()
        except RuntimeError as error:
            lines.append(Line(work, "nbprop", figure_unit=unit, goal=goal, note=str(error)))
            return
        ours, theirs = (Spread.of(times[who]).median if who in times else None for who in ("nbprop", peer))
        lines.append(Line(work, "nbprop", peer, 1, ours, theirs, unit, figure=spread, figure_unit=unit, goal=goal))

    def compare(function: Callable[[str], float], libraries: list[str]) -> tuple[str, dict, Spread]:
        """The figure is nbprop's own time in seconds; the last library's is shown next to it."""
        times = rotate({name: (lambda name=name: function(name)) for name in libraries}, rotations)
        return libraries[-1] if len(libraries) > 1 else "-", times, Spread.of(times["nbprop"])

    def imported() -> tuple[str, dict, Spread]:
        _, times, _ = compare(absolutes.import_seconds, ["nbprop", "numba"])
        return "numba", times, difference(times, "nbprop", "numba")

    def alone(value: float) -> tuple[str, dict, Spread]:
        return "-", {"nbprop": [value]}, Spread.of([value])

    start = "process start to first gradient, warm disk cache"
    for peer in ["torch", "jax"] if peers else []:
        attempt(start, 1.2, "s", lambda peer=peer: compare(absolutes.start_to_gradient, ["nbprop", peer]))
    attempt("import nbprop, above import numba", 0.15, "s", imported)
    others = ["nbprop", "jax"] if peers else ["nbprop"]
    attempt("a new architecture in a warm process", 0.010, "s", lambda: compare(absolutes.new_architecture, others))
    attempt("allocations in 100 steps", 0.0, "count", lambda: alone(absolutes.allocations()))
    attempt("workspace over the liveness bound, large net", 1.10, "ratio", lambda: alone(absolutes.workspace()))
    if cold:
        attempt("first ever use (cold cache), digits demo", 30.0, "s", lambda: alone(absolutes.cold_demo()))
    return lines


def quantity(value: float | None, unit: str) -> str:
    """A figure in a readable unit."""
    if value is None:
        return "-"
    if unit != "s":
        return f"{value:.3g}" + (" x" if unit == "x" else "")
    for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {name}"
    return f"{value * 1e9:.3g} ns"


HEADINGS = (
    "work",
    "threads",
    "ours",
    "time",
    "peer",
    "time",
    "figure [quartiles]",
    "to reach",
    "met",
    "of peak",
)


def cells(line: Line) -> tuple[str, ...]:
    """The printed columns of a line."""

    def show(value: float) -> str:
        return quantity(value, line.figure_unit)

    if line.figure is None:
        figure = (line.note or "not measured").splitlines()[0][:70]
    else:
        figure = f"{show(line.figure.median)} [{show(line.figure.q25)}, {show(line.figure.q75)}]"
    return (
        line.work,
        str(line.threads),
        line.ours,
        quantity(line.ours_time, line.time_unit),
        line.peer,
        quantity(line.peer_time, line.time_unit),
        figure,
        "" if line.goal is None else f"<= {show(line.goal)}",
        {None: "", True: "yes", False: "NO"}[line.met],
        "" if line.of_peak is None else f"{100 * line.of_peak:.0f} %",
    )


def render(lines: list[Line]) -> str:
    """The table as aligned text, which is valid Markdown too."""
    table = [HEADINGS, *map(cells, lines)]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADINGS))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in table]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)


def report(lines: list[Line], quick: bool, kernels: dict[str, str]) -> dict:
    """The content of the JSON: the lines, the machine, versions, the kernels chosen, the commit and the date."""
    return {
        "date": machine.now(),
        "commit": machine.commit(),
        "quick": quick,
        "machine": machine.describe(),
        "versions": machine.versions_of(peers_python()) | machine.versions(),
        "kernels": kernels,
        "lines": [asdict(line) | {"met": line.met, "of_peak": line.of_peak} for line in lines],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny slices, 3 rotations: noisy")
    parser.add_argument("--rows", help="comma-separated names of rows (default: all)")
    parser.add_argument("--libraries", help="comma-separated contenders (default: all)")
    parser.add_argument("--no-processes", action="store_true", help="omit start, import, compile times and memory")
    parser.add_argument("--output", type=Path, default=RESULT, help=f"where the JSON goes (default: {RESULT})")
    options = parser.parse_args(arguments)
    names = options.rows.split(",") if options.rows else [row.name for row in ROWS]
    unknown = sorted(set(names) - set(BY_NAME))
    if unknown:
        parser.error(f"no row is named {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    seconds, rotations = (0.03, 3) if options.quick else (0.3, 15)

    def log(message: str) -> None:
        print(f"... {message}", file=sys.stderr, flush=True)

    libraries = options.libraries.split(",") if options.libraries else None
    session = measure([BY_NAME[name] for name in names], seconds, rotations, libraries, log)
    lines = ratio_lines(session, names) + derived_lines(session)
    if not options.no_processes:
        lines += process_lines(1 if options.quick else 5, cold=not options.quick, log=log)
    print(render(lines))
    for name in names:
        for complaint in session.disagreements(BY_NAME[name]):
            print(f"unequal work in {name}: {complaint}")
    here = report(lines, options.quick, session.kernels)
    print(f"\n{here['machine']['processor']}, {here['machine']['cores']} cores; {here['date']}")
    print(", ".join(f"{library} {version}" for library, version in here["versions"].items()))
    print("\n".join(f"{library}: {told}" for library, told in here["kernels"].items()))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(here, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
