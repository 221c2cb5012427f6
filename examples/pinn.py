"""A boundary-value problem solved by a network with its derivative dN/dx in the loss (Lagaris, Likas, Fotiadis 1998).

Bratu's problem, u'' + e^u = 0 with u(0) = u(1) = 0, as a system: u' = w, w' = -e^u. A network N(x) with two outputs
gives u = x (1 - x) N_1, which satisfies the boundary conditions by construction, and w = N_2. The loss is the mean
square of both equations' residuals. N' = dN/dx is a `jvp` along x; the gradient of the loss through N' is the mixed
derivative with respect to parameters and x that `hvp` computes for a direction of x. --picture PATH draws the solution.
"""

import numpy as np
import scipy.optimize

import nbprop
from nbprop.io.pictures import picture_option, save_picture

POINTS = 40
net = nbprop.network((1,), nbprop.dense(20, activation="tanh"), nbprop.dense(2))
plan = nbprop.plan(net, loss="mse", batch=POINTS)
x, ones, zero = np.linspace(0, 1, POINTS)[:, None], np.ones((POINTS, 1)), np.zeros(net.n_params)
work, grads, mixed = nbprop.workspace(plan), np.empty(net.n_params), np.empty(net.n_params)
y, y_dot = np.empty((POINTS, 2)), np.empty((POINTS, 2))
bump, slope = (x * (1 - x))[:, 0], (1 - 2 * x)[:, 0]


def loss_and_gradient(theta):
    nbprop.forward(plan, theta, x, y, work)
    nbprop.jvp(plan, theta, None, x, ones, y_dot, work)
    u = bump * y[:, 0]
    first = slope * y[:, 0] + bump * y_dot[:, 0] - y[:, 1]  # u' - w
    second = y_dot[:, 1] + np.exp(u)  # w' + e^u
    by_y = 2 / POINTS * np.stack([slope * first + bump * np.exp(u) * second, -first], 1)
    by_y_dot = 2 / POINTS * np.stack([bump * first, second], 1)
    # The gradient is by_y^T dN/dp + by_y_dot^T dN'/dp. For this target, d(mean squared error)/dy is
    # by_y_dot, so hvp along x gives the second term, plus dN/dp^T N' / POINTS from the change of y - target.
    nbprop.hvp(plan, theta, zero, x, y - POINTS * by_y_dot, mixed, work, dx=ones)
    nbprop.vjp(plan, theta, x, by_y - y_dot / POINTS, grads, None, work)
    return float((first**2 + second**2).mean()), grads + mixed


def analytic(x):
    """u = 2 log(cosh(a / 4) / cosh(a (x - 1/2) / 2)) with a = sqrt(2) cosh(a / 4), the lower branch."""
    a = scipy.optimize.brentq(lambda a: a - np.sqrt(2) * np.cosh(a / 4), 1, 2)
    return 2 * np.log(np.cosh(a / 4) / np.cosh(a * (x - 0.5) / 2))


def draw(path, theta):
    from nbprop import plot

    nbprop.forward(plan, theta, x, y, work)
    figure, (left, right) = plot.panels(1, 2, size=(9, 3.5))
    left.plot(x, analytic(x), label="analytic")
    left.plot(x, bump * y[:, 0], "o", markersize=3, label="network")
    left.legend()
    left.set(xlabel="x", ylabel="u")
    right.plot(x, bump * y[:, 0] - analytic(x[:, 0]))
    right.set(xlabel="x", ylabel="error of u")
    save_picture(figure, path)


def main():
    picture = picture_option(__doc__, "the solution and its error")
    theta, direction, h = nbprop.init(net, seed=1), np.random.default_rng(0).standard_normal(net.n_params), 1e-6
    exact = loss_and_gradient(theta)[1] @ direction
    tried = (loss_and_gradient(theta + h * direction)[0] - loss_and_gradient(theta - h * direction)[0]) / (2 * h)
    print(f"slope along a random direction: exact {exact:.8f}, central difference {tried:.8f}")
    result = nbprop.lbfgs(loss_and_gradient, theta, memory=20, maxiter=1500)
    print(f"mean square of the residuals {result.fun:.1e} after {result.nit} iterations")
    nbprop.forward(plan, result.x, x, y, work)
    print(f"largest error of u {np.abs(bump * y[:, 0] - analytic(x[:, 0])).max():.1e}, of up to {analytic(0.5):.4f}")
    if picture:
        draw(picture, result.x)


if __name__ == "__main__":
    main()
