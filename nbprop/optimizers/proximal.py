"""Proximal steps: an optimizer's update followed by l1's soft threshold, in one kernel, so that parameters become 0.

A step of a rule that moves p to q, at an effective rate r, minimises g x + (x - p)^2 / (2 r) to first order; with
l1 |x| added, the minimiser is q with its magnitude lowered by r l1, or 0 (Parikh and Boyd 2014, sections 4.2 and
6.5.2). r is the rule's own for each parameter, the displacement per unit of a constant gradient, so that steps end
where the penalized loss is stationary: where |gradient| = l1, or at 0 where it is less.

rprop, lion and adadelta have no such rate: their steps hardly depend on the gradient's size. They take orthant-wise
steps (Andrew and Gao 2007, section 3): the rule gets the pseudo-gradient, the loss's plus l1 sign(p), or at p = 0 what
of the loss's exceeds l1, and a parameter that would cross 0 becomes 0. Both kinds of step rest at the same points.

Where a rule divides by the root of a running mean of squared gradients, that root is taken to be at least l1, for the
displacement, too: otherwise r, and so the threshold, would have no bound for a parameter whose gradients are small.
"""

import math

import numpy as np

from nbprop.compiler.intrinsics import array_at, as_frame, load, load_double
from nbprop.compiler.jit import njit
from nbprop.compiler.native import Native
from nbprop.numerics.partition import share_blocks
from nbprop.numerics.scalars import like, scalar_function
from nbprop.optimizers import update_rules as rules
from nbprop.optimizers.update_rules import RULES, kernel_signature, nadam_constants, radam_constants

# The row of a kernel: that of the rule, then l1 as a float64, and the address of a mask (0: all are penalized).
L1, PENALIZED = rules.ROW, rules.ROW + 1
ROW = rules.ROW + 2

# name -> (reach, its constants). reach(s, t, u, c, l1), of the state after the update, is the effective rate of a
# parameter, and the fraction of the displacement that is taken; constants(zero, step, h) computes c as a rule's do.


@scalar_function
def _constant_reach(s, t, u, c, l1):
    """The rate is that of the step."""
    return c[0], like(l1, 1.0)


@scalar_function
def _sgd_reach_constants(zero, step, h):
    """(lr,)."""
    return (like(zero, h[0]),)


@scalar_function
def _momentum_reach_constants(zero, step, h):
    """(lr (1 + momentum + ... + momentum^step),)."""
    return (like(zero, h[0] * (1.0 - h[1] ** (step + 1.0)) / (1.0 - h[1])),)


@scalar_function
def _nesterov_reach_constants(zero, step, h):
    """(lr (1 + momentum (1 + ... + momentum^step)),)."""
    return (like(zero, h[0] * (1.0 + h[1] * (1.0 - h[1] ** (step + 1.0)) / (1.0 - h[1]))),)


@scalar_function
def _reach_of_first(v, t, u, c, l1):
    """lr over the root of v, the first state element, which is at least l1."""
    lr, factor, eps = c
    root = math.sqrt(v) * factor + eps
    held = root if root > l1 else l1
    return lr / held, root / held


@scalar_function
def _reach_of_second(m, v, u, c, l1):
    """lr over the root of v, the second state element, which is at least l1."""
    lr, factor, eps = c
    root = math.sqrt(v) * factor + eps
    held = root if root > l1 else l1
    return lr / held, root / held


@scalar_function
def _reach_of_third(m, v, most, c, l1):
    """lr over the root of the largest v, the third state element, which is at least l1."""
    lr, factor, eps = c
    root = math.sqrt(most) * factor + eps
    held = root if root > l1 else l1
    return lr / held, root / held


@scalar_function
def _rmsprop_reach_constants(zero, step, h):
    """(lr, 1, eps)."""
    return like(zero, h[0]), like(zero, 1.0), like(zero, h[2])


@scalar_function
def _adagrad_reach_constants(zero, step, h):
    """(lr, 1, eps)."""
    return like(zero, h[0]), like(zero, 1.0), like(zero, h[1])


