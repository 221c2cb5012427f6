"""nbprop on an NVIDIA GPU. Importing needs no CUDA; the first use says what is missing, if anything is.

Device arrays: `empty`, `zeros`, `to_device`, `Array`. Plans: `nbprop.plan(..., target="cuda")`. See docs/cuda.md.
"""

import importlib
import importlib.metadata
import importlib.util

from numba import config

_INSTALL = 'install it with: pip install "nbprop[cuda]"'
_NUMBA_CUDA, _TOOLKIT = (0, 30), (13, 0)

# name -> module that defines it; imported at first use, since they need numba-cuda.
_NAMES = {
    "Array": "memory",
    "DeviceLostError": "toolkit",
    "as_numba": "toolkit",
    "empty": "memory",
    "zeros": "memory",
    "to_device": "memory",
    "is_device_array": "memory",
    "forward_block": "inside",
    "forward_thread": "inside",
    "optimizer_state": "optimizers",
    "trace_size": "inside",
    "vjp_block": "inside",
    "vjp_thread": "inside",
    "TrainingStep": "training",
    "use_stream": "memory",
    "new_stream": "toolkit",
    "synchronize": "toolkit",
}

__all__ = ["available", "missing", "simulated", *sorted(_NAMES)]


def missing():
    """What keeps CUDA from running here, as one sentence with the remedy; None when nothing does."""
    if simulated():
        return None
    if importlib.util.find_spec("numba_cuda") is None:
        return f"CUDA needs the package numba-cuda, which is not installed; {_INSTALL}"
    version = importlib.metadata.version("numba-cuda")
    if tuple(int(part) for part in version.split(".")[:2]) != _NUMBA_CUDA:
        return f"nbprop is made for numba-cuda 0.30, and {version} is installed; {_INSTALL}"
    return _driver_problem()


def _driver_problem():
    """What is wrong with the driver or the device, or None."""
    from numba.cuda.cudadrv import driver

    try:
        found = driver.driver.get_version()
        count = driver.driver.get_device_count()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return (
            f"CUDA found no NVIDIA GPU with a driver on this machine ({reason}); "
            "install NVIDIA's driver, or leave target out to run on the CPU"
        )
    if tuple(found) < _TOOLKIT:
        return (
            f"the NVIDIA driver supports CUDA {found[0]}.{found[1]}, but nbprop's toolkit is "
            f"{_TOOLKIT[0]}.{_TOOLKIT[1]}; update the driver to 580 or newer"
        )
    return None if count else "CUDA found no NVIDIA GPU on this machine; leave target out to run on the CPU"


def simulated():
    """Whether plans "on the device" run in Numba's simulator: NUMBA_ENABLE_CUDASIM=1 was set."""
    return bool(getattr(config, "ENABLE_CUDASIM", False))


def available():
    """Whether plans can run on a GPU here; `missing()` says why not."""
    return missing() is None


def require():
    """Raise RuntimeError with what is missing, if anything is."""
    problem = missing()
    if problem is not None:
        raise RuntimeError(problem)


def __getattr__(name):
    if name not in _NAMES:
        raise AttributeError(f"module 'nbprop.cuda' has no attribute {name!r}")
    if not simulated() and importlib.util.find_spec("numba_cuda") is None:
        require()
    return getattr(importlib.import_module(f"nbprop.cuda.{_NAMES[name]}"), name)
