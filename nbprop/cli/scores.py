"""How good predictions are: metrics by their names, a table of what was taken for what, and pictures of both."""

import math

import numpy as np

from nbprop.io.pictures import save_picture
from nbprop.validation import choose

MOST_CLASSES = 12  # rows of a table that is printed


def _accuracy(truth, guess):
    return float(np.mean(truth == guess))


def _counts(truth, guess):
    """(true positives, false positives, false negatives) of each class that occurs."""
    kinds = np.union1d(truth, guess)
    hits = np.array([np.sum((truth == kind) & (guess == kind)) for kind in kinds])
    return (
        hits,
        np.array([np.sum(guess == k) for k in kinds]) - hits,
        np.array([np.sum(truth == k) for k in kinds]) - hits,
    )


def _f1(truth, guess):
    hits, false, missed = _counts(truth, guess)
    return float(np.mean(2 * hits / (2 * hits + false + missed)))


def _balanced(truth, guess):
    return float(np.mean([np.mean(guess[truth == kind] == kind) for kind in np.unique(truth)]))


def _r2(truth, guess):
    rest, spread = ((truth - guess) ** 2).sum(0), ((truth - truth.mean(0)) ** 2).sum(0)
    return float(np.mean(1 - rest / spread)) if np.all(spread > 0) else math.nan


# name: (function of truth and guess, whether it is of classes). Classes are numbers (n,), other targets (n, outputs).
METRICS = {
    "accuracy": (_accuracy, True),
    "balanced_accuracy": (_balanced, True),  # the mean over classes of the share that was found
    "f1": (_f1, True),  # the mean over classes
    "r2": (_r2, False),  # the mean over outputs
    "mae": (lambda truth, guess: float(np.abs(truth - guess).mean()), False),
    "rmse": (lambda truth, guess: float(np.sqrt(((truth - guess) ** 2).mean())), False),
}


def metrics_for(wanted, of_classes):
    """The names of the metrics to print: those asked for, else the usual one. Raises ValueError for unfit ones."""
    for name in wanted:
        if choose("--metric", name, METRICS)[1] != of_classes:
            others = ", ".join(other for other, (_, classes) in METRICS.items() if classes == of_classes)
            what = "classes" if of_classes else "numbers"
            raise ValueError(f"--metric {name} is not for {what}, which the network predicts here; choose of {others}")
    return list(wanted) or ["accuracy" if of_classes else "r2"]


def score(name, truth, guess):
    """A metric's value, in float64."""
    return METRICS[name][0](truth, guess)


def shown(name, value):
    """A metric's value as it is printed."""
    return f"{100 * value:.1f} %" if name == "accuracy" else f"{value:.4g}"


def confusion(truth, guess, labels):
    """How often each class (row) was taken for each (column): (classes, classes)."""
    counts = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(counts, (truth, guess), 1)
    return counts


def confusion_lines(counts, labels):
    """The table as text, for up to MOST_CLASSES classes."""
    if len(labels) > MOST_CLASSES:
        return
    names = [label if len(label) <= 14 else label[:13] + "." for label in labels]
    first, width = max(map(len, [*names, "is"])), max(6, *(len(name) for name in names))
    yield f"{'is':<{first}}  taken for: " + " ".join(f"{name:>{width}}" for name in names)
    for name, row in zip(names, counts.tolist(), strict=True):
        yield f"{name:<{first}}  {'':11}" + " ".join(f"{count:>{width}}" for count in row)


def draw(path, curve, truth, guess, labels, title):
    """Draw the loss by epoch, and what was predicted against the truth; False where matplotlib is not installed.

    curve: losses, or None; labels: names of classes, or None for numbers, of which the first output is drawn.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(9.5 if curve else 4.8, 4.2), layout="constrained")
    *left, right = figure.subplots(1, 2 if curve else 1, squeeze=False)[0]
    for axes in left:
        axes.plot(range(1, len(curve) + 1), curve, marker="." if len(curve) < 40 else "")
        axes.set(xlabel="epoch", ylabel="loss", title="training", yscale="log" if min(curve) > 0 else "linear")
    if labels is None:
        truth, guess = truth[:, 0], guess[:, 0]
        ends = [min(truth.min(), guess.min()), max(truth.max(), guess.max())]
        right.plot(ends, ends, color="0.6", linewidth=1)
        right.plot(truth, guess, ".", markersize=4, alpha=0.6, rasterized=len(truth) > 5000)
        right.set(xlabel="measured", ylabel="predicted", title=title)
        right.locator_params(nbins=5)
        right.ticklabel_format(scilimits=(-3, 4))
    else:
        counts = confusion(truth, guess, labels)
        right.imshow(counts, cmap="Blues")
        few = len(labels) <= MOST_CLASSES
        ticks = range(len(labels)) if few else []
        right.set_xticks(ticks, labels if few else [], rotation=45, ha="right")
        right.set_yticks(ticks, labels if few else [])
        for (i, j), count in np.ndenumerate(counts if few else counts[:0]):
            right.text(j, i, count, ha="center", va="center", color="white" if count > counts.max() / 2 else "black")
        right.set(xlabel="taken for", ylabel="is", title=title)
    save_picture(figure, path, dpi=110)
    return True
