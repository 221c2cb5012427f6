"""A process that computes one gradient of a tanh network: `first_gradient.py LIBRARY` computes it and ends.

`first_gradient.py LIBRARY --new` does so for one network, and then prints the seconds from description to gradient for
a second one, whose shape this process, by then warm, has not seen.
"""

import itertools
import sys
import time

FIRST = (4, 32, 32, 1), 64  # widths and batch
WARM, NEW = ((7, 5, 6, 3), 16), ((7, 11, 13, 17, 3), 16)


def nbprop(widths, batch):
    import numpy as np

    import nbprop

    hidden = [nbprop.dense(width, activation="tanh") for width in widths[1:-1]]
    net = nbprop.network(widths[:1], *hidden, nbprop.dense(widths[-1]))
    params = nbprop.init(net, seed=0, dtype=np.float32)
    plan = nbprop.plan(net, loss="mse", batch=batch, dtype=np.float32)
    x, target = np.ones((batch, widths[0]), np.float32), np.ones((batch, widths[-1]), np.float32)
    nbprop.value_and_grad(plan, params, x, target, np.empty_like(params), nbprop.workspace(plan))


def torch(widths, batch):
    import torch
    from torch.nn import Linear, Tanh

    layers = [layer for shape in itertools.pairwise(widths) for layer in (Linear(*shape), Tanh())]
    net = torch.nn.Sequential(*layers[:-1])
    torch.nn.functional.mse_loss(net(torch.ones(batch, widths[0])), torch.ones(batch, widths[-1])).backward()


def jax(widths, batch):
    import jax
    import jax.numpy as jnp
    import numpy as np

    def loss(params, x, target):
        for w, b in params[:-1]:
            x = jnp.tanh(x @ w + b)
        return jnp.mean((x @ params[-1][0] + params[-1][1] - target) ** 2)

    shapes = itertools.pairwise(widths)
    params = [(np.ones(shape, np.float32), np.zeros(shape[1], np.float32)) for shape in shapes]
    x, target = np.ones((batch, widths[0]), np.float32), np.ones((batch, widths[-1]), np.float32)
    jax.block_until_ready(jax.jit(jax.value_and_grad(loss))(params, x, target))


def main(library, *options):
    gradient = {"nbprop": nbprop, "torch": torch, "jax": jax}[library]
    if options != ("--new",):
        gradient(*FIRST)
        return
    gradient(*WARM)
    start = time.perf_counter()
    gradient(*NEW)
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
