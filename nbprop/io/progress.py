"""A progress bar, if tqdm is installed."""

import contextlib
import functools
import sys


class _NoBar:
    def update(self, steps):
        """Nothing to show."""

    def set_postfix(self, **figures):
        """Nothing to show."""


@functools.cache
def _tqdm():
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm


def check_progress(function, progress):
    """Refuse what `progress_bar` does not accept, before any work."""
    if progress is not None and not isinstance(progress, bool):
        raise TypeError(f"{function}: progress must be True, False or None, got {type(progress).__name__}")
    if progress and _tqdm() is None:
        raise ImportError(f"{function}: progress=True needs tqdm; install it with: pip install tqdm")


@contextlib.contextmanager
def progress_bar(function, progress, total, begun, unit):
    """A progress bar, or an object with the same methods that shows nothing.

    progress: True, False, or None: when tqdm is installed and the output is a terminal. total: steps in all, or None.
    """
    tqdm = _tqdm() if progress or (progress is None and sys.stderr.isatty()) else None
    if progress and tqdm is None:
        raise ImportError(f"{function}: progress=True needs tqdm; install it with: pip install tqdm")
    if tqdm is None:
        yield _NoBar()
        return
    with tqdm(total=total, initial=begun, unit=unit, dynamic_ncols=True) as bar:
        yield bar
