"""The soak itself: some seconds of it, and that it notices what grows and what differs."""

import os
import threading

import numpy as np
import pytest

from support.soak import ROUNDS, soak


@pytest.mark.more
def test_some_seconds_of_it():
    assert soak(12.0, slack=16.0) == []


def leaking(kept):
    return {
        "memory": lambda rng: kept.append(np.ones(1 << 22)),  # 32 MB, which no heap has left over
        "files": lambda rng: kept.append(os.open("/dev/null", os.O_RDONLY)),
        "threads": lambda rng: kept.append(a_thread(kept[0])),
        "bits": lambda rng: kept.append(rng),
    }


def a_thread(end):
    thread = threading.Thread(target=end.wait)
    thread.start()
    return thread


@pytest.mark.parametrize("what", ["memory", "files", "threads", "bits"])
def test_it_notices(what):
    kept, rounds = [threading.Event()], iter(range(10**6))

    def round_of(rng):
        if next(rounds) % 10 == 0:
            leaking(kept)[what](rng)
        return rng.standard_normal(1) if what == "bits" else np.zeros(1)

    try:
        wrong = soak(0.3, rounds={what: round_of, "refusal": ROUNDS["refusal"]}, slack=1.0, say=lambda text: None)
        assert any(what in one for one in wrong), wrong
    finally:
        kept[0].set()
        for one in kept[1:]:
            if what == "files":
                os.close(one)
            elif what == "threads":
                one.join()
