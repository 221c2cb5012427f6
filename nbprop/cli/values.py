"""Types of the values of options, for argparse."""

import argparse
import contextlib
import math


def positive_integer(text):
    """A positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def fraction(text):
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, got {text}")
    return value


def positive_number(text):
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def whole_number(text):
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value


def folds(text):
    value = whole_number(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"must be at least 2, got {text}")
    return value


def seed(text):
    value = whole_number(text)
    if value >= 2**63:
        raise argparse.ArgumentTypeError(f"must be below 2**63, got {text}")
    return value


def delimiter(text):
    character = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(character) != 1 or character in '"\r\n\0':
        raise argparse.ArgumentTypeError(f"must be one character other than a quote, or tab, got {text!r}")
    return character


def on_missing(text):
    if text in ("refuse", "drop", "fill"):
        return text
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"must be refuse, drop, fill or a number, got {text!r}")


def shape(text):
    """64 or 28,28,1."""
    return tuple(map(positive_integer, text.split(",")))


# argparse quotes these names in its errors.
positive_integer.__name__ = whole_number.__name__ = seed.__name__ = folds.__name__ = "whole number"
fraction.__name__, positive_number.__name__, shape.__name__ = "fraction", "number", "shape"
