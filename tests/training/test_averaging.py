"""The mean of the parameters of a training: against a plain loop, kept as best, in checkpoints."""

import numpy as np
import pytest

import nbprop
from nbprop.numerics.random import permutation
from support.cases import close, same_bits
from support.runs import LOSS, NET, X, Y, start, train, train_some_steps

BATCH, HELD_OUT = 32, (X[:50], Y[:50])
STEPS = -(-len(X) // BATCH)  # of an epoch


def along_the_way(epochs, optimizer="adam", lr=0.01):
    """The parameters after each step of a run, (steps, n), by the public functions."""
    params, grads, found = start(), np.empty(NET.n_params, np.float32), []
    plan = nbprop.plan(NET, loss=LOSS, batch=BATCH, dtype=np.float32)
    work, state = nbprop.workspace(plan), nbprop.optimizer_state(optimizer, NET.n_params, np.float32)
    for epoch in range(epochs):
        order = np.arange(len(X))
        permutation(5, epoch, order)
        for first in range(0, len(X), BATCH):
            rows = order[first : first + BATCH]
            nbprop.value_and_grad(plan, params, X[rows], Y[rows], grads, work)
            getattr(nbprop, optimizer)(params, grads, state, len(found), lr)
            found.append(params.copy())
    return np.array(found), state


@pytest.mark.parametrize("begin", [0, 2])
def test_ema_is_the_mean_of_a_plain_loop(begin):
    """float32 to rounding: a += (1 - decay) (p - a), from the first step that counts on."""
    every, _ = along_the_way(3)
    mean = every[begin * STEPS].astype(np.float64)
    for params in every[begin * STEPS + 1 :]:
        mean = 0.9 * mean + 0.1 * params
    got, history = train(epochs=3, seed=5, average=0.9, average_start=begin)
    close("mean", got, mean, 1e-6)
    assert history.optimizer_state is None
    assert np.abs(got - every[-1]).max() > 1e-4


@pytest.mark.parametrize("begin", [0, 1])
def test_swa_is_the_mean_of_the_ends_of_epochs(begin):
    every, _ = along_the_way(4)
    got, _ = train(epochs=4, seed=5, average="swa", average_start=begin)
    close("mean", got, every[STEPS - 1 :: STEPS][begin:].mean(axis=0, dtype=np.float64), 1e-6)


def test_no_mean_before_it_begins():
    """A run that ends before its mean begins returns its last parameters, bit for bit."""
    every, _ = along_the_way(2)
    for average in (0.9, "swa"):
        same_bits("params", train(epochs=2, seed=5, average=average, average_start=2)[0], every[-1])


def test_schedule_free_returns_the_parameters_to_use():
    every, state = along_the_way(2, "schedule_free_adamw")
    got, history = train(epochs=2, seed=5, optimizer="schedule_free_adamw")
    same_bits("params", got, every[-1] + state[2 * NET.n_params :])
    assert history.optimizer_state is None


@pytest.mark.parametrize("options", [{"average": 0.95}, {"average": "swa"}, {"optimizer": "schedule_free_adamw"}])
def test_the_mean_is_what_is_measured_and_kept(options):
    """The validation loss is that of the mean, and with patience the best of these is returned."""
    measured = nbprop.plan(NET, loss=LOSS, batch=50, dtype=np.float32)
    losses = []
    for epochs in (1, 2, 3):
        params, history = train(epochs=epochs, validation=HELD_OUT, **options)
        losses.append(nbprop.value(measured, params, *HELD_OUT, nbprop.workspace(measured)))
    assert history.validation_loss == pytest.approx(losses, rel=1e-5)
    params, history = train(epochs=9, lr=0.5, validation=HELD_OUT, patience=2, **options)
    best = nbprop.value(measured, params, *HELD_OUT, nbprop.workspace(measured))
    assert best == pytest.approx(history.best_loss, rel=1e-5)
    assert history.best_loss == min(history.validation_loss)


@pytest.mark.parametrize("options", [{"average": 0.95, "average_start": 1}, {"average": "swa"}])
def test_a_resumed_run_has_the_bits_of_the_whole_one(tmp_path, monkeypatch, options):
    path, options = tmp_path / "run", options | {"validation": HELD_OUT, "epochs": 3}
    whole, history = train(**options)
    train_some_steps(monkeypatch, 13, **options, checkpoint=path, checkpoint_seconds=0)
    resumed, again = train(**options, checkpoint=path, resume=True)
    same_bits("params", resumed, whole)
    assert again.validation_loss == history.validation_loss
    same_bits("finished", train(**options, checkpoint=path, resume=True)[0], whole)
    with pytest.raises(ValueError, match="average"):
        train(**options | {"average": 0.5, "average_start": 1}, checkpoint=path, resume=True)


def test_running_statistics_are_averaged():
    """Of the layer state: running means and variances as the parameters are."""
    net = nbprop.network((64,), nbprop.dense(5), nbprop.batchnorm(), nbprop.dense(10))
    plan, states = nbprop.plan(net, LOSS, 32, np.float32), []
    for epochs, average in ((1, None), (2, None), (2, "swa")):
        params, state = nbprop.init(net, dtype=np.float32), nbprop.layer_state(plan)
        nbprop.fit(net, params, X, Y, LOSS, batch=32, epochs=epochs, state=state, average=average, progress=False)
        states.append(state)
    close("state", states[2], (states[0].astype(np.float64) + states[1]) / 2, 1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"average": 1.0}, "average must be a number in"),
        ({"average": "ema"}, "average must be 'swa' or a decay"),
        ({"average_start": 1}, "average_start=1 needs average="),
        ({"average": 0.9, "average_start": -1}, "average_start must be an integer of at least 0"),
        ({"average": 0.9, "optimizer": "schedule_free_adamw"}, "averages its steps itself"),
    ],
)
def test_what_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        train(**options)
