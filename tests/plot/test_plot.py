"""nbprop.plot: what is drawn, by the artists on the axes; nothing compares pixels."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

import nbprop

plt = pytest.importorskip("matplotlib.pyplot")

from matplotlib.colors import to_rgb  # noqa: E402

from nbprop import plot  # noqa: E402


@pytest.fixture(autouse=True)
def figures():
    """A figure is written without a warning (of a glyph that no font has, of a layout that fails), and closed."""
    yield
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    plt.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


# -- the style -----------------------------------------------------------------------------------------------


def _linear(colour):
    c = np.array(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def _lab(linear):
    """CIE L*a*b* of linear sRGB, for white D65."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    t = xyz / [0.9505, 1.0, 1.089]
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes (2009), table 1, severity 1.0: what is left of linear RGB.
SIGHTS = {
    "all cones": np.eye(3),
    "no red cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "no blue cones": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def distance(a, b, sight):
    """How different two colours look; around 2 is the least that one sees, side by side."""
    seen = [_lab(np.clip(np.array(SIGHTS[sight]) @ _linear(colour), 0, 1)) for colour in (a, b)]
    return float(np.linalg.norm(seen[0] - seen[1]))


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_differ_for_every_reader(sight):
    assert min(distance(a, b, sight) for a, b in itertools.combinations(plot.COLOURS, 2)) > 10
    assert distance(plot.POSITIVE, plot.NEGATIVE, sight) > 40


def test_the_measure_of_colours_finds_what_is_hard_to_tell():
    """Matplotlib's red and green, for readers without green cones."""
    assert distance("#d62728", "#2ca02c", "all cones") > 100
    assert distance("#d62728", "#8c7a00", "no green cones") < 40


def test_style_leaves_no_trace():
    before = dict(plt.rcParams)
    with plot.style():
        assert plt.rcParams["axes.spines.top"] is False
    plot.losses([1.0, 0.5])
    assert dict(plt.rcParams) == before


def test_panels():
    figure, axes = plot.panels(2, 3, size=(7, 4))
    assert axes.shape == (2, 3)
    assert figure.get_size_inches().tolist() == [7, 4]
    _, named = plot.panels(mosaic=[["a", "a", "b"]])
    assert set(named) == {"a", "b"}


def test_titles_keep_the_style_of_their_axes():
    """Matplotlib reads it when a title is set; axes of the caller's own are left alone."""
    figure, ax = plot.panels()
    ax.set_title("t")
    assert ax.title.get_fontsize() == 10
    figure.suptitle("whole")
    assert figure._suptitle.get_fontsize() == 11
    mine = plt.subplots()[1]
    mine.set_title("t")
    assert mine.title.get_fontsize() == 12


DRAW = {
    "losses": lambda ax: plot.losses([2.0, 1.0], ax),
    "gradients": lambda ax: plot.gradients(NET, np.ones(NET.n_params), ax),
    "predicted": lambda ax: plot.predicted(np.arange(3.0), np.arange(3.0), ax),
    "confusion": lambda ax: plot.confusion(np.array([0, 1]), np.array([1, 1]), ax),
    "decision_surface": lambda ax: plot.decision_surface(NET, nbprop.init(NET, seed=0), np.eye(2), None, ax),
    "weights": lambda ax: plot.weights(np.eye(3), ax),
    "trace": lambda ax: plot.trace(traced(), ax),
}
NET = nbprop.network((2,), nbprop.dense(3, activation="tanh"), nbprop.dense(1))


def traced(net=NET, loss="mse", target=None, samples=2):
    target = np.array([[0.3], [-2.0]]) if target is None else target
    plan, x = nbprop.plan(net, loss=loss), np.linspace(-1, 1, samples * net.input_shape[0]).reshape(samples, -1)
    return nbprop.trace(plan, nbprop.init(net, seed=1), x, target)


@pytest.mark.parametrize("name", DRAW)
def test_every_function_draws_on_the_axes_that_it_is_given(name):
    figure, (left, right) = plt.subplots(1, 2)
    right.set(title="mine", xlabel="a", ylabel="b")
    assert DRAW[name](right) is right
    assert not left.has_data()
    assert right.has_data() or right.patches
    assert (right.get_title(), right.get_xlabel(), right.get_ylabel()) == ("mine", "a", "b")
    assert DRAW[name](None).figure is not figure
    with pytest.raises(TypeError, match=rf"plot\.{name}: ax must be a Matplotlib Axes or None, got list"):
        DRAW[name]([])


def test_all_functions_are_in_the_table_above():
    functions = {name for name in plot.__all__ if callable(getattr(plot, name)) and name[0].islower()}
    assert functions - {"style", "panels"} == set(DRAW)


# -- curves --------------------------------------------------------------------------------------------------


def test_losses_of_a_history():
    history = nbprop.History(loss=[1.0, 0.5, 0.2], validation_loss=[1.1, 0.4, 0.6], best_epoch=1)
    ax = plot.losses(history)
    training, validation, best = ax.lines
    assert training.get_xdata().tolist() == [1, 2, 3]
    assert training.get_ydata().tolist() == history.loss
    assert validation.get_ydata().tolist() == history.validation_loss
    assert best.get_xdata() == [2, 2]
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training", "validation", "best, epoch 2"]


def test_losses_that_a_logarithm_has_no_place_for():
    """Negative log densities fall below 0."""
    assert plot.losses([1.0, -0.5]).get_yscale() == "linear"
    assert plot.losses([np.nan, 1.0]).get_yscale() == "linear"


@pytest.mark.parametrize("nothing", [[], {}, {"a": []}, [[1.0]], nbprop.History()])
def test_losses_of_nothing(nothing):
    with pytest.raises(ValueError, match=r"plot.losses: history must hold at least one loss"):
        plot.losses(nothing)
    with pytest.raises(TypeError, match=r"plot.losses: history must be"):
        plot.losses("abc")


def test_gradients_are_root_mean_squares():
    rng = np.random.default_rng(0)
    grads = rng.standard_normal(NET.n_params)
    wanted = {name: np.sqrt((part**2).mean()) for name, part in nbprop.views(NET, grads).items()}
    ax = plot.gradients(NET, grads)
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], list(wanted.values()))
    assert [label.get_text() for label in ax.get_yticklabels()] == list(wanted)
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first layer on top
    ax = plot.gradients(NET, np.stack([grads, 2 * grads]))
    np.testing.assert_allclose([line.get_ydata() for line in ax.lines], [[w, 2 * w] for w in wanted.values()])


