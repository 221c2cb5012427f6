"""`fit` on the device, under the names that job.py has for the host: the checks of its data, and the job.

Data, parameters and state stay on the device. Only the losses of each page of steps come back, and, with sample
weights, one copy of these at the start. The order of samples is drawn on the host, by the generator of the CPU.
"""

import math

import numpy as np

from nbprop.arrays import check_kinds, check_shape, described
from nbprop.cuda import clipping, memory, toolkit
from nbprop.cuda import functions as f
from nbprop.cuda.averaging import Mean, add_mean
from nbprop.cuda.groups import block_sum
from nbprop.cuda.kernels import on_device
from nbprop.cuda.max_norm import project
from nbprop.cuda.optimizers import Update, optimizer_state
from nbprop.cuda.sequence import Sequence
from nbprop.cuda.toolkit import THREADS, cuda
from nbprop.cuda.training import PAGE, WORD, Batches, NoUpdate, Step
from nbprop.messages import CLASS_RANGE, LENGTH_RANGE, READ_ONLY, failure
from nbprop.numerics.random import permutation
from nbprop.numerics.scalars import like
from nbprop.optimizers import clipping as host_clipping
from nbprop.optimizers import max_norm
from nbprop.program import elements
from nbprop.program.elements import integer_at, length_at
from nbprop.runtime import arguments as arg
from nbprop.runtime.datasets import check_samples, check_values, check_weights, takes_lengths
from nbprop.training import averaging
from nbprop.training import job as on_host
from nbprop.training import loop as epochs
from nbprop.training.job import check_last_batch

TARGET = "cuda"
MOST = 1 << 40  # above the number of any step


# -- checks --------------------------------------------------------------------------------------------------


@on_device(blocks=lambda: 1)
def count_not_finite(result, x, n):
    """result = how many of the n numbers of x are NaN or infinite. result OUT (1,), x IN (n,)."""
    wrong, limit = like(result[0], 0.0), like(result[0], math.inf)
    for i in range(cuda.threadIdx.x, n, THREADS):
        # False for NaN; math.isfinite would be a call to libdevice.
        wrong += like(wrong, 0.0) if -limit < x[i] < limit else like(wrong, 1.0)
    wrong = block_sum(cuda.shared.array(THREADS, result.dtype), wrong)
    if cuda.threadIdx.x == 0:
        result[0] = wrong


