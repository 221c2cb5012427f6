"""How threads wait for each other, and how many walk: what is done is counted, nothing is timed."""

import ctypes
import os

import numpy as np
import pytest

from nbprop.runtime import cores
from nbprop.runtime import pool as threads

C_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
ASK_CORES = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
LINE = threads._WORKER + threads.WORKER_WORDS  # of worker 1


class Pool:
    """A pool of the test's own, without workers; its locks are functions of the test's."""

    def __init__(self, workers=1, cores=8):
        self.words = np.zeros(threads.WORDS, np.int64)
        self.address = self.words.ctypes.data
        self.words[[threads.WORKERS, threads.CORES, threads.QUOTA]] = workers, cores, cores
        self.calls = []
        self._kept = []

    def lock(self, word, name, function=lambda: None):
        """Have a call of the C function at `word` noted, and `function` run."""

        def called(lock, wait=0):
            self.calls.append(name)
            function()
            return 1

        self.call_at(word, C_FUNCTION(called))

    def call_at(self, word, function):
        self._kept.append(function)
        self.words[word] = ctypes.cast(function, ctypes.c_void_p).value


@pytest.fixture
def pool():
    return Pool()


@pytest.fixture
def few_spins(monkeypatch):
    """The bounds are constants of compiled code: here the functions run as Python, on words of NumPy's."""

    def at(address, index):
        return ctypes.c_int64.from_address(address + 8 * index)

    def exchange(address, index, value):
        word = at(address, index)
        before, word.value = word.value, value
        return before

    spins = []
    monkeypatch.setattr(threads, "SPINS", 7)
    monkeypatch.setattr(threads, "WAITING_SPINS", 9)
    monkeypatch.setattr(threads, "spin_pause", lambda: spins.append(1))
    monkeypatch.setattr(threads, "atomic_load", lambda address, index: at(address, index).value)
    monkeypatch.setattr(threads, "load", lambda address, index: at(address, index).value)
    monkeypatch.setattr(threads, "store", lambda address, index, value: exchange(address, index, value) and None)
    monkeypatch.setattr(threads, "atomic_exchange", exchange)
    monkeypatch.setattr(threads, "now", lambda pool: 0)
    monkeypatch.setattr(
        threads,
        "call_c",
        lambda address, arguments: ctypes.cast(address, C_FUNCTION)(*arguments, *[0][len(arguments) - 1 :]),
    )
    return spins


def test_a_worker_parks_after_a_bounded_spin(pool, few_spins):
    """Asleep until there is a segment with a part for it; one of fewer threads does not keep it awake."""
    segments = [512 + 1, 2 * 512 + 2]

    def woken():
        assert pool.words[LINE + threads.PARKED] == 1
        pool.words[LINE + threads.PARKED] = 0
        pool.words[threads.SEGMENT] = segments.pop(0)

    pool.lock(threads.ACQUIRE, "acquire", woken)
    assert threads.next_segment.py_func(pool.address, LINE, 1, 0) == 2 * 512 + 2
    assert pool.calls == ["acquire"] * 2
    assert len(few_spins) == 2 * 9


def test_a_wake_up_that_comes_before_the_sleep_is_not_lost(pool, few_spins, monkeypatch):
    """The segment is opened between the last look and PARKED: the worker stays up, or takes the release that is its."""
    exchange = threads.atomic_exchange

    def opened_meanwhile(taken_back):
        def exchanged(address, index, value):
            before = exchange(address, index, value)
            if index == LINE + threads.PARKED and value == 1:
                pool.words[threads.SEGMENT] = 512 + 2
                if taken_back:
                    pool.words[LINE + threads.PARKED] = 0
            return before

        return exchanged

    pool.lock(threads.ACQUIRE, "acquire")
    monkeypatch.setattr(threads, "atomic_exchange", opened_meanwhile(False))
    assert threads.next_segment.py_func(pool.address, LINE, 1, 0) == 512 + 2
    assert pool.calls == []
    pool.words[:] = 0
    pool.lock(threads.ACQUIRE, "acquire")
    monkeypatch.setattr(threads, "atomic_exchange", opened_meanwhile(True))
    assert threads.next_segment.py_func(pool.address, LINE, 1, 0) == 512 + 2
    assert pool.calls == ["acquire"]


