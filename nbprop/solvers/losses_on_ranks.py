"""The objective of data that lie on several ranks: the same loss and gradient, to the bit, on any number of ranks."""

import math
from typing import Any

import numpy as np

from nbprop.autodiff.derivatives import hvp
from nbprop.autodiff.gradients import value
from nbprop.cluster.parts import check_same_data, flat, shard, total_samples
from nbprop.cluster.ranks import GRADIENT, LOSS, PRODUCT, processor
from nbprop.cluster.sums import LOSSES, WEIGHTS, TreeSum
from nbprop.io.networks import digest
from nbprop.numerics.partition import share
from nbprop.solvers.losses_of_data import Objective, chunks


class OnRanks:
    """What an objective does together with those of other ranks, wherever its data lie: in front of `Objective`."""

    plan: Any
    x: Any
    target: Any
    weights: Any

    def join(self, ranks, state, more):
        """Check that all ranks have the same settings, and which samples each holds; more: further settings."""
        plan = self.plan
        self.ranks, self.pieces = ranks, ranks.pieces
        ranks.agree(
            processor()
            | {
                "where it runs": plan.target,
                "the network": repr(plan.net),
                "the loss": f"{plan.loss!r}, {plan.penalty!r}",
                "dtype": str(plan.dtype),
                "mode": plan.mode,
            }
            | {"the plan's batch": plan.batch, "pieces": ranks.pieces, "whether data is split": ranks.split}
            | {"whether there are weights": self.weights is not None}
            | {"state": None if state is None else digest({"state": self.on_host(state)})}
            | more
        )
        self.n_samples, self._offset = total_samples(ranks, len(self.x))
        check_same_data(ranks, self.some_of, x=self.x, target=self.target, weights=self.weights)
        self._identity = self._digests() if ranks.split else None

    def on_host(self, array):
        """An array of the data, or of state, in host memory."""
        return array

    def some_of(self, array):
        """Enough of an array's elements to tell it from another, on the host."""
        return flat(array)

    def rows_of(self, piece):
        """Which samples of those that this rank holds are a piece's, a slice."""
        first, stop = shard(self.n_samples, piece, self.pieces)
        return slice(first - self._offset, stop - self._offset)

    def any(self, decision):
        """Whether any rank decides so: what depends on a clock or a callback must be the same on all."""
        return self.ranks.any(decision)

    def identity(self):
        """As `Objective.identity`; of split data, digests by piece."""
        return (self.x, self.target, self.weights) if self._identity is None else self._identity

    def _digests(self):
        own: list[dict[int, str | None]] = [{}, {}, {}]
        for piece in range(*share(self.pieces, self.ranks.rank, self.ranks.size)):
            here = self.rows_of(piece)
            for found, array in zip(own, (self.x, self.target, self.weights), strict=True):
                found[piece] = None if array is None else digest({"piece": self.on_host(array[here])})
        gathered = self.ranks.gather(own)
        return tuple(str({piece: said for part in gathered for piece, said in part[k].items()}) for k in range(3))


class ObjectiveOnRanks(OnRanks, Objective):
    """As `Objective`, of which every rank computes its pieces; all ranks call it together, with the same theta."""

    def __init__(self, plan, x, target, weights, state, ranks):
        super().__init__(plan, x, target, weights, state)
        self._direct = self.bare = False
        self.join(ranks, state, {})
        self._sum = TreeSum(ranks, plan.n_params, np.float64)
        self._loss_sum = TreeSum(ranks, 0, np.float64)
        self._part = np.empty(plan.n_params, plan.dtype)

    def __call__(self, theta):
        """The loss and its gradient, on all ranks."""
        self._check(theta)
        params = self._as_params(theta)

        def evaluate(piece, out):
            for chunk, weight in self._pieces_of(piece, out):
                x, target, weights = chunk
                loss = self._gradient(params, x, target, self._part, weights)
                _accumulate(out, weight, loss, self._part)

        with self.ranks.round(GRADIENT, theta):
            total = self._sum(evaluate)
        loss, gradient = _mean(total)
        return (loss if math.isfinite(loss) else math.inf), gradient

    def hessp(self, theta, v):
        """The exact Hessian-vector product, on all ranks."""
        self._check(theta)
        self._check_direction(v)
        params, direction = self._as_params(theta), self._as_params(v)
        direction = direction.copy() if np.may_share_memory(params, direction) else direction

        def evaluate(piece, out):
            for chunk, weight in self._pieces_of(piece, out):
                x, target, weights = chunk
                hvp(self.plan, params, direction, x, target, self._part, self.work, weights, self._reset_state())
                _accumulate(out, weight, 0.0, self._part)

        with self.ranks.round(PRODUCT, v):
            return _mean(self._sum(evaluate))[1]

    def loss(self, theta):
        """The loss alone, on all ranks."""
        self._check(theta)
        params = self._as_params(theta)

        def evaluate(piece, out):
            for chunk, weight in self._pieces_of(piece, out):
                x, target, weights = chunk
                loss = value(self.plan, params, x, target, self.work, weights, self._reset_state())
                out.head[LOSSES] += weight * loss
                out.head[WEIGHTS] += weight

        with self.ranks.round(LOSS, theta):
            return _mean(self._loss_sum(evaluate))[0]

    # -- pieces

    def _pieces_of(self, piece, out):
        """((x, target, weights), weight) of each chunk of a piece; `out` begins as zeros."""
        out.clear()
        here = self.rows_of(piece)
        own = None if self.weights is None else self.weights[here]
        for x, target, weights, _ in chunks(self.plan, self.x[here], self.target[here], own):
            yield (x, target, weights), float(self.plan.loss.counted(target, weights))

    def _as_params(self, theta):
        with np.errstate(over="ignore"):
            return theta.astype(self.plan.dtype, copy=False)


def _accumulate(out, weight, loss, gradient):
    out.head[LOSSES] += weight * loss
    out.head[WEIGHTS] += weight
    out.body += weight * gradient.astype(np.float64, copy=False)


def _mean(total):
    weight = total.head[WEIGHTS]
    return float(total.head[LOSSES] / weight), total.body / weight
