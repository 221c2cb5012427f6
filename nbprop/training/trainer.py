"""A training as Python drives it: Ctrl-C, progress, validation, early stopping, callbacks, checkpoints.

Compiled code (loop.py) runs the steps, and returns at least every fifth of a second.
"""

import contextlib
import dataclasses
import json
import math
import signal
import threading
import time
import warnings
from typing import Any

from nbprop import schedules
from nbprop.callbacks import asks_to_stop
from nbprop.io.progress import progress_bar
from nbprop.runtime import arguments as arg
from nbprop.runtime.errors import refusal
from nbprop.training import identity
from nbprop.training import loop as epochs
from nbprop.training.checkpoint import (
    PLACE,
    SUMS,
    Checkpoint,
    as_json,
    check_arrays,
    check_metrics_kept,
    check_place,
    read_checkpoint,
    write_checkpoint,
)
from nbprop.training.history import FIELDS, KEPT, History
from nbprop.training.job_on_ranks import interruption
from nbprop.training.measuring import Measure
from nbprop.training.metrics import Metrics
from nbprop.validation import check_number

# Seconds that a compiled call should take: well below 0.2, since the next call may be slower.
_PACE = 0.08

_STATE = "optimizer_state"


@dataclasses.dataclass
class Settings:
    """The settings of a run that are not in the job."""

    epochs: int
    first_step: int = 0
    validation: tuple | None = None
    patience: int | None = None
    callbacks: tuple = ()
    checkpoint: str | None = None
    checkpoint_seconds: float = 10.0
    average: tuple = (0, 0.0)  # how, and its rate (averaging.py)
    average_start: int = 0
    metrics: dict = dataclasses.field(default_factory=dict)  # name: function (metrics.py)


