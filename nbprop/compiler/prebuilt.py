"""Machine code that ships with the package: kernels compiled for a family of processors, for those who have no cache.

A pack is one file of `nbprop/prebuilt/`: a zip of the very files that the disk cache writes, compiled for a generic
target such as x86-64-v3, and a manifest that says what it takes to use them. Sizes of scratch follow from the width of
the vectors, so a pack is used only where the processor has all of its instructions *and* the vectors are as wide as
those that this process would compile for; then the bits are those of native code, and both may meet in one process.
`nbprop cache --pack` makes packs.
"""

import contextlib
import functools
import io
import json
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
import numba

from nbprop.compiler.simd import VECTOR_BYTES, config, instruction_sets

FOLDER = Path(__file__).parent.parent / "prebuilt"
MANIFEST = "manifest.json"

# name: (instruction sets of the target, switches that only tune). The names are LLVM's, the sets those of the x86-64
# psABI, table 3.1; "neon" is what every 64-bit ARM processor has. LLVM would halve v4's vectors to save power.
_V2 = ["sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16", "sahf"]
_V3 = [*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"]
_V4 = [*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]
TARGETS = {
    "x86-64-v4": (_V4, ["-prefer-256-bit"]),
    "x86-64-v3": (_V3, []),
    "generic": (["neon", "fp-armv8"], []),
}


def versions():
    """What machine code, pickled by Numba, depends on beside its source and its target."""
    return [numba.__version__, llvmlite.__version__, "{}.{}".format(*sys.version_info)]


def features(target):
    """A target's instruction sets as NUMBA_CPU_FEATURES takes them."""
    needed, tuning = TARGETS[target]
    return ",".join([f"+{name}" for name in needed] + tuning)


def file_name(target):
    """The name of a pack's file: one for each target and version of Python."""
    return f"{target}-cp{sys.version_info[0]}{sys.version_info[1]}.zip"


class Pack:
    """The files of one target, by their key.

    Held in memory: an open file's position would be shared with the children that this process forks.
    """

    def __init__(self, path):
        self._zip = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
        self.manifest = json.loads(self._zip.read(MANIFEST))
        self.magic = tuple(self.manifest["magic"])
        self._names = set(self._zip.namelist())

    def read(self, key):
        """The sealed content for a key, or None."""
        name = key.hex()
        with contextlib.suppress(zipfile.BadZipFile, zlib.error):  # damaged: as if it were not there
            return self._zip.read(name) if name in self._names else None
        return None


def usable(manifest, vector_bytes, processor):
    """Whether a pack's code is right in this process, on a processor that has the named instruction sets."""
    return (
        manifest["versions"] == versions()
        and manifest["vector_bytes"] == vector_bytes
        and manifest["magic"][0] == llvm.get_process_triple()
        and set(manifest["needs"]) <= processor
    )


@functools.cache
def pack():
    """The pack for this process, or None: there is none in a clone, nor for a processor that the user has named."""
    if config.CPU_NAME or config.CPU_FEATURES is not None or not FOLDER.is_dir():
        return None
    for target in TARGETS:
        path = FOLDER / file_name(target)
        if path.is_file():
            try:
                found = Pack(path)
                if usable(found.manifest, VECTOR_BYTES, instruction_sets()):
                    return found
            except (OSError, zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError) as error:
                warnings.warn(
                    f"nbprop: the prebuilt kernels in {path} cannot be read ({error}), so kernels are compiled; "
                    "install nbprop again",
                    RuntimeWarning,
                    stacklevel=2,
                )
    return None