def test_the_caller_parks_after_a_bounded_spin(pool, few_spins):
    """Woken by another worker's part it parks again, without spinning."""
    done = [0, 512 + 2]

    def woken():
        assert pool.words[threads.LEADER_PARKED] == 1
        pool.words[threads.LEADER_PARKED] = 0
        pool.words[LINE + threads.DONE] = done.pop(0)

    pool.lock(threads.ACQUIRE, "acquire", woken)
    threads.await_part.py_func(pool.address, LINE, 512 + 2)
    assert pool.calls == ["acquire"] * 2
    assert len(few_spins) == 7


def test_who_is_parked_is_woken_once(pool):
    pool.lock(threads.RELEASE, "release")
    threads.finish_part(pool.address, LINE, 512 + 2)
    assert pool.calls == []
    pool.words[threads.LEADER_PARKED] = 1
    for _ in range(2):
        threads.finish_part(pool.address, LINE, 512 + 2)
    assert pool.calls == ["release"]
    assert pool.words[LINE + threads.DONE] == 512 + 2


def test_a_part_is_claimed_once_and_never_of_an_old_segment(pool):
    """Worker and caller ask alike; a worker that comes late with a segment that is over gets nothing."""
    old, new = 512 + 2, 2 * 512 + 2
    assert threads.claim(pool.address, LINE, old)
    assert not threads.claim(pool.address, LINE, old)
    assert threads.left_to_caller(pool.address, LINE, new)
    assert not threads.claim(pool.address, LINE, new)
    assert not threads.claim(pool.address, LINE, old)
    pool.words[threads.INSIST] = 1
    assert not threads.left_to_caller(pool.address, LINE, 3 * 512 + 2)


def test_a_sleeping_worker_is_woken_for_long_or_frequent_walks_only(pool):
    pool.words[threads.RATE] = np.float64(1e-13).view(np.int64)  # a clock that all but stands still, at 0
    pool.lock(threads.RELEASE, "release")
    for began, previous, woken in ((0, -(10**9), 0), (-threads.WAKE_AFTER, -(10**9), 1), (0, -1000, 1)):
        pool.calls.clear()
        pool.words[[threads.BEGAN, threads.PREVIOUS, LINE + threads.PARKED]] = began, previous, 1
        threads.open_segment(pool.address, 0, 2)
        assert len(pool.calls) == woken, (began, previous)


# -- how many threads ----------------------------------------------------------------------------------------

MS = 1_000_000


def test_a_walk_that_lost_too_much_is_followed_by_walks_alone(pool):
    """Not by one that lost less than a third; for as long as was lost, then all try again, and for twice as long each
    time that is lossy too, up to eight times and a second."""
    at = pool.address
    threads.judge(at, 2, MS, 30_000, 9_999)
    assert threads.admit(at, 2, MS) == 2
    threads.judge(at, 2, MS, 30_000, 10_001)
    for times in (1, 2, 4, 8, 8):
        assert [threads.admit(at, 2, MS + wait) for wait in (0, times * 10_001 - 1, times * 10_001)] == [1, 1, 2]
        assert pool.words[threads.UNTIL] == 0
        threads.judge(at, 2, MS, 30_000, 10_001)
    for _ in range(3):  # walks without a loss shorten the next rest
        threads.judge(at, 2, MS, 30_000, 0)
    threads.judge(at, 2, MS, 30_000, 10_001)
    assert [threads.admit(at, 2, MS + wait) for wait in (0, 20_001, 20_002)] == [1, 1, 2]
    for _ in range(3):
        threads.judge(at, 2, MS, 30_000, 10_001)
    threads.judge(at, 2, MS, 10**12, 10**12)
    assert [threads.admit(at, 2, MS + wait) for wait in (0, 10**9 - 1, 10**9)] == [1, 1, 2]


def test_many_threads_are_halved_and_doubled():
    pool = Pool(workers=7)
    at = pool.address
    threads.judge(at, 8, 0, 1000, 499)
    assert threads.admit(at, 8, 1) == 8
    threads.judge(at, 8, 0, 1000, 501)
    assert threads.admit(at, 8, 1) == 4
    assert threads.admit(at, 3, 1) == 3
    threads.judge(at, 4, 1, 1000, 501)
    assert threads.admit(at, 8, 2) == 2
    first = int(pool.words[threads.UNTIL])
    assert threads.admit(at, 8, first) == 4
    assert threads.admit(at, 8, first + threads.LOOK_EVERY) == 8
    assert pool.words[threads.UNTIL] == 0


