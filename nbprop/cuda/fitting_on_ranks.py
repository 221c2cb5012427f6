"""`fit` on several ranks with a device each: the counterpart of training/job_on_ranks.py.

A rank gathers its rows of a batch, and computes the gradients of its pieces one after another in the same buffers, so
that a piece's bits depend on its samples alone. Nothing of this is waited for until the losses of all pieces are read.
"""

import numpy as np

from nbprop.cluster.ranks import GRADIENT, Interrupted
from nbprop.cuda import fitting, memory, toolkit
from nbprop.cuda.calls import Bound
from nbprop.cuda.kernels import FRAME_WORDS
from nbprop.cuda.sequence import Sequence
from nbprop.cuda.sums import DeviceTreeSum, Seen, divide, launches, weigh, words_of
from nbprop.cuda.training import Batches, gathering, rows_like
from nbprop.cuda.transports import open_transport, unbroken
from nbprop.numerics.partition import share
from nbprop.program import frame
from nbprop.runtime import arguments as arg
from nbprop.training import loop as epochs
from nbprop.training.job_on_ranks import OnRanks


class _Rows:
    """This rank's rows of a batch of n samples: how they are gathered, and where each of its pieces has its own."""

    def __init__(self, job, n):
        shares = [share(n, piece, job.pieces) for piece in range(job.first, job.stop)]
        self.first = shares[0][0]
        self.of_piece = {job.first + k: (a - self.first, b - self.first) for k, (a, b) in enumerate(shares)}
        self.gathering = gathering(job.batches, shares[-1][1] - self.first, self.first)


