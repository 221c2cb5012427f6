"""The estimators beside scikit-learn's MLPs: score and time on its real data sets, and what they add to `nbprop.fit`.

    python benchmarks/estimators.py [--quick]

Same architecture (64, 64, relu), optimizer (Adam, lr 0.001), batch, epochs, folds, seeds, dtype, one thread each, no
penalty; the peer gets scikit-learn's own scaling of X and y around it and does not stop early. Folds take turns: a
fold's two fits follow each other. Time is the median of the folds' ratios, without what either compiles or imports;
score is accuracy, or R2, and its mean's standard error over folds and seeds that of their differences.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine, make_friedman1
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import nbprop
from nbprop.estimators import NetworkClassifier, NetworkRegressor

# name: (data, whether y holds numbers, epochs)
WORKS = {
    "diabetes, 442 rows": (lambda: load_diabetes(return_X_y=True), True, 60),
    "breast cancer, 569 rows": (lambda: load_breast_cancer(return_X_y=True), False, 60),
    "wine, 178 rows": (lambda: load_wine(return_X_y=True), False, 60),
    "digits, 1,797 rows": (lambda: load_digits(return_X_y=True), False, 60),
    "Friedman 1, 20 features, 20,000 rows": (lambda: make_friedman1(20_000, 20, noise=1.0, random_state=0), True, 10),
}
BATCH, HIDDEN = 128, (64, 64)


def ours(numbers, epochs, seed):
    kind = NetworkRegressor if numbers else NetworkClassifier
    return kind(hidden=HIDDEN, batch=BATCH, epochs=epochs, random_state=seed)


def theirs(numbers, epochs, seed, samples):
    kind = MLPRegressor if numbers else MLPClassifier
    options = {"alpha": 0.0, "max_iter": epochs, "n_iter_no_change": epochs, "tol": 0.0, "random_state": seed}
    model = make_pipeline(StandardScaler(), kind(hidden_layer_sizes=HIDDEN, batch_size=min(BATCH, samples), **options))
    return TransformedTargetRegressor(model, transformer=StandardScaler()) if numbers else model


def measured(model, X, y, train, test):
    """(seconds to fit, score)."""
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # epochs are what they are told to be
        model.fit(X[train], y[train])
    return time.perf_counter() - begin, model.score(X[test], y[test])


def compare(name, dtype, seeds, folds):
    load, numbers, epochs = WORKS[name]
    X, y = load()
    X, y = np.ascontiguousarray(X, dtype), y.astype(dtype) if numbers else y
    measured(ours(numbers, 1, 0), X, y, slice(None), slice(None))  # compiles
    seconds, scores = [], []
    for seed in range(seeds):
        split = (KFold if numbers else StratifiedKFold)(folds, shuffle=True, random_state=seed)
        for train, test in split.split(X, y):
            models = ours(numbers, epochs, seed), theirs(numbers, epochs, seed, len(train))
            pair = [measured(model, X, y, train, test) for model in models]
            seconds.append([found[0] for found in pair])
            scores.append([found[1] for found in pair])
    seconds, scores = np.array(seconds), np.array(scores)
    differences = scores[:, 0] - scores[:, 1]
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    print(
        f"| {name} | {np.dtype(dtype)} | {scores[:, 0].mean():.4f} | {scores[:, 1].mean():.4f} "
        f"| {differences.mean():+.4f} +- {error:.4f} | {np.median(seconds[:, 0]) * 1e3:.0f} ms "
        f"| {np.median(seconds[:, 1]) * 1e3:.0f} ms | {np.median(seconds[:, 0] / seconds[:, 1]):.2f} |",
        flush=True,
    )


def overhead(rounds):
    """What an estimator's fit takes beyond `nbprop.fit` of the same network on the same arrays, in turns."""
    X, y = map(np.ascontiguousarray, load_digits(return_X_y=True))
    net = ours(False, 1, 0).fit(X, y).network_
    model, ratios = ours(False, 60, 0), []
    for _ in range(rounds):
        params = nbprop.init(net, seed=0)
        begin = time.perf_counter()
        nbprop.fit_scaling(net, params, X)
        nbprop.fit(net, params, X, y, "softmax_cross_entropy", batch=BATCH, epochs=60, progress=False)
        middle = time.perf_counter()
        model.fit(X, y)
        ratios.append((time.perf_counter() - middle) / (middle - begin))
    low, median, high = statistics.quantiles(ratios, n=4)
    print(f"\nan estimator's fit over nbprop.fit, digits: {median:.3f} [{low:.3f}, {high:.3f}]")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, three folds")
    quick = parser.parse_args().quick
    columns = "data", "dtype", "score", "MLP's", "difference", "time of a fit", "MLP's", "ratio"
    print(f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", sep="\n")
    with threadpool_limits(1):
        for name in WORKS:
            for dtype in (np.float64, np.float32):
                large = "20,000" in name
                compare(name, dtype, 1 if quick or large else 3, 3 if quick or large else 5)
        overhead(5 if quick else 15)


if __name__ == "__main__":
    main()
