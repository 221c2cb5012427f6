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

DRIVERS = """
import nbprop.cuda
from numba.cuda.cudadrv import driver
for version, count, toolkit in CASES:
    class Driver:
        get_version = staticmethod(lambda: version)
        get_device_count = staticmethod(lambda: count)
    driver.driver, nbprop.cuda._toolkit_version = Driver, lambda: toolkit
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


def test_drivers_are_judged_by_the_toolkit(script):
    """A driver runs what a toolkit of its own or an earlier major version makes; some have no device."""
    pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "nbprop[cuda-gate]"')
    works = [((13, 0), 1, (13, 0)), ((13, 0), 1, (13, 2)), ((13, 1), 1, (12, 9))]
    cases = [*works, ((12, 4), 1, (13, 0)), ((13, 1), 0, (13, 0)), ((13, 0), 1, None)]
    *found, old, no_device, no_toolkit = script(
        DRIVERS.replace("CASES", str(cases)), NUMBA_ENABLE_CUDASIM=0
    ).splitlines()
    assert found == ["None"] * len(works)
    assert "the NVIDIA driver supports CUDA 12.4, but the toolkit that is installed is 13.0; update the driver" in old
    assert no_device.startswith("CUDA found no NVIDIA GPU on this machine")
    assert no_toolkit.startswith("CUDA needs NVRTC and NVVM of a CUDA toolkit, and none was found; install it with")


OTHER_VERSION = """
import importlib.metadata, nbprop.cuda
from numba import cuda
found = importlib.metadata.version
importlib.metadata.version = lambda name: {"numba-cuda": "0.99.7"}.get(name) or found(name)
nbprop.cuda._driver_problem = lambda: None
print(nbprop.cuda.missing())
jit = cuda.jit
cuda.jit = lambda func_or_sig=None, device=False, launch_bounds=None, **options: None
print(nbprop.cuda.missing())
cuda.jit = jit
import cuda.core
del cuda.core.StreamOptions
print(nbprop.cuda.missing())
"""


def test_versions_are_judged_by_what_they_have(script):
    """Another version of numba-cuda works if it has what is asked of it; if not, what it lacks is named."""
    pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "nbprop[cuda-gate]"')
    works, lacks, core = script(OTHER_VERSION, NUMBA_ENABLE_CUDASIM=0).splitlines()
    assert works == "None"
    assert lacks.startswith("numba-cuda 0.99.7 with cuda-core ")
    assert " lacks numba.cuda.jit(forceinline=), numba.cuda.jit(lto=); install it with" in lacks
    assert " lacks cuda.core.StreamOptions; install it with" in core


def test_versions_tell_what_was_found(script):
    """With a GPU or without."""
    pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "nbprop[cuda-gate]"')
    code = "import nbprop.cuda; found = nbprop.cuda.versions(); print(found['numba-cuda'], found['toolkit'])"
    version, toolkit = script(code, NUMBA_ENABLE_CUDASIM=0).split()
    assert version[0].isdigit()
    assert toolkit.startswith("13.")


def test_device_tests_that_are_ignored_say_so(script):
    """Where there is neither a GPU nor the simulator, pytest does not collect tests/cuda, and tells why."""
    import nbprop.cuda

    if nbprop.cuda.available():
        pytest.skip("there is a GPU, or the simulator: they run")
    code = f"import pytest; pytest.main(['-q', '-p', 'no:cacheprovider', '--rootdir={ROOT}', '{ROOT}/tests/cuda'])"
    assert "tests/cuda did not run: CUDA " in script(code, NUMBA_ENABLE_CUDASIM=0)


def test_without_room_or_with_a_lost_device(script):
    """The driver's errors as numba-cuda raises them."""
    pytest.importorskip("numba_cuda", reason='needs numba-cuda: pip install "nbprop[cuda-gate]"')
    full = NO_ROOM.replace("CODE", "2").replace("NAME", "CUDA_ERROR_OUT_OF_MEMORY")
    assert script(full, NUMBA_ENABLE_CUDASIM=0).startswith(
        "MemoryError the device has no room for 3814.7 MiB: 3.0 of its 8192.0 MiB are free; use a smaller batch"
    )
    lost = NO_ROOM.replace("CODE", "719").replace("NAME", "CUDA_ERROR_LAUNCH_FAILED")
    assert script(lost, NUMBA_ENABLE_CUDASIM=0).startswith(
        "DeviceLostError the CUDA device is lost (CUDA_ERROR_LAUNCH_FAILED) with the contents of its memory"
    )


@pytest.mark.parametrize(("path", "words"), [("tests/cuda/on_gpu.py", "tested"), ("benchmarks/gpu.py", "measured")])
def test_the_gpu_targets_say_that_there_is_none(script, path, words):
    """`make test-gpu` and `make bench-gpu` say what was found, that it is no GPU, and fail; as it is with --here."""
    import nbprop.cuda

    if nbprop.cuda.available() and not nbprop.cuda.simulated():
        pytest.skip("there is a GPU")
    file = ROOT / path  # whose folder is where a script's imports come from
    code = f"import sys; sys.argv[1:] = ['--here']; sys.path[0] = {str(file.parent)!r}; "
    code += f"import runpy; runpy.run_path({str(file)!r}, run_name='__main__')"
    first, *_, last = script(code, expect=2, NUMBA_ENABLE_CUDASIM=0).splitlines()
    assert first.split()[0] == "python"
    assert last.startswith(f"Nothing was {words}: CUDA ")
