"""What differs between operating systems and processors, and nothing else: each difference is decided here.

Linux is what tests run on. For macOS, Windows and other processors they take away, or replace, what this file looks at
(tests/runtime/test_systems.py).
"""

import ctypes
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# -- processors ----------------------------------------------------------------------------------------------

_ARCHITECTURES = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}


def architecture() -> str:
    """The kind of processor, for instructions that only one has: "x86", "arm" (both of 64 bits) or ""."""
    return _ARCHITECTURES.get(platform.machine().lower(), "")


def processors() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- processes -----------------------------------------------------------------------------------------------


def in_forked_children(function: Callable[[], None]) -> None:
    """Have each child of a fork call `function` first; without fork there are none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


def warnings_of_the_end() -> list[int]:
    """The signals by which a scheduler announces that a job's time is over."""
    return [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]


def c_function(name: str) -> int:
    """The address of a function of the C library; 0 where it has none of that name, or cannot be asked."""
    if sys.platform == "win32":
        return 0
    found = getattr(ctypes.CDLL(None), name, None)
    return ctypes.cast(found, ctypes.c_void_p).value or 0 if found else 0


def processor_time_clock() -> int | None:
    """The number of the clock of a thread's processor time, for clock_gettime."""
    return getattr(time, "CLOCK_THREAD_CPUTIME_ID", None)


# -- files ---------------------------------------------------------------------------------------------------


def user_id() -> int | None:
    """The user's number; None where files have no owners."""
    return os.getuid() if hasattr(os, "getuid") else None


def cache_folder() -> Path:
    """nbprop's folder for what can be made again. Raises RuntimeError if the user has no home directory."""
    variable = {"win32": "LOCALAPPDATA", "darwin": ""}.get(sys.platform, "XDG_CACHE_HOME")
    if variable and os.environ.get(variable):
        return Path(os.environ[variable]) / "nbprop" / ("cache" if sys.platform == "win32" else "")
    below = {"win32": "AppData/Local/nbprop/cache", "darwin": "Library/Caches/nbprop"}
    return Path.home() / below.get(sys.platform, ".cache/nbprop")


LOCKS = fcntl is not None  # whether a folder can be locked
FOLDERS_OPEN = os.name == "posix"  # whether a folder can be opened, to have its entries on the disk


def lock(descriptor: int, wait: bool) -> None:
    """Lock an open file or folder until it is closed. Raises OSError where that fails, or another has locked it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
