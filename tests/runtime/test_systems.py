"""Systems that no test runs on, by stand-ins: a Python without what Windows lacks, and the folders of each system."""

import sys
from pathlib import Path

import numba
import pytest

from nbprop.compiler import cache

# Libraries are imported first: only nbprop sees the other system.
WINDOWS = """
import os, signal, sys, time
import numba, numpy as np, safetensors.numpy, scipy.optimize

sys.modules["fcntl"] = None
for name in ("sched_getaffinity", "register_at_fork", "getuid", "fork"):
    delattr(os, name)
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGALRM"):
    delattr(signal, name)
del time.CLOCK_THREAD_CPUTIME_ID
sys.platform = "win32"

import nbprop
from nbprop.compiler.cache import cache_root
from nbprop.runtime import cores, pool

nbprop._import_all()
net = nbprop.network((3,), nbprop.dense(4, activation="tanh"), nbprop.dense(2))
params = np.linspace(-1.0, 1.0, net.n_params)
nbprop.save("file.safetensors", net, params)
nbprop.save("file.safetensors", net, params)  # over the first
assert np.array_equal(nbprop.load("file.safetensors")[1], params)
assert sorted(name for name in os.listdir() if "file" in name) == ["file.safetensors"]
acquire, release, *others = pool._c_functions()
assert acquire and release and others == [0, 0, 0], others
assert cores.processor_share() >= 1
numba.config.CACHE_DIR = ""
print(cache_root())
"""


def test_nothing_of_posix_is_needed(script, tmp_path):
    told = script(WINDOWS, timeout=600, LOCALAPPDATA=tmp_path / "local")
    assert Path(told.strip()) == tmp_path / "local" / "nbprop" / "cache"


@pytest.mark.parametrize(
    ("system", "variables", "below"),
    [
        ("linux", {}, ".cache/nbprop"),
        ("linux", {"XDG_CACHE_HOME": "named"}, "named/nbprop"),
        ("darwin", {"XDG_CACHE_HOME": "named"}, "Library/Caches/nbprop"),
        ("win32", {}, "AppData/Local/nbprop/cache"),
        ("win32", {"LOCALAPPDATA": "named"}, "named/nbprop/cache"),
    ],
)
def test_each_systems_folder_for_what_can_be_made_again(monkeypatch, tmp_path, system, variables, below):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setattr(sys, "platform", system)
    assert cache.cache_root() == tmp_path / below
