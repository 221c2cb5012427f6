"""Fit a curve with SciPy under bounds: a network that can only rise, because its weights may not be negative.

The yield of a reaction is measured with noise. The reaction is irreversible, so the curve should never fall. A sum of
tanh functions with nonnegative weights is monotone, so a bound on the weights is all it takes, and L-BFGS-B satisfies
it exactly.

Run: python examples/curve_fit_bounds.py
"""

import numpy as np

import nbprop


def measure(n=40, seed=0):
    """Noisy measurements of a yield that rises in two steps: times (n, 1) and yields (n, 1), float64."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.uniform(-3, 3, n))[:, None]
    return time, truth(time) + 0.1 * rng.normal(size=time.shape)


def truth(time):
    return 0.5 / (1 + np.exp(-4 * (time + 1.5))) + 0.5 / (1 + np.exp(-4 * (time - 1.5)))


def fit(time, measured, rising):
    """The fitted parameters and SciPy's result; `rising` bounds the weights below by 0."""
    net = nbprop.network((1,), nbprop.dense(12, activation="tanh"), nbprop.dense(1))
    plan = nbprop.plan(net, loss="mse", batch=len(time), dtype=np.float64)
    params = nbprop.init(net, seed=1)
    bounds = None
    if rising:
        low = np.full(net.n_params, -np.inf)
        for name in ("0.dense.weight", "1.dense.weight"):
            nbprop.views(net, low)[name][:] = 0
            start = nbprop.views(net, params)[name]
            np.abs(start, out=start)  # the starting point must satisfy the bounds
        bounds = (low, np.inf)
    result = nbprop.minimize(plan, params, time, measured, bounds=bounds, maxiter=2000)
    return net, params, result


def curve(net, params, time):
    """The network's values at times (n, 1)."""
    plan = nbprop.plan(net, batch=len(time))
    y = np.empty((len(time), 1))
    nbprop.forward(plan, params, time, y, nbprop.workspace(plan))
    return y


def main():
    time, measured = measure()
    grid = np.linspace(-3, 3, 601)[:, None]
    for rising in (False, True):
        net, params, result = fit(time, measured, rising)
        y = curve(net, params, grid)
        fall = np.maximum(-np.diff(y[:, 0]), 0).sum()
        error = np.sqrt(np.mean((y - truth(grid)) ** 2))
        print("weights >= 0:" if rising else "no bounds:", result.message)
        print(f"  {result.nit} iterations, loss {result.fun:.4f}, falls by {fall:.3f} in all, error {error:.3f}")


if __name__ == "__main__":
    main()
