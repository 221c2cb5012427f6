"""The job of a training on several ranks: each computes the gradients of its pieces of a batch, and all update alike.

The update, the order of samples and all decisions are the same on all ranks, from the same numbers, so that parameters
never travel: only the sum of the pieces' gradients does. Or the update is sharded, with the optimizer's state, as in
ZeRO-1 (Rajbhandari et al. 2020, section 5): each rank gets its part of the sum, updates its part of the parameters, and
these travel instead of the other half of the gradient's way. An update is elementwise, so the bits are the same.
"""

import signal
from typing import Any

import numpy as np

from nbprop.cluster.parts import check_same_data, flat, shard, total_samples
from nbprop.cluster.ranks import GRADIENT, LOSS, Interrupted
from nbprop.cluster.sums import LOSSES, SAMPLES, WEIGHTS, TreeSum, own_part
from nbprop.compiler.jit import njit
from nbprop.io.networks import digest
from nbprop.numerics.partition import share, share_blocks
from nbprop.numerics.random import SHUFFLE, bounded, stream
from nbprop.optimizers import clipping
from nbprop.optimizers import update_rules as rules
from nbprop.runtime import arguments as arg
from nbprop.runtime.errors import refusal
from nbprop.training import loop as epochs
from nbprop.training.job import InOneProcess, Job
from nbprop.training.measuring import Measure, counts_apart, weight_in_mean

_GRADS = epochs.CALL + arg.GRADS * arg.DESCRIPTION + arg.DATA


@njit
def _order_of_piece(order, own, seed, key, shuffles, n, batch, piece, pieces, first):
    """Where the batches of an epoch have the samples of one piece: order OUT (n,), of its places alone.

    own : OUT (samples of the piece,), scratch; first : of the piece's samples, in this rank's data
    """
    for i in range(own.size):
        j = bounded(seed, key, i, i + 1) if shuffles else i
        own[i] = own[j]
        own[j] = i
    taken = 0
    for begin in range(0, n, batch):
        start, stop = share(min(batch, n - begin), piece, pieces)
        for k in range(start, stop):
            order[begin + k] = first + own[taken]
            taken += 1


