"""Bounds on parameters, in each of the forms that SciPy's users write them."""

import math

import numpy as np


def limits(bounds, params, free):
    """(lo, hi) of the free parameters, float64 arrays; None without bounds.

    bounds: an object with lb and ub (scipy.optimize.Bounds), a tuple (lo, hi) of numbers or (n_params,) arrays, or a
    list of n_params pairs in which None is open. params: the start, which they must not exclude. free: indices, or None
    for all.
    """
    if bounds is None:
        return None
    if hasattr(bounds, "lb") and hasattr(bounds, "ub"):
        pair = bounds.lb, bounds.ub
    elif isinstance(bounds, tuple) and len(bounds) == 2:
        pair = bounds
    else:
        pair = _columns(bounds, params.size)
    low, high = (_side(side, params, fill) for side, fill in zip(pair, (-math.inf, math.inf), strict=True))
    chosen = np.arange(params.size) if free is None else free
    for wrong, text in (
        (low > high, "the lower bound {low} lies above the upper bound {high}"),
        (
            (params < low) | (params > high),
            "the start {start} lies outside its bounds [{low}, {high}]; np.clip it first",
        ),
    ):
        found = chosen[wrong[chosen]]
        if found.size:
            i = found[0]
            said = text.format(low=low[i], high=high[i], start=params[i])
            raise ValueError(f"minimize: bounds of params[{i}]: {said}")
    return low[chosen], high[chosen]


def _columns(bounds, n_params):
    """(lows, highs) of a list of pairs."""
    try:
        pairs = [(low, high) for low, high in bounds]
    except (TypeError, ValueError):
        raise TypeError(
            f"minimize: bounds must be a tuple (lo, hi), a list of {n_params} pairs or scipy.optimize.Bounds, "
            f"got {bounds!r}"
        ) from None
    if len(pairs) != n_params:
        raise ValueError(f"minimize: bounds must hold one pair a parameter, {n_params}, got {len(pairs)}")
    return [low for low, _ in pairs], [high for _, high in pairs]


def _side(side, params, fill):
    """One side's bounds as a (n_params,) float64 array of values that the plan's dtype has."""
    try:
        if isinstance(side, (list, tuple)):
            side = [fill if item is None else item for item in side]
        side = np.asarray(fill if side is None else side, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"minimize: bounds must be numbers or arrays of numbers, got {side!r}") from None
    if side.shape not in ((), (1,), params.shape):
        raise ValueError(f"minimize: bounds must be numbers or have shape {params.shape}, got {side.shape}")
    if np.isnan(side).any():
        raise ValueError("minimize: bounds hold NaN; use None or infinity for an open side")
    with np.errstate(over="ignore"):
        return np.broadcast_to(side, params.shape).astype(params.dtype).astype(np.float64)
