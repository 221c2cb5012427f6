"""A fleet as data: models of one network with their samples, which can be cut into parts that go elsewhere."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from nbprop.losses.penalty import penalty_of
from nbprop.lowering.plan import Plan, plan_like
from nbprop.runtime.pieces import Pace, in_threads
from nbprop.solvers.fleet_pieces import MODEL, piece_of

INTERRUPTED = -1  # the status of a model whose fit Ctrl-C interrupted


class ModelError(RuntimeError):
    """What went wrong in the fit of a model, which the message names."""


@dataclass(frozen=True)
class Outcome:
    """Of each model: the loss, the number of iterations, the status."""

    losses: np.ndarray
    iterations: np.ndarray
    status: np.ndarray

    @classmethod
    def of(cls, models):
        """That of models none of which was begun."""
        return cls(np.full(models, np.nan), np.zeros(models, np.int64), np.full(models, INTERRUPTED))


@dataclass(frozen=True)
class Fleet:
    """Checked arguments of `fit_many`. A model's numbers depend on its own data, start and penalties alone."""

    plan: Plan  # without penalties
    thetas: np.ndarray  # (models, n_params), overwritten
    xs: np.ndarray
    ys: np.ndarray
    weights: np.ndarray | None
    data: np.ndarray  # (models,), each model's set
    counts: np.ndarray  # (sets,), the samples of each
    l2: np.ndarray  # (models,)
    l1: np.ndarray
    penalized: np.ndarray | None
    method: str
    maxiter: int
    options: tuple[Any, ...]  # gtol, ftol, lr
    first: int = 0  # the number of the first model, for errors

    def part(self, first, last):
        """The fleet of the models first to last - 1, with the sets that they need."""
        own = slice(first, last)
        sets, data = np.unique(self.data[own], return_inverse=True)
        rows = slice(sets[0], sets[-1] + 1) if sets[-1] - sets[0] + 1 == len(sets) else sets
        return replace(
            self,
            thetas=self.thetas[own],
            xs=self.xs[rows],
            ys=self.ys[rows],
            weights=None if self.weights is None else self.weights[rows],
            data=data.reshape(-1),
            counts=self.counts[rows],
            l2=self.l2[own],
            l1=self.l1[own],
            first=self.first + first,
        )

    def fit(self, threads, stopped=lambda: False, only_compile=False):
        """Fit all models, in place, until stopped() or Ctrl-C. Returns their Outcome.

        only_compile : do no iteration
        """
        models, outcome, groups = len(self.thetas), Outcome.of(len(self.thetas)), self._groups()
        order = np.concatenate([group for group, _ in groups])
        fleet = self.xs, self.ys, self.weights, self.data, self.counts
        results = self.thetas, outcome.losses, outcome.iterations, outcome.status, order

        def fit_range(first, last, others_stopped):
            begin = 0
            for group, own in groups:
                at, stop, pace = np.array([max(first, begin), 0]), min(last, begin + len(group)), Pace()
                begin += len(group)
                try:
                    if at[MODEL] < stop:
                        piece, buffers = piece_of(self.method, own, *self.options)
                        piece(own, fleet, *results, at, stop, self.maxiter, *buffers, 0)
                    while at[MODEL] < stop and not (only_compile or others_stopped() or stopped()):
                        most = pace.begin()
                        pace.end(piece(own, fleet, *results, at, stop, self.maxiter, *buffers, most))
                except Exception as error:
                    number = self.first + order[at[MODEL]]
                    raise ModelError(f"fit_many: model {number}: {type(error).__name__}: {error}") from error

        try:
            in_threads(fit_range, [(0, 1)])  # compile everything before other threads start
            if models > 1 and not only_compile:
                bounds = np.linspace(1, models, min(threads, models - 1) + 1).astype(int).tolist()
                in_threads(fit_range, list(pairwise(bounds)))
        except KeyboardInterrupt:
            pass  # the status of the unfinished models says so
        return outcome

    def _groups(self):
        """[(numbers of models, their plan)]: the models with the same penalties, which belong to a plan."""
        pairs, numbers = np.unique(np.stack([self.l2, self.l1], axis=1), axis=0, return_inverse=True)
        found = []
        for k, (own_l2, own_l1) in enumerate(pairs.tolist()):
            penalty = penalty_of("fit_many", self.plan.net, own_l2, own_l1, self.penalized)
            found.append((np.flatnonzero(numbers.reshape(-1) == k), plan_like(self.plan, penalty=penalty)))
        return found
