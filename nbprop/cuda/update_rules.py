"""The optimizers' rules on the device: a thread takes four parameters at a time, or one where there are masks.

Dimensions: n parameters, with `slots` elements of state each.
"""

import numpy as np

from nbprop.cuda.groups import sum_of_slices
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import device_function, grid_size
from nbprop.cuda.vectors import fours, load4, store4
from nbprop.numerics.scalars import like
from nbprop.optimizers.update_rules import CONSTANTS, MOST_HYPERPARAMETERS, RULES
from nbprop.program.elements import integer_at

# Tuples whose length is known when a rule is compiled.
_TAKE = {
    1: lambda c, k: (c[k],),
    2: lambda c, k: (c[k], c[k + 1]),
    3: lambda c, k: (c[k], c[k + 1], c[k + 2]),
    4: lambda c, k: (c[k], c[k + 1], c[k + 2], c[k + 3]),
    5: lambda c, k: (c[k], c[k + 1], c[k + 2], c[k + 3], c[k + 4]),
    7: lambda c, k: (c[k], c[k + 1], c[k + 2], c[k + 3], c[k + 4], c[k + 5], c[k + 6]),
    8: lambda c, k: (c[k], c[k + 1], c[k + 2], c[k + 3], c[k + 4], c[k + 5], c[k + 6], c[k + 7]),
}


def cuda_kernels(cuda):
    """The device updates.

    The constants come from a table, which the host computes in float64.
    """
    return tuple(_cuda_update(cuda, rule) for rule in RULES.values())


def constants_taker(name):
    """The device function (c, k) of the tuple of a rule's constants, from element k of c on."""
    found = RULES[name].constants(np.float64(0), 0.0, (0.5,) * MOST_HYPERPARAMETERS)[1]
    return device_function(_TAKE[len(found)])


def _cuda_update(cuda, optimizer):
    rule, slots, take = optimizer.rule, optimizer.slots, constants_taker(optimizer.name)

    @device_function
    def fetch(to, state, place, aligned):
        """Four elements of state; behind the first slot they are aligned only if n allows it."""
        if aligned:
            load4(to, 0, state, place)
        else:
            for k in range(4):
                to[k] = state[np.uint64(place + k)]

    @device_function
    def put(state, place, given, aligned):
        if aligned:
            store4(state, place, given, 0)
        else:
            for k in range(4):
                state[np.uint64(place + k)] = given[k]

    @device_function
    def in_fours(p, g, state, n, whole, decay, constants):
        """The first `whole` parameters, four at a time."""
        new, given = cuda.local.array(4, p.dtype), cuda.local.array(4, p.dtype)
        s, t, u = cuda.local.array(4, p.dtype), cuda.local.array(4, p.dtype), cuda.local.array(4, p.dtype)
        aligned = n % 4 == 0
        for i in range(4 * cuda.grid(1), whole, 4 * cuda.gridsize(1)):
            load4(new, 0, p, i)
            load4(given, 0, g, i)
            for k in range(4):
                s[k], t[k], u[k] = decay, decay, decay
            if slots > 0:
                load4(s, 0, state, i)
            if slots > 1:
                fetch(t, state, n + i, aligned)
            if slots > 2:
                fetch(u, state, 2 * n + i, aligned)
            for k in range(4):
                new[k], s[k], t[k], u[k] = rule(new[k], given[k], s[k], t[k], u[k], decay, constants)
            store4(p, i, new, 0)
            if slots > 0:
                store4(state, i, s, 0)
            if slots > 1:
                put(state, n + i, t, aligned)
            if slots > 2:
                put(state, 2 * n + i, u, aligned)

    @on_device(optimizer.kernel, blocks=lambda n: grid_size(n), resident=2)
    def update(p, g, state, c, slices, n, count, stride, decay_mask, trainable, first_step, step):
        """One step of the rule; see nbprop/optimizers/update_rules.py for the equations.

        p INOUT (n,), g INOUT (n,), state INOUT (slots * n,); c IN (steps, CONSTANTS): the constants of the steps from
        first_step on; slices IN (count, stride): if count is not 0, g is their sum, else only read. decay_mask,
        trainable: addresses of n bytes, 0 for all.
        """
        at = (step - first_step) * CONSTANTS
        decay, constants = c[at], take(c, at + 1)
        plain = count == 0 and trainable == 0 and decay_mask == 0
        whole = n // 4 * 4 if plain and fours(p, 4, 0) and fours(g, 4, 0) and fours(state, 4, 0) else 0
        if whole > 0:
            in_fours(p, g, state, n, whole, decay, constants)
        for i in range(whole + cuda.grid(1), n, cuda.gridsize(1)):
            if count > 0:
                g[i] = sum_of_slices(slices, i, stride, count)
            if trainable == 0 or integer_at(trainable, 1, i) != 0:
                own_decay = decay if decay_mask == 0 or integer_at(decay_mask, 1, i) != 0 else like(decay, 0.0)
                s, t = state[i] if slots > 0 else decay, state[n + i] if slots > 1 else decay
                u = state[2 * n + i] if slots > 2 else decay
                new_p, new_s, new_t, new_u = rule(p[i], g[i], s, t, u, own_decay, constants)
                p[i] = new_p
                if slots > 0:
                    state[i] = new_s
                if slots > 1:
                    state[n + i] = new_t
                if slots > 2:
                    state[2 * n + i] = new_u

    return update
