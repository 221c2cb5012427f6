"""Ctrl-C in calls that last: back in Python soon, with the best so far. One child process, which is sent SIGINT."""

import threading
import time

import pytest

from nbprop.runtime.pieces import Pace, in_threads

CHILD = """
import signal, threading, time
import numpy as np
import scipy.optimize
import nbprop

rng = np.random.default_rng(0)
net = nbprop.network((4,), nbprop.dense(24, activation="tanh"), nbprop.dense(1))
x = rng.standard_normal((400, 4))
y = np.sin(x[:, :1]) * x[:, 1:2]
plan = nbprop.plan(net, "mse", batch=400)
models = 400
xs, ys = np.stack([x] * models), np.stack([y] * models)
starts = np.stack([nbprop.init(net, seed=k) for k in range(models)])
words = nbprop.network(
    (4096,), nbprop.embedding(50, 16), nbprop.positions(), nbprop.attention(2, causal=True), nbprop.dense(50)
)
prompt, weights = np.zeros((8, 2), np.int64), nbprop.init(words)


def fleet(method, threads, count=models, most=10**6):
    thetas, options = starts[:count].copy(), {"gtol": 0.0, "ftol": 0.0, "threads": threads}
    return thetas, nbprop.fit_many(net, thetas, xs[:count], ys[:count], method=method, maxiter=most, **options)


def fleet_interrupted(method, threads):
    thetas, result = fleet(method, threads)
    assert (result.status == -1).any() and not result.success.all()
    assert result.fun[0] < nbprop.value(plan, starts[0], x, y, nbprop.workspace(plan))
    assert np.isfinite(thetas).all()


def sequences():
    try:
        nbprop.generate(words, weights, prompt, 4000)
    except KeyboardInterrupt as interrupt:
        assert 0 < interrupt.tokens.shape[1] < 4000 and (interrupt.tokens >= 0).all()
    else:
        raise AssertionError("not interrupted")


def native(most=10**8):
    params = nbprop.init(net)
    result = nbprop.minimize(plan, params, x, y, "L-BFGS", maxiter=most, options={"gtol": 0.0})
    assert result.status == -1 or most < 10
    assert nbprop.value(plan, params, x, y, nbprop.workspace(plan)) == result.fun


def squares(most=10**8):
    params = nbprop.init(net)
    options = {"method": "marquardt", "gtol": 0.0, "xtol": 0.0, "ftol": 0.0, "max_nfev": most}
    result = nbprop.least_squares(plan, params, x, y, **options)
    assert (result.status == -1 or most < 10) and (params == result.x).all()


def raises(call):
    def interrupted():
        try:
            while True:
                call()
        except KeyboardInterrupt:
            pass

    return interrupted


long = np.concatenate([x] * 300), np.concatenate([y] * 300)
out, start = np.empty((net.n_params,) * 2), nbprop.init(net)
many = nbprop.plan(net, "mse", batch=len(long[0]))
work, product = nbprop.workspace(many), nbprop.hessian_operator(plan, start, *long)
# name: (a short call, which loads what is compiled; one that lasts)
CALLS = {
    f"fit_many {method} {threads}": (
        lambda method=method: fleet(method, 1, 1, 3),
        lambda method=method, threads=threads: fleet_interrupted(method, threads),
    )
    for method, threads in (("L-BFGS", 1), ("L-BFGS", 2), ("marquardt", 1), ("adam", 2))
}
CALLS |= {
    "generate": (lambda: nbprop.generate(words, weights, prompt, 3), sequences),
    "minimize": (lambda: native(3), native),
    "least_squares": (lambda: squares(3), squares),
    "hessian": (
        lambda: nbprop.hvp(many, start, start, *long, out[0], work),
        raises(lambda: nbprop.hessian(many, start, *long, out, work, threads=2)),
    ),
    "hessian_operator": (lambda: product @ start, raises(lambda: product @ start)),
    "rounding_error": (
        lambda: nbprop.rounding_error(plan, start, x, y), raises(lambda: nbprop.rounding_error(plan, start, *long))
    ),
    "explain": (lambda: nbprop.explain(plan, start, x[:1]), raises(lambda: nbprop.explain(plan, start, long[0]))),
    "gradcheck": (lambda: nbprop.gradcheck(net, "mse"), raises(lambda: nbprop.gradcheck(net, "mse", batch=40))),
}
for name, (short, call) in CALLS.items():
    short()
    sent, begun = [], time.process_time()

    def send():
        while time.process_time() < begun + 0.4:
            time.sleep(0.01)
        sent.append(time.process_time())
        signal.raise_signal(signal.SIGINT)

    sender = threading.Thread(target=send)
    sender.start()
    call()
    print(f"{name}: {time.process_time() - sent[0]:.3f}", flush=True)
    sender.join()
"""


@pytest.mark.more
def test_ctrl_c_is_heard_within_a_fraction_of_a_second(script):
    """In seconds of the process's own time: two threads count twice, and what else the machine does counts nothing."""
    said = script(CHILD, timeout=600)
    took = {line.split(": ")[0]: float(line.split(": ")[1]) for line in said.splitlines()}
    assert len(took) == 12
    assert max(took.values()) < 0.6, took


def test_pieces_grow_until_they_take_their_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    pace, done = Pace(), []
    for seconds_a_unit in [2**-10] * 6 + [2**-3] * 3 + [2**-10] * 3:
        done.append(pace.begin())
        clock[0] += done[-1] * seconds_a_unit
        pace.end(done[-1])
    assert done == [1, 4, 16, 64, 81, 81, 81, 1, 1, 1, 4, 16]


def test_what_one_thread_raises_ends_the_others():
    ended = []

    def share(first, last, stopped):
        if first == 0:
            raise ZeroDivisionError("the first")
        while not stopped():
            time.sleep(1e-3)
        ended.append((first, threading.current_thread()))

    with pytest.raises(ZeroDivisionError, match="the first"):
        in_threads(share, [(0, 1), (1, 2), (2, 3)])
    assert sorted(first for first, _ in ended) == [1, 2]
    assert not any(thread.is_alive() for _, thread in ended)
