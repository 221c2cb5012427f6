"""`fit` against a plain loop over the public functions, and everything that can happen to a run."""

import numba
import numpy as np
import pytest
from numba.core import event
from numba.core.runtime import _nrt_python, rtsys

import nbprop
import nbprop.data
from nbprop import schedules
from nbprop.numerics.random import permutation
from nbprop.optimizers import clipping
from nbprop.runtime import arguments as arg
from nbprop.runtime import workers
from nbprop.training import job
from nbprop.training import loop as epochs
from nbprop.training import trainer as running
from support.runs import LOSS, NET, X, Y, start, train


def plain_loop(x, y, weights, count, optimizer, rate_of, clip_norm=None, clip_value=None, shuffle=True, **options):
    """What `fit` computes, by the public functions: (params, mean loss of each epoch)."""
    params, n, batch, step, losses = start(), len(x), 32, 0, []
    plan = nbprop.plan(NET, loss=LOSS, batch=batch, dtype=np.float32)
    grads, work = np.empty_like(params), nbprop.workspace(plan)
    state = nbprop.optimizer_state(optimizer, params.size, np.float32)
    for epoch in range(count):
        order, total, mass = np.arange(n), 0.0, 0.0
        if shuffle:
            permutation(5, epoch, order)
        for first in range(0, n, batch):
            rows = order[first : first + batch]
            w = None if weights is None else weights[rows]
            loss = nbprop.value_and_grad(plan, params, x[rows], y[rows], grads, work, w)
            if clip_value:
                nbprop.clip_value(grads, clip_value)
            if clip_norm:
                nbprop.clip_norm(grads, clip_norm)
            getattr(nbprop, optimizer)(params, grads, state, step, rate_of(step), **options)
            weight = len(rows) if w is None else float(sum(map(float, w)))
            total, mass, step = total + loss * weight, mass + weight, step + 1
        losses.append(total / mass)
    return params, losses


def cosine(step):
    return schedules.cosine(step, 0.01, 30)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("adam", {}),
        ("adam", {"clip_norm": 0.5, "clip_value": 0.05, "schedule": cosine}),
        ("momentum", {"shuffle": False, "weights": True, "momentum": 0.8, "weight_decay": 0.01}),
        ("adamw", {"weights": True}),
    ],
)
def test_is_the_plain_loop(optimizer, options):
    """Bit for bit, the last and smaller batch included."""
    options = dict(options)
    weights = np.random.default_rng(1).random(len(X)).astype(np.float32) if options.pop("weights", False) else None
    rate_of = options.pop("schedule", lambda step: 0.01)
    wanted, losses = plain_loop(X, Y, weights, 3, optimizer, rate_of, **options)
    got, history = train(
        epochs=3,
        seed=5,
        optimizer=optimizer,
        weights=weights,
        schedule=None if rate_of(9) == 0.01 else rate_of,
        **options,
    )
    assert got.tobytes() == wanted.tobytes()
    assert history.loss == pytest.approx(losses, rel=1e-14)
    assert (history.stopped, history.steps, history.epochs) == ("epochs", 30, 3)


def test_learns_the_digits():
    x, y = nbprop.data.digits()
    params, history = start(), None
    history = nbprop.fit(NET, params, x[:1500], y[:1500], LOSS, lr=0.01, epochs=15)
    logits = np.empty((297, 10), np.float32)
    plan = nbprop.plan(NET, batch=297, dtype=np.float32)
    nbprop.forward(plan, params, x[1500:], logits, nbprop.workspace(plan))
    assert (logits.argmax(1) == y[1500:]).mean() > 0.85
    assert history.loss[-1] < 0.2 < 1 < history.loss[0]


def test_seeds():
    first, second, other = (train(seed=seed)[0] for seed in (3, 3, 4))
    assert first.tobytes() == second.tobytes() != other.tobytes()


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(workers, "processor_share", lambda: 2)