@scalar_function
def _adam_reach_constants(zero, step, h):
    """(lr, the bias correction of the root, eps)."""
    return like(zero, h[0]), like(zero, 1.0 / math.sqrt(1.0 - h[2] ** (step + 1.0))), like(zero, h[3])


@scalar_function
def _radam_reach_constants(zero, step, h):
    """(lr, 0, 1) in the first steps, then (lr times the rectification, the bias correction of the root, eps)."""
    _, (rate, counts, floor, _, _, _, _) = radam_constants(0.0, step, h)
    rate = rate * (1.0 - h[1] ** (step + 1.0))
    if counts == 0.0:
        return like(zero, rate), like(zero, 0.0), like(zero, 1.0)
    root = math.sqrt(1.0 - h[2] ** (step + 1.0))
    return like(zero, rate / root), like(zero, 1.0 / root), like(zero, floor / root)


@scalar_function
def _nadam_reach_constants(zero, step, h):
    """(the rates of a constant gradient and of its running mean, the bias correction of the root, eps)."""
    _, (rate_g, rate_m, root, eps, _, _, _, _) = nadam_constants(0.0, step, h)
    return like(zero, rate_g + rate_m * (1.0 - h[1] ** (step + 1.0))), like(zero, root), like(zero, eps)


# Rules whose steps do not grow with the gradient: orthant-wise.
_ORTHANT_WISE = ("rprop", "lion", "adadelta")

_REACHES = {
    "sgd": (_constant_reach, _sgd_reach_constants),
    "momentum": (_constant_reach, _momentum_reach_constants),
    "nesterov": (_constant_reach, _nesterov_reach_constants),
    "rmsprop": (_reach_of_first, _rmsprop_reach_constants),
    "adagrad": (_reach_of_first, _adagrad_reach_constants),
    "adam": (_reach_of_second, _adam_reach_constants),
    "adamw": (_reach_of_second, _adam_reach_constants),
    "amsgrad": (_reach_of_third, _adam_reach_constants),
    "radam": (_reach_of_second, _radam_reach_constants),
    "nadam": (_reach_of_second, _nadam_reach_constants),
}


@scalar_function
def pseudo_gradient(p, g, l1):
    """The subgradient of loss + l1 |p| of the least size, for the loss's gradient g; NaN for NaN."""
    if p > 0:
        return g + l1
    if p < 0:
        return g - l1
    if g > l1:
        return g - l1
    return g + l1 if g < -l1 else g - g


@scalar_function
def within_orthant(x, p, g):
    """x, or 0 where it is not on the side of 0 that p is on, or for p = 0 the descent along g; NaN for NaN."""
    side = p if p != 0 else -g
    return x - x if (x > 0 and side <= 0) or (x < 0 and side >= 0) else x


@scalar_function
def soft_threshold(x, threshold):
    """x with its magnitude lowered by the threshold; 0 where that is larger. NaN for NaN."""
    if x > threshold:
        return x - threshold
    return x + threshold if x < -threshold else x - x


@njit
def _mask_at(row, word, n, first, last):
    """(the elements [first, last) of a mask of n bytes, whether it was not given) of a row."""
    return array_at(as_frame(0, np.uint8), load(row, word), n)[first:last], load(row, word) == 0


