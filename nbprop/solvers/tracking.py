"""What tracks a search of `minimize`: the best point so far, the time limit, the user's callback, validation.

A search over the free parameters keeps the best point that it has evaluated, so that however it ends, normally, by
Ctrl-C, a time limit, a validation loss that no longer decreases or an exception, the parameters are no worse than at
the start.
"""

import inspect
import math
import time

import numpy as np

from nbprop.lowering.plan import plan_like
from nbprop.solvers.constraints import violation
from nbprop.solvers.losses_of_data import Objective
from nbprop.solvers.objective import objective_for


class NotFiniteAtStart(Exception):
    """The loss at the start is not finite."""


class Stop(Exception):
    """End the search; the argument is the reason."""


class TrackedObjective:
    """An objective over the free parameters that keeps the best point evaluated so far."""

    def __init__(self, fun, free, constraints, seconds):
        self.fun, self.free, self.seconds = fun, free, seconds
        self.constraints, self.violation = constraints, math.inf
        self.end = math.inf if seconds is None else time.monotonic() + seconds
        self.first = self.best = math.inf
        self.best_theta = free.start
        self.evaluations = self.products = self.not_finite = 0
        # A larger parameter is infinite in the plan's dtype, and saturated units may still give a finite loss.
        self._largest = float(np.finfo(fun.plan.dtype).max)

    def __call__(self, theta):
        whole = self.free.whole(theta)
        loss, gradient = self.fun(whole)
        self.evaluations += 1
        if not (math.isfinite(gradient.sum()) and max(theta.max(), -theta.min()) <= self._largest):
            loss = math.inf
        self.not_finite += loss == math.inf
        if self.evaluations == 1:
            if loss == math.inf:
                raise NotFiniteAtStart
            self.first = loss
        if self.free.allowed(theta):
            self._compare(whole, loss)
        self._check_time_limit()
        return loss, self.free.part(gradient)

    def at_start(self):
        """Evaluate the start, even if no parameter is free."""
        return self(self.free.part(self.free.start)) if self.free.size else self._start_alone()

    def _start_alone(self):
        loss, _ = self.fun(self.free.start)
        self.evaluations += 1
        if loss == math.inf:
            raise NotFiniteAtStart
        self.first = loss
        self._compare(self.free.start, loss)

    def _compare(self, whole, loss):
        """Keep the point with the smallest violation of the constraints and, among those, the lowest loss."""
        if loss < self.best or self.violation > 0:
            distance = violation(self.constraints, whole)
            if loss < math.inf and (distance, loss) < (self.violation, self.best):
                self.violation, self.best, self.best_theta = distance, loss, whole.copy()

    @property
    def in_bursts(self):
        """Whether compiled code can run many evaluations without returning to Python."""
        return type(self.fun) is Objective and self.fun.bare and self.free.indices is None and self.seconds is None

    def after_burst(self, evaluations, not_finite, loss, theta):
        """Record a burst: its evaluations, how many had a loss that was not finite, the lowest loss and its point."""
        self.evaluations += evaluations
        self.not_finite += not_finite
        if loss < self.best:
            self.best, self.best_theta = loss, theta.copy()

    def _check_time_limit(self):
        if self.seconds is not None and self.fun.any(time.monotonic() > self.end):
            raise Stop(f"the time limit of {self.seconds:g} s was reached")

    def hessp(self, theta, v):
        """H v over the free parameters."""
        self._check_time_limit()
        self.products += 1
        direction = np.ascontiguousarray(self.free.spread(np.asarray(v, np.float64)))
        return self.free.part(self.fun.hessp(self.free.whole(theta), direction))


class Validation:
    """The loss on held-out data after each iteration, and the parameters at which it was lowest."""

    def __init__(self, plan, data, patience, state, ranks=None, transport=None):
        if not isinstance(data, (tuple, list)) or len(data) not in (2, 3):
            raise TypeError(
                f"minimize: validation must be (x, target) or (x, target, weights), got {type(data).__name__}"
            )
        x, target, weights = data if len(data) == 3 else (*data, None)
        plan = plan_like(plan, penalty=None)  # how well the network does on other data, whatever its parameters
        name = "minimize: validation"
        self.loss = objective_for(name, plan, x, target, weights, state, ranks, transport).loss
        self.patience = patience
        self.losses, self.lowest, self.best, self.waited = [], math.inf, None, 0

    def update(self, theta):
        """Compute the loss at theta (all parameters); stop the search if it has not decreased for too long."""
        loss = float(self.loss(theta))
        self.losses.append(loss)
        self.waited += 1
        if self.best is None or loss < self.lowest:
            self.lowest, self.best, self.waited = loss if math.isfinite(loss) else math.inf, theta.copy(), 0
        if self.patience is not None and self.waited >= self.patience:
            raise Stop(f"the validation loss has not decreased for {self.waited} iterations")


class Watch:
    """What happens after each iteration: counting, the progress bar, the user's callback, validation."""

    def __init__(self, search, callback, validation, bar, most):
        self.search, self.callback, self.validation, self.bar, self.iterations = search, callback, validation, bar, 0
        self.most = most
        self.idle = callback is None and validation is None
        self.wants_result = callback is not None and _wants_result(callback)

    def after_iteration(self, intermediate_result):
        """SciPy's callback."""
        from scipy.optimize import OptimizeResult

        self.iterations += 1
        self.bar.update(1)
        self.bar.set_postfix(loss=f"{self.search.best:.6g}")
        if isinstance(intermediate_result, np.ndarray):  # from TNC
            intermediate_result = OptimizeResult(x=intermediate_result)
        free = self.search.free
        within = free.allowed(intermediate_result.x)
        theta = free.whole(intermediate_result.x).copy()
        if self.callback is not None:
            self._call(theta, OptimizeResult(intermediate_result, x=theta))  # trust-constr continues with its own x
        if self.validation is not None and within:
            self.validation.update(theta)
        if self.iterations == self.most:
            raise Stop("maximum number of iterations reached")

    def _call(self, theta, intermediate_result):
        stopped = False
        try:
            if self.wants_result:
                self.callback(intermediate_result=intermediate_result)
            else:
                self.callback(theta)
        except StopIteration:  # caught here, since some of SciPy's methods would treat it as a normal end
            stopped = True
        if self.search.fun.any(stopped):
            raise Stop("stopped by the callback")

    def after_burst(self, evaluations, not_finite, iterations, loss, theta):
        """Called by `Bursts` after each burst."""
        self.search.after_burst(evaluations, not_finite, loss, theta)
        self.bar.update(iterations - self.iterations)
        self.bar.set_postfix(loss=f"{loss:.6g}")
        self.iterations = iterations


def _wants_result(callback):
    try:
        return "intermediate_result" in inspect.signature(callback).parameters
    except (TypeError, ValueError):  # a C function without a signature
        return False
