# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A network in a simulation
#
# A cart carries a pole. A network sees the state and pushes the cart, a hundred times in five seconds, inside
# compiled code; the gradient of the whole simulation teaches it to balance. `rollout` runs it forward,
# `rollout_adjoint` backward.

# %%
import collections

import numba
import numpy as np

import nbprop
import nbprop.plot

STEPS, DT, GRAVITY = 100, 0.05, 9.81
net = nbprop.network((4,), nbprop.dense(16, activation="tanh"), nbprop.dense(1))
plan = nbprop.plan(net, batch=1)
Data = collections.namedtuple("Data", "plan params grads work x push d_push d_x")

# %% [markdown]
# ## One step, and its adjoint
#
# The state is (place, speed, angle, angular speed), linearized about the upright pole. The step is linear but for the
# network, so the adjoint is its transpose, with `vjp` for the network. It is written once and checked below.


# %%
@numba.njit
def step(x_next, x, t, data):
    for i in range(4):
        data.x[0, i] = x[i]
    nbprop.forward(data.plan, data.params, data.x, data.push, data.work)
    push = data.push[0, 0]
    x_next[0] = x[0] + DT * x[1]
    x_next[1] = x[1] + DT * push
    x_next[2] = x[2] + DT * x[3]
    x_next[3] = x[3] + DT * (GRAVITY * x[2] - push)


@numba.njit
def adjoint(lam_x, lam_next, x, t, data):
    for i in range(4):
        data.x[0, i] = x[i]
    data.d_push[0, 0] = DT * (lam_next[1] - lam_next[3])
    nbprop.vjp(data.plan, data.params, data.x, data.d_push, data.grads, data.d_x, data.work, True)
    lam_x[0] = lam_next[0]
    lam_x[1] = lam_next[1] + DT * lam_next[0]
    lam_x[2] = lam_next[2] + DT * GRAVITY * lam_next[3]
    lam_x[3] = lam_next[3] + DT * lam_next[2]
    for i in range(4):
        lam_x[i] += data.d_x[0, i]


@numba.njit
def loss_gradient(lam, x, t, data):
    """Of the mean over time of angle^2 + place^2 / 10."""
    lam[2] += 2 * x[2] / STEPS
    lam[0] += 0.2 * x[0] / STEPS


# %%
params = nbprop.init(net, seed=0)
data = Data(
    plan, params, np.zeros_like(params), nbprop.workspace(plan),
    np.empty((1, 4)), np.empty((1, 1)), np.empty((1, 1)), np.empty((1, 4)),
)  # fmt: skip
kept, segment, lam = nbprop.rollout_buffers(STEPS, n_states=4)


def simulate(start):
    """All states, (STEPS + 1, 4)."""
    end = nbprop.rollout(step, start, STEPS, kept, segment, data)
    return np.vstack([kept, end])


def cost(states):
    return float((states[:, 2] ** 2 + 0.1 * states[:, 0] ** 2).sum() / STEPS)


def gradient(start):
    data.grads[:] = 0
    states = simulate(start)
    nbprop.rollout_adjoint(step, adjoint, loss_gradient, STEPS, kept, segment, lam, data)
    return cost(states), data.grads.copy()


# %% [markdown]
# ## Check the adjoint
#
# Along a random direction of the parameters, against a central difference.

# %%
start = np.array([0.0, 0.0, 0.02, 0.0])
direction, h = np.random.default_rng(0).standard_normal(net.n_params), 1e-6
_, exact = gradient(start)
before = params.copy()
params[:] = before + h * direction
up = cost(simulate(start))
params[:] = before - h * direction
down = cost(simulate(start))
params[:] = before
print((up - down) / (2 * h), exact @ direction)
assert np.isclose((up - down) / (2 * h), exact @ direction, rtol=1e-5)

# %% [markdown]
# ## Learn
#
# Without a push the pole falls e-fold every third of a second, so gradients are enormous at first; their length is
# limited.

# %%
rng = np.random.default_rng(1)
state, costs = nbprop.optimizer_state("adam", net.n_params), []
for episode in range(600):
    value, grads = gradient(np.array([0.0, 0.0, *rng.uniform(-0.1, 0.1, 2)]))
    nbprop.clip_norm(grads, 1.0)
    nbprop.adam(params, grads, state, episode, lr=nbprop.schedules.cosine(episode, 2e-2, 600))
    costs.append(value)
axes = nbprop.plot.losses(costs)
_ = axes.set(xlabel="episode", ylabel="cost")

# %%
states = simulate(np.array([0.0, 0.0, 0.1, 0.0]))
figure, axes = nbprop.plot.panels()
time = DT * np.arange(STEPS + 1)
axes.plot(time, states[:, 2], label="angle (rad)")
axes.plot(time, states[:, 0], label="place (m)")
axes.set(xlabel="time (s)", title="released at 0.1 rad")
axes.legend()
print("angle at the end:", states[-1, 2])
assert abs(states[-1, 2]) < 0.1