@pytest.mark.usefixtures("two_cores")
def test_threads_give_the_same_bits(monkeypatch):
    """On a network and batches large enough for the gather and the update to be split."""
    net = nbprop.network((64,), nbprop.dense(512, activation="relu"), nbprop.dense(10))
    assert net.n_params > epochs._SPLIT_PARAMS
    assert 128 * X[0].nbytes >= epochs._SPLIT_BYTES
    one, history = train(net, batch=128, epochs=2)
    two, again = train(net, batch=128, epochs=2, threads=2)
    assert one.tobytes() == two.tobytes()
    assert history.loss == again.loss


def test_the_pace_does_not_matter(monkeypatch):
    """A return to Python after every step, and shuffling in small pieces, change no bits."""
    whole, history = train()
    monkeypatch.setattr(running, "_PACE", 0.0)
    stepwise, again = train(callback=lambda history: None)
    assert whole.tobytes() == stepwise.tobytes()
    assert history.loss == again.loss


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.uint16])
def test_integer_targets(kind):
    assert train()[0].tobytes() == train(y=Y.astype(kind))[0].tobytes()


def test_memory_maps(tmp_path):
    """Data on disk; read-only; rows in more than one axis."""
    X.tofile(tmp_path / "x")
    x = np.memmap(tmp_path / "x", np.float32, "r", shape=(300, 8, 8))
    net = nbprop.network((8, 8), nbprop.flatten(), *NET.layers)
    assert train(net, x)[0].tobytes() == train()[0].tobytes()


def test_early_stopping_restores_the_best():
    history_of_params = []
    params = start()
    history = nbprop.fit(
        NET,
        params,
        X[:60],
        Y[:60],
        LOSS,
        lr=0.03,
        batch=16,
        epochs=400,
        validation=(X[60:], Y[60:]),
        patience=3,
        callback=lambda history: history_of_params.append(params.copy()),
    )
    assert history.stopped == "patience"
    assert history.best_epoch == int(np.argmin(history.validation_loss)) == history.epochs - 4
    assert params.tobytes() == history_of_params[history.best_epoch].tobytes()
    assert history.best_loss == min(history.validation_loss)
    plan = nbprop.plan(NET, loss=LOSS, batch=240, dtype=np.float32)
    whole = nbprop.value(plan, params, X[60:], Y[60:], nbprop.workspace(plan))
    assert history.best_loss == pytest.approx(whole, rel=1e-5)


def test_patience_without_validation_watches_the_training_loss():
    _, history = train(lr=0.0, epochs=50, patience=2)
    assert (history.stopped, history.best_epoch) == ("patience", 0)


def test_masks():
    trainable = np.ones(NET.n_params, bool)
    trainable[: 64 * 16] = False
    params, history = train(trainable=trainable, optimizer="adamw", clip_norm=1.0)
    assert params[~trainable].tobytes() == start()[~trainable].tobytes()
    assert (params[trainable] != start()[trainable]).any()
    assert history.loss[-1] < history.loss[0]
    # One step of decay alone: only what the mask names has shrunk.
    one_step = {"x": X[:32], "y": Y[:32], "epochs": 1, "optimizer": "adamw"}
    decayed, _ = train(**one_step, weight_decay=0.5, decay_mask=~trainable)
    free, _ = train(**one_step, weight_decay=0.0)
    assert decayed[trainable].tobytes() == free[trainable].tobytes()
    assert (decayed[~trainable] != free[~trainable]).any()


def test_a_batch_of_weight_zero_changes_nothing():
    weights = np.zeros(len(X), np.float32)
    weights[:32] = 1
    params, history = train(weights=weights, shuffle=False, epochs=1, optimizer="sgd")
    only, _ = train(x=X[:32], y=Y[:32], epochs=1, shuffle=False, optimizer="sgd")
    assert params.tobytes() == only.tobytes()
    assert np.isfinite(history.loss[0])


