"""What `fit` is given beside arrays, checked before anything is written: numbers, switches, files. Errors name it."""

import errno
import math
import os
import secrets
import stat

import numpy as np

from nbprop.optimizers import update_rules as rules


def switch(function, name, value):
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{function}: {name} must be True or False, got {_short(value)}")
    return bool(value)


def whole(function, name, value, wanted, least=1, below=math.inf):
    """An integer in least..below - 1; `wanted` says so in words."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or not least <= value < below:
        raise ValueError(f"{function}: {name} must be {wanted}, got {_short(value)}")
    return int(value)


def real(function, name, value, wanted, fits):
    """A number for which fits(value as a float) holds; `wanted` says which do."""
    found = as_float(value)
    if not fits(found):
        raise ValueError(f"{function}: {name} must be {wanted}, got {_short(value)}")
    return found


def as_float(value):
    """A number as float64, infinite where that is too small for it; NaN for anything else."""
    if not isinstance(value, (int, float, np.number)) or isinstance(value, (bool, np.complexfloating)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _short(value):
    """What an argument is, in an error: a number whose digits would fill a screen by its size alone."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)[:60]


def check_number(function, name, kind, value):
    """A hyperparameter as a float, if it is of its kind (see rules.KINDS)."""
    known = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not known and not (kind == rules.SWITCH and isinstance(value, (bool, np.bool_))):
        raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")
    found = float(value) if isinstance(value, (bool, np.bool_)) else as_float(value)
    fits = {
        rules.NOT_NEGATIVE: 0 <= found < math.inf,
        rules.FRACTION: 0 <= found < 1,
        rules.POSITIVE: 0 < found < math.inf,
        rules.AT_LEAST_ONE: 1 <= found < math.inf,
        rules.SWITCH: found in (0, 1),
    }
    if not fits[kind]:
        raise ValueError(f"{function}: {name} must be {rules.KINDS[kind]}, got {_short(value)}")
    return found


def called(function, name, value):
    """A function, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{function}: {name} must be a function or None, got {type(value).__name__}")
    return value


def file_to_write(function, name, path):
    """A path, or None, whose folder takes new files now: found out by making one, before hours of work.

    Raises OSError, as a later write would.
    """
    if path is None:
        return None
    try:
        text = os.fspath(path)
    except TypeError:
        text = None
    if not isinstance(text, str) or "\0" in text:
        raise TypeError(f"{function}: {name} must be a path, got {_short(path)}")
    final = os.path.realpath(text)
    folder, base = os.path.split(final)
    trial = os.path.join(folder, f".{base}.{secrets.token_hex(6)}.tmp")
    try:
        if os.path.isdir(final):
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if not os.path.isdir(folder):
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {folder}")
        if os.path.exists(final) and not stat.S_ISREG(os.stat(final).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        os.unlink(trial)
    except OSError as error:
        raise OSError(error.errno, f"{function}: {name} {text} cannot be written: {error.strerror}") from None
    return text
