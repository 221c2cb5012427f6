"""The sum over ranks of what each has computed of its pieces, in the order of tree.py."""

from collections.abc import Callable
from typing import Any

import numpy as np

from nbprop.cluster.ranks import Ranks
from nbprop.cluster.tree import ADD, SEND, Node, Tree, depth
from nbprop.numerics.partition import share, share_blocks

# In front of each vector travel four float64: the sum of losses, that of their weights in the mean, that of samples'
# weights (for `fit`), and how many ranks failed.
HEAD = 4
LOSSES, WEIGHTS, SAMPLES, FAILURES = range(4)
_HEAD_BYTES = 8 * HEAD
# A shorter vector is summed in one chunk: a message costs as much as so many bytes.
_CHUNK_BYTES = 1 << 15


def chunks_of(ranks, size, scatters):
    """In how many chunks a vector of so many bytes travels; scatters: each rank is to have one."""
    return ranks.size if scatters or size >= ranks.size * _CHUNK_BYTES else 1


class Vector:
    """A vector with its head: `head` (4,) float64, `body` (count,), and both as bytes, `raw`."""

    def __init__(self, count, dtype):
        words = np.zeros(HEAD + -(-count * np.dtype(dtype).itemsize // 8))  # float64, for the alignment
        self.raw = words.view(np.uint8)[: _HEAD_BYTES + count * np.dtype(dtype).itemsize]
        self.head, self.body = words[:HEAD], words[HEAD:].view(dtype)[:count]

    def clear(self):
        """Make it the sum of nothing."""
        self.raw[:] = 0

    def add(self, other):
        """Add another vector."""
        self.head += other.head
        np.add(self.body, other.body, out=self.body)


class TreeSum:
    """Sums of vectors of `count` numbers over all pieces, the same bits for any number of ranks.

    `first`, `stop`: the pieces of this rank. scatters: cut short vectors into chunks, too, for `scattered`.
    """

    def __init__(self, ranks: Ranks, count: int, dtype: Any, scatters: bool = False):
        self.ranks, self.count, self.dtype = ranks, count, np.dtype(dtype)
        pieces = ranks.pieces
        size = _HEAD_BYTES + count * self.dtype.itemsize
        chunks = chunks_of(ranks, size, scatters)
        self.tree = Tree(pieces, ranks.size, chunks)
        self.first, self.stop = share(pieces, ranks.rank, ranks.size)
        own = self.tree.own[ranks.rank]
        self._slots = [Vector(count, dtype) for _ in own]
        self._spare = [Vector(count, dtype) for _ in range(max(depth(node) for node in own))]
        self._parts = [share_blocks(count, chunk, chunks) for chunk in range(chunks)]
        self._received = None if ranks.size == 1 else Vector(count, dtype)

    def __call__(self, evaluate: Callable[[int, Vector], None]) -> Vector:
        """The sum of what evaluate(piece, vector) writes, over all pieces, on every rank; valid until the next call.

        evaluate writes all of vector.body, and the first three of vector.head. If it raises on one rank, all raise.
        """
        error = self._own(evaluate)
        if self.ranks.size > 1:
            self._across()
            self._gather()
        return self._checked(error)

    def scattered(self, evaluate: Callable[[int, Vector], None]) -> Vector:
        """As a call, except that of the body only the range `own_part` of each rank is the sum."""
        error = self._own(evaluate)
        if self.ranks.size > 1:
            self._across()
            self.ranks.comm.Bcast(self._slots[0].head, self.tree.results[0][0])
        return self._checked(error)

    def _own(self, evaluate):
        """Sum the nodes of this rank alone; returns the error that ended it, or None."""
        error: BaseException | None = None
        for node, slot in zip(self.tree.own[self.ranks.rank], self._slots, strict=True):
            try:
                if error is None:
                    self._sum(node, slot, evaluate, 0)
            except BaseException as found:  # the others wait for this rank's vectors, and learn of it from the head
                error = found
            if error is not None:
                slot.clear()
                slot.head[FAILURES] = 1
        return error

    def _checked(self, error):
        """The sum, if no rank has failed."""
        total = self._slots[0]
        if self.ranks.size > 1 and total.head[FAILURES] > 0:
            self.ranks.tell(error)
        if error is not None:
            raise error
        return total

    def _sum(self, node: Node, out, evaluate, level):
        """out = the sum of a node of this rank alone."""
        if node.is_piece:
            evaluate(node.first, out)
            out.head[FAILURES:] = 0
            return
        left, right = node.halves
        self._sum(left, out, evaluate, level)
        self._sum(right, self._spare[level], evaluate, level + 1)
        out.add(self._spare[level])

    # -- across ranks

    def _across(self):
        """Add the crossing nodes; slot 0 then has the finished chunks of this rank."""
        comm, rank, waiting = self.ranks.comm, self.ranks.rank, []
        for move in self.tree.moves[rank]:
            slot = self._slots[move.slot]
            if move.kind == SEND:
                waiting.append(comm.Isend(self._bytes(slot, move.chunk), move.peer, move.tag))
            elif move.kind == ADD:
                self._add(slot, self._slots[move.peer], move.chunk)
            else:
                comm.Recv(self._bytes(self._received, move.chunk), move.peer, move.tag)
                self._add(slot, self._received, move.chunk)
        from mpi4py import MPI

        MPI.Request.Waitall(waiting)
        for chunk, (owner, slot) in enumerate(self.tree.results):
            if owner == rank and slot != 0:
                self._bytes(self._slots[0], chunk)[:] = self._bytes(self._slots[slot], chunk)

    def _gather(self):
        """Bring the finished chunks to every rank."""
        whole, chunks = self._slots[0], range(self.tree.chunks)
        if self.tree.chunks == 1:
            self.ranks.comm.Bcast(whole.raw, self.tree.results[0][0])
        else:
            self.ranks.spread(whole.raw, [self._bytes(whole, chunk).size for chunk in chunks])

    def _bytes(self, vector, chunk):
        """A chunk of a vector as a message; the head travels with chunk 0, which lies behind it."""
        start, stop = self._parts[chunk]
        size = self.dtype.itemsize
        return vector.raw[0 if chunk == 0 else _HEAD_BYTES + start * size : _HEAD_BYTES + stop * size]

    def _add(self, vector, other, chunk):
        start, stop = self._parts[chunk]
        if chunk == 0:
            vector.head += other.head
        body = vector.body[start:stop]
        np.add(body, other.body[start:stop], out=body)


def own_part(ranks: Ranks, count: int) -> slice:
    """The part of a vector whose sum a rank has from `TreeSum.scattered`; it may be empty.

    Whole blocks of elements, so that elementwise loops over it have the bits of those over the whole vector.
    """
    return slice(*share_blocks(count, ranks.rank, ranks.size))
