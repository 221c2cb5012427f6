"""One regression, three ways: Levenberg-Marquardt, L-BFGS-B and Adam on the same network, data and start.

Levenberg-Marquardt uses the Jacobian of the residuals: each of its steps costs as much as many gradients, and makes
more progress than many. --picture loss.png plots the losses over time.
"""

import time

import numpy as np

import nbprop
from nbprop.io.pictures import picture_option, save_picture

SAMPLES, NOISE = 1000, 0.1
rng = np.random.default_rng(0)
x = np.sort(rng.uniform(-3, 3, (SAMPLES, 1)), axis=0)
target = np.sin(2 * x) * np.exp(-x / 4) + NOISE * rng.standard_normal(x.shape)

net = nbprop.network((1,), nbprop.dense(20, activation="tanh"), nbprop.dense(1))
plan = nbprop.plan(net, loss="mse", batch=SAMPLES)
start = nbprop.init(net, seed=1)


class Trace:
    """(seconds, lowest loss so far) of a run."""

    def __init__(self):
        self.begin, self.seconds, self.losses = time.perf_counter(), [], []

    def add(self, loss):
        self.seconds.append(time.perf_counter() - self.begin)
        self.losses.append(min([loss, *self.losses[-1:]]))


def marquardt():
    trace, work = Trace(), nbprop.workspace(plan)
    y = np.empty_like(target)

    def residuals(theta):
        nbprop.forward(plan, theta, x, y, work)
        r = (y - target).ravel()
        trace.add(float(r @ r) / SAMPLES)
        return r

    def jacobian(theta):
        rows = np.empty((SAMPLES, theta.size))
        nbprop.jacobian(plan, theta, x, rows, work)
        return rows

    nbprop.levenberg_marquardt(residuals, jacobian, start, max_nfev=60)
    return trace


def lbfgs():
    params, trace = start.copy(), Trace()
    options = {"maxfun": 2000, "ftol": 1e-12}

    def note(intermediate_result):
        trace.add(intermediate_result.fun)

    nbprop.minimize(plan, params, x, target, method="L-BFGS-B", maxiter=600, callback=note, options=options)
    return trace


def adam():
    params, grads, work = start.copy(), np.empty_like(start), nbprop.workspace(plan)
    state, trace = nbprop.optimizer_state("adam", params.size), Trace()
    for step in range(1500):
        trace.add(nbprop.value_and_grad(plan, params, x, target, grads, work))
        nbprop.adam(params, grads, state, step, 1e-2)
    return trace


def draw(traces, path):
    from nbprop import plot

    figure, axes = plot.panels()
    for name, trace in traces.items():
        axes.loglog(trace.seconds, trace.losses, label=name)
    axes.axhline(NOISE**2, color="grey", linestyle=":", label="noise")
    axes.set(xlabel="seconds", ylabel="mean squared error")
    axes.legend()
    save_picture(figure, path)


def main():
    picture = picture_option(__doc__, "the losses over time")
    traces = {}
    for name, run in {"Levenberg-Marquardt": marquardt, "L-BFGS-B": lbfgs, "Adam": adam}.items():
        run()  # the first run may compile
        traces[name] = run()
        print(f"{name:20} loss {traces[name].losses[-1]:.6f} after {len(traces[name].losses)} evaluations")
    if picture:
        draw(traces, picture)


if __name__ == "__main__":
    main()
