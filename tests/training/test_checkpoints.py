"""Checkpoints of `fit`: what resumes a run, what is refused, and that nothing of them costs a training."""

import os
import signal
import stat

import numpy as np
import pytest

import nbprop
from nbprop.training import measuring
from nbprop.training import trainer as running
from support.cases import same_bits
from support.runs import NET, Stopped, X, Y, start, train, train_some_steps

HELD_OUT = X[:50], Y[:50]


def stop_at(last):
    """A callback that ends the run from inside when so many epochs are done."""

    def callback(history):
        if history.epochs == last:
            raise Stopped

    return callback


# -- a run that goes on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [1, 13, 20])
def test_resume_in_the_middle_of_an_epoch(tmp_path, monkeypatch, last):
    """A run cut at any step, and resumed, ends with the bits of the whole one; its history too."""
    path = tmp_path / "run.safetensors"
    options = {"validation": HELD_OUT, "patience": 3, "clip_norm": 1.0, "schedule": "cosine"}
    whole, history = train(**options)
    assert train_some_steps(monkeypatch, last, **options, checkpoint=path, checkpoint_seconds=0).steps == last
    resumed, again = train(**options, checkpoint=path, resume=True)
    same_bits("params", resumed, whole)
    for name in ("loss", "validation_loss", "lr", "best_epoch", "best_loss", "steps", "stopped"):
        assert getattr(again, name) == getattr(history, name)
    finished, once_more = train(**options, checkpoint=path, resume=True)
    same_bits("params", finished, whole)
    assert once_more.steps == history.steps
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]


def test_more_epochs_where_the_rates_do_not_depend_on_them(tmp_path):
    path = tmp_path / "run"
    whole, _ = train(epochs=6)
    train(epochs=2, checkpoint=path)
    same_bits("params", train(epochs=6, checkpoint=path, resume=True)[0], whole)
    with pytest.raises(ValueError, match="has 6 finished epochs, more than epochs=5"):
        train(epochs=5, checkpoint=path, resume=True)


@pytest.mark.parametrize("jump", [39, 36])
def test_a_resumed_run_diverges_as_the_whole_one(tmp_path, monkeypatch, jump):
    """What the best parameters are chosen from lies in the checkpoint, too: of this epoch's beginning, and of earlier.

    A jump at the end of an epoch spoils what the next one begins with; in its middle it does not.
    """
    path, options = tmp_path / "run", {"optimizer": "sgd", "epochs": 6}
    options |= {"schedule": lambda step: 0.1 if step < jump else 1e38, "shuffle": False}
    whole, history = train(**options)
    assert (history.stopped, history.best_epoch) == ("diverged", 2)
    train_some_steps(monkeypatch, 33, **options, checkpoint=path, checkpoint_seconds=0)
    resumed, again = train(**options, checkpoint=path, resume=True)
    same_bits("params", resumed, whole)
    assert again.message == history.message


# -- other runs' files ---------------------------------------------------------------------------------------

ALL = np.ones(NET.n_params, bool)
SOME = np.arange(NET.n_params) % 2 > 0
ONES = np.ones(len(X), np.float32)
ONE_HOT = np.eye(10, dtype=np.float32)[Y]
# What the result depends on: {name that is to be allowed: (arguments of the first run, of the second)}.
CHANGES = {
    "lr": ({}, {"lr": 0.02}),
    "lr, schedule": ({}, {"schedule": "cosine"}),
    "lr, epochs": ({"schedule": "cosine"}, {"schedule": "cosine", "epochs": 9}),
    "lr, function": ({"schedule": lambda step: 0.01}, {"schedule": lambda step: 0.01 if step < 9 else 0.02}),
    "seed": ({}, {"seed": 1}),
    "shuffle": ({}, {"shuffle": False}),
    "loss": ({"loss": "mse", "y": ONE_HOT}, {"loss": "huber", "y": ONE_HOT}),
    "network": ({}, {"net": nbprop.network((64,), nbprop.dense(16, activation="relu"), nbprop.dense(10))}),
    "x": ({}, {"x": X[::-1].copy()}),
    "target": ({}, {"y": Y[::-1].copy()}),
    "weights": ({}, {"weights": ONES}),
    "validation": ({"validation": HELD_OUT}, {"validation": (X[:40], (Y[:40] + 1) % 10)}),
    "patience": ({"patience": 3}, {"patience": 4}),
    "beta1": ({}, {"beta1": 0.8}),
    "weight_decay": ({"optimizer": "adamw"}, {"optimizer": "adamw", "weight_decay": 0.2}),
    "clip_norm": ({}, {"clip_norm": 1.0}),
    "clip_value": ({"clip_value": 1.0}, {"clip_value": 2.0}),
    "trainable": ({"trainable": ALL}, {"trainable": SOME}),
    "decay_mask": ({"decay_mask": ALL}, {}),
}
NEVER = {
    "batch": ({}, {"batch": 30}),
    "samples": ({}, {"x": X[:290], "y": Y[:290]}),
    "optimizer": ({}, {"optimizer": "sgd"}),
    "watched": ({}, {"validation": HELD_OUT}),
    "first_step": ({"optimizer": "sgd"}, {"optimizer": "sgd", "first_step": 10}),
}


