"""L-BFGS on the loss of a plan in bursts of compiled code, which return to Python some ten times a second.

If Python ran between two evaluations, it would take a tenth of their time for a small network, and the pool of threads
would fall asleep.
"""

import numpy as np
from numba import types

from nbprop.compiler.intrinsics import indirect_call, load_double, stack_words
from nbprop.compiler.jit import njit
from nbprop.numerics.reductions import row_sum
from nbprop.runtime import arguments as arg
from nbprop.runtime.entries import ENTRIES
from nbprop.runtime.errors import refusal
from nbprop.runtime.pieces import Pace
from nbprop.solvers import lbfgs as solvers
from nbprop.solvers import states as solver_states

_BLOCK = arg.BLOCK

_call_entry = indirect_call(types.int64(types.int64, types.int64))


@njit
def _burst(entry, plan, objects, ndarray, step, search, gradient, counts, most):
    """Up to counts[0] evaluations and steps of a search, until its state has counted `most` iterations.

    objects : addresses of params (the point of the search), x, target, grads (`gradient`), work, weights
    counts : INOUT (2,); evaluations made, and how many of them had a loss that was not finite

    Returns the status of the entry; if it is not 0, that evaluation was discarded.
    """
    block, n = stack_words(_BLOCK), gradient.size
    for argument in range(len(objects)):
        status = arg.describe_object(block, argument, objects[argument], ndarray)
        if status != 0:
            return status
    state, theta, best, at_best = solvers.search_parts(search, n)
    evaluations, counts[0] = counts[0], 0
    while counts[0] < evaluations:
        failed, status = _call_entry(entry, (plan, block))
        if failed != 0 or status != 0:
            return status if failed == 0 else failed
        counts[0] += 1
        loss = load_double(block, arg.RESULT)
        if not (np.isfinite(loss) and np.isfinite(row_sum(gradient)) and np.isfinite(row_sum(theta))):
            loss = np.inf
            counts[1] += 1
        if loss < search[solvers.LOWEST]:
            search[solvers.LOWEST] = loss
            best[:], at_best[:] = theta, gradient
        search[solvers.OUTCOME] = solvers.step_on_arrays(step, state, theta, gradient, loss)
        if search[solvers.OUTCOME] != solvers.GO_ON or state[solvers.ITERATIONS] >= most:
            break
    return 0


class Bursts:
    """The evaluations of an `Objective` and the steps of a search over all of its parameters.

    report(evaluations, not_finite, iterations, loss, theta) is called after each burst, with the number of its
    evaluations, how many had a loss that was not finite, the iterations of this call, the lowest loss and its point.
    """

    def __init__(self, objective, search, report):
        self.plan, self.search, self.report, self.gradient = (
            objective.plan,
            search,
            report,
            np.empty(objective.n_params),
        )
        self._state, theta, self._best, _ = solvers.search_parts(search, objective.n_params)
        given = (theta, objective.x, objective.target, self.gradient, objective.work, objective.weights)
        # Kept alive, since compiled code has their addresses; as ndarrays, since it does not know memory maps.
        self._values = tuple(None if array is None else array.view(np.ndarray) for array in given)
        self._objects = tuple(0 if array is None else id(array) for array in self._values)
        self._begun, self._pace, self._counts = int(self._state[solvers.ITERATIONS]), Pace(), np.zeros(2, np.int64)

    def run(self, most):
        """Run a burst; returns the number of evaluations. most: the iteration count of the state at which to end."""
        self._counts[:] = self._pace.begin(), 0
        entries = ENTRIES["value_and_grad"].address, self.plan.address
        arrays = self.search, self.gradient, self._counts
        try:
            status = _burst(*entries, self._objects, id(np.ndarray), solvers.load_step(), *arrays, most)
        finally:  # Ctrl-C during a burst is raised here, at its end
            evaluations, not_finite = self._counts.tolist()
            iterations = int(self._state[solvers.ITERATIONS]) - self._begun
            self.report(evaluations, not_finite, iterations, float(self.search[solvers.LOWEST]), self._best)
        if status != 0:
            raise refusal("minimize", self.plan, self._values, status)
        if self.search[solvers.OUTCOME] < 0:
            solver_states.refuse("minimize", int(self.search[solvers.OUTCOME]))
        self._pace.end(evaluations)
        return evaluations
