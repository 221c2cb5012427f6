"""Report what is being compiled: the first run takes seconds, during which a program would seem to hang."""

import contextlib
import time

from numba.core import event

from nbprop.compiler.cache import cache_root


class _Reporter(event.Listener):
    """Writes the name of each function when its compilation begins; counts functions and seconds."""

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
def reporting(write):
    """Within this context, report through ``write(text)`` what is compiled; silent if all code comes from the disk."""
    reporter = _Reporter(write)
    event.register("numba:compile", reporter)
    try:
        yield reporter
    finally:
        event.unregister("numba:compile", reporter)
        if reporter.functions:
            write(f"\n  {reporter.functions} functions in {reporter.seconds:.0f} s\n")