def test_gradients_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"grads must have shape \(13,\) or \(steps, 13\).*got \(3,\)"):
        plot.gradients(NET, np.ones(3))
    with pytest.raises(TypeError, match=r"net must be what nbprop\.network"):
        plot.gradients(None, np.ones(3))


# -- answers -------------------------------------------------------------------------------------------------


def test_predicted():
    target = np.array([[0.0, 10.0], [2.0, 14.0]])
    ax = plot.predicted(target, target + 1)
    line, first, second = ax.lines
    assert list(line.get_xdata()) == list(line.get_ydata()) == [0, 15]
    assert first.get_xdata().tolist() == [0, 2]
    assert second.get_ydata().tolist() == [11, 15]
    assert ax.get_title() == "R² = 0.6, RMSE = 1"  # squares about each output's mean: 1, 1, 4, 4
    assert plot.predicted(np.ones(3), np.ones(3)).get_title() == "RMSE = 0"
    with pytest.raises(ValueError, match=r"prediction must have the shape of target.*got \(2,\) for \(2, 2\)"):
        plot.predicted(target, np.ones(2))


def test_confusion_counts():
    labels, answers = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 0])
    ax = plot.confusion(labels, answers, names=["a", "b", "c"])
    places = {text.get_position()[::-1]: text.get_text() for text in ax.texts}
    assert places == {(0, 0): "2", (0, 1): "1", (1, 1): "1", (2, 0): "1"}
    np.testing.assert_allclose(ax.images[0].get_array(), [[2 / 3, 1 / 3, 0], [0, 1, 0], [1, 0, 0]])
    assert ax.get_title() == "3 of 5 right (60 %)"


