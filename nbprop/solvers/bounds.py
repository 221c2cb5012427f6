"""Bounds on parameters, in all forms that SciPy takes, and the parameters that they leave free."""

import math

import numpy as np

from nbprop.arrays import refuse_subclass


class Free:
    """The parameters that a search moves: those that are trainable and not fixed by their bounds.

    A parameter whose bounds are equal is removed here, for all solvers: SciPy's methods treat it by finite differences,
    or by an equality constraint that holds up to 1e-8, or refuse it.
    """

    def __init__(self, function, params, trainable, bounds):
        """params: the start, in the plan's dtype; trainable: (n_params,) bool or None; bounds: as in `minimize`."""
        self.start = params.astype(np.float64)
        chosen = np.arange(params.size) if trainable is None else np.flatnonzero(trainable)
        self.bounds = None
        if bounds is not None:
            low, high = _limits(function, bounds, params, chosen)
            room = low < high
            chosen, low, high = chosen[room], low[room], high[room]
            self.bounds = (low, high) if np.isfinite(low).any() or np.isfinite(high).any() else None
        self.indices = None if chosen.size == params.size else chosen
        self.size = chosen.size

    def part(self, vector):
        """The free elements of a (n_params,) vector."""
        return vector if self.indices is None else vector[self.indices]

    def whole(self, theta):
        """All parameters, from the free ones: theta itself if all are free, else a new array."""
        if self.indices is None:
            return theta
        whole = self.start.copy()
        whole[self.indices] = theta
        return whole

    def spread(self, part, fill=0.0):
        """A (n_params,) vector with these free elements and `fill` elsewhere."""
        if self.indices is None:
            return part
        whole = np.full(self.start.size, fill, part.dtype)
        whole[self.indices] = part
        return whole

    def allowed(self, theta):
        """Whether free parameters are within the bounds; trust-constr also evaluates others."""
        return self.bounds is None or bool((theta >= self.bounds[0]).all() and (theta <= self.bounds[1]).all())

    def inside(self, theta):
        """(the nearest point to theta within the bounds, the largest distance of a parameter)."""
        if self.bounds is None:
            return theta, 0.0
        moved = np.clip(theta, *self.bounds)
        return moved, float(np.abs(moved - theta).max(initial=0.0))


def _limits(function, bounds, params, chosen):
    """(lo, hi) of the chosen parameters, float64 arrays of values representable in the plan's dtype."""
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        pair = bounds.lb, bounds.ub
    elif isinstance(bounds, tuple) and len(bounds) == 2:
        pair = bounds
    else:
        pair = _columns(function, bounds, params.size)
    low, high = (_side(function, side, params, fill) for side, fill in zip(pair, (-math.inf, math.inf), strict=True))
    for wrong, text in (
        (low > high, "the lower bound {low} is above the upper bound {high}"),
        (
            (params < low) | (params > high),
            "the start {start} is outside its bounds [{low}, {high}]; np.clip it first",
        ),
    ):
        found = chosen[wrong[chosen]]
        if found.size:
            i = found[0]
            problem = text.format(low=low[i], high=high[i], start=params[i])
            raise ValueError(f"{function}: bounds of params[{i}]: {problem}")
    return low[chosen], high[chosen]


def _columns(function, bounds, n_params):
    """(lows, highs) of a list of pairs."""
    try:
        pairs = [(low, high) for low, high in bounds]
    except (TypeError, ValueError):
        raise TypeError(
            f"{function}: bounds must be a tuple (lo, hi), a list of {n_params} pairs or scipy.optimize.Bounds, "
            f"got {bounds!r}"
        ) from None
    if len(pairs) != n_params:
        raise ValueError(f"{function}: bounds must hold one pair a parameter, {n_params}, got {len(pairs)}")
    return [low for low, _ in pairs], [high for _, high in pairs]


def _side(function, side, params, fill):
    """The bounds of one side as a (n_params,) float64 array of values representable in the plan's dtype."""
    refuse_subclass(f"{function}: bounds", side)
    try:
        if isinstance(side, (list, tuple)):
            side = [fill if item is None else item for item in side]
        found = np.asarray(fill if side is None else side)
    except (TypeError, ValueError):
        found = np.empty(0, object)
    if found.dtype.kind not in "iuf":
        raise TypeError(f"{function}: bounds must be numbers or arrays of numbers, got {side!r}")
    side = found.astype(np.float64)
    if side.shape not in ((), (1,), params.shape):
        raise ValueError(f"{function}: bounds must be numbers or have shape {params.shape}, got {side.shape}")
    if np.isnan(side).any():
        raise ValueError(f"{function}: bounds hold NaN; use None or infinity for an open side")
    with np.errstate(over="ignore"):
        return np.broadcast_to(side, params.shape).astype(params.dtype).astype(np.float64)
