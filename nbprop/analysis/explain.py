"""Explanations: how much each input, unit and connection contributed to an output, by its gradient.

For an output F and anything z that it depends on (inputs x, the outputs of the units of a layer, parameters):

    gradient      g = dF/dz
    product       z g, the first-order part of F that passes through z (for x: "gradient x input")
    integrated    the integral of g dz along a path, on which F goes from F' to F(x)

Along a straight path of x from a baseline x', the last is, for x itself, the integrated gradients of Sundararajan, Taly
and Yan (2017, "Axiomatic attribution for deep networks", equation 1), and for units their conductance (Dhamdhere,
Sundararajan and Yan 2018, equation 3). For parameters, the path goes from no connections at all (0) to the parameters,
at x. Each is complete: its sum over all z, over all units of a layer, or over all parameters, is F(x) - F'.

The backward pass computes the gradient of every unit anyway; a plan lowered with `watch` leaves them in its workspace.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbprop.arrays import as_array, check_vector
from nbprop.autodiff.gradients import backward, forward
from nbprop.lowering.plan import Plan, layer_state, workspace
from nbprop.messages import FORWARD_ONLY, failure
from nbprop.networks.network import views
from nbprop.runtime.datasets import check_column, check_layer_state, check_lengths, check_plan
from nbprop.validation import check_integer


@dataclass(frozen=True)
class Contributions:
    """Contributions of all inputs, the units of a layer, or the connections of a parameter: (n, *shape) arrays.

    value : z
    gradient : dF/dz
    product : z dF/dz
    integrated : the integral of dF/dz dz along the path
    gap : (n,), |sum of integrated - (F(x) - F')|, the error in completeness from the finite steps of the path; NaN
        where completeness does not hold: layers inside others, single parameters

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> found = nbprop.explain(nbprop.plan(net), np.array([2.0, 1.0]), np.array([[3.0]]))
    >>> found.inputs.value, found.inputs.gradient, found.inputs.product
    (array([[3.]]), array([[2.]]), array([[6.]]))
    """

    value: np.ndarray
    gradient: np.ndarray
    product: np.ndarray
    integrated: np.ndarray
    gap: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """What `explain` returns, for n samples.

    output : (n,) int64, the flat index of the output that was explained
    value : (n,), F(x)
    baseline_value : (n,), F(x'), at the start of the path of inputs and units
    disconnected_value : (n,), F(x) with all parameters 0, at the start of the path of connections
    inputs : Contributions, (n, *input_shape)
    units : {layer's path: Contributions (n, *output shape)}, layers within layers included
    connections : {name in `views`: Contributions (n, *parameter's shape)}
    connections_gap : (n,), |sum of integrated over all parameters - (value - disconnected_value)|

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> found = nbprop.explain(nbprop.plan(net), np.array([2.0, 1.0]), np.array([[3.0]]))
    >>> found.value, found.disconnected_value
    (array([7.]), array([0.]))
    >>> found.units["0.dense"].value
    array([[7.]])
    """

    output: np.ndarray
    value: np.ndarray
    baseline_value: np.ndarray
    disconnected_value: np.ndarray
    inputs: Contributions
    units: dict
    connections: dict
    connections_gap: np.ndarray


def explain(
    plan: Plan,
    params: NDArray[Any],
    x: NDArray[Any],
    output: int | NDArray[Any] | None = None,
    baseline: NDArray[Any] | None = None,
    steps: int = 64,
    state: NDArray[Any] | None = None,
    lengths: NDArray[Any] | None = None,
) -> Explanation:
    """Compute how much every input, unit and connection contributed to an output, for each sample.

    Parameters
    ----------
    plan : Plan
        Any plan of the network. Its batch and loss do not matter; the network is explained in inference mode: with a
        cross-entropy loss, the outputs are logits.
    params : (n_params,) array of the plan's dtype
    x : (n, *input_shape) array of the plan's dtype, any n
    output : int, (n,) array of integers, or None
        Which output to explain, as an index into a sample's flattened output; None: the largest of each sample.
    baseline : array of shape input_shape or (n, *input_shape), or None
        x', the input that represents "nothing"; None: zeros.
    steps : int
        Steps of the paths. The gaps decrease with its square if the network is smooth.
    state : 1-D array from `layer_state(plan)`, if the network has one; not changed
    lengths : (n,) integers or None, as `forward` takes them

    Returns
    -------
    Explanation
        New arrays; those of the connections have 4 n n_params elements.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit. For integers as x, which have no gradient: explain the layers after the
        embedding, as a separate network.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((3,), nbprop.dense(1))
    >>> plan, params = nbprop.plan(net), np.array([1.0, 2.0, -1.0, 0.5])
    >>> found = nbprop.explain(plan, params, np.array([[3.0, 1.0, 1.0]]))
    >>> found.value, found.inputs.integrated
    (array([4.5]), array([[ 3.,  2., -1.]]))
    """
    check_plan("explain", plan)
    if plan.x_classes:
        raise TypeError(
            "explain: a network over integers has no gradient by its input; explain the layers after its embedding"
        )
    if plan.mode == "decoding":
        raise failure(FORWARD_ONLY, "explain:")
    params = check_vector("explain: params", params, plan.n_params, plan.dtype)
    x = check_column("explain", "x", x, None, plan.input_shape, plan.dtype)
    output = _check_output(plan, output, len(x))
    baseline = _check_baseline(plan, baseline, x)
    steps = check_integer("explain: steps", steps, 1, 1 << 20)
    state = check_layer_state("explain", plan, state)
    lengths = None if lengths is None else check_lengths("explain", "lengths", plan, lengths, len(x))
    path, one = (
        _WatchedPlan(plan, rows, params, state if plan.state_size else None, lengths) for rows in (steps + 1, 1)
    )
    samples = [_along_inputs(path, x[i], baseline[i], i, output) for i in range(len(x))]
    disconnections = [_along_parameters(one, x[i], i, output, steps) for i in range(len(x))]
    return _collect(plan, params, x, output, samples, disconnections)


# -- arguments -----------------------------------------------------------------------------------------------


def _check_output(plan, output, n):
    """The flat index of the output of each sample, (n,) int64; None stays None."""
    size = int(np.prod(plan.output_shape))
    if output is None:
        return None
    if not isinstance(output, np.ndarray):
        return np.full(n, check_integer("explain: output", output, 0, size - 1), np.int64)
    return check_column("explain", "output", output, n, (), plan.dtype, size).astype(np.int64)


def _check_baseline(plan, baseline, x):
    """x' of each sample, (n, *input_shape)."""
    if baseline is None:
        return np.zeros_like(x)
    baseline = as_array("explain: baseline", baseline)
    if baseline.shape == plan.input_shape:
        baseline = baseline[None]
    baseline = check_column("explain", "baseline", baseline, None, plan.input_shape, plan.dtype)
    if len(baseline) not in (1, len(x)):
        raise ValueError(f"explain: baseline must bring one sample or as many as x, got {len(baseline)} for {len(x)}")
    return np.broadcast_to(baseline, x.shape)


# -- watched walks -------------------------------------------------------------------------------------------


class _WatchedPlan:
    """Forward and backward for up to `rows` points at once, with the output and gradient of every unit."""

    def __init__(self, plan, rows, params, state, lengths):
        self.plan = Plan(plan.net, None, rows, plan.dtype, plan.threads, "inference", watch="layers")
        self.params, self.lengths, self.work = params, lengths, workspace(self.plan)
        self.state = None if state is None else _state_for(self.plan, plan, state)
        self.grads = np.empty(plan.n_params, plan.dtype)

    def run(self, params, x, sample, k):
        """F at the rows of x, (rows,), and its gradient by x; k: which output, None: the largest at the last row."""
        y, dx = np.empty((len(x), *self.plan.output_shape), x.dtype), np.empty_like(x)
        more = {"state": None if self.state is None else self.state.copy()}
        if self.lengths is not None:
            more["lengths"] = np.full(len(x), self.lengths[sample])
        forward(self.plan, params, x, y, self.work, **more)
        flat, dy = y.reshape(len(x), -1), np.zeros_like(y)
        k = int(flat[-1].argmax()) if k is None else int(k)
        dy.reshape(flat.shape)[:, k] = 1
        backward(self.plan, params, x, dy, self.grads, dx, self.work, **more)
        return flat[:, k], dx, k

    def units(self, rows):
        """{layer's path: (outputs, gradients)} of the last run, each (rows, *shape): views of the workspace."""

        def view(buffer, shape):
            size = rows * int(np.prod(shape))
            return self.work[buffer.offset : buffer.offset + size].reshape(rows, *shape)

        return {path: (view(w.output, w.shape), view(w.gradient, w.shape)) for path, w in self.plan.watched.items()}


def _state_for(watched, plan, state):
    """The caller's state for a plan of another batch: the same statistics, with the state of samples reset."""
    found = layer_state(watched)
    for (_, buffer, _), (_, source, _) in zip(watched.state_parts, plan.state_parts, strict=True):
        if buffer.size == source.size and buffer.offset == source.offset:
            found[buffer.offset : buffer.offset + buffer.size] = state[source.offset : source.offset + source.size]
    return found


def _integral(values, gradients):
    """The integral of gradients d(values) along the rows, by trapezoids: (*shape,)."""
    return (0.5 * (gradients[1:] + gradients[:-1]) * np.diff(values, axis=0)).sum(0)


def _along_inputs(watched, x, baseline, sample, output):
    """Along x' .. x: (k, F', F, {"": (z, g, z g, integral) for z = x, path of a layer: the same for its units})."""
    rows = watched.plan.batch
    fraction = np.linspace(0, 1, rows, dtype=x.dtype).reshape(rows, *[1] * x.ndim)
    points = np.ascontiguousarray(baseline + fraction * (x - baseline))
    points[-1] = x
    value, dx, k = watched.run(watched.params, points, sample, None if output is None else output[sample])
    pairs = {"": (points, dx), **watched.units(rows)}
    found = {name: (z[-1].copy(), g[-1].copy(), z[-1] * g[-1], _integral(z, g)) for name, (z, g) in pairs.items()}
    return k, value[0], value[-1], found


def _along_parameters(watched, x, sample, output, steps):
    """Along 0 .. params at x: (F with none of them, g, integral), the last two (n_params,)."""
    k = None if output is None else output[sample]
    _, _, k = watched.run(watched.params, x[None], sample, k)
    gradient, total, first = watched.grads.copy(), np.zeros_like(watched.grads), None
    for step in range(steps + 1):
        point = watched.params * watched.params.dtype.type(step / steps)
        value, _, _ = watched.run(point, x[None], sample, k)
        first = value[0] if first is None else first
        total += watched.grads * (0.5 if step in (0, steps) else 1.0)
    return first, gradient, watched.params * total / steps


def _collect(plan, params, x, output, samples, disconnections):
    chosen, starts, values, parts = zip(*samples, strict=True)
    start, value = np.array(starts), np.array(values)
    outermost = {"", *(f"{index}.{layer.kind}" for index, layer in enumerate(plan.net.layers))}

    def gather(name):
        z, gradient, product, integrated = (np.stack(f) for f in zip(*(part[name] for part in parts), strict=True))
        gap = np.abs(integrated.reshape(len(x), -1).sum(1) - (value - start))
        gap = gap if name in outermost else np.full_like(gap, np.nan)
        return Contributions(z, gradient, product, integrated, gap)

    none, gradient, integrated = (np.stack(arrays) for arrays in zip(*disconnections, strict=True))
    repeated = np.broadcast_to(params, gradient.shape)
    each = [[views(plan.net, row) for row in array] for array in (repeated, gradient, gradient * params, integrated)]

    def connection(name):
        z, gradient, product, integrated = (np.stack([row[name] for row in rows]) for rows in each)
        return Contributions(z, gradient, product, integrated, np.full(len(x), np.nan))

    return Explanation(
        output=np.array(chosen, np.int64),
        value=value,
        baseline_value=start,
        disconnected_value=none,
        inputs=gather(""),
        units={name: gather(name) for name in parts[0] if name},
        connections={name: connection(name) for name in plan.net.slots},
        connections_gap=np.abs(integrated.sum(1) - (value - none)),
    )
