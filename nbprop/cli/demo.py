"""The demo: learn to read real handwritten digits, and show the four steps of backpropagation with real numbers."""

import math
import time
from typing import Any

import numpy as np

import nbprop
from nbprop.compiler.report import reporting
from nbprop.data import digits
from nbprop.io.pictures import save_picture

LOSS = "softmax_cross_entropy"
HELD_OUT, BATCH, EPOCHS, RATE, ITERATIONS = 360, 32, 30, 5e-3, 100
DESCENT = 0.1
OPTIONS: dict[str, Any] = {"loss": LOSS, "optimizer": "adam", "lr": RATE, "batch": BATCH, "schedule": "cosine"}


def network():
    """64 pixels -> 128 -> 64 -> 10 logits."""
    return nbprop.network(
        (64,), nbprop.dense(128, activation="relu"), nbprop.dense(64, activation="relu"), nbprop.dense(10)
    )


class Split:
    """The digits shuffled by a seed: x, y to learn from, test_x, test_y held out."""

    def __init__(self, seed):
        images, labels = digits()
        order = np.random.default_rng(seed).permutation(len(images))
        self.test_x, self.test_y = images[order[:HELD_OUT]], labels[order[:HELD_OUT]]
        self.x, self.y = images[order[HELD_OUT:]], labels[order[HELD_OUT:]]


def demo(seeds=5, picture="nbprop-demo.png"):
    """Run the demo, printing to standard output."""
    began = time.perf_counter()
    net = network()
    data = Split(0)
    _say(
        f"{len(data.x) + len(data.test_x):,} real handwritten digits of 8x8 pixels: {len(data.x):,} to learn from, "
        f"{len(data.test_x)} held out\nnetwork 64 -> 128 relu -> 64 relu -> 10; its {net.n_params:,} parameters are "
        "one flat float32 array\n"
    )
    with reporting(_write) as compiled:
        prepare(net, data)
    show_step(net, data)

    history = History(net, data)
    losses: list[float] = []
    by_adam, seconds = _runs(seeds, lambda seed: train_adam(net, seed, history if seed == 0 else None))
    _say(f"\nAdam, {EPOCHS} epochs of {-(-len(data.x) // BATCH)} steps of {BATCH} images; the first of {seeds} runs:")
    history.tell()
    _say(f"  {seeds} runs in {seconds:.2f} s; right on held-out images: {_percents(by_adam)}")
    show_answers(net, history.params, data)
    by_scipy, seconds = _runs(seeds, lambda seed: train_scipy(net, seed, losses if seed == 0 else None))
    _say(f"\nSciPy's L-BFGS-B, all {len(data.x):,} images in every step; the first of {seeds} runs:")
    for iteration in _some(len(losses)):
        _say(f"  iteration {iteration + 1:3}: loss {losses[iteration]:.6f}")
    _say(f"  {seeds} runs in {seconds:.2f} s; right on held-out images: {_percents(by_scipy)}")

    _say(f"\nmedian of {seeds} runs, each on another shuffled split: L-BFGS-B {_median(by_scipy)}, and Adam:")
    _say(f"held-out accuracy: {_median(by_adam)}")
    if picture and draw(history, losses, picture):
        _say(f"picture: {picture}")
    _say(f"time: {time.perf_counter() - began:.1f} s, of which {compiled.seconds:.1f} s compiling")


def prepare(net, data):
    """Call everything that the demo calls, on eight images, so that compilation happens here."""
    x, y, params = data.x[:8], data.y[:8], nbprop.init(net, dtype=np.float32)
    grads = walk_layers(net, params, x, error_of(y))[2]
    _update(net, params, grads, x, y)
    nbprop.fit(net, params, x, y, epochs=1, **OPTIONS | {"batch": 8})
    nbprop.minimize(nbprop.plan(net, LOSS, 8, np.float32), params, x, y, maxiter=1)


# -- one step, layer by layer --------------------------------------------------------------------------------


def walk_layers(net, params, x, error):
    """Forward layer by layer, then the error signal backward from ``error(logits) -> dL/dlogits``.

    Returns (each layer's output, dL/d of x and of each output, gradient of all parameters). Each layer is a network of
    its own on a slice of the parameters, since any argument may be a view.
    """
    plans, slices, values, works, offset = [], [], [x], [], 0
    for layer, shape in zip(net.layers, net.shapes, strict=False):
        single = nbprop.network(shape, layer)
        plans.append(nbprop.plan(single, batch=len(x), dtype=params.dtype))
        slices.append(slice(offset, offset + single.n_params))
        works.append(nbprop.workspace(plans[-1]))
        values.append(np.empty((len(x), *single.output_shape), params.dtype))
        nbprop.forward(plans[-1], params[slices[-1]], values[-2], values[-1], works[-1])
        offset += single.n_params
    signals, grads = [error(values[-1])], np.empty_like(params)
    for i in reversed(range(len(plans))):
        dx = np.empty_like(values[i])
        nbprop.backward(plans[i], params[slices[i]], values[i], signals[0], grads[slices[i]], dx, works[i])
        signals.insert(0, dx)
    return values[1:], signals, grads


