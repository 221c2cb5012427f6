"""A process that computes one gradient of 4-32-32-1 tanh on a batch of 64, and ends: `first_gradient.py LIBRARY`."""

import itertools
import sys

WIDTHS = (4, 32, 32, 1)


def nbprop():
    import numpy as np

    import nbprop

    hidden = [nbprop.dense(width, activation="tanh") for width in WIDTHS[1:-1]]
    net = nbprop.network(WIDTHS[:1], *hidden, nbprop.dense(WIDTHS[-1]))
    params = nbprop.init(net, seed=0, dtype=np.float32)
    plan = nbprop.plan(net, loss="mse", batch=64, dtype=np.float32)
    x, target = np.ones((64, 4), np.float32), np.ones((64, 1), np.float32)
    nbprop.value_and_grad(plan, params, x, target, np.empty_like(params), nbprop.workspace(plan))


def torch():
    import torch
    from torch.nn import Linear, Tanh

    net = torch.nn.Sequential(Linear(4, 32), Tanh(), Linear(32, 32), Tanh(), Linear(32, 1))
    torch.nn.functional.mse_loss(net(torch.ones(64, 4)), torch.ones(64, 1)).backward()


def jax():
    import jax
    import jax.numpy as jnp
    import numpy as np

    def loss(params, x, target):
        for w, b in params[:-1]:
            x = jnp.tanh(x @ w + b)
        return jnp.mean((x @ params[-1][0] + params[-1][1] - target) ** 2)

    shapes = itertools.pairwise(WIDTHS)
    params = [(np.ones(shape, np.float32), np.zeros(shape[1], np.float32)) for shape in shapes]
    x, target = np.ones((64, 4), np.float32), np.ones((64, 1), np.float32)
    jax.block_until_ready(jax.jit(jax.value_and_grad(loss))(params, x, target))


if __name__ == "__main__":
    {"nbprop": nbprop, "torch": torch, "jax": jax}[sys.argv[1]]()
