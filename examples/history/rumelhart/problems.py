"""The problems of the chapter (pp. 330-352): XOR, parity, encoding, symmetry, and T against C.

Each function learns one of them from a seed and returns (number of sweeps, net, params). Targets are 0.1 and 0.9 as in
the chapter (p. 329): a sigmoid unit reaches 0 and 1 only with infinite weights. The letter's symmetry net has 0 and 1.
"""

import numpy as np

import nbprop
from rumelhart.learning import Learner, start, units

LOW, HIGH = 0.1, 0.9


def bits(count):
    """All patterns of `count` bits, (2**count, count)."""
    return ((np.arange(2**count)[:, None] >> np.arange(count)[::-1]) & 1).astype(np.float64)


def levels(yes):
    """Targets for truth values."""
    return np.where(yes, HIGH, LOW)


def parity_of(x):
    return (x.sum(1) % 2 == 1)[:, None]


def xor(seed, hidden=1, most=20_000):
    """Exclusive or. With one hidden unit the inputs also reach the output directly (figure 2, p. 331)."""
    x = bits(2)
    layers = (nbprop.concat([], units(1)), units(1)) if hidden == 1 else (units(hidden), units(1))
    net = nbprop.network((2,), *layers)
    params = start(net, seed)
    return Learner(net, params, x, levels(parity_of(x))).sweep(most, rate=0.5, within=0.1), net, params


def parity(seed, count=4, most=40_000):
    """Is the number of ones odd? As many hidden units as inputs; weights change after each case (p. 334)."""
    x = bits(count)
    net = nbprop.network((count,), units(count), units(1))
    params = start(net, seed)
    return Learner(net, params, x, levels(parity_of(x))).sweep(most, rate=0.5, within=0.1, each=1), net, params


def encoder(seed, count=8, hidden=3, most=20_000):
    """Reproduce which of `count` inputs is on, through log2(count) hidden units (pp. 335-339)."""
    net = nbprop.network((count,), units(hidden), units(count))
    params, x = start(net, seed), np.eye(count)
    return Learner(net, params, x, levels(x == 1)).sweep(most, rate=0.25, within=0.1), net, params


def mirror_symmetric(x):
    return (x == x[:, ::-1]).all(1)[:, None]


def symmetry(seed, most=100_000):
    """Is a row of six bits its own mirror image? Two hidden units; all of the letter's settings (figure 1, p. 534)."""
    x = bits(6)
    net = nbprop.network((6,), units(2), units(1))
    params = start(net, seed)
    learner = Learner(net, params, x, mirror_symmetric(x).astype(np.float64))
    return learner.sweep(most, rate=0.1, momentum=0.9, within=0.1), net, params


# -- T and C, at every position (pp. 348-352) ----------------------------------------------------------------

LETTERS = {"T": ("###", ".#.", ".#."), "C": ("##.", "#..", "##.")}
RETINA, FIELD = 5, 3


def letter(name, turns, row, column):
    """A letter of five squares in one of four orientations; the retina wraps around."""
    square = np.array([[mark == "#" for mark in line] for line in LETTERS[name]], float)
    image = np.pad(np.rot90(square, turns), (0, RETINA - FIELD))
    return np.roll(image, (row, column), axis=(0, 1))


def fields(image):
    """The 3 x 3 receptive fields at every position of the retina, (positions, 9)."""
    around = np.pad(image, (0, FIELD - 1), mode="wrap")
    return np.lib.stride_tricks.sliding_window_view(around, (FIELD, FIELD)).reshape(-1, FIELD**2)


def letters(row, column):
    """The eight patterns at one position: (8, positions, 9), and whether each is a T, (8, 1)."""
    patterns = [fields(letter(name, turns, row, column)) for name in "TC" for turns in range(4)]
    return np.array(patterns), np.repeat([[True], [False]], 4, axis=0)


def t_c(seed, most=100_000):
    """Tell T from C in any orientation. One hidden unit, replicated over the retina: all replicas share their weights.

    A dense layer acts on the last axis, so a layer of one unit is replicated at every position. The replicas are
    connected to the output with one weight, whose gradients are summed.
    """
    x, is_t = letters(1, 1)
    net = nbprop.network(x.shape[1:], units(1), nbprop.flatten(), units(1))
    params = start(net, seed)
    slot = net.slots["2.dense.weight"]
    tied = slice(slot.offset, slot.stop)
    params[tied] = params[slot.offset]
    return Learner(net, params, x, levels(is_t), tied).sweep(most, rate=0.05, within=0.1), net, params
