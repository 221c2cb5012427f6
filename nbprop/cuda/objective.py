"""`objective` on a device plan: its data stays on the device, and so does the gradient for a theta on the device."""

import math

import numpy as np

from nbprop.arrays import check_vector
from nbprop.autodiff import gradients as calls
from nbprop.cuda import fitting, memory
from nbprop.lowering.plan import workspace
from nbprop.messages import NO_LOSS, failure
from nbprop.runtime.datasets import check_layers
from nbprop.solvers.losses_of_data import InOneProcess


class DeviceObjective(InOneProcess):
    """fun(theta) -> (loss, gradient), as `nbprop.objective` describes it.

    theta is either a (n_params,) float64 NumPy array, as SciPy passes it, which is copied to the device, and whose
    gradient is a new float64 NumPy array; or a device array of the plan's dtype, whose gradient is a new device array.
    """

    def __init__(self, function, plan, x, target, weights, state):
        if plan.loss is None:
            raise failure(NO_LOSS, f"{function}:")
        check_layers(function, plan, takes_state=True)
        self.plan, self.n_params = plan, plan.n_params
        self.x, self.target, self.weights, _ = fitting.check_data(function, plan, x, target, weights)
        if plan.state_size > 0 or state is not None:
            state = fitting.check_vector(f"{function}: state", state, plan.state_size, (plan.dtype,), False)
        self._first_state, self._state = state, None if plan.state_size == 0 else state.copy()
        self.n_samples, self._work = len(self.x), workspace(plan)
        self._params, self._part = (memory.empty(plan.n_params, plan.dtype) for _ in range(2))
        host = None if weights is None else self.weights.to_host().astype(np.float64)
        self._chunks = []
        for start in range(0, self.n_samples, plan.batch):
            piece = slice(start, start + plan.batch)
            weight_sum = len(self.x[piece]) if host is None else host[piece].sum()
            if weight_sum > 0:
                own = None if host is None else self.weights[piece]
                fraction = weight_sum / (self.n_samples if host is None else host.sum())
                self._chunks.append((self.x[piece], self.target[piece], own, float(fraction)))

    def __call__(self, theta):
        if isinstance(theta, np.ndarray):
            self._take(theta)
            loss, gradient = self._host_gradient()
        else:
            loss, gradient = self._device_gradient(memory.as_array("objective: theta", theta))
        return (loss if math.isfinite(loss) else math.inf), gradient

    def loss(self, theta):
        """The loss alone, which may be infinite or NaN; theta on the host."""
        self._take(theta)
        return sum(
            fraction * calls.value(self.plan, self._params, x, target, self._work, weights, self._reset_state())
            for x, target, weights, fraction in self._chunks
        )

    def _take(self, theta):
        check_vector("objective: theta", theta, self.n_params, np.dtype(np.float64))
        with np.errstate(over="ignore"):  # beyond float32's range: infinity, and then a loss that is not finite
            self._params.copy_from(theta.astype(self.plan.dtype))

    def _reset_state(self):
        """The layer state as it was given: no call sees what an earlier one has left in it."""
        if self._state is not None:
            self._state[:] = self._first_state
        return self._state

    def _gradient(self, params, x, target, grads, weights):
        return calls.value_and_grad(
            self.plan, params, x, target, grads, self._work, weights, False, self._reset_state()
        )

    def _host_gradient(self):
        loss, gradient = 0.0, np.zeros(self.n_params)
        for x, target, weights, fraction in self._chunks:
            found = self._gradient(self._params, x, target, self._part, weights)
            loss, gradient = loss + fraction * found, gradient + fraction * self._part.to_host().astype(np.float64)
        return loss, gradient

    def _device_gradient(self, theta):
        if len(self._chunks) > 1:
            raise ValueError(
                f"objective: {self.n_samples} samples exceed the plan's batch of {self.plan.batch}; for a theta on the "
                "device make a plan whose batch holds them all"
            )
        x, target, weights, _ = self._chunks[0]
        gradient = memory.empty(self.n_params, self.plan.dtype)
        return self._gradient(theta, x, target, gradient, weights), gradient

    def hessp(self, theta, v):
        """Not on the device: raises ValueError."""
        raise ValueError("objective: hessp does not run on the device; make a plan without target for it")
