"""What the result of a `fit` depends on, as a checkpoint stores it and a resumed run is compared with."""

import json
import math
from typing import Any

import numpy as np

from nbprop.io.networks import digest
from nbprop.program import table
from nbprop.training.checkpoint import as_json
from nbprop.validation import nearest

_MOST_RATES = 1000  # steps at which two schedules are compared
_PIECE = 1 << 24  # bytes
# These must not change, since the contents of a checkpoint depend on them.
_FIXED = ("optimizer", "dtype", "samples", "batch", "watched", "first_step")
# The order of samples can only change where an epoch begins.
_BETWEEN_EPOCHS = ("shuffle", "seed")
# What the measured losses depend on: if it changes, earlier losses are meaningless.
MEASURED_ON = ("network", "code", "loss", "x", "target", "weights", "lengths", "validation")
_DIGESTS = ("code", "x", "target", "weights", "lengths", "validation", "decay_mask", "trainable")


def digest_of(job, *arrays):
    """A digest of arrays of the job, on the host or the device; None if none was given."""
    if all(array is None for array in arrays):
        return None
    pieces: dict[str, Any] = {}  # digested one by one, so that Ctrl-C takes effect between them
    held = {str(k): array for k, array in enumerate(arrays) if array is not None}
    for name, array in job.host_arrays(held).items():
        rows = max(1, _PIECE // max(1, array[:1].nbytes))
        pieces |= {f"{name} {start:020}": array[start : start + rows] for start in range(0, len(array), rows)}
    return digest(pieces)


def code_of(plan):
    """A digest of the code of user-defined layers and losses; None without any."""
    kernels = {op.kernel for op in plan.ops(table.VALUE_AND_GRAD)}
    own = {f"{k.name} {k.fingerprint(plan.numba_dtype)}" for k in kernels if not k.name.startswith("nbprop.")}
    return digest({}, sorted(own)) if own else None


def rates_at(rate_of, first_step, steps):
    """[[step, rate], ...] of up to 1,000 steps evenly spread over `steps`, where the rate differs from the one before.

    steps: of the whole run, which begins at first_step.
    """
    found: list[list[float]] = []
    for step in np.unique(np.linspace(first_step, first_step + steps - 1, min(steps, _MOST_RATES)).astype(np.int64)):
        rate = rate_of(int(step))
        if not found or found[-1][1] != rate:
            found.append([int(step), rate])
    return found


def as_stored(identity):
    """An identity as it comes back from a file. Raises TypeError where JSON cannot hold the network's description."""
    try:
        return json.loads(json.dumps(identity, default=as_json))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"fit: checkpoint needs a network whose description JSON can hold: {error}") from None


def check_allowed(allowed, identity):
    """The names of what may have changed, as a tuple, all of them in the identity, which is None without resume."""
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
    """The names in which the identity of a checkpoint differs from that of this run, all of them allowed.

    Raises ValueError if others differ. name: the file; mid_epoch: whether the checkpoint is from within an epoch.
    """
    changed = []
    for key in sorted(identity, key=lambda key: key not in _FIXED):
        mine = identity[key]
        if key == "lr":
            difference = _other_rates(stored.get(key), rate_of, identity["first_step"])
        elif key not in stored:
            difference = f"it does not contain its {key}"
        elif stored[key] == mine:
            difference = ""
        elif key in _DIGESTS:
            difference = f"its {key} is different" if stored[key] and mine else f"only one of the two has {key}"
        else:
            difference = f"its {key} is {_short(stored[key])}, this one's is {_short(mine)}"
        if not difference:
            continue
        if key not in allowed or key in _FIXED:
            remedy = "" if key in _FIXED else f', allow_changed=("{key}",) to go on with the change'
            raise ValueError(
                f"fit: {name} is of another run: {difference}; pass another path{remedy}, or resume=False to start over"
            )
        if key in _BETWEEN_EPOCHS and mid_epoch:
            raise ValueError(f"fit: {name}: {difference}, which cannot change within an epoch, where its run stopped")
        changed.append(key)
    return changed


def _other_rates(stored, rate_of, first_step):
    """How the learning rates of a checkpoint's run differ from those of this one; empty if they do not."""
    try:
        steps, rates = stored["steps"], stored["rates"]
        usable = type(steps) is int and 1 <= steps < 2**40
        theirs = {step: rate for step, rate in rates if type(step) is int and type(rate) is float}
    except (TypeError, KeyError, ValueError):
        usable = False
    if not usable:
        return "it does not contain its lr"
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
