"""Where the workspace's buffers lie: the largest first, each at the lowest place that is free for as long as it lives.

Memory is taken over stretches of time. A binary tree over time holds what is taken, so that a place is found, and
taken, in steps that grow with the logarithm of the number of ops. (Comparing each buffer with all others took 13 s for
a thousand dense layers.)
"""

from bisect import bisect_left, bisect_right
from itertools import accumulate

from nbprop.program import frame

# Buffers start on multiples of this many bytes from the start of the workspace: a cache line.
_ALIGNMENT = 64


def place_buffers(timeline, itemsize, kept=(), watched=()):
    """Give every workspace buffer an offset by when it lives; (elements in all, the most that live at once).

    What the ops in `kept` write lives to the end if it is read after them, and so do the buffers in `watched`.
    """
    first, last, buffers = {}, {}, {}
    for time, op in enumerate(timeline):
        for buffer in op.operands:
            if buffer is not None and buffer.space == frame.WORK:
                buffers[id(buffer)] = buffer
                first.setdefault(id(buffer), time)
                # Without a barrier, threads may still be in this op while others are in the next.
                last[id(buffer)] = time if op.barrier else time + 1
    for buffer in (buffer for op in kept for buffer in op.writes if buffer.space == frame.WORK):
        if last[id(buffer)] >= len(kept):
            last[id(buffer)] = len(timeline)
    last |= {id(buffer): len(timeline) for buffer in watched}
    unit = max(1, _ALIGNMENT // itemsize)
    taken, total = _Taken(len(timeline) + 1), 0
    change = [0] * (len(timeline) + 2)  # of the elements that live, at each time
    for key in sorted(buffers, key=lambda k: (-buffers[k].size, first[k])):
        size = -(-buffers[key].size // unit) * unit
        offset = taken.lowest_free(first[key], last[key], size)
        taken.take(first[key], last[key], offset, offset + size)
        buffers[key].offset = offset
        total = max(total, offset + size)
        change[first[key]] += size
        change[last[key] + 1] -= size
    return total, max(accumulate(change[: len(timeline)]), default=0)


class _Taken:
    """Which memory is taken when.

    A node of the tree stands for a stretch of time: node 1 for all, nodes 2 k and 2 k + 1 for the halves of k's. A
    buffer is entered at the largest nodes whose stretches make up its life. Each node has two sets of memory: what is
    taken all through it by buffers entered at this very node, and what is taken at any time in it, by buffers entered
    here or below. A set is the sorted list of the borders between free and taken memory.
    """

    def __init__(self, times):
        self._leaves = 1 << max(times - 1, 0).bit_length()
        self._throughout = [[] for _ in range(2 * self._leaves)]
        self._ever = [[] for _ in range(2 * self._leaves)]

    def _nodes(self, first, last):
        """The largest nodes whose stretches make up the time from `first` to `last`, from small to large."""
        found, left, right = [], first + self._leaves, last + self._leaves + 1
        while left < right:
            if left % 2:
                found.append(left)
                left += 1
            if right % 2:
                right -= 1
                found.append(right)
            left, right = left // 2, right // 2
        return found

    def lowest_free(self, first, last, size):
        """The lowest offset at which `size` elements are free at all times from `first` to `last`."""
        if size == 0:
            return 0
        # The largest come first: they take the place furthest up.
        sets = [self._ever[node] for node in reversed(self._nodes(first, last)) if self._ever[node]]
        left, right = first + self._leaves, last + self._leaves
        while left := left // 2:  # what was entered above those nodes lasts through some of them
            right //= 2
            if self._throughout[left]:
                sets.append(self._throughout[left])
            if right != left and self._throughout[right]:
                sets.append(self._throughout[right])
        offset, whole = 0, self._ever[1]
        while True:  # a set that was passed before the last step up may be in the way of the new place
            before = offset
            for borders in sets:
                offset = _free(borders, offset, size)
            if offset == before or _free(whole, offset, size) == offset:
                return offset

    def take(self, first, last, start, stop):
        """Take the memory from `start` to `stop` from the time `first` to `last`."""
        for node in self._nodes(first, last):
            _add(self._throughout[node], start, stop)
            while node and _add(self._ever[node], start, stop):
                node //= 2


def _free(borders, offset, size):
    """The lowest place from `offset` on where `size` elements lie in none of a set's pieces."""
    at = bisect_right(borders, offset)
    if at % 2:  # inside a piece
        offset = borders[at]
        at += 1
    while at < len(borders) and borders[at] < offset + size:
        offset = borders[at + 1]
        at += 2
    return offset


def _add(borders, start, stop):
    """Add a piece to a set, where pieces that touch become one; False when it was in the set already."""
    at, behind = bisect_left(borders, start), bisect_right(borders, stop)
    within = bisect_right(borders, start)
    if start == stop or (within % 2 and borders[within] >= stop):
        return False
    borders[at:behind] = [start] * (at % 2 == 0) + [stop] * (behind % 2 == 0)
    return True
