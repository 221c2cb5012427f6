"""Systems that no test runs on, by stand-ins: a Python without what Windows lacks, and the folders of each system."""

import os
import platform
import re
import signal
import sys
from pathlib import Path

import numba
import pytest

import nbprop
from nbprop import system
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
    ("name_of_system", "variables", "below"),
    [
        ("linux", {}, ".cache/nbprop"),
        ("linux", {"XDG_CACHE_HOME": "named"}, "named/nbprop"),
        ("darwin", {"XDG_CACHE_HOME": "named"}, "Library/Caches/nbprop"),
        ("win32", {}, "AppData/Local/nbprop/cache"),
        ("win32", {"LOCALAPPDATA": "named"}, "named/nbprop/cache"),
    ],
)
def test_each_systems_folder_for_what_can_be_made_again(monkeypatch, tmp_path, name_of_system, variables, below):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setattr(sys, "platform", name_of_system)
    assert cache.cache_root() == tmp_path / below


@pytest.mark.parametrize(
    ("machine", "kind"), [("x86_64", "x86"), ("AMD64", "x86"), ("aarch64", "arm"), ("arm64", "arm"), ("riscv64", "")]
)
def test_processors_that_are_told_apart(monkeypatch, machine, kind):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert system.architecture() == kind


def test_what_a_system_lacks_is_done_without(monkeypatch):
    assert system.c_function("getpid")
    assert not system.c_function("no_such_function")
    assert system.warnings_of_the_end() == [signal.SIGTERM, signal.SIGUSR1]
    monkeypatch.delattr(signal, "SIGUSR1")
    assert system.warnings_of_the_end() == [signal.SIGTERM]
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert system.processors() == 7
    monkeypatch.setattr(sys, "platform", "win32")
    assert system.c_function("getpid") == 0


def test_one_file_asks_which_system_it_is():
    asks = re.compile(
        r"sys\.platform|os\.name\b|platform\.(machine|system)|hasattr\((os|signal)|fcntl|getuid|register_at_fork"
    )
    root = Path(nbprop.__file__).parent
    asking = {
        str(path.relative_to(root)) for path in root.rglob("*.py") if asks.search(path.read_text(encoding="utf-8"))
    }
    assert asking == {"system.py"}
