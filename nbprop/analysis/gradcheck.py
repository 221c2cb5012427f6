"""Gradients, and derivatives along a direction, against central differences."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbprop.autodiff.derivatives import hvp, jvp
from nbprop.autodiff.gradients import backward, forward, value, value_and_grad
from nbprop.losses import Loss
from nbprop.lowering.plan import layer_state, workspace
from nbprop.lowering.plan import plan as make_plan
from nbprop.networks.initializers import init
from nbprop.networks.network import Network, trainable_mask, views
from nbprop.validation import check_flag, check_integer, check_number, check_seed

# Entries tested in each array: all of a small one, this many of a large one.
_TRIED = 64
# Rounding (1e-16 / step) and truncation (step^2) of a central difference are about equal here.
_STEP = 6e-6


def gradcheck(
    net: Network,
    loss: str | Loss | None = None,
    batch: int = 3,
    seed: int = 0,
    tolerance: float = 1e-7,
    weights: bool = True,
) -> dict[str, float]:
    """Check a network's gradients against central differences in float64; second derivatives too, where it has them.

    Along a random direction of the parameters and the input, `jvp` is held against differences of the output and `hvp`
    against differences of the gradient; neither is where a layer has no tangents (`custom`, `elementwise`).

    Parameters
    ----------
    net : Network
        Of built-in or user-defined layers. Dropout uses the mask of step 0, batch normalization the statistics of the
        batch.
    loss : str, loss or None
        None: the loss is a random linear function of the output, through `forward` and `backward`.
    batch : int
        Samples.
    seed : int
        Of the parameters, data and weights.
    tolerance : float
        Largest difference allowed, relative to the largest gradient of the same array (or 1e-3, if that is larger);
        of `jvp` and `hvp`, to the largest entry of all.
    weights : bool
        Whether to give the samples weights.

    Returns
    -------
    dict
        The relative error of each parameter array by its name in `views`, and of the input as "x". Numbers that are
        not trained (`trainable_mask`) must have gradients of 0.

    Raises
    ------
    ValueError
        If an error exceeds the tolerance; names the array (for a second derivative "hvp of" it), the entry and both
        values.

    Examples
    --------
    >>> import nbprop
    >>> errors = nbprop.gradcheck(nbprop.network((3,), nbprop.dense(2, activation="tanh")), "mse")
    >>> sorted(errors)
    ['0.dense.bias', '0.dense.weight', 'x']
    """
    if not isinstance(net, Network):
        raise TypeError(f"gradcheck: net must be what nbprop.network(...) returns, got {type(net).__name__}")
    batch, seed = check_integer("gradcheck: batch", batch), check_seed("gradcheck: seed", seed)
    tolerance, weights = check_number("gradcheck: tolerance", tolerance), check_flag("gradcheck: weights", weights)
    rng = np.random.default_rng(seed)
    plan = make_plan(net, loss=loss, batch=batch)
    if loss is not None and not plan.loss.exact_gradient:
        raise ValueError(f"gradcheck: the gradient of {plan.loss.kind} is not that of its value, by its definition")
    params = init(net, seed=seed) + 0.1 * rng.standard_normal(net.n_params)
    work, grads = workspace(plan), np.full(net.n_params, np.nan)
    x: NDArray[Any]
    if plan.x_classes:
        x = rng.integers(0, plan.x_classes, (batch, *net.input_shape))
    else:
        x = rng.standard_normal((batch, *net.input_shape))
    dx, y = np.full(x.shape, np.nan), np.empty((batch, *net.output_shape))
    dy = rng.standard_normal(y.shape)

    state, first = layer_state(plan), layer_state(plan)

    def reset_state():
        """The layer state as before the first step, so that no evaluation depends on earlier ones."""
        state[:] = first
        return state if plan.state_size else None

    def along_dy():
        forward(plan, params, x, y, work, reset_state())
        return float(np.vdot(dy, y))

    along_dy()
    backward(plan, params, x, dy, grads, None if plan.x_classes else dx, work, state=state if plan.state_size else None)
    errors = {} if plan.x_classes else {"x": _compare("x", x.reshape(-1), dx.reshape(-1), along_dy, rng, tolerance)}
    measure = along_dy
    if loss is not None:
        target = _target(plan, batch, rng)
        w = rng.uniform(0.5, 2.0, batch) if weights else None
        value_and_grad(plan, params, x, target, grads, work, w, state=reset_state())

        def measure():
            return value(plan, params, x, target, work, w, reset_state())

    gradient_views = views(net, grads)
    for path, part in views(net, params).items():
        found = gradient_views[path].reshape(-1)
        if net.slots[path].parameter.trained:
            errors[path] = _compare(path, part.reshape(-1), found, measure, rng, tolerance)
        elif found.any():
            raise ValueError(f"gradcheck: {path} is not trained, so its gradient must be 0, got {found}")
        else:
            errors[path] = 0.0
    if plan.without_tangents is None:
        v, along_x = rng.standard_normal(net.n_params), None if plan.x_classes else rng.standard_normal(x.shape)
        v *= trainable_mask(net)  # numbers that are not trained are constants
        length = np.sqrt(v @ v + (0.0 if along_x is None else np.vdot(along_x, along_x)))
        v, along_x = v / length, None if along_x is None else along_x / length

        def difference(result):
            """The central difference of result(params, x) along the direction."""
            ends = [result(params + step * v, x if along_x is None else x + step * along_x) for step in (_STEP, -_STEP)]
            return (ends[0] - ends[1]) / (2 * _STEP)

        def output(params, x):
            forward(plan, params, x, y, work, reset_state())
            return y.copy()

        tangent = np.full(y.shape, np.nan)
        jvp(plan, params, v, x, along_x, tangent, work, reset_state())
        _compare_all("jvp", tangent, difference(output), np.abs(tangent).max(), tolerance)
        if plan.without_second is None and loss is not None and net.n_params:

            def gradient(params, x):
                value_and_grad(plan, params, x, target, grads, work, w, state=reset_state())
                return grads.copy()

            product = np.full(net.n_params, np.nan)
            hvp(plan, params, v, x, target, product, work, w, state=reset_state(), dx=along_x)
            scale, differences = np.abs(product).max(), views(net, difference(gradient))
            for path, part in views(net, product).items():
                _compare_all(f"hvp of {path}", part, differences[path], scale, tolerance)
    return errors


def _bounds(plan):
    """The range that targets are drawn from: 0 to 1, as far as the loss takes it."""
    low, high = plan.target_range
    return (max(0.0, low), min(1.0, high)) if low < 1 and high > 0 else (low, high)


def _target(plan, batch, rng):
    shape = (batch, *plan.target_shape)
    return rng.integers(0, plan.classes, shape) if plan.classes else rng.uniform(*_bounds(plan), shape)


def _check(name, entry, what, found, difference, scale, tolerance):
    """The error of a number relative to a scale; ValueError when it exceeds the tolerance."""
    error = abs(difference - found) / scale
    if not error <= tolerance:
        raise ValueError(
            f"gradcheck: {name}, entry {entry}: the {what} is {found:.9g}, central differences give "
            f"{difference:.9g} (relative error {error:.2g}, allowed {tolerance:.2g})"
        )
    return error


def _compare(name, at, gradient, measure, rng, tolerance):
    """The largest relative error over the entries tested; `at` is a view whose entries are changed and restored."""
    tried = np.arange(at.size) if at.size <= _TRIED else rng.choice(at.size, _TRIED, replace=False)
    scale, worst = max(1e-3, np.abs(gradient).max()), 0.0
    for i in tried:
        before = at[i]
        step = _STEP * max(1.0, abs(before))
        at[i] = before + step
        above, high = measure(), at[i]
        at[i] = before - step
        below, low = measure(), at[i]
        at[i] = before
        difference = (above - below) / (high - low)
        worst = max(worst, _check(name, i, "gradient", gradient[i], difference, scale, tolerance))
    return float(worst)


def _compare_all(name, found, differences, largest, tolerance):
    """Every entry of a derivative along a direction."""
    scale = max(1e-3, largest)
    for i, (entry, difference) in enumerate(zip(found.reshape(-1), differences.reshape(-1), strict=True)):
        _check(name, i, "derivative", entry, difference, scale, tolerance)