def test_divergence_keeps_the_best():
    params, history = train(lr=1e38, epochs=20, optimizer="sgd")
    assert history.stopped == "diverged"
    assert "at step" in history.message
    assert "try a lower lr" in history.message
    assert params.tobytes() == start().tobytes()
    # After some good epochs: the best of them.
    params, history = train(schedule=lambda step: 0.01 if step < 25 else 1e38, epochs=20, optimizer="sgd")
    good, _ = train(epochs=2, optimizer="sgd")
    assert (history.stopped, history.best_epoch) == ("diverged", 1)
    assert params.tobytes() == good.tobytes()


def test_callback_stops():
    seen = []

    def callback(history):
        seen.append(history.epochs)
        return history.epochs == 2

    params, history = train(callback=callback, epochs=10)
    assert seen == [1, 2]
    assert history.stopped == "callback"
    assert params.tobytes() == train(epochs=2)[0].tobytes()


# -- costs ---------------------------------------------------------------------------------------------------


def test_new_networks_and_data_compile_nothing():
    train(validation=(X[:50], Y[:50]), clip_norm=1.0)
    compiled = []

    class Listener(event.Listener):
        def on_start(self, event):
            compiled.append(event.data["dispatcher"])

        def on_end(self, event):
            pass

    net = nbprop.network((4, 16), nbprop.dense(7, activation="tanh"), nbprop.flatten(), nbprop.dense(11))
    params, x = start(net), X.reshape(300, 4, 16)
    with event.install_listener("numba:compile", Listener()):
        nbprop.fit(net, params, x, Y.astype(np.uint8), LOSS, batch=7, epochs=2, validation=(x, Y), clip_norm=1.0)
    assert compiled == []


@numba.njit
def copied(array):
    return array.copy()


def test_steps_allocate_nothing():
    """Numba's allocations over 30 steps, with shuffling, weights, clipping and the keeping of the best."""
    weights = np.ones(len(X), np.float32)
    params = start()
    plan = nbprop.plan(NET, loss=LOSS, batch=32, dtype=np.float32)
    values = job.hyperparameters("fit", "adam", 0.01, None, {})
    work = job.Job(plan, params, (X, Y, weights, None), 32, "adam", values, None, None)
    work.shuffle(0)
    work.clip(clipping.CLIP_NORM, epochs.CLIP_NORM, epochs.CLIP_NORM_ROW, 1.0)
    work.words[epochs.EPOCHS] = 100
    work.keep(each_epoch=True)
    epochs.run_steps(work.address, 1)
    copied(X[0])
    _nrt_python.memsys_enable_stats()
    try:
        before = rtsys.get_allocation_stats()
        epochs.run_steps(work.address, 30)
        assert rtsys.get_allocation_stats() == before
        assert copied(X[0]).size == 64  # an allocation is seen
        assert rtsys.get_allocation_stats() != before
    finally:
        _nrt_python.memsys_disable_stats()
    assert work.words[epochs.STEP] == 31
    assert work.words[epochs.CALL + arg.STEP] == 30  # the number that dropout sees


# -- bad input -----------------------------------------------------------------------------------------------

