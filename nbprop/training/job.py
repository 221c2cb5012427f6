"""What `fit` prepares: checked data, and the job that compiled training (loop.py) works on."""

import ctypes
import inspect
from typing import Any

import numpy as np

from nbprop.arrays import check_vector
from nbprop.lowering.plan import workspace
from nbprop.messages import ALIASED, failure
from nbprop.networks.network import trained_of
from nbprop.optimizers import clipping, max_norm, proximal
from nbprop.optimizers import update_rules as rules
from nbprop.optimizers.api import OPTIMIZERS, optimizer_state
from nbprop.optimizers.step import check_hyperparameter
from nbprop.program import elements, table
from nbprop.runtime import arguments as arg
from nbprop.runtime.datasets import PIECE, check_data
from nbprop.runtime.entries import ENTRIES
from nbprop.training import averaging, identity
from nbprop.training import loop as epochs
from nbprop.training.measuring import Measure
from nbprop.training.metrics import class_weights
from nbprop.validation import choose, nearest

# Names that fit.py uses of this module, or of its counterpart for the device, beside the functions below.
__all__ = ["TARGET", "Job", "check_data", "check_vector", "trained_of"]
TARGET = "cpu"


# -- checks --------------------------------------------------------------------------------------------------


def hyperparameters(function, optimizer, lr, weight_decay, given):
    """{name: float}: the given hyperparameters of an optimizer, checked, and its defaults for the rest."""
    known = rules.RULES[choose("optimizer", optimizer, list(rules.RULES))].hyperparameters
    defaults = inspect.signature(OPTIMIZERS[optimizer]).parameters
    values = {name: defaults[name].default for name in known}
    values |= {name: value for name, value in (("lr", lr), ("weight_decay", weight_decay)) if value is not None}
    for name, value in given.items():
        if name not in known:
            hint = nearest(name, [*known, *_FIT_ARGUMENTS])
            raise TypeError(f"{function}: {optimizer} has no argument {name!r}; {hint}")
        values[name] = value
    return {name: check_hyperparameter(function, name, known[name], value) for name, value in values.items()}


_FIT_ARGUMENTS = (
    "batch",
    "epochs",
    "shuffle",
    "seed",
    "validation",
    "schedule",
    "clip_norm",
    "clip_value",
    "patience",
    "average",
    "metrics",
    "accumulate",
    "lr_scale",
    "class_weight",
    "max_norm",
)


# -- the job -------------------------------------------------------------------------------------------------


def check_last_batch(plan, samples):
    """Refuse a last batch of one sample for a network that computes statistics over the batch."""
    if plan.min_samples > 1 and samples % plan.batch == 1:
        raise ValueError(
            f"fit: batches of {plan.batch} leave a last one of 1 sample of {samples}, and layer {plan.coupling} needs "
            "at least 2 for its statistics; choose another batch, or leave a sample out"
        )


def check_state(plan, state, samples):
    """Layer state for training on `samples` samples, as an ndarray; None if the network has none."""
    check_last_batch(plan, samples)
    if state is None and plan.state_size > 0:
        raise TypeError(
            "fit: state is needed for this network; pass state=nbprop.layer_state(plan) of a plan with the same batch, "
            "and keep it beside params for the network's use"
        )
    if state is not None:
        state = check_vector("fit: state", state, plan.state_size, (plan.dtype,), True)
    return state if plan.state_size > 0 else None


def check_finite(function, name, array):
    """Refuse parameters or state that already hold NaN or infinity: every loss would be NaN."""
    if array is not None and not finite(array):
        raise ValueError(f"{function}: {name} holds NaN or infinity; pass values that are finite")


def finite(array):
    """Whether all elements of a 1-D array are finite."""
    return all(np.isfinite(array[start : start + PIECE]).all() for start in range(0, array.size, PIECE))


def any_set(array):
    """Whether any element of a 1-D array is nonzero."""
    return bool(array.any())


def count(x):
    """`len(x)`, or 1 if x is not a valid array yet."""
    return len(x) if isinstance(x, np.ndarray) and x.ndim > 0 else 1


def check_separate(name, written, others):
    """Check that what is written shares memory with none of the others."""
    if written is not None and any(other is not None and np.may_share_memory(written, other) for other in others):
        raise failure(ALIASED, f"fit: {name}", detail="another argument")


def with_class_weights(function, plan, data, given):
    """(x, target, weights, lengths) with the weights of the samples' classes among theirs."""
    x, target, weights, lengths = data
    factors = class_weights(plan, target, given)
    return x, target, factors if weights is None else factors * weights, lengths


