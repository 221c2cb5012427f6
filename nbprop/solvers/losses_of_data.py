"""The loss of a data set and its derivatives at float64 parameters, in chunks of a plan's batch."""

import math
from typing import Any

import numpy as np

from nbprop.arrays import check_vector
from nbprop.autodiff.derivatives import hvp
from nbprop.autodiff.gradients import value, value_and_grad
from nbprop.lowering.plan import workspace


class InOneProcess:
    """What a search asks of an objective whose data lie in this process."""

    x: Any
    target: Any
    weights: Any
    transport: str | None = None  # how vectors travel between ranks with a device each

    def any(self, decision):
        """Whether to stop, where that depends on a clock or a callback."""
        return decision

    def identity(self):
        """x, target and weights, of which a search's state holds hashes."""
        return self.x, self.target, self.weights


class Objective(InOneProcess):
    """fun(theta) -> (loss, gradient), as `scipy.optimize.minimize(fun, theta, jac=True)` wants it; see `objective`."""

    def __init__(self, plan, x, target, weights, state=None):
        self.plan, self.x, self.target, self.weights = plan, x, target, weights
        self.n_params, self.n_samples = plan.n_params, len(x)
        self._first_state, self._state = state, None if state is None else state.copy()
        self.work = workspace(plan)
        self._params = None if plan.dtype == np.float64 else np.empty(plan.n_params, plan.dtype)
        self._chunks = list(chunks(plan, x, target, weights))
        self._single = len(self._chunks) == 1
        # value_and_grad checks theta, as its params: the fast path checks nothing twice.
        self._direct = self._single and self._params is None
        self.bare = self._direct and state is None  # a call is value_and_grad and nothing else

    def __call__(self, theta):
        if self._direct:
            gradient = np.empty(self.n_params)
            try:
                loss = self._gradient(theta, self.x, self.target, gradient, self.weights)
            except (TypeError, ValueError):
                self._check(theta)
                raise
        else:
            self._check(theta)
            loss, gradient = self._converted(theta)
        # Line searches step back from infinity; NaN would mislead them, since every comparison with it is false.
        return (loss if math.isfinite(loss) else math.inf), gradient

    def hessp(self, theta, v):
        """The exact Hessian-vector product at theta: takes (n_params,) float64 arrays, returns a new one; no matrix.

        Chunks and a float32 plan are handled as in a call. Raises as a call, and ValueError for a network with a layer
        that has no tangents.
        """
        self._check(theta)
        self._check_direction(v)
        with np.errstate(over="ignore"):
            params, direction = theta.astype(self.plan.dtype, copy=False), v.astype(self.plan.dtype, copy=False)
        if np.may_share_memory(params, direction):
            direction = direction.copy()
        product, part = np.zeros(self.n_params), np.empty(self.n_params, self.plan.dtype)
        for x, target, weights, fraction in self._chunks:
            hvp(self.plan, params, direction, x, target, part, self.work, weights, self._reset_state())
            product += fraction * part.astype(np.float64)
        return product

    def loss(self, theta):
        """The loss alone, which may be infinite or NaN; theta as in a call."""
        self._check(theta)
        with np.errstate(over="ignore"):
            params = theta.astype(self.plan.dtype, copy=False)
        return sum(
            fraction * value(self.plan, params, x, target, self.work, weights, self._reset_state())
            for x, target, weights, fraction in self._chunks
        )

    def _reset_state(self):
        """The layer state as it was given: no call sees what an earlier one has left in it."""
        if self._state is not None:
            self._state[:] = self._first_state
        return self._state

    def _gradient(self, params, x, target, grads, weights):
        return value_and_grad(self.plan, params, x, target, grads, self.work, weights, False, self._reset_state())

    def _check(self, theta):
        check_vector("objective: theta", theta, self.n_params, np.dtype(np.float64))

    def _check_direction(self, v):
        check_vector("objective: v", v, self.n_params, np.dtype(np.float64))

    def _converted(self, theta):
        """The loss and gradient through a float32 plan, or in chunks."""
        params = theta
        if self._params is not None:
            params = self._params
            with np.errstate(over="ignore"):  # beyond float32's range: infinity, and then a loss that is not finite
                params[:] = theta
        part = np.empty(self.n_params, self.plan.dtype)
        if self._single:
            loss = self._gradient(params, self.x, self.target, part, self.weights)
            return loss, part.astype(np.float64)
        loss, gradient = 0.0, np.zeros(self.n_params)
        scaled = part if part.dtype == np.float64 else np.empty(self.n_params)
        for x, target, weights, fraction in self._chunks:
            # Not accumulate=True: each chunk's gradient is a mean of its own, and float32 sums would lose digits.
            loss += fraction * self._gradient(params, x, target, part, weights)
            np.multiply(part, fraction, out=scaled)
            gradient += scaled
        return loss, gradient


def chunks(plan, x, target, weights):
    """(x, target, weights, fraction of the total weight) of each chunk of at most a batch of samples, as views."""
    total = plan.loss.counted(target, weights)
    for start in range(0, len(x), plan.batch):
        piece = slice(start, start + plan.batch)
        own = None if weights is None else weights[piece]
        fraction = plan.loss.counted(target[piece], own) / total if total > 0 else 0.0
        if fraction > 0:  # a chunk whose weights are all zero has no mean
            yield x[piece], target[piece], own, float(fraction)
