"""Why that digit? What every pixel, unit and connection contributed to an answer.

A network learns the 8x8 digits that come with the package; then `nbprop.explain` decomposes the logit of its answer.
The integrated gradients of the pixels (Sundararajan et al. 2017) add up to the change in the logit that the image
makes, and so do those of the hidden units and of the connections. --picture why.png draws them.
"""

import numpy as np

import nbprop
import nbprop.data
from nbprop import plot
from nbprop.io.pictures import picture_option, save_picture

HIDDEN = 16


def train(images, labels):
    net = nbprop.network((64,), nbprop.dense(HIDDEN, activation="tanh"), nbprop.dense(10))
    params = nbprop.init(net, seed=0, dtype=np.float32)
    nbprop.fit(net, params, images, labels, "softmax_cross_entropy", lr=1e-2, batch=32, epochs=30, schedule="cosine")
    return net, params


def signed(axes, values, title):
    """An 8x8 map of contributions: orange is evidence for the answer, blue against it."""
    most = np.abs(values).max()
    axes.imshow(values.reshape(8, 8), cmap=plot.DIVERGING, vmin=-most, vmax=most)
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def draw_network(axes, found, i):
    """The 120 connections that contributed most for image i, and its units; width and area are contributions."""
    first, second = (found.connections[f"{layer}.dense.weight"].integrated[i] for layer in (0, 1))
    pixels = np.stack(np.divmod(np.arange(64), 8)[::-1], 1) * [0.1, -0.13] + [0, 0.95]
    units, output = np.stack([np.full(HIDDEN, 1.6), np.linspace(1, 0, HIDDEN)], 1), np.array([2.6, 0.5])
    lines = [(first[p, u], pixels[p], units[u]) for p in range(64) for u in range(HIDDEN)]
    lines += [(second[u, found.output[i]], units[u], output) for u in range(HIDDEN)]
    lines.sort(key=lambda line: abs(line[0]))
    most = abs(lines[-1][0])
    for value, start, end in lines[-120:]:
        colour = plot.POSITIVE if value > 0 else plot.NEGATIVE
        axes.plot(*np.stack([start, end], 1), color=colour, linewidth=4 * abs(value) / most, alpha=0.6, zorder=1)
    told = ((pixels, found.inputs, "s"), (units, found.units["0.dense"], "o"))
    for places, contributions, shape in told:
        values = contributions.integrated[i]
        colours, areas = np.where(values > 0, plot.POSITIVE, plot.NEGATIVE), 150 * np.abs(values) / np.abs(values).max()
        axes.scatter(*places.T, s=12, facecolor="white", edgecolor="lightgrey", marker=shape, zorder=2)
        axes.scatter(*places.T, s=areas, c=colours, marker=shape, zorder=3)
    axes.text(*output, f"  {found.output[i]}", fontsize=20, va="center")
    axes.set_title("integrated: pixels, hidden units, and the 120 strongest connections", fontsize=9)
    axes.set_axis_off()


def draw(images, found, path):
    figure, axes = plot.panels(len(images), 5, size=(13, 2.8 * len(images)), width_ratios=[1, 1, 1, 1, 2.6])
    for i, (image, row) in enumerate(zip(images, axes, strict=True)):
        row[0].imshow(image.reshape(8, 8), cmap="gray_r")
        row[0].set_axis_off()
        row[0].set_title(f"answer: {found.output[i]}, logit {found.value[i]:.1f}", fontsize=9)
        signed(row[1], found.inputs.gradient[i], "gradient")
        signed(row[2], found.inputs.product[i], "gradient x input")
        signed(row[3], found.inputs.integrated[i], "integrated gradients")
        draw_network(row[4], found, i)
    figure.suptitle("what each part contributed to the answer: orange for it, blue against it")
    save_picture(figure, path)


def main():
    picture = picture_option(__doc__, "contributions to three answers")
    images, labels = nbprop.data.digits()
    net, params = train(images[100:], labels[100:])
    some = images[[3, 30, 17]]
    found = nbprop.explain(nbprop.plan(net, dtype=np.float32), params, some)
    for i in range(len(some)):
        made = found.value[i] - found.baseline_value[i]
        parts = found.inputs.integrated[i].sum(), found.units["0.dense"].integrated[i].sum()
        print(f"answer {found.output[i]}: the image raised its logit by {made:.4f}, ", end="")
        print(f"pixels sum to {parts[0]:.4f}, units to {parts[1]:.4f}; largest gap {found.inputs.gap[i]:.1e}")
    if picture:
        draw(some, found, picture)


if __name__ == "__main__":
    main()
