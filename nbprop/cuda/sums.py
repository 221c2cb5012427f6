"""The sum over ranks of vectors on the device, in the order of cluster/tree.py: the bits of one rank on any number.

A vector's losses and weights stay on the host: they are summed there, by cluster/sums.py, before the vector travels. So
a rank on which something failed is heard before any other waits for its vector.
"""

import itertools

import numpy as np

from nbprop.cluster.sums import FAILURES, TreeSum, chunks_of
from nbprop.cluster.tree import ADD, RECEIVE, SEND, Tree, depth
from nbprop.compiler.jit import njit
from nbprop.cuda import functions as f
from nbprop.cuda import memory, toolkit
from nbprop.cuda.kernels import on_device
from nbprop.cuda.sequence import Sequence
from nbprop.cuda.toolkit import cuda, grid_size
from nbprop.cuda.transports import unbroken
from nbprop.numerics.partition import share_blocks
from nbprop.numerics.scalars import bits, from_bits, like

_SEEN = 1024  # elements of a vector by which ranks compare theirs


@on_device(blocks=lambda count: grid_size(count))
def add(to, other, n, count):
    """to += other. to INOUT, other IN (count,); n is not used."""
    for i in range(cuda.grid(1), count, cuda.gridsize(1)):
        to[i] += other[i]


@on_device(blocks=lambda count: grid_size(count))
def weigh(to, g, weights, n, count, place):
    """to = weights[place] g, and 0 where that weight is 0. to OUT, g IN (count,), weights IN (pieces,); n is not used.

    Where the weight is 0, g is left over from another piece.
    """
    weight = weights[place]
    for i in range(cuda.grid(1), count, cuda.gridsize(1)):
        to[i] = weight * g[i] if weight > like(weight, 0.0) else like(weight, 0.0)


@on_device(blocks=lambda count: grid_size(count))
def divide(to, source, n, count, divisor_bits):
    """to = source / divisor. to OUT, source IN (count,); divisor_bits: its bits, in their dtype; n is not used."""
    divisor = f.real_of_word(source[0], divisor_bits)
    for i in range(cuda.grid(1), count, cuda.gridsize(1)):
        to[i] = source[i] / divisor


@on_device(blocks=lambda count: grid_size(count))
def pick(to, source, n, count, stride):
    """to = every stride-th element of source. to OUT (count,), source IN (from (count - 1) stride + 1 on,).

    n is not used.
    """
    for i in range(cuda.grid(1), count, cuda.gridsize(1)):
        to[i] = source[i * stride]


@njit
def _half(pair, number):
    """Number 0 or 1 of the two float32 whose bits a float64 holds, as float64."""
    word = bits(pair)
    word = word >> np.uint64(32) if number > 0 else word
    return np.float64(from_bits(np.uint32(word & np.uint64(0xFFFFFFFF))))


@njit
def _pair(low, high):
    """The float64 that holds the bits of two numbers, rounded to float32."""
    low, high = bits(np.float32(low)), bits(np.float32(high))
    return from_bits(np.uint64(high) << np.uint64(32) | np.uint64(low))