class OnRanks(InOneProcess):
    """What a job does together with those of other ranks, wherever its arrays lie: in front of `Job`."""

    params: Any
    data: Any
    words: Any
    part: Any
    host_arrays: Any
    plan: Any

    def join(self, ranks, samples, offset, sharded, optimizer):
        """Take part, before anything else; samples: of all ranks, of which this one holds those from offset on."""
        self.ranks, self.pieces, self.offset, self.sharded = ranks, ranks.pieces, offset, sharded
        self.first, self.stop = share(ranks.pieces, ranks.rank, ranks.size)  # the pieces of this rank
        self.samples, self.slots = samples, rules.RULES[optimizer].slots
        self.scatters = sharded  # whether a rank needs its own part of the gradient alone
        self.writes = ranks.rank == 0
        self.stopped = None  # the signal that interrupted the ranks
        self._counted: Any = None

    def check_same_data(self, data, prefix=""):
        """Refuse data (x, target, weights, lengths), all of it on each rank, that differ between them."""
        names = [f"{prefix}{name}" for name in ("x", "target", "weights", "lengths")]
        check_same_data(self.ranks, self.some_of, **dict(zip(names, data, strict=True)))

    def some_of(self, array):
        """Enough of an array's elements to tell it from another, on the host."""
        return flat(array)

    def seen(self, params):
        """Of an array of parameters, what the ranks compare where they meet."""
        return params

    def measure_of(self, data, *, penalized):
        """What determines the loss of a data set, of which each rank computes its pieces."""
        return MeasureOnRanks(self, data, penalized=penalized)

    def digest_of_samples(self, *arrays):
        """A digest of data; of split data, from one of each piece."""
        if not self.ranks.split or all(array is None for array in arrays):
            return super().digest_of_samples(*arrays)
        batch = (
            int(self.words[epochs.BATCH]) if any(array is column for array in arrays for column in self.data) else None
        )
        samples, offset = total_samples(self.ranks, len(next(a for a in arrays if a is not None)), batch)
        own = []
        for piece in range(self.first, self.stop):
            first, stop = (number - offset for number in shard(samples, piece, self.pieces, batch))
            own.append(super().digest_of_samples(*(None if a is None else a[first:stop] for a in arrays)))
        return digest({}, [text for part in self.ranks.gather(own) for text in part])

    def any(self, decision):
        """Whether a decision holds on any rank; not if a signal came first, which ends the training in its own way."""
        try:
            return self.ranks.any(decision)
        except Interrupted as interrupted:
            self.stopped = interrupted.number
            return False

    def interrupted(self):
        """Whether a signal has reached any rank, as all ranks learnt at once."""
        return self.stopped is not None

    # -- the sharded update

    def part_of(self, n):
        """As `InOneProcess.part_of`."""
        return own_part(self.ranks, n) if self.sharded else slice(0, n)

    def needed_for(self, native):
        """Let all ranks have the whole gradient, if it is clipped by its norm."""
        self.scatters &= native is not clipping.CLIP_NORM

    def common_steps(self, steps):
        """The same on all ranks if each has a part of what a checkpoint holds; none after a signal."""
        if not self.sharded:
            return steps
        try:
            return min(self.ranks.gather(steps))
        except Interrupted as interrupted:
            self.stopped = interrupted.number
            return 0

    def time_for_checkpoint(self, due):
        """As `InOneProcess.time_for_checkpoint`: at the same time on all ranks if each has a part of it."""
        return self.any(due) if self.sharded else due

    def bytes_of_parts(self):
        """Of the parameters, those that each rank updates."""
        bounds = [share_blocks(self.params.size, rank, self.ranks.size) for rank in range(self.ranks.size)]
        return [(stop - first) * self.params.dtype.itemsize for first, stop in bounds]

    def state_like(self):
        """As `InOneProcess.state_like`; it takes no memory."""
        whole = self.slots * self.params.size
        return np.broadcast_to(np.zeros(1, self.params.dtype), whole) if self.sharded else self.state

    def whole_state(self):
        """As `InOneProcess.whole_state`; all ranks take part."""
        if not self.sharded or self.ranks.size == 1:
            return self.state
        own = self.host_arrays({"state": self.state})["state"]
        rows = own.reshape(self.slots, -1) if self.slots else own
        found = [self.ranks.collect(row, self.bytes_of_parts()) for row in rows]
        return np.concatenate(found).view(self.params.dtype) if found and self.writes else self.state

    def take_state(self, whole):
        """As `InOneProcess.take_state`."""
        if self.slots:
            self.state[:] = np.ascontiguousarray(whole.reshape(self.slots, -1)[:, self.part]).reshape(-1)

    def state_of_history(self):
        """None if each rank has a part."""
        return None if self.sharded else self.state

    # -- samples

    def weight_of(self, rows, n, weight):
        """What n samples weigh in the mean loss of a batch; rows: their places here.

        weight: the sum of their weights, from which it differs where a mean is over positions within lengths, or over
        the targets that a loss does not leave out.
        """
        if self._counted is None:
            _, target, weights, lengths = self.data
            found = {"weights": weights, "lengths": lengths}
            if self.plan.loss.couples_samples:
                found["target"] = target
            apart = counts_apart(self.plan, lengths)
            self._counted = self.host_arrays({k: a for k, a in found.items() if apart and a is not None})
        if not self._counted:
            return weight
        own = {name: array[rows] for name, array in self._counted.items()}
        return float(weight_in_mean(self.plan, n, own.get("target"), own.get("weights"), own.get("lengths")))

    def order_pieces(self, order, epoch, seed, shuffles):
        """Write into `order` where the samples of this rank's pieces of split data are, batch by batch."""
        batch = int(self.words[epochs.BATCH])
        for piece in range(self.first, self.stop):
            first, stop = shard(self.samples, piece, self.pieces, batch)
            own, key = np.empty(stop - first, np.uint32), stream(SHUFFLE, piece, epoch)
            place = piece, self.pieces, first - self.offset
            _order_of_piece(order, own, seed, key, shuffles, self.samples, batch, *place)


