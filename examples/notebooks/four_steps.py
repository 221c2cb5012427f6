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
# # The four steps, by hand
#
# A network of two layers learns one step, twice: with NumPy, every derivative written out, and with nbprop. Forward,
# error, backward, update; the numbers agree to rounding.

# %%
import numpy as np

import nbprop
import nbprop.plot

rng = np.random.default_rng(0)
x = np.array([[0.5, -1.0], [1.0, 0.25], [-0.5, 0.75]])  # three samples of two numbers
target = np.array([[1.0], [0.0], [-1.0]])

# %% [markdown]
# The parameters of a network are one flat array; `views` gives each part its name and shape.

# %%
net = nbprop.network((2,), nbprop.dense(3, activation="tanh"), nbprop.dense(1))
params = nbprop.init(net, seed=1)
p = nbprop.views(net, params)
w0, b0, w1, b1 = (p[name] for name in ("0.dense.weight", "0.dense.bias", "1.dense.weight", "1.dense.bias"))
{name: part.shape for name, part in p.items()}

# %% [markdown]
# ## 1 Forward
#
# Each layer multiplies, adds and bends.

# %%
z = x @ w0 + b0
h = np.tanh(z)
y = h @ w1 + b1
y

# %% [markdown]
# ## 2 Error
#
# The loss is the mean of the squared differences. Its derivative by the outputs is the error signal that everything
# else follows from.

# %%
n = len(x)
loss = np.mean((y - target) ** 2)
dy = 2 * (y - target) / n
loss, dy

# %% [markdown]
# ## 3 Backward
#
# The chain rule, from the output to the input. Where the forward pass multiplied by a matrix, the backward pass
# multiplies by its transpose; where it bent, the backward pass multiplies by the slope there, which for tanh is one
# minus the square of its value. The gradient of a weight is what came in, times the error signal that came back.

# %%
dw1, db1 = h.T @ dy, dy.sum(0)
dh = dy @ w1.T
dz = dh * (1 - h**2)
dw0, db0 = x.T @ dz, dz.sum(0)

# %% [markdown]
# nbprop does these three steps in one call. Its gradient has the layout of the parameters, so that `views` names its
# parts, too.

# %%
plan = nbprop.plan(net, loss="mse", batch=n)
grads = np.empty_like(params)
assert np.isclose(nbprop.value_and_grad(plan, params, x, target, grads, nbprop.workspace(plan)), loss, rtol=1e-12)
g = nbprop.views(net, grads)
for name, ours in {"0.dense.weight": dw0, "0.dense.bias": db0, "1.dense.weight": dw1, "1.dense.bias": db1}.items():
    assert np.allclose(g[name], ours, rtol=1e-10, atol=1e-14), name
g

# %% [markdown]
# Is it the derivative? Nudge one weight and look.

# %%
nudged = params.copy()
nudged[0] += 1e-6
difference = (nbprop.value(plan, nudged, x, target, nbprop.workspace(plan)) - loss) / 1e-6
print(difference, grads[0])
assert np.isclose(difference, grads[0], rtol=1e-4)

# %% [markdown]
# ## 4 Update
#
# A small step against the gradient lowers the loss.

# %%
updated = params - 0.1 * grads
after = nbprop.value(plan, updated, x, target, nbprop.workspace(plan))
print(f"{loss:.4f} -> {after:.4f}")
assert after < loss

# %% [markdown]
# ## The same as a picture
#
# `trace` walks the step one operation at a time. Elastics pull the outputs towards the targets; the arrows are the
# forces that backpropagation computes for every unit. `found.save("step.html")` makes a page that steps through it.

# %%
found = nbprop.trace(plan, params, x, target, lr=0.1)
_ = nbprop.plot.trace(found, sample=0)

# %%
for step in found.steps:
    print(f"{step.phase:8} {step.layer:8} {step.kernel}")
assert np.isclose(found.loss_after, after, rtol=1e-12)
