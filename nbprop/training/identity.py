"""What the result of a `fit` depends on, in a form that a checkpoint holds and a resumed run is compared with."""

import json
import math

import numpy as np

from nbprop.io.networks import digest
from nbprop.program import table
from nbprop.training.checkpoint import plain
from nbprop.validation import nearest

_MOST_RATES = 1000  # steps at which two schedules are compared
_PIECE = 1 << 24  # bytes
# Another value of these does not fit what a checkpoint holds.
_FIXED = ("optimizer", "dtype", "samples", "batch", "watched", "first_step")
# The order of an epoch's samples: another one is possible where an epoch begins.
_BETWEEN_EPOCHS = ("shuffle", "seed")
# What the measured losses depend on: with another one, those of before say nothing.
MEASURED_ON = ("network", "code", "loss", "x", "target", "weights", "lengths", "validation")
_DIGESTS = ("code", "x", "target", "weights", "lengths", "validation", "decay_mask", "trainable")


def digest_of(job, *arrays):
    """A digest of arrays of the job's, wherever they lie; None where none was given."""
    if all(array is None for array in arrays):
        return None
    pieces = {}  # digested one by one, so that Ctrl-C is heard in between
    held = {str(k): array for k, array in enumerate(arrays) if array is not None}
    for name, array in job.host_arrays(held).items():
        rows = max(1, _PIECE // max(1, array[:1].nbytes))
        pieces |= {f"{name} {start:020}": array[start : start + rows] for start in range(0, len(array), rows)}
    return digest(pieces)


def code_of(plan):
    """A digest of the code of layers and losses that are not nbprop's own, None without any."""
    kernels = {op.kernel for op in plan.ops(table.VALUE_AND_GRAD)}
    own = {f"{k.name} {k.fingerprint(plan.numba_dtype)}" for k in kernels if not k.name.startswith("nbprop.")}
    return digest({}, sorted(own)) if own else None


def rates_at(rate_of, first_step, steps):
    """[[step, rate], ...] of up to 1,000 steps evenly spread over `steps`, where the rate differs from the one before.

    steps: of the whole run, which begins at first_step.
    """
    found = []
    for step in np.unique(np.linspace(first_step, first_step + steps - 1, min(steps, _MOST_RATES)).astype(np.int64)):
        rate = rate_of(int(step))
        if not found or found[-1][1] != rate:
            found.append([int(step), rate])
    return found


def as_stored(identity):
    """An identity as it comes back from a file. Raises TypeError where JSON cannot hold the network's description."""
    try:
        return json.loads(json.dumps(identity, default=plain))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"fit: checkpoint needs a network whose description JSON can hold: {error}") from None


def check_allowed(allowed, identity):
    """The names of what may differ, as a tuple, each one that the identity has; that is None without a resumed run."""
    if not isinstance(allowed, (tuple, list)):
        raise TypeError(f"fit: allow_changed must be a tuple of names, got {type(allowed).__name__}")
    if identity is None:
        if allowed:
            raise ValueError(f"fit: allow_changed={allowed!r} needs resume=True, a run to be resumed")
        return ()
    known = [name for name in identity if name not in _FIXED]
    for name in allowed:
        if name not in known:
            raise ValueError(f"fit: allow_changed has the unknown name {name!r}; {nearest(str(name), known)}")
    return tuple(allowed)


def changes(name, stored, identity, rate_of, allowed, mid_epoch):
    """The names in which a checkpoint's identity differs from this run's, all of them allowed.

    Raises ValueError for the others: `name` is the file's; `mid_epoch` whether its run stood within an epoch.
    """
    changed = []
    for key in sorted(identity, key=lambda key: key not in _FIXED):
        mine = identity[key]
        if key == "lr":
            told = _other_rates(stored.get(key), rate_of, identity["first_step"])
        elif key not in stored:
            told = f"it does not say its {key}"
        elif stored[key] == mine:
            told = ""
        elif key in _DIGESTS:
            told = f"its {key} is another" if stored[key] and mine else f"only one of the two has {key}"
        else:
            told = f"its {key} is {_short(stored[key])}, this one's is {_short(mine)}"
        if not told:
            continue
        if key not in allowed or key in _FIXED:
            remedy = "" if key in _FIXED else f', allow_changed=("{key}",) to go on with the change'
            raise ValueError(
                f"fit: {name} is of another run: {told}; pass another path{remedy}, or resume=False to start anew"
            )
        if key in _BETWEEN_EPOCHS and mid_epoch:
            raise ValueError(f"fit: {name}: {told}, which cannot change in the middle of an epoch, where its run stood")
        changed.append(key)
    return changed


def _other_rates(stored, rate_of, first_step):
    """How the learning rates of a checkpoint's run differ from this one's over its steps; empty when they do not."""
    try:
        steps, rates = stored["steps"], stored["rates"]
        usable = type(steps) is int and 1 <= steps < 2**40
        theirs = {step: rate for step, rate in rates if type(step) is int and type(rate) is float}
    except (TypeError, KeyError, ValueError):
        usable = False
    if not usable:
        return "it does not say its lr"
    mine = dict(rates_at(rate_of, first_step, steps))
    if mine == theirs:
        return ""
    there = here = math.nan
    for step in sorted({*mine, *theirs}):
        there, here = theirs.get(step, there), mine.get(step, here)
        if there != here:
            break
    return f"its lr is {there!r} at step {step}, this one's is {here!r} (lr, schedule or the schedule's epochs differ)"


def _short(value):
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
