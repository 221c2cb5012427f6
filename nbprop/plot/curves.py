"""Curves over training: losses, and the gradients of each layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from nbprop.arrays import as_array
from nbprop.networks.network import Network, views
from nbprop.plot.style import COLOURS, axes_or_new, finish
from nbprop.training.history import History


def losses(history: History | Mapping[str, Sequence[float]] | Sequence[float], ax: Axes | None = None) -> Axes:
    """Draw the loss of each epoch, on a logarithmic axis if all losses are positive.

    Parameters
    ----------
    history : what `fit` returns; or a list of losses; or {label: list of losses}, one curve each
        Of a `History`, the training and the validation loss are drawn, and the best epoch is marked.
    ax : Axes or None for a new figure

    Returns
    -------
    Axes

    Raises
    ------
    TypeError, ValueError
        For anything else, and if there is not a single loss.

    Examples
    --------
    >>> import nbprop
    >>> axes = nbprop.plot.losses({"Adam": [1.0, 0.3, 0.1], "descent": [1.0, 0.8, 0.7]})
    >>> [line.get_label() for line in axes.lines]
    ['Adam', 'descent']
    """
    curves = _curves(history)
    ax = axes_or_new(ax, "losses")
    for (label, values), colour in zip(curves.items(), _cycle(len(curves)), strict=True):
        marker = "o" if len(values) < 3 else None
        ax.plot(np.arange(1, len(values) + 1), values, color=colour, label=label, marker=marker)
    if all((values > 0).all() for values in curves.values()):
        ax.set_yscale("log")
    if isinstance(history, History):
        best = history.best_epoch
        if best is not None and 0 <= best < len(history.loss):
            ax.axvline(best + 1, color="0.4", linestyle=":", linewidth=1, label=f"best, epoch {best + 1}")
        finish(ax, "", "epoch", "loss")
    else:
        finish(ax, "", "step", "loss")
    if len(ax.get_legend_handles_labels()[0]) > 1:
        ax.legend()
    return ax


def _curves(history):
    """{label: array of losses} of what `losses` takes."""
    if isinstance(history, History):
        named = {"training": history.loss, "validation": history.validation_loss}
        if history.training_loss:
            named["training, at the epoch's end"] = history.training_loss
        named = {label: values for label, values in named.items() if len(values)}
    elif isinstance(history, Mapping):
        named = {str(label): values for label, values in history.items()}
    else:
        named = {"loss": history}
    try:
        curves = {label: np.asarray(values, np.float64) for label, values in named.items()}
    except (TypeError, ValueError):
        raise TypeError(
            "plot.losses: history must be what fit returns, a list of losses, or a dict of such lists, "
            f"got {type(history).__name__}"
        ) from None
    if not curves or any(values.ndim != 1 or not values.size for values in curves.values()):
        raise ValueError("plot.losses: history must hold at least one loss, and each curve one axis")
    return curves


def _cycle(count):
    return [COLOURS[k % len(COLOURS)] for k in range(count)]


def gradients(net: Network, grads: NDArray[Any], ax: Axes | None = None) -> Axes:
    """Draw how large the gradient of each parameter array is: the root mean square of its elements.

    Gradients that shrink from layer to layer towards the input vanish, those that grow explode.

    Parameters
    ----------
    net : Network
    grads : (n_params,) array for a bar per parameter array; (steps, n_params) for a curve each over the steps
        Any flat array in the order of the parameters will do, such as the parameters themselves.
    ax : Axes or None for a new figure

    Returns
    -------
    Axes

    Raises
    ------
    TypeError, ValueError
        For anything else.

    Examples
    --------
    >>> import nbprop
    >>> net = nbprop.network((3,), nbprop.dense(4, activation="tanh"), nbprop.dense(1))
    >>> axes = nbprop.plot.gradients(net, nbprop.init(net, seed=0))
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['0.dense.weight', '0.dense.bias', '1.dense.weight', '1.dense.bias']
    """
    if not isinstance(net, Network):
        raise TypeError(f"plot.gradients: net must be what nbprop.network(...) returns, got {type(net).__name__}")
    grads = as_array("plot.gradients: grads", grads)
    if grads.ndim not in (1, 2) or grads.shape[-1] != net.n_params or not grads.size:
        raise ValueError(
            f"plot.gradients: grads must have shape ({net.n_params},) or (steps, {net.n_params}) for this network, "
            f"got {grads.shape}"
        )
    rows = np.atleast_2d(np.asarray(grads, np.float64))
    sizes: dict[str, list[float]] = {name: [] for name in net.slots}
    for row in rows:
        for name, part in views(net, row).items():
            sizes[name].append(float(np.sqrt(np.mean(np.square(part)))))
    if grads.ndim == 1:
        ax = axes_or_new(ax, "gradients", (6, 0.9 + 0.3 * len(sizes)))
        values = [found[0] for found in sizes.values()]
        ax.barh(range(len(values)), values, color=COLOURS[0], height=0.7)
        ax.set_yticks(range(len(values)), list(sizes))
        ax.invert_yaxis()  # the layer next to the input on top
        if min(values) > 0:
            ax.set_xscale("log")
        return finish(ax, "", "root mean square of the gradient", "")
    ax = axes_or_new(ax, "gradients")
    for (name, values), colour in zip(sizes.items(), _cycle(len(sizes)), strict=True):
        ax.plot(np.arange(1, len(values) + 1), values, label=name, color=colour)
    if all(min(values) > 0 for values in sizes.values()):
        ax.set_yscale("log")
    ax.legend()
    return finish(ax, "", "step", "root mean square of the gradient")
