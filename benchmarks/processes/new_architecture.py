"""Prints the seconds from description to first gradient for a network of a shape that this process, warm from
another one, has not seen: `new_architecture.py LIBRARY`."""

import itertools
import sys
import time

WARM, NEW = (7, 5, 6, 3), (7, 11, 13, 17, 3)


def nbprop(widths):
    import numpy as np

    import nbprop

    hidden = [nbprop.dense(width, activation="tanh") for width in widths[1:-1]]
    net = nbprop.network(widths[:1], *hidden, nbprop.dense(widths[-1]))
    params = nbprop.init(net, seed=0, dtype=np.float32)
    plan = nbprop.plan(net, loss="mse", batch=16, dtype=np.float32)
    x, target = np.ones((16, 7), np.float32), np.ones((16, 3), np.float32)
    nbprop.value_and_grad(plan, params, x, target, np.empty_like(params), nbprop.workspace(plan))


def jax(widths):
    import jax
    import jax.numpy as jnp
    import numpy as np

    def loss(params, x, target):
        for w, b in params[:-1]:
            x = jnp.tanh(x @ w + b)
        return jnp.mean((x @ params[-1][0] + params[-1][1] - target) ** 2)

    shapes = itertools.pairwise(widths)
    params = [(np.ones(shape, np.float32), np.zeros(shape[1], np.float32)) for shape in shapes]
    x, target = np.ones((16, 7), np.float32), np.ones((16, 3), np.float32)
    jax.block_until_ready(jax.jit(jax.value_and_grad(loss))(params, x, target))


if __name__ == "__main__":
    first = {"nbprop": nbprop, "jax": jax}[sys.argv[1]]
    first(WARM)
    start = time.perf_counter()
    first(NEW)
    print(time.perf_counter() - start)
