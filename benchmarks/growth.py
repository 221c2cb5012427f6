"""How cost grows: time against batch, width, depth, parameters, positions and threads, beside torch and JAX.

    python benchmarks/growth.py            some three minutes on an idle machine; results/growth.json
    python benchmarks/growth.py --quick    the ends of each axis, in seconds a row, nothing stored unless --output

The contenders take turns, slice by slice, as in table.py. `make dashboard` draws the results, with an exponent fitted
to each curve, and names knees: places where time grows faster than the arithmetic does, and a peer's does not.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from dashboard.growth import curves
from harness import machine
from harness.paired import Spread
from harness.places import RESULTS, peers_python
from harness.session import measure
from workloads.growth import AXES, LIBRARIES


def grown(axis, rows, session):
    """One axis: {"name", "title", "libraries": {library: [[size, median, q25, q75, operations], ...]}, "missing"}."""
    libraries: dict[str, list] = {library: [] for library in LIBRARIES}
    for row, sizes in rows.items():
        for size, threads in zip(sizes, row.threads, strict=True):
            for library in LIBRARIES:
                if times := session.times[row.name].get((library, threads)):
                    spread = Spread.of(times)
                    shown = row.n_params if axis.name == "parameters" else size
                    libraries[library].append([shown, spread.median, spread.q25, spread.q75, row.flops])
    missing = {library: why for (name, library, _), why in session.missing.items() if name in {r.name for r in rows}}
    found = {"name": axis.name, "title": axis.title}
    return found | {"libraries": {k: v for k, v in libraries.items() if v}, "missing": missing}


def report(axis):
    """Lines about an axis as the dashboard shows it."""
    for curve in axis["curves"]:
        exponent = "  -  " if curve["exponent"] is None else f"{curve['exponent']:5.2f}"
        times = ", ".join(f"{1e6 * t:.4g}" for t in curve["times"])
        print(f"  {curve['library']:8} exponent {exponent}   {times} us")
    for low, high, exponent in axis["own_knees"]:
        print(f"  knee of nbprop's alone: exponent {exponent:.2f} from {low:g} to {high:g}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the ends of each axis, with short slices")
    parser.add_argument("--axes", nargs="+", choices=[axis.name for axis in AXES], help="only these")
    parser.add_argument("--output", type=Path, help=f"the file to write (default: {RESULTS / 'growth.json'})")
    options = parser.parse_args(arguments)
    seconds, rotations = (0.02, 2) if options.quick else (0.08, 7)
    begun = time.perf_counter()
    rows = {
        axis: axis.rows(machine.cores(), options.quick)
        for axis in AXES
        if options.axes is None or axis.name in options.axes
    }
    listed = [row for own in rows.values() for row in own]
    session = measure(
        listed, seconds, rotations, log=lambda line: print(f"{time.perf_counter() - begun:5.0f} s  {line}")
    )
    complaints = [f"{row.name}: {complaint}" for row in listed for complaint in session.disagreements(row)]
    axes = [grown(axis, own, session) for axis, own in rows.items()]
    for axis in axes:
        print(axis["title"])
        report(curves(axis))
    if complaints:
        print("contenders did other work, nothing is stored:", *complaints, sep="\n  ")
        return 1
    found = {
        "date": machine.now(),
        "cores": machine.cores(),
        "versions": machine.versions_of(peers_python()) if peers_python().exists() else machine.versions(),
        "axes": axes,
    }
    output = options.output or (None if options.quick or options.axes else RESULTS / "growth.json")
    if output:
        output.write_text(json.dumps(found, indent=1) + "\n")
        print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
