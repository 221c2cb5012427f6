"""Checks of the arguments that describe networks, losses and plans, one for each kind of argument.

Each takes the argument's name and its value, and returns the value as it is kept: plain Python, which JSON can hold.
What does not fit raises an error that names the argument, what it must be, and what it got.
"""

import difflib
import math
import sys

import numpy as np

MOST = 2**31 - 1  # of a size: products of a few of them still fit the words of a table
_LONGEST = 80  # characters of a value in a message
_LONGEST_TEXT = 800
_KNOWN_SHOWN = 30


def shown(value):
    """A value as messages show it, cut where it is long."""
    if isinstance(value, int) and abs(value) >= 2**64:
        return f"an integer of {value.bit_length()} bits"  # Python itself refuses to write out some
    try:
        text = repr(value)
    except Exception:
        text = type(value).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def brief(text):
    """A text that may have come from a file, cut where it is long."""
    text = str(text)
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."


# -- names ---------------------------------------------------------------------------------------------------


def nearest(name, known):
    """ "did you mean ...?" for an unknown name; the known names when none is near."""
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1) if isinstance(name, str) and len(name) < 200 else ()
    if match:
        return f"did you mean {match[0]!r}?"
    return f"known: {', '.join(names[:_KNOWN_SHOWN])}{', ...' if len(names) > _KNOWN_SHOWN else ''}"


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


# -- numbers -------------------------------------------------------------------------------------------------


def whole(argument, value, least=0, most=MOST):
    """Check an integer, Python's or NumPy's, within bounds."""
    if least == 1:
        wanted = "a positive integer"
    elif least == -most:
        wanted = "an integer"
    elif most == MOST:
        wanted = f"an integer of at least {least}"
    else:
        wanted = f"an integer in {least}..{_power(most)}"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{argument} must be {wanted}, got {shown(value)}")
    if value > most:
        raise ValueError(f"{argument} must be {wanted}, at most {_power(most)}, got {shown(value)}")
    return int(value)


def _power(most):
    return f"2**{most.bit_length()} - 1" if most > MOST and most & (most + 1) == 0 else f"{most:,}"


def positive(argument, value, most=MOST):
    """Check a size."""
    return whole(argument, value, 1, most)


def natural(argument, value):
    """Check a count or index that may be 0."""
    return whole(argument, value)


def integer(argument, value):
    """Check an integer of either sign."""
    return whole(argument, value, -MOST)


def seed_of_numbers(argument, value):
    """Check what keys random numbers."""
    return whole(argument, value, 0, 2**63 - 1)


def number(low, high=math.inf, ends="[]"):
    """A check for a finite number from `low` to `high`; round brackets in `ends` leave a bound out."""
    if high < math.inf:
        wanted, kind = f"in {ends[0]}{low}, {high}{ends[1]}", f"a number in {ends[0]}{low}, {high}{ends[1]}"
    elif ends[0] == "(":
        wanted, kind = "positive and finite", "a positive number"
    else:
        wanted, kind = f"finite and at least {low}", f"a number of at least {low}"

    def check(argument, value):
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise TypeError(f"{argument} must be {kind}, got {shown(value)}")
        above = low < value if ends[0] == "(" else low <= value
        below = value < high if ends[1] == ")" else value <= high
        if not (above and below and abs(value) <= sys.float_info.max):
            raise ValueError(f"{argument} must be {wanted}, got {shown(value)}")
        return float(value)

    return check


def flag(argument, value):
    """Check a bool, Python's or NumPy's."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{argument} must be True or False, got {shown(value)}")
    return bool(value)


# -- all fields of a description -----------------------------------------------------------------------------


def check_fields(described):
    """Check the fields of a frozen dataclass by its class's `checks`, {name: check}, and keep what they return."""
    for name, check in described.checks.items():
        value = check(f"{described.kind}: {name}", getattr(described, name))
        object.__setattr__(described, name, value)


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
