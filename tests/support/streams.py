"""The random generator word by word, and the level of the checks of its distributions."""

from nbprop.compiler.jit import njit
from nbprop.numerics import random

# Seeds are fixed, and a sound generator fails a check at level p for the fraction p of them. A fault gives far less.
CHANCE = 1e-4


@njit
def block_of_stream(seed, stream, index):
    return random.block(seed, stream, index)
