"""Print how often a hundred compiled steps allocate, after two warm-up steps, by Numba's own count.

Numba counts only where NUMBA_NRT_STATS is set before it is imported.
"""

import numba
import numpy as np
from numba.core.runtime import rtsys

import nbprop


@numba.njit
def steps(plan, params, x, target, grads, work, state, n):
    for i in range(n):
        nbprop.value_and_grad(plan, params, x, target, grads, work)
        nbprop.adam(params, grads, state, i, 1e-3)


def main():
    hidden = [nbprop.dense(32, activation="tanh") for _ in range(2)]
    net = nbprop.network((4,), *hidden, nbprop.dense(1))
    params = nbprop.init(net, seed=0, dtype=np.float32)
    plan = nbprop.plan(net, loss="mse", batch=64, dtype=np.float32)
    x, target = np.ones((64, 4), np.float32), np.ones((64, 1), np.float32)
    state = nbprop.optimizer_state("adam", params.size, np.float32)
    arguments = (plan, params, x, target, np.empty_like(params), nbprop.workspace(plan), state)
    steps(*arguments, 2)
    counts = [rtsys.get_allocation_stats().alloc]
    # Numba allocates a header for each array passed from Python, whatever the number of steps.
    for n in (0, 100):
        steps(*arguments, n)
        counts.append(rtsys.get_allocation_stats().alloc)
    print((counts[2] - counts[1]) - (counts[1] - counts[0]))


if __name__ == "__main__":
    main()
