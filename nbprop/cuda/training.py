"""A training step on the device, recorded once and replayed: gather a batch, gradient, clip, update, store the loss.

A step returns nothing to the host. The host writes a page of constants (learning rates, Adam's bias corrections) ahead
of its steps, and reads their losses afterwards; the number of the step, which everything else depends on, is counted on
the device.
"""

import math
from typing import Any

import numpy as np

from nbprop.compiler.intrinsics import load, store
from nbprop.compiler.jit import njit
from nbprop.cuda import memory, toolkit
from nbprop.cuda.calls import Bound
from nbprop.cuda.fused import SUM
from nbprop.cuda.kernels import on_device
from nbprop.cuda.optimizers import Update, optimizer_state
from nbprop.cuda.sequence import Sequence
from nbprop.cuda.toolkit import cuda, grid_size
from nbprop.program import frame
from nbprop.program.elements import integer_at
from nbprop.training.job import hyperparameters as defaults

PAGE = 8 if toolkit.SIMULATED else 256  # steps whose constants and losses are on the device at a time
WORD = 4  # rows are copied in words of this many bytes


@njit
def _advance(address):
    """Increment the step of a frame."""
    store(address, frame.STEP, load(address, frame.STEP) + 1)


@on_device(blocks=lambda: 1)
def note_and_advance(losses, result, n, plan_frame, update_frame, gather_frame, note_frame, step):
    """losses[step modulo its length] = result, then increment the step of all frames; n is not used.

    losses OUT (PAGE,), result IN (1,).
    """
    if cuda.threadIdx.x == 0:
        losses[step % losses.size] = result[0]
        _advance(plan_frame)
        _advance(update_frame)
        _advance(gather_frame)
        _advance(note_frame)