def softmax(logits):
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def error_of(y):
    """dL/dlogits of the mean cross-entropy with classes y: (p - one-hot) / n."""

    def error(logits):
        wanted = np.eye(logits.shape[1], dtype=logits.dtype)[y]
        return ((softmax(logits) - wanted) / len(y)).astype(logits.dtype)

    return error


def strengths(signals):
    """The strength of the error signal at x and at the output of each layer: its mean norm per image."""
    return [float(np.linalg.norm(signal, axis=1).sum()) for signal in signals]


def show_step(net, data):
    """Show one real step on the first images."""
    x, y = data.x[:BATCH], data.y[:BATCH]
    params = nbprop.init(net, seed=0, dtype=np.float32)
    values, signals, grads = walk_layers(net, params, x, error_of(y))
    logits = values[-1]
    p = softmax(logits)
    loss = float(-np.log(p[np.arange(BATCH), y]).mean())
    names = [path.removesuffix(".weight") for path in nbprop.views(net, params) if path.endswith(".weight")]
    guesses = logits.argmax(1)
    wrong = int(np.argmax(guesses != y))
    digit, guess = y[wrong], guesses[wrong]

    _say(f"one step on {BATCH} images, layer by layer")
    _say("  1 forward   y = f(x W + b) in each layer: 64 pixels -> 128 -> 64 -> 10 logits")
    _say(
        f"              image {wrong} is a {digit}; the untrained network says {guess} "
        f"(probability {p[wrong, guess]:.2f}) and gives the {digit} {p[wrong, digit]:.2f}"
    )
    _say(
        f"  2 error     loss = mean of -ln p(right digit) = {loss:.3f} nats; guessing gives ln 10 = {math.log(10):.3f}"
    )
    _say(
        f"              dL/dlogits = (p - one-hot) / {BATCH}; at that image's {digit}: "
        f"({p[wrong, digit]:.2f} - 1) / {BATCH} = {signals[-1][wrong, digit]:.4f}"
    )
    _say("  3 backward  the error signal, from the logits back to the pixels; its mean length for an image:")
    places = ["pixels", *(f"after {name}" for name in names[:-1]), "logits"]
    lengths_of_signals = zip(reversed(places), reversed(strengths(signals)), strict=True)
    _say("              " + ", ".join(f"{place} {strength:.2f}" for place, strength in lengths_of_signals))
    lengths = ", ".join(f"{k} {np.linalg.norm(v):.3f}" for k, v in nbprop.views(net, grads).items() if "weight" in k)
    _say(f"              and with it each layer's gradient; lengths: {lengths}")
    _say("              (value_and_grad does steps 1 to 3 in one call, with the same gradient)")
    before, after = _update(net, params, grads, x, y)
    _say(f"  4 update    gradient descent: parameters -= {DESCENT} * gradient, all {net.n_params:,} at once")
    _say(f"              loss on the same images: {before:.3f} -> {after:.3f}")


def _update(net, params, grads, x, y):
    """One step of gradient descent; the loss before and after. Checks grads against those of value_and_grad."""
    plan = nbprop.plan(net, LOSS, len(x), params.dtype)
    work, whole = nbprop.workspace(plan), np.empty_like(grads)
    before = nbprop.value_and_grad(plan, params, x, y, whole, work)
    if not np.allclose(whole, grads, rtol=1e-4, atol=1e-6):
        raise RuntimeError("the gradient of value_and_grad and that computed layer by layer differ")
    params -= np.float32(DESCENT) * grads
    return before, nbprop.value(plan, params, x, y, work)


# -- training ------------------------------------------------------------------------------------------------


def accuracy(net, params, x, y):
    return float(np.mean(_logits(net, params, x).argmax(1) == y))


def _logits(net, params, x):
    plan = nbprop.plan(net, batch=len(x), dtype=params.dtype)
    logits = np.empty((len(x), 10), params.dtype)
    nbprop.forward(plan, params, x, logits, nbprop.workspace(plan))
    return logits


