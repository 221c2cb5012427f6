"""Enclosures of a layer's values over a box of inputs, and of what rounding adds to them.

A value is enclosed twice. As an affine form, center + sum of xi_k generator_k +- error with |xi_k| <= 1, one for each
input (Stolfi and de Figueiredo 1997; Singh et al. 2018, "Fast and effective robustness certification"): linear
layers lose nothing, and what the branches of a residual block share cancels. And as an interval, which is narrower
behind some activations. All is computed in float64, whose own rounding goes into the error: k terms summed in any order
are wrong by at most gamma_k times the sum of their magnitudes (Higham 2002, section 3.1), fused or not.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

_UNIT = 2.0**-53
_TINY = 2.0**-1060  # more than what products can lose where they underflow
_SLACK = 32 * _UNIT  # relative error of numpy's and scipy's elementary functions, with much to spare


def _gamma(terms, unit):
    """Bound of the relative error of a sum of products of `terms` terms; infinite where it is none any more."""
    share = terms * unit
    return share / (1 - share) if share < 0.5 else math.inf


def _above(x):
    """A nonnegative array rounded up."""
    return x * (1 + 2.0**-50) + _TINY


@dataclass(frozen=True)
class Enclosure:
    """What a value may be; arrays have the shape of a sample, `generators` an axis in front.

    rounding: how far a computed value may lie from the exact one, in the dtype of `unit` and `smallest`.
    """

    center: np.ndarray
    generators: np.ndarray
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rounding: np.ndarray
    unit: float
    smallest: float
    largest: float

    @classmethod
    def of_box(cls, low, high, dtype):
        """The inputs: one generator for each that is not fixed."""
        low, high = low.astype(np.float64), high.astype(np.float64)
        center = low + (high - low) / 2
        radius = np.where(low == high, 0.0, _above(np.maximum(high - center, center - low)))
        moving = np.flatnonzero(radius)
        generators = np.zeros((moving.size, radius.size))
        generators[np.arange(moving.size), moving] = radius.ravel()[moving]
        info, zeros = np.finfo(dtype), np.zeros(low.shape)
        limits = float(info.eps) / 2, float(info.smallest_subnormal), float(info.max)
        return cls(center, generators.reshape(-1, *low.shape), zeros, low, high, zeros, *limits)

    @property
    def shape(self):
        return self.center.shape

    def magnitude(self):
        """Bound of |center| + sum of |generators|."""
        total = np.abs(self.center) + np.abs(self.generators).sum(axis=0)
        return total * (1 + (len(self.generators) + 4) * 2 * _UNIT)

    def computed(self):
        """Bound of a computed value's magnitude."""
        return _above(np.maximum(np.abs(self.low), np.abs(self.high)) + self.rounding)

    def moved(self, move):
        """The same numbers in other places: a reshape, a part. move: of rows (n, *shape)."""
        one = {name: move(getattr(self, name)[None])[0] for name in ("center", "error", "low", "high", "rounding")}
        return replace(self, generators=move(self.generators), **one)

    def _with(self, center, generators, error, low, high, rounding):
        """An enclosure whose interval is what both forms leave."""
        spread = _above(_above(np.abs(generators).sum(axis=0) * (1 + 2 * _UNIT * len(generators))) + error)
        slack = 4 * _UNIT * (np.abs(center) + spread) + _TINY
        low, high = np.maximum(low, center - spread - slack), np.minimum(high, center + spread + slack)
        rounding = np.where(np.maximum(np.abs(low), np.abs(high)) + rounding < self.largest / 4, rounding, np.inf)
        return replace(self, center=center, generators=generators, error=error, low=low, high=high, rounding=rounding)

    # -- linear operations ---------------------------------------------------------------------------------------------

    def linear(self, apply, magnitude, terms, bias=0.0):
        """y = L x + b, L by its rows: apply(rows) = L x, magnitude(rows) = |L| x, of at most `terms` products."""
        bias = np.broadcast_to(np.asarray(bias, np.float64), apply(self.center[None])[0].shape)
        gamma = 2 * _gamma(terms + 4, _UNIT)

        def spread(x):
            """|L| x for x >= 0, rounded up."""
            return _above(magnitude(x[None])[0] * (1 + 2 * gamma)) + terms * _TINY

        around = gamma * np.abs(bias)
        center = apply(self.center[None])[0] + bias
        error = spread(_above(self.error + gamma * self.magnitude())) + around
        middle = self.low + (self.high - self.low) / 2
        radius = _above(np.maximum(self.high - middle, middle - self.low))
        middle, radius = (
            apply(middle[None])[0] + bias,
            spread(_above(radius + gamma * np.abs(middle))) + around,
        )
        slack = 4 * _UNIT * (np.abs(middle) + radius) + _TINY
        share = _gamma(terms + 2, self.unit)
        with np.errstate(invalid="ignore"):  # infinity times a weight of 0
            rounding = spread(_above(self.rounding + share * self.computed())) + share * np.abs(bias)
            largest = spread(self.computed()) + np.abs(bias)
        rounding = np.where(largest < self.largest / 4, rounding, np.inf)
        rounding = np.nan_to_num(_above(rounding + (terms + 2) * self.smallest), nan=np.inf, posinf=np.inf)
        generators = apply(self.generators) if len(self.generators) else np.zeros((0, *bias.shape))
        return self._with(center, generators, _above(error), middle - radius - slack, middle + radius + slack, rounding)

    def plus(self, other):
        """The sum of two values of one shape, computed from the same inputs."""
        center, generators = self.center + other.center, self.generators + other.generators
        error = _above(self.error + other.error + 2 * _UNIT * (self.magnitude() + other.magnitude()))
        low, high = self.low + other.low, self.high + other.high
        slack = 2 * _UNIT * (np.abs(low) + np.abs(high)) + _TINY
        rounding = self.rounding + other.rounding
        rounding = _above(rounding + 2 * self.unit * (self.computed() + other.computed()) + self.smallest)
        return self._with(center, generators, error, low - slack, high + slack, rounding)

    def joined(self, others):
        """Values side by side along the last axis."""
        every = [self, *others]

        def together(name):
            return np.concatenate([getattr(each, name) for each in every], axis=-1)

        return replace(
            self,
            center=together("center"),
            generators=together("generators"),
            error=together("error"),
            low=together("low"),
            high=together("high"),
            rounding=together("rounding"),
        )

    # -- others --------------------------------------------------------------------------------------------------------

    def forgotten(self, low, high, rounding):
        """A value of which no more is known than its interval."""
        center = low + (high - low) / 2
        radius = _above(np.maximum(high - center, center - low))
        generators = np.zeros((len(self.generators), *low.shape))
        return self._with(center, generators, radius, low, high, rounding)

    def activated(self, name):
        """Behind an activation."""
        if name == "identity":
            return self
        if name not in _FUNCTIONS:
            raise ValueError(f"the activation {name}, which has no bounds")
        low, high = _range(name, self.low, self.high)
        slope, shift, radius = _relaxed(name, self.low, self.high, low, high)
        center, generators = slope * self.center + shift, slope * self.generators
        error = np.abs(slope) * self.error + 8 * _UNIT * (np.abs(slope) * self.magnitude() + np.abs(shift))
        return self._with(center, generators, _above(error + radius), low, high, self._rounding_behind(name, low, high))

    def _rounding_behind(self, name, low, high):
        """|f_computed(x_computed) - f(x)|: what f makes of x's error, and its own."""
        steepest = _LIPSCHITZ[name]
        if name in ("tanh", "sigmoid"):
            nearest = np.maximum(0, np.maximum(self.low, -self.high) - self.rounding)
            t = np.tanh(nearest if name == "tanh" else nearest / 2)
            steepest = (1 - t * t) * (1 if name == "tanh" else 0.25) + _SLACK
        own = np.maximum(np.abs(low), np.abs(high))
        if name in ("gelu", "gelu_tanh", "silu"):
            own = 4 * self.computed()  # an error of the factor, which is at most 1, times x
        elif name == "hard_sigmoid":
            own = np.ones_like(own)  # x / 6 + 1 / 2 cancels near -3
        elif name in ("relu", "leaky_relu"):
            own = own / 2
        return _above(steepest * self.rounding + 8 * self.unit * (own + steepest * self.rounding) + 4 * self.smallest)

    def softmaxed(self):
        """Behind a softmax over the last axis."""
        top = self.high.max(axis=-1, keepdims=True)
        small, large = np.exp(self.low - top), np.exp(self.high - top)
        size = self.shape[-1]
        others_small, others_large = (x.sum(axis=-1, keepdims=True) - x for x in (small, large))
        slack = (size + 16) * 8 * _UNIT
        with np.errstate(invalid="ignore", divide="ignore"):
            low, high = small / (small + others_large + slack), large / (large + np.maximum(others_small - slack, 0))
        low = np.maximum(np.nan_to_num(low) * (1 - slack) - _TINY, 0)
        high = np.minimum(np.nan_to_num(high, nan=1.0) * (1 + slack) + _TINY, 1)
        worst = self.rounding.max(axis=-1, keepdims=True)
        rounding = np.broadcast_to(0.5 * worst, self.shape) + 4 * (size + 16) * self.unit
        return self.forgotten(low, high, np.minimum(_above(rounding), 1.0 + (size + 16) * self.unit))


