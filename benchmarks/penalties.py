"""What penalties cost, a sweep beside GridSearchCV, and the time to the same held-out loss as scikit-learn's networks.

    python benchmarks/penalties.py [--quick]

Penalties: value_and_grad with l2 (and with l1) over that without, in turns, for networks whose gradients fit the caches
and for one whose gradients do not; the bytes of parameters and gradients that the penalty's ops touch stand beside.
Sweep: 5 folds x 4 seeds x 5 penalties of a small network, once as `SweepCV` and once as `GridSearchCV`, which do the
same arithmetic. Same loss: both train with Adam, batch 128, lr 0.001, one thread, from weights of one distribution
(Glorot's); after each epoch, outside the time, the loss of held-out rows is taken. The level is the lowest loss that
every run of both meets. The ratio is that of the mean times until a run first meets it, the product of the time of an
epoch and of how many it takes; the interval holds half of 1,000 draws of the seeds.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import numpy as np
from sklearn.datasets import load_diabetes, load_digits, make_friedman1
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import nbprop
from nbprop.estimators import NetworkRegressor, SweepCV

NETWORKS = {
    "20-64-64-1, batch 128": ((20,), (64, 64, 1), 128),
    "64-64-64-10, batch 128": ((64,), (64, 64, 10), 128),
    "784-1024-1024-10, batch 256": ((784,), (1024, 1024, 10), 256),
}


def penalties(rounds):
    """A gradient's time with penalties over that without."""
    print("\n| network | dtype | bytes of the penalty | l2 | l1 and l2 |", "|---" * 5 + "|", sep="\n")
    for name, (shape, units, batch) in NETWORKS.items():
        layers = [nbprop.dense(width, activation="relu") for width in units[:-1]]
        net = nbprop.network(shape, *layers, nbprop.dense(units[-1]))
        for dtype in (np.float32, np.float64):
            rng, params = np.random.default_rng(0), nbprop.init(net, dtype=dtype)
            x, target = rng.standard_normal((batch, *shape)), rng.standard_normal((batch, units[-1]))
            arguments = params, x.astype(dtype), target.astype(dtype), np.empty_like(params)
            kinds = ({}, {"l2": 1e-4}, {"l2": 1e-4, "l1": 1e-5})
            plans = [nbprop.plan(net, "mse", batch, dtype, **kind) for kind in kinds]
            works, repeats = [nbprop.workspace(plan) for plan in plans], max(1, 3_000_000 // net.n_params)
            times = [[] for _ in plans]
            for _ in range(rounds):
                for plan, work, found in zip(plans, works, times, strict=True):
                    begin = time.perf_counter()
                    for _ in range(repeats):
                        nbprop.value_and_grad(plan, *arguments, work)
                    found.append(time.perf_counter() - begin)
            ratios = [statistics.median(np.divide(found, times[0])) for found in times[1:]]
            touched = 3 * plans[1].penalty.mask(net.n_params).sum() * np.dtype(dtype).itemsize
            shown = " | ".join(f"{ratio:.3f}" for ratio in ratios)
            print(f"| {name} | {np.dtype(dtype)} | {touched:,} | {shown} |", flush=True)


def sweep(quick):
    """The seconds of a sweep as one fleet, and as calls of fit."""
    X, y = load_diabetes(return_X_y=True)
    grid = {"l2": np.logspace(-4, 0, 2 if quick else 5).tolist(), "random_state": list(range(1 if quick else 4))}
    model = NetworkRegressor((8,), activation="tanh", solver="lbfgs", epochs=100)
    searches = SweepCV(model, grid, cv=5, refit=False), GridSearchCV(model, grid, cv=5, refit=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        SweepCV(model, {"l2": [0.1]}, cv=2, refit=False).fit(X, y)  # compiles
        seconds = []
        for search in searches:
            begin = time.perf_counter()
            search.fit(X, y)
            seconds.append(time.perf_counter() - begin)
    count = 5 * len(grid["l2"]) * len(grid["random_state"])
    print(
        f"\n{count} fits: SweepCV {seconds[0]:.2f} s, GridSearchCV {seconds[1]:.2f} s ({seconds[0] / seconds[1]:.2f})"
    )


def our_curve(net, loss, data, held, epochs, seed=0):
    """[(seconds, held-out loss) after each epoch] of `nbprop.fit`."""
    x, target = data
    params, found, spent = nbprop.init(net, seed, x.dtype), [], [0.0, time.perf_counter()]
    plan = nbprop.plan(net, loss, len(held[0]), x.dtype)
    work = nbprop.workspace(plan)

    def after_epoch(history):
        spent[0] += time.perf_counter() - spent[1]
        found.append((spent[0], nbprop.value(plan, params, *held, work)))
        spent[1] = time.perf_counter()

    spent[1] = time.perf_counter()
    nbprop.fit(net, params, x, target, loss, batch=128, epochs=epochs, seed=seed, callback=after_epoch, progress=False)
    return found


def their_curve(model, data, classes, measure, epochs):
    """The same of scikit-learn's MLP, an epoch a call of partial_fit."""
    found, seconds = [], 0.0
    for _ in range(epochs):
        begin = time.perf_counter()
        model.partial_fit(*data, **({} if classes is None else {"classes": classes}))
        seconds += time.perf_counter() - begin
        found.append((seconds, measure(model)))
    return found


def same_loss(name, epochs, dtype, seeds):
    """Prints the seconds that both take to the same held-out loss, and what they are made of."""
    if name == "digits":
        X, y = load_digits(return_X_y=True)
    else:
        X, y = make_friedman1(20_000, 20, noise=1.0, random_state=0)
        y = ((y - y.mean()) / y.std()).astype(dtype)
    X = StandardScaler().fit_transform(X).astype(dtype)
    X, x_held, y, y_held = map(np.ascontiguousarray, train_test_split(X, y, test_size=0.2, random_state=0))
    options = {"hidden_layer_sizes": (64, 64), "batch_size": 128, "alpha": 0.0}
    hidden = [nbprop.dense(64, activation="relu", init="glorot_uniform") for _ in range(2)]
    if name == "digits":
        net, loss, target, held = nbprop.network((64,), *hidden, nbprop.dense(10)), "softmax_cross_entropy", y, y_held
        kind, classes = MLPClassifier, np.arange(10)
        measure = lambda model: log_loss(y_held, model.predict_proba(x_held))  # noqa: E731
    else:
        net, loss = nbprop.network((20,), *hidden, nbprop.dense(1)), "mse"
        target, held, kind, classes = y[:, None].copy(), y_held[:, None].copy(), MLPRegressor, None
        measure = lambda model: float(np.mean((model.predict(x_held) - y_held) ** 2))  # noqa: E731
    our_curve(net, loss, (X, target), (x_held, held), 1)  # compiles
    pairs = []
    for seed in range(seeds):
        model = kind(**options, random_state=seed)
        ours = our_curve(net, loss, (X, target), (x_held, held), epochs, seed)
        pairs.append([ours, their_curve(model, (X, y), classes, measure, epochs)])
    level = max(min(loss for _, loss in curve) for pair in pairs for curve in pair)
    met = [[next(k for k, (_, loss) in enumerate(curve) if loss <= level) for curve in pair] for pair in pairs]
    seconds = np.array([[curve[k][0] for k, curve in zip(*both, strict=True)] for both in zip(met, pairs, strict=True)])
    ratio = np.divide(*seconds.mean(0))
    drawn = seconds[np.random.default_rng(0).integers(seeds, size=(1000, seeds))].mean(1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.25, 0.75))
    ours, theirs = np.median([[curve[-1][0] / epochs for curve in pair] for pair in pairs], axis=0) * 1e3
    counts = np.mean(met, axis=0) + 1
    print(
        f"| {name} | {np.dtype(dtype)} | {ours:.1f} ms | {theirs:.1f} ms | {ours / theirs:.2f} | {level:.3f} "
        f"| {counts[0]:.1f} | {counts[1]:.1f} | {ratio:.2f} [{low:.2f}, {high:.2f}] |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, seeds and epochs")
    quick = parser.parse_args().quick
    with threadpool_limits(1):
        penalties(3 if quick else 15)
        sweep(quick)
        columns = "data", "dtype", "an epoch", "MLP's", "ratio", "loss", "epochs to it", "MLP's", "time to it"
        print(f"\n| {' | '.join(columns)} |", "|---" * len(columns) + "|", sep="\n")
        for dtype in (np.float64, np.float32):
            same_loss("digits", 5 if quick else 40, dtype, 1 if quick else 15)
            same_loss("20-64-64-1, 20,000 rows", 2 if quick else 12, dtype, 1 if quick else 9)


if __name__ == "__main__":
    main()
