"""Hessian-vector products, Jacobians and their products by JAX, in float64: the cases of second_order.npz."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "gelu_tanh": lambda z: jax.nn.gelu(z, approximate=True),
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "softmax": jax.nn.softmax,
    "mish": jax.nn.mish,
    "selu": jax.nn.selu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_tanh": jax.nn.hard_tanh,
    "hard_swish": jax.nn.hard_swish,
    "softsign": jax.nn.soft_sign,
    "sine": jnp.sin,
}


def sample_loss(loss, y, target):
    """Return the loss of one sample: y (k,), logits where the loss wants them."""
    if loss == "mse":
        return jnp.mean((y - target) ** 2)
    if loss == "softmax_cross_entropy":
        return jax.nn.logsumexp(y) - y[target]
    if loss == "binary_cross_entropy":
        return jnp.mean(jax.nn.softplus(y) - target * y)
    if loss == "huber":
        d = jnp.abs(y - target)
        return jnp.mean(jnp.where(d <= 1, d * d / 2, d - 0.5))
    if loss == "gaussian_nll":
        mean, log_variance = jnp.split(y, 2)
        return jnp.mean((log_variance + (target - mean) ** 2 / jnp.exp(log_variance)) / 2)
    raise ValueError(f"no such loss: {loss}")


def output(layers, params, x):
    """Return the output of dense layers for one sample x (n_in,)."""
    position = 0
    for layer in layers:
        n_in, units = x.shape[0], layer["units"]
        w = params[position : position + n_in * units].reshape(n_in, units)
        b = params[position + n_in * units : position + (n_in + 1) * units]
        position += (n_in + 1) * units
        x = ACTIVATIONS[layer.get("activation", "identity")](x @ w + b)
    return x


def draw(layers, loss, n, n_in, seed):
    """Return params, x, target, and directions v like params and dx like x; multiples of 1/64 or 1/8."""
    rng = np.random.default_rng(seed)
    sizes = [n_in] + [layer["units"] for layer in layers]
    params = []
    for before, after in pairwise(sizes):
        params += [rng.normal(size=before * after) / np.sqrt(before), rng.normal(size=after) / 2]
    params = np.rint(np.concatenate(params) * 64) / 64
    x, v, dx = (np.rint(rng.normal(size=shape) * 8) / 8 for shape in ((n, n_in), params.shape, (n, n_in)))
    if loss == "softmax_cross_entropy":
        target = rng.integers(0, sizes[-1], size=n)
    elif loss == "binary_cross_entropy":
        target = rng.choice([0.0, 1.0, 0.25], size=(n, sizes[-1]))
    else:
        target = rng.normal(size=(n, sizes[-1] // (2 if loss == "gaussian_nll" else 1)))
        target = np.rint(target * 8) / 8
    return params, x, target, v, dx


def solve(layers, loss, n, n_in, seed, weights=None, full=False):
    """Return a case; `full` adds the matrices to the products."""
    params, x, target, v, dx = draw(layers, loss, n, n_in, seed)
    w = jnp.ones(n) if weights is None else jnp.asarray(weights)
    share = w / w.sum()

    def outputs(p, inputs):
        return jax.vmap(lambda row: output(layers, p, row))(inputs)

    def losses(y):
        return jax.vmap(lambda row, t: sample_loss(loss, row, t))(y, jnp.asarray(target))

    def total(p):
        return jnp.dot(share, losses(outputs(p, x)))

    y, tangent = jax.jvp(lambda p: outputs(p, x), (params,), (v,))
    _, x_tangent = jax.jvp(lambda inputs: outputs(params, inputs), (jnp.asarray(x),), (jnp.asarray(dx),))
    dy = np.rint(np.random.default_rng(seed + 1).normal(size=y.shape) * 8) / 8
    p_pull, x_pull = jax.vjp(outputs, params, jnp.asarray(x))[1](jnp.asarray(dy))

    fields = {"params": params, "x": x, "target": target, "v": v, "dx": dx, "dy": dy}
    fields |= {"output": y, "loss": total(params), "grad": jax.grad(total)(params)}
    fields |= {"hvp": jax.jvp(jax.grad(total), (params,), (v,))[1], "jvp": tangent, "x_jvp": x_tangent}
    fields |= {"vjp": p_pull, "x_vjp": x_pull}
    # J^T H J v with H the Hessian of the weighted loss by the outputs.
    curved = jax.jvp(jax.grad(lambda out: jnp.dot(share, losses(out))), (y,), (tangent,))[1]
    fields["gauss_newton_product"] = jax.vjp(lambda p: outputs(p, x), params)[1](curved)[0]
    if weights is not None:
        fields["weights"] = weights
    if full:
        fields["jacobian"] = jax.jacrev(lambda p: outputs(p, x))(params)
        fields["x_jacobian"] = jax.vmap(jax.jacrev(lambda row: output(layers, params, row)))(jnp.asarray(x))
        fields["hessian"] = jax.hessian(total)(params)
        fields["per_sample_grads"] = jax.jacrev(lambda p: losses(outputs(p, x)))(params)
    return {"input_shape": [n_in], "layers": layers, "loss": loss}, fields


def dense(units, activation="identity"):
    return {"type": "dense", "units": units, "activation": activation}


def cases():
    """Return {case: (description, arrays)}."""
    regression = [dense(8, "tanh"), dense(8, "tanh"), dense(1)]
    classes = [dense(7, "gelu"), dense(3)]
    weights = np.array([0.5, 2.0, 0.0, 1.25, 3.0, 1.0])
    cross_entropy = "softmax_cross_entropy"
    result = {
        "tanh_4_8_8_1": solve(regression, "mse", 6, 4, 1, full=True),
        "tanh_4_8_8_1_weighted": solve(regression, "mse", 6, 4, 1, weights),
        "gelu_5_7_3": solve(classes, cross_entropy, 5, 5, 2, full=True),
        "gelu_5_7_3_weighted": solve(classes, cross_entropy, 5, 5, 2, weights[:5]),
    }
    for name in ACTIVATIONS:
        result[f"{name}_hidden"] = solve([dense(5, name), dense(2)], "mse", 3, 3, 3)
        result[f"{name}_last"] = solve([dense(5), dense(2, name)], "mse", 3, 3, 4)
    for loss in ("softmax_cross_entropy", "binary_cross_entropy", "huber", "gaussian_nll"):
        result[f"{loss}_loss"] = solve([dense(5, "tanh"), dense(4)], loss, 5, 3, 5)
        result[f"{loss}_loss_weighted"] = solve([dense(5, "tanh"), dense(4)], loss, 5, 3, 5, weights[:5])
    return result
