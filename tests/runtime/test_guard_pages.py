"""No call touches memory beside its arrays: guarded_calls.py makes every call with arrays against forbidden pages."""

import sys

import pytest

from support import run_module


def run(*arguments):
    done = run_module("guarded_calls", *arguments)
    calls = done.stdout.splitlines()
    return done.returncode, calls, "\n".join([*calls[-1:], done.stderr])


@pytest.mark.skipif(sys.platform == "win32", reason="needs mmap and mprotect")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_call_stays_inside_its_arrays(dtype):
    code, calls, ended = run(dtype)
    assert code == 0, ended
    assert calls[-1] == "all done"
    assert len(calls) > 1000


@pytest.mark.skipif(sys.platform == "win32", reason="needs mmap and mprotect")
@pytest.mark.parametrize("fault", ["before", "behind", "between"])
def test_a_kernel_that_reads_beside_its_array_is_caught(fault):
    code, calls, ended = run("float64", fault)
    assert code < 0, ended
    assert calls[-1].startswith(fault)
