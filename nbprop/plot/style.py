"""The style of the pictures: colours, the style file, new axes."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import style as styles
from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLE = str(Path(__file__).with_name("nbprop.mplstyle"))

# In the order in which lines take them: Okabe and Ito's colours without yellow.
COLOURS = tuple(
    entry["color"]
    for entry in mpl.rc_params_from_file(STYLE, fail_on_error=True, use_default_template=False)["axes.prop_cycle"]
)
# Signs of weights, gradients and contributions; in between, DIVERGING.
POSITIVE, NEGATIVE = COLOURS[1], COLOURS[0]
DIVERGING = mpl.colors.LinearSegmentedColormap.from_list("nbprop", [NEGATIVE, "white", POSITIVE])


@contextmanager
def style() -> Iterator[None]:
    """The style of nbprop's pictures, for what is drawn inside ``with nbprop.plot.style():``.

    >>> import nbprop
    >>> import matplotlib as mpl
    >>> with nbprop.plot.style():
    ...     mpl.rcParams["axes.spines.top"]
    False
    """
    with styles.context(STYLE):
        yield
        # The first figure loads Matplotlib's backend, and Jupyter's then turns this on. Were it restored with the rest,
        # Jupyter would show no picture after the first.
        interactive = mpl.is_interactive()
    mpl.interactive(interactive)


def _in_style(method):
    """A method of Matplotlib's that reads the style when it is called, not when the axes were made."""

    @functools.wraps(method)
    def styled(self, *arguments, **options):
        with style():
            return method(self, *arguments, **options)

    return styled


class StyledAxes(Axes):
    """Axes whose titles and legends keep the style in which the axes were made."""

    set_title = _in_style(Axes.set_title)
    legend = _in_style(Axes.legend)


class StyledFigure(Figure):
    """The same for a figure's title, and for the resolution of its file."""

    suptitle = _in_style(Figure.suptitle)
    savefig = _in_style(Figure.savefig)


def panels(
    rows: int = 1,
    columns: int = 1,
    *,
    size: tuple[float, float] | None = None,
    mosaic: Any = None,
    **options: Any,
) -> Any:
    """A new figure in nbprop's style, with axes to draw on.

    Parameters
    ----------
    rows, columns : int
    size : (width, height) of the figure in inches, or None for 6 x 3.8
    mosaic : a layout as `matplotlib.pyplot.subplot_mosaic` takes it, in place of rows and columns, or None
    **options : as `matplotlib.pyplot.subplots` or `subplot_mosaic` takes them

    Returns
    -------
    (Figure, Axes or array of Axes); of a mosaic, (Figure, {name: Axes})

    Examples
    --------
    >>> import nbprop
    >>> figure, axes = nbprop.plot.panels(1, 2, size=(9, 3))
    >>> len(axes)
    2
    """
    import matplotlib.pyplot as plt

    chosen: dict[str, Any] = {"subplot_kw": {"axes_class": StyledAxes}, "FigureClass": StyledFigure} | options
    with style():
        if mosaic is not None:
            return plt.subplot_mosaic(mosaic, figsize=size, **chosen)
        return plt.subplots(rows, columns, figsize=size, **chosen)


def axes_or_new(ax: Axes | None, function: str, size: tuple[float, float] | None = None) -> Axes:
    """The axes that a caller gave, or those of a new figure."""
    if ax is None:
        return panels(size=size)[1]
    if not isinstance(ax, Axes):
        raise TypeError(f"plot.{function}: ax must be a Matplotlib Axes or None, got {type(ax).__name__}")
    return ax


def finish(axes: Axes, title: str, x: str, y: str) -> Axes:
    """Title and labels, where the axes have none yet."""
    for get, set_, text in (
        (axes.get_title, axes.set_title, title),
        (axes.get_xlabel, axes.set_xlabel, x),
        (axes.get_ylabel, axes.set_ylabel, y),
    ):
        if text and not get():
            set_(text)
    return axes