def test_the_share_of_cores_is_looked_at_again(pool):
    """After a walk that lost too much, and from time to time while it is less than the threads; a quota counts too."""
    mask, asked = [0b1], []

    def affinity(process, size, words):
        asked.append(process)
        ctypes.c_int64.from_address(words).value = mask[0]
        return 0

    pool.call_at(threads.AFFINITY, ASK_CORES(affinity))
    at = pool.address
    assert threads.admit(at, 2, 0) == 2
    assert asked == []
    threads.judge(at, 2, 0, 1000, 900)
    assert pool.words[threads.CORES] == 1
    time = int(pool.words[threads.UNTIL])
    assert threads.admit(at, 2, time) == 1, "still one core"
    mask[0] = 0b1010
    time = int(pool.words[threads.UNTIL])
    assert threads.admit(at, 2, time - 1) == 1
    assert threads.admit(at, 2, time) == 2
    assert len(asked) == 3
    pool.words[threads.QUOTA] = 1
    threads.judge(at, 2, time, 1000, 900)
    assert threads.admit(at, 2, int(pool.words[threads.UNTIL])) == 1


# -- the process's share -------------------------------------------------------------------------------------


def test_quotas_of_cgroups(tmp_path):
    """Of either version, the least generous folder counts, from the process's own to the root."""
    mount = tmp_path / "mount"

    def quota(membership, name=None, content=""):
        (tmp_path / "cgroup").write_text(membership, encoding="ascii")
        if name is not None:
            (mount / name).parent.mkdir(parents=True, exist_ok=True)
            (mount / name).write_text(content, encoding="ascii")
        return cores.cgroup_quota(tmp_path / "cgroup", mount)

    two, one = "0::/a/b\n", "3:cpuset:/x\n2:cpu,cpuacct:/x\n1:memory:/x\n"
    assert quota(two) is None
    assert quota(two, "cpu.max", "max 100000\n") is None
    assert quota(two, "a/cpu.max", "250000 100000\n") == 2.5
    assert quota(two, "a/b/cpu.max", "400000 100000\n") == 2.5
    assert quota(two, "a/b/cpu.max", "50000 100000\n") == 0.5
    assert quota("0::/elsewhere/on/the/host\n", "cpu.max", "300000 100000\n") == 3.0
    assert quota(one, "cpu,cpuacct/x/cpu.cfs_quota_us", "-1\n") is None
    assert quota(one, "cpu,cpuacct/x/cpu.cfs_period_us", "100000\n") is None
    assert quota(one, "cpu,cpuacct/x/cpu.cfs_quota_us", "150000\n") == 1.5
    assert quota("garbage\n\n::::\n", "cpu.max", "what?\n") is None
    (tmp_path / "cgroup").unlink()
    assert cores.cgroup_quota(tmp_path / "cgroup", mount) is None


def test_a_quota_caps_the_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for quota, share in ((None, 8), (0.4, 1), (2.5, 2), (64.0, 8)):
        monkeypatch.setattr(cores, "_quota", lambda quota=quota: quota)
        assert cores.processor_share() == share


# -- without workers -----------------------------------------------------------------------------------------

NOBODY_COMES = """
import numpy as np
import nbprop
from nbprop.runtime import pool as threads
from nbprop.runtime import workers

net = nbprop.network((13,), nbprop.dense(40, activation="gelu"), nbprop.dense(4))
alone = nbprop.plan(net, "mse", 64)
workers.ensure = lambda count: None
threads._words[threads.WORKERS], threads._words[threads.CORES] = 3, 4
plan = nbprop.plan(net, "mse", 64, threads=4)
params, x, target = nbprop.init(net, seed=1), np.ones((64, 13)), np.zeros((64, 4))
grads, wanted = np.empty_like(params), np.empty_like(params)
loss = nbprop.value_and_grad(alone, params, x, target, wanted, nbprop.workspace(alone))
for _ in range(100):
    grads[:] = np.nan
    assert nbprop.value_and_grad(plan, params, x, target, grads, nbprop.workspace(plan)) == loss
    assert grads.tobytes() == wanted.tobytes()
print(threads._words[threads.SEGMENT] >= 500 * 512)
"""


def test_workers_that_never_come_are_not_waited_for(script):
    """As if every worker were without a core for good: the caller does all parts, with the same bits."""
    assert script(NOBODY_COMES) == "True\n"
