"""Where the workspace's buffers lie: the largest first, each at the lowest place that is free for as long as it lives.

Memory is taken over stretches of time. A binary tree over time holds what is taken, so that a place is found, and
taken, in steps that grow with the logarithm of the number of ops. (Comparing each buffer with all others took 13 s for
a thousand dense layers.) The search is compiled: in Python it was half of the time that a plan takes.

A node of the tree stands for a stretch of time: node 1 for all, nodes 2 k and 2 k + 1 for the halves of k's. A buffer
is entered at the largest nodes whose stretches make up its life. Each node k has two sets of memory: set 2 k is what is
taken all through it by buffers entered at this very node, and set 2 k + 1 what is taken at any time in it, by buffers
entered there or below. A set is a linked list of pieces that do not touch, from low to high.
"""

import numpy as np

from nbprop.compiler.jit import njit
from nbprop.program import frame

# Buffers start on multiples of this many bytes from the start of the workspace: a cache line.
_ALIGNMENT = 64

_START, _STOP, _NEXT = 0, 1, 2  # columns of a piece


def place_buffers(timeline, itemsize, kept=(), watched=()):
    """Give every workspace buffer an offset by when it lives; (elements in all, the most that live at once).

    What the ops in `kept` write lives to the end if it is read after them, and so do the buffers in `watched`.
    Raises OverflowError where an offset might not fit 64 bits.
    """
    first, last, end = {}, {}, len(timeline)
    for time, op in enumerate(timeline):
        # Without a barrier, threads may still be in this op while others are in the next.
        last.update(dict.fromkeys(op.operands, time if op.barrier else time + 1))
    for time, op in zip(range(end - 1, -1, -1), reversed(timeline), strict=True):
        first.update(dict.fromkeys(op.operands, time))
    last |= {buffer: end for op in kept for buffer in op.writes if last[buffer] >= len(kept)}
    last |= dict.fromkeys(watched, end)
    buffers = [buffer for buffer in last if buffer is not None and buffer.space == frame.WORK]
    buffers.sort(key=lambda buffer: (-buffer.size, first[buffer]))
    unit = max(1, _ALIGNMENT // itemsize)
    sizes = [-(-buffer.size // unit) * unit for buffer in buffers]
    if sum(sizes) >= 2**63:
        raise OverflowError("the workspace would have more than 2**63 elements")
    lives = ([find[buffer] for buffer in buffers] for find in (first, last))
    begins, ends, lengths = (np.array(numbers, np.int64) for numbers in (*lives, sizes))
    offsets = assign_offsets(begins, ends, lengths, end + 1)
    for buffer, offset in zip(buffers, offsets.tolist(), strict=True):
        buffer.offset = offset
    change = np.zeros(end + 2, np.int64)  # of the elements that live, at each time
    np.add.at(change, begins, lengths)
    np.subtract.at(change, ends + 1, lengths)
    total = max((offsets + lengths).tolist(), default=0)
    return total, max(np.cumsum(change)[:end].tolist(), default=0)


@njit
def assign_offsets(first, last, size, times):
    """The lowest offsets at which buffers are free at all times from `first` to `last`, one after the other.

    first, last, size IN (buffers,), 0 <= first <= last < times; what is returned: (buffers,).
    """
    leaves, depth = 1, 1
    while leaves < times:
        leaves, depth = 2 * leaves, depth + 1
    sets = np.full(4 * leaves, -1)  # the first piece of each
    pieces, spare = np.empty((1024, 3), np.int64), -1
    used, offsets = 0, np.zeros(size.size, np.int64)
    nodes, near = np.empty(2 * depth, np.int64), np.empty(4 * depth, np.int64)
    for k in range(size.size):
        if size[k] == 0:
            continue
        # The largest nodes whose stretches make up the buffer's life, and the sets that may be in its way.
        count, left, right = 0, first[k] + leaves, last[k] + leaves + 1
        while left < right:
            if left % 2 == 1:
                nodes[count] = left
                count, left = count + 1, left + 1
            if right % 2 == 1:
                right -= 1
                nodes[count] = right
                count += 1
            left, right = left // 2, right // 2
        sets_near = 0
        for i in range(count):
            near[sets_near] = 2 * nodes[i] + 1
            sets_near += 1
        left, right = (first[k] + leaves) // 2, (last[k] + leaves) // 2
        while left > 0:  # what was entered above those nodes lasts through some of them
            near[sets_near], near[sets_near + 1] = 2 * left, 2 * right
            sets_near += 2 if left != right else 1
            left, right = left // 2, right // 2
        offset, before = 0, -1
        while offset != before:  # a set passed before the last step up may be in the way of the new place
            before = offset
            for i in range(sets_near):
                offset = _lowest_free(pieces, sets[near[i]], offset, size[k])
        offsets[k] = offset
        # Each set on the way from the nodes to the root may take a piece more.
        if used + 6 * depth > len(pieces):
            grown = np.empty((2 * len(pieces) + 6 * depth, 3), np.int64)
            grown[:used] = pieces[:used]
            pieces = grown
        for i in range(count):
            node = nodes[i]
            used, spare, changed = _add(pieces, sets, 2 * node, offset, offset + size[k], used, spare)
            changed = True
            while node > 0 and changed:
                used, spare, changed = _add(pieces, sets, 2 * node + 1, offset, offset + size[k], used, spare)
                node //= 2
    return offsets


@njit
def _lowest_free(pieces, piece, offset, size):
    """The lowest place from `offset` on where `size` elements lie in none of a set's pieces, `piece` the first."""
    while piece >= 0 and pieces[piece, _START] < offset + size:
        offset = max(offset, pieces[piece, _STOP])
        piece = pieces[piece, _NEXT]
    return offset


@njit
def _add(pieces, sets, number, start, stop, used, spare):
    """Add a piece to a set, where pieces that touch become one; (used, spare, False when it was in the set already).

    `used` rows of pieces have been used, of which those in the list from `spare` on hold nothing.
    """
    before, piece = -1, sets[number]
    while piece >= 0 and pieces[piece, _STOP] < start:
        before, piece = piece, pieces[piece, _NEXT]
    if piece >= 0 and pieces[piece, _START] <= start and stop <= pieces[piece, _STOP]:
        return used, spare, False
    while piece >= 0 and pieces[piece, _START] <= stop:
        start, stop = min(start, pieces[piece, _START]), max(stop, pieces[piece, _STOP])
        following = pieces[piece, _NEXT]
        pieces[piece, _NEXT] = spare
        spare, piece = piece, following
    new, following = spare, piece
    if new < 0:
        new, used = used, used + 1
    else:
        spare = pieces[new, _NEXT]
    pieces[new, _START], pieces[new, _STOP], pieces[new, _NEXT] = start, stop, following
    if before < 0:
        sets[number] = new
    else:
        pieces[before, _NEXT] = new
    return used, spare, True
