"""Backpropagation through time: a network with memory, trained by derivatives that go back through every step.

Werbos, "Backpropagation through time: what it does and how to do it", Proceedings of the IEEE 78 (1990), from his
thesis (1974): put everything that is computed in order of time; the chain rule, applied backwards, then gives the
derivative of the error at any time with respect to every weight at every earlier time. Three things are shown:

    memory      y_t = x_{t-2} xor x_{t-3} for a stream of random bits x: the input no longer contains what is asked for.
                A recurrent layer of 12 units learns it on sequences of 20 bits and then follows a stream of 400; a
                feed-forward net cannot, whether it sees x_t or the window x_t, x_{t-1}, x_{t-2}
    exactness   the gradient through 1,000 steps, compared with a central difference
    its limit   how much of an error signal is left k steps earlier, |dy_T / dx_{T-k}|: in a simple recurrent layer it
                vanishes (Bengio, Simard and Frasconi 1994, IEEE Trans. Neural Networks 5); the cells of an LSTM pass it
                on as long as their forget gates stay open (Hochreiter and Schmidhuber 1997, Neural Computation 9,
                whose cells had no forget gate at all)

The task is ours. quick=True trains for half as long; everything else is the same.

Run: python examples/history/werbos_bptt.py [--seed N] [--picture PATH]
"""

import numpy as np

import nbprop
from command import command
from nbprop.io.pictures import save_picture

UNITS, BITS, SEQUENCES, STREAM = 12, 20, 256, 400
LONG = 1000
LAGS = 200
OPEN = 6.0  # a forget gate's bias that keeps 0.9975 of a cell at every step


# -- memory --------------------------------------------------------------------------------------------------


def bits_and_answers(rng, n, positions, window=1):
    """x (n, positions, window): the last bits as -1 and 1; y (n, positions, 1). Bits before the stream are 0."""
    stream = rng.integers(0, 2, (n, positions + 3))
    stream[:, :3] = 0
    x = np.stack([stream[:, 3 - k : positions + 3 - k] for k in range(window)], axis=-1)
    return 2.0 * x - 1.0, (stream[:, 1 : positions + 1] ^ stream[:, :positions])[..., None].astype(float)


def networks(positions):
    """name: (a network over `positions` steps, the bits it sees)."""
    readout = nbprop.dense(1)
    return {
        "recurrent": (nbprop.network((positions, 1), nbprop.rnn(UNITS), readout), 1),
        "feed-forward": (nbprop.network((positions, 1), nbprop.dense(UNITS, activation="tanh"), readout), 1),
        "window": (nbprop.network((positions, 3), nbprop.dense(UNITS, activation="tanh"), readout), 3),
    }


def learn(name, seed, epochs):
    """The percentage of right answers on a stream twenty times as long as the training sequences."""
    net, window = networks(BITS)[name]
    params, rng = nbprop.init(net, seed), np.random.default_rng(seed)
    x, y = bits_and_answers(rng, SEQUENCES, BITS, window)
    nbprop.fit(net, params, x, y, "binary_cross_entropy", "adam", lr=0.01, batch=32, epochs=epochs, seed=seed)
    # The weights do not depend on the length of a sequence.
    longer = nbprop.plan(networks(STREAM)[name][0], batch=32)
    x, y = bits_and_answers(rng, 32, STREAM, window)
    logits = np.empty(y.shape)
    nbprop.forward(longer, params, x, logits, nbprop.workspace(longer))
    return 100 * float(np.mean((logits > 0) == (y > 0.5)))


# -- exactness -----------------------------------------------------------------------------------------------


def error_through_time(layer, seed):
    """The relative error of a gradient through 1,000 steps along a random direction, by a central difference."""
    net, rng = nbprop.network((LONG, 1), layer, nbprop.dense(1)), np.random.default_rng(seed)
    plan, params = nbprop.plan(net, "mse", 2), nbprop.init(net, seed)
    x, y = rng.standard_normal((2, LONG, 1)), rng.standard_normal((2, LONG, 1))
    grads, work = np.empty_like(params), nbprop.workspace(plan)
    nbprop.value_and_grad(plan, params, x, y, grads, work)
    v = grads / np.linalg.norm(grads) + rng.standard_normal(params.size) / np.sqrt(params.size)
    steps, losses = np.array([-2, -1, 1, 2]) * 1e-4, []
    for step in steps:
        losses.append(nbprop.value(plan, params + step * v, x, y, work))
    found = (losses[0] - 8 * losses[1] + 8 * losses[2] - losses[3]) / 12e-4
    return abs(found - grads @ v) / abs(found)


