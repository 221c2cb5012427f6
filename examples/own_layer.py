"""A layer of your own, without touching the package: a periodic one that learns its frequency.

"Snake" (Ziyin, Hartwig and Ueda 2020, equation 3) lets a network continue a wave beyond its data:
y = x + sin(a x)^2 / a, with one a for each feature.
"""

import numba
import numpy as np

import nbprop


@numba.njit
def snake_forward(y, x, a, n, features):
    """y OUT (n, features), x IN (n, features), a IN (features,): all flat."""
    for i in range(n):
        for j in range(features):
            value = x[i * features + j]
            y[i * features + j] = value + np.sin(a[j] * value) ** 2 / a[j]


@numba.njit
def snake_backward(dx, da, dy, x, y, a, n, features):
    """dy/dx = 1 + sin(2 a x); dy/da = x sin(2 a x) / a - sin(a x)^2 / a^2, summed over the samples."""
    da[:] = 0
    for i in range(n):
        for j in range(features):
            k = i * features + j
            double = np.sin(2 * a[j] * x[k])
            dx[k] = dy[k] * (1 + double)
            da[j] += dy[k] * (x[k] * double / a[j] - (np.sin(a[j] * x[k]) / a[j]) ** 2)


snake = nbprop.custom("snake", snake_forward, snake_backward, parameters=lambda shape: {"frequency": (shape, "ones")})


def main():
    net = nbprop.network((1,), nbprop.dense(24), snake(), nbprop.dense(1))
    errors = nbprop.gradcheck(net, "mse")
    print("gradcheck:", ", ".join(f"{name} {error:.0e}" for name, error in errors.items()))

    x = np.linspace(-4, 4, 160)[:, None]
    target = np.sin(2 * x) + 0.3 * x
    plan, params = nbprop.plan(net, loss="mse", batch=len(x)), nbprop.init(net, seed=0)
    result = nbprop.minimize(plan, params, x, target, maxiter=500)
    print(f"mse {result.fun:.2g} after {result.nit} iterations: {result.message}")

    beyond = np.linspace(4, 6, 40)[:, None]
    y = np.empty_like(beyond)
    nbprop.forward(plan, params, beyond, y, nbprop.workspace(plan))
    error = np.sqrt(np.mean((y - np.sin(2 * beyond) - 0.3 * beyond) ** 2))
    print(f"beyond the data, on 4..6, the error is {error:.3f} (root mean square)")


if __name__ == "__main__":
    main()
