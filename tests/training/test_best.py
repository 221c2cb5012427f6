"""What `fit` says of the parameters that it leaves: finite, and what is called best was measured as it is."""

import os
import signal

import numpy as np
import pytest

import nbprop
from nbprop.training import trainer as running
from support.cases import same_bits
from support.runs import NET, X, Y, start, train

RNG = np.random.default_rng(3)
REGRESSOR = nbprop.network((3,), nbprop.dense(8, activation="relu"), nbprop.dense(1))
XS = RNG.standard_normal((60, 3)).astype(np.float32)
TARGET = XS.sum(1, keepdims=True)
HELD_OUT = XS[:20].copy(), TARGET[:20].copy()


def regress(net=REGRESSOR, x=XS, target=TARGET, **options):
    """(params, history) of a short training on sums."""
    params = nbprop.init(net, 1, np.float32)
    options = {"optimizer": "sgd", "lr": 0.05, "batch": 20, "epochs": 8} | options
    return params, nbprop.fit(net, params, x, target, "mse", **options)


def loss_of(params, data=(XS, TARGET), net=REGRESSOR, state=None):
    """The mean loss of all data, of parameters as they are and in use."""
    plan = nbprop.plan(net, "mse", len(data[0]), np.float32, mode="inference")
    return nbprop.value(plan, params, *data, nbprop.workspace(plan), state=state)


def jump(at, rate=1e30):
    """A schedule with one step at a rate that ruins the parameters."""
    return lambda step: rate if step == at else 0.05


WAYS = {
    "nothing": {},
    "whole batch": {"batch": 60},
    "validation": {"validation": HELD_OUT},
    "patience": {"patience": 20},
    "whole batch, patience": {"batch": 60, "patience": 20},
    "validation, patience": {"validation": HELD_OUT, "patience": 20},
    "callback": {"callback": lambda history: None},
}


@pytest.mark.parametrize("way", list(WAYS))
def test_a_diverged_fit_holds_what_its_history_says(way):
    """The rate jumps at each step of three epochs in turn: the last of an epoch too, when its loss is already known."""
    options, start_loss = WAYS[way], loss_of(nbprop.init(REGRESSOR, 1, np.float32))
    data = options.get("validation", (XS, TARGET))
    an_epoch = 60 // options.get("batch", 20)
    for at in range(2 * an_epoch, 5 * an_epoch):
        params, history = regress(schedule=jump(at), **options)
        assert history.stopped == "diverged"
        assert np.isfinite(params).all()
        assert loss_of(params, data) == pytest.approx(history.best_loss, rel=1e-5)
        assert loss_of(params) <= start_loss
        good = regress(**options | {"epochs": history.best_epoch + 1, "patience": None})[0]
        same_bits("params", params, good)
        # At most the epoch that the jump ruined, and the one whose end nobody has measured, are lost.
        assert history.best_epoch >= at // an_epoch - 2


def test_parameters_worse_than_the_first_are_not_kept():
    """Each epoch has a loss that is finite, and higher than the first parameters'."""
    for options in ({}, {"validation": HELD_OUT}, {"batch": 60}, {"patience": 9, "batch": 60}):
        params, history = regress(lr=3.0, epochs=30, **options)
        assert (history.stopped, history.best_epoch) == ("diverged", None)
        assert "params hold the initial ones" in history.message
        same_bits("params", params, nbprop.init(REGRESSOR, 1, np.float32))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "rmsprop", "adam", "adamw", "adagrad", "lion"])
def test_an_update_that_overflows_is_no_success(optimizer):
    """The last update of all leaves no loss behind that could tell."""
    for batch in (60, 20):
        at = 8 * 60 // batch - 1
        for rate in (1e300, 1.7e308):
            params, history = regress(optimizer=optimizer, batch=batch, schedule=jump(at, rate))
            assert history.stopped == "diverged"
            assert f"the parameters are not finite after step {at}" in history.message
            assert history.optimizer_state is None
            assert np.isfinite(params).all()
            assert loss_of(params) == pytest.approx(history.best_loss, rel=1e-5)


