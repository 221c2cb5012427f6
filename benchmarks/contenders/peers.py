"""The same work in PyTorch, JAX and scikit-learn, each written as an expert user of it would.

torch: modules, fused Adam, gradients set to None, nothing read back inside the loop, no dataloader. JAX: one jitted
step with donated buffers, called from Python ("jax-jit") or looped inside lax.scan ("jax-scan"). scikit-learn: its own
estimators, in float32 where they support it. The data are in memory, and everything is compiled and warmed up before
the first timed call. `check` is the loss at the tenth step (or the output, or the solver's number of iterations): it
shows that all contenders did the same work.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import numpy as np

from harness.work import Work
from workloads.growth import row_named
from workloads.rows import CHECK_STEPS, RATE, SOLVER_OPTIONS, Row

SCAN_STEPS = {"tiny_step": 200, "medium_step": 20, "large_step": 2}


def build(library: str, name: str, threads: int) -> Work:
    row = row_named(name)
    return {"torch": torch_work, "jax-jit": jax_work, "jax-scan": jax_scan_work, "sklearn": sklearn_work}[library](
        row, threads
    )


# torch --------------------------------------------------------------------------------------------


def torch_work(row: Row, threads: int) -> Work:
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)
    layers: list[torch.nn.Module] = []
    for w, b in row.weights():
        layer = torch.nn.Linear(*w.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(w.T))
            layer.bias.copy_(torch.from_numpy(b))
        layers += [layer, torch.nn.Tanh() if row.activation == "tanh" else torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    x, target = (torch.from_numpy(a) for a in row.data())
    loss_of = functional.cross_entropy if row.loss == "softmax_cross_entropy" else functional.mse_loss

    if row.kind == "sample":

        def sample(n: int) -> None:
            with torch.inference_mode():
                for _ in range(n):
                    model(x)

        with torch.inference_mode():
            return Work(sample, check=float(model(x)))

    if row.kind == "gradient":

        def gradient(n: int) -> None:
            for _ in range(n):
                model.zero_grad(set_to_none=True)
                loss_of(model(x), target).backward()

        return Work(gradient, check=float(loss_of(model(x), target).detach()))

    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)

    def steps(n: int) -> torch.Tensor:
        for _ in range(n):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(model(x), target)
            loss.backward()
            optimizer.step()
        return loss.detach()

    return Work(steps, check=float(steps(CHECK_STEPS)))


# JAX ----------------------------------------------------------------------------------------------


def jax_model(row: Row) -> tuple[Callable, Callable]:
    """forward(params, x) and loss(params, x, target)."""
    import jax
    import jax.numpy as jnp

    activation = jnp.tanh if row.activation == "tanh" else jax.nn.relu

    def forward(params, x):
        for w, b in params[:-1]:
            x = activation(x @ w + b)
        w, b = params[-1]
        return x @ w + b

    def loss(params, x, target):
        y = forward(params, x)
        if row.loss == "softmax_cross_entropy":
            picked = jnp.take_along_axis(y, target[:, None], axis=1)[:, 0]
            return jnp.mean(jax.nn.logsumexp(y, axis=1) - picked)
        return jnp.mean((y - target) ** 2)

    return forward, loss


def _jax_step(row: Row) -> tuple[Callable, tuple, tuple]:
    """step(carry, x, target) -> (carry, loss), the first carry (params, m, v, step), and the data, on the device."""
    import jax
    import jax.numpy as jnp

    if row.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    _, loss = jax_model(row)

    def step(carry, x, target):
        params, m, v, t = carry
        value, grads = jax.value_and_grad(loss)(params, x, target)
        t = t + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
        rate, scale = RATE / (1 - 0.9**t), 1 / jnp.sqrt(1 - 0.999**t)
        params = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) * scale + 1e-8), params, m, v)
        return (params, m, v, t), value

    weights = row.weights()
    zeros = [(np.zeros_like(w), np.zeros_like(b)) for w, b in weights]
    carry = jax.device_put((weights, zeros, zeros, np.float32(0)))
    x, target = row.data()
    return step, carry, jax.device_put((x, target.astype(np.int32) if target.ndim == 1 else target))


def jax_work(row: Row, threads: int) -> Work:
    import jax

    if row.kind == "solver":
        return _jax_solver(row)
    forward, loss = jax_model(row)
    if row.kind == "step":
        step, carry, (x, target) = _jax_step(row)
        compiled = jax.jit(step, donate_argnums=0)
        state = [jax.tree.map(lambda a: a.copy(), carry)]  # m and v start as the same zeros: donate copies

        def steps(n: int) -> jax.Array:
            carry = state[0]
            for _ in range(n):
                carry, value = compiled(carry, x, target)
            state[0] = carry
            return jax.block_until_ready(value)

        return Work(steps, check=float(steps(CHECK_STEPS)))

    params, (x, target) = jax.device_put((row.weights(), row.data()))
    if row.kind == "sample":
        function = functools.partial(jax.jit(forward), params, x)
        check = float(np.asarray(function())[0, 0])
    else:
        function = functools.partial(jax.jit(jax.value_and_grad(loss)), params, x, target)
        check = float(function()[0])

    def calls(n: int) -> None:
        for _ in range(n):
            result = function()
        jax.block_until_ready(result)

    return Work(calls, check=check)


def jax_scan_work(row: Row, threads: int) -> Work:
    import jax

    step, carry, (x, target) = _jax_step(row)

    def loop(carry, x, target, length):
        return jax.lax.scan(lambda c, _: step(c, x, target), carry, None, length=length)

    compiled = jax.jit(loop, donate_argnums=0, static_argnums=3)
    length = SCAN_STEPS[row.name]
    _, losses = compiled(jax.tree.map(lambda a: a.copy(), carry), x, target, CHECK_STEPS)
    state = [jax.tree.map(lambda a: a.copy(), carry)]

    def steps(n: int) -> None:
        carry = state[0]
        for _ in range(n):
            carry, _ = compiled(carry, x, target, length)
        state[0] = jax.block_until_ready(carry)

    return Work(steps, units=length, check=float(losses[-1]))


def _jax_solver(row: Row) -> Work:
    """SciPy's L-BFGS-B with JAX's gradient of one flat float64 vector, as jax.flatten_util is meant to be used."""
    import jax
    import scipy.optimize
    from jax.flatten_util import ravel_pytree

    jax.config.update("jax_enable_x64", True)
    _, loss = jax_model(row)
    start, unravel = ravel_pytree(row.weights())
    x, target = jax.device_put(row.data())
    compiled = jax.jit(jax.value_and_grad(lambda flat, x, target: loss(unravel(flat), x, target)))
    start = np.asarray(start)

    def fun(flat: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = compiled(flat, x, target)
        return float(value), np.asarray(gradient)

    def solve(n: int) -> scipy.optimize.OptimizeResult:
        for _ in range(n):
            result = scipy.optimize.minimize(fun, start, jac=True, method="L-BFGS-B", options=SOLVER_OPTIONS)
        return result

    return Work(solve, check=float(solve(1).nit))


# scikit-learn -------------------------------------------------------------------------------------


def sklearn_work(row: Row, threads: int) -> Work:
    """Estimators from their own random start: steps have no `check`; the solver's is its number of iterations."""
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    x, target = row.data()
    # It warns that 200 iterations or one epoch did not converge, which is the task.
    warnings.simplefilter("ignore")
    common = dict(hidden_layer_sizes=row.widths[1:-1], activation=row.activation, alpha=0.0, random_state=0, tol=0.0)
    if row.kind == "solver":
        regressor = MLPRegressor(solver="lbfgs", max_iter=200, max_fun=100_000, **common)

        def solve(n: int) -> None:
            for _ in range(n):
                regressor.fit(x, target[:, 0])

        solve(1)
        return Work(solve, check=float(regressor.n_iter_))

    batches, epochs = 8, 5
    x, target = np.tile(x, (batches, 1)), np.tile(target, batches)
    classifier = MLPClassifier(
        solver="adam", batch_size=row.batch, max_iter=epochs, n_iter_no_change=10**6, shuffle=False, **common
    )

    def fit(n: int) -> None:
        for _ in range(n):
            classifier.fit(x, target)

    return Work(fit, units=batches * epochs)
