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
# # Backpropagation through time
#
# A recurrent network is a deep one whose layers share their weights, one layer for each moment (Rumelhart, Hinton and
# Williams 1986; Werbos 1990). So its gradient is the same chain rule, over time. This notebook writes it out,
# compares it with nbprop, and looks at how far an error signal travels.

# %%
import numpy as np

import nbprop
import nbprop.plot

rng = np.random.default_rng(0)
T, inputs, units, n = 6, 2, 4, 3
net = nbprop.network((T, inputs), nbprop.rnn(units), nbprop.dense(1))
params = nbprop.init(net, seed=0)
p = nbprop.views(net, params)
{name: part.shape for name, part in p.items()}

# %% [markdown]
# ## Forward and backward, by hand
#
# h[t] = tanh(x[t] W + h[t-1] U + b) and y[t] = h[t] V + c. Backward, the error at time t is what its own output asks
# for, plus what comes back from the future.

# %%
names = list(p)
W, U, b = (p[name] for name in names[:3])
V, c = (p[name] for name in names[3:])
x, target = rng.standard_normal((n, T, inputs)), rng.standard_normal((n, T, 1))

h = np.zeros((T + 1, n, units))  # h[-1], the last row, is the state before the first moment: zeros
for t in range(T):
    h[t] = np.tanh(x[:, t] @ W + h[t - 1] @ U + b)
y = np.stack([h[t] @ V + c for t in range(T)], 1)
dy = 2 * (y - target) / target.size

dW, dU, db, from_future = np.zeros_like(W), np.zeros_like(U), np.zeros_like(b), np.zeros((n, units))
for t in reversed(range(T)):
    dz = (dy[:, t] @ V.T + from_future) * (1 - h[t] ** 2)
    dW += x[:, t].T @ dz
    dU += h[t - 1].T @ dz
    db += dz.sum(0)
    from_future = dz @ U.T  # the same U at every moment

# %%
plan = nbprop.plan(net, loss="mse", batch=n)
grads = np.empty_like(params)
loss = nbprop.value_and_grad(plan, params, x, target, grads, nbprop.workspace(plan))
g = nbprop.views(net, grads)
for name, ours in zip(names, (dW, dU, db)):
    assert np.allclose(g[name], ours, rtol=1e-9, atol=1e-13), name
assert np.isclose(loss, np.mean((y - target) ** 2))

# %% [markdown]
# ## How far does an error signal travel?
#
# Each moment back multiplies by U and by a slope. Over many moments the signal vanishes or explodes, unless something
# holds it: the LSTM's cell (Hochreiter and Schmidhuber 1997).


# %%
def reach(layer, moments=60, seed=0):
    """|dy(T) / dx(T - k)| for k = 0, 1, ..., relative to k = 0."""
    net = nbprop.network((moments, 1), layer, nbprop.dense(1))
    plan, params = nbprop.plan(net, batch=1), nbprop.init(net, seed=seed)
    x, dy = np.random.default_rng(1).standard_normal((1, moments, 1)), np.zeros((1, moments, 1))
    dy[0, -1] = 1
    dx, grads = np.empty_like(x), np.empty_like(params)
    nbprop.vjp(plan, params, x, dy, grads, dx, nbprop.workspace(plan))
    found = np.abs(dx[0, ::-1, 0])
    return found / found[0]


curves = {"rnn": reach(nbprop.rnn(16)), "gru": reach(nbprop.gru(16)), "lstm": reach(nbprop.lstm(16))}
axes = nbprop.plot.losses(curves)
_ = axes.set(xlabel="moments back", ylabel="what is left of the signal")

# %% [markdown]
# ## A task that needs memory
#
# The answer at the end is the first number of the sequence.

# %%
moments = 20
x = rng.choice([-1.0, 1.0], (600, moments, 1)).astype(np.float32)
target = x[:, 0].copy()
histories = {}
for name, layer in {"rnn": nbprop.rnn(16, output="last"), "lstm": nbprop.lstm(16, output="last")}.items():
    net = nbprop.network((moments, 1), layer, nbprop.dense(1))
    params = nbprop.init(net, seed=0, dtype=np.float32)
    history = nbprop.fit(net, params, x, target, "mse", lr=1e-2, batch=50, epochs=40, clip_norm=1.0)
    histories[name] = history.loss
nbprop.plot.losses(histories)
print({name: round(losses[-1], 4) for name, losses in histories.items()})
assert min(losses[-1] for losses in histories.values()) < 0.1
