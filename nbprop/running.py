"""One training as Python drives it: Ctrl-C, progress, validation, early stopping, callbacks, checkpoints.

Compiled code (epochs.py) does the steps and comes back at least every fifth of a second.
"""

import contextlib
import math
import signal
import threading
import time
from dataclasses import dataclass, field

import numpy as np

from nbprop import arguments as arg
from nbprop import calls, epochs, schedules
from nbprop.checkpoints import read_checkpoint, write_checkpoint
from nbprop.losses.base import positions_that_count
from nbprop.plan import plan as make_plan
from nbprop.plan import workspace
from nbprop.progress import progress_bar

# Seconds that a compiled call should take: well below 0.2, since the next one may be slower.
_PACE = 0.08


@dataclass
class History:
    """What `fit` returns. Lists hold a number for each epoch that was finished."""

    loss: list[float] = field(default_factory=list)  # mean over the samples seen, while the parameters moved
    validation_loss: list[float] = field(default_factory=list)  # at the epoch's end; empty without validation
    lr: list[float] = field(default_factory=list)  # of the epoch's last step
    seconds: list[float] = field(default_factory=list)  # since the start, when the epoch's end was seen
    steps: int = 0
    best_epoch: int | None = None  # of the lowest validation loss (without validation: training loss), from 0
    best_loss: float = math.inf
    stopped: str = ""  # "epochs", "patience", "callback", "diverged" or "interrupted"
    message: str = ""  # the same in a sentence

    @property
    def epochs(self):
        """How many epochs were finished."""
        return len(self.loss)


