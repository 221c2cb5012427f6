"""Iterative nets (letter, p. 535 and figure 5; chapter, pp. 354-360): a net run for T steps is a net of T layers.

All layers have the same weights: that is `share=`, and the gradients of all uses are accumulated. A three-unit shift
register, and sequences that a net completes from their first two letters.
"""

import numpy as np

import nbprop
from rumelhart.learning import Learner, outputs, start, units
from rumelhart.problems import bits, levels


def shift_register(seed, steps=2, most=20_000):
    """Three units, each connected to all three: after two steps the pattern has moved by one unit."""
    x = bits(3)
    net = nbprop.network((3,), units(3), *[units(3, share="0.dense") for _ in range(steps - 1)])
    params = start(net, seed)
    return Learner(net, params, x, levels(np.roll(x, 1, axis=1) == 1)).sweep(most, rate=0.25, within=0.1), net, params


# -- sequences: a first letter stands for two digits, and so does the second ---------------------------------

LETTERS = "ABCDE"
DIGITS = {"A": "12", "B": "23", "C": "31", "D": "21", "E": "13"}
SEQUENCES = [a + b + DIGITS[a] + DIGITS[b] for a in LETTERS for b in LETTERS]  # AA1212, AB1223, ... EE1313
HIDDEN, STEPS = 30, 6


def sequence_network():
    """5 inputs, 30 hidden units that all see each other's previous state, 3 outputs, unrolled for six steps.

    The vector that passes through the layers is [hidden state, inputs to come, outputs so far]. A step takes the state
    and its own input off the front, puts the next state there, and passes on the rest.
    """
    layers, cell, readout = [], None, None
    for step in range(STEPS):
        to_come, given = 5 * (STEPS - 1 - step), 3 * max(0, step - 2)
        now = [nbprop.slicing(0, HIDDEN + 5), units(HIDDEN, share=cell)]
        rest = nbprop.slicing(HIDDEN + 5, HIDDEN + 5 + to_come + given)
        layers.append(nbprop.concat(now, rest))
        cell = cell or f"{len(layers) - 1}.concat.0.1.dense"
        if step >= 2:
            layers.append(nbprop.concat([], [nbprop.slicing(0, HIDDEN), units(3, share=readout)]))
            readout = readout or f"{len(layers) - 1}.concat.1.1.dense"
    layers.append(nbprop.slicing(HIDDEN, HIDDEN + 12))
    return nbprop.network((HIDDEN + 5 * STEPS,), *layers)


def sequence_data():
    """(25, 60): state 0, then two letters and no more input; and the digits that follow, (25, 4, 3)."""
    letters = np.array([[[c == letter for letter in LETTERS] for c in s[:2]] for s in SEQUENCES], float)
    x = np.zeros((25, HIDDEN + 5 * STEPS))
    x[:, HIDDEN : HIDDEN + 10] = letters.reshape(25, 10)
    return x, np.array([[[c == digit for digit in "123"] for c in s[2:]] for s in SEQUENCES])


def sequences(seed, most=5_000):
    """Learn 20 of the 25 sequences; (sweeps, net, params, the five held out (5,), digits that are right (25, 4))."""
    x, digits = sequence_data()
    target = levels(digits.reshape(25, 12))
    held_out = np.random.default_rng(seed).choice(25, 5, replace=False)
    learned = np.setdiff1d(np.arange(25), held_out)
    net = sequence_network()
    params = start(net, seed)
    sweeps = Learner(net, params, x[learned], target[learned]).sweep(most, rate=0.05, within=0.4)
    right = outputs(net, params, x).reshape(25, 4, 3).argmax(2) == digits.argmax(2)
    return sweeps, net, params, held_out, right
