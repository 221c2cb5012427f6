"""Which kernels a library chose for this processor, as reported by the library in the process that is timed."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path


def kernels(library: str) -> str:
    """One line on the kernels that compute a contender's products."""
    if library == "torch":
        return _torch()
    if library.startswith("jax"):
        return _jax()
    if library in ("blas", "sklearn", "lbfgsb", "scipy-differences"):
        return _openblas()
    return _numba()


def _numba() -> str:
    """The processor that LLVM compiles for; NumPy's and SciPy's BLAS is not involved."""
    import llvmlite.binding as llvm

    widest = next((name for name in ("avx512f", "avx2", "neon") if llvm.get_host_cpu_features().get(name)), "scalar")
    return f"LLVM for {llvm.get_host_cpu_name()}, {widest}"


def loaded_openblas() -> list[str]:
    """Paths of the OpenBLAS libraries that NumPy and SciPy each bring along."""
    import numpy
    import scipy.linalg.blas  # loads it

    folders = []
    for package in (numpy, scipy):
        root = Path(package.__file__).parent
        folders += [root.parent / f"{root.name}.libs", root / ".dylibs", root / ".libs"]
    return sorted(str(path) for folder in folders if folder.is_dir() for path in folder.glob("*openblas*"))


def _openblas() -> str:
    found = []
    for path in loaded_openblas():
        told = [_ask(path, question) for question in ("get_corename", "get_config")]
        if told[0]:
            version = re.search(r"OpenBLAS ([\d.]+)", told[1] or "")
            owner = next(part.partition(".")[0] for part in Path(path).parts if re.match(r"(numpy|scipy)\b", part))
            found.append(f"{owner}: {told[0]} of OpenBLAS {version.group(1) if version else '?'}")
    return ", ".join(found) or "no OpenBLAS of NumPy or SciPy that reports its kernels"


def _ask(path: str, question: str) -> str | None:
    """The answer of one of OpenBLAS's functions that return text, under any of the names that builds give it."""
    handle = ctypes.CDLL(path)
    for prefix in ("", "scipy_"):
        for suffix in ("", "64_", "_64"):
            function = getattr(handle, f"{prefix}openblas_{question}{suffix}", None)
            if function is not None:
                function.restype = ctypes.c_char_p
                return function().decode()
    return None


def _torch() -> str:
    """What PyTorch was built with, and the vector instructions that its own kernels use."""
    import torch

    told = [line.strip(" -") for line in torch.__config__.show().splitlines()]
    wanted = r"CPU capability|Math Kernel Library|MKL-DNN|oneDNN|OpenBLAS"
    lines = [re.sub(r"\s*\((Git Hash|for Intel).*", "", line) for line in told if re.search(wanted, line)]
    return "; ".join(line for line in lines if not line.startswith("Build settings"))


def _jax() -> str:
    """XLA compiles for the processor that it finds, but does not report it."""
    import jaxlib

    return f"XLA of jaxlib {jaxlib.__version__}, for the processor it finds"
