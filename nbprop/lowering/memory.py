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


def place_buffers(timeline, itemsize, kept=(), watched=()):
    """Give every workspace buffer an offset by when it lives; (elements in all, the most that live at once).

    What the ops in `kept` write lives to the end if it is read after them, and so do the buffers in `watched`.
    Raises OverflowError where an offset might not fit 64 bits.
    """
    end, touched = len(timeline), [buffer for op in timeline for buffer in op.operands]
    number_of = {buffer: number for number, buffer in enumerate(dict.fromkeys(touched))}
    # In NumPy, as one pass over the operands in Python takes longer than all of this.
    numbers = np.array([number_of[buffer] for buffer in touched], np.intp)
    times = np.repeat(np.arange(end), np.array([len(op.operands) for op in timeline], np.intp))
    first, last = np.empty((2, len(number_of)), np.int64)
    first[numbers[::-1]] = times[::-1]  # of several times, the one assigned last stays
    # Without a barrier, threads may still be in an op while others are in the next.
    last[numbers] = times + np.array([not op.barrier for op in timeline], np.int64)[times]
    written = np.array([number_of[buffer] for op in kept for buffer in op.writes], np.intp)
    last[written[last[written] >= len(kept)]] = end
    last[np.array([number_of[buffer] for buffer in watched if buffer in number_of], np.intp)] = end
    buffers = [buffer for buffer in number_of if buffer is not None and buffer.space == frame.WORK]
    if not buffers:
        return 0, 0
    chosen, unit = [number_of[buffer] for buffer in buffers], max(1, _ALIGNMENT // itemsize)
    sizes = [-(-buffer.size // unit) * unit for buffer in buffers]
    if sum(sizes) >= 2**63:
        raise OverflowError("the workspace would have more than 2**63 elements")
    begins, ends, lengths = first[chosen], last[chosen], np.array(sizes, np.int64)
    order = np.lexsort((begins, [-buffer.size for buffer in buffers]))  # the largest first, then as they appear
    begins, ends, lengths = begins[order], ends[order], lengths[order]
    offsets = assign_offsets(begins, ends, lengths, end + 1)
    for k, offset in zip(order.tolist(), offsets.tolist(), strict=True):
        buffers[k].offset = offset
    change = np.zeros(end + 2, np.int64)  # of the elements that live, at each time
    np.add.at(change, begins, lengths)
    np.subtract.at(change, ends + 1, lengths)
    return int((offsets + lengths).max()), int(np.cumsum(change)[:end].max())


def assign_offsets(first, last, size, times):
    """The lowest offsets at which buffers are free at all times from `first` to `last`, one after the other.

    first, last, size IN (buffers,), 0 <= first <= last < times; what is returned: (buffers,).
    """
    leaves = 1 << (times - 1).bit_length()
    depth, pieces = leaves.bit_length(), 8 * size.size
    while True:
        offsets, sets, scratch = (
            np.zeros(size.size, np.int64),
            np.full(4 * leaves, -1, np.int64),
            np.empty(6 * depth, np.int64),
        )
        starts, stops, following = np.empty((3, pieces + 6 * depth), np.int64)
        if _assign(offsets, sets, starts, stops, following, scratch, first, last, size, leaves, depth, pieces):
            return offsets
        pieces *= 4


@njit
def _assign(offsets, sets, starts, stops, following, nodes, first, last, size, leaves, depth, pieces):
    """As `assign_offsets`; False where more than so many pieces are needed. (Allocating here compiles for seconds.)

    offsets OUT (buffers,), zeros; sets INOUT (4 leaves,), the first piece of each set, -1; starts, stops, following
    scratch, (pieces + 6 depth,), of a piece each; nodes scratch (6 depth,).
    """
    used = 0
    for k in range(size.size):
        if size[k] == 0:
            continue
        if used > pieces:
            return False
        # The largest nodes whose stretches make up the buffer's life, and the sets that may be in its way.
        count, left, right = 0, first[k] + leaves, last[k] + leaves + 1
        while left < right:
            if left & 1 == 1:
                nodes[count] = left
                count, left = count + 1, left + 1
            if right & 1 == 1:
                right -= 1
                nodes[count] = right
                count += 1
            left, right = left >> 1, right >> 1
        near = count
        for i in range(count):
            nodes[near] = 2 * nodes[i] + 1
            near += 1
        left, right = (first[k] + leaves) >> 1, (last[k] + leaves) >> 1
        while left > 0:  # what was entered above those nodes lasts through some of them
            nodes[near], nodes[near + 1] = 2 * left, 2 * right
            near += 2 if left != right else 1
            left, right = left >> 1, right >> 1
        offset, before = 0, -1
        while offset != before:  # a set passed before the last step up may be in the way of the new place
            before = offset
            for i in range(count, near):
                piece = sets[nodes[i]]
                while piece >= 0 and starts[piece] < offset + size[k]:
                    if stops[piece] > offset:
                        offset = stops[piece]
                    piece = following[piece]
        offsets[k] = offset
        for i in range(count):
            number, node = 2 * nodes[i], nodes[i]
            while node > 0:
                # Add a piece to a set, where pieces that touch become one.
                start, stop, previous, piece = offset, offset + size[k], -1, sets[number]
                while piece >= 0 and stops[piece] < start:
                    previous, piece = piece, following[piece]
                if piece >= 0 and starts[piece] <= start and stop <= stops[piece]:
                    if number & 1 == 1:
                        break  # it is in the set, and so in those above
                else:
                    new = piece if piece >= 0 and starts[piece] <= stop else used
                    used += 1 if new == used else 0
                    while piece >= 0 and starts[piece] <= stop:
                        start = starts[piece] if starts[piece] < start else start
                        stop = stops[piece] if stops[piece] > stop else stop
                        piece = following[piece]
                    starts[new], stops[new], following[new] = start, stop, piece
                    if previous < 0:
                        sets[number] = new
                    else:
                        following[previous] = new
                if number & 1 == 1:
                    node = node >> 1
                number = 2 * node + 1
    return True
