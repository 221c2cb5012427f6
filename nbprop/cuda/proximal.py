"""The optimizers' rules on the device, ending in proximal steps of l1; see nbprop/optimizers/proximal.py.

Dimensions: n parameters, with `slots` elements of state each.
"""

from nbprop.cuda import functions as f
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import device_function, grid_size
from nbprop.cuda.update_rules import constants_taker
from nbprop.numerics.scalars import like
from nbprop.optimizers.proximal import (
    CONSTANTS,
    PROXIMAL,
    is_orthant_wise,
    pseudo_gradient,
    reach_of,
    soft_threshold,
    within_orthant,
)
from nbprop.optimizers.update_rules import CONSTANTS as RULES_CONSTANTS
from nbprop.optimizers.update_rules import RULES
from nbprop.program.elements import integer_at


def cuda_kernels(cuda):
    """The device updates: one thread per parameter."""
    return tuple(_cuda_update(cuda, name) for name in PROXIMAL)


def _cuda_update(cuda, name):
    rule, slots, orthant_wise = RULES[name].rule, RULES[name].slots, is_orthant_wise(name)
    take = constants_taker(name)
    reach, take_reach = reach_of(name)

    @device_function
    def moved(p, new_p, g, s, t, u, factor, k, l1):
        """A parameter after the step: on its side of 0, or lowered by the rule's own rate times l1."""
        if orthant_wise:
            return within_orthant(p + factor * (new_p - p), p, g)
        rate, taken = reach(s, t, u, k, l1)
        return soft_threshold(p + factor * taken * (new_p - p), factor * rate * l1)

    @on_device(PROXIMAL[name], blocks=lambda n: grid_size(n))
    def update(p, g, state, c, factors, n, decay_mask, trainable, penalized, scaled, l1_bits, first_step, step):
        """One step of the rule, and its proximal step.

        p INOUT, g IN (n,), state INOUT (slots * n,); c IN (steps, CONSTANTS): the constants of the steps from
        first_step on, the rule's, then the reach's. factors IN (n,): of the learning rates, if `scaled`. decay_mask,
        trainable, penalized: addresses of n bytes, 0 for all.
        """
        at = (step - first_step) * CONSTANTS
        decay, constants, k = c[at], take(c, at + 1), take_reach(c, at + RULES_CONSTANTS)
        l1 = f.real_of_word(p[0], l1_bits)
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
            if trainable == 0 or integer_at(trainable, 1, i) != 0:
                own_decay = decay if decay_mask == 0 or integer_at(decay_mask, 1, i) != 0 else like(decay, 0.0)
                s, t = state[i] if slots > 0 else decay, state[n + i] if slots > 1 else decay
                u = state[2 * n + i] if slots > 2 else decay
                counts = penalized == 0 or integer_at(penalized, 1, i) != 0
                factor = factors[i] if scaled > 0 else like(decay, 1.0)
                given = pseudo_gradient(p[i], g[i], l1) if orthant_wise and counts else g[i]
                new_p, new_s, new_t, new_u = rule(p[i], given, s, t, u, own_decay, constants)
                if counts:
                    p[i] = moved(p[i], new_p, given, new_s, new_t, new_u, factor, k, l1)
                else:
                    p[i] = p[i] + factor * (new_p - p[i]) if scaled > 0 else new_p
                if slots > 0:
                    state[i] = new_s
                if slots > 1:
                    state[n + i] = new_t
                if slots > 2:
                    state[2 * n + i] = new_u

    return update
