"""Fusion: a pass over ops, after layers have emitted theirs, that writes some of them in a cheaper form.

Layers know nothing of their neighbours; what may be rewritten follows from what they register of their kernels
(program/patterns.py) and from who touches which buffer. There are two rewrites:

- A function that never falls moves behind a selection of the largest, since max f(x) = f(max x): it then runs over the
  few numbers that are left, and so does its derivative in the backward pass, which moves before the selection's.
- An op that reads what another one writes is replaced by one that takes that op's inputs (`fused_pair`).

Neither happens where anything else looks at the numbers in between: a second consumer, a watched value.
"""

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

from nbprop.program import frame
from nbprop.program.ops import Op
from nbprop.program.patterns import ELEMENTWISE, PAIRS, SELECTIONS


def fuse(build, *parts):
    """Rewrite the ops of parts of a program that follow each other; the new parts, as lists."""
    if all({op.kernel for op in part}.isdisjoint(SELECTIONS.keys() | PAIRS.keys()) for part in parts):
        return parts
    program = _Program(parts)
    for op in program.ops():
        if op.kernel in SELECTIONS:
            _move_behind_selection(program, op)
    for op in program.ops():
        for writer, rewrite in PAIRS.get(op.kernel, ()):
            write = _written_by(program, op, writer)
            build.label = op.label
            fused = rewrite(build, write, op) if write else None
            if fused:
                program.replace(op, fused)
                break
    return program.parts()


class _Program:
    """Ops in their order, which changes as they are rewritten, and those that touch a buffer."""

    def __init__(self, parts):
        self._count = len(parts)
        begun = [op for part in parts for op in part]
        self._followers = dict(pairwise(begun))
        # Part, number, and a number among the ops that have been moved there.
        self.place = {op: (p, k, 0) for p, part in enumerate(parts) for k, op in enumerate(part)}
        self._touching = defaultdict(list)
        for op in begun:
            self._enter(op)

    def _enter(self, op):
        for buffer in dict.fromkeys(op.operands):
            if buffer is not None and buffer.space == frame.WORK:
                self._touching[buffer].append(op)

    def ops(self):
        """All ops, in order."""
        return sorted(self.place, key=self.place.__getitem__)

    def touching(self, buffer):
        """The ops that read or write a workspace buffer, in order."""
        return sorted(self._touching.get(buffer, ()), key=self.place.__getitem__)

    def replace(self, op, new):
        """Put an op where another one stood."""
        place, follower = self.place[op], self._followers.get(op)
        self.move(op, new, place)
        self._followers[new] = follower

    def move(self, op, new, place):
        """Take an op away, and put another one in at a place."""
        del self.place[op]
        for buffer in dict.fromkeys(op.operands):
            if buffer in self._touching:
                self._touching[buffer].remove(op)
        self.place[new] = place
        self._enter(new)

    def parts(self):
        """The ops of each part."""
        found: list[list[Op]] = [[] for _ in range(self._count)]
        for op, follower in pairwise([*self.ops(), None]):
            # An op may go without a barrier only before the very op that it was emitted before.
            alone = op.barrier or (follower is not None and self._followers.get(op) is follower)
            found[self.place[op][0]].append(op if alone else replace(op, barrier=True))
        return found


def _move_behind_selection(program, select):
    """Move the function that makes a selection's input behind it, and its derivatives, where nothing else sees it.

    x is what the function writes and the selection reads. `images` tells what is left of each array of x's shape: of x
    and its tangent, (y, y'), and in the backward pass of their gradients.
    """
    kernels = SELECTIONS[select.kernel]
    y, index, x = select.operands
    group, images, back = program.touching(index), {x: y}, {}
    for op in group[1:]:
        if op.kernel is kernels.tangent:
            images[op.operands[2]] = op.operands[0]
        elif op.kernel is kernels.backward:
            back[op.operands[0]] = op.operands[1]
        else:
            return
    images |= back
    place = program.place
    behind = max(place[op] for op in group if op.kernel is not kernels.backward)
    before = min((place[op] for op in group if op.kernel is kernels.backward), default=behind)
    users = [op for op in program.touching(x) if op is not select]
    made = max((k for k, op in enumerate(users) if place[op] < place[select] and x in op.writes), default=len(users))
    functions = users[made:]
    if not functions or set(functions[0].operands) != {x} or not all(_moves(op, images) for op in functions):
        return
    forward = [op for op in functions if place[op] < place[select]]
    if any(back.keys().isdisjoint(op.operands) != (k < len(forward)) for k, op in enumerate(functions)):
        return
    own = {*group, *functions}
    for inner, outer in images.items():
        ends = [place[op] for op in functions if inner in op.operands]
        if not ends or inner.space != frame.WORK or outer.space != frame.WORK:
            return
        # Other ops have made the inner array before the function, or read its gradient after it.
        for op in program.touching(inner):
            if op not in own and not (place[op] > max(ends) if inner in back else place[op] < min(ends)):
                return
        # Other ops read the outer array after the selection and leave it as it is, or have made its gradient before.
        for op in program.touching(outer):
            if op not in own and not (place[op] < before if inner in back else place[op] > behind):
                return
            if op not in own and inner not in back and outer in op.writes:
                return
    for k, op in enumerate(functions):
        here = (*behind[:2], behind[2] + 1 + k) if k < len(forward) else (*before[:2], before[2] - len(functions) + k)
        program.move(op, _image(op, images, x), here)


def _moves(op, images):
    """Whether an op is a function that never falls of arrays that a selection takes from."""
    never_falls = ELEMENTWISE.get(op.kernel)
    return never_falls is not None and all(buffer in images for buffer in op.operands) and never_falls(*op.sizes)


def _image(op, images, x):
    """An elementwise op on what a selection leaves of its arrays."""
    batch = x.size // op.sizes[0]
    operands, writes = (tuple(images[buffer] for buffer in buffers) for buffers in (op.operands, op.writes))
    return replace(op, operands=operands, writes=writes, sizes=(images[x].size // batch, *op.sizes[1:]))


def _written_by(program, read, writer):
    """The op of a kernel that has written what an op reads, with inputs that still are what they were; or None."""
    place = program.place
    for buffer in dict.fromkeys(read.operands):
        writes = [op for op in program.touching(buffer) if buffer in op.writes and place[op] < place[read]]
        if len(writes) == 1 and writes[0].kernel is writer and buffer not in read.writes:
            (write,) = writes
            inputs = [other for other in write.operands if other not in write.writes]
            between = (
                op for other in inputs for op in program.touching(other) if place[write] < place[op] < place[read]
            )
            if not any(other in op.writes for op in between for other in inputs):
                return write
    return None
