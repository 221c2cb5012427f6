"""Pictures of training and of networks, on Matplotlib's axes; needs ``nbprop[plot]``.

Each function draws one thing on one `Axes` and returns it: the one given as `ax`, else one on a new figure of the
library's style. Nothing else of nbprop imports this package, nor Matplotlib, but for the demo's picture.
"""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError("nbprop.plot needs Matplotlib; install it with: pip install nbprop[plot]") from error

from nbprop.plot.answers import confusion, decision_surface, predicted
from nbprop.plot.curves import gradients, losses
from nbprop.plot.style import COLOURS, DIVERGING, NEGATIVE, POSITIVE, panels, style
from nbprop.plot.traces import trace
from nbprop.plot.weights import weights

__all__ = [
    "COLOURS",
    "DIVERGING",
    "NEGATIVE",
    "POSITIVE",
    "confusion",
    "decision_surface",
    "gradients",
    "losses",
    "panels",
    "predicted",
    "style",
    "trace",
    "weights",
]
