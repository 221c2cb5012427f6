"""The GPU's table, measured at tiny sizes: in the simulator the figures mean nothing, but every line runs."""

import sys

import pytest

import nbprop.cuda
from support import ROOT


def test_the_table_can_be_measured(monkeypatch):
    if not nbprop.cuda.simulated():
        pytest.skip("make bench-gpu measures it on a GPU")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    rows = gpu.measure(simulated=True)
    units = ["us", *["million/s"] * 3, "GB/s", "GB/s", "GB/s", "million/s", "us"]
    assert [unit for _, _, unit, _, _ in rows] == units
    assert all(figure > 0 for _, figure, *_ in rows)
    sys.modules.pop("gpu")


def test_the_limits_can_be_measured(monkeypatch):
    """From both sides; afterwards the limits are what they were."""
    if not nbprop.cuda.simulated():
        pytest.skip("smoke.py measures them on a GPU")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_limits

    before = {name: getattr(*place) for name, place in gpu_limits._WHERE.items()}
    rows = gpu_limits.measure(simulated=True)
    ways = [("one block", "launches"), ("fused", "launches"), ("fused",), ("fused",), ("nbprop",)]
    assert [tuple(found) for *_, found in rows] == ways
    assert {name: getattr(*place) for name, place in gpu_limits._WHERE.items()} == before
    assert [value for _, value, _, _ in rows[:4]] == [
        before[k] for k in ("one_block", "fused_from", *["fused_blocks"] * 2)
    ]
    for name in ("gpu_limits", "gpu"):
        sys.modules.pop(name)