class Trainer:
    """One training: the job, and everything that Python does for it."""

    def __init__(self, job, settings):
        self.job, self.settings = job, settings
        self.history, self.before, self.asked = History(first_step=settings.first_step), 0.0, False
        self.pending = False  # an epoch has ended, but its end has not been processed
        self.measure: Measure | None = None
        self.watched: str | None = None
        self.identity: dict[str, Any] = {}
        self.plateau: schedules.Plateau | None = None
        # Of writing checkpoints: the last failure, a warning to raise at the end, warnings already given.
        self.failure, self.postponed, self.warned = "", None, set()
        self.interrupted = lambda: False
        self.samples, self.batch = int(job.words[epochs.N]), int(job.words[epochs.BATCH])
        self.steps_an_epoch = -(-self.samples // self.batch)
        self.first_epoch = settings.first_step // self.steps_an_epoch
        self.total = settings.epochs * self.steps_an_epoch
        if settings.validation is not None:
            self.watched, self.measure = "validation", job.measure_of(settings.validation, penalized=False)
        elif settings.patience is not None:
            self.watched, self.measure = "training", job.measure_of(job.data, penalized=True)
        words = job.words
        words[epochs.EPOCH], words[epochs.STEP] = self.first_epoch, settings.first_step
        words[epochs.EPOCHS] = self.first_epoch + settings.epochs
        self.metrics: Metrics | None = None
        if settings.metrics:
            data = job.data if settings.validation is None else settings.validation
            self.metrics = Metrics(job, data, settings.metrics)
            self.history.metrics = {name: [] for name in settings.metrics}
        words[epochs.STOPS] = self.watched is not None or bool(settings.callbacks or settings.metrics)
        if settings.average[0]:
            begin = self.first_epoch + settings.average_start
            job.take_average(*settings.average, max(settings.first_step, begin * self.steps_an_epoch), begin)
        job.keep(each_epoch=self.watched is None)

    def schedule(self, schedule, lr):
        """Set the learning rate of each step; a constant one needs no calls."""
        first = self.settings.first_step
        if isinstance(schedule, str) and schedule == "plateau":
            schedule = schedules.Plateau()
        if isinstance(schedule, schedules.Plateau):
            self.plateau, schedule = schedule, lambda step: self.plateau.rate(self._losses(), lr)
            self.job.words[epochs.STOPS] = 1
        elif isinstance(schedule, str):
            named = schedules.named(schedule, lr, self.total)
            schedule = None if schedule == "constant" else lambda step: named(step - first)
        elif schedule is not None and not callable(schedule):
            raise TypeError(
                f"fit: schedule must be a name, a function of the step or a Plateau, got {type(schedule).__name__}"
            )
        self.rate_of, self.lr = schedule, lr
        self.job.rates[:] = lr
        self._rate(first)

    # -- checkpoints

    def identify(self, found):
        """Set the identity, what the result depends on, which checkpoints store."""
        watched = {"watched": self.watched, "first_step": self.settings.first_step}
        if self.plateau is not None:
            watched["plateau"] = dataclasses.asdict(self.plateau)
        rates = identity.rates_at(self._rate, self.settings.first_step, self.total)
        self.identity = identity.as_stored(found | watched | {"lr": {"steps": self.total, "rates": rates}})

    def resume(self, allowed):
        """Continue from a checkpoint, if there is one, once all of it has been checked."""
        name, arrays, settings = self.settings.checkpoint, self._arrays(self.job.state_like()), self.settings
        found = read_checkpoint(name)
        if found is None:
            return
        mid_epoch = found.progress.get("POSITION") != 0
        changed = identity.changes(name, found.identity, self.identity, self._rate, allowed, mid_epoch)
        check_arrays(name, found.arrays, arrays)
        check_place(name, found, self.samples, self.batch, settings.first_step, self.first_epoch, self.watched)
        check_metrics_kept(name, found, settings.metrics)
        done = len(found.history["loss"])
        if done > settings.epochs:
            raise ValueError(
                f"fit: {name} has {done} finished epochs, more than epochs={settings.epochs}; pass a larger number"
            )
        self.job.take_state(found.arrays[_STATE])
        for key in arrays.keys() - {_STATE}:
            arrays[key][:] = found.arrays[key]
        words, numbers = self.job.words, self.job.numbers
        for word in PLACE:
            words[getattr(epochs, word)] = found.progress[word]
        for word in SUMS:
            numbers[getattr(epochs, word)] = found.progress[word]
        self.pending, self.before = found.progress["PENDING"], found.history["before"]
        kept = {key: found.history[key] for key in KEPT}
        if set(changed) & set(identity.MEASURED_ON):  # earlier measurements are meaningless now
            kept |= {"best_epoch": None, "best_loss": math.inf}
            numbers[epochs.LOWEST], words[epochs.LOWEST_EPOCH] = math.inf, -1
        measured = found.history.get("metrics", {})
        kept["metrics"] = {name: measured[name] for name in settings.metrics}
        self.history = History(**kept, first_step=settings.first_step)
        self.history.steps = int(words[epochs.STEP]) - settings.first_step
        for key, value in found.added.items():
            if key.isidentifier() and key not in FIELDS and not hasattr(History, key):
                setattr(self.history, key, value)

    def _arrays(self, state):
        """What a checkpoint holds, with the optimizer's state."""
        found = {"params": self.job.params, _STATE: state} | self._layers() | self.job.kept()
        return found if self.job.average is None else found | {"average": self.job.average.mean}

    def _layers(self):
        return {} if self.job.layers is None else {"layer_state": self.job.layers}

    def save(self):
        """Write a checkpoint, if asked for. A failure does not end the training: it warns, and is tried again later."""
        name = self.settings.checkpoint
        if name is None:
            return
        state, self.saved = self.job.whole_state(), time.perf_counter()
        if not self.job.writes:
            return
        words, numbers = self.job.words, self.job.numbers
        progress: dict[str, float] = {word: int(words[getattr(epochs, word)]) for word in PLACE}
        progress |= {"PENDING": self.pending}
        progress |= {word: float(numbers[getattr(epochs, word)]) for word in SUMS}
        history = {key: getattr(self.history, key) for key in KEPT} | {"before": self._elapsed()}
        if self.metrics is not None:
            history["metrics"] = self.history.metrics
        try:
            arrays = self.job.host_arrays(self._arrays(state))
            write_checkpoint(name, Checkpoint(self.identity, arrays, progress, history, self._added()))
            self.failure = ""
        except (OSError, MemoryError, TypeError, ValueError) as error:
            self.failure = f"the checkpoint could not be written ({error})"
            self._warn("failure", f"fit: {self.failure}; training continues, and will try again")
        self.saved = time.perf_counter()

    def _added(self):
        """What a callback has added to the history, as far as JSON can represent it."""
        found = {}
        for name, value in vars(self.history).items():
            if name not in FIELDS:
                try:
                    found[name] = json.loads(json.dumps(value, default=as_json))
                except (TypeError, ValueError, RecursionError) as error:
                    self._warn(name, f"fit: history.{name} is left out of checkpoints, which hold JSON: {error}")
        return found

    def _warn(self, what, text):
        """Warn once about each thing. If warnings are errors, raise it after the training."""
        if what in self.warned:
            return
        self.warned.add(what)
        try:
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        except RuntimeWarning as warning:
            self.postponed = warning

    def _elapsed(self):
        return self.before + time.perf_counter() - self.began

    # -- running

    def train(self, progress):
        """Train until something ends it; an exception has the history so far as its `history`."""
        self.began = self.saved = time.perf_counter()
        self.history.transport = self.job.transport
        begun = []
        try:
            try:
                for callback in self.settings.callbacks:
                    callback.begin(self.history)
                    begun.append(callback)
                self._train(progress)
            finally:
                for callback in begun:
                    callback.end(self.history)
            if self.postponed is not None:
                raise self.postponed
        except BaseException as error:
            vars(error)["history"] = self.history
            raise
        return self.history

    def _train(self, progress):
        words, first, steps = self.job.words, self.settings.first_step, 1
        self.last = first + self.total
        with (
            progress_bar("fit", progress, self.total, int(words[epochs.STEP]) - first, "step") as bar,
            _interrupts() as pressed,
        ):
            job = self.job  # not self: in a cycle, it and all data would live until the collector comes
            self.interrupted = lambda: pressed() or job.interrupted()
            while not self._done():
                if self.pending:
                    self._end_epoch(bar)
                else:
                    steps = self._go_on(steps, bar)
                if self.interrupted():
                    self._interrupt()
                due = time.perf_counter() - self.saved >= self.settings.checkpoint_seconds
                if self.job.time_for_checkpoint(due):
                    self.save()
            self._settle()
            if self.interrupted():  # while the last checkpoint was written, or what was kept was measured
                raise self._interruption()

    def _go_on(self, steps, bar):
        """One compiled call and its consequences; returns the number of steps for the next call."""
        job, words = self.job, self.job.words
        first = int(words[epochs.STEP])
        steps = min(self._whole_updates(self._until_called(steps, first)), self.last - first, epochs.MOST_RATES)
        steps = job.common_steps(steps)
        if self.rate_of is not None:
            job.rates[:steps] = [self._rate(step) for step in range(first, first + steps)]
        began = time.perf_counter()
        outcome = job.run_steps(steps)
        elapsed, done = time.perf_counter() - began, int(words[epochs.DONE])
        self._record()
        bar.update(done)
        if outcome == epochs.FAILED:
            raise refusal("fit", job.plan, self._call_values(), int(words[epochs.STATUS]))
        if outcome == epochs.NOT_FINITE:
            number = float(job.numbers[epochs.LOSS])
            what = (
                "the loss" if not math.isfinite(float(job.numbers[epochs.CALL + arg.RESULT])) else "the gradient's norm"
            )
            self._stop("diverged", f"{what} became {number} at step {first + done}")
        self._call_after_steps(first, first + done)
        if outcome == epochs.EPOCH_ENDED:
            self.pending = True
            self._end_epoch(bar)
        if done == 0:
            return steps
        return max(1, min(int(done * _PACE / max(elapsed, 1e-6)), 4 * steps, epochs.MOST_RATES))

    def _until_called(self, steps, first):
        """At most `steps`: up to the next step after which a callback is called."""
        return min(
            [steps, *(called.every - first % called.every for called in self.settings.callbacks if called.every)]
        )

    def _whole_updates(self, steps):
        """At least `steps`: up to an update, if several batches make one, so that nothing is half accumulated."""
        several = int(self.job.words[epochs.ACCUMULATES])
        if several == 0:
            return steps
        place = int(self.job.words[epochs.POSITION]) // self.batch
        steps = min(steps, epochs.MOST_RATES - several)
        return min(steps + -(place + steps) % several, self.steps_an_epoch - place)

    def _call_after_steps(self, first, now):
        """Call the callbacks whose step has been reached since `first`."""
        if self.history.stopped or now == first:
            return
        for called in self.settings.callbacks:
            if called.every and now // called.every > first // called.every:
                self._heed(
                    called.step(now, float(self.job.numbers[epochs.LOSS]), float(self.job.rates[now - first - 1]))
                )

    def _heed(self, answer):
        """Remember that a callback has asked to stop."""
        self.asked = self.job.any(self.asked or asks_to_stop(answer))

    def _rate(self, step):
        """The learning rate of a step, as a float."""
        if self.rate_of is None:
            return self.lr
        return check_number(f"fit: what schedule returns for step {step}", self.rate_of(step))

    def _record(self):
        """Move the epochs that a call has finished into the history."""
        words, history = self.job.words, self.history
        for loss, rate in self.job.records[: int(words[epochs.RECORD_COUNT])].tolist():
            history.loss.append(loss)
            history.lr.append(rate)
            history.seconds.append(self._elapsed())
        history.steps = int(words[epochs.STEP]) - history.first_step

    def _end_epoch(self, bar):
        """Process the end of an epoch: measure the watched loss, if there is one, and call the callback.

        Ctrl-C while measuring leaves this to a resumed run.
        """
        history, job = self.history, self.job
        if self.measure is not None:
            params, layers = job.in_use()
            loss = self.measure(params, layers, self.interrupted)
            if loss is None:
                return
            losses = history.validation_loss if self.watched == "validation" else history.training_loss
            losses.append(loss)
            history.seconds[-1] = self._elapsed()
            if not math.isfinite(loss):
                self._stop("diverged", f"the {self.watched} loss became {loss} after epoch {history.epochs - 1}")
            elif loss < history.best_loss:
                history.best_loss, history.best_epoch = loss, history.epochs - 1
                self._copy(job.kept()["best"], job.in_use())
        if self.metrics is not None and not history.stopped:
            for name, value in self.metrics(*job.in_use()).items():
                history.metrics[name].append(value)
        self.pending = False
        bar.set_postfix(loss=self._losses()[-1], refresh=False)
        for called in self.settings.callbacks:
            self._heed(called.epoch(history))

    def _losses(self):
        """The losses of the finished epochs, as they are judged."""
        history = self.history
        return history.validation_loss or history.training_loss or history.loss

    def _call_values(self):
        job = self.job
        x, target, weights, lengths = job.data
        return [job.params, x, target, job.grads, job.work, weights, job.layers, None, None, None, None, None, lengths]

    # -- ending

    def _stop(self, reason, message):
        self.history.stopped, self.history.message = reason, message

    def _done(self):
        history, patience = self.history, self.settings.patience
        if history.stopped:
            return True
        if self.pending:
            return False
        waited = history.epochs - 1 - (history.best_epoch if history.best_epoch is not None else -1)
        if patience is not None and waited >= patience:
            self._stop(
                "patience",
                f"the {self.watched} loss has not fallen since epoch {history.best_epoch}; params are those after it",
            )
        elif self.asked:
            inside = int(self.job.words[epochs.POSITION]) > 0
            when = f"step {history.next_step - 1}" if inside else f"epoch {history.epochs - 1}"
            self._stop("callback", f"the callback asked to stop after {when}")
        elif history.epochs >= self.settings.epochs:
            self._stop("epochs", f"ran all {history.epochs} epochs")
        return bool(history.stopped)

    def _settle(self):
        """Make parameters and history consistent, and write a checkpoint."""
        job, history = self.job, self.history
        if history.stopped != "diverged" and not self._is_finite():
            self._stop("diverged", f"the parameters are not finite after step {history.next_step - 1}")
        history.optimizer_state = job.state_of_history()
        if history.stopped == "diverged":
            self._restore_after_divergence()
        else:
            self.save()
            best = self.settings.patience is not None or (history.stopped == "interrupted" and self.watched is not None)
            if best and history.best_epoch is not None:
                self._restore(job.kept()["best"])
            elif job.average is not None:
                self._restore_parts(*job.in_use())
        if self.failure:
            history.message += f"; {self.failure}"

    def _is_finite(self):
        job = self.job
        arrays = job.params, job.layers, *(() if job.average is None else job.in_use())
        return all(array is None or job.finite(array) for array in arrays)

    def _interrupt(self):
        """Ctrl-C between two calls: a checkpoint, the best parameters if they were measured, and KeyboardInterrupt."""
        if not self.history.stopped:
            self._stop("interrupted", "interrupted by Ctrl-C")
        self._settle()
        raise self._interruption()

    def _interruption(self):
        return interruption(self.job, f"fit was interrupted after {self.history.steps} steps")

    def _copy(self, snapshot, arrays):
        """snapshot = arrays, the parameters and the layer state."""
        n = self.job.params.size
        for piece, array in zip((snapshot[:n], snapshot[n:]), arrays, strict=True):
            if array is not None:
                piece[:] = array

    def _parts(self, snapshot):
        n = self.job.params.size
        return snapshot[:n], None if self.job.layers is None else snapshot[n:]

    def _restore(self, snapshot):
        self._restore_parts(*self._parts(snapshot))

    def _restore_parts(self, params, layers):
        self.job.params[:] = params
        if layers is not None:
            self.job.layers[:] = layers
        self.history.optimizer_state = None  # it belongs to the last step

    def _restore_after_divergence(self):
        """Restore the snapshot with the lowest measured loss; the initial parameters if none is finite."""
        history, kept = self.history, self.job.kept()
        candidates = {"initial": None}
        if self.watched is None:  # the beginning of an epoch is the end of the one before
            begins = {"begun": self.job.words[epochs.EPOCH], "best": self.job.words[epochs.LOWEST_EPOCH]}
            ends = {name: int(epoch) - 1 - self.first_epoch for name, epoch in begins.items()}
            candidates |= {name: epoch for name, epoch in ends.items() if epoch >= 0}
        measure = self.measure or self.job.measure_of(self.job.data, penalized=True)
        chosen = "initial" if history.best_epoch is None else "best"
        self._restore(kept[chosen])  # in case a second Ctrl-C ends the measuring
        for name, epoch in candidates.items():
            params, layers = self._parts(kept[name])
            loss = measure(params, layers, self.interrupted)
            if loss is not None and loss < history.best_loss:
                history.best_loss, history.best_epoch, chosen = loss, epoch, name
        self._restore(kept[chosen])
        held = "the initial ones" if history.best_epoch is None else f"those of epoch {history.best_epoch}"
        history.message += f"; params hold {held}; try a lower lr, or clip_norm"


# -- Ctrl-C -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _interrupts():
    """A function that returns whether Ctrl-C was pressed, so that the run stops between two calls and can be resumed.

    A second Ctrl-C stops at once. Nothing changes if SIGINT has another handler, or in another thread.
    """
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def handler(number, frame):
        if pressed:
            signal.default_int_handler(number, frame)
        pressed.append(number)

    ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(pressed)
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