# -- activations -------------------------------------------------------------------------------------------------------

_FUNCTIONS = {
    "relu": lambda x: np.maximum(x, 0.0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "gelu": lambda x: x * special.ndtr(x),
    "gelu_tanh": lambda x: x * special.expit(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "silu": lambda x: x * special.expit(x),
    "softplus": lambda x: np.logaddexp(x, 0.0),
    "sigmoid": special.expit,
    "tanh": np.tanh,
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0.0))),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0.0, 1.0),
    "hard_tanh": lambda x: np.clip(x, -1.0, 1.0),
    "softsign": lambda x: x / (1 + np.abs(x)),
}
_LIPSCHITZ = {"relu": 1, "leaky_relu": 1, "elu": 1, "softplus": 1, "sigmoid": 0.25, "tanh": 1}
_LIPSCHITZ |= {"selu": 1.7581, "hard_sigmoid": 0.1667, "hard_tanh": 1, "softsign": 1}
_LIPSCHITZ |= {"gelu": 1.13, "gelu_tanh": 1.13, "silu": 1.1}
# Where those that fall first and then rise have their lowest value, and a bound of it.
_LOWEST = {"gelu": (-0.7517915, -0.1699713), "gelu_tanh": (-0.7524614, -0.1700415), "silu": (-1.2784646, -0.2784646)}
_SLOPES = {
    "relu": lambda x: np.where(x > 0, 1.0, 0.0),
    "leaky_relu": lambda x: np.where(x > 0, 1.0, 0.01),
    "elu": lambda x: np.where(x > 0, 1.0, np.exp(np.minimum(x, 0.0))),
    "softplus": special.expit,
}


