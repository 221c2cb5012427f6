"""Typing errors for arrays that a call from @njit brings: the checks that Numba's types allow, before code is made."""

from numba import types
from numba.core.errors import TypingError

from nbprop.messages import MESSAGES, ORDER, READ_ONLY


def is_absent(found):
    """Whether an argument was left out, or is None."""
    return found is None or isinstance(found, (types.NoneType, types.Omitted))


def check_array_type(argument, found, dtypes, wanted, *, rank=None, written=False, optional=False):
    """Raise TypingError unless `found` is the Numba type of a C-contiguous array of one of `dtypes`.

    argument: "nbprop.hvp: v"; dtypes: Numba types, or classes of them; wanted: the same in words; optional: it may be
    left out.
    """
    if optional and is_absent(found):
        return
    if not isinstance(found, types.Array) or (rank is not None and found.ndim != rank):
        raise TypingError(f"{argument} must be {_an_array(rank)}, got {found}")
    if found.layout != "C" and found.ndim > 0:
        raise TypingError(f"{argument} {MESSAGES[ORDER].brief}; its type is {found}")
    if not any(found.dtype == one or (isinstance(one, type) and isinstance(found.dtype, one)) for one in dtypes):
        raise TypingError(f"{argument} must hold {wanted}, got {found.dtype}")
    if written and not found.mutable:
        raise TypingError(f"{argument} {MESSAGES[READ_ONLY].brief}; its type is {found}")


def _an_array(rank):
    return "an array" if rank is None else f"a {rank}-D array"


def check_integer_type(argument, found):
    """Raise TypingError unless a number is an integer."""
    if not isinstance(found, (int, types.Integer, types.Omitted)):
        raise TypingError(f"{argument} must be an integer, got {found}")


def check_flag_type(argument, found):
    """Raise TypingError unless a switch is a bool."""
    if not isinstance(found, (bool, types.Boolean, types.Omitted)):
        raise TypingError(f"{argument} must be True or False, got {found}")
