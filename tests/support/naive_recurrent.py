"""Slow, obvious NumPy references of the recurrent layers, one sample and one step at a time."""

import numpy as np

from support.naive import sigmoid


def parts(params, features, units, gates):
    """W, U, b and what follows them, from the flat parameters of one layer."""
    width = gates * units
    w, rest = params[: features * width].reshape(features, width), params[features * width :]
    u, rest = rest[: units * width].reshape(units, width), rest[units * width :]
    return w, u, rest[:width], rest[width:]


def rnn_step(params, x, state, activation=np.tanh):
    """h = f(x W + b + h U); x (features,), state [h]."""
    w, u, b, _ = parts(params, x.size, state[0].size, 1)
    return [activation(x @ w + b + state[0] @ u)]


def lstm_step(params, x, state):
    """Gates i, f, g, o; state [h, c]."""
    h, c = state
    w, u, b, _ = parts(params, x.size, h.size, 4)
    i, f, g, o = np.split(x @ w + b + h @ u, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return [sigmoid(o) * np.tanh(c), c]


def gru_step(params, x, state):
    """Gates r, z, n; the reset gate acts after the product."""
    (h,) = state
    w, u, b, a = parts(params, x.size, h.size, 3)
    r, z, n = np.split(x @ w + b, 3)
    r_h, z_h, n_h = np.split(h @ u, 3)
    r, z = sigmoid(r + r_h), sigmoid(z + z_h)
    n = np.tanh(n + r * (n_h + a))
    return [(1 - z) * n + z * h]


STEPS = {
    "rnn": rnn_step,
    "rnn_relu": lambda params, x, state: rnn_step(params, x, state, lambda z: np.maximum(z, 0)),
    "lstm": lstm_step,
    "gru": gru_step,
}


def forward(kind, params, x, begin, lengths, output):
    """(y, states after the last step); x (n, T, C), begin a list of (n, H), lengths (n,)."""
    n, positions, _ = x.shape
    y, end = np.zeros((n, positions, begin[0].shape[1])), [state.copy() for state in begin]
    for i in range(n):
        state = [part[i] for part in begin]
        for t in range(lengths[i]):
            state = STEPS[kind](params, x[i, t], state)
            y[i, t] = state[0]
        for part, last in zip(end, state, strict=True):
            part[i] = last
    return (y if output == "sequence" else end[0].copy()), end
