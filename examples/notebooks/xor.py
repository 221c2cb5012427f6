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
# # XOR and its loss surface
#
# Exclusive or is the smallest problem that a single layer cannot solve (Minsky and Papert 1969) and that a hidden
# layer can learn (Rumelhart, Hinton and Williams 1986). With so few weights one can look at the surface that learning
# walks on.

# %%
import numpy as np

import nbprop
import nbprop.plot

x = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
target = np.array([[0.0], [1.0], [1.0], [0.0]])
labels = target[:, 0].astype(int)

# %% [markdown]
# ## One layer is not enough
#
# Its best answer is a half everywhere.

# %%
single = nbprop.network((2,), nbprop.dense(1, activation="sigmoid"))
plan = nbprop.plan(single, loss="mse", batch=4)
params = nbprop.init(single, seed=0)
result = nbprop.minimize(plan, params, x, target, maxiter=200)
print(f"best mean squared error {result.fun:.4f}")
assert result.fun > 0.249

# %% [markdown]
# ## Two hidden units are

# %%
net = nbprop.network((2,), nbprop.dense(2, activation="tanh"), nbprop.dense(1, activation="sigmoid"))
plan = nbprop.plan(net, loss="mse", batch=4)
work = nbprop.workspace(plan)


def learn(seed, steps=4000, lr=0.5):
    """Gradient descent with momentum from random weights: the losses and all parameters on the way."""
    params, grads = nbprop.init(net, seed=seed), np.empty(net.n_params)
    state = nbprop.optimizer_state("momentum", net.n_params)
    losses, path = [], []
    for step in range(steps):
        losses.append(nbprop.value_and_grad(plan, params, x, target, grads, work))
        path.append(params.copy())
        nbprop.momentum(params, grads, state, step, lr)
    return losses, np.array(path)


runs = {f"seed {seed}": learn(seed) for seed in range(4)}
_ = nbprop.plot.losses({name: losses for name, (losses, _) in runs.items()})

# %% [markdown]
# Some runs reach 0, others may stay in a local minimum or on a plateau: the surface is not convex. What the best run
# has learned, as a picture over the plane:

# %%
losses, path = min(runs.values(), key=lambda run: run[0][-1])
print(f"{losses[0]:.3f} -> {losses[-1]:.6f}")
assert losses[-1] < 0.01
_ = nbprop.plot.decision_surface(net, path[-1], x, labels)

# %% [markdown]
# ## The surface
#
# A plane through the nine-dimensional space of parameters: from the start to the end of that run, and a direction
# across it that is chosen at random. The loss over this plane, and the run's path projected onto it:

# %%
along = path[-1] - path[0]
across = np.random.default_rng(0).standard_normal(net.n_params)
across -= along * (across @ along) / (along @ along)
across *= np.linalg.norm(along) / np.linalg.norm(across)

a, b = np.meshgrid(np.linspace(-0.3, 1.4, 60), np.linspace(-0.8, 0.8, 50))
surface = np.array(
    [nbprop.value(plan, path[0] + s * along + t * across, x, target, work) for s, t in zip(a.flat, b.flat, strict=True)]
).reshape(a.shape)
figure, axes = nbprop.plot.panels(size=(6.5, 4.2))
drawn = axes.contourf(a, b, surface, levels=20, cmap="cividis")
figure.colorbar(drawn, label="mean squared error")
steps = path - path[0]
axes.plot(steps @ along / (along @ along), steps @ across / (across @ across), color="white", linewidth=2)
axes.plot([0, 1], [0, 0], "o", color="white")
_ = axes.set(xlabel="from start to end", ylabel="across", title="The loss around one run's path")

# %% [markdown]
# Long flat stretches are where the gradient is small and learning slow: the plateau of the curves above. The
# curvature at the end tells how flat the valley is: the Hessian is a 9 x 9 matrix here, and exact.

# %%
hessian = np.empty((net.n_params, net.n_params))
nbprop.hessian(plan, path[-1].copy(), x, target, hessian, work)
print("curvatures:", np.round(np.linalg.eigvalsh(hessian), 5))
assert np.allclose(hessian, hessian.T, atol=1e-9)