WITH_NAN = X.copy()
WITH_NAN[7, 3] = np.nan
WITH_INFINITY = X.copy()
WITH_INFINITY[7, 3] = -np.inf
HUGE = 10**1000
WRONG = [
    ({"net": "dense"}, TypeError, "net must be what nbprop.network"),
    ({"params": list(range(5))}, TypeError, "params must be a NumPy array"),
    ({"params": np.zeros(5)}, ValueError, r"params must have shape \(1210,\)"),
    ({"params": np.zeros(1210, int)}, TypeError, "params must hold float32 or float64"),
    ({"x": X.tolist()}, TypeError, "x must be a NumPy array, got list"),
    ({"x": X.astype(np.float64)}, TypeError, "x must hold float32, got float64"),
    ({"x": X[:, :60]}, ValueError, r"x must have shape \(n, 64\)"),
    ({"x": X[::2], "target": Y[::2].copy()}, ValueError, "x must be C-contiguous"),
    ({"x": X[:0], "target": Y[:0]}, ValueError, "x has no samples"),
    ({"x": WITH_NAN}, ValueError, "x.7, 3. is nan"),
    ({"target": Y.astype(np.float32)}, TypeError, r"target must hold integers \(classes 0..9\)"),
    ({"target": Y[:50]}, ValueError, r"target must bring as many samples as x"),
    ({"target": Y + 1}, ValueError, "target must hold classes in 0..9, got 10 at target."),
    ({"weights": -np.ones(300, np.float32)}, ValueError, "weights must not be negative"),
    ({"weights": np.zeros(300, np.float32)}, ValueError, "weights must not be negative, and their sum positive"),
    ({"loss": "msee"}, ValueError, "did you mean 'mse'"),
    ({"optimizer": "adamm"}, ValueError, "did you mean 'adam"),
    ({"betta1": 0.9}, TypeError, "adam has no argument 'betta1'; did you mean 'beta1'"),
    ({"beta1": 2.0}, ValueError, "beta1 must be a number in \\[0, 1\\)"),
    ({"lr": -1.0}, ValueError, "lr must be a finite number"),
    ({"batch": 0}, ValueError, "batch must be a positive integer"),
    ({"epochs": 1.5}, ValueError, "epochs must be a positive integer"),
    ({"seed": -1}, ValueError, "seed must be an integer"),
    ({"schedule": "cosin"}, ValueError, "did you mean 'cosine'"),
    ({"schedule": 0.1}, TypeError, "schedule must be a name, a function"),
    (
        {"schedule": lambda step: np.nan},
        ValueError,
        "what schedule returns for step 0 must be a finite number of at least 0",
    ),
    ({"x": WITH_INFINITY}, ValueError, r"x\[7, 3\] is -inf"),
    ({"loss": None}, ValueError, "loss must be a loss or its name, got None"),
    ({"lr": HUGE}, ValueError, "lr must be a finite number of at least 0, got an integer of 3322 bits"),
    ({"lr": 1j}, TypeError, "lr must be a finite number of at least 0, got 1j"),
    ({"lr": np.complex64(1)}, TypeError, "lr must be a finite number of at least 0, got "),
    ({"beta1": "0.9"}, TypeError, "beta1 must be a number in \\[0, 1\\), got '0.9'"),
    ({"optimizer": "momentum", "rumelhart": "no"}, TypeError, "rumelhart must be True or False, got 'no'"),
    ({"optimizer": "momentum", "rumelhart": 2}, ValueError, "rumelhart must be True or False, got 2"),
    ({"optimizer": ["adam"]}, ValueError, "optimizer: unknown name"),
    ({"weight_decay": HUGE}, ValueError, "weight_decay must be a finite number"),
    ({"batch": True}, ValueError, "batch must be a positive integer"),
    ({"epochs": HUGE}, ValueError, "epochs ask for .* below 2"),
    ({"epochs": 2**40}, ValueError, "epochs ask for .* below 2"),
    ({"seed": HUGE}, ValueError, r"seed must be an integer in 0\.\.2\*\*63 - 1, got an integer of"),
    ({"seed": 2**63}, ValueError, "seed must be an integer"),
    ({"shuffle": []}, TypeError, r"shuffle must be True or False, got \[\]"),
    ({"shuffle": 1}, TypeError, "shuffle must be True or False, got 1"),
    ({"resume": "yes"}, TypeError, "resume must be True or False, got 'yes'"),
    ({"callback": 5}, TypeError, "callback must be a function or None, got int"),
    ({"checkpoint": 5}, TypeError, "checkpoint must be a path, got 5"),
    ({"checkpoint": b"run"}, TypeError, "checkpoint must be a path, got b'run'"),
    ({"checkpoint": "a\0b"}, TypeError, "checkpoint must be a path"),
    ({"checkpoint_seconds": "10"}, TypeError, "checkpoint_seconds must be a number of at least 0, got '10'"),
    ({"checkpoint_seconds": -1}, ValueError, "checkpoint_seconds must be a number of at least 0"),
    ({"checkpoint_seconds": np.nan}, ValueError, "checkpoint_seconds must be a number of at least 0"),
    ({"progress": "yes"}, TypeError, "progress must be True, False or None, got str"),
    ({"state": np.zeros(3, np.float32)}, ValueError, r"state must have shape \(0,\)"),
    ({"state": "anything"}, TypeError, "state must be a NumPy array"),
    ({"first_step": -1}, ValueError, "first_step must be an integer of at least 0"),
    ({"first_step": HUGE, "optimizer": "sgd"}, ValueError, "epochs ask for .* below 2"),
    ({"first_step": 5}, TypeError, "first_step needs optimizer_state"),
    ({"optimizer_state": np.zeros(5, np.float32)}, ValueError, r"optimizer_state must have shape \(2420,\)"),
    (
        {"optimizer_state": np.ones(2420, np.float32)},
        ValueError,
        "is that of earlier steps; pass first_step",
    ),
    ({"optimizer_state": np.zeros(2420)}, TypeError, "optimizer_state must hold float32"),
    ({"allow_changed": ("lr",)}, ValueError, "needs resume=True"),
    ({"resume": True}, ValueError, "resume=True needs checkpoint="),
    ({"patience": 1.0}, ValueError, "patience must be a positive integer, got 1.0"),
    (
        {"schedule": lambda step: "0.1"},
        TypeError,
        "what schedule returns for step 0 must be a finite number of at least 0, got '0.1'",
    ),
    (
        {"schedule": lambda step: HUGE},
        ValueError,
        "what schedule returns for step 0 must be a finite number of at least 0",
    ),
    ({"threads": HUGE}, ValueError, "threads must be"),
    ({"clip_norm": HUGE}, ValueError, "clip_norm must be a finite number above 0"),
    ({"clip_value": np.inf}, ValueError, "clip_value must be a finite number above 0"),
    ({"clip_value": True}, TypeError, "clip_value must be a finite number above 0"),
    ({"clip_norm": 0}, ValueError, "clip_norm must be a finite number above 0"),
    ({"patience": 0}, ValueError, "patience must be a positive integer"),
    ({"trainable": np.ones(5, bool)}, ValueError, r"trainable must have shape \(1210,\)"),
    ({"trainable": np.ones(1210)}, TypeError, "trainable must hold bool or uint8"),
    ({"validation": X}, TypeError, r"validation must be \(x, target\)"),
    ({"validation": (X, Y[:9])}, ValueError, r"validation target must bring as many samples as x"),
]


