"""Ctrl-C in calls that last: back in Python soon, with the best so far. One child process, which is sent SIGINT."""

import threading
import time

import numpy as np
import pytest

import nbprop
from nbprop.autodiff import faces
from nbprop.runtime import workers
from nbprop.runtime.pieces import Pace, in_threads
from nbprop.runtime.pool import RATE
from nbprop.runtime.signatures import OUTPUTS, SIGNATURES

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
ample = np.concatenate([x] * 500), np.concatenate([y] * 500)
huge = nbprop.plan(net, "mse", batch=len(ample[0]), threads=2)
room = nbprop.workspace(huge)
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
    "value_and_grad": (
        lambda: nbprop.value_and_grad(plan, start, x, y, out[0], nbprop.workspace(plan)),
        raises(lambda: nbprop.value_and_grad(huge, start, *ample, out[0], room)),
    ),
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
    assert len(took) == 13
    assert max(took.values()) < 0.6, took


# Networks whose Jacobian is made by passes of the batch, and sample by sample; and with state that a walk changes.
PAUSING = {
    "dense": nbprop.network((3,), nbprop.dense(60, "tanh"), nbprop.dense(2)),
    "tied": nbprop.network((60,), nbprop.dense(60, "tanh"), nbprop.dense(60, share="0.dense.weight.T")),
    "batchnorm": nbprop.network((3,), nbprop.dense(60), nbprop.batchnorm(), nbprop.dense(2)),
}


@pytest.mark.parametrize("name", list(PAUSING))
def test_a_walk_that_pauses_after_every_row_has_the_same_bits(monkeypatch, name):
    """Where the rate of the clock is not known, a walk of a plan with a large workspace pauses at once."""
    net, resumed = PAUSING[name], []
    plan = nbprop.plan(net, "mse", batch=40_000, threads=1 + (name == "dense"))
    state = nbprop.layer_state(plan) if plan.state_size else None
    rng, n = np.random.default_rng(0), 5
    x, y = rng.standard_normal((n, *net.input_shape)), rng.standard_normal((n, *net.output_shape))
    given = {"params": nbprop.init(net), "x": x, "target": y, "work": nbprop.workspace(plan), "state": state}
    given |= {"v": rng.standard_normal(net.n_params), "dy": y[::-1].copy(), "dx": x[::-1].copy(), "accumulate": True}

    def outcome(function):
        signature = SIGNATURES[function]
        call = {argument: given[argument] for argument in signature.parameters if argument in given}
        call["state"] = None if state is None else state.copy()
        shapes = {"y": y.shape, "grads": net.n_params, "dx": x.shape}
        shapes |= {"out": OUTPUTS[signature.out][0](plan, n)} if signature.out else {}
        written = {argument: np.ones(shapes[argument]) for argument in signature.writes.split()}
        found = getattr(nbprop, function)(plan, **(call | written))
        return [found, *(array.tobytes() for array in written.values()), str(call["state"])]

    outcome("forward")  # what is compiled refers to the function that is replaced here
    enter = faces._resume
    monkeypatch.setattr(faces, "_resume", lambda *words: resumed.append(words[-2]) or enter(*words))
    coupled = ("jacobian", "per_sample_grads") if name == "batchnorm" else ()
    functions = [function for function in SIGNATURES if function not in (*coupled, "backward")]
    for function in functions:
        workers.know_clock()
        expected = outcome(function)
        resumed.clear()
        with monkeypatch.context() as patched:
            patched.setattr(faces, "know_clock", lambda: None)
            workers._words[RATE] = 0
            assert outcome(function) == expected, function
        assert len(resumed) > (1 if function in ("forward", "value") else 4), function
    workers.know_clock()


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