@pytest.mark.parametrize(
    ("labels", "answers", "error"),
    [
        ([0.0], [0.0], r"labels must hold integers, got float64"),
        ([0, 1], [[0.1, 0.2]], r"answers must hold integers, got float64; for logits, \.argmax"),
        ([0, 1], [0], "answers must be"),
        ([-1], [0], "labels must be"),
    ],
)
def test_confusion_refuses(labels, answers, error):
    with pytest.raises((TypeError, ValueError), match=error):
        plot.confusion(np.array(labels), np.array(answers))
    with pytest.raises(ValueError, match=r"names must name all 2 classes, got 1"):
        plot.confusion(np.array([0]), np.array([1]), names=["a"])


def linear(*columns):
    """A network without hidden layers, and its parameters: y = x W."""
    net = nbprop.network((2,), nbprop.dense(len(columns)))
    return net, np.concatenate([np.array(columns, np.float64).T.ravel(), np.zeros(len(columns))])


def test_decision_surface_of_one_output():
    """y = x0: the colour is the value, and the line is where it is 0."""
    net, params = linear([1.0, 0.0])
    ax = plot.decision_surface(net, params, np.array([[-1.0, -1.0], [1.0, 1.0]]), np.array([0, 1]))
    left, right, bottom, top = ax.images[0].get_extent()
    np.testing.assert_allclose((left, right, bottom, top), (-1.3, 1.3, -1.3, 1.3))
    surface = ax.images[0].get_array()
    np.testing.assert_allclose(surface, np.broadcast_to(np.linspace(left, right, 200), (200, 200)))
    (contour,) = [c for c in ax.collections if hasattr(c, "levels")]
    (vertices,) = contour.allsegs[0]
    np.testing.assert_allclose(vertices[:, 0], 0, atol=1e-9)


def test_decision_surface_of_classes():
    """Three linear scores: each corner of the picture has the colour of its class, and so do the samples."""
    net, params = linear([-5.0, -5.0], [5.0, -5.0], [0.0, 5.0])
    x = np.array([[-1.0, -1.0], [1.0, -1.0], [0.0, 1.0]])
    ax = plot.decision_surface(net, params, x, np.array([0, 1, 2]))
    picture = ax.images[0].get_array()
    for k, (row, column) in enumerate([(0, 0), (0, -1), (-1, 100)]):
        nearest = [np.linalg.norm(picture[row, column] - (0.4 + 0.6 * np.array(to_rgb(c)))) for c in plot.COLOURS[:3]]
        assert np.argmin(nearest) == k
    (points,) = ax.collections
    np.testing.assert_allclose(points.get_offsets(), x)
    points.update_scalarmappable()
    assert [tuple(c[:3]) for c in points.get_facecolors()] == [to_rgb(c) for c in plot.COLOURS[:3]]


def test_decision_surface_is_the_networks_use():
    """Running statistics, no dropout; and the state is not changed."""
    net = nbprop.network((2,), nbprop.batchnorm(), nbprop.dropout(0.5), nbprop.dense(1))
    params, state = nbprop.init(net, seed=0, dtype=np.float32), nbprop.layer_state(nbprop.plan(net, dtype=np.float32))
    before = state.copy()
    x = np.array([[0.0, 0.0], [1.0, 1.0]], np.float32)
    surfaces = [plot.decision_surface(net, params, x, state=state).images[0].get_array() for _ in range(2)]
    np.testing.assert_array_equal(*surfaces)
    np.testing.assert_array_equal(state, before)


def test_decision_surface_refuses():
    net, params = linear([1.0, 0.0])
    with pytest.raises(TypeError, match=r"net must be a network from \(2,\) to a vector"):
        plot.decision_surface(nbprop.network((3,), nbprop.dense(1)), params, np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"x must be \(n, 2\), got \(2,\)"):
        plot.decision_surface(net, params, np.ones(2))
    with pytest.raises(ValueError, match=r"params must"):
        plot.decision_surface(net, params[:2], np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"labels must be \(1,\) as x"):
        plot.decision_surface(net, params, np.ones((1, 2)), np.array([0, 1]))


