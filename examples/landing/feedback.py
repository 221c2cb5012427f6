"""A network that lands from any start: it maps the state to throttle and angle, and is trained through the rollout."""

import collections

import numba
import numpy as np
from landing.dynamics import GRAVITY, STEPS, fly, fly_back

import nbprop

DT, STARTS = 1.25, 256  # seconds per step; landers in training
MISS, FUEL = np.array([10.0, 10.0, 1.0, 1.0]), 20.0  # m, m/s and kg, each of which adds 1 to the loss
Feedback = collections.namedtuple("Feedback", "plan params grads work x y dy dx")
net = nbprop.network((5,), nbprop.dense(16, activation="tanh"), nbprop.dense(16, activation="tanh"), nbprop.dense(2))


@numba.njit
def look(data, s, t):
    """Write the inputs of the network for each lander to data.x, its outputs to data.y: throttle logit and angle."""
    left = (STEPS - t) * DT
    for i in range(data.x.shape[0]):
        for k in range(4):
            data.x[i, k] = s[5 * i + k] / (GRAVITY * left * (left if k < 2 else 1.0))
        data.x[i, 4] = left / (STEPS * DT)
    nbprop.forward(data.plan, data.params, data.x, data.y, data.work)


@numba.njit
def feedback_step(after, s, t, data):
    look(data, s, t)
    for i in range(data.x.shape[0]):
        throttle = 1 / (1 + np.exp(-data.y[i, 0]))
        fly(after[5 * i : 5 * i + 5], s[5 * i : 5 * i + 5], throttle, data.y[i, 1], DT)


@numba.njit
def feedback_adjoint(lam, lam_after, s, t, data):
    look(data, s, t)
    for i in range(data.x.shape[0]):
        here, throttle = slice(5 * i, 5 * i + 5), 1 / (1 + np.exp(-data.y[i, 0]))
        by_throttle, data.dy[i, 1], _ = fly_back(lam[here], lam_after[here], s[here], throttle, data.y[i, 1], DT)
        data.dy[i, 0] = by_throttle * throttle * (1 - throttle)
    nbprop.vjp(data.plan, data.params, data.x, data.dy, data.grads, data.dx, data.work, True)
    left = (STEPS - t) * DT
    for i in range(data.x.shape[0]):
        for k in range(4):
            lam[5 * i + k] += data.dx[i, k] / (GRAVITY * left * (left if k < 2 else 1.0))


@numba.njit
def miss(lam, s, t, data):
    """The gradient of the mean over landers of the sum of (final state / MISS)^2 - mass / FUEL."""
    if t == STEPS:
        for i in range(data.x.shape[0]):
            for k in range(4):
                lam[5 * i + k] += 2 * s[5 * i + k] / MISS[k] ** 2 / data.x.shape[0]
            lam[5 * i + 4] -= 1 / FUEL / data.x.shape[0]


def random_starts(rng, n, spread):
    return np.array([0, 1200, 0, -25, 1000]) + spread * rng.uniform(-1, 1, (n, 5)) * [400, 300, 20, 15, 0]


def pilot(params, n):
    plan, (x, dx), (y, dy) = nbprop.plan(net, batch=n), np.empty((2, n, 5)), np.empty((2, n, 2))
    return Feedback(plan, params, np.empty_like(params), nbprop.workspace(plan), x, y, dy, dx)


def train(rng, iterations):
    starts, data = random_starts(rng, STARTS, 1.2), pilot(nbprop.init(net, seed=0), STARTS)
    kept, segment, lam = nbprop.rollout_buffers(STEPS, starts.size)

    def loss_and_gradient(theta):
        data.params[:], data.grads[:] = theta, 0
        end = nbprop.rollout(feedback_step, starts.reshape(-1), STEPS, kept, segment, data).reshape(-1, 5).copy()
        nbprop.rollout_adjoint(feedback_step, feedback_adjoint, miss, STEPS, kept, segment, lam, data)
        return ((end[:, :4] / MISS) ** 2).sum() / STARTS - end[:, 4].mean() / FUEL, data.grads.copy()

    return nbprop.lbfgs(loss_and_gradient, data.params.copy(), memory=20, maxiter=iterations).x


def judge(params, starts):
    """All states (STEPS, n, 5) of n landers, and the last ones (n, 5)."""
    kept, segment, _ = nbprop.rollout_buffers(STEPS, starts.size)
    end = nbprop.rollout(feedback_step, starts.reshape(-1), STEPS, kept, segment, pilot(params, len(starts)))
    return kept.reshape(STEPS, -1, 5), end.reshape(-1, 5)
