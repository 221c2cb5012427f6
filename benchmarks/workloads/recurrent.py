"""An LSTM of 128 units on 100 steps of 64 numbers, batch 32: the mean squared error of its outputs and its gradient.

All have the same weights, with gates in the order i, f, g, o. torch uses torch.nn.LSTM, JAX a lax.scan over the steps
after the products with x.
"""

from __future__ import annotations

import numpy as np

from harness.work import Work
from workloads.rows import Row, aligned

POSITIONS, FEATURES, UNITS = 100, 64, 128


def weights() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W (features, 4 units), U (units, 4 units), b (4 units,), uniform within 1 / sqrt(units)."""
    rng, bound = np.random.default_rng(0), 1 / np.sqrt(UNITS)
    shapes = (FEATURES, 4 * UNITS), (UNITS, 4 * UNITS), (4 * UNITS,)
    w, u, b = (rng.uniform(-bound, bound, shape).astype(np.float32) for shape in shapes)
    return w, u, b


def positions(row: Row) -> int:
    """Of a row that says how many, in growth.py; POSITIONS otherwise."""
    return row.widths[0] if row.widths else POSITIONS


def data(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """x (batch, steps, features) and its target (batch, steps, units)."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((row.batch, positions(row), FEATURES)).astype(np.float32)
    return aligned(x), aligned(rng.uniform(-1, 1, (row.batch, positions(row), UNITS)).astype(np.float32))


def nbprop(row: Row, threads: int) -> Work:
    import nbprop as nb

    net = nb.network((positions(row), FEATURES), nb.lstm(UNITS))
    plan = nb.plan(net, "mse", row.batch, np.float32, threads)
    params, (x, target) = aligned(np.concatenate([part.ravel() for part in weights()])), data(row)
    grads, work = np.empty_like(params), aligned(nb.workspace(plan))

    def gradient(n: int) -> None:
        for _ in range(n):
            nb.value_and_grad(plan, params, x, target, grads, work)

    return Work(gradient, check=nb.value_and_grad(plan, params, x, target, grads, work))


def torch(row: Row, threads: int) -> Work:
    import torch as tc
    from torch.nn import functional

    tc.set_num_threads(threads)
    model, (x, target) = tc.nn.LSTM(FEATURES, UNITS, batch_first=True), map(tc.from_numpy, data(row))
    w, u, b = map(tc.from_numpy, weights())
    with tc.no_grad():
        model.weight_ih_l0.copy_(w.T)
        model.weight_hh_l0.copy_(u.T)
        model.bias_ih_l0.copy_(b)
        model.bias_hh_l0.zero_()

    def gradient(n: int) -> tc.Tensor:
        for _ in range(n):
            model.zero_grad(set_to_none=True)
            loss = functional.mse_loss(model(x)[0], target)
            loss.backward()
        return loss.detach()

    return Work(gradient, check=float(gradient(1)))


def jax_jit(row: Row, threads: int) -> Work:
    import jax
    import jax.numpy as jnp

    def loss(params, x, target):
        w, u, b = params

        def step(carry, z):
            h, c = carry
            i, f, g, o = jnp.split(z + h @ u, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((x.shape[0], UNITS), x.dtype)
        _, y = jax.lax.scan(step, (zero, zero), jnp.swapaxes(x @ w + b, 0, 1))
        return jnp.mean((jnp.swapaxes(y, 0, 1) - target) ** 2)

    compiled = jax.jit(jax.value_and_grad(loss))
    params, (x, target) = jax.device_put((weights(), data(row)))

    def gradient(n: int):
        for _ in range(n):
            found = compiled(params, x, target)
        return jax.block_until_ready(found)

    return Work(gradient, check=float(gradient(1)[0]))