class JobOnRanks(OnRanks, Job):
    """As `Job`; what all ranks do in it, they do together."""

    def __init__(self, ranks, samples, offset, sharded, plan, params, data, batch, optimizer, *rest):
        self.join(ranks, samples, offset, sharded, optimizer)
        super().__init__(plan, params, data, batch, optimizer, *rest)
        self.check_same_data(data)
        self.words[epochs.N] = samples
        self._seed, self._shuffles = 0, False
        self._sum = TreeSum(ranks, params.size, params.dtype, scatters=sharded)
        if ranks.split:
            super().shuffle(0)  # its samples are gathered by an order in any case
            self.order = np.zeros(samples, np.uint32)
            self.words[epochs.ORDER] = self.order.ctypes.data

    def shuffle(self, seed):
        """Shuffle the samples: of split data, those of each piece among themselves."""
        self._seed, self._shuffles = seed, True
        if not self.ranks.split:
            super().shuffle(seed)

    def clip(self, native, fingerprint_word, row, limit):
        """As `Job.clip`; a norm is that of the whole gradient, which all ranks then get."""
        super().clip(native, fingerprint_word, row, limit)
        self.needed_for(native)
        if self.sharded and not self.scatters:
            trainable = self.masks[1]
            for whole in (epochs.CLIP_VALUE_ROW, epochs.CLIP_NORM_ROW):
                self.words[whole + clipping.ROW_GRADS] = self.grads.ctypes.data
                self.words[whole + clipping.ROW_TRAINABLE] = 0 if trainable is None else trainable.ctypes.data
                self.words[whole + clipping.ROW_N] = self.grads.size

    # -- steps

    def run_steps(self, steps):
        """As `Job.run_steps`."""
        words = self.words
        words[epochs.DONE] = words[epochs.RECORD_COUNT] = 0
        try:
            if self.pieces == 1 and not self.ranks.split:  # on one rank: there is nothing to sum
                self.ranks.meet(GRADIENT)
                return super().run_steps(steps)
            for i in range(steps):
                if words[epochs.SHUFFLES] and words[epochs.SHUFFLED] < words[epochs.N]:
                    self._order()
                outcome = self._step(self.rates[i])
                if outcome != epochs.GO_ON:
                    return outcome
                words[epochs.DONE] = i + 1
                if epochs.end_epoch(self.address, self.rates[i]):
                    return epochs.EPOCH_ENDED
        except Interrupted as interrupted:
            self.stopped = interrupted.number
        return epochs.GO_ON

    def _order(self):
        """The order of samples of this epoch."""
        words = self.words
        if not self.ranks.split:
            while not epochs.shuffle_more(self.address):
                pass
            return
        self.order_pieces(self.order, words[epochs.EPOCH], self._seed, self._shuffles)
        words[epochs.SHUFFLED] = words[epochs.N]

    def _step(self, rate):
        words, numbers = self.words, self.numbers
        n = int(min(words[epochs.BATCH], words[epochs.N] - words[epochs.POSITION]))
        step = int(words[epochs.STEP]) * self.pieces

        def evaluate(piece, out):
            first, last = share(n, piece, self.pieces)
            words[_GRADS] = out.body.ctypes.data
            numbers[epochs.WEIGHT] = 0.0
            if first < last and not epochs.gradient_of(self.address, first, last - first, step + piece):
                raise refusal("fit", self.plan, self._values(), int(words[epochs.STATUS]))
            samples = numbers[epochs.WEIGHT]
            weight = self.weight_of(self._rows(first, last), last - first, samples) if samples > 0.0 else 0.0
            if weight > 0.0:
                out.head[LOSSES], out.head[WEIGHTS] = weight * numbers[epochs.LOSS], weight
                out.body *= self.params.dtype.type(weight)
            else:
                out.clear()
            out.head[SAMPLES] = samples

        with self.ranks.round(GRADIENT, self.params):
            try:
                total = (self._sum.scattered if self.scatters else self._sum)(evaluate)
            finally:
                words[_GRADS] = self.grads.ctypes.data
            weight = total.head[WEIGHTS]
            numbers[epochs.WEIGHT] = total.head[SAMPLES] if weight > 0.0 else 0.0
            if weight > 0.0:
                here = self.part if self.scatters else slice(None)
                np.divide(total.body[here], self.params.dtype.type(weight), out=self.grads[here])
                numbers[epochs.LOSS] = numbers[epochs.CALL + arg.RESULT] = total.head[LOSSES] / weight
            outcome, updates = epochs.update(self.address, n, rate)
            if self.sharded and self.ranks.size > 1:
                self.ranks.spread(self.params.view(np.uint8), self.bytes_of_parts())
        if outcome == epochs.GO_ON:
            epochs.end_step(self.address, n, updates)
        return outcome

    def _rows(self, first, last):
        """Where samples first..last - 1 of the batch are in this rank's data."""
        begin = int(self.words[epochs.POSITION])
        rows = slice(begin + first, begin + last)
        return self.order[rows] if self.words[epochs.SHUFFLES] else rows

    def _values(self):
        x, target, weights, lengths = self.data
        return [self.params, x, target, self.grads, self.work, weights, None, None, None, None, None, None, lengths]


class MeasureOnRanks(Measure):
    """As `Measure`: the loss of each piece of a data set on its rank, and the mean of all."""

    def __init__(self, job, data, *, penalized):
        super().__init__(job, data, penalized=penalized)
        self.ranks, self._sum = job.ranks, TreeSum(job.ranks, 0, np.float64)
        if data is not job.data:
            job.check_same_data(data, "validation ")
        self._batch = int(job.words[epochs.BATCH]) if data is job.data else None
        self._samples, self._offset = total_samples(job.ranks, len(data[0]), self._batch)

    def __call__(self, params, layers, interrupted):
        """The loss; NaN for parameters that are not finite, None if the ranks were interrupted."""
        if not self.job.finite(params):
            return np.nan

        def evaluate(piece, out):
            first, stop = shard(self._samples, piece, self.job.pieces, self._batch)
            out.clear()
            for start in range(first, stop, self.plan.batch):
                here = slice(start - self._offset, min(start + self.plan.batch, stop) - self._offset)
                loss, weight = self.of(params, layers, here)
                out.head[LOSSES] += loss
                out.head[WEIGHTS] += weight

        try:
            with self.ranks.round(LOSS, self.job.seen(params)):
                total = self._sum(evaluate)
        except Interrupted as interrupted:
            self.job.stopped = interrupted.number
            return None
        return float(total.head[LOSSES] / total.head[WEIGHTS])


class Requeued(SystemExit):
    """A scheduler's signal ended the training, and its checkpoint has been written: run the same command again.

    The exit status is 75, which is that of a temporary failure (EX_TEMPFAIL of sysexits.h).
    """

    def __init__(self):
        super().__init__(75)


def interruption(job, message):
    """The exception of a training that a signal has ended."""
    if getattr(job, "stopped", None) in (None, signal.SIGINT):
        return KeyboardInterrupt(message)
    return Requeued()
