"""A trace as a picture: units with their activities, weights, and the forces that an elastic at each output exerts."""

import numpy as np
from matplotlib.axes import Axes

from nbprop.analysis.trace import Trace
from nbprop.networks.network import views
from nbprop.plot.style import COLOURS, DIVERGING, NEGATIVE, POSITIVE, axes_or_new, finish
from nbprop.validation import check_integer

# Layers of more units are drawn as a strip of colours: their activities, and beside it their forces.
_MOST_DOTS = 16


def trace(found: Trace, ax: Axes | None = None, sample: int = 0) -> Axes:
    """Draw a sample's activities, the weights between them, and the force on every unit: minus dL/d activity.

    The picture is Hinton's: an elastic pulls each output towards its target, and backpropagation tells how strongly
    every unit is pulled. A dot is a unit, its height the activity; arrows are forces.

    Parameters
    ----------
    found : what `nbprop.trace` returns
    ax : Axes or None for a new figure
    sample : int, which sample of the batch

    Returns
    -------
    Axes
        Layers of more than 16 units are strips: the activities on the left, the forces on the right.

    Raises
    ------
    TypeError, ValueError
        For anything else.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((2,), nbprop.dense(3, activation="tanh"), nbprop.dense(1))
    >>> plan, params = nbprop.plan(net, loss="mse"), nbprop.init(net, seed=0)
    >>> axes = nbprop.plot.trace(nbprop.trace(plan, params, np.array([[0.5, 1.0]]), np.array([[1.0]])))
    >>> [text.get_text() for text in axes.texts if "dense" in text.get_text()]
    ['0.dense', '1.dense']
    """
    if not isinstance(found, Trace):
        raise TypeError(f"plot.trace: found must be what nbprop.trace(...) returns, got {type(found).__name__}")
    n, net = len(found.x), found.plan.net
    sample = check_integer("plot.trace: sample", sample, 0, n - 1)
    columns = _columns(found, sample)
    tall = max(min(values.size, _MOST_DOTS) for _, values, _ in columns)
    ax = axes_or_new(ax, "trace", (1.9 * len(columns) + 0.8, 0.62 * tall + 1.2))
    ax.set_axis_off()
    strongest = max([float(np.abs(forces).max()) for *_, forces in columns if forces is not None] or [0.0]) or 1.0
    places = [_draw_column(ax, c, tall, strongest, *column) for c, column in enumerate(columns)]
    parameters = views(net, found.params)
    for c in range(1, len(columns)):
        weight = parameters.get(f"{columns[c][0]}.weight")
        if weight is not None and net.layers[c - 1].kind == "dense":
            _draw_weights(ax, c, weight, places)
    _draw_goals(ax, found, sample, columns, places)
    ax.set(xlim=(-0.6, len(columns) - 0.2), ylim=(-tall / 2 - 0.3, tall / 2 + 0.9))
    return finish(ax, f"loss {found.loss:.4g}, after the update {found.loss_after:.4g}", "", "")


def _columns(found, sample):
    """(name, activities, forces or None) of the input and of each layer."""
    n = len(found.x)
    forces = None if found.dx is None else -n * found.dx[sample].reshape(-1)
    columns = [("input", found.x[sample].reshape(-1), forces)]
    for index, layer in enumerate(found.plan.net.layers):
        units = found.units[f"{index}.{layer.kind}"]
        activities, gradient = units.output[sample].reshape(-1), units.gradient[sample].reshape(-1)
        columns.append((f"{index}.{layer.kind}", activities, -n * gradient))
    return columns


def _draw_column(ax, c, tall, strongest, name, values, forces):
    """A layer's units; where their dots are, (units,), or None for a strip."""
    ax.text(c, tall / 2 + 0.35, name, ha="center", fontweight="bold")
    most = max(1.0, float(np.abs(values).max()))
    if values.size > _MOST_DOTS:
        for offset, shown, scale in ((-0.07, values, most), (0.07, forces, strongest)):
            if shown is not None:
                box = (c + offset - 0.06, c + offset + 0.06, -tall / 2, tall / 2)
                ax.imshow(shown[:, None], cmap=DIVERGING, vmin=-scale, vmax=scale, extent=box, aspect="auto")
        return None
    middles = (values.size - 1) / 2 - np.arange(values.size)
    heights = middles + 0.33 * values / most
    ax.vlines(np.full(values.size, c), middles - 0.33, middles + 0.33, color="#DDDDDD", linewidth=6, zorder=1)
    ax.plot(np.full(values.size, c), heights, "o", color="black", markersize=7, zorder=3)
    for height, force in zip(heights, () if forces is None else forces, strict=False):
        if abs(force) > 1e-3 * strongest:
            size = (0.1 + 0.5 * abs(force) / strongest) * np.sign(force)
            arrow = {"arrowstyle": "-|>", "color": COLOURS[2], "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (c - 0.1, height + size), (c - 0.1, height), arrowprops=arrow, zorder=4)
            text = {"color": COLOURS[2], "fontsize": 8, "ha": "right", "va": "center", "zorder": 5}
            backdrop = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
            ax.text(c - 0.15, height, f"{force:+.2g}", bbox=backdrop, **text)
    return heights


def _draw_weights(ax, c, weight, places):
    """The lines between two layers of dots."""
    before, here = places[c - 1], places[c]
    if before is None or here is None or weight.shape != (before.size, here.size):
        return
    most = float(np.abs(weight).max()) or 1.0
    for (i, j), w in np.ndenumerate(weight):
        colour = POSITIVE if w > 0 else NEGATIVE
        ends = [c - 1, c], [before[i], here[j]]
        ax.plot(*ends, color=colour, linewidth=0.3 + 2.2 * abs(w) / most, alpha=0.45, zorder=2)


def _draw_goals(ax, found, sample, columns, places):
    """A star at what was wanted, and an elastic from the output to it."""
    heights, wanted = places[-1], found.target[sample].reshape(-1)
    if heights is None:
        return
    _, values, _ = columns[-1]
    x, middles = len(columns) - 1 + 0.3, (values.size - 1) / 2 - np.arange(values.size)
    if found.plan.classes:
        if wanted.size == 1:
            ax.plot(x, middles[int(wanted[0])], "*", color="black", markersize=12)
        return
    most = max(1.0, float(np.abs(values).max()))
    for height, goal in zip(heights, middles + 0.33 * wanted / most, strict=False):
        swings = x + 0.05 * np.array([0, *(1, -1) * 6, 0])
        ax.plot([len(columns) - 1, x], [height, height], color="black", linewidth=0.7)
        ax.plot(swings, np.linspace(height, goal, swings.size), color="black", linewidth=1)
        ax.plot(x, goal, "*", color="black", markersize=12)
