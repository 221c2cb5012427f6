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
    units = ["us", "million/s", "GB/s", "GB/s", "GB/s", "million/s", "us"]
    assert [unit for _, _, unit, _, _ in rows] == units
    assert all(figure > 0 for _, figure, *_ in rows)
    sys.modules.pop("gpu")
