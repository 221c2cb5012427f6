"""What compiles device code without a GPU: skipped where it is not installed, and in the simulator."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from numba import config


@pytest.fixture(scope="session")
def ptxas():
    """The assembler, of the wheel or of an installed toolkit."""
    pytest.importorskip("numba_cuda", reason='the compile gate needs numba-cuda: pip install "nbprop[cuda-gate]"')
    if config.ENABLE_CUDASIM:
        pytest.skip("the simulator compiles nothing")
    import nvidia

    found = [path for folder in nvidia.__path__ for path in Path(folder).glob("*/bin/ptxas")]
    found += [path for path in (shutil.which("ptxas"),) if path]
    if not found:
        pytest.skip('the compile gate needs ptxas: pip install "nbprop[cuda-gate]"')
    return str(found[0])


@pytest.fixture
def no_device(monkeypatch):
    """Let kernels that call compiled functions compile without a GPU."""
    pytest.importorskip("numba_cuda", reason='the compile gate needs numba-cuda: pip install "nbprop[cuda-gate]"')
    if config.ENABLE_CUDASIM:
        pytest.skip("the simulator compiles nothing")
    from numba.cuda import dispatcher

    monkeypatch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=(8, 0)))


@pytest.fixture
def nvjitlink():
    """What links LTO-IR; numba-cuda takes it for kernels of a user's own where it is installed."""
    pytest.importorskip("numba_cuda", reason='the compile gate needs numba-cuda: pip install "nbprop[cuda-gate]"')
    from numba.cuda.cudadrv import driver

    if config.ENABLE_CUDASIM or not driver._have_nvjitlink():
        pytest.skip('this part of the compile gate needs nvJitLink: pip install "nbprop[cuda-gate]"')
    from cuda.bindings import nvjitlink

    return nvjitlink