# -- weights -------------------------------------------------------------------------------------------------


def test_weights_are_areas():
    values = np.array([[4.0, -1.0, 0.0]])
    ax = plot.weights(values)
    (squares,) = ax.collections
    corners = [path.vertices for path in squares.get_paths()]
    areas = [np.prod(np.ptp(c, axis=0)) for c in corners]
    np.testing.assert_allclose(areas, areas[0] * np.array([1, 0.25, 0]))
    np.testing.assert_allclose([c[:4].mean(0) for c in corners], [[0, 0], [1, 0], [2, 0]])
    assert [tuple(c[:3]) for c in squares.get_facecolors()][:2] == [to_rgb(plot.POSITIVE), to_rgb(plot.NEGATIVE)]
    half = plot.weights(values, most=16.0).collections[0].get_paths()[0].vertices
    np.testing.assert_allclose(np.prod(np.ptp(half, axis=0)), areas[0] / 4)


def test_many_weights_are_an_image():
    ax = plot.weights(np.linspace(-2, 1, 64 * 32).reshape(64, 32))
    assert not ax.collections
    assert ax.images[0].get_clim() == (-2, 2)


@pytest.mark.parametrize("values", [np.ones((2, 2, 2)), np.empty(0), np.array(["a"]), np.array([np.nan])])
def test_weights_refuses(values):
    with pytest.raises(ValueError, match=r"plot.weights: values must"):
        plot.weights(values)


def test_without_matplotlib():
    """The error says what to install; nothing else of nbprop needs it."""
    code = "import sys; sys.modules['matplotlib'] = None; import nbprop; nbprop.network; nbprop.plot"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: nbprop.plot needs Matplotlib; install it with: pip install nbprop[plot]" in done.stderr


# -- traces --------------------------------------------------------------------------------------------------


def test_trace_draws_activities_and_forces():
    found = traced()
    ax = plot.trace(found, sample=1)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [2, 3, 1]
    forces = [-2 * g[1].ravel() for g in (found.dx, *(u.gradient for u in found.units.values()))]
    numbers = [text.get_text() for text in ax.texts if text.get_text()[:1] in ("+", "-")]
    wanted = np.concatenate(forces)
    wanted = wanted[abs(wanted) > 1e-3 * abs(wanted).max()]
    assert numbers == [f"{force:+.2g}" for force in wanted]
    arrows = [text for text in ax.texts if getattr(text, "arrowprops", None)]
    up = [arrow.xy[1] > arrow.xyann[1] for arrow in arrows]
    assert up == (wanted > 0).tolist()
    lines = [line for line in ax.lines if line.get_alpha() == 0.45]
    weights = [w for name, part in nbprop.views(NET, found.params).items() if "weight" in name for w in part.ravel()]
    assert [to_rgb(line.get_color()) for line in lines] == [
        to_rgb(plot.POSITIVE if w > 0 else plot.NEGATIVE) for w in weights
    ]
    assert sum(line.get_marker() == "*" for line in ax.lines) == 1


def test_trace_of_wide_layers_and_classes():
    net = nbprop.network((2,), nbprop.dense(40, activation="relu"), nbprop.dense(3))
    ax = plot.trace(traced(net, "softmax_cross_entropy", np.array([0, 2])), sample=1)
    assert len(ax.images) == 2  # 40 activities, 40 forces
    (star,) = [line for line in ax.lines if line.get_marker() == "*"]
    assert list(star.get_ydata()) == [-1]  # the third class is the lowest


def test_trace_refuses():
    with pytest.raises(TypeError, match=r"plot\.trace: found must be what nbprop\.trace"):
        plot.trace(NET)
    with pytest.raises(ValueError, match=r"plot\.trace: sample"):
        plot.trace(traced(), sample=2)
