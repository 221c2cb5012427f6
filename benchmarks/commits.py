"""Measure past commits: evenly chosen from a range, oldest first, skipping those that have results.

    python benchmarks/commits.py --count 12              twelve commits from the whole history
    python benchmarks/commits.py v0.1.0..HEAD --count 5
    python benchmarks/commits.py --count 12 --dry-run    only print them

Each commit is built into asv's environment and measured with today's suites: about three minutes per commit on two
cores, or fifteen with --full.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from harness import machine
from harness.places import BENCHMARKS, REPOSITORY, RESULTS

QUICK = "ratios|compiling|Allocations|scaling"  # what `make bench-quick` measures


def chosen(hashes: list[str], count: int) -> list[str]:
    """`count` of the hashes, evenly spaced, including the first and the last."""
    if count >= len(hashes):
        return hashes
    if count == 1:
        return hashes[-1:]
    return [hashes[round(i * (len(hashes) - 1) / (count - 1))] for i in range(count)]


def hashes_in(revisions: str) -> list[str]:
    """The first-parent commits of a range, oldest first."""
    command = ["git", "rev-list", "--first-parent", "--reverse", revisions]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"error: {done.stderr.strip()}")
    return done.stdout.split()


def measured(commit: str, name: str, results: Path = RESULTS) -> bool:
    return any((results / name).glob(f"{commit[:8]}-*.json"))


def asv(*arguments: str, quick: bool = False) -> int:
    """Run asv from this program's environment; returns its exit status."""
    environment = machine.untuned(os.environ) | ({"NBPROP_BENCH_QUICK": "1"} if quick else {})
    return subprocess.run([sys.executable, "-m", "asv", *arguments], cwd=BENCHMARKS, env=environment).returncode


def announce(name: str) -> None:
    """Register this machine with asv under a name."""
    here = machine.describe()
    told = {"os": here["system"], "arch": here["architecture"], "cpu": here["processor"], "num_cpu": here["cores"]}
    options = [word for key, value in told.items() for word in (f"--{key}", str(value))]
    asv("machine", "--machine", name, "--ram", f"{here['memory_gib']} GiB", *options)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="?", default="HEAD", help="what git rev-list takes (default: HEAD)")
    parser.add_argument("--count", type=int, default=12, help="how many commits (default: 12)")
    parser.add_argument("--full", action="store_true", help="all benchmarks, with less spread")
    parser.add_argument("--again", action="store_true", help="include commits that have results")
    parser.add_argument("--dry-run", action="store_true", help="only print the commits")
    parser.add_argument("--machine", default=machine.name(), help=f"default: {machine.name()}")
    options = parser.parse_args(arguments)
    wanted = chosen(hashes_in(options.revisions), options.count)
    todo = [c for c in wanted if options.again or not measured(c, options.machine)]
    print(f"{len(todo)} of {len(wanted)} commits to measure: {' '.join(c[:8] for c in todo)}")
    if options.dry_run or not todo:
        return 0
    announce(options.machine)
    selection = [] if options.full else ["--bench", QUICK]
    if not options.full:
        selection += shlex.split("-a repeat=3 -a sample_time=0.02 -a warmup_time=0.02")
    failed = []
    for commit in todo:
        status = asv("run", "--machine", options.machine, *selection, f"{commit}^!", quick=not options.full)
        if status != 0:
            failed.append(commit[:8])
    if failed:
        print(f"asv reported failures at {', '.join(failed)}; see its messages above")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
