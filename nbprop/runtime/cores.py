"""How many cores this process may use: its affinity, and the quota of processor time that its cgroups grant."""

import time
from pathlib import Path

from nbprop import system

_KEPT_SECONDS = 1.0  # a quota is read again after this long: some ten small files


def processor_share():
    """Cores that this process may keep busy, at least one.

    A quota of 2.5 cores is two: a third thread would use it up before the period's end, and then all stand still.
    """
    processors, quota = system.processors(), _quota()
    return processors if quota is None else max(1, min(processors, int(quota)))


_last: tuple[float, float | None] = (-float("inf"), None)


def _quota():
    global _last
    if time.monotonic() - _last[0] > _KEPT_SECONDS:
        _last = time.monotonic(), cgroup_quota()
    return _last[1]


def cgroup_quota(membership="/proc/self/cgroup", mount="/sys/fs/cgroup"):
    """The cores' worth of time that the least generous of this process's cgroups grants; None without a limit.

    membership : file with a line hierarchy:controllers:path for each hierarchy (cgroups(7))
    mount : where version 2, or the controllers of version 1, are mounted

    Inside a container the path may be the host's, of which only the end, or nothing but the mount's root, can be seen:
    folders that are not there grant everything.
    """
    found = []
    for line in _lines(membership):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not path.startswith("/"):
            continue
        if controllers == "":
            roots, read = [Path(mount), Path(mount, "unified")], _version_2
        elif "cpu" in controllers.split(","):
            roots, read = [Path(mount, controllers), Path(mount, "cpu")], _version_1
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for root in roots:
            found += [read(root.joinpath(*parts[:depth])) for depth in range(len(parts) + 1)]
    return min((quota for quota in found if quota is not None), default=None)


def _lines(path):
    try:
        return Path(path).read_text(encoding="ascii").split("\n")
    except (OSError, ValueError):
        return []


def _version_2(folder):
    """cpu.max: microseconds of time, or "max", in a period of so many."""
    return _cores(*_lines(folder / "cpu.max")[:1])


def _version_1(folder):
    """cpu.cfs_quota_us, -1 for no limit, and cpu.cfs_period_us."""
    return _cores(" ".join(line for name in ("quota", "period") for line in _lines(folder / f"cpu.cfs_{name}_us")[:1]))


def _cores(text=""):
    try:
        quota, period = map(int, text.split())
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None
