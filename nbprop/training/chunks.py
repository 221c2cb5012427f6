"""`fit_chunks`: train on data that comes in chunks, larger than memory, shuffled within a window.

A window is so many samples in the order of the chunks; `fit` trains on each, one pass, with the state of the optimizer
of the one before. Windows and the order in them depend on the samples and the seed alone, not on the sizes of chunks,
so that a resumed run, which skips the windows that it has had, ends with the bits of the whole one.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbprop.arrays import as_array, check_vector
from nbprop.callbacks import Callback, asks_to_stop, check_callbacks
from nbprop.io.networks import digest
from nbprop.losses import Loss
from nbprop.networks.network import Network
from nbprop.optimizers.api import optimizer_state
from nbprop.optimizers.update_rules import RULES
from nbprop.training import checkpoint as checkpoints
from nbprop.training import identity as identities
from nbprop.training.fit import fit
from nbprop.training.history import History
from nbprop.training.read_ahead import read_ahead as ahead
from nbprop.validation import check_callable, check_flag, check_integer, check_number, check_seed, choose, shown

# What `fit` has, and a run over windows has not: it lasts longer than one call, or needs all data.
_REFUSED = (
    *("accumulate", "allow_changed", "average", "average_start", "comm", "first_step", "lengths"),
    *("optimizer_state", "shuffle", "transport", "weights"),
)
# What may differ in a resumed run: no number depends on it, or it cannot be told.
_NOT_COMPARED = ("metrics", "schedule", "state", "threads")


def fit_chunks(
    net: Network,
    params: NDArray[Any],
    chunks: Iterable[tuple[Any, ...]] | Callable[[], Iterator[tuple[Any, ...]]],
    loss: str | Loss,
    optimizer: str = "adam",
    batch: int = 128,
    epochs: int = 1,
    window: int = 65536,
    seed: int = 0,
    validation: tuple[Any, ...] | None = None,
    schedule: Callable[[int], float] | None = None,
    callback: Callable[[History], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    resume: bool = False,
    read_ahead: bool = False,
    patience: int | None = None,
    callbacks: Sequence[Callback | Callable[[History], Any]] | None = None,
    **others: Any,
) -> History:
    """Train on an iterator of chunks, larger than memory, in place.

    Parameters
    ----------
    net, params, loss, optimizer, batch, validation
        As for `fit`.
    chunks : list of (x, target) or (x, target, weights), or a function that returns an iterator of them
        Arrays as for `fit`, of any number of samples each. The function is called for each epoch, and has to give the
        same samples in the same order. `file_chunks` makes one that reads files.
    epochs : int
        Passes over all chunks.
    window : int
        Samples that are in memory, and shuffled among each other. The last batch of a window may be smaller.
    seed : int
        Keys the order in each window, with the epoch and the window's number.
    schedule : function or None
        Of the step, from 0; returns the learning rate. By name there is none: the number of steps is not known.
    callback : function or None
        Called as callback(history) after each epoch; training stops when it returns True.
    checkpoint, checkpoint_seconds, resume
        A file for the state after a window, written as often at most, and at the end of each epoch; whether to continue
        from it. The chunks are then asked for again, and passed over up to that window.
    read_ahead : bool
        Whether a thread asks chunks for the next window while this one is trained on; the bits are the same. Four
        windows are in memory then, and three otherwise.
    patience : int or None
        Stop after this many epochs without a lower validation loss; params, and the layer state, are then those of the
        best epoch, as they are however a run with patience ends. Needs `validation`.
    callbacks : list of `callbacks.Callback` or functions, or None
        As for `fit`: `epoch` is called after each pass over the chunks, `step` every so many steps of the whole run.
    **others
        Of `fit`: lr, clip_norm, clip_value, weight_decay, decay_mask, trainable, threads, state, metrics, class_weight
        (an array), lr_scale, max_norm, l2, l1, penalized, and the optimizer's own. Not: `average` and
        schedule_free_adamw, whose means would begin anew in each window; `accumulate`, since a window need not hold
        whole updates (take a larger batch); `shuffle`, `weights` and `lengths`, which are data's own.

    Returns
    -------
    History
        Of epochs, as `fit` returns it.

    Raises
    ------
    TypeError, ValueError
        For an argument or a chunk that does not fit; of a chunk, when its window is reached.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> def chunks():
    ...     for k in range(10):
    ...         x = np.linspace(k, k + 1, 50)[:, None]
    ...         yield x / 10, x / 10
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> history = nbprop.fit_chunks(net, nbprop.init(net), chunks, "mse", batch=10, epochs=3, window=200, lr=0.05)
    >>> history.steps, history.loss[-1] < 0.01
    (150, True)
    """
    if not isinstance(net, Network):
        raise TypeError(f"fit_chunks: net must be what nbprop.network(...) returns, got {type(net).__name__}")
    params = check_vector("fit_chunks: params", params, net.n_params, (np.float32, np.float64), True)
    for name in _REFUSED:
        if name in others:
            raise TypeError(f"fit_chunks: there is no {name}, since a run goes over windows; leave it out, or use fit")
    choose("fit_chunks: optimizer", optimizer, RULES)
    if optimizer == "schedule_free_adamw":
        raise ValueError("fit_chunks: optimizer schedule_free_adamw is for fit, whose end turns its state into params")
    epochs, window = check_integer("fit_chunks: epochs", epochs), check_integer("fit_chunks: window", window)
    seed, resume = check_seed("fit_chunks: seed", seed), check_flag("fit_chunks: resume", resume)
    read_ahead = check_flag("fit_chunks: read_ahead", read_ahead)
    check_callable("fit_chunks: schedule", schedule, or_none=True)
    called = check_callbacks(check_callable("fit_chunks: callback", callback, or_none=True), callbacks)
    if patience is not None:
        patience = check_integer("fit_chunks: patience", patience, high=math.inf)
        if validation is None:
            raise ValueError("fit_chunks: patience needs validation=, the data whose loss it watches")
    seconds = check_number("fit_chunks: checkpoint_seconds", checkpoint_seconds, ends="[]")
    if resume and checkpoint is None:
        raise ValueError("fit_chunks: resume=True needs checkpoint=, the path of the file to resume from")
    if not callable(chunks) and not isinstance(chunks, (list, tuple)):
        raise TypeError(f"fit_chunks: chunks must be a list, or a function of an iterator, got {type(chunks).__name__}")
    options = {"loss": loss, "optimizer": optimizer, "batch": batch, "schedule": schedule, **others}
    path = checkpoints.file_to_write("fit_chunks", "checkpoint", checkpoint)
    run = _Run(net, params, chunks, options, validation, window, seed, read_ahead, patience)
    if path is not None:
        run.identify(path)
    if resume:
        run.resume(epochs)
    run.callbacks = called
    for one in called:
        one.begin(run.history)
    try:
        return run.train(epochs, seconds)
    finally:
        for one in called:
            one.end(run.history)


def windows_of(chunks, size):
    """Windows (x, target, weights or None) of so many samples, the last one of the rest."""
    parts: list[tuple[Any, ...]] = []
    held = 0
    for chunk in _iterator(chunks):
        if not isinstance(chunk, (tuple, list)) or len(chunk) not in (2, 3):
            raise TypeError(f"fit_chunks: a chunk must be (x, target) or (x, target, weights), got {shown(chunk)}")
        names = ("x", "target", "weights")
        chunk = tuple(as_array(f"fit_chunks: chunks: {name}", a) for name, a in zip(names, chunk, strict=False))
        if any(len(a) != len(chunk[0]) for a in chunk) or (parts and len(parts[0]) != len(chunk)):
            raise ValueError("fit_chunks: the arrays of chunks must have as many samples, and be as many in each")
        while held + len(chunk[0]) >= size:
            taken = size - held
            yield _joined([*parts, tuple(a[:taken] for a in chunk)])
            parts, held, chunk = [], 0, tuple(a[taken:] for a in chunk)
        if len(chunk[0]):
            # Copies: an iterator may fill the same arrays again.
            parts, held = [*parts, tuple(a.copy() for a in chunk)], held + len(chunk[0])
    if held:
        yield _joined(parts)


def _iterator(chunks):
    found = chunks() if callable(chunks) else chunks
    if not isinstance(found, Iterable):
        raise TypeError(f"fit_chunks: chunks must return an iterator, got {type(found).__name__}")
    return found


def _joined(parts):
    if any(
        a.dtype != b.dtype or a.shape[1:] != b.shape[1:] for part in parts for a, b in zip(parts[0], part, strict=True)
    ):
        raise TypeError("fit_chunks: the arrays of chunks must have one dtype and one shape of a sample")
    x, target, *weights = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return x, target, weights[0] if weights else None


class _Steps(Callback):
    """The steps of a window, for a callback of the whole run."""

    def __init__(self, callback):
        self.every, self._callback = callback.every, callback

    def step(self, step, loss, lr):
        return self._callback.step(step, loss, lr)


class _Run:
    """A training over windows: what passes from one to the next."""

    def __init__(self, net, params, chunks, options, validation, window, seed, reads_ahead, patience):
        self.net, self.params, self.chunks, self.options, self.validation = net, params, chunks, options, validation
        self.window, self.seed, self.reads_ahead, self.patience = window, seed, reads_ahead, patience
        self.callbacks = []
        self.best = {} if patience is None else {f"best_{k}": a.copy() for k, a in self._trained().items()}
        self.state = None  # of the optimizer
        self.history, self.before = History(), 0.0
        self.number, self.loss, self.samples = 0, 0.0, 0.0  # windows of this epoch, and the sums of their losses
        self.path, self.identity, self.first_digest = None, {}, ""

    def identify(self, path):
        """Say where checkpoints go, and what they must agree in."""
        known = {name: value for name, value in self.options.items() if name not in _NOT_COMPARED}
        arrays = {name: value for name, value in known.items() if isinstance(value, np.ndarray)}
        plain = {name: repr(value) for name, value in known.items() if name not in arrays}
        digests = {name: digest({}, value.tolist()) for name, value in arrays.items()}
        self.path, kind = path, {"kind": "fit_chunks", "network": self.net.to_config(), "dtype": str(self.params.dtype)}
        self.identity = identities.as_stored(kind | {"window": self.window, "seed": self.seed} | plain | digests)

    def _trained(self):
        layers = self.options.get("state")
        return {"params": self.params} | ({} if layers is None else {"layer_state": layers})

    def _arrays(self):
        return self._trained() | {"optimizer_state": self.state} | self.best

    def save(self):
        """Write a checkpoint, if asked for."""
        if self.path is None:
            return
        history = {
            name: getattr(self.history, name) for name in ("loss", "validation_loss", "lr", "seconds", "metrics")
        }
        progress = {"WINDOW": self.number, "STEP": self.history.steps, "LOSS": self.loss, "SAMPLES": self.samples}
        kept = checkpoints.Checkpoint(self.identity, self._arrays(), progress, history, {"first": self.first_digest})
        checkpoints.write_checkpoint(self.path, kept)

    def resume(self, epochs):
        """Continue from the checkpoint, if there is one."""
        found = checkpoints.read_checkpoint(self.path)
        if found is None:
            return
        different = [
            name for name in {*self.identity, *found.identity} if self.identity.get(name) != found.identity.get(name)
        ]
        if different:
            raise ValueError(
                f"fit_chunks: {self.path} is of another run: its {min(different)} differs; pass another path"
            )
        self._make_state()
        checkpoints.check_arrays(self.path, found.arrays, self._arrays())
        progress, done = found.progress, len(found.history["loss"])
        if done > epochs:
            raise ValueError(f"fit_chunks: {self.path} has {done} finished epochs, more than epochs={epochs}")
        for name, array in self._arrays().items():
            array[:] = found.arrays[name]
        self.history, self.before = History(**found.history), found.history["seconds"][-1] if done else 0.0
        self.number, self.history.steps = progress["WINDOW"], progress["STEP"]
        self.loss, self.samples, self.first_digest = progress["LOSS"], progress["SAMPLES"], found.added["first"]
        for epoch, loss in enumerate(self.history.validation_loss):
            if loss < self.history.best_loss:
                self.history.best_loss, self.history.best_epoch = loss, epoch

    def _make_state(self):
        if self.state is None:
            self.state = optimizer_state(self.options["optimizer"], self.net.n_params, self.params.dtype)

    def train(self, epochs, seconds):
        """All windows of all epochs that are left."""
        self._make_state()
        began = saved = time.perf_counter()
        while self.history.epochs < epochs and not self.history.stopped:
            following, skipped = None, self.number
            with contextlib.closing(self._windows()) as windows:
                for index, window in enumerate(windows):
                    self._check_same(index, window)
                    if index >= skipped:
                        if following is not None:
                            self._train_window(following, last=False)
                            if time.perf_counter() - saved >= seconds:
                                self.save()
                                saved = time.perf_counter()
                        following = window
                    if self.history.stopped:
                        break
            if following is not None and not self.history.stopped:
                self._train_window(following, last=True)
            if self.samples == 0:
                raise ValueError("fit_chunks: chunks gave no samples")
            if not self.history.stopped:
                self._end_epoch(self.before + time.perf_counter() - began)
                self.save()
                self._heed_callbacks()
        if self.best and self.history.best_epoch is not None:
            for name, array in self._trained().items():
                array[:] = self.best[f"best_{name}"]
        if not self.history.stopped:
            self.history.stopped, self.history.message = "epochs", f"ran all {self.history.epochs} epochs"
        return self.history

    def _windows(self):
        windows = windows_of(self.chunks, self.window)
        return ahead(windows) if self.reads_ahead else windows

    def _heed_callbacks(self):
        """Call what is to be called after an epoch, and stop if it asks for that, or patience is over."""
        history = self.history
        answers = [one.epoch(history) for one in self.callbacks]
        if any(asks_to_stop(answer) for answer in answers):
            history.stopped = "callback"
            history.message = f"the callback asked to stop after epoch {history.epochs - 1}"
        elif self.patience is not None and history.epochs - 1 - (history.best_epoch or 0) >= self.patience:
            history.stopped = "patience"
            history.message = f"no lower validation loss in {self.patience} epochs; the best was {history.best_epoch}"

    def _check_same(self, index, window):
        """Refuse chunks that begin with other samples than those of the epoch, or the run, before."""
        if index > 0 or self.path is None:
            return
        found = digest({"x": window[0], "target": window[1]}, [])
        if self.first_digest and found != self.first_digest:
            raise ValueError(
                "fit_chunks: chunks begin with other samples than before; give the same ones in each epoch"
            )
        self.first_digest = found

    def _train_window(self, window, last):
        x, target, weights = window
        key = np.random.SeedSequence([self.seed, self.history.epochs, self.number]).generate_state(1, np.uint64)[0]
        options = dict(self.options)
        if last and self.validation is not None:
            options["validation"] = self.validation
        metrics = options.pop("metrics", None)
        if last:
            options["metrics"] = metrics
        history = fit(
            self.net,
            self.params,
            x,
            target,
            epochs=1,
            seed=int(key >> np.uint64(1)),
            weights=weights,
            optimizer_state=self.state,
            first_step=self.history.steps,
            progress=False,
            callbacks=[_Steps(one) for one in self.callbacks if one.every],
            **options,
        )
        self.history.steps += history.steps
        if history.stopped in ("diverged", "callback"):
            self.history.stopped, self.history.message = history.stopped, history.message
            return
        mass = float(len(x)) if weights is None else float(weights.sum(dtype=np.float64))
        self.loss, self.samples, self.number = self.loss + mass * history.loss[0], self.samples + mass, self.number + 1
        self.rate = history.lr[-1]
        if last:
            self.history.validation_loss += history.validation_loss
            for name, values in history.metrics.items():
                self.history.metrics.setdefault(name, []).extend(values)

    def _end_epoch(self, seconds):
        history = self.history
        history.loss.append(self.loss / self.samples)
        history.lr.append(self.rate)
        history.seconds.append(seconds)
        if history.validation_loss and history.validation_loss[-1] < history.best_loss:
            history.best_loss, history.best_epoch = history.validation_loss[-1], history.epochs - 1
            for name, array in self._trained().items():
                if self.best:
                    self.best[f"best_{name}"][:] = array
        self.number, self.loss, self.samples = 0, 0.0, 0.0