def _proximal_update(rule, constants, slots, reach, reach_constants, orthant_wise):
    """The kernel of a rule with `slots` state elements per parameter, and its proximal or orthant-wise step."""

    def update(frame, row, part, parts):
        """One step of the rule on the arrays of a row: PARAMS INOUT (n,), GRADS IN (n,), STATE INOUT (slots, n).

        DECAY_MASK, TRAINABLE and PENALIZED IN (n,), bytes, or 0 for all; FACTORS IN (n,), or 0 for 1. GRADS are without
        l1's.
        """
        n = load(row, rules.N)
        first, last = share_blocks(n, part, parts)
        if first >= last:
            return 0
        p = array_at(frame, load(row, rules.PARAMS), n)[first:last]
        g = array_at(frame, load(row, rules.GRADS), n)[first:last]
        state = array_at(frame, load(row, rules.STATE), slots * n)
        s, t = state[first:last] if slots > 0 else p, state[n + first : n + last] if slots > 1 else p
        u = state[2 * n + first : 2 * n + last] if slots > 2 else p
        factors, even = array_at(frame, load(row, rules.FACTORS), n)[first:last], load(row, rules.FACTORS) == 0
        decay_mask, every_decays = _mask_at(row, rules.DECAY_MASK, n, first, last)
        trainable, every_trains = _mask_at(row, rules.TRAINABLE, n, first, last)
        penalized, every_counts = _mask_at(row, PENALIZED, n, first, last)
        zero, one, given = like(p[0], 0.0), like(p[0], 1.0), row + 8 * rules.HYPERPARAMETERS
        step = float(load(row, rules.STEP))
        h = (
            load_double(given, 0),
            load_double(given, 1),
            load_double(given, 2),
            load_double(given, 3),
            load_double(given, 4),
            load_double(given, 5),
        )
        l1 = like(zero, load_double(row, L1))
        decay, c = constants(zero, step, h)
        k = reach_constants(zero, step, h)
        for i in range(p.size):
            if every_trains or trainable[i] != 0:
                own_decay = decay if every_decays or decay_mask[i] != 0 else zero
                factor, counts = one if even else factors[i], every_counts or penalized[i] != 0
                given_g = pseudo_gradient(p[i], g[i], l1) if orthant_wise and counts else g[i]
                new_p, new_s, new_t, new_u = rule(p[i], given_g, s[i], t[i], u[i], own_decay, c)
                if orthant_wise and counts:
                    p[i] = within_orthant(p[i] + factor * (new_p - p[i]), p[i], given_g)
                elif counts:
                    rate, taken = reach(new_s, new_t, new_u, k, l1)
                    p[i] = soft_threshold(p[i] + factor * taken * (new_p - p[i]), factor * rate * l1)
                else:
                    p[i] = new_p if even else p[i] + factor * (new_p - p[i])
                if slots > 0:
                    s[i] = new_s
                if slots > 1:
                    t[i] = new_t
                if slots > 2:
                    u[i] = new_u
        return 0

    return update


def _kernel(name):
    found = RULES[name]
    orthant_wise = name in _ORTHANT_WISE
    reaches = (_constant_reach, _sgd_reach_constants) if orthant_wise else _REACHES[name]  # not used where orthant-wise
    function = _proximal_update(found.rule, found.constants, found.slots, *reaches, orthant_wise)
    return Native(function, kernel_signature, name=f"nbprop.optimizers.{name}.proximal")


PROXIMAL = {name: _kernel(name) for name in (*_REACHES, *_ORTHANT_WISE)}


# -- the device ----------------------------------------------------------------------------------------------

# Width of a row of constants that a device's update reads: those of the rule, then up to three of the reach.
CONSTANTS = rules.CONSTANTS + 3


def is_orthant_wise(name):
    """Whether a rule takes orthant-wise steps."""
    return name in _ORTHANT_WISE


def reach_of(name):
    """(reach, (c, k) -> the tuple of its constants from element k of c on) of a rule."""
    reach, constants = _REACHES.get(name, (_constant_reach, _sgd_reach_constants))
    return reach, _one_constant if len(
        constants(np.float64(0), 1.0, (0.5,) * rules.MOST_HYPERPARAMETERS)
    ) == 1 else _three_constants


@scalar_function
def _one_constant(c, k):
    return (c[k],)


@scalar_function
def _three_constants(c, k):
    return c[k], c[k + 1], c[k + 2]


def constants_of(name, dtype, step, values):
    """As `update_rules.constants_of`, (CONSTANTS,), with the constants of the reach."""
    padded = (*map(float, values), *[0.0] * (rules.MOST_HYPERPARAMETERS - len(values)))
    found = () if is_orthant_wise(name) else _REACHES[name][1](np.dtype(dtype).type(0), float(step), padded)
    reach = np.array([*found, *[0] * (3 - len(found))], dtype)
    return np.concatenate([rules.constants_of(name, dtype, step, values), reach])