@on_device(blocks=lambda samples, words: grid_size(samples * words), dtypes=(np.float32,))
def gather(to, source, n, samples, words, batch, first, order_address, epoch_address, step):
    """Rows of a batch, from its number `first` on, in words of four bytes (float32: a copy keeps their bits).

    to OUT (samples, words), source IN (n, words); order_address: of n uint32; epoch_address: of a word, the first step
    of the epoch; n is not used.
    """
    begin = (step - load_word(epoch_address)) * batch + first
    for i in range(cuda.grid(1), samples * words, cuda.gridsize(1)):
        to[i] = source[integer_at(order_address, 4, begin + i // words) * words + i % words]


@njit
def load_word(address):
    """The word at an address."""
    return load(address, 0)


class Batches:
    """Data on the device, from which steps gather their batches, in an order that the host writes each epoch.

    samples: of an epoch; rows: those of a batch that are gathered here.
    """

    def __init__(self, columns, batch, samples, rows):
        self.columns, self.batch = columns, batch
        self.buffers = rows_like(columns, rows)
        self.order = memory.empty(samples, np.uint32)
        self.epoch = memory.zeros(1, np.int64)

    def begin_epoch(self, order, first_step, stream):
        """Take the samples in this order from this step on."""
        toolkit.write(self.order.address, order, stream)
        toolkit.write(self.epoch.address, np.array([first_step], np.int64), stream)


def rows_like(columns, rows):
    """A new array of so many rows for each column that there is."""
    return [None if c is None else memory.empty((rows, *c.shape[1:]), c.dtype) for c in columns]


class NoUpdate:
    """In the place of an update, for a batch that only adds to the gradient of several."""

    def __init__(self):
        self.count, self.sums, self._frame = 0, False, Sequence().place()
        self.frame_address = self._frame.frame_address

    def prepare(self, first, values_of_steps, stream):
        """Nothing to write."""

    def enqueue(self, stream):
        """Nothing to launch."""


class Step:
    """One training step with all arguments bound: `prepare` a page of steps, then `run` each.

    columns: (x, target, weights, lengths) of its samples, as the plan's call reads them; batches: what fills them, or
    None if the caller does. state: the layer state of the network, or None. The update of a fused plan sums the slices
    into the gradient itself, unless that has to be clipped first, or summed up over batches, or the update cannot.
    """

    def __init__(self, plan, params, columns, grads, work, state, update, stream, batches=None, clips=()):
        x, target, weights, lengths = columns
        values = params, x, target, grads, work, weights, state, *[None] * 5, lengths
        self.bound = Bound("value_and_grad", plan, values)
        self.plan, self.update, self.stream, self.clips = plan, update, stream, clips
        self.losses = memory.zeros(PAGE, plan.dtype)
        summed = plan.fused is not None and update.sums and not clips
        self._slices = plan.fused.slices(self.bound.n) if summed else 0
        self._gather, self._note = gathering(batches, self.bound.n), Sequence()
        frames = {
            "plan_frame": self.bound.frame_address,
            "update_frame": update.frame_address,
            "gather_frame": self._gather.frame_address,
            "note_frame": lambda: self._note.frame_address,
        }
        self._note.add(
            note_and_advance, plan.dtype, {"losses": self.losses, "result": self.bound.result_array}, **frames
        )
        self._note.place()
        self._capture: Any = None

    def prepare(self, first, values_of_steps, update=None):
        """Write the frames for the steps from `first`, at most a page, with each step's hyperparameters.

        update: the number of the first update, where that is not `first`.
        """
        self.bound.words[frame.STEP] = first
        self.bound.write_frame(self.stream)
        self.update.count = self._slices
        self.update.prepare(first if update is None else update, values_of_steps, self.stream)
        for sequence in (self._gather, self._note, *self.clips):
            sequence.write(first, self.stream)
        if self._capture is None:
            self.bound.warm_library(self.stream)
            self._capture = toolkit.Capture(self.enqueue)

    def enqueue(self, stream):
        """Launch the whole step."""
        self._gather.enqueue(stream)
        self.bound.enqueue(stream, skip=SUM if self._slices else None)
        for part in (*self.clips, self.update, self._note):
            part.enqueue(stream)

    def run(self):
        """Replay the step once; nothing is waited for."""
        self._capture.replay(self.stream)

    def read_losses(self, first, count):
        """The losses of steps run since `prepare`, (count,) float64; waits for them."""
        host = np.empty(PAGE, self.plan.dtype)
        toolkit.read(self.losses.address, host, self.stream)
        return host[(first + np.arange(count)) % PAGE].astype(np.float64)


def gathering(batches, n, first=0):
    """The launches that copy n samples of a batch, from number `first` on, to the buffers; none without batches."""
    sequence = Sequence()
    for source, to in zip(*((), ()) if batches is None else (batches.columns, batches.buffers), strict=True):
        if source is not None:
            sizes = {"samples": n, "words": source[:1].nbytes // WORD, "batch": batches.batch}
            sizes["first"] = first
            addresses = {"order_address": batches.order.address, "epoch_address": batches.epoch.address}
            sequence.add(gather, np.float32, {"to": to, "source": source}, **sizes, **addresses)
    return sequence.place()


class TrainingStep:
    """A whole training step on the caller's device arrays, recorded once: `step()` replays it.

    On a device that is one CUDA graph. Calls return at once and run in order on `stream`; `loss()` waits for the last
    one. Between calls the arrays may be read and new data written into x, target, weights and lengths, in nbprop's
    current stream (the default one, unless inside `use_stream`): the steps keep their place among its other work.
    """

    def __init__(
        self, plan, params, x, target, optimizer="adam", weights=None, state=None, lengths=None, **hyperparameters
    ):
        if plan.target != "cuda":
            raise ValueError('TrainingStep: the plan runs on the CPU; make it with target="cuda"')
        lr, weight_decay = (hyperparameters.pop(name, None) for name in ("lr", "weight_decay"))
        values = defaults("TrainingStep", optimizer, lr, weight_decay, hyperparameters)
        self._values = list(values.values())
        self.plan, self.stream, self.steps = plan, toolkit.new_stream(), 0
        self.grads = memory.empty(plan.n_params, plan.dtype)
        self.work = memory.empty(plan.work_for("value_and_grad"), plan.dtype)
        self.optimizer_state = optimizer_state(optimizer, plan.n_params, plan.dtype)
        slices = plan.slices_in(self.work)
        self.update = Update(optimizer, params, self.grads, self.optimizer_state, page=PAGE, slices=slices)
        columns = x, target, weights, lengths
        self._step = Step(plan, params, columns, self.grads, self.work, state, self.update, self.stream)
        self._step.bound.write_frame(self.stream)
        self._step.bound.check_ranges(self.stream)

    def __call__(self):
        """Enqueue one step."""
        with memory.in_order_with(self.stream):
            if self.steps % PAGE == 0:
                self._step.prepare(self.steps, [self._values] * PAGE)
            self._step.run()
        self.steps += 1

    def loss(self):
        """The last step's loss, once it is done; NaN before the first."""
        return float(self._step.read_losses(self.steps - 1, 1)[0]) if self.steps else math.nan
