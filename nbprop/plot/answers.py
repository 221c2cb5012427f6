"""What a network answers: predictions against measurements, confused classes, the surface over two inputs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from numpy.typing import NDArray

from nbprop.arrays import as_array, check_vector
from nbprop.networks.network import Network
from nbprop.plot.style import COLOURS, DIVERGING, axes_or_new, finish
from nbprop.prediction import predict

# Above this many classes, the counts in the cells of a confusion matrix are too small to read.
_MOST_COUNTS = 20


def predicted(target: NDArray[Any], prediction: NDArray[Any], ax: Axes | None = None) -> Axes:
    """Draw predictions against what was measured; on the line they agree.

    Parameters
    ----------
    target : array of numbers, what was measured
    prediction : array of the same shape
        With several outputs, (n, outputs), each has a colour of its own.
    ax : Axes or None for a new figure

    Returns
    -------
    Axes
        Its title, unless it has one, gives R^2 and the root mean square error over all outputs.

    Raises
    ------
    TypeError, ValueError
        For anything else.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> measured = np.linspace(0, 1, 20)
    >>> nbprop.plot.predicted(measured, measured + 0.01).get_title()
    'R² = 0.9989, RMSE = 0.01'
    """
    target = as_array("plot.predicted: target", target)
    prediction = as_array("plot.predicted: prediction", prediction)
    if target.shape != prediction.shape or not target.size:
        raise ValueError(
            "plot.predicted: prediction must have the shape of target, with at least one number, "
            f"got {prediction.shape} for {target.shape}"
        )
    wanted, found = (np.asarray(a, np.float64).reshape(len(a) if a.ndim else 1, -1) for a in (target, prediction))
    ax = axes_or_new(ax, "predicted", (4.4, 4.2))
    ends = [float(f(np.concatenate([wanted, found]))) for f in (np.min, np.max)]
    ax.plot(ends, ends, color="0.4", linewidth=1, linestyle="--", label="equal")
    for k in range(wanted.shape[1]):
        label = f"output {k}" if wanted.shape[1] > 1 else "samples"
        alpha = 0.8 if len(wanted) < 500 else 0.35
        colour = COLOURS[k % len(COLOURS)]
        ax.plot(wanted[:, k], found[:, k], "o", color=colour, alpha=alpha, markeredgewidth=0, label=label)
    error = math.sqrt(np.mean((wanted - found) ** 2))
    spread = np.mean((wanted - wanted.mean(0)) ** 2)
    title = f"RMSE = {error:.3g}" if spread == 0 else f"R² = {1 - error**2 / spread:.4g}, RMSE = {error:.3g}"
    if wanted.shape[1] > 1:
        ax.legend()
    ax.set_aspect("equal", adjustable="datalim")
    return finish(ax, title, "measured", "predicted")


def confusion(
    labels: NDArray[Any], answers: NDArray[Any], ax: Axes | None = None, names: Sequence[str] | None = None
) -> Axes:
    """Draw how often each class was taken for which: a row for each true class, a column for each answer.

    Parameters
    ----------
    labels : (n,) array of integers from 0, the true classes
    answers : (n,) array of integers, what was answered, such as ``logits.argmax(1)``
    ax : Axes or None for a new figure
    names : of the classes in order, or None for their numbers

    Returns
    -------
    Axes
        Colours are shares of the row, the numbers counts (up to 20 classes).

    Raises
    ------
    TypeError, ValueError
        For anything else.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> axes = nbprop.plot.confusion(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), names=["oak", "ash"])
    >>> axes.get_title()
    '3 of 4 right (75 %)'
    """
    labels, answers = as_array("plot.confusion: labels", labels), as_array("plot.confusion: answers", answers)
    for name, given in (("labels", labels), ("answers", answers)):
        if given.dtype.kind not in "iu":
            raise TypeError(f"plot.confusion: {name} must hold integers, got {given.dtype}; for logits, .argmax(1)")
        if given.shape != labels.shape or given.ndim != 1 or not given.size or given.min() < 0:
            raise ValueError(f"plot.confusion: {name} must be (n,) classes from 0, as labels, got shape {given.shape}")
    classes = int(max(labels.max(), answers.max())) + 1
    if names is not None and len(names) < classes:
        raise ValueError(f"plot.confusion: names must name all {classes} classes, got {len(names)}")
    names = [str(k) for k in range(classes)] if names is None else list(names)
    classes = len(names)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, answers), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(9.0, 2.2 + 0.42 * classes)
    ax = axes_or_new(ax, "confusion", (side, side))
    ax.grid(False)
    ax.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    if classes <= _MOST_COUNTS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "black" if shares[row, column] > 0.55 else "white"
                ax.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=colour)
    turned = 90 if max(map(len, names)) > 3 else 0
    ax.set_xticks(range(classes), names, rotation=turned)
    ax.set_yticks(range(classes), names)
    right = int(np.trace(counts))
    return finish(ax, f"{right:,} of {len(labels):,} right ({100 * right / len(labels):.3g} %)", "answer", "true class")


def decision_surface(
    net: Network,
    params: NDArray[Any],
    x: NDArray[Any],
    labels: NDArray[Any] | None = None,
    ax: Axes | None = None,
    state: NDArray[Any] | None = None,
) -> Axes:
    """Draw the output of a network of two inputs over the plane, with the samples on it.

    Parameters
    ----------
    net : Network with input shape (2,)
    params : (n_params,) array, float32 or float64
    x : (n, 2) array of the same dtype, the samples; the surface reaches a little beyond them
    labels : (n,) array or None, which colours the samples
        Integers are classes; of a network with several outputs, the answer is the largest.
    ax : Axes or None for a new figure
    state : 1-D array from `layer_state`, if the network has one; not changed

    Returns
    -------
    Axes
        With several outputs, a region for each class, paler where the answer is less certain (by softmax). With one,
        its value in colour, and the line where it is in the middle: 0, or 1/2 if all outputs are between 0 and 1.

    Raises
    ------
    TypeError, ValueError
        For anything else.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((2,), nbprop.dense(8, activation="tanh"), nbprop.dense(3))
    >>> x = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> axes = nbprop.plot.decision_surface(net, nbprop.init(net, seed=0), x, np.array([0, 1, 2]))
    >>> axes.get_xlabel(), len(axes.images)
    ('input 0', 1)
    """
    function = "plot.decision_surface"
    if not isinstance(net, Network) or net.input_shape != (2,) or len(net.output_shape) != 1:
        raise TypeError(f"{function}: net must be a network from (2,) to a vector, got {net!r}"[:300])
    params = as_array(f"{function}: params", params)
    params = check_vector(f"{function}: params", params, net.n_params, (np.float32, np.float64))
    x = as_array(f"{function}: x", x)
    if x.ndim != 2 or x.shape[1] != 2 or not len(x):
        raise ValueError(f"{function}: x must be (n, 2), got {x.shape}")
    if labels is not None:
        labels = as_array(f"{function}: labels", labels)
        if labels.shape != (len(x),):
            raise ValueError(f"{function}: labels must be ({len(x)},) as x, got {labels.shape}")
    ax = axes_or_new(ax, "decision_surface", (4.8, 4.2))
    ax.grid(False)
    low, high = x.min(0), x.max(0)
    room = 0.15 * np.where(high > low, high - low, 1)
    (left, bottom), (right, top) = low - room, high + room
    side = 200
    across, up = np.meshgrid(np.linspace(left, right, side), np.linspace(bottom, top, side))
    y = predict(net, params, np.stack([across.ravel(), up.ravel()], 1).astype(params.dtype), state=state)
    where: dict[str, Any] = {
        "extent": (left, right, bottom, top),
        "origin": "lower",
        "aspect": "auto",
        "interpolation": "bilinear",
    }
    if y.shape[1] == 1:
        surface = y.reshape(side, side)
        middle = 0.5 if surface.min() >= 0 and surface.max() <= 1 else 0.0
        most = float(np.abs(surface - middle).max()) or 1.0
        ax.imshow(surface, cmap=DIVERGING, vmin=middle - most, vmax=middle + most, **where)
        if surface.min() < middle < surface.max():
            ax.contour(across, up, surface, levels=[middle], colors="black", linewidths=1.2)
    else:
        answers = y.argmax(1)
        p = np.exp(y - y.max(1, keepdims=True), dtype=np.float64)
        certain = p.max(1) / p.sum(1)
        colours = np.array([_rgb(k) for k in range(y.shape[1])])[answers]
        paler = 1 - (1 - colours) * (0.15 + 0.45 * certain[:, None])
        ax.imshow(paler.reshape(side, side, 3), **where)
    _samples(ax, x, labels)
    ax.set(xlim=(left, right), ylim=(bottom, top))
    return finish(ax, "", "input 0", "input 1")


def _rgb(k):
    colour = COLOURS[k % len(COLOURS)]
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _samples(ax, x, labels):
    """The samples: classes in their colours, other labels by their value."""
    style: dict[str, Any] = {"s": 18, "edgecolors": "white", "linewidths": 0.6, "zorder": 3}
    if labels is None:
        ax.scatter(*x.T, color="black", **style)
    elif labels.dtype.kind in "iub":
        known = ListedColormap([COLOURS[k % len(COLOURS)] for k in range(max(int(labels.max()) + 1, 2))])
        if labels.max() <= 1:  # two classes: the colours of the surface's two signs
            known = ListedColormap([COLOURS[0], COLOURS[1]])
        ax.scatter(*x.T, c=labels, cmap=known, vmin=0, vmax=known.N - 1, **style)
    else:
        ax.scatter(*x.T, c=labels, cmap=DIVERGING, **style | {"edgecolors": "black"})
