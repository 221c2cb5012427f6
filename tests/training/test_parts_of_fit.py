"""Accumulated gradients, rates per part, class weights, metrics, callbacks: each against a plain loop or NumPy."""

import sys
import types

import numpy as np
import pytest

import nbprop
from nbprop import callbacks, schedules
from nbprop.training import metrics
from support.cases import close, same_bits
from support.runs import LOSS, NET, X, Y, start, train, train_some_steps

HELD_OUT = X[:50], Y[:50]
WEIGHTS = np.random.default_rng(2).random(len(X)).astype(np.float32)


def plain(epochs, batch, several=1, factors=None, weights=None, **options):
    """Training in the order of the samples by the public functions, an update for `several` batches at once."""
    params, grads, step = start(), np.empty(NET.n_params, np.float32), 0
    plan = nbprop.plan(NET, loss=LOSS, batch=batch * several, dtype=np.float32)
    work, state = nbprop.workspace(plan), nbprop.optimizer_state("adam", NET.n_params, np.float32)
    for _ in range(epochs):
        for first in range(0, len(X), batch * several):
            here = slice(first, first + batch * several)
            w = None if weights is None else weights[here]
            nbprop.value_and_grad(plan, params, X[here], Y[here], grads, work, w)
            before = params.copy()
            nbprop.adam(params, grads, state, step, 0.01, **options)
            if factors is not None:
                params[:] = before + factors * (params - before)
            step += 1
    return params


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("several", [3, 50])
def test_accumulated_batches_are_one_large_batch(several, weights):
    """To rounding, the last and smaller update of an epoch included; with clipping, of the whole gradient."""
    several_at_most = min(several, -(-len(X) // 32))
    wanted = plain(2, 32, several_at_most, weights=weights)
    got, history = train(epochs=2, shuffle=False, accumulate=several, weights=weights)
    close("params", got, wanted, 1e-4)
    assert history.steps == 2 * -(-len(X) // 32)
    clipped, _ = train(epochs=2, shuffle=False, accumulate=several, weights=weights, clip_norm=1e9)
    same_bits("clipped by nothing", clipped, got)


def test_batches_whose_means_are_over_unlike_counts_are_not_accumulated():
    """A mean of their means, weighed by samples, would not be that of one large batch."""
    params, target = nbprop.init(NET, 0, np.float32), np.ones((len(X), *NET.output_shape), np.float32)
    target[0] = np.nan
    with pytest.raises(ValueError, match="accumulate weighs batches by their samples"):
        nbprop.fit(NET, params, X, target, nbprop.mse(missing="ignore"), accumulate=2)
    net = nbprop.network((4, 3), nbprop.rnn(2))
    x, lengths = np.ones((6, 4, 3), np.float32), np.array([4, 1, 2, 3, 4, 1])
    with pytest.raises(ValueError, match="accumulate weighs batches by their samples"):
        nbprop.fit(net, nbprop.init(net, 0, np.float32), x, x[..., :2].copy(), "mse", lengths=lengths, accumulate=2)


def test_an_accumulating_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    """Cut after any call: calls end with an update, so that no sum of gradients has to be kept."""
    path, options = tmp_path / "run", {"epochs": 3, "accumulate": 4, "average": 0.9}
    whole, _ = train(**options)
    train_some_steps(monkeypatch, 5, **options, checkpoint=path, checkpoint_seconds=0)
    same_bits("params", train(**options, checkpoint=path, resume=True)[0], whole)
    with pytest.raises(ValueError, match="accumulate"):
        train(**options | {"accumulate": 2}, checkpoint=path, resume=True)


def test_rates_per_part():
    """By the longest name, or a factor for each parameter; the bits of a plain loop."""
    factors = np.ones(NET.n_params, np.float32)
    parts = nbprop.views(NET, factors)
    parts["0.dense.weight"][:], parts["0.dense.bias"][:] = 0.25, 0.0
    wanted = plain(1, 32, factors=factors)
    named = {"0.dense": 0.25, "0.dense.bias": 0.0}
    for given in (factors, named):
        same_bits("params", train(epochs=1, shuffle=False, lr_scale=given)[0], wanted)
    same_bits("frozen", nbprop.views(NET, wanted)["0.dense.bias"], nbprop.views(NET, start())["0.dense.bias"])
    with pytest.raises(ValueError, match=r"no parameters are called '0.dens'; did you mean"):
        train(lr_scale={"0.dens": 1.0})
    with pytest.raises(ValueError, match="does not go with schedule_free_adamw"):
        train(lr_scale=named, optimizer="schedule_free_adamw")


def test_class_weights_are_sample_weights():
    given = np.linspace(0.5, 2, 10)
    wanted = train(weights=given.astype(np.float32)[Y])[0]
    same_bits("params", train(class_weight=given)[0], wanted)
    balanced = (len(Y) / (10 * np.bincount(Y))).astype(np.float32)
    same_bits("balanced", train(class_weight="balanced")[0], train(weights=balanced[Y])[0])
    same_bits("both", train(class_weight=given, weights=WEIGHTS)[0], train(weights=given.astype("f")[Y] * WEIGHTS)[0])
    for wrong in (np.ones(9), [1.0] * 10, "equal", np.ones(10, int)):
        with pytest.raises(TypeError, match="class_weight must be 'balanced' or a float array"):
            train(class_weight=wrong)
    with pytest.raises(ValueError, match="class_weight is for one integer class"):
        train(loss="mse", y=np.eye(10, dtype=np.float32)[Y], class_weight="balanced")


def test_plateau_lowers_the_rate_of_a_run(tmp_path, monkeypatch):
    """The rates are those of the validation losses so far, in a resumed run too."""
    plateau, path = schedules.Plateau(factor=0.5, patience=0), tmp_path / "run"
    options = {"epochs": 6, "lr": 0.3, "schedule": plateau, "validation": HELD_OUT}
    whole, history = train(**options)
    rates = [plateau.rate(history.validation_loss[:epoch], 0.3) for epoch in range(6)]
    assert history.lr == rates
    assert rates[-1] < 0.3
    train_some_steps(monkeypatch, 33, **options, checkpoint=path, checkpoint_seconds=0)
    same_bits("params", train(**options, checkpoint=path, resume=True)[0], whole)
    with pytest.raises(ValueError, match="plateau"):
        train(**options | {"schedule": schedules.Plateau()}, checkpoint=path, resume=True)


# -- metrics -------------------------------------------------------------------------------------------------


def first_class(y, target):
    return float((y.argmax(-1) == 0).mean())


def test_metrics_of_a_run(tmp_path):
    path, options = tmp_path / "run", {"metrics": ["accuracy", "auc", first_class], "validation": HELD_OUT}
    params, history = train(**options, checkpoint=path)
    plan, y = nbprop.plan(NET, batch=50, dtype=np.float32), np.empty((50, 10), np.float32)
    nbprop.forward(plan, params, HELD_OUT[0], y, nbprop.workspace(plan))
    assert history.metrics["accuracy"][-1] == (y.argmax(-1) == HELD_OUT[1]).mean()
    assert history.metrics["first_class"][-1] == (y.argmax(-1) == 0).mean()
    assert 0.9 < history.metrics["auc"][-1] <= 1
    assert [len(values) for values in history.metrics.values()] == [4, 4, 4]
    _, again = train(**options, checkpoint=path, resume=True, epochs=5)
    assert {name: values[:4] for name, values in again.metrics.items()} == history.metrics
    _, without = train(metrics=["accuracy"], epochs=1)
    assert 0 < without.metrics["accuracy"][0] < 1
    with pytest.raises(ValueError, match="'r2' does not go with softmax_cross_entropy"):
        train(metrics=["r2"])
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        train(metrics=["acuracy"])


def test_metrics_are_what_their_names_say():
    """Against direct sums over samples, and pairs of them."""
    rng = np.random.default_rng(3)
    y, target, weights = rng.standard_normal((40, 2)), rng.standard_normal((40, 2)), rng.random(40)
    mean = (weights[:, None] * target).sum(axis=0) / weights.sum()
    errors = [(weights[:, None] * (target - of) ** 2).sum(axis=0) for of in (y, mean)]
    assert metrics.r2(y, target, weights) == pytest.approx((1 - errors[0] / errors[1]).mean())
    scores, positive = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
    up, down = np.flatnonzero(positive), np.flatnonzero(~positive)
    mass = weights[up][:, None] * weights[down]
    won = (scores[up][:, None] > scores[down]) + 0.5 * (scores[up][:, None] == scores[down])
    wanted = (mass * won).sum() / mass.sum()
    assert metrics.auc(scores[:, None], positive[:, None].astype(float), weights) == pytest.approx(wanted)
    pair = np.stack([np.zeros(40), scores], axis=1)
    assert metrics.auc(pair, positive.astype(int), weights) == pytest.approx(wanted)
    assert np.isnan(metrics.auc(pair, np.zeros(40, int), None))
    assert metrics.accuracy(np.array([[1.0], [-1.0]]), np.array([[1.0], [1.0]]), None) == 0.5


# -- callbacks -----------------------------------------------------------------------------------------------


class Seen(callbacks.Callback):
    """Writes down each call."""

    def __init__(self, every=0, stop=None):
        self.every, self.calls, self.stop = every, [], stop

    def begin(self, history):
        self.calls.append("begin")

    def step(self, step, loss, lr):
        assert np.isfinite(loss)
        self.calls.append((step, lr))
        return step == self.stop

    def epoch(self, history):
        self.calls.append(history.epochs)

    def end(self, history):
        self.calls.append("end")


def test_callbacks_are_called_in_time():
    seen, often = Seen(every=4), Seen(every=1)
    params, history = train(
        epochs=1, callbacks=[seen, often, lambda history: False], schedule=lambda step: 0.01 / (step + 1)
    )
    assert seen.calls == ["begin", (4, 0.01 / 4), (8, 0.01 / 8), 1, "end"]
    assert [call[0] for call in often.calls[1:-2]] == list(range(1, history.steps + 1))
    same_bits("params", params, train(epochs=1, schedule=lambda step: 0.01 / (step + 1))[0])
    _, history = train(callbacks=[Seen(every=3, stop=6)])
    assert (history.stopped, history.steps) == ("callback", 6)
    assert history.message == "the callback asked to stop after step 5"


def test_callbacks_end_whatever_happens():
    seen = Seen()

    def fail(history):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        train(callbacks=[seen, fail])
    assert seen.calls == ["begin", 1, "end"]
    with pytest.raises(TypeError, match="callbacks must be a list"):
        train(callbacks=seen)
    with pytest.raises(TypeError, match="callbacks must be Callbacks or functions, got int"):
        train(callbacks=[3])


class StandIn(types.ModuleType):
    """A logger's package that writes down what it is asked to do."""

    def __init__(self, name):
        super().__init__(name)
        self.done = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def called(*arguments, **named):
            self.done.append((name, arguments, named))
            return self

        return called


LOGGERS = {
    "tensorboardX": (lambda: callbacks.TensorBoard("runs", every=7), ["SummaryWriter", "add_scalar", "close"]),
    "mlflow": (lambda: callbacks.MLflow("digits", every=7), ["set_experiment", "start_run", "log_metrics", "end_run"]),
    "wandb": (lambda: callbacks.WandB("digits", every=7, name="one"), ["init", "log", "finish"]),
}


@pytest.mark.parametrize("package", LOGGERS)
def test_loggers(package, monkeypatch):
    """With a stand-in for the package; without it, an error that says what to install, before the first step."""
    make, calls = LOGGERS[package]
    stand_in = StandIn(package)
    monkeypatch.setitem(sys.modules, package, stand_in)
    _, history = train(epochs=2, callbacks=[make()], metrics=["accuracy"])
    assert list(dict.fromkeys(name for name, _, _ in stand_in.done)) == calls
    written = {}
    for name, arguments, named in stand_in.done:
        if name == "add_scalar":
            written[arguments[0]] = arguments[1:]
        elif name in ("log", "log_metrics"):
            written |= {key: (value, named["step"]) for key, value in arguments[0].items()}
    assert written["loss"] == (history.loss[-1], history.next_step)
    assert written["accuracy"] == (history.metrics["accuracy"][-1], history.next_step)
    assert written["step_loss"][1] == 14
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    params = start()
    with pytest.raises(ImportError, match=rf"callbacks\.\w+ needs .*; install it with: pip install {package}"):
        train(callbacks=[make()], params=params)
    same_bits("params", params, start())