class JobOnRanks(OnRanks, fitting.Job):
    """As `fitting.Job`; what all ranks do in it, they do together."""

    def __init__(self, ranks, transport, samples, offset, sharded, plan, params, data, batch, optimizer, *rest):
        self.join(ranks, samples, offset, sharded, optimizer)
        super().__init__(plan, params, data, batch, optimizer, *rest)
        self.check_same_data(data)
        self.words[epochs.N] = samples
        self._wire = open_transport(ranks, transport)
        self.transport = self._wire.name
        self._tree = DeviceTreeSum(ranks, self._wire, params.size, params.dtype, scatters=sharded)
        self._seen = Seen(params.size, params.dtype)
        self._order = np.arange(samples, dtype=np.uint32)
        own, largest = self.stop - self.first, share(batch, 0, self.pieces)[1]
        self._columns, self._bounds, self._rows, self._weighs = rows_like(data, largest), {}, {}, {}
        # Of each piece: the frame of its gradient's call, its loss and its weight.
        self._frames, self._losses = memory.empty((own, FRAME_WORDS), np.int64), memory.empty(own, plan.dtype)
        self._weights = memory.empty(own, plan.dtype)
        self._mean, self._weight = Sequence(), 1.0
        arrays = {"to": self.grads, "source": self._tree.result}
        divisor = {"divisor_bits": lambda: toolkit.bits_of(self._weight, plan.dtype)}
        self._mean.add(divide, plan.dtype, arrays, count=params.size, **divisor)
        self._mean.place()
        self._after = Sequence().place()

    def _make_batches(self, batch):
        first, stop = share(batch, self.first, self.pieces)[0], share(batch, self.stop - 1, self.pieces)[1]
        return Batches(self.data, batch, self.samples, max(1, stop - first))

    def _after_update(self, add):
        """As `Job._after_update`; of a sharded update, once all ranks have all parameters."""
        if self.sharded and self.ranks.size > 1:
            add(self._after)
            self._after.place()
        else:
            super()._after_update(add)

    def clip(self, native, word, row, limit):
        """As `Job.clip`; a norm is that of the whole gradient, which all ranks then get."""
        super().clip(native, word, row, limit)
        self.needed_for(native)

    def some_of(self, array):
        """As `OnRanks.some_of`."""
        return words_of(array, self.stream)

    def seen(self, params):
        """As `OnRanks.seen`."""
        return self._seen(params, self.stream)

    def host_arrays(self, arrays):
        """As `Job.host_arrays`; what other ranks have sent is there."""
        on_device = super().host_arrays({name: a for name, a in arrays.items() if isinstance(a, memory.Array)})
        return arrays | on_device

    # -- steps

    def run_steps(self, steps):
        """As `Job.run_steps`."""
        words = self.words
        words[epochs.DONE] = words[epochs.RECORD_COUNT] = 0
        try:
            if self.pieces == 1 and not self.ranks.split:  # on one rank: there is nothing to sum
                self.ranks.meet(GRADIENT)
                return super().run_steps(steps)
            for rate in self.rates[:steps]:
                if self._epoch_begun != words[epochs.EPOCH]:
                    self._begin_epoch()
                outcome = self._step(rate)
                if outcome != epochs.GO_ON:
                    return outcome
                if words[epochs.POSITION] == words[epochs.N]:
                    self._end_epoch(rate)
                    full = words[epochs.RECORD_COUNT] == epochs.MOST_RECORDS
                    if full or words[epochs.STOPS] or words[epochs.EPOCH] == words[epochs.EPOCHS]:
                        return epochs.EPOCH_ENDED
        except Interrupted as interrupted:
            self.stopped = interrupted.number
        return epochs.GO_ON

    def _order_epoch(self):
        if self.ranks.split:
            self.order_pieces(self._order, int(self.words[epochs.EPOCH]), self.seed or 0, self.seed is not None)
        else:
            super()._order_epoch()

    def _step(self, rate):
        words, numbers = self.words, self.numbers
        n = int(min(words[epochs.BATCH], words[epochs.N] - words[epochs.POSITION]))
        with self.ranks.round(GRADIENT, self.seen(self.params)):
            sums, _ = self._tree(self._pieces_of(n), self._read_heads, self.stream, self.scatters)
            loss_sum, weight, samples = sums
            loss = loss_sum / weight if weight > 0.0 else 0.0
            if not np.isfinite(loss):
                numbers[epochs.LOSS] = numbers[epochs.CALL + arg.RESULT] = loss
                return epochs.NOT_FINITE
            if weight > 0.0:
                self._weight = weight
                self._mean.write(0, self.stream)
                self._mean.enqueue(self.stream)
                self._update_parameters(rate)
            else:
                self._finish_without_gradient(True, [])
        return self._note(n, [loss], [samples if weight > 0.0 else 0.0])

    def _update_parameters(self, rate):
        number, stream = int(self.words[epochs.STEP]), self.stream
        for part in self.clips:
            part.write(number, stream)
            part.enqueue(stream)
        self.update.count = 0
        self.update.prepare(number, [[*(self.values | {"lr": rate}).values()]], stream)
        self.update.enqueue(stream)
        if self.sharded and self.ranks.size > 1:
            with unbroken(self.ranks):
                raw = memory.Array((self.params.nbytes,), np.uint8, self.params.address, self.params.owner)
                self._wire.spread(raw, self.bytes_of_parts(), stream)
            self._after.write(number, stream)
            self._after.enqueue(stream)

    # -- pieces

    def _pieces_of(self, n):
        """evaluate(piece, vector) for a batch of n samples, once its rows are being gathered."""
        if n not in self._rows:
            self._rows[n] = _Rows(self, n)
        rows, step = self._rows[n], int(self.words[epochs.STEP])
        begin = int(self.words[epochs.POSITION]) + rows.first
        frames = np.zeros((self.stop - self.first, FRAME_WORDS), np.int64)
        # Of each piece, its weight in the batch's mean, and the sum of its samples' weights.
        self._known, self._samples = np.zeros(self.stop - self.first), np.zeros(self.stop - self.first)
        for place, (piece, (first, stop)) in enumerate(rows.of_piece.items()):
            if stop > first:
                samples = self._samples[place] = self._weight_sum(begin + first, stop - first)
                here = self._order[begin + first : begin + stop]
                self._known[place] = self.weight_of(here, stop - first, samples) if samples > 0 else 0.0
                frames[place] = self._bound(stop - first).words
                frames[place, frame.STEP] = step * self.pieces + piece
        toolkit.write(self._frames.address, frames, self.stream)
        toolkit.write(self._weights.address, self._known.astype(self.plan.dtype), self.stream)
        rows.gathering.write(step, self.stream)
        rows.gathering.enqueue(self.stream)
        return lambda piece, vector: self._evaluate(piece, vector, rows)

    def _evaluate(self, piece, vector, rows):
        """Enqueue a piece's gradient, times its weight."""
        place, (first, stop) = piece - self.first, rows.of_piece[piece]
        if self._known[place] > 0:
            for own, buffer in zip(self._columns, self.batches.buffers, strict=True):
                if own is not None:
                    toolkit.copy(own.address, buffer[first:stop].address, own[: stop - first].nbytes, self.stream)
            bound, itemsize = self._bound(stop - first), self.plan.dtype.itemsize
            words = self._frames[place : place + 1]
            toolkit.copy(bound.frame_address, words.address, words.nbytes, self.stream)
            bound.enqueue(self.stream)
            result = bound.result_array
            toolkit.copy(self._losses.address + place * itemsize, result.address, itemsize, self.stream)
        if piece not in self._weighs:
            arrays = {"to": vector, "g": self.grads, "weights": self._weights}
            numbers = {"count": self.params.size, "place": place}
            self._weighs[piece] = launches(weigh, self.plan.dtype, arrays, self.stream, **numbers)
        self._weighs[piece].enqueue(self.stream)

    def _bound(self, n):
        """The call of a gradient of n samples, which lie in the buffers of a piece."""
        if n not in self._bounds:
            x, target, weights, lengths = (None if column is None else column[:n] for column in self._columns)
            values = self.params, x, target, self.grads, self.work, weights, None, *[None] * 5, lengths
            self._bounds[n] = Bound("value_and_grad", self.plan, values)
        return self._bounds[n]

    def _read_heads(self):
        losses = np.empty(self._losses.size, self._losses.dtype)
        toolkit.read(self._losses.address, losses, self.stream)
        known = zip(losses, self._known.tolist(), self._samples.tolist(), strict=True)
        return {
            self.first + place: (weight * float(loss) if weight > 0 else 0.0, weight, samples)
            for place, (loss, weight, samples) in enumerate(known)
        }
