"""Dropout: its mask against an obvious reference, and that calls, threads, precisions and resumed runs agree on it."""

import numpy as np
import pytest
from scipy import stats

import nbprop
from nbprop.numerics import random
from support.cases import same_bits
from support.streams import CHANCE, block_of_stream


def kept(size, rate, seed, number, step):
    """Which of the first `size` positions are kept, from the words of the generator one by one."""
    key, found = int(np.uint64(random.DROPOUT) << np.uint64(56)) | number << 40 | step, np.empty(size, bool)
    for position in range(size):
        chunk, place = divmod(position, 128)
        run, i = divmod(place, 16)
        word = int(block_of_stream(seed, key, 16 * chunk + i)[run // 2])
        word = (word << 16 | word >> 16) & 0xFFFFFFFF if run % 2 else word
        found[position] = word >= round(rate * 2**32)
    return found


def output(layers, x, step=0, mode="training", threads=1):
    net = nbprop.network(x.shape[1:], *layers)
    plan = nbprop.plan(net, batch=len(x) + 2, dtype=x.dtype, mode=mode, threads=threads)
    y = np.full(x.shape, np.nan, x.dtype)
    nbprop.forward(plan, np.empty(0, x.dtype), x, y, nbprop.workspace(plan), step=step)
    return y


@pytest.mark.parametrize(("n", "size"), [(1, 1), (3, 7), (2, 64), (5, 61), (3, 256)])
@pytest.mark.usefixtures("four_cores")
def test_mask_is_that_of_the_generator(n, size):
    x = np.random.default_rng(1).standard_normal((n, size))
    for layers, numbers in (([nbprop.dropout(0.3, seed=9)], [0]), ([nbprop.dropout(0.3, 9)] * 2, [0, 1])):
        wanted = x
        for number in numbers:
            wanted = wanted * kept(x.size, 0.3, 9, number, 5).reshape(x.shape) * (1 / 0.7)
        for threads in (1, 2, 4):
            same_bits("y", output(layers, x, 5, threads=threads), wanted)
    single = output([nbprop.dropout(0.3, 9)], x.astype(np.float32), 5)
    assert ((single == 0) == ~kept(x.size, 0.3, 9, 0, 5).reshape(x.shape)).all(), "one mask for both precisions"


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
def test_elements_fall_independently_at_the_rate(rate):
    ones = np.ones((64, 4096), np.float32)
    first, second = (output([nbprop.dropout(rate)], ones, step).reshape(-1) == 0 for step in (0, 1))
    assert stats.binomtest(int(first.sum()), first.size, rate).pvalue > CHANCE
    lag = first.reshape(-1, 8, 16)
    for a, b in ((lag[:, 0::2], lag[:, 1::2]), (first, second), (first[:-1], first[1:])):
        both = int((a & b).sum())
        assert stats.binomtest(both, a.size, rate**2).pvalue > CHANCE


def test_in_use_nothing_happens():
    net = nbprop.network((3,), nbprop.dense(4), nbprop.dropout(0.5), nbprop.dense(2))
    for mode in ("inference", "training"):
        ops = nbprop.plan(net, batch=2, mode=mode).parts["forward"]
        assert [op.kernel.name.split(".")[-1] for op in ops].count("dropout_mask") == (mode == "training")
    x = np.random.default_rng(0).standard_normal((2, 3))
    same_bits("alone", output([nbprop.dropout(0.9)], x, mode="inference"), x)
    same_bits("rate 0", output([nbprop.dropout(0.0)], x), x)


def test_nan_and_infinity_are_not_hidden():
    x = np.full((1, 300), np.nan)
    assert np.isnan(output([nbprop.dropout(0.9)], x)).all()


def test_samples_taken_one_by_one_keep_their_masks():
    net = nbprop.network((3,), nbprop.dense(7, activation="tanh"), nbprop.dropout(0.5), nbprop.dense(2))
    plan, rng = nbprop.plan(net, "mse", batch=40), np.random.default_rng(2)
    params, work = nbprop.init(net, seed=1), nbprop.workspace(plan)
    x, target, dy = rng.standard_normal((40, 3)), rng.standard_normal((40, 2)), rng.standard_normal((40, 2))
    grads, rows = np.empty(net.n_params), np.empty((40, net.n_params))
    nbprop.value_and_grad(plan, params, x, target, grads, work, step=4)
    nbprop.per_sample_grads(plan, params, x, target, rows, work, step=4)
    assert np.allclose(rows.mean(0), grads, rtol=1e-12, atol=1e-14)
    jacobian = np.empty((80, net.n_params))
    nbprop.jacobian(plan, params, x, jacobian, work, step=4)
    nbprop.vjp(plan, params, x, dy, grads, None, work, step=4)
    assert np.allclose(dy.reshape(-1) @ jacobian, grads, rtol=1e-12, atol=1e-14)


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path):
    net = nbprop.network((5,), nbprop.dropout(0.2), nbprop.dense(9, "tanh"), nbprop.dropout(0.5), nbprop.dense(1))
    rng = np.random.default_rng(3)
    x, target = rng.standard_normal((50, 5)), rng.standard_normal((50, 1))

    def run(epochs, threads=1, **more):
        params = nbprop.init(net, seed=2)
        history = nbprop.fit(net, params, x, target, "mse", lr=0.01, batch=16, epochs=epochs, threads=threads, **more)
        return params, history.loss

    whole, losses = run(6)
    assert len(set(losses)) == 6
    run(3, checkpoint=tmp_path / "run")
    for got, wanted in zip(run(6, 2, checkpoint=tmp_path / "run", resume=True), (whole, losses), strict=True):
        same_bits("resumed, on two threads", np.asarray(got), np.asarray(wanted))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.0,), ValueError, r"rate must be a number in \[0, 1\), got 1.0"),
        ((-0.1,), ValueError, r"rate must be a number in \[0, 1\)"),
        ((float("nan"),), ValueError, r"rate must be a number in \[0, 1\)"),
        (("half",), TypeError, "rate must be a number"),
        ((0.5, -1), ValueError, "seed must be an integer"),
        ((0.5, 2**63), ValueError, "seed must be an integer"),
    ],
)
def test_what_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        nbprop.dropout(*arguments)


def test_description():
    net = nbprop.network((3,), nbprop.dropout(0.25, seed=7), nbprop.dense(1))
    assert nbprop.Network.from_json(net.to_json()) == net
    assert repr(net.layers[0]) == "dropout(0.25, seed=7)"
