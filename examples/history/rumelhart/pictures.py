"""The pictures: weights as squares, orange where they excite, blue where they inhibit (the letter: white and black)."""

import numpy as np

import nbprop
from nbprop import plot
from nbprop.io.pictures import save_picture
from rumelhart import family_trees, iterative, problems
from rumelhart.learning import outputs


def rectangles(axes, weights, most=None):
    """Draw an array (rows, columns) without a frame around it."""
    plot.weights(weights, axes, most).set_axis_off()


def draw_trees(seed, path):
    """Figure 4: the weights from the 24 people to each of the six units, English above their Italian equivalents."""
    net, params, right, held_out = family_trees.learn(seed)
    weights = family_trees.person_weights(net, params)
    meant = {}
    for name, (unit, correlation, _) in family_trees.meanings(weights).items():
        meant.setdefault(unit, []).append(f"{name} (correlation {abs(correlation):.2f})")
    figure, axes = plot.panels(3, 2, size=(11, 6.4))
    for unit, panel in enumerate(axes.T.flat):
        rectangles(panel, weights[:, unit].reshape(2, 12), np.abs(weights).max())
        panel.set_title(f"unit {unit + 1}" + "".join(f": {text}" for text in meant.get(unit, [])), fontsize=10)
        for column in range(12):
            for names, row, side in ((family_trees.ENGLISH, -0.65, "bottom"), (family_trees.ITALIAN, 1.65, "top")):
                panel.text(
                    column, row, names[column], rotation=35, fontsize=6, ha="left" if row < 0 else "right", va=side
                )
        panel.set(ylim=(2.6, -1.6))
    learned = right.sum() - right[held_out].sum()
    figure.suptitle(
        "Two family trees: weights from 24 people to the 6 units that encode them (letter, figure 4)\n"
        f"{learned} of 100 facts learned, {right[held_out].sum()} of 4 held out answered right",
        fontsize=11,
    )
    save_picture(figure, path)


def draw_symmetry(axes, seed):
    """Figure 1: the weights on the arcs and the biases in the units of the net that detects symmetry."""
    sweeps, net, params = problems.symmetry(seed)
    parts = nbprop.views(net, params)
    places = {"input": np.array([[i, 0] for i in range(6)]), "hidden": np.array([[0.75, 1.6], [4.25, 1.6]])}
    output = np.array([2.5, 2.9])
    for h, hidden in enumerate(places["hidden"]):
        for i, here in enumerate(places["input"]):
            nearer = i if h == 0 else 5 - i
            _arc(axes, here, hidden, parts["0.dense.weight"][i, h], 0.2 + 0.09 * nearer)
        _arc(axes, hidden, output, parts["1.dense.weight"][h, 0], 0.5)
        _unit(axes, hidden, f"{parts['0.dense.bias'][h]:.1f}")
    _unit(axes, output, f"{parts['1.dense.bias'][0]:.1f}")
    for here in places["input"]:
        _unit(axes, here, "")
    axes.set_title(f"mirror symmetry, {sweeps:,} sweeps (letter, figure 1)", fontsize=10)
    axes.set(xlim=(-0.5, 5.5), ylim=(-0.4, 3.3))
    axes.set_axis_off()


def _arc(axes, start, end, weight, at):
    colour = plot.POSITIVE if weight > 0 else plot.NEGATIVE
    axes.plot(*np.stack([start, end], 1), color=colour, linewidth=0.5 + abs(weight) / 8, alpha=0.6, zorder=1)
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axes.text(*(start + at * (end - start)), f"{weight:.1f}", fontsize=7, ha="center", va="center", bbox=box)


def _unit(axes, place, text):
    axes.scatter(*place, s=420, facecolor="white", edgecolor="black", zorder=2)
    axes.text(*place, text, fontsize=7, ha="center", va="center", zorder=3)


def draw_codes(axes, seed):
    """Table 5: the code of each of the eight patterns."""
    sweeps, net, params = problems.encoder(seed)
    first = nbprop.network((8,), net.layers[0])
    codes = outputs(first, params[: first.n_params], np.eye(8))
    axes.imshow(codes, cmap="gray", vmin=0, vmax=1)
    axes.grid(False)
    for (pattern, unit), value in np.ndenumerate(codes):
        colour = "black" if value > 0.5 else "white"
        axes.text(unit, pattern, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set(xticks=range(3), yticks=range(8), xlabel="hidden unit", ylabel="pattern")
    axes.set_title(f"8-3-8 encoder, {sweeps} sweeps\n(chapter, table 5)", fontsize=10)


def draw_sequence(axes, seed):
    """Outputs of the recurrent net as it completes two held-out sequences."""
    sweeps, net, params, held_out, right = iterative.sequences(seed)
    x, _ = iterative.sequence_data()
    some = held_out[:2]
    y = outputs(net, params, x[some]).reshape(len(some), 4, 3)
    picture = np.concatenate([np.pad(of, ((0, 1), (0, 0)), constant_values=np.nan) for of in y])[:-1].T
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes.grid(False)
    texts = [iterative.SEQUENCES[k] for k in some]
    axes.set(xticks=[*range(4), *range(5, 9)], yticks=range(3), yticklabels="123", ylabel="output unit")
    axes.set_xticklabels([digit for text in texts for digit in text[2:]])
    axes.set_xlabel(f"wanted digits, after {texts[0][:2]} and after {texts[1][:2]}")
    score = f"{right[held_out].sum()} of 20 digits right"
    axes.set_title(f"held-out sequences,\n{sweeps} sweeps, {score}\n(chapter, p. 359)")


def draw_problems(seed, path):
    layout = [["symmetry", "symmetry", "codes", "sequence"], [*"abcd"]]
    figure, axes = plot.panels(mosaic=layout, size=(12, 8))
    draw_symmetry(axes["symmetry"], seed)
    draw_codes(axes["codes"], seed)
    draw_sequence(axes["sequence"], seed)
    for k, (other, name) in enumerate([(4, "compactness"), (6, "centre"), (3, "corners"), (2, "a bar")]):
        panel = axes["abcd"[k]]
        sweeps, net, params = problems.t_c(other)
        rectangles(panel, nbprop.views(net, params)["0.dense.weight"].reshape(3, 3))
        panel.set_title(f"T against C, seed {other}: {name}\n{sweeps:,} sweeps (chapter, figure 15)", fontsize=9)
    save_picture(figure, path)