@on_device(blocks=lambda count: grid_size(count), dtypes=(np.float64,))
def accumulate(to, g, n, count, weight_bits, adds, narrow):
    """to = weight g, added to what is there if adds is 1. to INOUT, g IN (count,); n is not used.

    If narrow is 1, g holds float32, two to an element. weight_bits: the bits of the weight.
    """
    weight = f.real_of_word(to[0], weight_bits)
    for i in range(cuda.grid(1), count, cuda.gridsize(1)):
        value = weight * (_half(g[i // 2], i % 2) if narrow > 0 else g[i])
        to[i] = to[i] + value if adds > 0 else value


@on_device(blocks=lambda pairs: grid_size(pairs), dtypes=(np.float64,))
def divide_to_float32(to, source, n, pairs, divisor_bits):
    """to = source / divisor, rounded to float32, two to an element; n is not used.

    to OUT (pairs,), source IN (2 pairs - 1 or 2 pairs,); divisor_bits: the bits of the divisor.
    """
    divisor = f.real_of_word(source[0], divisor_bits)
    for i in range(cuda.grid(1), pairs, cuda.gridsize(1)):
        high = source[2 * i + 1] if 2 * i + 1 < source.size else source[2 * i]
        to[i] = _pair(source[2 * i] / divisor, high / divisor)


def launches(kernel, dtype, arrays, stream, **numbers):
    """A launch with these arguments, for `enqueue`, any number of times."""
    sequence = Sequence()
    sequence.add(kernel, dtype, arrays, **numbers)
    sequence.place().write(0, stream)
    return sequence


class Seen:
    """Some elements of a vector of `count` numbers, on the host: ranks whose vectors differ rarely have the same."""

    def __init__(self, count, dtype):
        self._stride = max(1, count // _SEEN)
        self._picked, self._launches = memory.empty(-(-count // self._stride), dtype), {}

    def __call__(self, vector, stream):
        """The elements; waits for what the stream has been given."""
        if vector.address not in self._launches:
            arrays, count = {"to": self._picked, "source": vector}, self._picked.size
            made = launches(pick, vector.dtype, arrays, stream, count=count, stride=self._stride)
            self._launches = {vector.address: made}
        self._launches[vector.address].enqueue(stream)
        host = np.empty(self._picked.size, self._picked.dtype)
        toolkit.read(self._picked.address, host, stream)
        return host


def words_of(array, stream):
    """Some of an array's elements, in words of four bytes, on the host."""
    words = memory.Array((array.nbytes // 4,), np.float32, array.address, array.owner, array.device)
    return Seen(words.size, words.dtype)(words, stream)


class DeviceTreeSum:
    """Sums of vectors of `count` numbers over all pieces, the same bits for any number of ranks and any transport.

    `first`, `stop`: the pieces of this rank. scatters: cut short vectors into chunks, too, for calls that scatter.
    """

    def __init__(self, ranks, transport, count, dtype, scatters=False):
        self.ranks, self.transport, self.count, self.dtype = ranks, transport, count, np.dtype(dtype)
        chunks = chunks_of(ranks, count * self.dtype.itemsize, scatters)
        self._heads = TreeSum(ranks, 0, np.float64)
        self.first, self.stop = self._heads.first, self._heads.stop
        self.tree = Tree(ranks.pieces, ranks.size, chunks)
        own = self.tree.own[ranks.rank]
        self._slots = [memory.empty(count, dtype) for _ in own]
        self._spare = [memory.empty(count, dtype) for _ in range(max(depth(node) for node in own))]
        self._received = None if ranks.size == 1 else memory.empty(count, dtype)
        self.result = self._slots[0]
        self._parts = [share_blocks(count, chunk, chunks) for chunk in range(chunks)]
        self._adds = {}

    def __call__(self, evaluate, read, stream, scatters=False):
        """([sum of losses, of their weights, of samples' weights], the sum of vectors, on the device), on every rank.

        evaluate(piece, vector) enqueues on the stream what writes all of a vector; read() then returns, for each piece
        of this rank, (its loss times its weight, its weight, that of its samples). If one of them raises on one rank,
        all ranks raise. scatters: of the vector, only the range `own_part` of each rank is the sum. The vector is valid
        until the next call.
        """
        found, error = {}, None
        try:
            for node, slot in zip(self.tree.own[self.ranks.rank], self._slots, strict=True):
                self._sum(node, slot, evaluate, 0, stream)
            found = read()
        except BaseException as raised:  # the others learn of it where the heads meet
            error = raised

        def head(piece, out):
            if error is not None:
                raise error
            out.head[:FAILURES] = found[piece]

        total = self._heads(head).head
        if self.ranks.size > 1:
            with unbroken(self.ranks):
                self._across(stream)
                if not scatters:
                    self._gather(stream)
        return total[:FAILURES].tolist(), self.result

    def _sum(self, node, out, evaluate, level, stream):
        """out = the sum of a node of this rank alone."""
        if node.is_piece:
            evaluate(node.first, out)
            return
        left, right = node.halves
        self._sum(left, out, evaluate, level, stream)
        self._sum(right, self._spare[level], evaluate, level + 1, stream)
        self._add(out, self._spare[level], stream)

    def _add(self, to, other, stream):
        key = to.address, other.address, to.size
        if key not in self._adds:
            self._adds[key] = launches(add, self.dtype, {"to": to, "other": other}, stream, count=to.size)
        self._adds[key].enqueue(stream)

    # -- across ranks

    def _across(self, stream):
        """Add the crossing nodes; slot 0 then has the finished chunks of this rank."""
        rank = self.ranks.rank
        for _, moves in itertools.groupby(self.tree.moves[rank], lambda move: move.node):
            here = [move for move in moves if self._part(self._slots[0], move.chunk).size]
            messages: dict[int, list] = {SEND: [], RECEIVE: []}
            for move in here:
                if move.kind != ADD:
                    vector = self._slots[move.slot] if move.kind == SEND else self._received
                    messages[move.kind].append((_bytes(self._part(vector, move.chunk)), move.peer, move.tag))
            if messages[SEND] or messages[RECEIVE]:
                self.transport.exchange(messages[SEND], messages[RECEIVE], stream)
            for move in here:
                if move.kind != SEND:
                    other = self._slots[move.peer] if move.kind == ADD else self._received
                    self._add(self._part(self._slots[move.slot], move.chunk), self._part(other, move.chunk), stream)
        self.transport.finish()
        for chunk, (owner, slot) in enumerate(self.tree.results):
            if owner == rank and slot != 0:
                to, source = (self._part(self._slots[k], chunk) for k in (0, slot))
                toolkit.copy(to.address, source.address, to.nbytes, stream)

    def _gather(self, stream):
        """Bring the finished chunks to every rank."""
        whole = _bytes(self._slots[0])
        if self.tree.chunks == 1:
            self.transport.broadcast(whole, self.tree.results[0][0], stream)
        else:
            sizes = [(stop - start) * self.dtype.itemsize for start, stop in self._parts]
            self.transport.spread(whole, sizes, stream)

    def _part(self, vector, chunk):
        return vector[slice(*self._parts[chunk])]


def _bytes(array):
    return memory.Array((array.nbytes,), np.uint8, array.address, array.owner, array.device)