class History:
    """A record of the first run, one entry per epoch: losses, held-out accuracy, strength of the error signals."""

    def __init__(self, net, data):
        self.net, self.data = net, data
        self.plan = nbprop.plan(net, LOSS, len(data.x), np.float32)
        self.work = nbprop.workspace(self.plan)
        self.training, self.held_out, self.accuracies, self.signals = [], [], [], []
        self.params = None  # a copy of the last

    def record(self, params):
        data, self.params = self.data, params.copy()
        self.training.append(nbprop.value(self.plan, params, data.x, data.y, self.work))
        self.held_out.append(nbprop.value(self.plan, params, data.test_x, data.test_y, self.work))
        self.accuracies.append(accuracy(self.net, params, data.test_x, data.test_y))
        self.signals.append(strengths(walk_layers(self.net, params, data.x, error_of(data.y))[1]))

    def tell(self):
        for epoch in _some(len(self.training)):
            _say(
                f"  epoch {epoch + 1:3}: loss {self.training[epoch]:.4f}, held out {self.held_out[epoch]:.4f}, "
                f"{100 * self.accuracies[epoch]:.1f} % right; error signal {self.signals[epoch][-1]:.3f} at the "
                f"logits, {self.signals[epoch][0]:.3f} at the pixels"
            )


def train_adam(net, seed, history):
    """Accuracy on held-out images after Adam on mini-batches."""
    data, params = Split(seed), nbprop.init(net, seed, np.float32)
    nbprop.fit(
        net,
        params,
        data.x,
        data.y,
        epochs=EPOCHS,
        seed=seed,
        **OPTIONS,
        callback=None if history is None else lambda _: history.record(params),
    )
    return accuracy(net, params, data.test_x, data.test_y)


def train_scipy(net, seed, losses):
    """The same after SciPy's L-BFGS-B on all images at once."""
    data, params = Split(seed), nbprop.init(net, seed, np.float32)
    plan = nbprop.plan(net, LOSS, len(data.x), np.float32)

    def callback(intermediate_result):
        if losses is not None:
            losses.append(float(intermediate_result.fun))

    nbprop.minimize(plan, params, data.x, data.y, "L-BFGS-B", callback=callback, maxiter=ITERATIONS)
    return accuracy(net, params, data.test_x, data.test_y)


def _runs(seeds, train):
    began = time.perf_counter()
    return [train(seed) for seed in range(seeds)], time.perf_counter() - began


# -- output --------------------------------------------------------------------------------------------------


def draw(history, losses, path):
    """Draw the losses and the error signals; False when matplotlib is not installed."""
    try:
        from nbprop import plot
    except ImportError:
        return False
    figure, (adam, scipy, signal) = plot.panels(1, 3, size=(12, 3.8))
    plot.losses({"training": history.training, "held out": history.held_out}, adam)
    adam.set(title="Adam", xlabel="epoch", ylabel="cross-entropy (nats)")
    plot.losses(losses, scipy)
    scipy.set(title="SciPy's L-BFGS-B", xlabel="iteration", ylabel="training cross-entropy (nats)")
    places = ["at the pixels", *(f"after layer {i}" for i in range(len(history.signals[0]) - 2)), "at the logits"]
    plot.losses(dict(zip(places, np.transpose(history.signals), strict=True)), signal)
    signal.set(title="Strength of the error signal", xlabel="epoch", ylabel="mean length for an image")
    save_picture(figure, path)
    return True


_SHADES = " .:-=+*#%@"  # by how much ink a character has, as far as every terminal can show


def pictures(images, captions, gap=4):
    """Digits side by side as text, two characters a pixel, with a caption below each."""
    rows = [
        (" " * gap).join("".join(2 * _SHADES[round(9 * float(v))] for v in row) for row in line)
        for line in np.swapaxes(np.reshape(images, (-1, 8, 8)), 0, 1)
    ]
    return "\n".join(row.rstrip() for row in [*rows, (" " * gap).join(f"{caption:^16}" for caption in captions)])


def show_answers(net, params, data, shown=4):
    """Held-out digits with what the network reads: some of different kinds, then the one it was most wrong about."""
    p = softmax(_logits(net, params, data.test_x))
    answers, right = p.argmax(1), p[np.arange(len(p)), data.test_y]
    chosen = [
        *map(int, np.sort(np.unique(data.test_y, return_index=True)[1])[:shown]),
        *([int(right.argmin())] if (answers != data.test_y).any() else []),
    ]
    captions = [f"{answers[k]} ({p[k, answers[k]]:.2f})" for k in chosen]
    if len(chosen) > shown:
        captions[-1] = f"{captions[-1]}, a {data.test_y[chosen[-1]]}"
    _say("\nwhat it reads, with its probability; the last one is the digit that it gets most wrong:")
    _say(pictures(data.test_x[chosen], captions))


def _write(text):
    print(text, end="", flush=True)


def _say(text):
    print(text, flush=True)


def _median(accuracies):
    return f"{100 * np.median(accuracies):.1f} %"


def _percents(accuracies):
    return ", ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies) + " %"


def _some(count):
    """A few indices up to the last, closer together at the beginning."""
    return sorted({index for index in (0, 1, 2, 4, 9, 19, 29, 49) if index < count} | ({count - 1} if count else set()))
