"""Python's garbage collector, paused while thousands of objects are made that all stay."""

import contextlib
import gc


@contextlib.contextmanager
def collector_paused():
    """No collection of garbage within: for what makes many objects, and no cycles among those that it drops.

    Collections come with the number of objects made, and each looks at all that live: they took half of the time of
    lowering a thousand layers, or of reading them from a file. Where the caller has paused collections, they stay so.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
