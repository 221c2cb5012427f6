"""The sum over ranks, carried out here in one process: the same bits for any number of ranks and chunks."""

import itertools
import sys

import numpy as np
import pytest

import nbprop
from nbprop.cluster.parts import rows_of, shard
from nbprop.cluster.tree import ADD, RECEIVE, SEND, Node, Tree
from nbprop.numerics.partition import share


def summed(values, ranks, chunks):
    """The sum of values (pieces, count), as a tree's moves make it; checks that each message has one receiver."""
    pieces, count = values.shape
    tree = Tree(pieces, ranks, chunks)

    def node_sum(node):
        if node.is_piece:
            return values[node.first].copy()
        left, right = node.halves
        return node_sum(left) + node_sum(right)

    slots = [[node_sum(node) for node in nodes] for nodes in tree.own]
    assert sorted((n.first, n.stop) for nodes in tree.own for n in nodes)[0][0] == 0
    sent, received = {}, set()
    waiting = [list(moves) for moves in tree.moves]
    while any(waiting):
        before = sum(map(len, waiting))
        for rank, moves in enumerate(waiting):
            while moves:
                move = moves[0]
                part = slice(*share(count, move.chunk, chunks))
                if move.kind == SEND:
                    assert (rank, move.peer, move.tag) not in sent
                    sent[rank, move.peer, move.tag] = slots[rank][move.slot][part].copy()
                elif move.kind == ADD:
                    slots[rank][move.slot][part] += slots[rank][move.peer][part]
                else:
                    assert move.kind == RECEIVE
                    key = (move.peer, rank, move.tag)
                    if key not in sent:
                        break
                    assert key not in received
                    received.add(key)
                    slots[rank][move.slot][part] += sent[key]
                moves.pop(0)
        assert sum(map(len, waiting)) < before, "the ranks wait for each other"
    assert received == set(sent)
    total = np.empty(count)
    for chunk, (rank, slot) in enumerate(tree.results):
        part = slice(*share(count, chunk, chunks))
        total[part] = slots[rank][slot][part]
    return total, len(sent)


@pytest.mark.parametrize("pieces", [1, 2, 7, 64])
def test_bits_do_not_depend_on_ranks(pieces):
    rng = np.random.default_rng(pieces)
    values = rng.normal(size=(pieces, 37)) * 10.0 ** rng.integers(-8, 8, (pieces, 1))
    alone, messages = summed(values, 1, 1)
    assert messages == 0
    np.testing.assert_allclose(alone, values.sum(0), rtol=1e-12, atol=1e-6)
    for ranks in range(2, min(pieces, 17) + 1):
        for chunks in {1, ranks}:
            found, _ = summed(values, ranks, chunks)
            np.testing.assert_array_equal(found, alone)


def test_each_rank_of_a_power_of_two_sends_a_vector_once():
    """Recursive halving: half of the vector, a quarter, ...: 7 chunks of 8 from each of 8 ranks."""
    tree = Tree(64, 8, 8)
    assert [sum(move.kind == SEND for move in moves) for moves in tree.moves] == [7] * 8


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8, 13])
def test_each_rank_ends_with_its_chunk(ranks):
    tree = Tree(64, ranks, ranks)
    assert [rank for rank, _ in tree.results] == list(range(ranks))


@pytest.mark.parametrize(("samples", "batch"), [(301, None), (301, 50), (10, 64), (64, 64), (1000, 128)])
def test_shards_are_what_a_piece_takes_of_all_batches(samples, batch):
    for pieces in (1, 3, 16):
        found = [shard(samples, piece, pieces, batch) for piece in range(pieces)]
        assert found[0][0] == 0
        assert found[-1][1] == samples
        assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
        begins = range(0, samples, batch or samples)
        for piece, (first, stop) in enumerate(found):
            parts = [share(min(batch or samples, samples - begin), piece, pieces) for begin in begins]
            assert stop - first == sum(b - a for a, b in parts)
        for ranks in range(1, pieces + 1):
            bounds = [rows_of(rank, ranks, samples, pieces, batch) for rank in range(ranks)]
            assert [a for a, _ in bounds[1:]] == [b for _, b in bounds[:-1]]


def test_without_mpi4py_comm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    net = nbprop.network((2,), nbprop.dense(1))
    plan, params = nbprop.plan(net, "mse", 4), nbprop.init(net)
    x, target = np.ones((4, 2)), np.ones((4, 1))
    for call in (
        lambda: nbprop.fit(net, params, x, target, "mse", comm=object()),
        lambda: nbprop.objective(plan, x, target, comm=object()),
        lambda: nbprop.minimize(plan, params, x, target, comm=object()),
        lambda: nbprop.least_squares(plan, params, x, target, comm=object()),
        lambda: nbprop.data_on_ranks(plan, x, target, comm=object()),
        lambda: nbprop.rank_rows(object(), 4),
    ):
        with pytest.raises(TypeError, match=r"comm must be a communicator of mpi4py.*pip install nbprop\[mpi\]"):
            call()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shard_update": True}, "shard_update=True is for several ranks; pass comm"),
        ({"data": "split"}, "data='split' is for several ranks; pass comm"),
        ({"pieces": 0}, "pieces"),
    ],
)
def test_what_is_for_several_ranks_needs_comm(options, words):
    net = nbprop.network((2,), nbprop.dense(1))
    with pytest.raises(ValueError, match=words):
        nbprop.fit(net, nbprop.init(net), np.ones((4, 2)), np.ones((4, 1)), "mse", **options)


def test_a_tree_needs_as_many_pieces_as_ranks():
    with pytest.raises(ValueError, match=r"needs 1\.\.4 ranks, got 5"):
        Tree(4, 5, 1)
    assert Node(0, 5).halves == (Node(0, 2), Node(2, 5))