def test_whatever_ends_a_fit_its_parameters_are_finite():
    """A callback, patience, Ctrl-C at the very step that ruined them."""
    params, history = regress(schedule=jump(11, 1e300), callback=lambda history: history.epochs == 4)
    assert (history.stopped, history.best_epoch) == ("diverged", 2)
    assert np.isfinite(params).all()
    params, history = regress(schedule=jump(11, 1e300), validation=HELD_OUT, patience=1)
    assert (history.stopped, history.best_epoch) == ("diverged", 2)
    assert np.isfinite(params).all()


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("more", [{}, {"validation": HELD_OUT}, {"patience": 9}])
def test_ctrl_c_leaves_finite_parameters(more, request, tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def callback(history):
        if history.epochs == 4:
            signal.raise_signal(signal.SIGINT)

    params = nbprop.init(REGRESSOR, 1, np.float32)
    given = {"lr": 0.05, "batch": 20, "schedule": jump(11, 1e300), "callback": callback, "checkpoint": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt) as caught:
        nbprop.fit(REGRESSOR, params, XS, TARGET, "mse", "sgd", **given, **more)
    assert np.isfinite(params).all()
    assert caught.value.history.epochs == 4
    assert caught.value.history.stopped == "diverged"


def test_what_the_measured_loss_does_not_see_is_seen():
    """The row of an index that the held-out data lacks is all that the last update ruins."""
    net = nbprop.network((1,), nbprop.embedding(4, 3), nbprop.flatten(), nbprop.dense(1))
    params, trains = nbprop.init(net, 1, np.float32), np.zeros(net.n_params, bool)
    nbprop.views(net, trains)["0.embedding.weight"][3] = True
    x, target = np.array([[0], [1], [2], [3]] * 5), np.full((20, 1), 1e3, np.float32)
    start = params.copy()
    options = {"epochs": 1, "batch": 20, "trainable": trains, "lr": 1e300, "patience": 3}
    history = nbprop.fit(net, params, x, target, "mse", "sgd", validation=(x[:3], target[:3]), **options)
    assert (history.stopped, history.best_epoch) == ("diverged", None)
    same_bits("params", params, start)


@pytest.mark.scaled
def test_at_random(rounds):
    """Jumps of any size at any step, in any kind of training: the history is true, and the parameters are finite."""
    rng = np.random.default_rng(4)
    first = loss_of(nbprop.init(REGRESSOR, 1, np.float32))
    for _ in range(rounds(60, 5000)):
        options = dict(WAYS[rng.choice(list(WAYS))])
        options |= {"optimizer": str(rng.choice(["sgd", "momentum", "adam"])), "shuffle": bool(rng.integers(2))}
        options |= {"batch": int(rng.choice([7, 20, 60])), "seed": int(rng.integers(9))}
        rates = 10.0 ** rng.uniform(-3, 2, 80)
        rates[rng.integers(80)] = 10.0 ** rng.uniform(0, 60)
        params, history = regress(schedule=lambda step, rates=rates: rates[step % 80], **options)
        assert np.isfinite(params).all()
        if history.stopped == "diverged" or history.stopped == "patience" or "patience" in options:
            data = options.get("validation", (XS, TARGET))
            assert loss_of(params, data) == pytest.approx(history.best_loss, rel=1e-4)
        if history.stopped == "diverged":
            assert loss_of(params) <= first or "validation" in options


def test_patience_without_validation_measures_the_training_data():
    """In use: without dropout, by running statistics; every batch of it, weighted."""
    net = nbprop.network((3,), nbprop.dense(8), nbprop.batchnorm(), nbprop.dropout(0.5), nbprop.dense(1))
    state = nbprop.layer_state(nbprop.plan(net, "mse", 20, np.float32))
    params, history = regress(net, patience=2, state=state, lr=0.2, epochs=60)
    assert history.stopped == "patience"
    assert len(history.training_loss) == history.epochs
    assert history.best_loss == min(history.training_loss) == history.training_loss[history.best_epoch]
    assert history.epochs - 1 - history.best_epoch == 2
    assert loss_of(params, net=net, state=state) == pytest.approx(history.best_loss, rel=1e-5)
    assert history.optimizer_state is None  # it is not of these parameters


def test_nothing_is_called_best_unless_it_was_measured():
    _, history = regress()
    assert (history.best_epoch, history.best_loss, history.training_loss) == (None, np.inf, [])


# -- infinity -----------------------------------------------------------------------------------------------


def spoilt(array, value, at=7):
    copy = array.copy()
    copy[at] = value
    return copy


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_what_is_not_finite_is_refused_by_its_name(value, word):
    weights = np.ones(60, np.float32)
    net = nbprop.network((3,), nbprop.dense(8), nbprop.batchnorm(), nbprop.dense(1))
    state = nbprop.layer_state(nbprop.plan(net, "mse", 20, np.float32))
    remembered = nbprop.optimizer_state("momentum", net.n_params, np.float32)
    good = {"x": XS, "target": TARGET, "weights": weights, "state": state, "optimizer": "momentum", "batch": 20}
    bad = {
        "x": {"x": spoilt(XS, value)},
        "target": {"target": spoilt(TARGET, value)},
        "weights": {"weights": spoilt(weights, value)},
        "validation x": {"validation": (spoilt(XS, value), TARGET)},
        "validation target": {"validation": (XS, spoilt(TARGET, value))},
        "validation weights": {"validation": (XS, TARGET, spoilt(weights, value))},
        "params": {"params": spoilt(nbprop.init(net, 1, np.float32), value)},
        "state": {"state": spoilt(state, value)},
        "optimizer_state": {"optimizer_state": spoilt(remembered, value), "first_step": 3},
    }
    for name, change in bad.items():
        given = {"params": nbprop.init(net, 1, np.float32)} | good | change
        before = {key: array.copy() for key, array in given.items() if isinstance(array, np.ndarray)}
        one_of_many = name.split()[-1] in good
        found = "nan" if np.isnan(value) else "inf"
        message = rf"fit: {name}\[7.*\] is -?{found}" if one_of_many else f"fit: {name} holds NaN or infinity"
        if name == "state":
            message = "fit: state holds NaN or infinity"
        with pytest.raises(ValueError, match=message):
            nbprop.fit(net, loss="mse", **given)
        for key, array in before.items():
            same_bits(key, given[key], array)


# -- training that goes on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "sgd"])
def test_two_fits_are_one(optimizer):
    """Orders, dropout masks, rates of a function and the optimizer's state go on, bit for bit."""
    net = nbprop.network((64,), nbprop.dense(16), nbprop.batchnorm(), nbprop.dropout(0.2), nbprop.dense(10))
    found = []
    for counts in ((3,), (1, 1, 1), (2, 1)):
        params, state = start(net), nbprop.layer_state(nbprop.plan(net, "softmax_cross_entropy", 32, np.float32))
        remembered = nbprop.optimizer_state(optimizer, net.n_params, np.float32)
        losses, step = [], 0
        for epochs in counts:
            options = {"epochs": epochs, "first_step": step, "optimizer_state": remembered, "state": state}
            options |= {"optimizer": optimizer, "schedule": lambda step: 0.01 / (1 + step)}
            _, history = train(net, params=params, **options)
            assert history.optimizer_state is remembered
            assert (history.first_step, history.steps, history.epochs) == (step, 10 * epochs, epochs)
            losses, step = losses + history.loss, history.next_step
        found.append([params, state, remembered, np.array(losses)])
    for parts in found[1:]:
        for name, got, wanted in zip(("params", "state", "optimizer_state", "losses"), parts, found[0], strict=True):
            same_bits(name, got, wanted)


def test_what_the_optimizer_remembers_is_returned():
    params, history = train(epochs=1)
    params, history = train(
        params=params, epochs=1, optimizer_state=history.optimizer_state, first_step=history.next_step
    )
    same_bits("params", params, train(epochs=2)[0])
    assert history.next_step == 20


def test_a_resumed_run_that_went_on_from_another(tmp_path):
    """first_step counts in checkpoints, too."""
    path = tmp_path / "run"

    def second(params, **options):
        remembered = nbprop.optimizer_state("adam", NET.n_params, np.float32)
        remembered[:] = before.optimizer_state
        options = {"epochs": 3, "validation": (X, Y)} | options
        return train(params=params.copy(), optimizer_state=remembered, first_step=before.next_step, **options)

    params, before = train(epochs=2)
    whole, history = second(params)
    second(params, epochs=1, checkpoint=path)
    resumed, again = second(params, checkpoint=path, resume=True)
    same_bits("params", resumed, whole)
    assert again == history or again.validation_loss == history.validation_loss
    assert (again.best_epoch, again.steps, again.next_step) == (history.best_epoch, 30, 50)


def test_a_named_schedule_spans_the_call():
    _, first = train(epochs=2, schedule="cosine", optimizer="sgd")
    _, later = train(epochs=2, schedule="cosine", optimizer="sgd", first_step=40)
    assert later.lr == first.lr


def test_the_pace_goes_with_the_steps_that_are_left(monkeypatch):
    """A first step other than 0 changes no number of steps."""
    monkeypatch.setattr(running, "_PACE", 0.0)
    _, history = train(epochs=2, first_step=15, optimizer="sgd")
    assert (history.steps, history.epochs) == (20, 2)
