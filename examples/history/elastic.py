"""Hinton's picture of backpropagation: an elastic band pulls at each output, and its force reaches every unit.

He tells it in his talks: tie an elastic band between what an output is and what it should be, and it pulls. Nobody can
pull at the units below, but the weights turn the force at the output into a force on each of them, with a direction and
a strength. Then every weight gives way a little.

With E = 1/2 sum (y - d)^2, the band's force at output k is d_k - y_k, and the force on a unit with activity a is
-dE/da = sum_k (d_k - y_k) dy_k/da. `nbprop.explain` computes dy_k/da for every unit.

Run: python examples/history/elastic.py [--seed N] [--picture PATH]
"""

import numpy as np

import nbprop
from command import command
from nbprop.io.pictures import save_picture

SIZES, X, WANTED = (3, 4, 3, 2), np.array([0.8, -0.5, 0.3]), np.array([0.7, -0.6])
STEPS, RATE = 400, 0.1


def network(sizes=SIZES):
    """Layers of tanh units, whose activities lie between -1 and 1."""
    return nbprop.network((sizes[0],), *[nbprop.dense(size, activation="tanh") for size in sizes[1:]])


def activities_and_forces(net, params, x=X):
    """[(activities, forces) of each layer of units, the inputs first]; x (inputs,)."""
    plan, outputs = nbprop.plan(net), net.output_shape[0]
    found = nbprop.explain(plan, params, np.repeat(x[None], outputs, axis=0), output=np.arange(outputs), steps=1)
    pull = WANTED - found.value
    return [(layer.value[0], pull @ layer.gradient) for layer in (found.inputs, *found.units.values())]


def energy(net, params, x):
    """The energy stored in the elastic bands."""
    y = np.empty((1, *net.output_shape))
    plan = nbprop.plan(net)
    nbprop.forward(plan, params, x[None], y, nbprop.workspace(plan))
    return 0.5 * float(((y[0] - WANTED) ** 2).sum())


def forces_by_hand(net, params, layer, activities, reach=1e-5):
    """The forces on a layer's units by central differences; the layers above are treated as a net of their own."""
    if layer == len(net.layers):
        return WANTED - activities
    above = nbprop.network(net.shapes[layer], *net.layers[layer:])
    theirs = params[params.size - above.n_params :]
    moves = reach * np.eye(activities.size)
    return np.array([energy(above, theirs, activities - m) - energy(above, theirs, activities + m) for m in moves]) / (
        2 * reach
    )


def give_way(net, params, steps):
    """Let every weight give way to the forces, `steps` times; params change in place."""
    plan = nbprop.plan(net)
    y, grads, work = np.empty((1, *net.output_shape)), np.empty_like(params), nbprop.workspace(plan)
    for step in range(steps):
        nbprop.forward(plan, params, X[None], y, work)
        nbprop.backward(plan, params, X[None], y - WANTED, grads, None, work)
        nbprop.sgd(params, grads, np.empty(0), step, RATE)


def start(net, seed):
    """Weights that make a visible difference: uniform between -1 and 1."""
    return np.random.default_rng(seed).uniform(-1, 1, net.n_params)


def run(seed, quick=False):
    """The forces agree with central differences, and following them slackens the elastic bands."""
    net = network()
    params = start(net, seed)
    layers = activities_and_forces(net, params)
    by_hand = [forces_by_hand(net, params, layer, activities) for layer, (activities, _) in enumerate(layers)]
    largest = max(np.abs(force).max() for force in by_hand)
    error = max(np.abs(force - hand).max() for (_, force), hand in zip(layers, by_hand, strict=True)) / largest
    before = energy(net, params, X)
    give_way(net, params, STEPS)
    after = energy(net, params, X)
    told = [", ".join(f"{a:.2f} ({f:+.3f})" for a, f in zip(*layer, strict=True)) for layer in layers]
    return {
        "reproduced": bool(error < 1e-8 and after < 0.01 * before),
        **{f"activity_(force)_in_layer_{layer}": text for layer, text in enumerate(told)},
        "force_error": float(f"{error:.1e}"),
        "energy_before": round(before, 6),
        "energy_after": float(f"{after:.2e}"),
    }


