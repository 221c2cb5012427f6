"""Items of an iterable, of which a thread takes the next one while the caller works on one."""

import queue
import threading

_WAIT = 0.08  # seconds between two looks at whether the other side has ended; a wait that Ctrl-C is heard in


class _End:
    """What the thread sends last: how its iterable ended."""

    def __init__(self, error=None):
        self.error = error


def read_ahead(items):
    """Yield the items of an iterable, which another thread iterates over, one item ahead.

    An exception of the iterable is raised here, in the place of the item that it did not give. Closing this generator
    ends the thread, after the item that it is reading; an interrupt during that wait leaves it behind.
    """
    found: queue.SimpleQueue = queue.SimpleQueue()
    stop, wanted = threading.Event(), threading.Semaphore(1)
    thread = threading.Thread(target=_read, args=(items, found, stop, wanted), name="read ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = _next(found)
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            wanted.release()
            yield item
    finally:
        stop.set()
        while thread.is_alive():
            thread.join(_WAIT)


def _next(found):
    """The next item. Looks up now and then: a signal that another thread was given does not end a wait."""
    while True:
        try:
            return found.get(timeout=_WAIT)
        except queue.Empty:
            pass


def _read(items, found, stop, wanted):
    try:
        iterator = iter(items)
        try:
            while _allowed(stop, wanted):
                try:
                    item = next(iterator)
                except StopIteration:
                    found.put(_End())
                    return
                found.put(item)
                del item  # the caller's alone now: it may be large
        finally:
            if hasattr(iterator, "close"):
                iterator.close()
    except BaseException as error:  # an exception of any kind is the caller's
        found.put(_End(error))


def _allowed(stop, wanted):
    """Wait until an item is wanted; False if none will be."""
    while not stop.is_set():
        if wanted.acquire(timeout=_WAIT):
            return not stop.is_set()
    return False