class Run:
    """One training: the job, and what only Python does for it."""

    def __init__(self, job, most_epochs, held_out, patience, callback, checkpoint, checkpoint_seconds, identity):
        self.job, self.held_out, self.patience, self.callback = job, held_out, patience, callback
        self.checkpoint, self.checkpoint_seconds, self.identity = checkpoint, checkpoint_seconds, identity
        self.history, self.before, self.asked = History(), 0.0, False
        self.steps_an_epoch = -(-identity["samples"] // identity["batch"])
        self.most_epochs = most_epochs
        self.total = most_epochs * self.steps_an_epoch
        words = job.words
        words[epochs.EPOCHS] = most_epochs
        words[epochs.STOPS] = held_out is not None or callback is not None or patience is not None
        if held_out is not None:
            self._prepare_validation()
        # With validation the best epoch is not what compiled code can know.
        words[epochs.BEST] = job.best_address if held_out is None else 0

    def _prepare_validation(self):
        """Held-out data is seen as in use; where that is no different, by the plan of the training."""
        counted = {"weights": self.held_out[2], "lengths": self.held_out[3]}
        self.counted = self.job.host_arrays({name: array for name, array in counted.items() if array is not None})
        plan, self.validation_work = self.job.plan, self.job.work
        self.validation_plan = plan
        if any(layer.modal for _, layer in plan.net.nodes):
            self.validation_plan = make_plan(
                plan.net, plan.loss, plan.batch, plan.dtype, plan.threads, "inference", plan.target
            )
            self.validation_work = workspace(self.validation_plan)

    def schedule(self, schedule, lr):
        """Choose the learning rate of each step; a constant one needs no calls."""
        if isinstance(schedule, str):
            schedule = schedules.named(schedule, lr, self.total)
        elif schedule is not None and not callable(schedule):
            raise TypeError(f"fit: schedule must be a name or a function of the step, got {type(schedule).__name__}")
        self.rate_of = schedule
        self.job.rates[:] = lr

    def resume(self):
        """Take up a checkpoint, where there is one."""
        if self.checkpoint is None:
            raise ValueError("fit: resume=True needs checkpoint=, the path of the file to go on from")
        arrays = self._arrays()
        found = read_checkpoint(self.checkpoint, self.identity, {name: a.shape for name, a in arrays.items()})
        if found is not None:
            stored, progress, history = found
            for name, array in arrays.items():
                array[:] = stored[name]
            self.before = history.pop("before")
            self.history = History(**history)
            words, numbers = self.job.words, self.job.numbers
            for name in ("EPOCH", "POSITION", "STEP", "BEST_EPOCH"):
                words[getattr(epochs, name)] = progress[name]
            for name in ("LOSS_SUM", "WEIGHT_SUM", "BEST_LOSS"):
                numbers[getattr(epochs, name)] = progress[name]

    def _arrays(self):
        job = self.job
        arrays = {"params": job.params, "optimizer_state": job.state, "best": job.best}
        return arrays | ({} if job.layers is None else {"layer_state": job.layers, "best_layer_state": job.best_layers})

    def save(self):
        """Write a checkpoint, where asked for."""
        if self.checkpoint is None:
            return
        words, numbers = self.job.words, self.job.numbers
        progress = {name: int(words[getattr(epochs, name)]) for name in ("EPOCH", "POSITION", "STEP", "BEST_EPOCH")}
        progress |= {name: float(numbers[getattr(epochs, name)]) for name in ("LOSS_SUM", "WEIGHT_SUM", "BEST_LOSS")}
        history = vars(self.history) | {"before": self._elapsed(), "stopped": "", "message": ""}
        write_checkpoint(self.checkpoint, self.identity, self.job.host_arrays(self._arrays()), progress, history)
        self.saved = time.perf_counter()

    def _elapsed(self):
        return self.before + time.perf_counter() - self.began

    def train(self, progress):
        """Run to the end, whatever ends it."""
        self.began = self.saved = time.perf_counter()
        words, history = self.job.words, self.history
        steps = 1
        with (
            progress_bar("fit", progress, self.total, int(words[epochs.STEP]), "step") as bar,
            _interrupts() as interrupted,
        ):
            while not self._done():
                steps = self._go_on(steps, bar)
                if interrupted():
                    self._interrupt()
                if time.perf_counter() - self.saved >= self.checkpoint_seconds:
                    self.save()
        if history.stopped != "diverged":
            self.save()
        if history.stopped == "diverged" or self.patience is not None:
            self._restore_best()
        return history

    def _go_on(self, steps, bar):
        """One compiled call and what follows from it; how many steps the next call should take."""
        job, words = self.job, self.job.words
        first = int(words[epochs.STEP])
        steps = min(steps, self.total - first, epochs.MOST_RATES)
        if self.rate_of is not None:
            job.rates[:steps] = [self._rate(step) for step in range(first, first + steps)]
        began = time.perf_counter()
        outcome = job.run_steps(steps)
        elapsed, done = time.perf_counter() - began, int(words[epochs.DONE])
        self._record()
        bar.update(done)
        if outcome == epochs.FAILED:
            raise calls.refusal("fit", job.plan, self._call_values(), int(words[epochs.STATUS]))
        if outcome == epochs.NOT_FINITE:
            number = float(job.numbers[epochs.LOSS])
            what = (
                "the loss" if not math.isfinite(float(job.numbers[epochs.CALL + arg.RESULT])) else "the gradient's norm"
            )
            self._diverge(f"{what} became {number} at step {first + done}")
        if outcome == epochs.EPOCH_ENDED:
            self._end_epoch(bar)
        if done == 0:
            return steps
        return max(1, min(int(done * _PACE / max(elapsed, 1e-6)), 4 * steps, epochs.MOST_RATES))

    def _rate(self, step):
        rate = float(self.rate_of(step))
        if not 0 <= rate < math.inf:
            raise ValueError(
                f"fit: schedule must return a finite learning rate of at least 0, got {rate} for step {step}"
            )
        return rate

    def _record(self):
        """Move the epochs that a call has finished into the history."""
        words, history = self.job.words, self.history
        for loss, rate in self.job.records[: int(words[epochs.RECORD_COUNT])].tolist():
            history.loss.append(loss)
            history.lr.append(rate)
            history.seconds.append(self._elapsed())
        history.steps = int(words[epochs.STEP])
        if words[epochs.BEST] and words[epochs.BEST_EPOCH] >= 0:
            history.best_epoch = int(words[epochs.BEST_EPOCH])
            history.best_loss = float(self.job.numbers[epochs.BEST_LOSS])

    def _end_epoch(self, bar):
        history = self.history
        if self.held_out is not None:
            loss = self._validate()
            history.validation_loss.append(loss)
            history.seconds[-1] = self._elapsed()
            if not math.isfinite(loss):
                self._diverge(f"the validation loss became {loss} after epoch {history.epochs - 1}")
            elif loss < history.best_loss:
                history.best_loss, history.best_epoch = loss, history.epochs - 1
                self.job.best[:] = self.job.params
                if self.job.layers is not None:
                    self.job.best_layers[:] = self.job.layers
        bar.set_postfix(loss=(history.validation_loss or history.loss)[-1], refresh=False)
        if self.callback is not None:
            answer = self.callback(history)
            self.asked = isinstance(answer, (bool, np.bool_)) and bool(answer)

    def _validate(self):
        """The mean loss on the held-out data, in batches."""
        plan, job = self.validation_plan, self.job
        x, target, weights, lengths = self.held_out
        layers = None if job.layers is None else job.layers.copy()  # validation leaves no traces in it
        total = mass = 0.0
        for start in range(0, len(x), plan.batch):
            here = slice(start, start + plan.batch)
            part = None if weights is None else weights[here]
            weight = self._mass(plan, len(x[here]), here)
            if weight > 0:
                loss = calls.value(
                    plan,
                    job.params,
                    x[here],
                    target[here],
                    self.validation_work,
                    part,
                    layers,
                    lengths=None if lengths is None else lengths[here],
                )
                total, mass = total + weight * loss, mass + weight
        return total / mass

    def _mass(self, plan, n, here):
        """What a batch's mean loss counts for: its weights, times its positions where the loss is a mean over those."""
        counted = self.counted["weights"][here].astype(np.float64) if "weights" in self.counted else np.ones(n)
        if "lengths" in self.counted and positions_that_count(plan.longest, plan.output_shape) > 1:
            counted = counted * self.counted["lengths"][here]
        return float(counted.sum())

    def _call_values(self):
        job = self.job
        x, target, weights, lengths = job.data
        return [job.params, x, target, job.grads, job.work, weights, job.layers, None, None, None, None, None, lengths]

    # -- how it ends

    def _stop(self, reason, message):
        self.history.stopped, self.history.message = reason, message

    def _interrupt(self):
        self.save()
        self._stop("interrupted", "interrupted by Ctrl-C")
        if self.held_out is not None:
            self._restore_best()
        interrupt = KeyboardInterrupt(f"fit was interrupted after {self.history.steps} steps")
        interrupt.history = self.history
        raise interrupt

    def _diverge(self, what):
        epoch = self.history.best_epoch
        kept = "the initial ones" if epoch is None else f"those of epoch {epoch}"
        self._stop("diverged", f"{what}; params hold {kept}; try a lower lr, or clip_norm")

    def _done(self):
        history = self.history
        if history.stopped:
            return True
        waited = history.epochs - 1 - (history.best_epoch if history.best_epoch is not None else -1)
        if self.patience is not None and waited >= self.patience:
            which = "training" if self.held_out is None else "validation"
            self._stop(
                "patience", f"the {which} loss has not fallen since epoch {history.best_epoch}; params hold those"
            )
        elif self.asked:
            self._stop("callback", f"the callback asked to stop after epoch {history.epochs - 1}")
        elif history.epochs >= self.most_epochs:
            self._stop("epochs", f"ran all {history.epochs} epochs")
        return bool(history.stopped)

    def _restore_best(self):
        if self.history.best_epoch is not None or self.history.stopped == "diverged":
            self.job.params[:] = self.job.best
            if self.job.layers is not None:
                self.job.layers[:] = self.job.best_layers


# -- Ctrl-C -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _interrupts():
    """A function that tells whether Ctrl-C was pressed: the run stops between two calls, where it can be resumed.

    A second Ctrl-C stops at once. Where SIGINT has a handler of somebody else's, or in another thread, nothing changes.
    """
    pressed = []
    before = signal.getsignal(signal.SIGINT)

    def handler(number, frame):
        if pressed:
            before(number, frame)
        pressed.append(number)

    ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(pressed)
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
