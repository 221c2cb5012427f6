"""XOR, the smallest problem that needs a hidden layer: the whole training loop in one compiled function."""

import numba
import numpy as np

import nbprop

net = nbprop.network((2,), nbprop.dense(4, activation="tanh"), nbprop.dense(1))
plan = nbprop.plan(net, loss="binary_cross_entropy", batch=4)

x = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
target = np.array([[0.0], [1.0], [1.0], [0.0]])


@numba.njit
def descend(plan, params, x, target, grads, work, steps, rate):
    """Plain gradient descent: forward, error and backward in value_and_grad, then the update."""
    loss = 0.0
    for _ in range(steps):
        loss = nbprop.value_and_grad(plan, params, x, target, grads, work)
        params -= rate * grads
    return loss


def main():
    params = nbprop.init(net, seed=1)
    grads, work = np.empty_like(params), nbprop.workspace(plan)
    before = nbprop.value(plan, params, x, target, work)
    after = descend(plan, params, x, target, grads, work, 2000, 0.5)
    print(f"loss {before:.3f} -> {after:.4f} nats in 2,000 steps")

    logits = np.empty_like(target)
    nbprop.forward(plan, params, x, logits, work)
    for (a, b), z in zip(x.astype(int), logits[:, 0], strict=True):
        print(f"{a} xor {b} = {int(z > 0)}   (probability of 1: {1 / (1 + np.exp(-z)):.3f})")


if __name__ == "__main__":
    main()
