"""Which samples a rank holds and computes: from sizes alone, so that results do not depend on the number of ranks."""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from nbprop.cluster.ranks import RankError, Ranks, check_comm, mark_of
from nbprop.numerics.partition import share
from nbprop.validation import check_integer, choose

WHOLE, SPLIT = "whole", "split"
_MOST_PIECES = 1 << 20

P = ParamSpec("P")
R = TypeVar("R")


def on_ranks(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function with the parameters comm, pieces and data run on all ranks of comm: it gets comm as `Ranks`."""
    signature = inspect.signature(function)
    name, place = function.__name__, list(signature.parameters).index("comm")

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) <= place and kwargs.keys().isdisjoint(("comm", "pieces", "data")):
            return function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        ranks = _ranks(name, given["comm"], given["pieces"], given["data"])
        given["comm"] = ranks
        with contextlib.nullcontext() if ranks is None else ranks.together():
            return function(*bound.args, **bound.kwargs)

    return run


def _ranks(function, comm, pieces, data):
    """`Ranks` of checked arguments; None without a communicator."""
    pieces = check_integer(f"{function}: pieces", pieces, 1, _MOST_PIECES)
    split = choose(f"{function}: data", data, (WHOLE, SPLIT)) == SPLIT
    if comm is None:
        if split:
            raise ValueError(f"{function}: data='split' is for several ranks; pass comm, such as MPI.COMM_WORLD")
        return None
    if check_comm(function, comm).Get_size() > pieces:
        raise ValueError(
            f"{function}: {comm.Get_size()} ranks need at least as many pieces, got pieces={pieces}; results depend on "
            "pieces and not on ranks, so choose a number for all runs that are to be the same"
        )
    return Ranks(function, comm, pieces, split)


def check_transport(function, transport, ranks, on_device):
    """Refuse `transport=` where nothing travels between devices."""
    if transport is not None and (ranks is None or not on_device):
        hint = "pass comm, too" if on_device else "these lie in host memory: leave it out"
        raise ValueError(f"{function}: transport= is how arrays on devices travel between ranks; {hint}")


def check_same_data(ranks, some_of, **columns):
    """Refuse whole data that differ between ranks, as where each has shuffled its own, by some of their elements.

    some_of: from an array to a vector of its elements, or of enough of them, on the host; columns: arrays or None.
    """
    if not ranks.split and ranks.size > 1:
        marks = {name: None if array is None else mark_of(some_of(array)) for name, array in columns.items()}
        ranks.agree({f"{name}, of which all ranks must hold the same,": mark for name, mark in marks.items()})


def flat(array):
    """A C-contiguous array on the host as a vector, without a copy."""
    return array.reshape(-1)


def shard(samples, piece, pieces, batch=None):
    """The samples [first, stop) that a piece takes in an epoch: of each batch, share number `piece` of `pieces`."""
    if batch is None or batch >= samples:
        return share(samples, piece, pieces)
    whole, last = divmod(samples, batch)
    starts = [whole * share(batch, p, pieces)[0] + share(last, p, pieces)[0] for p in (piece, piece + 1) if p < pieces]
    return starts[0], starts[1] if len(starts) == 2 else samples


def rank_rows(comm: Any, samples: int, pieces: int = 64, batch: int | None = None) -> slice:
    """The samples that this rank holds where the data are split over ranks (data="split").

    Parameters
    ----------
    comm : communicator of mpi4py
    samples : int; of all ranks together
    pieces : int; as `fit`, `objective` and the others take it
    batch : int or None; that of `fit`; None for functions that always use all samples

    Returns
    -------
    slice
        Of the samples in their order. Read this part of the files, no more: x = np.load(path, mmap_mode="r")[rows].

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, or more ranks than pieces.

    Examples
    --------
    >>> import nbprop
    >>> nbprop.rank_rows(MPI.COMM_WORLD, 60_000, batch=128)  # doctest: +SKIP
    slice(0, 30000, None)
    """
    comm = check_comm("rank_rows", comm)
    samples = check_integer("rank_rows: samples", samples)
    pieces = check_integer("rank_rows: pieces", pieces, comm.Get_size(), _MOST_PIECES)
    batch = None if batch is None else check_integer("rank_rows: batch", batch)
    return slice(*rows_of(comm.Get_rank(), comm.Get_size(), samples, pieces, batch))


def rows_of(rank, size, samples, pieces, batch=None):
    """(first, stop) of the samples of a rank's pieces."""
    first, stop = share(pieces, rank, size)
    return shard(samples, first, pieces, batch)[0], shard(samples, stop - 1, pieces, batch)[1]


def total_samples(ranks: Ranks, held: int, batch: int | None = None) -> tuple[int, int]:
    """(samples of all ranks, number of the first that this rank holds), once every rank holds what its pieces need."""
    counts, pieces = ranks.gather(int(held)), ranks.pieces
    if not ranks.split:
        other = next((rank for rank, count in enumerate(counts) if count != counts[0]), None)
        if other is not None:
            raise RankError(
                f"{ranks.function}: x has {counts[0]} samples on rank 0 and {counts[other]} on rank {other}; give all "
                "ranks the whole data, or each its part with data='split'"
            )
        return counts[0], 0
    total = sum(counts)
    for rank, count in enumerate(counts):
        first, stop = rows_of(rank, ranks.size, total, pieces, batch)
        if stop - first != count:
            call = f"nbprop.rank_rows(comm, {total}, {pieces}{'' if batch is None else f', {batch}'})"
            raise RankError(
                f"{ranks.function}: of {total} samples in {pieces} pieces, rank {rank} must hold {stop - first}, "
                f"number {first} to {stop - 1}, and holds {count}; {call} says which"
            )
    return total, rows_of(ranks.rank, ranks.size, total, pieces, batch)[0]