class InOneProcess:
    """What a training asks of its job, where it runs in one process."""

    writes = True  # whether this process writes checkpoints
    state: Any  # of the optimizer, for the parameters that this process updates
    transport: str | None = None  # how gradients travel between ranks with a device each

    def any(self, decision):
        """Whether a decision of the user's code counts."""
        return decision

    def interrupted(self):
        """Whether a signal has reached this training in another way than the trainer's own."""
        return False

    def measure_of(self, data, *, penalized):
        """What determines the loss of a whole data set."""
        return Measure(self, data, penalized=penalized)

    def digest_of_samples(self, *arrays):
        """A digest of data; None if none was given."""
        return identity.digest_of(self, *arrays)

    def part_of(self, n):
        """The range of n parameters that this process updates."""
        return slice(0, n)

    def common_steps(self, steps):
        """How many of the steps that this process would take come before a checkpoint may be due."""
        return steps

    def time_for_checkpoint(self, due):
        """Whether to write a checkpoint now, where this process finds it due."""
        return due

    def state_like(self):
        """An array of the shape and dtype of the optimizer's whole state."""
        return self.state

    def whole_state(self):
        """The optimizer's whole state, in a process that writes checkpoints."""
        return self.state

    def take_state(self, whole):
        """Go on from a whole state of the optimizer."""
        self.state[:] = whole

    def state_of_history(self):
        """The optimizer's whole state for the history, or None."""
        return self.state


