"""The optimizers' rules on the device: one thread per parameter.

Dimensions: n parameters, with `slots` elements of state each.
"""

import numpy as np

from nbprop.cuda.groups import sum_of_slices
from nbprop.cuda.kernels import on_device
from nbprop.cuda.toolkit import device_function, grid_size
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
    """The device updates: one thread per parameter.

    The constants come from a table, which the host computes in float64.
    """
    return tuple(_cuda_update(cuda, rule) for rule in RULES.values())


def _cuda_update(cuda, optimizer):
    padded = (0.5,) * MOST_HYPERPARAMETERS
    rule, slots = optimizer.rule, optimizer.slots
    take = device_function(_TAKE[len(optimizer.constants(np.float64(0), 0.0, padded)[1])])

    @on_device(optimizer.kernel, blocks=lambda n: grid_size(n))
    def update(p, g, state, c, slices, n, count, stride, decay_mask, trainable, first_step, step):
        """One step of the rule; see nbprop/optimizers/update_rules.py for the equations.

        p INOUT (n,), g INOUT (n,), state INOUT (slots * n,); c IN (steps, CONSTANTS): the constants of the steps from
        first_step on; slices IN (count, stride): if count is not 0, g is their sum, else only read. decay_mask,
        trainable: addresses of n bytes, 0 for all.
        """
        at = (step - first_step) * CONSTANTS
        decay, constants = c[at], take(c, at + 1)
        for i in range(cuda.grid(1), n, cuda.gridsize(1)):
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
