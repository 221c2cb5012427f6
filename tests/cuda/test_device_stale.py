"""Device kernels of a user's own that change while a process lives."""

import sys
import types

import pytest

from nbprop.cuda.kernels import kernels_of, launches_of

HOST = """
from nbprop.program.kernel import kernel
FACTOR = 2.0
@kernel
def own(y, x, n, size):
    for i in range(n * size):
        y[i] = FACTOR * x[i]
"""
DEVICE = """
from nbprop.cuda.kernels import on_device
def cuda_kernels(cuda):
    @on_device(own, blocks=lambda: 1)
    def on_gpu(y, x, n, size):
        for i in range(n * size):
            y[i] = FACTOR * x[i]
    return (on_gpu,)
"""


@pytest.fixture
def module(monkeypatch):
    """A module of the user's, whose text runs again."""
    found = types.ModuleType("stale_device")
    monkeypatch.setitem(sys.modules, "stale_device", found)
    exec(HOST + DEVICE, found.__dict__)
    return found


def test_kernels_are_made_again_when_their_code_has_changed(module):
    first = kernels_of(module)
    assert kernels_of(module) == first
    assert launches_of(module.own) == list(first)
    module.FACTOR = 3.0
    second = kernels_of(module)
    assert second != first
    assert kernels_of(module) == second
    exec(DEVICE.replace("FACTOR *", "FACTOR +"), module.__dict__)
    assert kernels_of(module) != second
    assert kernels_of(module)[0].function.__code__ != second[0].function.__code__


def test_a_hosts_kernel_defined_again_finds_its_device_kernels(module):
    """With the same code or with other: the device's kernels are made anew for what the name stands for now."""
    for host in (HOST, HOST.replace("FACTOR *", "FACTOR +")):
        before = module.own
        exec(host, module.__dict__)
        assert module.own is not before
        assert launches_of(module.own) == list(kernels_of(module))
