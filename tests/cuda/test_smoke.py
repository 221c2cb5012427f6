"""The smoke test's steps (smoke.py) at small sizes, its stored references, and how it runs them and its phases."""

import sys
import time

import here
import numpy as np
import pytest
import smoke

import nbprop.cuda

pytestmark = pytest.mark.skipif(not nbprop.cuda.simulated(), reason="on a GPU smoke.py runs them itself")


@pytest.mark.parametrize("name", [name for name in smoke.STEPS if name not in ("torch and CuPy arrays", "cuBLASLt")])
def test_a_step_passes(name):
    assert smoke.one_step(name) == 0


@pytest.mark.parametrize("name", ["torch and CuPy arrays", "cuBLASLt"])
def test_a_step_says_what_it_lacks(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert smoke.one_step(name) == smoke.NOT_INSTALLED


def test_steps_fail_on_wrong_numbers(monkeypatch):
    """A reference that is off by a ten-thousandth is noticed."""
    reference = smoke.reference
    monkeypatch.setattr(smoke, "reference", lambda name: tuple(1.0001 * a for a in reference(name)))
    for name in ("one-block gradient", "fused and not"):
        with pytest.raises(AssertionError, match="relative error"):
            smoke.one_step(name)


def test_references_are_those_of_the_sizes():
    with np.load(smoke.REFERENCES) as stored:
        for name in ("one block", "fused"):
            loss, gradient = smoke.computed(name, smoke.SIZES)
            np.testing.assert_allclose(stored[f"{name}, loss"], loss, rtol=1e-12)
            np.testing.assert_allclose(stored[f"{name}, gradient"], gradient, rtol=1e-9, atol=1e-15)


def test_a_step_in_its_own_process(monkeypatch):
    """The traceback of one that fails; one that has no time left."""
    monkeypatch.setattr(here, "command", lambda *given: [sys.executable, "-c", "raise SystemExit('a traceback')"])
    result = smoke.run_step("copies", 60)
    assert (result["status"], result["output"].strip()) == ("FAIL", "a traceback")
    monkeypatch.setattr(here, "command", lambda *given: [sys.executable, "-c", "import time; time.sleep(60)"])
    assert smoke.run_step("copies", 0.1)["output"].startswith("still running")


def test_phases_run_while_there_is_time():
    def fail(seconds):
        raise OSError("no such tool")

    later = [("first", lambda seconds: {"left": seconds > 30}), ("second", fail), ("third", lambda seconds: 3)]
    found = {}
    assert list(smoke.run_phases(found, later, time.monotonic() + 60)) == ["first", "second", "third"]
    assert found == {"first": {"left": True}, "second": "failed: OSError: no such tool", "third": 3}
    assert list(smoke.run_phases(found, later, time.monotonic() + 5)) == ["first", "second", "third"]
    assert found["third"] == "not run: the minutes were spent"


def test_shards_hold_every_test_once():
    import on_gpu

    names = [f"test_{k}" for k in range(7)]
    parts = on_gpu.deal(names, 3)
    assert sorted(name for part in parts for name in part) == names
    assert on_gpu.deal(names[:2], 5) == [["test_0"], ["test_1"]]


def test_outcomes_are_read(tmp_path):
    import on_gpu

    cases = '<testcase classname="a" name="{}">{}</testcase>'
    text = cases.format("good", "") + cases.format("bad", "<failure>why</failure>")
    text += cases.format("worse", '<error message="gone"/>') + cases.format("left", "<skipped/>")
    (tmp_path / "report.xml").write_text(f"<testsuites><testsuite>{text}</testsuite></testsuites>", encoding="utf-8")
    found, why = on_gpu.outcomes(tmp_path / "report.xml")
    assert found == {"a::good": "passed", "a::bad": "failed", "a::worse": "failed", "a::left": "skipped"}
    assert why["a::bad"] == "why"
    assert why["a::worse"] == "gone"
