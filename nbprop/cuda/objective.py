"""`objective` on a device plan: its data stays on the device, and so does the gradient for a theta on the device."""

import math

import numpy as np

from nbprop.arrays import check_vector
from nbprop.autodiff import gradients as calls
from nbprop.cluster.ranks import GRADIENT, LOSS
from nbprop.cluster.sums import LOSSES, WEIGHTS, TreeSum
from nbprop.cuda import fitting, memory, toolkit
from nbprop.cuda.sums import DeviceTreeSum, Seen, accumulate, divide, divide_to_float32, launches, words_of
from nbprop.cuda.transports import open_transport
from nbprop.lowering.plan import workspace
from nbprop.messages import NO_LOSS, failure
from nbprop.numerics.partition import share
from nbprop.runtime.datasets import check_layers
from nbprop.solvers.losses_of_data import InOneProcess
from nbprop.solvers.losses_on_ranks import OnRanks


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
        self._params = memory.empty(plan.n_params, plan.dtype)
        # One element more: a float32 gradient is also read in pairs.
        self._part = memory.empty(plan.n_params + 1, plan.dtype)[: plan.n_params]
        self._host = None if weights is None else self.weights.to_host().astype(np.float64)
        total = self.n_samples if self._host is None else self._host.sum()
        self._chunks = [(*columns, weight / total) for *columns, weight in self._chunks_of(0, self.n_samples)]

    def _chunks_of(self, first, stop):
        """[(x, target, weights, sum of weights)] of each batch of some samples; none of a batch without weight."""
        found = []
        for start in range(first, stop, self.plan.batch):
            here = slice(start, min(start + self.plan.batch, stop))
            weight = float(here.stop - start if self._host is None else self._host[here].sum())
            if weight > 0:
                own = None if self.weights is None else self.weights[here]
                found.append((self.x[here], self.target[here], own, weight))
        return found

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


class DeviceObjectiveOnRanks(OnRanks, DeviceObjective):
    """As `DeviceObjective`, of which every rank computes its pieces on its device; all ranks call it together.

    A device theta takes any number of samples. The sums are float64; `transport` says how they travel.
    """

    def __init__(self, function, plan, x, target, weights, state, ranks, transport):
        super().__init__(function, plan, x, target, weights, state)
        self.join(ranks, state, {})
        wire = open_transport(ranks, transport)
        self.transport = wire.name
        self._pieces = {}
        for piece in range(*share(self.pieces, ranks.rank, ranks.size)):
            here = self.rows_of(piece)
            self._pieces[piece] = self._chunks_of(here.start, here.stop)
        self._sum = DeviceTreeSum(ranks, wire, plan.n_params, np.float64)
        self._loss_sum = TreeSum(ranks, 0, np.float64)
        self._seen = Seen(plan.n_params, plan.dtype)
        self._narrow = int(plan.dtype == np.float32)
        self._pairs = self._as_pairs(self._part)

    def on_host(self, array):
        """As `OnRanks.on_host`."""
        return array.to_host()

    def some_of(self, array):
        """As `OnRanks.some_of`."""
        return words_of(array, memory.current_stream())

    def loss(self, theta):
        """As `DeviceObjective.loss`, on all ranks."""
        self._take(theta)

        def evaluate(piece, out):
            out.clear()
            for x, target, weights, weight in self._pieces[piece]:
                loss = calls.value(self.plan, self._params, x, target, self._work, weights, self._reset_state())
                out.head[LOSSES] += weight * loss
                out.head[WEIGHTS] += weight

        with self.ranks.round(LOSS, theta):
            head = self._loss_sum(evaluate).head
        return float(head[LOSSES] / head[WEIGHTS])

    def _host_gradient(self):
        loss, weight, total = self._total(self._params)
        return loss, total.to_host() / weight

    def _device_gradient(self, theta):
        loss, weight, total = self._total(theta)
        gradient, n, stream = memory.empty(self.n_params + 1, self.plan.dtype), self.n_params, memory.current_stream()
        bits = {"divisor_bits": toolkit.bits_of(weight, np.float64)}
        arrays = {"to": self._as_pairs(gradient), "source": total}
        kernel, count = (divide_to_float32, {"pairs": -(-n // 2)}) if self._narrow else (divide, {"count": n})
        launches(kernel, np.float64, arrays, stream, **count, **bits).enqueue(stream)
        toolkit.synchronize(stream)  # the launch's arguments go with this call
        return loss, gradient[:n]

    def _total(self, params):
        """(the mean loss, the sum of weights, the sum of all gradients times theirs, float64 on the device)."""
        heads, stream = {}, memory.current_stream()

        def evaluate(piece, vector):
            losses, total = 0.0, 0.0
            if not self._pieces[piece]:
                toolkit.write(vector.address, np.zeros(self.n_params), stream)
            for number, (x, target, weights, weight) in enumerate(self._pieces[piece]):
                loss = self._gradient(params, x, target, self._part, weights)
                losses, total = losses + weight * loss, total + weight
                numbers = {"count": self.n_params, "weight_bits": toolkit.bits_of(weight, np.float64)}
                arrays = {"to": vector, "g": self._pairs}
                numbers |= {"adds": int(number > 0), "narrow": self._narrow}
                launches(accumulate, np.float64, arrays, stream, **numbers).enqueue(stream)
            heads[piece] = losses, total, 0.0

        with self.ranks.round(GRADIENT, self._seen(params, stream)):
            (losses, weight, _), total = self._sum(evaluate, lambda: heads, stream)
        return losses / weight, weight, total

    def _as_pairs(self, array):
        """A float32 array, and the element behind it, as float64; a float64 one itself."""
        if not self._narrow:
            return array[: self.n_params]
        return memory.Array((-(-self.n_params // 2),), np.float64, array.address, array.owner, array.device)
