"""The elementary functions for device code: compiled, so that simulated threads can call them too."""

import math

from nbprop.compiler.jit import njit
from nbprop.numerics import elementary as functions
from nbprop.numerics import scalars


@njit
def exp(x):
    """e**x."""
    return functions.exp(x)


@njit
def log(x):
    """The natural logarithm."""
    return functions.log(x)


@njit
def sigmoid(x):
    """1 / (1 + e**-x)."""
    return functions.sigmoid(x)


@njit
def tanh(x):
    """The hyperbolic tangent."""
    return functions.tanh(x)


@njit
def real_of_word(x, word):
    """The number of x's type whose bits a word of the row holds."""
    return scalars.real_of_word(x, word)


@njit
def erf(x):
    """The error function."""
    return functions.erf(x)


@njit
def sqrt(x):
    """The square root."""
    return math.sqrt(x)
