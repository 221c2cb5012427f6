"""Streams of the simulator that put work off as long as CUDA lets them, so that a missing order shows.

A stream runs its work in order, and no sooner than somebody waits for it. The default stream's work comes after what
blocking streams were given before, and theirs after its own; non-blocking streams keep order with nobody, unless by
`wait`. As the CUDA programming guide has it, "Implicit synchronization" of the legacy default stream.
"""

import functools

from nbprop.cuda import toolkit


class Stream(toolkit.SimulatedStream):
    """A stream whose work waits. default: that stream's, which the blocking ones keep order with."""

    def __init__(self, default=None, blocking=True):
        self.works, self.done, self.default = [], 0, default if blocking else None
        self.blocking = []  # of the default stream: those beside it
        if self.default is not None:
            self.default.blocking.append(self)

    def enqueue(self, work):
        for other in [self.default] if self.default else self.blocking:
            self.wait(other)
        self.works.append(work)

    def wait(self, other):
        self.works.append(functools.partial(other.run, len(other.works)))

    def run(self, until):
        """Run the work up to a number."""
        while self.done < until:
            self.done += 1
            self.works[self.done - 1]()

    def sync(self):
        self.enqueue(lambda: None)
        self.run(len(self.works))


def use(monkeypatch, blocking=True):
    """Let nbprop's streams be delayed ones; the default stream is returned."""
    default = Stream()
    monkeypatch.setattr(toolkit, "_default_stream", default)
    monkeypatch.setattr(toolkit, "SimulatedStream", lambda: Stream(default, blocking))
    return default
