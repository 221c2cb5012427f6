"""Say what happens while code is compiled: seconds, once on a machine, that would look like a program that hangs."""

import contextlib
import time

from numba.core import event

from nbprop.compiler.cache import cache_root


class _Teller(event.Listener):
    """Writes the name of each function that is compiled, as it begins, with the seconds it has all taken so far."""

    def __init__(self, write):
        self._write, self._depth = write, 0
        self.functions, self.seconds, self._began = 0, 0.0, 0.0

    def on_start(self, event):
        self._depth += 1
        if self._depth > 1:
            return
        self._began = time.perf_counter()
        if self.functions == 0:
            self._write(f"compiling for this machine, the first time only; kept in {cache_root()}:\n ")
        dispatcher = event.data["dispatcher"]
        label = getattr(dispatcher._cache, "_label", dispatcher.py_func.__name__)
        self._write(f" {label.rsplit('.', 1)[-1].removesuffix('_entry')}")
        self.functions += 1

    def on_end(self, event):
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._began


@contextlib.contextmanager
def telling(write):
    """While this lasts, tell through ``write(text)`` what is compiled; silent when everything comes from the disk."""
    teller = _Teller(write)
    event.register("numba:compile", teller)
    try:
        yield teller
    finally:
        event.unregister("numba:compile", teller)
        if teller.functions:
            write(f"\n  {teller.functions} functions in {teller.seconds:.0f} s\n")