# -- the drawing ---------------------------------------------------------------------------------------------


def draw(seed, path):
    """Five panels: forward pass; elastic bands; the force one layer down; on every unit; after the weights gave way."""
    from nbprop import plot

    net = network()
    params = start(net, seed)
    before, weights = activities_and_forces(net, params), _weights(net, params)
    give_way(net, params, STEPS)
    after, top = activities_and_forces(net, params), len(SIZES) - 1
    panels = [
        ("1  forward: every unit takes its height", before, weights, None),
        ("2  an elastic pulls at each output", before, weights, top),
        ("3  through the weights: a force at the units below", before, weights, top - 1),
        ("4  and so on, down to every unit", before, weights, 0),
        (f"5  every weight has given way a little, {STEPS} times", after, _weights(net, params), 0),
    ]
    figure, axes = plot.panels(2, 3, size=(13, 8))
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, *panel)
    axes.flat[-1].set_axis_off()
    axes.flat[-1].text(
        *(0.05, 0.5),
        "black dot: a unit's activity, a height from -1 to 1\n"
        "star: the wanted output; spring: the elastic\n"
        "arrow and number: the force, -dE/d activity\n"
        "lines: weights, orange positive, blue negative\n\n"
        "the input layer is on the left, the outputs on the right",
        fontsize=11,
        va="center",
    )
    save_picture(figure, path)


def _weights(net, params):
    return [array.copy() for name, array in nbprop.views(net, params).items() if name.endswith("weight")]


def _bottoms(size):
    """Where the tracks of a layer's units begin, from the top one down."""
    return 1.45 * ((size - 1) / 2 - np.arange(size))


def _draw_panel(axes, title, layers, weights, down_to):
    """One state of the net; forces are drawn from layer `down_to` up (None: neither forces nor elastics)."""
    from nbprop.plot import COLOURS, NEGATIVE, POSITIVE

    force_colour = COLOURS[2]
    heights = [_bottoms(activities.size) + (activities + 1) / 2 for activities, _ in layers]
    for layer, matrix in enumerate(weights):
        for (i, j), weight in np.ndenumerate(matrix):
            colour = POSITIVE if weight > 0 else NEGATIVE
            ends = [layer, layer + 1], [heights[layer][i], heights[layer + 1][j]]
            axes.plot(*ends, color=colour, linewidth=1.2 * abs(weight), alpha=0.3)
    for layer, (_, forces) in enumerate(layers):
        for bottom, height, force in zip(_bottoms(forces.size), heights[layer], forces, strict=True):
            axes.plot([layer, layer], [bottom, bottom + 1], color="lightgrey", linewidth=6, solid_capstyle="round")
            axes.plot(layer, height, "o", color="black", markersize=9, zorder=3)
            if down_to is not None and layer >= down_to:
                arrow = {"arrowstyle": "-|>", "color": force_colour, "linewidth": 2.5, "shrinkA": 0, "shrinkB": 0}
                if abs(force) > 0.005:
                    side = layer - 0.09
                    axes.annotate("", (side, height + 0.8 * force), (side, height), arrowprops=arrow, zorder=4)
                place, align = (layer - 0.16, "right") if layer == len(layers) - 1 else (layer + 0.1, "left")
                text = f"{force:+.2f}" if abs(force) > 0.005 else "0"
                axes.text(place, height, text, fontsize=9, va="center", ha=align, color=force_colour, zorder=5)
    if down_to is not None:
        top = len(layers) - 1
        for bottom, wanted, height in zip(_bottoms(WANTED.size), WANTED, heights[-1], strict=True):
            goal = bottom + (wanted + 1) / 2
            swings = top + 0.4 + 0.05 * np.where(np.arange(15) % 2, 1, -1)
            axes.plot(swings, np.linspace(height, goal, 15), color="black", linewidth=1.2)
            axes.plot([top, top + 0.4], [height, height], color="black", linewidth=0.6)
            axes.plot(top + 0.4, goal, "*", color="black", markersize=13)
    axes.set_title(title)
    axes.set(xlim=(-0.3, len(layers) - 0.4), ylim=(-2.5, 3.5))
    axes.set_axis_off()


if __name__ == "__main__":
    command(__doc__, run, draw, seed=4)