@pytest.mark.parametrize("case", [*CHANGES, *NEVER])
def test_a_change_of_what_the_result_depends_on(tmp_path, case):
    """It is named; where what is stored still fits, it may be allowed."""
    path, name, (first, second) = tmp_path / "run", case.split(",")[0], (CHANGES | NEVER)[case]
    train(**first, epochs=2, checkpoint=path)
    second = {"epochs": 3} | second | {"checkpoint": path, "resume": True}
    params, written = start(), path.read_bytes()
    with pytest.raises(ValueError, match=rf"is of another run: .*\b{name}\b"):
        train(**second, params=params)
    same_bits("params", params, start())
    assert path.read_bytes() == written
    if case in NEVER:
        with pytest.raises(ValueError, match=f"unknown name {name!r}"):
            train(**second, allow_changed=(name,))
        return
    _, history = train(**second, allow_changed=[name])
    assert history.epochs == second["epochs"]
    if name == "validation":  # the lower loss of before was measured on other data
        assert history.best_epoch == 2


def test_the_order_of_an_epoch_changes_between_epochs_only(tmp_path, monkeypatch):
    path = tmp_path / "run"
    train_some_steps(monkeypatch, 13, checkpoint=path, checkpoint_seconds=0)
    with pytest.raises(ValueError, match="cannot change within an epoch"):
        train(checkpoint=path, resume=True, seed=1, allow_changed=("seed",))


def test_the_code_of_an_activation_of_ones_own_is_part_of_a_run(tmp_path, monkeypatch):
    path = tmp_path / "run"
    train(epochs=1, checkpoint=path)
    monkeypatch.setattr(running.identity, "code_of", lambda plan: "another")
    with pytest.raises(ValueError, match="only one of the two has code"):
        train(checkpoint=path, resume=True)


@pytest.mark.parametrize(
    ("allowed", "message"),
    [("lr", "must be a tuple of names"), (("rate",), "unknown name 'rate'"), ((5,), "unknown name 5")],
)
def test_what_may_be_allowed(tmp_path, allowed, message):
    train(epochs=1, checkpoint=tmp_path / "run")
    with pytest.raises((TypeError, ValueError), match=message):
        train(checkpoint=tmp_path / "run", resume=True, allow_changed=allowed)
    with pytest.raises(ValueError, match="needs resume=True"):
        train(allow_changed=("lr",))


# -- what goes wrong with the disk ---------------------------------------------------------------------------


