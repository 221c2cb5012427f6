"""Derivatives beyond one gradient: Hessian-vector products, a Jacobian, many nets at once, a whole simulation."""

from __future__ import annotations

import collections

import numpy as np

from harness.work import Work
from workloads.rows import Row, aligned

FLEET = 1000  # nets, each with data of its own
STEPS, DT, STATES = 200, 0.05, 4  # of the rollout: two positions and two speeds
START = np.array([0.5, -0.3, 0.8, 0.1])


def nbprop(row: Row, threads: int) -> Work:
    name = row.name.split("_")[0]
    return {"hvp": hvp, "jacobian": jacobian, "fleet": fleet, "rollout": rollout}[name](row, threads)


def nbprop_gradient(row: Row, threads: int) -> Work:
    """What a Hessian-vector product is compared with: value_and_grad of the same loss."""
    import nbprop as nb
    from contenders.ours import arrays

    plan, params, x, target, grads, work = arrays(row, threads)

    def run(n: int) -> None:
        for _ in range(n):
            nb.value_and_grad(plan, params, x, target, grads, work)

    return Work(run)


def write(row: Row, threads: int) -> Work:
    """What a Jacobian is compared with: writing a matrix of the same size."""
    matrix = np.empty((row.batch, row.n_params))

    def run(n: int) -> None:
        for _ in range(n):
            matrix.fill(1.0)

    run(1)
    return Work(run)


# -- Hessian-vector products and the Jacobian --------------------------------------------------------------------


def direction(row: Row) -> np.ndarray:
    return aligned(np.random.default_rng(3).standard_normal(row.n_params))


def hvp(row: Row, threads: int) -> Work:
    import nbprop as nb
    from contenders.ours import arrays

    plan, params, x, target, out, work = arrays(row, threads)
    v = direction(row)

    def run(n: int) -> None:
        for _ in range(n):
            nb.hvp(plan, params, v, x, target, out, work)

    run(1)
    return Work(run, check=float(v @ out))


def jacobian(row: Row, threads: int) -> Work:
    import nbprop as nb
    from contenders.ours import arrays

    plan, params, x, _, _, work = arrays(row, threads)
    matrix = aligned(np.empty((row.batch, params.size)))

    def run(n: int) -> None:
        for _ in range(n):
            nb.jacobian(plan, params, x, matrix, work)

    run(1)
    return Work(run, check=float(np.linalg.norm(matrix)))


def jax_flat(row: Row):
    """(loss(flat, x, target), forward(flat, x), flat start)."""
    import jax
    from jax.flatten_util import ravel_pytree

    from contenders.peers import jax_model

    jax.config.update("jax_enable_x64", row.dtype == "float64")
    forward, loss = jax_model(row)
    flat, unravel = ravel_pytree(row.weights())
    return (lambda p, x, t: loss(unravel(p), x, t)), (lambda p, x: forward(unravel(p), x)), flat


def jax_jit(row: Row, threads: int) -> Work:
    import jax

    loss, forward, flat = jax_flat(row)
    if row.name.startswith("fleet"):
        return _jax_fleet(row, loss)
    x, target = row.data()
    if row.name.startswith("jacobian"):
        function, given = jax.jit(jax.jacrev(lambda p, x: forward(p, x)[:, 0])), jax.device_put((flat, x))
        check = float(np.linalg.norm(function(*given)))
    else:
        v = direction(row)

        def product(p, v, x, t):
            return jax.jvp(jax.grad(lambda p: loss(p, x, t)), (p,), (v,))[1]

        function, given = jax.jit(product), jax.device_put((flat, v, x, target))
        check = float(v @ np.asarray(function(*given)))
    return _calls(function, given, check)


def _calls(function, given, check: float) -> Work:
    import jax

    def run(n: int) -> None:
        for _ in range(n):
            result = function(*given)
        jax.block_until_ready(result)

    run(1)
    return Work(run, check=check)


# -- a fleet -------------------------------------------------------------------------------------------------------


