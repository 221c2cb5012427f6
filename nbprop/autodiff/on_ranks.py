"""The gradient of data on several ranks, in compiled code: the sum of tree.py as a table of moves, over numba-mpi."""

import functools
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core.errors import TypingError
from numba.extending import overload
from numpy.typing import NDArray

from nbprop.autodiff.gradients import value_and_grad
from nbprop.cluster.parts import check_same_data, flat, on_ranks, shard, total_samples
from nbprop.cluster.ranks import Ranks, processor
from nbprop.cluster.sums import FAILURES, HEAD, LOSSES, WEIGHTS
from nbprop.cluster.tree import ADD, SEND, Tree, depth
from nbprop.compiler.jit import FLAGS
from nbprop.lowering.plan import Plan
from nbprop.runtime.datasets import check_dataset

# A move, in four words. EVALUATE: add the gradient of samples first .. stop - 1, whose weight is in `counted`, to a
# slot; CLEAR a slot; ADD_SLOT: to a slot, another one; SEND_SLOT: to a rank, with a tag; RECEIVE_SLOT: from one, and
# add it; SPREAD: from a rank's slot to slot 0 of all.
_EVALUATE, _CLEAR, _ADD_SLOT, _SEND_SLOT, _RECEIVE_SLOT, _SPREAD = range(6)


class DataOnRanks(NamedTuple):
    """Data of several ranks as compiled code takes them, from `data_on_ranks`; the fields are nbprop's own."""

    moves: NDArray[np.int64]  # (moves, 4)
    counted: NDArray[np.float64]  # the weight of the samples of each EVALUATE
    slots: NDArray[np.float64]  # (slots, HEAD + n_params)
    part: NDArray[Any]  # (n_params,) of the plan's dtype
    x: NDArray[Any]
    target: NDArray[Any]
    weights: NDArray[Any]  # ones where none were given: their product with a loss is exact


@on_ranks
def data_on_ranks(
    plan: Plan,
    x: NDArray[Any],
    target: NDArray[Any],
    weights: NDArray[Any] | None = None,
    comm: Any = None,
    pieces: int = 64,
    data: str = "whole",
) -> DataOnRanks:
    """Data of several ranks for `value_and_grad_on_ranks`; all ranks make this call together.

    Parameters
    ----------
    plan : Plan made with a loss, of a network without layer state
    x : (n, *input_shape) array of the plan's dtype; n may exceed the plan's batch
    target : (n, *output_shape) array of the plan's dtype; integers (n, *output_shape[:-1]) for classes
    weights : (n,) array of the plan's dtype, none negative, or None; the loss is sum(w l) / sum(w)
    comm : MPI.COMM_WORLD, or a communicator of the same ranks in the same order: numba-mpi knows no other
    pieces : int; in how many the samples are cut, by sizes alone. The bits depend on pieces, and not on the ranks
    data : "whole" or "split"; whether x, target and weights hold all samples on each rank, or its part (`rank_rows`)

    Returns
    -------
    DataOnRanks
        A NamedTuple that @njit functions take. It has buffers of its own, so it serves one call at a time.

    Raises
    ------
    ModuleNotFoundError
        Without numba-mpi (`pip install nbprop[mpi-njit]`).
    TypeError, ValueError, nbprop.cluster.ranks.RankError
        For arguments that do not fit, on this rank or another.

    Examples
    --------
    >>> import nbprop
    >>> data = nbprop.data_on_ranks(plan, x, target, comm=MPI.COMM_WORLD)  # doctest: +SKIP
    """
    if comm is None:
        raise ValueError("data_on_ranks: comm must be MPI.COMM_WORLD; in one process, use value_and_grad itself")
    x, target, weights = check_dataset("data_on_ranks", plan, x, target, weights)
    if plan.state_size > 0 or plan.min_samples > 0:
        raise ValueError("data_on_ranks: plan must be of a network without layer state and statistics over a batch")
    _check_world(comm)
    comm.agree(
        processor()
        | {"the network": repr(plan.net), "the loss": f"{plan.loss!r}, {plan.penalty!r}", "dtype": str(plan.dtype)}
        | {"the plan's batch": plan.batch, "pieces": comm.pieces, "whether data is split": comm.split}
        | {"whether there are weights": weights is not None}
    )
    samples, offset = total_samples(comm, len(x))
    check_same_data(comm, flat, x=x, target=target, weights=weights)
    layout = _Layout(comm, plan, samples, offset, target, weights)
    slots = np.zeros((layout.slots, HEAD + plan.n_params))
    own = np.ones(len(x), plan.dtype) if weights is None else weights
    moves, counted = np.array(layout.moves, np.int64), np.array(layout.counted, np.float64)
    return DataOnRanks(moves, counted, slots, np.zeros(plan.n_params, plan.dtype), x, target, own)


def _check_world(ranks):
    """Refuse what numba-mpi cannot do."""
    from mpi4py import MPI

    try:
        import numba_mpi  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "data_on_ranks: gradients of several ranks in compiled code need numba-mpi: `pip install nbprop[mpi-njit]`"
        ) from None
    if MPI.Comm.Compare(ranks.comm, MPI.COMM_WORLD) != MPI.CONGRUENT:
        raise ValueError("data_on_ranks: comm must be MPI.COMM_WORLD, the only communicator of numba-mpi")