# -- its limit -----------------------------------------------------------------------------------------------


def small_weights(net, params, rng):
    """Uniform within 1 / sqrt(units), as was usual."""
    params[:] = rng.uniform(-1, 1, params.size) / np.sqrt(net.output_shape[-1])


def open_gates(net, params, rng):
    parts = nbprop.views(net, params)
    units = net.output_shape[-1]
    parts["0.lstm.bias"][units : 2 * units] = OPEN


CELLS = {
    "rnn, small weights": (nbprop.rnn(32, output="last"), small_weights),
    "rnn, orthogonal": (nbprop.rnn(32, output="last"), None),
    "lstm, forget bias 1": (nbprop.lstm(32, output="last"), None),
    f"lstm, forget bias {OPEN:.0f}": (nbprop.lstm(32, output="last"), open_gates),
}


def reach(name, seed, samples=16):
    """|dy_T / dx_{T-k}| for k = 0 ... LAGS, root mean square over samples and outputs, relative to that at k = 0."""
    layer, change = CELLS[name]
    net, rng = nbprop.network((LAGS + 1, 1), layer), np.random.default_rng(seed)
    params = nbprop.init(net, seed)
    if change is not None:
        change(net, params, rng)
    plan = nbprop.plan(net, batch=samples)
    x, y = rng.standard_normal((samples, LAGS + 1, 1)), np.empty((samples, 32))
    grads, dx, work, total = np.empty_like(params), np.empty_like(x), nbprop.workspace(plan), 0.0
    nbprop.forward(plan, params, x, y, work)
    for output in range(32):
        dy = np.zeros_like(y)
        dy[:, output] = 1.0
        nbprop.backward(plan, params, x, dy, grads, dx, work)
        total = total + (dx[:, ::-1, 0] ** 2).mean(0)
    return np.sqrt(total / total[0])


def run(seed, quick=False):
    """Only the net with memory learns; gradients are exact; in 100 steps an rnn's vanish, an open LSTM's do not."""
    right = {name: learn(name, seed, 60 if quick else 120) for name in networks(BITS)}
    errors = {
        kind: error_through_time(layer, seed) for kind, layer in (("rnn", nbprop.rnn(5)), ("lstm", nbprop.lstm(5)))
    }
    curves = {name: reach(name, seed) for name in CELLS}
    vanished, kept = curves["rnn, small weights"][100], curves[f"lstm, forget bias {OPEN:.0f}"][100]
    return {
        "reproduced": bool(
            right["recurrent"] > 99
            and max(right["feed-forward"], right["window"]) < 60
            and max(errors.values()) < 1e-7
            and vanished < 1e-6
            and kept > 0.1
        ),
        **{f"right_percent: {name}": round(value, 2) for name, value in right.items()},
        **{f"gradient_error_over_1000_steps: {kind}": float(f"{error:.1e}") for kind, error in errors.items()},
        **{f"left_after_100_steps: {name}": float(f"{curve[100]:.1e}") for name, curve in curves.items()},
    }


def draw(seed, path):
    from nbprop import plot

    figure, axes = plot.panels(size=(7.5, 4.5))
    for name in CELLS:
        axes.semilogy(np.maximum(reach(name, seed), 1e-18), label=name)
    axes.set(
        xlabel="k, steps back in time",
        ylabel="|dy(T) / dx(T - k)|, as a share of that at k = 0",
        title="What arrives of an error: 32 units, before training",
        ylim=(1e-16, 100),
    )
    axes.legend()
    save_picture(figure, path)


if __name__ == "__main__":
    command(__doc__, run, draw)
