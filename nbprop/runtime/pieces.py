"""Long compiled work in pieces: Python is back at least every fifth of a second, so that Ctrl-C is heard.

A piece is a compiled call that does up to so many units of work and leaves in its arrays how far it has come, so that
whatever happens between two pieces, what was done stays done and can go on. A unit, such as one gradient, is not split.
"""

import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

# Seconds that a piece should take: well below 0.2, since the next one may be slower.
_PACE = 0.08
_MOST = 1 << 20


class Pace:
    """How many units the next piece should do, from how long the last one took."""

    def __init__(self):
        self.units, self._begun = 1, 0.0

    def begin(self):
        """A piece begins; how many units it should do."""
        self._begun = time.perf_counter()
        return self.units

    def end(self, done):
        """It has done so many. Growth is bounded: the first units may be quicker than those that follow."""
        seconds = max(time.perf_counter() - self._begun, 1e-9)
        self.units = max(1, min(_MOST, 4 * self.units, int(_PACE * done / seconds)))


def in_threads(work, ranges):
    """Call work(first, last, stopped) for each range, each in a thread where there are several.

    `work` looks at stopped() between two pieces and returns when it is true: after Ctrl-C, or an exception in another
    thread, which is raised here once all have returned.
    """
    stop = threading.Event()
    if len(ranges) == 1:
        work(*ranges[0], stop.is_set)
        return
    with ThreadPoolExecutor(len(ranges)) as pool:
        waiting = {pool.submit(work, first, last, stop.is_set) for first, last in ranges}
        try:
            while waiting:  # not for ever: a signal that the system gave to another thread does not end a wait
                done, waiting = wait(waiting, _PACE, FIRST_EXCEPTION)
                for one in done:
                    one.result()
        except BaseException:
            stop.set()
            raise
