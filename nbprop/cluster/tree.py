"""Where each node of a binary tree over pieces is added when the pieces lie on several ranks.

The leaves are pieces 0..P-1 of a batch, and a node is the sum of its two halves. Which ranks there are decides where a
node is added, never which two numbers are: IEEE addition is commutative, so the bits of the sum are the same on any
number of ranks. A rank holds consecutive pieces. Nodes that lie on one rank need no messages; what is left are the few
nodes that cross ranks. A long vector is cut into chunks, and each rank adds its share of the chunks at each crossing
node: for a power of two this is recursive halving (Thakur, Rabenseifner and Gropp 2005, section 4.1), in which every
rank sends and receives each number once.
"""

from dataclasses import dataclass

from nbprop.numerics.partition import share

SEND, RECEIVE, ADD = range(3)


@dataclass(frozen=True)
class Node:
    """The sum of the pieces first..stop-1."""

    first: int
    stop: int

    @property
    def halves(self):
        middle = (self.first + self.stop) // 2
        return Node(self.first, middle), Node(middle, self.stop)

    @property
    def is_piece(self):
        return self.stop == self.first + 1


@dataclass(frozen=True)
class Move:
    """What a rank does with a chunk of a crossing node.

    kind : SEND it from a slot, RECEIVE and add it to one, or ADD another slot
    node : number of the node; all ranks come to the nodes in this order, and at most one message of a chunk to each
    """

    kind: int
    chunk: int
    slot: int
    peer: int  # the other rank, or for ADD the other slot
    tag: int
    node: int


class Tree:
    """The sum of `pieces` pieces on `ranks` ranks, in `chunks` chunks, as each rank carries it out.

    own : the largest nodes that lie on a rank alone, a tuple of `Node` a rank; node number i is summed into slot i
    moves : what each rank does afterwards, in order, a list of `Move` a rank
    results : (rank, slot) of the finished sum of each chunk; of several chunks, number c ends on rank c
    """

    def __init__(self, pieces, ranks, chunks):
        if not 1 <= ranks <= pieces:
            raise ValueError(f"a tree over {pieces} pieces needs 1..{pieces} ranks, got {ranks}")
        self.pieces, self.ranks, self.chunks = pieces, ranks, chunks
        self._rank_of = [rank for rank in range(ranks) for _ in range(*share(pieces, rank, ranks))]
        own: list[list[Node]] = [[] for _ in range(ranks)]
        self.moves: list[list[Move]] = [[] for _ in range(ranks)]
        self._own, self._tags, self._nodes = own, 0, 0
        self.results = self._place(Node(0, pieces))
        self.own = tuple(tuple(nodes) for nodes in own)

    def _place(self, node):
        """Lay out a node; returns (rank, slot) of each of its chunks."""
        low, high = self._rank_of[node.first], self._rank_of[node.stop - 1]
        if low == high:
            self._own[low].append(node)
            return [(low, len(self._own[low]) - 1)] * self.chunks
        left, right = node.halves
        edge = self._rank_of[left.stop - 1]  # the last rank with a piece of the left half
        placed: list[tuple[int, int]] = []
        sends: list[tuple[int, Move]] = []
        others: list[tuple[int, Move]] = []
        halves = zip(self._place(left), self._place(right), strict=True)
        self._nodes += 1
        for chunk, (mine, other) in enumerate(halves):
            turn = chunk if low <= chunk <= high else low + chunk % (high - low + 1)
            keeper, giver = (mine, other) if turn <= edge else (other, mine)
            for rank, move in self._join(keeper, giver, chunk):
                (sends if move.kind == SEND else others).append((rank, move))
            placed.append(keeper)
        for rank, move in sends + others:  # both directions are in use at a time
            self.moves[rank].append(move)
        return placed

    def _join(self, keeper, giver, chunk):
        """The moves that add what the giver has to what the keeper has, with the ranks that make them."""
        (rank, slot), (sender, sent) = keeper, giver
        if rank == sender:
            return [(rank, Move(ADD, chunk, slot, sent, -1, self._nodes))]
        self._tags += 1
        return [
            (sender, Move(SEND, chunk, sent, rank, self._tags, self._nodes)),
            (rank, Move(RECEIVE, chunk, slot, sender, self._tags, self._nodes)),
        ]


def depth(node):
    """How many vectors a rank needs at a time, beside the result, to sum a node of its own piece by piece."""
    return (node.stop - node.first - 1).bit_length()