@pytest.mark.parametrize(("wrong", "error", "words"), WRONG)
def test_bad_arguments(wrong, error, words):
    params = start()
    arguments = {"net": NET, "params": params, "x": X, "target": Y, "loss": LOSS, "epochs": 1} | wrong
    with pytest.raises(error, match=words):
        nbprop.fit(**arguments)
    assert params.tobytes() == start().tobytes()


def test_aliased_and_read_only():
    whole = np.zeros(300 * 64, np.float32)
    with pytest.raises(ValueError, match="shares memory"):
        nbprop.fit(NET, whole[: NET.n_params], whole.reshape(300, 64), Y, LOSS)
    frozen = start()
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="must not be read-only"):
        nbprop.fit(NET, frozen, X, Y, LOSS)


def test_data_that_a_callback_spoils():
    """A class out of range, which no step trains on: the call that meets it is refused, and says what it met."""
    target = Y.copy()

    def spoil(history):
        target[:] = 77

    with pytest.raises(ValueError, match="fit: target"):
        train(y=target, callback=spoil)


def test_progress_bar(capsys):
    pytest.importorskip("tqdm")
    quiet, _ = train()
    assert capsys.readouterr().err == ""
    loud, _ = train(progress=True)
    assert loud.tobytes() == quiet.tobytes()
    assert "40/40" in capsys.readouterr().err