class _Layout:
    """The moves of this rank: those of its own nodes, and of the crossing ones."""

    def __init__(self, ranks: Ranks, plan, samples, offset, target, weights):
        tree, rank = Tree(ranks.pieces, ranks.size, 1), ranks.rank
        self.plan, self.samples, self.offset, self.pieces = plan, samples, offset, ranks.pieces
        self.target, self.weights = target, weights
        own = tree.own[rank]
        self.spare = len(own)
        self.slots = self.spare + max(1, *(depth(node) for node in own))
        self.moves: list[tuple[int, int, int, int]] = []
        self.counted: list[float] = []
        for slot, node in enumerate(own):
            self._lay(node, slot, 0)
        for move in tree.moves[rank]:
            if move.kind == ADD:
                self._move(_ADD_SLOT, move.slot, move.peer)
            else:
                self._move(_SEND_SLOT if move.kind == SEND else _RECEIVE_SLOT, move.slot, move.peer, move.tag)
        owner, slot = tree.results[0]
        if ranks.size > 1:
            self._move(_SPREAD, slot if owner == rank else 0, owner, int(owner == rank))

    def _move(self, *words):
        self.moves.append((*words, *(0,) * (4 - len(words))))
        self.counted.append(0.0)

    def _lay(self, node, slot, level):
        """slot = the sum of a node of this rank alone."""
        if not node.is_piece:
            left, right = node.halves
            self._lay(left, slot, level)
            self._lay(right, self.spare + level, level + 1)
            self._move(_ADD_SLOT, slot, self.spare + level)
            return
        self._move(_CLEAR, slot)
        first, stop = (number - self.offset for number in shard(self.samples, node.first, self.pieces))
        for start in range(first, stop, self.plan.batch):
            end = min(start + self.plan.batch, stop)
            own = None if self.weights is None else self.weights[start:end]
            weight = float(self.plan.loss.counted(self.target[start:end], own))
            if weight > 0:
                self._move(_EVALUATE, slot, start, end)
                self.counted[-1] = weight


def value_and_grad_on_ranks(
    plan: Plan, data: DataOnRanks, params: NDArray[Any], grads: NDArray[Any], work: NDArray[Any]
) -> float:
    """The loss of the data of all ranks, and its gradient, on every rank; in @njit code, all ranks call it together.

    The bits are the same for any number of ranks, and those of an `objective` with the same comm, pieces and batch.

    Parameters
    ----------
    plan : Plan
    data : DataOnRanks, from `data_on_ranks` with the same plan
    params : (n_params,) array of the plan's dtype, the same on all ranks
    grads : (n_params,) float64 or float32 array, overwritten
    work : array from `workspace(plan)`, overwritten

    Returns
    -------
    float
        The mean loss.

    Raises
    ------
    ValueError
        On all ranks, if the arguments do not fit on one.

    Examples
    --------
    >>> import nbprop, numba
    >>> @numba.njit  # on all ranks: mpiexec -n 4 python search.py
    ... def search(plan, data, theta, grads, work, state):
    ...     loss = nbprop.value_and_grad_on_ranks(plan, data, theta, grads, work)
    ...     while nbprop.lbfgs_step(state, theta, loss, grads) == 0:
    ...         loss = nbprop.value_and_grad_on_ranks(plan, data, theta, grads, work)
    ...     return loss
    """
    if not isinstance(data, DataOnRanks):
        raise TypeError(f"value_and_grad_on_ranks: data must come from data_on_ranks, got {type(data).__name__}")
    return _compiled()(plan, data, params, grads, work)


@functools.cache
def _compiled():
    """The function as compiled code; made once, for Python's calls."""

    @numba.njit
    def call(plan, data, params, grads, work):
        return value_and_grad_on_ranks(plan, data, params, grads, work)

    return call


# Without fastmath: a product and a sum that are fused in one place and not in another have other bits.
@overload(value_and_grad_on_ranks, jit_options={**FLAGS, "fastmath": False}, strict=False)
def _value_and_grad_on_ranks(plan, data, params, grads, work):
    if getattr(data, "instance_class", None) is not DataOnRanks:
        raise TypingError("nbprop.value_and_grad_on_ranks: data must come from nbprop.data_on_ranks")
    import numba_mpi

    send, receive, spread = numba_mpi.send, numba_mpi.recv, numba_mpi.bcast

    def run(plan, data, params, grads, work):
        slots, part = data.slots, data.part
        received = slots[slots.shape[0] - 1]  # the last spare one: evaluations are over when it is used
        refused = grads.size != part.size
        for i in range(data.moves.shape[0]):
            kind, slot, a, b = data.moves[i, 0], data.moves[i, 1], data.moves[i, 2], data.moves[i, 3]
            out = slots[slot]
            if kind == _EVALUATE:
                loss = 0.0
                try:
                    loss = value_and_grad(plan, params, data.x[a:b], data.target[a:b], part, work, data.weights[a:b])
                except Exception:
                    refused = True  # the others wait for this rank's sums, and learn of it from the head
                weight = data.counted[i]
                out[LOSSES] += weight * loss
                out[WEIGHTS] += weight
                for k in range(part.size):
                    out[HEAD + k] += weight * np.float64(part[k])
            elif kind == _CLEAR:
                out[:] = 0.0
            elif kind == _ADD_SLOT:
                for k in range(out.size):
                    out[k] += slots[a, k]
            elif kind == _SEND_SLOT:
                if refused:
                    out[FAILURES] = 1.0
                send(out, a, b)
            elif kind == _RECEIVE_SLOT:
                receive(received, a, b)
                for k in range(out.size):
                    out[k] += received[k]
            else:
                if refused:
                    out[FAILURES] = 1.0
                if b == 1 and slot != 0:
                    slots[0][:] = out
                spread(slots[0], a)
        total = slots[0]
        if refused or total[FAILURES] > 0.0:
            raise ValueError("value_and_grad_on_ranks: the arguments do not fit the plan, on this rank or another")
        for k in range(part.size):
            grads[k] = total[HEAD + k] / total[WEIGHTS]
        return total[LOSSES] / total[WEIGHTS]

    return run