def fleet_data(row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """thetas (FLEET, n_params), xs (FLEET, batch, in), ys (FLEET, batch, out)."""
    rng = np.random.default_rng(4)
    xs = rng.standard_normal((FLEET, row.batch, row.widths[0]))
    flat = np.concatenate([part.ravel() for layer in row.weights() for part in layer])
    thetas = flat + 0.1 * rng.standard_normal((FLEET, flat.size))
    arrays = thetas, xs, np.sin(xs.sum(axis=2, keepdims=True))
    return tuple(aligned(array.astype(row.dtype)) for array in arrays)


def fleet(row: Row, threads: int) -> Work:
    """A loop over nets in compiled code, divided among the threads."""
    import numba

    import nbprop as nb
    from contenders.ours import network

    plan = nb.plan(network(row), loss=row.loss, batch=row.batch, dtype=row.dtype)
    thetas, xs, ys = fleet_data(row)
    grads, bounds = np.empty_like(thetas), np.linspace(0, FLEET, threads + 1).astype(int)
    size = -(-plan.work_size // 64) * 64  # each thread's on a cache line of its own
    works = aligned(np.empty((threads, size), row.dtype))

    @numba.njit(parallel=threads > 1)
    def gradients(plan, thetas, xs, ys, grads, works, bounds):
        for share in numba.prange(len(works)):
            for k in range(bounds[share], bounds[share + 1]):
                nb.value_and_grad(plan, thetas[k], xs[k], ys[k], grads[k], works[share])

    def run(n: int) -> None:
        for _ in range(n):
            gradients(plan, thetas, xs, ys, grads, works, bounds)

    run(1)
    return Work(run, check=float(np.linalg.norm(grads)))


def _jax_fleet(row: Row, loss) -> Work:
    import jax

    given = jax.device_put(fleet_data(row))
    function = jax.jit(jax.vmap(jax.value_and_grad(loss)))
    return _calls(function, given, float(np.linalg.norm(function(*given)[1])))


# -- a rollout: x'' = network(x, x') - x, and half the square of the last state ------------------------------------

Data = collections.namedtuple("Data", "plan params grads works x y dy dx")


def rollout(row: Row, threads: int) -> Work:
    """Each step has a workspace of its own, which keeps what `backward` needs, as JAX's scan keeps it."""
    import numba

    import nbprop as nb
    from contenders.ours import network, start

    plan, params = nb.plan(network(row), batch=1), start(row)
    works = aligned(np.empty((STEPS, -(-plan.work_size // 8) * 8)))
    arrays = np.empty((STEPS, 1, 4)), np.empty((1, 2)), np.empty((1, 2)), np.empty((1, 4))
    data = Data(plan, params, aligned(np.zeros_like(params)), works, *arrays)
    kept, segment, lam = nb.rollout_buffers(STEPS, STATES)

    @numba.njit
    def step(after, x, t, data):
        for i in range(4):
            data.x[t, 0, i] = x[i]  # Numba takes 90 ns for data.x[t, 0] = x
        nb.forward(data.plan, data.params, data.x[t], data.y, data.works[t])
        for i in range(2):
            after[i] = x[i] + DT * x[i + 2]
            after[i + 2] = x[i + 2] + DT * (data.y[0, i] - x[i])

    @numba.njit
    def adjoint(lam, lam_after, x, t, data):
        for i in range(2):
            data.dy[0, i] = DT * lam_after[i + 2]
        nb.backward(data.plan, data.params, data.x[t], data.dy, data.grads, data.dx, data.works[t], True)
        for i in range(2):
            lam[i] = lam_after[i] - DT * lam_after[i + 2] + data.dx[0, i]
            lam[i + 2] = lam_after[i + 2] + DT * lam_after[i] + data.dx[0, i + 2]

    @numba.njit
    def last(lam, x, t, data):
        if t == STEPS:
            lam += x

    @numba.njit
    def gradients(n, start, kept, segment, lam, data):
        for _ in range(n):
            data.grads[:] = 0
            nb.rollout(step, start, STEPS, kept, segment, data)
            nb.rollout_adjoint(step, adjoint, last, STEPS, kept, segment, lam, data)

    def run(n: int) -> None:
        gradients(n, START, kept, segment, lam, data)

    run(1)
    return Work(run, check=float(np.linalg.norm(data.grads)))


def jax_scan(row: Row, threads: int) -> Work:
    import jax
    import jax.numpy as jnp

    _, forward, flat = jax_flat(row)

    def end(p, start):
        def step(x, _):
            force = forward(p, x[None])[0] - x[:2]
            return jnp.concatenate([x[:2] + DT * x[2:], x[2:] + DT * force]), None

        return 0.5 * jnp.sum(jax.lax.scan(step, start, None, length=STEPS)[0] ** 2)

    function, given = jax.jit(jax.grad(end)), jax.device_put((flat, START))
    return _calls(function, given, float(np.linalg.norm(function(*given))))


def torch(row: Row, threads: int) -> Work:
    import torch

    torch.set_num_threads(threads)
    parts = [torch.tensor(part, requires_grad=True) for layer in row.weights() for part in layer]
    start = torch.from_numpy(START)

    def gradient() -> float:
        for part in parts:
            part.grad = None
        place, speed = start[:2], start[2:]
        for _ in range(STEPS):
            h = torch.cat([place, speed])
            for w, b in zip(parts[:-2:2], parts[1:-2:2], strict=True):
                h = torch.tanh(h @ w + b)
            force = h @ parts[-2] + parts[-1] - place
            place, speed = place + DT * speed, speed + DT * force
        (0.5 * (place.square().sum() + speed.square().sum())).backward()
        return float(torch.cat([part.grad.flatten() for part in parts]).norm())

    def run(n: int) -> None:
        for _ in range(n):
            gradient()

    return Work(run, check=gradient())