def test_what_cannot_be_written_is_found_before_the_first_epoch(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for path, message in (
        (tmp_path / "no" / "run", "there is no folder"),
        (tmp_path / "folder", "it is a folder"),
        (tmp_path / "fifo", "it is no regular file"),
        ("/dev/null", "it is no regular file"),
        (tmp_path / ("long" * 70), "cannot be written"),
        ("/proc/run", "cannot be written"),
    ):
        params = start()
        with pytest.raises(OSError, match=message) as caught:
            train(checkpoint=path, params=params)
        assert str(path) in str(caught.value)
        same_bits("params", params, start())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fifo", "folder"]
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def lose(folder, after):
    """A callback that takes the folder away when so many epochs are done."""

    def callback(history):
        if history.epochs == after:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()

    return callback


@pytest.mark.parametrize("seconds", [0, 10])
def test_a_checkpoint_that_fails_costs_nothing(tmp_path, seconds):
    """Neither the history nor the best parameters; said while it is so, and in the end."""
    options = {"validation": HELD_OUT, "patience": 50, "epochs": 6}
    whole, history = train(**options)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.warns(RuntimeWarning, match="the checkpoint could not be written") as warned:
        params, found = train(
            **options, checkpoint=folder / "run", checkpoint_seconds=seconds, callback=lose(folder, 2)
        )
    assert len(warned) == 1
    same_bits("params", params, whole)
    assert found.validation_loss == history.validation_loss
    assert found.message.startswith(history.message)
    assert "the checkpoint could not be written" in found.message


@pytest.mark.filterwarnings("error")
def test_where_warnings_are_errors_the_training_is_over_first(tmp_path):
    (tmp_path / "folder").mkdir()
    params = start()
    with pytest.raises(RuntimeWarning, match="could not be written") as caught:
        train(
            checkpoint=tmp_path / "folder" / "run",
            checkpoint_seconds=0,
            callback=lose(tmp_path / "folder", 2),
            params=params,
        )
    assert caught.value.history.epochs == 4
    same_bits("params", params, train()[0])


def test_a_write_that_worked_again_is_no_failure(tmp_path, monkeypatch):
    path, failures = tmp_path / "run", iter([True, True, False])

    def sometimes(*arguments):
        if next(failures, False):
            raise OSError(28, "No space left on device")
        return write(*arguments)

    write = running.write_checkpoint
    monkeypatch.setattr(running, "write_checkpoint", sometimes)
    with pytest.warns(RuntimeWarning, match="No space left"):
        params, history = train(checkpoint=path, checkpoint_seconds=0, validation=HELD_OUT)
    assert history.message == "ran all 4 epochs"
    resumed, _ = train(checkpoint=path, resume=True, validation=HELD_OUT)
    same_bits("params", resumed, params)


def test_what_a_callback_adds_to_the_history(tmp_path):
    """NumPy's numbers and arrays are stored as Python's; what JSON cannot hold is left out, and named."""
    path = tmp_path / "run"

    def callback(history):
        if not hasattr(history, "accuracy"):
            history.accuracy, history.best = [], {}
        history.accuracy.append(np.float32(0.5) if history.epochs % 2 else 0.25)
        history.best["epoch"] = np.int64(history.epochs)
        history.row = np.arange(3) * np.float32(0.5)
        history.loss[-1] = np.float64(history.loss[-1])
        history.model = object()

    with pytest.warns(RuntimeWarning, match=r"history\.model is left out") as warned:
        train(epochs=3, checkpoint=path, checkpoint_seconds=0, callback=callback)
    assert len(warned) == 1
    with pytest.warns(RuntimeWarning, match=r"history\.model is left out"):
        _, history = train(epochs=5, checkpoint=path, resume=True, callback=callback)
    assert history.accuracy == [0.5, 0.25, 0.5, 0.25, 0.5]
    assert history.best == {"epoch": 5}
    assert history.epochs == len(history.loss) == 5
    _, again = train(epochs=5, checkpoint=path, resume=True)
    assert again.row == [0, 0.5, 1]
    assert not hasattr(again, "model")


def test_a_description_that_json_cannot_hold_is_found_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(nbprop.Network, "to_config", lambda net: {"layers": {1, 2}})
    with pytest.raises(TypeError, match="checkpoint needs a network whose description JSON can hold"):
        train(checkpoint=tmp_path / "run")


# -- Ctrl-C and kill -----------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c():
    """SIGINT as Python has it: a process in the background of a shell starts with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c(tmp_path, ctrl_c):
    """KeyboardInterrupt at a clean place, with the best parameters, the history and a checkpoint to go on from."""
    path = tmp_path / "run.safetensors"
    options = {"validation": HELD_OUT, "epochs": 6, "checkpoint": path}
    params = start()
    with pytest.raises(KeyboardInterrupt, match="after 30 steps") as caught:
        train(**options, callback=lambda history: history.epochs == 3 and ctrl_c(), params=params)
    history = caught.value.history
    assert (history.stopped, history.epochs) == ("interrupted", 3)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    same_bits("params", params, train(epochs=history.best_epoch + 1)[0])
    resumed, again = train(**options, resume=True)
    same_bits("params", resumed, train(epochs=6)[0])
    assert again.epochs == 6


@pytest.mark.parametrize("epoch", [2, 3])
def test_ctrl_c_while_the_held_out_data_is_measured(tmp_path, ctrl_c, monkeypatch, epoch):
    """Measuring ends at the next batch; the run that goes on measures, and calls back, first."""
    path, seen = tmp_path / "run", []
    options = {"validation": HELD_OUT, "epochs": 4, "checkpoint": path}
    whole, history = train(**{**options, "checkpoint": None})
    calls, value = [], measuring.calls.value

    def pressed(*arguments, **named):
        calls.append(0)
        if len(calls) == 2 * epoch + 1:  # the first of an epoch's two batches
            ctrl_c()
        return value(*arguments, **named)

    monkeypatch.setattr(measuring.calls, "value", pressed)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(**options, callback=lambda history: seen.append(history.epochs))
    monkeypatch.undo()
    assert len(calls) == 2 * epoch + 1
    told = caught.value.history
    assert (told.epochs, len(told.validation_loss), seen) == (epoch + 1, epoch, [*range(1, epoch + 1)])
    resumed, again = train(**options, resume=True, callback=lambda history: seen.append(history.epochs))
    same_bits("params", resumed, whole)
    assert again.validation_loss == history.validation_loss
    assert seen == [1, 2, 3, 4]


def test_ctrl_c_with_the_folder_gone_keeps_the_history(tmp_path, ctrl_c):
    folder = tmp_path / "folder"
    folder.mkdir()

    def callback(history):
        if history.epochs == 2:
            lose(folder, 2)(history)
            ctrl_c()

    with pytest.warns(RuntimeWarning, match="could not be written"), pytest.raises(KeyboardInterrupt) as caught:
        train(checkpoint=folder / "run", validation=HELD_OUT, callback=callback)
    assert caught.value.history.epochs == 2
    assert "could not be written" in caught.value.history.message


def test_an_error_of_the_callback_has_the_history():
    with pytest.raises(Stopped) as caught:
        train(callback=stop_at(3))
    assert caught.value.history.epochs == 3


KILLED = """
import os, signal, sys, time
import numpy as np
import nbprop, nbprop.data

folder, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
x, y = nbprop.data.digits()
x, y = x[:300], y[:300]
net = nbprop.network((64,), nbprop.dense(16, activation="tanh"), nbprop.dropout(0.1), nbprop.dense(10))
held_out = x[:50].copy(), y[:50].copy()
RUNS = (
    {"epochs": 600, "schedule": "cosine"},
    {"epochs": 25, "validation": held_out, "patience": 60, "clip_norm": 1.0, "optimizer": "momentum"},
    {"epochs": 25, "patience": 40, "weights": np.linspace(0, 1, 300).astype(np.float32), "batch": 300},
)

def train(run, **more):
    params = nbprop.init(net, 0, np.float32)
    options = {"lr": 0.01, "batch": 32} | RUNS[run] | more
    history = nbprop.fit(net, params, x, y, "softmax_cross_entropy", **options)
    told = history.loss, history.validation_loss, history.training_loss, history.lr, history.best_epoch, history.steps
    return params.tobytes() + repr(told).encode()

whole = [train(run) for run in range(len(RUNS))]
rng, finished = np.random.default_rng(seed), 0
for run in range(len(RUNS)):
    left = -(-kills // len(RUNS))
    while True:
        path, child = f"{folder}/run{finished}", os.fork()
        if child == 0:
            try:
                right = train(run, checkpoint=path, checkpoint_seconds=0, resume=True) == whole[run]
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(2)
            os._exit(0 if right else 1)
        if left > 0:
            time.sleep(rng.uniform(0, 0.25))
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == -signal.SIGKILL:
            left -= 1
        elif status != 0:
            sys.exit(f"run {finished}: exit code {status}")
        else:
            finished += 1
            if left <= 0:
                break
"""


@pytest.mark.scaled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_killed_at_random_moments(tmp_path, script, rounds):
    """kill -9, also in the middle of writing checkpoints: each training ends with the bits of the uninterrupted one."""
    kills, folder = rounds(20, 1000), tmp_path / "runs"
    folder.mkdir()
    script(KILLED, folder, kills, 5, timeout=60 + 2 * kills, OPENBLAS_NUM_THREADS=1)
    assert (folder / "run2").exists()
