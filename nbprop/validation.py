"""Checks of values at every entry, in one place: numbers, integers, switches, seeds, names, functions.

Each takes what the value is called, "fit: batch" (the function and the argument, or a layer's kind and field), and the
value, and returns the value as it is kept: plain Python, which JSON can hold. What does not fit raises an error that
says what it must be and what it got. Arrays are looked at in arrays.py, whole data sets in runtime/datasets.py.
"""

import difflib
import functools
import math
import operator

import numpy as np

MOST = (
    2**31 - 1
)  # of a size: products of a few of them still fit the words of a table, and SciPy's C code takes 32 bits
_SHOWN = 80  # characters of a value in a message
_SHOWN_TEXT = 800
_SHOWN_NAMES = 30


def shown(value):
    """A value as messages show it, cut where it is long."""
    if isinstance(value, int) and abs(value) >= 2**64:
        return f"an integer of {value.bit_length()} bits"  # Python itself refuses to write out some
    try:
        text = repr(value)
    except Exception:
        text = type(value).__name__
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def brief(text):
    """A text that may have come from a file, cut where it is long."""
    text = str(text)
    return text if len(text) <= _SHOWN_TEXT else f"{text[: _SHOWN_TEXT - 3]}..."


# -- names ---------------------------------------------------------------------------------------------------


def nearest(name, known):
    """ "did you mean ...?" for an unknown name; the known names when none is near."""
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1) if isinstance(name, str) and len(name) < 200 else ()
    if match:
        return f"did you mean {match[0]!r}?"
    return f"known: {', '.join(names[:_SHOWN_NAMES])}{', ...' if len(names) > _SHOWN_NAMES else ''}"


def choose(argument, name, known):
    """Check a name against a table, whose entry is returned, or a sequence; the error names the nearest right one."""
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{argument}: unknown name {shown(name)}; {nearest(name, known)}")
    return known[name] if isinstance(known, dict) else name


def named(known):
    """A check for a name of a table or sequence."""

    def check(argument, value):
        choose(argument, value, known)
        return str(value)

    return check


def text(argument, value):
    """Check a text."""
    if not isinstance(value, str):
        raise ValueError(f"{argument} must be a str, got {shown(value)}")
    return str(value)


def optional(check):
    """A check that lets None pass."""
    return lambda argument, value: None if value is None else check(argument, value)


# -- integers ------------------------------------------------------------------------------------------------


def is_integer(value):
    """Whether a value is an integer, Python's or NumPy's; a bool is none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))


def check_integer(argument, value, low=1, high=MOST):
    """An integer in low..high, as an int. Raises ValueError for anything else."""
    if low == 1 and high >= MOST:
        wanted = "a positive integer"
    elif low == -high:
        wanted = "an integer"
    elif high == MOST or high == math.inf:
        wanted = f"an integer of at least {low}"
    else:
        wanted = f"an integer in {low}..{_power(high)}"
    if not is_integer(value) or value < low:
        raise ValueError(f"{argument} must be {wanted}, got {shown(value)}")
    if value > high:
        limit = "" if ".." in wanted else f", at most {_power(high)}"
        raise ValueError(f"{argument} must be {wanted}{limit}, got {shown(value)}")
    return int(value)


def _power(high):
    return f"2**{high.bit_length()} - 1" if high > MOST and high & (high + 1) == 0 else f"{high:,}"


positive = check_integer
natural = functools.partial(check_integer, low=0)
integer = functools.partial(check_integer, low=-MOST)
check_seed = functools.partial(check_integer, low=0, high=2**63 - 1)  # a key of random numbers


def as_integer(argument, value):
    """What Python takes for an index, as an int, for code that checks its range. Raises TypeError; a bool is none."""
    try:
        if not isinstance(value, (bool, np.bool_)):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{argument} must be an integer, got {type(value).__name__}")


# -- numbers -------------------------------------------------------------------------------------------------


def as_number(argument, value, wanted="a number"):
    """A number as a float, infinite where it is too large for one. Raises TypeError for anything else, a bool too."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        raise TypeError(f"{argument} must be {wanted}, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def interval(low=0.0, high=math.inf, ends="[)"):
    """What a number must be, in words; a round bracket leaves a bound out, as it does for an infinite one."""
    if math.isfinite(high):
        return f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}"
    sides = "" if low == -math.inf else f" above {low:g}" if ends[0] == "(" else f" of at least {low:g}"
    return f"a {'finite ' if ends[1] == ')' else ''}number{sides}"


def check_number(argument, value, low=0.0, high=math.inf, ends="[)"):
    """A number in an interval (see `interval`), as a float. Raises TypeError for no number, ValueError outside."""
    wanted = interval(low, high, ends)
    found = as_number(argument, value, wanted)
    above = low < found if ends[0] == "(" or low == -math.inf else low <= found
    below = found < high if ends[1] == ")" else found <= high
    if not (above and below):
        raise ValueError(f"{argument} must be {wanted}, got {shown(value)}")
    return found


def number(low=0.0, high=math.inf, ends="[)"):
    """A check for a number in an interval."""
    return functools.partial(check_number, low=low, high=high, ends=ends)


# -- switches, functions, types ------------------------------------------------------------------------------


def check_flag(argument, value):
    """True or False, Python's or NumPy's. Raises TypeError for anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{argument} must be True or False, got {shown(value)}")
    return bool(value)


def check_callable(argument, value, or_none=False):
    """A function, or None where that is allowed. Raises TypeError for anything else."""
    if not callable(value) and not (or_none and value is None):
        raise TypeError(f"{argument} must be a function{' or None' * or_none}, got {type(value).__name__}")
    return value


def as_dtype(dtype):
    """float32 or float64 as a NumPy dtype."""
    try:
        found = None if dtype is None else np.dtype(dtype)  # NumPy takes None for float64
    except Exception:  # of many kinds, for what is no dtype
        found = None
    # Not `in`, for the same reason.
    if found is None or found not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype must be float32 or float64, got {shown(dtype)}")
    return found
