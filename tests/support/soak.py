"""Mixed calls for minutes or hours: memory, open files and threads must stay level. `make soak MINUTES=60` runs it.

    python tests/support/soak.py --minutes 60 --seed 0

Each round does one thing of a table, chosen at random: a training, a search, a fleet, calls from threads, plans made
and dropped, a fork, a file written and read, a call that is refused, one that is interrupted. What each gives is
compared with what it gave the first time, bit for bit. In the first third of the time whatever is kept once may be
made: caches, pools, code. After that memory may grow by no more than `--slack` MB, and files and threads not at all.
Exits with 1 and says what grew, or differs, where that is not so.
"""

import argparse
import gc
import math
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import nbprop

RNG = np.random.default_rng(0)
NET = nbprop.network((3,), nbprop.dense(9, activation="tanh"), nbprop.dense(2))
X = RNG.standard_normal((60, 3))
Y = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]], 1)
PLAN = nbprop.plan(NET, "mse", batch=60)
WORDS = nbprop.network((8,), nbprop.embedding(7, 4), nbprop.attention(2), nbprop.dense(7))


def a_fit(rng):
    params = nbprop.init(NET, seed=1)
    nbprop.fit(NET, params, X, Y, "mse", epochs=3, batch=20, threads=2, progress=False)
    return params


def a_search(rng, method):
    params = nbprop.init(NET, seed=1)
    nbprop.minimize(PLAN, params, X, Y, method, maxiter=5, progress=False)
    return params


def a_least_squares(rng):
    params = nbprop.init(NET, seed=1)
    nbprop.least_squares(PLAN, params, X, Y, "marquardt", max_nfev=5)
    return params


def a_fleet(rng, method):
    thetas = np.stack([nbprop.init(NET, seed=k) for k in range(6)])
    nbprop.fit_many(NET, thetas, np.stack([X] * 6), np.stack([Y] * 6), method=method, maxiter=4, threads=2)
    return thetas


def sequences(rng):
    return nbprop.generate(WORDS, nbprop.init(WORDS, seed=1), np.zeros((2, 1), np.int64), 6)


def gradient(plan=PLAN):
    params, grads = nbprop.init(NET, seed=1), np.empty(NET.n_params)
    nbprop.value_and_grad(plan, params, X, Y, grads, nbprop.workspace(plan))
    return grads


def calls_from_threads(rng):
    found = []
    threads = [threading.Thread(target=lambda: found.append(gradient())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[0], one) for one in found), "calls from threads differ"
    return found[0]


def plans_made_and_dropped(rng):
    for _ in range(5):
        width, batch = (int(rng.integers(1, 40)) for _ in range(2))
        net = nbprop.network((3,), nbprop.dense(width, activation="relu"), nbprop.dense(1))
        plan = nbprop.plan(net, "mse", batch=batch, threads=1 + int(rng.integers(2)))
        x, grads = np.ones((batch, 3)), np.empty(net.n_params)
        nbprop.value_and_grad(plan, nbprop.init(net), x, x[:, :1].copy(), grads, nbprop.workspace(plan))
    return gradient()


def a_fork(rng):
    child = os.fork()
    if child == 0:
        os._exit(0 if np.isfinite(gradient()).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "a forked child failed"
    return gradient()


def a_file(rng):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        nbprop.save(path, NET, nbprop.init(NET, seed=1))
        return nbprop.load(path)[1]


def a_refusal(rng):
    params = nbprop.init(NET, seed=1)
    for call in (
        lambda: nbprop.minimize(PLAN, params, X, Y[:-1]),
        lambda: nbprop.value(PLAN, params, X[::2], Y, nbprop.workspace(PLAN)),
        lambda: nbprop.fit_many(NET, params[None], X[None], np.full_like(Y, np.nan)[None]),
    ):
        try:
            call()
        except ValueError:
            continue
        raise AssertionError("what does not fit was not refused")
    return params


def an_interrupt(rng):
    calls = iter(range(10))

    def callback(theta):
        if next(calls) == 3:
            raise KeyboardInterrupt

    params = nbprop.init(NET, seed=1)
    assert nbprop.minimize(PLAN, params, X, Y, callback=callback).status == -1
    return params


ROUNDS = {
    "fit": a_fit,
    "L-BFGS": lambda rng: a_search(rng, "L-BFGS"),
    "L-BFGS-B": lambda rng: a_search(rng, "L-BFGS-B"),
    "Newton-CG": lambda rng: a_search(rng, "Newton-CG"),
    "least squares": a_least_squares,
    "fleet, L-BFGS": lambda rng: a_fleet(rng, "L-BFGS"),
    "fleet, marquardt": lambda rng: a_fleet(rng, "marquardt"),
    "fleet, adam": lambda rng: a_fleet(rng, "adam"),
    "generate": sequences,
    "threads": calls_from_threads,
    "plans": plans_made_and_dropped,
    "fork": a_fork,
    "file": a_file,
    "refusal": a_refusal,
    "interrupt": an_interrupt,
}


def used():
    """What the process holds: resident memory in MB, open files, threads of the system's."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return {"memory": memory, "files": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task"))}


def soak(seconds, seed=0, slack=8.0, rounds=ROUNDS, say=print):
    """Rounds for so many seconds; a list of what is wrong."""
    rng, first, count = np.random.default_rng(seed), {}, 0
    for name, one in rounds.items():  # each once: what it gives, and whatever is made only once
        first[name] = one(rng).copy()
    begun, level, spoken, least = time.monotonic(), None, 0.0, math.inf
    while (now := time.monotonic() - begun) < seconds or count < least:
        if level is None and now >= seconds / 3:
            level, least = used(), count + 200
        if now - spoken >= 60:
            spoken = now
            say(f"{now / 60:.0f} min, {count} rounds, {used()}")
        name = list(rounds)[rng.integers(len(rounds))]
        count += 1
        if not np.array_equal(rounds[name](rng), first[name]):
            return [f"{name} gave other bits than the first time, in round {count}"]
    last = used()
    say(f"{count} rounds; from {level} to {last}")
    allowed = {"memory": slack, "files": 0, "threads": 0}
    return [
        f"{what} grew from {level[what]} to {last[what]}" for what in level if last[what] > level[what] + allowed[what]
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slack", type=float, default=8.0, help="MB that memory may grow by after the first third")
    given = parser.parse_args()
    wrong = soak(60 * given.minutes, given.seed, given.slack)
    for one in wrong:
        print(one, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
