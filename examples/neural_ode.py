"""A neural ordinary differential equation: dx/dt = network(x), fitted to noisy orbits of a spiral (Chen et al. 2018).

The network is evaluated inside a compiled Runge-Kutta step. The adjoint of that step is four `vjp` calls, and
`nbprop.rollout_adjoint` runs it backwards through time; the compiled L-BFGS fits all orbits at once.
"""

import collections

import numba
import numpy as np

import nbprop

STEPS, DT, ORBITS, NOISE = 30, 0.05, 8, 0.02
TRUE = np.array([[-0.1, 2.0], [-2.0, -0.1]])

net = nbprop.network((2,), nbprop.dense(32, activation="tanh"), nbprop.dense(2))
Data = collections.namedtuple("Data", "plan params grads work stages slopes carried back observed")


@numba.njit
def step(x_next, x, t, data):
    """One step of the classical Runge-Kutta method for all orbits; the four stages are kept in data."""
    shape = data.stages[0].shape
    for k, advance in enumerate((0.0, DT / 2, DT / 2, DT)):
        data.stages[k] = x.reshape(shape)
        if k > 0:
            data.stages[k] += advance * data.slopes[k - 1]
        nbprop.forward(data.plan, data.params, data.stages[k], data.slopes[k], data.work)
    s = data.slopes
    x_next[:] = x + (DT / 6) * (s[0] + 2 * s[1] + 2 * s[2] + s[3]).reshape(-1)


@numba.njit
def adjoint(lam_x, lam_next, x, t, data):
    """The backward pass through the stages: each one's slope moved the state and the next stage."""
    step(lam_x, x, t, data)  # the stages again; lam_x is overwritten below
    lam, total = lam_next.reshape(data.back.shape), lam_next.copy().reshape(data.back.shape)
    for k, weight, advance in ((3, DT / 6, 0.0), (2, DT / 3, DT), (1, DT / 3, DT / 2), (0, DT / 6, DT / 2)):
        data.carried[:] = weight * lam + advance * data.back if k < 3 else weight * lam
        nbprop.vjp(data.plan, data.params, data.stages[k], data.carried, data.grads, data.back, data.work, True)
        total += data.back
    lam_x[:] = total.reshape(-1)


@numba.njit
def loss_gradient(lam, x, t, data):
    lam += 2 * (x - data.observed[t]) / data.observed.size


def make_data(orbits, observed):
    plan, params = nbprop.plan(net, batch=orbits), nbprop.init(net, seed=0)
    stages, carried = np.empty((2, 4, orbits, 2)), np.empty((2, orbits, 2))
    return Data(plan, params, np.empty_like(params), nbprop.workspace(plan), *stages, *carried, observed)


def simulate(data, start, kept, segment):
    """All states of the learned system, (STEPS + 1, orbits, 2)."""
    last = nbprop.rollout(step, start.reshape(-1), STEPS, kept, segment, data)
    return np.concatenate([kept, last[None]]).reshape(STEPS + 1, -1, 2)


def true_orbits(start, refine=20):
    states, x, h = [start], start, DT / refine
    for _ in range(STEPS):
        for _ in range(refine):
            x = x + h * (x + h / 2 * (x**3 @ TRUE)) ** 3 @ TRUE
        states.append(x)
    return np.array(states)


def main():
    rng = np.random.default_rng(0)
    starts = rng.uniform(-1.0, 1.0, (ORBITS, 2))
    observed = true_orbits(starts) + NOISE * rng.standard_normal((STEPS + 1, ORBITS, 2))
    data = make_data(ORBITS, observed.reshape(STEPS + 1, -1))
    kept, segment, lam = nbprop.rollout_buffers(STEPS, starts.size)

    def loss_and_gradient(theta):
        data.params[:], data.grads[:] = theta, 0
        states = simulate(data, observed[0], kept, segment)
        nbprop.rollout_adjoint(step, adjoint, loss_gradient, STEPS, kept, segment, lam, data)
        return float(((states - observed) ** 2).mean()), data.grads.copy()

    theta, direction, h = data.params.copy(), rng.standard_normal(net.n_params), 1e-6
    before, gradient = loss_and_gradient(theta)
    tried = (loss_and_gradient(theta + h * direction)[0] - loss_and_gradient(theta - h * direction)[0]) / (2 * h)
    print(f"slope along a random direction: adjoint {gradient @ direction:.8f}, central difference {tried:.8f}")
    result = nbprop.lbfgs(loss_and_gradient, theta, maxiter=400)
    print(f"loss {before:.5f} -> {result.fun:.5f} in {result.nit} iterations; the noise alone is {NOISE**2:.5f}")
    unseen, one = np.array([[0.9, -0.6]]), make_data(1, observed[0])
    one.params[:] = result.x
    error = np.abs(simulate(one, unseen, *nbprop.rollout_buffers(STEPS, 2)[:2]) - true_orbits(unseen)).max()
    print(f"an orbit it has not seen: largest error {error:.3f} within {STEPS * DT:.1f} s")


if __name__ == "__main__":
    main()