@on_device(blocks=lambda: 1)
def count_unfit(result, x, n, each, low_bits, high_bits, positions, address, code):
    """result = how many numbers of x, within lengths, are not in low..high.

    result OUT (1,), x IN (n, each), of which each / positions numbers are a position; low_bits, high_bits: the bits of
    low and high; address, code: of the lengths.
    """
    low, high = f.real_of_word(x[0], low_bits), f.real_of_word(x[0], high_bits)
    wrong, size = like(result[0], 0.0), each // positions
    for i in range(cuda.threadIdx.x, n * each, THREADS):
        row = i // size
        beyond = row % positions >= length_at(address, code, row // positions, positions)
        wrong += like(wrong, 0.0) if beyond or (x[i] >= low and x[i] <= high) else like(wrong, 1.0)
    wrong = block_sum(cuda.shared.array(THREADS, result.dtype), wrong)
    if cuda.threadIdx.x == 0:
        result[0] = wrong


@on_device(blocks=lambda: 1, dtypes=(np.float32,))
def count_outside(result, n, address, code, least, below):
    """result = how many of n integers at an address are not in least..below - 1. result OUT (1,)."""
    wrong = like(result[0], 0.0)
    for i in range(cuda.threadIdx.x, n, THREADS):
        value = integer_at(address, code, i)
        wrong += like(wrong, 0.0) if value >= least and value < below else like(wrong, 1.0)
    wrong = block_sum(cuda.shared.array(THREADS, result.dtype), wrong)
    if cuda.threadIdx.x == 0:
        result[0] = wrong


def _counted(kernel, dtype, arrays, n, **numbers):
    """The result of one launch of a counting kernel."""
    result, stream = memory.zeros(1, dtype), memory.current_stream()
    sequence = Sequence()
    sequence.add(kernel, dtype, arrays | {"result": result}, n, **numbers)
    sequence.place().write(0, stream)
    sequence.enqueue(stream)
    return float(result.to_host()[0])


def check_finite(function, name, array):
    """Refuse parameters or state that already hold NaN or infinity: every loss would be NaN."""
    if array is not None and not finite(array):
        raise ValueError(f"{function}: {name} holds NaN or infinity; pass values that are finite")


def finite(array):
    """Whether all elements of a device array are finite."""
    return array.size == 0 or _counted(count_not_finite, array.dtype, {"x": array}, array.size) == 0


def any_set(array):
    """Whether any element of a device array is nonzero."""
    return bool(array.to_host().any())


def count(x):
    """Samples of x."""
    return memory.as_array("fit: x", x).shape[0]


def check_vector(argument, array, size, kinds, written=False):
    """A 1-D device array of `size` elements and one of the dtypes `kinds`."""
    array = memory.as_array(argument, array)
    check_kinds(argument, array, kinds)
    check_shape(argument, array, (size,))
    if written and not array.writable:
        raise failure(READ_ONLY, argument, got=described(array))
    return array


def trained_of(net, wanted):
    """As networks.network's, a device array."""
    mask = on_host.trained_of(net, None if wanted is None else wanted.to_host())
    return None if mask is None else memory.to_device(mask)


def _check_column(function, name, array, n, shape, dtype, integers=None, loss=None, lengths=None):
    """Samples (n, *shape) of `dtype`, or of integers: (what they are called, minimum, maximum).

    loss: whose target they are, if they are one; lengths: how many positions of each sample count.
    """
    argument = f"{function}: {name}"
    array = memory.as_array(argument, array)
    check_samples(argument, array, n, shape, dtype, integers)
    if array.dtype.itemsize % WORD:
        raise TypeError(f"{argument} must hold int32, uint32, int64 or uint64 on the device, got {described(array)}")
    if integers:
        kind, least, most = integers
        numbers = {"code": elements.element_code(array.dtype), "least": least, "below": most + 1}
        wrong = _counted(count_outside, np.float32, {}, array.size, address=array.address, **numbers)
        if wrong:
            problem = CLASS_RANGE if kind == "classes" else LENGTH_RANGE
            raise failure(problem, argument, detail=f"{least}..{most}, got {int(wrong)} others")
        return array
    sides = [-np.inf, np.inf] if loss is None else loss.target_range
    largest = float(np.finfo(dtype).max)
    bits = np.clip(sides, -largest, largest).astype(dtype).view(np.int32 if dtype == np.float32 else np.int64).tolist()
    numbers = {"each": array.size // len(array), "low_bits": bits[0], "high_bits": bits[1], "positions": 1}
    numbers |= {"address": 0, "code": 0}
    if lengths is not None:
        numbers |= {"positions": shape[0], "address": lengths.address, "code": elements.element_code(lengths.dtype)}
    if _counted(count_unfit, dtype, {"x": array}, len(array), **numbers):
        check_values(function, name, array.to_host(), 0, loss, None if lengths is None else lengths.to_host())
    return array


def check_data(function, plan, x, target, weights=None, lengths=None, prefix=""):
    """(x, target, weights, lengths) as device arrays that fit the plan and each other."""

    def column(name, array, n, shape, kind="", least=0, below=0, **more):
        integers = (kind, least, below - 1) if below else None
        return _check_column(function, f"{prefix}{name}", array, n, shape, plan.dtype, integers, **more)

    n = len(memory.as_array(f"{function}: {prefix}x", x))
    if lengths is not None:
        takes_lengths(f"{function}: {prefix}lengths", plan)
        lengths = column("lengths", lengths, n, (), "lengths", 1, plan.max_length + 1)
    x = column("x", x, None, plan.input_shape, "classes", below=plan.x_classes, lengths=lengths)
    within = lengths if plan.positions_of_loss > 1 else None
    more = {"below": plan.classes, "loss": plan.loss, "lengths": within}
    target = column("target", target, n, plan.target_shape, "classes", **more)
    if weights is not None:
        weights = column("weights", weights, len(x), ())
        check_weights(f"{function}: {prefix}weights", weights.to_host())
    return x, target, weights, lengths


def with_class_weights(function, plan, data, given):
    """As on the host."""
    x, target, weights, lengths = data
    hosts = (None, target.to_host(), None if weights is None else weights.to_host(), None)
    return x, target, memory.to_device(on_host.with_class_weights(function, plan, hosts, given)[2]), lengths


def check_state(plan, state, samples):
    """Layer state on the device, where the network has some; None without."""
    check_last_batch(plan, samples)
    if state is None and plan.state_size > 0:
        raise TypeError(
            "fit: state is needed for this network; pass state=nbprop.layer_state(plan) of a device plan with the same "
            "batch"
        )
    if state is not None:
        state = check_vector("fit: state", state, plan.state_size, (plan.dtype,), True)
    return state if plan.state_size > 0 else None


def check_separate(name, written, others):
    """Check that what is written shares memory with none of the others."""
    read = {f"argument {k}": array for k, array in enumerate(others) if array is not None}
    memory.check_separate("fit", {} if written is None else {name: written}, read)


# -- the job -------------------------------------------------------------------------------------------------


class Average:
    """The mean of the parameters that an optimizer keeps: p and the last part of its state, added up on the host."""

    def __init__(self, job):
        self.job, self.mean = job, memory.empty(job.params.size, job.params.dtype)

    def parts(self):
        """(parameters, layer state or None), as they are to be used now."""
        job, n = self.job, self.job.params.size
        self.mean.copy_from(job.params.to_host() + job.state[2 * n :].to_host())
        return self.mean, job.layers


class StepAverage:
    """The mean of the parameters, and of running statistics, after steps or epochs: (parameters, then layer state)."""

    def __init__(self, job, how, rate, first_step, first_epoch):
        self.job, self.how, self.rate, self.first = job, how, rate, (first_step, first_epoch)
        self.n, self.mean = job.params.size, job.snapshot()
        self._pairs = [(self.mean[: self.n], job.params, True)]
        if job.layers is not None:
            kept = sum(buffer.size for _, buffer, _ in job.plan.state_parts if buffer.name)
            for part, averaged in ((slice(0, kept), True), (slice(kept, job.layers.size), False)):
                if part.stop > part.start:
                    there = self.mean[self.n + part.start : self.n + part.stop]
                    self._pairs.append((there, job.layers[part], averaged))
        self._move = Mean(self._pairs)

    def add_to(self, sequence):
        """Append the launches that follow each update."""
        for mean, p, averaged in self._pairs:
            add_mean(sequence, mean, p, self.rate if averaged else 1.0, self._until)

    def _until(self):
        """The number of the first update at which the mean is no longer the parameters themselves."""
        words, several = self.job.words, int(self.job.words[epochs.ACCUMULATES])
        if several == 0:
            return self.first[0] + 1
        return MOST if words[epochs.STEP] - self.first[0] < several else 0

    def after_step(self):
        """Move the mean after a step without an update."""
        if self.how == averaging.EACH_STEP:
            began = self.job.words[epochs.STEP] > self.first[0]
            self._move(self.rate if began else 1.0, self.job.stream)

    def end_epoch(self):
        """Move the mean at the end of an epoch."""
        if self.how == averaging.EACH_EPOCH:
            ends = int(self.job.words[epochs.EPOCH]) - self.first[1] + 1
            self._move(1.0 / max(1, ends), self.job.stream)

    def parts(self):
        """(parameters, layer state or None), as they are to be used now."""
        if self.how == averaging.EACH_EPOCH and self.job.words[epochs.EPOCH] <= self.first[1]:
            self._move(1.0, self.job.stream)
        return self.mean[: self.n], None if self.job.layers is None else self.mean[self.n :]


class Job(on_host.InOneProcess):
    """One training on the device, with the interface of job.Job, its counterpart on the host."""

    def __init__(self, plan, params, data, batch, optimizer, values, decay_mask, trainable, state=None):
        self.plan, self.params, self.data = plan, params, data
        self.words = np.zeros(epochs.WORDS, np.int64)
        self.numbers = self.words.view(np.float64)
        self.numbers[epochs.LOWEST], self.words[epochs.LOWEST_EPOCH] = np.inf, -1
        self.words[epochs.N], self.words[epochs.BATCH] = len(data[0]), batch
        self.rates, self.records = np.zeros(epochs.MOST_RATES), np.zeros((epochs.MOST_RECORDS, 2))
        self.grads = memory.empty(params.shape, params.dtype)
        self.work = memory.empty(plan.work_for("value_and_grad"), plan.dtype)
        self.layers = self.average = None  # layer state, where the network has some; the mean of parameters
        self.part = self.part_of(params.size)
        own = self.part.stop - self.part.start
        self.state = optimizer_state(optimizer, own, params.dtype) if state is None else state
        self.values = values
        self._update = {"name": optimizer, "decay_mask": decay_mask, "trainable": trainable, "page": PAGE}
        if plan.penalty is not None and plan.penalty.smooth:
            self._update["l1"] = plan.penalty.l1, memory.to_device(plan.penalty.mask(params.size))
        self._renew_update(grads=self.grads, slices=plan.slices_in(self.work))
        self.trainable, self.clips, self.seed, self._steps = trainable, [], None, {}
        self.batches = self._make_batches(batch)
        self.weights = None if data[2] is None else data[2].to_host().astype(np.float64)
        # In order with all that fit does beside the steps, which is the current stream's.
        self.stream = memory.current_stream() or toolkit.new_stream()
        self._order = np.arange(len(data[0]), dtype=np.uint32)
        self._epoch_begun = -1

    def _make_batches(self, batch):
        return Batches(self.data, batch, len(self.data[0]), batch)

    def _renew_update(self, **changes):
        """Make the update again, with other arrays."""
        self._update |= changes
        own = {name: self._own(self._update.get(name)) for name in ("grads", "decay_mask", "trainable", "factors")}
        if "l1" in self._update:
            own["l1"] = self._update["l1"][0], self._own(self._update["l1"][1])
        self.update = Update(params=self._own(self.params), state=self.state, **(self._update | own))

    def _own(self, vector):
        """The elements of the parameters that this process updates, of an array of all of them, or None."""
        return None if vector is None else vector[self.part]

    def _after_update(self, add):
        """Let `add(sequence)` append launches that follow each update, of all parameters."""
        self.update.append(add)

    def take_average(self, how, rate, first_step, first_epoch):
        """As on the host."""
        if how == averaging.BY_OPTIMIZER:
            self.average = Average(self)
            return
        self.average = average = StepAverage(self, how, rate, first_step, first_epoch)
        if how == averaging.EACH_STEP:
            self._after_update(average.add_to)

    def in_use(self):
        """As on the host."""
        return (self.params, self.layers) if self.average is None else self.average.parts()

    def accumulate(self, batches):
        """As on the host. Steps are recorded without an update, and with one for the last batch of several."""
        self.words[epochs.ACCUMULATES] = min(batches, -(-len(self.data[0]) // self.plan.batch))
        self.gradient, self._sum_rate = memory.zeros(self.grads.size, self.grads.dtype), 1.0
        self._sum = Sequence()
        add_mean(self._sum, self.gradient, self.grads, lambda: self._sum_rate)
        self._sum.place()
        self._no_update = NoUpdate()
        self._renew_update(grads=self.gradient, slices=None)

    def scale_rates(self, factors, optimizer):
        """As on the host."""
        self.factors = factors
        self._renew_update(factors=memory.to_device(factors))

    def project(self, limit):
        """As on the host."""
        matrices = max_norm.weight_matrices(self.plan.net)
        if len(matrices):
            self._matrices = memory.to_device(matrices)  # kept alive
            numbers = {"columns": int(matrices[:, 2].sum()), "matrices": self._matrices.address}
            numbers["trainable"] = 0 if self.trainable is None else self.trainable.address
            numbers["limit_bits"], n = toolkit.bits_of(limit, self.params.dtype), self.params.size
            self._after_update(
                lambda sequence: sequence.add(project, self.params.dtype, {"p": self.params}, n, **numbers)
            )

    def empty(self, shape):
        """A new array of the job's dtype."""
        return memory.empty(shape, self.plan.dtype)

    def keep(self, each_epoch):
        """Allocate snapshots, as on the host."""
        self._kept = {name: self.snapshot() for name in ("initial", "best", *(("begun",) if each_epoch else ()))}

    def snapshot(self):
        """The parameters, followed by the layer state."""
        extent = self.params.size + (0 if self.layers is None else self.layers.size)
        found = memory.empty(extent, self.params.dtype)
        self._take(found)
        return found

    def _take(self, snapshot):
        params, layers = self.in_use()
        snapshot[: self.params.size][:] = params
        if layers is not None:
            snapshot[self.params.size :][:] = layers

    def kept(self):
        """{name: snapshot}."""
        return self._kept

    finite = staticmethod(finite)

    def shuffle(self, seed):
        """Shuffle the samples of each epoch."""
        self.seed = seed

    def layer_state(self, state):
        """Use an array of layer state."""
        self.layers = state

    def clip(self, native, word, row, limit):
        """Clip before each update."""
        name = "clip_value" if native is host_clipping.CLIP_VALUE else "clip_norm"
        self.clips.append(clipping.clip(name, self._update["grads"], limit, self.trainable))

    def host_arrays(self, arrays):
        """Copies in host memory, for a checkpoint."""
        return {name: array.to_host() for name, array in arrays.items()}

    def run_steps(self, steps):
        """Run up to `steps` steps; returns an outcome, as `epochs.run_steps` does."""
        words, done = self.words, 0
        words[epochs.DONE] = words[epochs.RECORD_COUNT] = 0
        while done < steps:
            if self._epoch_begun != words[epochs.EPOCH]:
                self._begin_epoch()
            n = int(min(words[epochs.BATCH], words[epochs.N] - words[epochs.POSITION]))
            whole = int((words[epochs.N] - words[epochs.POSITION]) // n)
            outcome = self._run_page(n, min(steps - done, PAGE, whole), done)
            done = int(words[epochs.DONE])
            if outcome != epochs.GO_ON:
                return outcome
            if words[epochs.POSITION] == words[epochs.N]:
                self._end_epoch(self.rates[done - 1])
                full = words[epochs.RECORD_COUNT] == epochs.MOST_RECORDS
                if full or words[epochs.STOPS] or words[epochs.EPOCH] == words[epochs.EPOCHS]:
                    return epochs.EPOCH_ENDED
        return epochs.GO_ON

    def _begin_epoch(self):
        words = self.words
        self._order_epoch()
        first = int(words[epochs.STEP] - words[epochs.POSITION] // words[epochs.BATCH])
        self.batches.begin_epoch(self._order, first, self.stream)
        self._epoch_begun = int(words[epochs.EPOCH])

    def _order_epoch(self):
        if self.seed is not None:
            permutation(self.seed, int(self.words[epochs.EPOCH]), self._order)

    def _run_page(self, n, count, done):
        """Run `count` steps of n samples, or one where several make an update, and read their losses."""
        words, first = self.words, int(self.words[epochs.STEP])
        begin, count = int(words[epochs.POSITION]), 1 if words[epochs.ACCUMULATES] else count
        weight_sums = [self._weight_sum(begin + k * n, n) for k in range(count)]
        updates = self._accumulated(n, weight_sums[0])
        values = [[*(self.values | {"lr": rate}).values()] for rate in self.rates[done : done + count]]
        if all(weight_sums):
            step = self._step_of(n, updates)
            step.prepare(first, values, self._update_number())
            for _ in range(count):
                step.run()
        elif weight_sums[0]:
            return self._run_page(n, weight_sums.index(0.0), done)
        else:  # a batch whose weights are all zero has no mean: skip its step
            count, weight_sums = 1, weight_sums[:1]
            self._finish_without_gradient(updates, values)
        losses = step.read_losses(first, count) if weight_sums[0] else np.zeros(1)
        return self._note(n, losses, weight_sums)

    def _step_of(self, n, updates):
        """The recorded step of n samples, with an update or without."""
        if (n, updates) not in self._steps:
            columns = [None if buffer is None else buffer[:n] for buffer in self.batches.buffers]
            given = self.plan, self.params, columns, self.grads, self.work, self.layers
            sums = [self._sum] if self.words[epochs.ACCUMULATES] else []
            update, clips = (self.update, self.clips) if updates else (self._no_update, [])
            self._steps[n, updates] = Step(*given, update, self.stream, self.batches, [*sums, *clips])
        return self._steps[n, updates]

    def _accumulated(self, n, weight):
        """Count a batch among those of one update, with the rate of its gradient; whether the update follows."""
        words, numbers, several = self.words, self.numbers, int(self.words[epochs.ACCUMULATES])
        if several == 0:
            return True
        place = int(words[epochs.POSITION] // words[epochs.BATCH]) % several
        total = weight + (numbers[epochs.SUM_WEIGHT] if place > 0 else 0.0)
        numbers[epochs.SUM_WEIGHT], self._sum_rate = total, weight / total if total > 0.0 else 0.0
        last = place == several - 1 or words[epochs.POSITION] + n == words[epochs.N]
        return bool(total > 0.0 and last)

    def _update_number(self):
        """As `loop._update_number`; None where each step is an update."""
        words, several = self.words, int(self.words[epochs.ACCUMULATES])
        if several == 0:
            return None
        batches = -(-int(words[epochs.N]) // int(words[epochs.BATCH]))
        number = int(words[epochs.POSITION] // words[epochs.BATCH]) // several
        return int(words[epochs.EPOCH]) * -(-batches // several) + number

    def _finish_without_gradient(self, updates, values):
        """What a batch without weight leaves to do: the update that others have been waiting for, and the average."""
        if self.words[epochs.ACCUMULATES] and updates:
            self.update.count = 0
            self.update.prepare(self._update_number(), values[:1], self.stream)
            for part in self.clips:
                part.write(0, self.stream)
                part.enqueue(self.stream)
            self.update.enqueue(self.stream)
        elif updates and isinstance(self.average, StepAverage):
            self.average.after_step()

    def _weight_sum(self, begin, n):
        return float(n) if self.weights is None else float(self.weights[self._order[begin : begin + n]].sum())

    def _note(self, n, losses, weight_sums):
        words, numbers = self.words, self.numbers
        for loss, weight_sum in zip(losses, weight_sums, strict=True):
            if not np.isfinite(loss):
                numbers[epochs.LOSS] = numbers[epochs.CALL + arg.RESULT] = loss
                return epochs.NOT_FINITE
            numbers[epochs.LOSS] = loss
            numbers[epochs.LOSS_SUM] += loss * weight_sum
            numbers[epochs.WEIGHT_SUM] += weight_sum
            words[epochs.POSITION] += n
            words[epochs.STEP] += 1
            words[epochs.DONE] += 1
        return epochs.GO_ON

    def _end_epoch(self, rate):
        words, numbers = self.words, self.numbers
        loss = numbers[epochs.LOSS_SUM] / numbers[epochs.WEIGHT_SUM]
        self.records[words[epochs.RECORD_COUNT]] = loss, rate
        words[epochs.RECORD_COUNT] += 1
        if isinstance(self.average, StepAverage):
            self.average.end_epoch()
        kept = self._kept
        if "begun" in kept:
            if loss < numbers[epochs.LOWEST]:
                numbers[epochs.LOWEST], words[epochs.LOWEST_EPOCH] = loss, words[epochs.EPOCH]
                kept["best"], kept["begun"] = kept["begun"], kept["best"]
            self._take(kept["begun"])
        words[epochs.EPOCH] += 1
        words[epochs.POSITION] = numbers[epochs.LOSS_SUM] = numbers[epochs.WEIGHT_SUM] = 0
