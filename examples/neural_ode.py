"""A neural ordinary differential equation: dx/dt = network(x), fitted to noisy orbits of a spiral (Chen et al. 2018).

The network stands inside a compiled Runge-Kutta step. The adjoint of that step is four `vjp` calls, `nbprop.rollout_adjoint`
takes them back through time, and the compiled L-BFGS drives all orbits' fit at once. The learned field is then compared
with the true one on an orbit it has never seen.
"""

import collections

import numba
import numpy as np

import nbprop
from nbprop import solvers

STEPS, DT, ORBITS, NOISE = 30, 0.05, 8, 0.02
TRUE = np.array([[-0.1, 2.0], [-2.0, -0.1]])

net = nbprop.network((2,), nbprop.dense(32, activation="tanh"), nbprop.dense(2))
Data = collections.namedtuple("Data", "plan params grads work stages slopes carried back observed")


def true_field(x):
    return x**3 @ TRUE


@numba.njit
def step(x_next, x, t, data):
    """One step of the classical Runge-Kutta method for all orbits; the four stages stay in data."""
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
    """The way back through the stages: each one's slope moved the state and the next stage."""
    step(lam_x, x, t, data)  # the stages again; lam_x is overwritten below
    lam = lam_next.reshape(data.back.shape)
    total = lam.copy()
    for k, weight, advance in ((3, DT / 6, 0.0), (2, DT / 3, DT), (1, DT / 3, DT / 2), (0, DT / 6, DT / 2)):
        data.carried[:] = weight * lam + advance * data.back if k < 3 else weight * lam
        nbprop.vjp(data.plan, data.params, data.stages[k], data.carried, data.grads, data.back, data.work, True)
        total += data.back
    lam_x[:] = total.reshape(-1)


@numba.njit
def loss_gradient(lam, x, t, data):
    lam += 2 * (x - data.observed[t]) / data.observed.size


def make_data(orbits, observed=None):
    plan = nbprop.plan(net, batch=orbits)
    params = nbprop.init(net, seed=0)
    stages, carried = np.empty((2, 4, orbits, 2)), np.empty((2, orbits, 2))
    return Data(plan, params, np.empty_like(params), nbprop.workspace(plan), *stages, *carried, observed)


def simulate(params, start):
    """All states of the learned system from some starts, (STEPS + 1, orbits, 2)."""
    data = make_data(len(start), np.empty((1, 1)))
    data.params[:] = params
    kept, segment, _ = nbprop.rollout_buffers(STEPS, start.size)
    last = nbprop.rollout(step, start.reshape(-1), STEPS, kept, segment, data)
    return np.concatenate([kept, last[None]]).reshape(STEPS + 1, *start.shape)


def true_orbits(start, refine=20):
    states, x = [start], start
    for _ in range(STEPS):
        for _ in range(refine):
            middle = x + DT / refine / 2 * true_field(x)
            x = x + DT / refine * true_field(middle)
        states.append(x)
    return np.array(states)


def main():
    rng = np.random.default_rng(0)
    starts = rng.uniform(-1.0, 1.0, (ORBITS, 2))
    clean = true_orbits(starts)
    observed = (clean + NOISE * rng.standard_normal(clean.shape)).reshape(STEPS + 1, -1)
    data = make_data(ORBITS, observed)
    kept, segment, lam = nbprop.rollout_buffers(STEPS, starts.size, every=8)

    def loss_and_gradient(theta):
        data.params[:], data.grads[:] = theta, 0
        last = nbprop.rollout(step, observed[0], STEPS, kept, segment, data).copy()
        nbprop.rollout_adjoint(step, adjoint, loss_gradient, STEPS, kept, segment, lam, data)
        states = simulate(theta, observed[0].reshape(-1, 2)).reshape(STEPS + 1, -1)
        assert np.array_equal(states[-1], last)
        return float(((states - observed) ** 2).mean()), data.grads.copy()

    theta, direction, h = data.params.copy(), rng.standard_normal(net.n_params), 1e-6
    slope = loss_and_gradient(theta)[1] @ direction
    tried = (loss_and_gradient(theta + h * direction)[0] - loss_and_gradient(theta - h * direction)[0]) / (2 * h)
    print(f"slope along a random direction: adjoint {slope:.8f}, central difference {tried:.8f}")
    result = solvers.lbfgs(loss_and_gradient, theta, maxiter=400)
    before = loss_and_gradient(theta)[0]
    print(f"loss {before:.5f} -> {result.fun:.5f} in {result.nit} iterations; the noise alone is {NOISE**2:.5f}")
    unseen = np.array([[0.9, -0.6]])
    error = np.abs(simulate(result.x, unseen) - true_orbits(unseen)).max()
    print(f"an orbit it has not seen: largest error {error:.3f} within {STEPS * DT:.1f} s")


if __name__ == "__main__":
    main()
