"""Weights as a picture."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from nbprop.arrays import as_array
from nbprop.plot.style import DIVERGING, NEGATIVE, POSITIVE, axes_or_new, finish

# Above this many weights squares are too small to compare.
_MOST_SQUARES = 1200


def weights(values: NDArray[Any], ax: Axes | None = None, most: float | None = None) -> Axes:
    """Draw an array of weights: squares whose area is the magnitude, orange for positive and blue for negative.

    This is the diagram of Hinton and Sejnowski (1986). An array of more than 1,200 weights is drawn in colours alone.

    Parameters
    ----------
    values : array of 1 or 2 axes, such as ``nbprop.views(net, params)["0.dense.weight"]``
        (inputs, outputs): a row for each input. A part of `params`, `grads` or any other array.
    ax : Axes or None for a new figure
    most : the magnitude of a full square, to compare pictures; None: the largest of `values`

    Returns
    -------
    Axes

    Raises
    ------
    TypeError, ValueError
        For anything else.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> axes = nbprop.plot.weights(np.array([[1.0, -0.5], [0.25, 0.0]]))
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('output', 'input')
    """
    values = as_array("plot.weights: values", values)
    if values.ndim not in (1, 2) or not values.size or values.dtype.kind not in "fiu":
        raise ValueError(
            f"plot.weights: values must be numbers of 1 or 2 axes, got {values.dtype} {values.shape}; reshape them"
        )
    values = np.atleast_2d(np.asarray(values, np.float64))
    largest = float(np.abs(values).max())
    if not np.isfinite(largest):
        raise ValueError("plot.weights: values must be finite")
    most = largest if most is None else float(most)
    if not most >= 0:
        raise ValueError(f"plot.weights: most must be a magnitude, got {most}")
    rows, columns = values.shape
    ax = axes_or_new(ax, "weights", (min(9.0, 1.6 + 0.25 * columns), min(9.0, 1.2 + 0.25 * rows)))
    ax.grid(False)
    if values.size > _MOST_SQUARES:
        ax.imshow(values, cmap=DIVERGING, vmin=-(most or 1), vmax=most or 1)
    else:
        ax.add_collection(_squares(values, most or 1))
        ax.set_facecolor("#EEEEEE")
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal")
    for axis, count in ((ax.xaxis, columns), (ax.yaxis, rows)):
        axis.set_major_locator(MaxNLocator(integer=True))
        if count == 1:
            axis.set_ticks([0])
    return finish(ax, "", "output", "input")


def _squares(values, most):
    """A square around each place, of the weight's share of the full area."""
    half = 0.46 * np.sqrt(np.minimum(np.abs(values) / most, 1))
    row, column = np.indices(values.shape)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    places = np.stack([column, row], -1)[..., None, :] + half[..., None, None] * corners
    colours = np.where(values > 0, POSITIVE, NEGATIVE).ravel()
    return PolyCollection(places.reshape(-1, 4, 2), facecolors=colours, edgecolors="none")
