"""nbprop on an NVIDIA GPU. Importing needs no CUDA; the first use says what is missing, if anything is.

Device arrays: `empty`, `zeros`, `to_device`, `Array`. Plans: `nbprop.plan(..., target="cuda")`. See docs/cuda.md.
"""

import importlib
import importlib.metadata
import importlib.util
import inspect

from numba import config

_INSTALL = 'install it with: pip install "nbprop[cuda]"'

# What nbprop asks of numba-cuda and cuda.core: the options of cuda.jit, and names by module.
_JIT_OPTIONS = ("device", "forceinline", "launch_bounds", "lto")
_NEEDED = {
    "numba.cuda": ("as_cuda_array", "device_array", "external_stream", "from_cuda_array_interface"),
    "numba.cuda.cudadrv.driver": ("GraphBuilder", "_to_core_stream", "binding"),
    "cuda.core": ("Device", "LEGACY_DEFAULT_STREAM", "StreamOptions"),
}
# Distributions whose versions tell what is installed.
_PACKAGES = ("numba-cuda", "numba", "numpy", "cuda-core", "cuda-bindings", "nvmath-python", "nccl4py", "torch", "cupy")

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
    "use_device_of_rank": "transports",
}

__all__ = ["available", "missing", "simulated", "versions", *sorted(_NAMES)]


def missing():
    """Why CUDA cannot run here, as one sentence with the remedy; None if it can."""
    if simulated():
        return None
    if importlib.util.find_spec("numba_cuda") is None:
        return f"CUDA needs the package numba-cuda, which is not installed; {_INSTALL}"
    lacking = _lacking()
    if lacking:
        found = _installed("numba-cuda"), _installed("cuda-core")
        return f"numba-cuda {found[0]} with cuda-core {found[1]} lacks {', '.join(lacking)}; {_INSTALL}"
    return _driver_problem()


def _installed(package):
    """A distribution's version; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _lacking():
    """What nbprop asks of numba-cuda and cuda.core and these versions do not have."""
    found = []
    for module, names in _NEEDED.items():
        try:
            loaded = importlib.import_module(module)
        except ImportError as error:
            found.append(f"{module} ({error})")
            continue
        found += [f"{module}.{name}" for name in names if not hasattr(loaded, name)]
        if module == "numba.cuda":
            options = inspect.signature(loaded.jit).parameters
            found += [f"{module}.jit({name}=)" for name in _JIT_OPTIONS if name not in options]
    return found


def _toolkit_version():
    """(major, minor) of the CUDA toolkit that compiles kernels; None where there is none."""
    try:
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
    except Exception:
        return None
    return (int(major), int(minor)) if int(status) == 0 else None


def versions():
    """What was found here, by name: packages, the CUDA toolkit, the driver and the device; None for what is not there.

    For reports and stored results; asks for no more than is installed, and works without a GPU.
    """
    found = {package: _installed(package) for package in _PACKAGES}
    found |= dict.fromkeys(("toolkit", "driver", "device"))
    if simulated() or found["numba-cuda"] is None:
        return found
    toolkit = _toolkit_version()
    found["toolkit"] = toolkit and "{}.{}".format(*toolkit)
    try:
        from numba import cuda
        from numba.cuda.cudadrv import driver

        found["driver"] = "{}.{}".format(*driver.driver.get_version())
        device = cuda.get_current_device()
        name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
        found["device"] = f"{name}, compute capability {'.'.join(map(str, device.compute_capability))}"
    except Exception as error:  # no driver or no device: what was found so far
        found["problem"] = " ".join(str(error).split()) or type(error).__name__
    return found


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
    toolkit = _toolkit_version()
    if toolkit is None:
        return f"CUDA needs NVRTC and NVVM of a CUDA toolkit, and none was found; {_INSTALL}"
    if found[0] < toolkit[0]:  # a driver runs what any toolkit of its own or an earlier major version makes
        return (
            f"the NVIDIA driver supports CUDA {found[0]}.{found[1]}, but the toolkit that is installed is "
            f"{toolkit[0]}.{toolkit[1]}; update the driver, or install a toolkit of CUDA {found[0]}"
        )
    return None if count else "CUDA found no NVIDIA GPU on this machine; leave target out to run on the CPU"


def simulated():
    """Whether plans "on the device" run in Numba's simulator: NUMBA_ENABLE_CUDASIM=1 was set."""
    return bool(getattr(config, "ENABLE_CUDASIM", False))


def available():
    """Whether plans can run on a GPU here; `missing()` says why not."""
    return missing() is None


def require():
    """Raise RuntimeError if CUDA cannot run here, with the reason."""
    problem = missing()
    if problem is not None:
        raise RuntimeError(problem)


def __getattr__(name):
    if name not in _NAMES:
        raise AttributeError(f"module 'nbprop.cuda' has no attribute {name!r}")
    if not simulated() and importlib.util.find_spec("numba_cuda") is None:
        require()
    return getattr(importlib.import_module(f"nbprop.cuda.{_NAMES[name]}"), name)
