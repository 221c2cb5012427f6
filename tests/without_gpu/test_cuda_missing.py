"""A machine without CUDA: nothing fails at import, and one sentence says what is missing and how to install it."""

import pytest

from support import ROOT

NO_PACKAGE = """
import sys
import nbprop, nbprop.cuda
assert "numba.cuda" not in sys.modules
nbprop.cuda.importlib.util.find_spec = lambda name: None
for use in (lambda: nbprop.plan(nbprop.network((3,), nbprop.dense(2)), target="cuda"), lambda: nbprop.cuda.to_device):
    try:
        use()
    except RuntimeError as error:
        print(error)
print(nbprop.cuda.available())
"""

NO_DRIVER = """
import nbprop, nbprop.cuda
try:
    nbprop.plan(nbprop.network((3,), nbprop.dense(2)), target="cuda")
except RuntimeError as error:
    print(error)
"""

OLD_DRIVER = """
import nbprop.cuda
from numba.cuda.cudadrv import driver
class Driver:
    get_version = staticmethod(lambda: VERSION)
    get_device_count = staticmethod(lambda: COUNT)
driver.driver = Driver
print(nbprop.cuda.missing())
"""

NO_ROOM = """
import nbprop.cuda
from nbprop.cuda import toolkit
from numba.cuda.cudadrv.driver import CudaAPIError
class Context:
    get_memory_info = staticmethod(lambda: (3 << 20, 8 << 30))
def fail(*arguments):
    raise CudaAPIError(CODE, "Call to cuMemAlloc results in NAME")
toolkit._cuda.device_array = fail
toolkit._cuda.current_context = lambda: Context
try:
    nbprop.cuda.empty(10**9)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_without_the_package(script):
    sentence = 'CUDA needs the package numba-cuda, which is not installed; install it with: pip install "nbprop[cuda]"'
    assert script(NO_PACKAGE, NUMBA_ENABLE_CUDASIM=0).splitlines() == [sentence, sentence, "False"]


def test_without_a_driver(script):
    pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "nbprop[cuda-gate]"')
    import nbprop.cuda

    if nbprop.cuda.available():
        pytest.skip("there is a GPU")
    (line,) = script(NO_DRIVER, NUMBA_ENABLE_CUDASIM=0).splitlines()
    assert line.startswith("CUDA found no NVIDIA GPU with a driver on this machine (")
    assert line.endswith("install NVIDIA's driver, or leave target out to run on the CPU")


def test_with_an_old_driver_or_no_device(script):
    pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "nbprop[cuda-gate]"')
    old = script(OLD_DRIVER.replace("VERSION", "(12, 4)").replace("COUNT", "1"), NUMBA_ENABLE_CUDASIM=0)
    assert "supports CUDA 12.4, but nbprop's toolkit is 13.0; update the driver to 580 or newer" in old
    none = script(OLD_DRIVER.replace("VERSION", "(13, 1)").replace("COUNT", "0"), NUMBA_ENABLE_CUDASIM=0)
    assert none.startswith("CUDA found no NVIDIA GPU on this machine")


def test_without_room_or_with_a_lost_device(script):
    """The driver's errors as numba-cuda raises them."""
    pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "nbprop[cuda-gate]"')
    full = NO_ROOM.replace("CODE", "2").replace("NAME", "CUDA_ERROR_OUT_OF_MEMORY")
    assert script(full, NUMBA_ENABLE_CUDASIM=0).startswith(
        "MemoryError the device has no room for 3814.7 MiB: 3.0 of its 8192.0 MiB are free; use a smaller batch"
    )
    lost = NO_ROOM.replace("CODE", "719").replace("NAME", "CUDA_ERROR_LAUNCH_FAILED")
    assert script(lost, NUMBA_ENABLE_CUDASIM=0).startswith(
        "DeviceLostError the CUDA device is lost (CUDA_ERROR_LAUNCH_FAILED): what lay in its memory is gone"
    )


@pytest.mark.parametrize(("path", "words"), [("tests/cuda/on_gpu.py", "tested"), ("benchmarks/gpu.py", "measured")])
def test_the_gpu_targets_say_that_there_is_none(script, path, words):
    """`make test-gpu` and `make bench-gpu` do nothing without a GPU, say why, and fail."""
    import nbprop.cuda

    if nbprop.cuda.available() and not nbprop.cuda.simulated():
        pytest.skip("there is a GPU")
    output = script((ROOT / path).read_text(encoding="utf-8"), expect=2, NUMBA_ENABLE_CUDASIM=0)
    assert output.startswith(f"Nothing was {words}: CUDA ")