class Job(InOneProcess):
    """The words and buffers of one training; `words` and `numbers` are its words as int64 and as float64."""

    def __init__(self, plan, params, data, batch, optimizer, values, decay_mask, trainable, state=None):
        self.plan, self.params, self.data = plan, params, data
        self.words = np.zeros(epochs.WORDS, np.int64)
        self.numbers = self.words.view(np.float64)
        self.address = self.words.ctypes.data
        self.grads = np.zeros_like(params)
        self.work = workspace(plan)
        self.layers = None  # layer state, where the network has some
        self.average = None  # where the run averages its parameters
        self.rates = np.zeros(epochs.MOST_RATES)
        self.records = np.zeros((epochs.MOST_RECORDS, 2))
        # The public step compiles the update, and tries it; on copies.
        self.part, self.masks = self.part_of(params.size), (decay_mask, trainable)
        masks = dict(zip(("decay_mask", "trainable"), map(self._own, self.masks), strict=True))
        trial = optimizer_state(optimizer, self._own(params).size, params.dtype)
        OPTIMIZERS[optimizer](self._own(params).copy(), self._own(self.grads), trial, 0, **values, **masks)
        trial[:] = 0
        self.state = trial if state is None else state
        self._fill_progress(batch)
        self._fill_call(batch)
        self._fill_update(rules.RULES[optimizer], values)

    def _own(self, vector):
        """The elements of the parameters that this process updates, of an array of all of them, or None."""
        return None if vector is None else vector[self.part]

    def scale_rates(self, factors, optimizer):
        """Multiply each parameter's learning rate by a factor, (n,)."""
        self.factors = factors  # kept alive
        if not self.proximal:  # whose kernel takes them, too
            kernel = rules.RULES[optimizer].scaled_kernel
            kernel.load(self.plan.numba_dtype)
            self.words[epochs.UPDATE + table.KERNEL] = kernel.fingerprint(self.plan.numba_dtype)
        self.words[epochs.UPDATED + rules.FACTORS] = self._own(factors).ctypes.data

    def accumulate(self, batches):
        """Update once for so many batches, by the weighted mean of their gradients, which clipping takes, too."""
        averaging.MEAN.load(self.plan.numba_dtype)
        self._header(epochs.SUM, averaging.MEAN.fingerprint(self.plan.numba_dtype), averaging.ROW)
        self.gradient = np.zeros_like(self.grads)
        row = self.words[epochs.SUMMED :]
        row[averaging.ROW_MEAN], row[averaging.ROW_PARAMS] = self.gradient.ctypes.data, self.grads.ctypes.data
        row[averaging.ROW_N] = self.grads.size
        self.words[epochs.ACCUMULATES] = min(batches, -(-len(self.data[0]) // self.plan.batch))
        self.words[epochs.UPDATED + rules.GRADS] = self.gradient.ctypes.data

    def project(self, limit):
        """End each update with the projection of max_norm.py."""
        max_norm.MAX_NORM.load(self.plan.numba_dtype)
        self._header(epochs.PROJECT, max_norm.MAX_NORM.fingerprint(self.plan.numba_dtype), max_norm.ROW)
        self.matrices = max_norm.weight_matrices(self.plan.net)  # kept alive
        row, trainable = self.words[epochs.PROJECTED :], self.masks[1]
        row[max_norm.ROW_PARAMS], row[max_norm.ROW_MATRICES] = self.params.ctypes.data, self.matrices.ctypes.data
        row[max_norm.ROW_TRAINABLE] = 0 if trainable is None else trainable.ctypes.data
        row[max_norm.ROW_COUNT] = len(self.matrices)
        self.numbers[epochs.PROJECTED + max_norm.ROW_LIMIT] = limit

    def empty(self, shape):
        """A new array of the job's dtype."""
        return np.empty(shape, self.plan.dtype)

    def keep(self, each_epoch):
        """Allocate snapshots (parameters, then layer state), filled with the present values.

        They are the initial one, the best one and, with each_epoch, the one at the beginning of each epoch; compiled
        code then selects the best by the mean losses of the epochs (see loop.py).
        """
        self._kept = [self.snapshot() for _ in range(3 if each_epoch else 2)]
        self.words[epochs.BEST] = self._kept[1].ctypes.data
        self.words[epochs.BEGUN] = self._kept[2].ctypes.data if each_epoch else 0

    def take_average(self, how, rate, first_step, first_epoch):
        """Average the parameters, and the layer state, from a step or an epoch on (averaging.py)."""
        average = self.average = averaging.Average(self, how)
        words, row, n = self.words, self.words[epochs.MEANT :], self.params.size
        averaging.MEAN.load(self.plan.numba_dtype)
        self._header(epochs.MEAN, averaging.MEAN.fingerprint(self.plan.numba_dtype), averaging.ROW)
        shift = 0 if average.shift is None else average.shift.ctypes.data
        row[averaging.ROW_MEAN], row[averaging.ROW_PARAMS] = average.mean.ctypes.data, self.params.ctypes.data
        row[averaging.ROW_SHIFT], row[averaging.ROW_N] = shift, n
        if self.layers is not None:
            kept = sum(buffer.size for _, buffer, _ in self.plan.state_parts if buffer.name)
            row[averaging.ROW_LAYERS], row[averaging.ROW_STATISTICS] = self.layers.ctypes.data, kept
            row[averaging.ROW_STATE] = self.layers.size
            words[epochs.LAYERS] = average.mean[n:].ctypes.data
        words[epochs.PARAMS] = average.mean.ctypes.data  # snapshots are taken of the mean
        words[epochs.AVERAGES], self.numbers[epochs.MEAN_RATE] = how, rate
        words[epochs.MEAN_STEP], words[epochs.MEAN_EPOCH] = first_step, first_epoch

    def in_use(self):
        """(parameters, layer state or None) to measure and keep: the mean where the run averages, else the last."""
        return (self.params, self.layers) if self.average is None else self.average.parts()

    def snapshot(self):
        """The parameters, followed by the layer state."""
        return np.concatenate([self.params, *([] if self.layers is None else [self.layers])])

    def kept(self):
        """{name: snapshot}."""
        names = {self.words[word]: name for word, name in ((epochs.BEST, "best"), (epochs.BEGUN, "begun"))}
        return {names.get(array.ctypes.data, "initial"): array for array in self._kept}

    finite = staticmethod(finite)

    def run_steps(self, steps):
        """Run up to `steps` steps; returns an outcome (see loop.py)."""
        return epochs.run_steps(self.address, steps)

    def host_arrays(self, arrays):
        """The arrays themselves, which are on the host."""
        return arrays

    def _fill_progress(self, batch):
        words = self.words
        self.numbers[epochs.LOWEST], words[epochs.LOWEST_EPOCH] = np.inf, -1
        words[epochs.ENTRY], words[epochs.PLAN] = ENTRIES["value_and_grad"].address, self.plan.address
        words[epochs.N], words[epochs.BATCH] = len(self.data[0]), batch
        words[epochs.THREADS] = self.plan.threads
        words[epochs.RATES], words[epochs.RECORDS] = self.rates.ctypes.data, self.records.ctypes.data
        words[epochs.PARAMS], words[epochs.PARAM_BYTES] = self.params.ctypes.data, self.params.nbytes
        words[epochs.MEMMOVE] = epochs.memmove_address()

    def shuffle(self, seed):
        """Shuffle the samples of each epoch."""
        words, n = self.words, len(self.data[0])
        self.order = np.zeros(n, np.uint32)
        self.buffers = [
            None if a is None else np.empty((words[epochs.BATCH], *a.shape[1:]), a.dtype) for a in self.data
        ]
        words[epochs.SHUFFLES], words[epochs.SEED], words[epochs.ORDER] = 1, seed, self.order.ctypes.data
        for column, buffer in enumerate(self.buffers):
            if buffer is not None:
                words[epochs.COLUMNS + column * epochs.COLUMN + epochs.BUFFER] = buffer.ctypes.data
        epochs.GATHER_OP.load()
        self._header(epochs.GATHER, epochs.GATHER_OP.fingerprint(), 2)
        words[epochs.GATHERED] = self.address

    def _header(self, row, fingerprint, operands):
        self.words[row + table.KERNEL] = fingerprint
        self.words[row + table.LENGTH] = table.OPERANDS + operands
        self.words[row + table.BARRIER] = 1

    def _fill_call(self, batch):
        """The argument block of the gradient (see arguments.py); each step fills in the addresses of its batch."""
        words = self.words
        for argument, array in ((arg.PARAMS, self.params), (arg.GRADS, self.grads), (arg.WORK, self.work)):
            self._describe(argument, array, array.ctypes.shape_as(ctypes.c_int64))
        for column, (argument, array) in enumerate(zip(epochs.ARGUMENTS, self.data, strict=True)):
            if array is not None:
                here, shape = epochs.COLUMNS + column * epochs.COLUMN, epochs.SHAPES + column * epochs.SHAPE
                words[here + epochs.BASE] = array.ctypes.data
                words[here + epochs.ROW_BYTES] = array[0].nbytes
                words[shape : shape + array.ndim] = (batch, *array.shape[1:])
                self._describe(argument, array, None)
                words[epochs.CALL + argument * arg.DESCRIPTION + arg.SHAPE] = self.address + 8 * shape
        if self.data[2] is not None:
            words[epochs.WEIGHT_CODE] = elements.element_code(self.data[2].dtype)

    def layer_state(self, state):
        """Use an array of layer state."""
        self.layers = state
        self.words[epochs.LAYERS], self.words[epochs.LAYER_BYTES] = state.ctypes.data, state.nbytes
        self._describe(arg.STATE, state, state.ctypes.shape_as(ctypes.c_int64))

    def _describe(self, argument, array, shape):
        if shape is not None:
            self.shapes = [*getattr(self, "shapes", ()), shape]
        start = epochs.CALL + argument * arg.DESCRIPTION
        address = 0 if shape is None else ctypes.addressof(shape)
        flags = arg.CONTIGUOUS | arg.WRITABLE | arg.ALIGNED
        description = array.ctypes.data, array.ndim, address, elements.element_code(array.dtype), flags
        self.words[start : start + len(description)] = description

    def _fill_update(self, rule, values):
        self._header(epochs.UPDATE, rule.kernel.fingerprint(self.plan.numba_dtype), rules.ROW)
        vectors = self._own(self.params), self._own(self.grads), self.state, *map(self._own, self.masks)
        row = self.words[epochs.UPDATED :]
        row[: len(vectors)] = [0 if vector is None else vector.ctypes.data for vector in vectors]
        row[rules.N] = vectors[0].size
        penalty = self.plan.penalty
        self.proximal = penalty is not None and penalty.smooth
        if self.proximal:
            self._fill_proximal(row, rule.name, penalty)
        start = epochs.UPDATED + rules.HYPERPARAMETERS
        self.numbers[start : start + len(values)] = list(values.values())

    def _fill_proximal(self, row, name, penalty):
        """Let the update end in the soft threshold of l1, which the gradients leave out."""
        kernel, self._penalized = proximal.PROXIMAL[name], penalty.mask(self.params.size)
        kernel.load(self.plan.numba_dtype)
        self._header(epochs.UPDATE, kernel.fingerprint(self.plan.numba_dtype), proximal.ROW)
        row[proximal.PENALIZED] = self._own(self._penalized).ctypes.data
        row.view(np.float64)[proximal.L1] = penalty.l1

    def clip(self, native, fingerprint_word, row, limit):
        """Clip with a kernel of clipping.py."""
        native.load(self.plan.numba_dtype)
        self.words[fingerprint_word] = native.fingerprint(self.plan.numba_dtype)
        words = self.words
        words[row + clipping.ROW_GRADS] = words[epochs.UPDATED + rules.GRADS]
        words[row + clipping.ROW_TRAINABLE] = words[epochs.UPDATED + rules.TRAINABLE]
        words[row + clipping.ROW_N] = words[epochs.UPDATED + rules.N]
        self.numbers[row + clipping.ROW_LIMIT] = limit
