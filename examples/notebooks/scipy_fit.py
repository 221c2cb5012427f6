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
# # Fitting data with SciPy
#
# Forty noisy measurements of a decaying oscillation: few data, float64, and no noise in the loss itself. Second-order
# methods reach the minimum that mini-batches only approach.

# %%
import numpy as np
import scipy.optimize

import nbprop
import nbprop.plot

rng = np.random.default_rng(0)
t = np.sort(rng.uniform(0, 6, 40))[:, None]
truth = np.exp(-0.4 * t) * np.cos(3 * t)
measured = truth + 0.03 * rng.standard_normal(t.shape)

net = nbprop.network((1,), nbprop.standardize(), nbprop.dense(12, activation="tanh"), nbprop.dense(1), nbprop.rescale())
plan = nbprop.plan(net, loss="mse", batch=len(t))


def start(seed=0):
    params = nbprop.init(net, seed=seed)
    nbprop.fit_scaling(net, params, t, measured)  # units of data in the first and last layer, not trained
    return params


# %% [markdown]
# ## Three methods from the same start

# %%
losses = {}
for name, method in {"L-BFGS-B": "L-BFGS-B", "BFGS": "BFGS"}.items():
    params, found = start(), []
    nbprop.minimize(
        plan,
        params,
        t,
        measured,
        method,
        maxiter=300,
        callback=lambda intermediate_result: found.append(intermediate_result.fun),
    )
    losses[name] = found

fitted = start()
result = nbprop.least_squares(plan, fitted, t, measured, method="marquardt", max_nfev=100)
error = nbprop.value(plan, fitted, t, measured, nbprop.workspace(plan))
print(f"Levenberg-Marquardt: {error:.6f} after {result.nfev} evaluations; the noise alone is {0.03**2:.6f}")
losses["Levenberg-Marquardt, end"] = [error] * max(map(len, losses.values()))
axes = nbprop.plot.losses(losses)
axes.set(xlabel="iteration", ylabel="mean squared error")
assert error < 2e-3

# %% [markdown]
# ## The fit

# %%
dense_t = np.linspace(0, 6, 300)[:, None]
use = nbprop.plan(net, batch=300)
curve = np.empty_like(dense_t)
nbprop.forward(use, fitted, dense_t, curve, nbprop.workspace(use))
figure, (left, right) = nbprop.plot.panels(1, 2, size=(10, 3.8))
left.plot(t, measured, "o", label="measured")
left.plot(dense_t, curve, label="network")
left.plot(dense_t, np.exp(-0.4 * dense_t) * np.cos(3 * dense_t), "--", color="0.4", label="truth")
left.set(xlabel="t", ylabel="y")
left.legend()
y = np.empty_like(measured)
nbprop.forward(use, fitted, t, y, nbprop.workspace(use))
_ = nbprop.plot.predicted(measured, y, right)

# %% [markdown]
# ## How certain is it?
#
# Near the minimum the loss is a parabola, whose curvature the Gauss-Newton matrix gives. With the noise's variance it
# becomes a covariance of the parameters (Laplace's approximation), and the Jacobian carries it to the curve. A little
# is added to the diagonal, for directions that the data do not determine.

# %%
one = nbprop.plan(net, batch=len(dense_t))
jacobian_data, jacobian_curve = np.empty((len(t), net.n_params)), np.empty((len(dense_t), net.n_params))
nbprop.jacobian(plan, fitted, t, jacobian_data, nbprop.workspace(plan))
nbprop.jacobian(one, fitted, dense_t, jacobian_curve, nbprop.workspace(one))
trained = nbprop.trainable_mask(net) > 0
jd, jc = jacobian_data[:, trained], jacobian_curve[:, trained]
precision = jd.T @ jd / 0.03**2 + 0.1 * np.eye(trained.sum())
spread = np.sqrt(np.einsum("ij,ij->i", jc, np.linalg.solve(precision, jc.T).T))
figure, axes = nbprop.plot.panels()
axes.fill_between(dense_t[:, 0], curve[:, 0] - 2 * spread, curve[:, 0] + 2 * spread, alpha=0.3, label="two sigma")
axes.plot(dense_t, curve, label="network")
axes.plot(t, measured, "o", color="black", markersize=3, label="measured")
axes.set(xlabel="t", ylabel="y")
axes.legend()
assert np.isfinite(spread).all()

# %% [markdown]
# ## Any optimizer
#
# `objective` is a function of the parameters with its gradient, for whatever takes one, here with a penalty on the
# weights.

# %%
fun = nbprop.objective(plan, t, measured)
mask = nbprop.trainable_mask(net)


def with_penalty(theta):
    value, gradient = fun(theta)
    return value + 1e-5 * np.sum(mask * theta**2), (gradient + 2e-5 * theta) * mask


smooth = scipy.optimize.minimize(with_penalty, start(), jac=True, method="L-BFGS-B", options={"maxiter": 300})
print(smooth.fun, smooth.nit)