def _slack(*values):
    return _SLACK * sum(np.abs(value) for value in values) + _TINY


def _range(name, low, high):
    """The interval of f over an interval, rounded outward."""
    f = _FUNCTIONS[name]
    at_low, at_high = f(low), f(high)
    down, up = np.minimum(at_low, at_high), np.maximum(at_low, at_high)
    if name in _LOWEST:
        place, bound = _LOWEST[name]
        down, up = np.where((low <= place + 1e-6) & (high >= place - 1e-6), bound, down), up
        # Far on the left the factor loses relative accuracy, where the value is nearly 0.
        down, up = down - _slack(down) - 1e-15, up + _slack(up) + 1e-15
        return np.maximum(down, bound), up
    down, up = down - _slack(down), up + _slack(up)
    if name in ("relu", "softplus", "sigmoid"):
        down = np.maximum(down, 0.0)
    return down, up


def _relaxed(name, low, high, f_low, f_high):
    """(s, t, r) with |f(x) - s x - t| <= r over an interval; f_low, f_high enclose f there."""
    middle = f_low + (f_high - f_low) / 2
    flat = np.zeros_like(low), middle, _above(np.maximum(f_high - middle, middle - f_low))
    if name not in _SLOPES and name not in ("tanh", "sigmoid"):
        return flat
    f = _FUNCTIONS[name]
    width = high - low
    with np.errstate(invalid="ignore", divide="ignore"):
        if name in _SLOPES:
            # Convex: below the chord, and above any tangent; that through the point where the chord's slope is f's.
            least = 0.01 if name == "leaky_relu" else 0.0
            slope = np.clip(np.where(width > 0, (f(high) - f(low)) / width, 0.0), least, 1.0)
            point = np.clip(_tangent(name, slope), low, high)
            steep = _SLOPES[name](point)
            if name in ("relu", "leaky_relu"):  # at the kink any slope between both sides' is that of a tangent
                steep = np.where((low <= 0) & (high >= 0), slope, steep)
            tangent = f(point) - steep * point
            below = np.minimum((steep - slope) * low, (steep - slope) * high) + tangent
            above = np.maximum(f(low) - slope * low, f(high) - slope * high)
            slack = _slack(f(low), f(high), slope * low, slope * high, steep * low, steep * high, tangent)
        else:
            # tanh and sigmoid: the slope is least at an end, and f less that slope times x rises.
            t = [np.tanh(x if name == "tanh" else x / 2) for x in (low, high)]
            slope = np.minimum(1 - t[0] ** 2, 1 - t[1] ** 2) * (1.0 if name == "tanh" else 0.25)
            slope = np.maximum(slope * (1 - 1e-9) - 1e-15, 0.0)
            below, above = f(low) - slope * low, f(high) - slope * high
            slack = _slack(f(low), f(high), slope * low, slope * high)
    below, above = below - slack, above + slack
    shift = below + (above - below) / 2
    radius = _above(np.maximum(above - shift, shift - below))
    good = np.isfinite(radius) & (radius <= flat[2]) & (width > 0)
    return tuple(np.where(good, a, b) for a, b in zip((slope, shift, radius), flat, strict=True))


def _tangent(name, slope):
    """Where a convex activation has a slope."""
    if name == "softplus":
        return special.logit(np.clip(slope, 1e-300, 1 - 1e-16))
    if name == "elu":
        return np.log(np.clip(slope, 1e-300, 1.0))
    return np.zeros_like(slope)
