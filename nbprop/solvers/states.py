"""Checks of a compiled solver before it runs: that its state is valid, fits theta, and overlaps no other array.

A state is a user's array: it may have been cut, edited, read from a file, or belong to another problem. So each number
in it is checked before it becomes an index or a bound, by the compiled entry that both Python and @njit code call. An
entry returns what is wrong as a negative number, and has then written nothing.
"""

from numba import types

from nbprop.compiler.argument_types import check_array_type
from nbprop.compiler.fingerprint import python_function
from nbprop.compiler.jit import njit
from nbprop.messages import CACHED_ELSEWHERE

LENGTH, DAMAGED, ALIASED, OUTDATED = -1, -2, -3, -4


@njit
def whole(number, least, most):
    """Whether a float64 is an integer in least..most; false for NaN."""
    return least <= number <= most and number == int(number)


@njit
def overlap(a, a_size, b, b_size):
    """Whether float64 vectors of these sizes, at two addresses, share memory."""
    return a_size > 0 and b_size > 0 and a < b + 8 * b_size and b < a + 8 * a_size


@njit
def check_outcome(outcome):
    """Raise what a negative outcome means."""
    if outcome == LENGTH:
        raise ValueError("state does not fit theta; nbprop.lbfgs_state and nbprop.lm_state make one that does")
    if outcome == DAMAGED:
        raise ValueError("state holds numbers that the solver never writes; create a new one")
    if outcome == ALIASED:
        raise ValueError("an array that is written shares memory with another argument; pass separate buffers")
    if outcome == OUTDATED:
        raise RuntimeError(CACHED_ELSEWHERE)


def refuse(function, outcome):
    """Raise what a negative outcome means, with the function's name."""
    try:
        python_function(check_outcome)(outcome)
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"{function}: {error}") from None


def check_types(function, given):
    """Typing errors for (name, Numba type, rank, written) of arrays that must be contiguous float64."""
    for name, found, rank, written in given:
        check_array_type(f"nbprop.{function}: {name}", found, (types.float64,), "float64", rank=rank, written=written)
