"""The problem of a search as a few numbers: a resumed state must belong to the same problem.

The state of a search holds losses and gradients of its own problem. With other data they would be mistaken for those of
the new problem, and the reported loss would not be that of any parameters.
"""

import hashlib

import numpy as np

# What each word is a hash of.
FIELDS = ("network, loss or dtype", "batch", "x", "target", "weights", "layer state", "trainable or frozen parameters")
_PIECE = 1 << 24  # bytes hashed at a time, between which Ctrl-C can interrupt


def problem_words(fun, free):
    """A float64 vector with a word for each of `FIELDS`, from an objective and the free parameters."""
    plan = fun.plan
    described = f"{plan.net!r} {plan.loss!r} {plan.dtype} {plan.mode}"
    described += "" if plan.penalty is None else f" {plan.penalty!r}"
    if free.indices is None:
        frozen = None
    else:
        frozen = free.start.copy()
        frozen[free.indices] = np.nan
    batch = min(plan.batch, fun.n_samples)  # chunks determine the summation order of the loss
    things = described, str(batch), *fun.identity(), fun._first_state, frozen
    return np.array([_word(thing) for thing in things])


def _word(thing):
    """A hash as a number that float64 holds exactly."""
    digest = hashlib.blake2b(digest_size=8)
    if thing is not None and not isinstance(thing, str):
        array = thing if isinstance(thing, np.ndarray) else thing.to_host()
        digest.update(f"{array.dtype} {array.shape}".encode())
        data = np.ascontiguousarray(array).data.cast("B")
        for start in range(0, len(data), _PIECE):
            digest.update(data[start : start + _PIECE])
    else:
        digest.update(str(thing).encode())
    return float(int.from_bytes(digest.digest(), "little") >> 11)


def check_problem(found, wanted):
    """Check the words of a resumed state against those of this call."""
    for name, one, other in zip(FIELDS, found.tolist(), wanted.tolist(), strict=True):
        if one != other:
            raise ValueError(
                f"minimize: resume is the state of a search with another {name}; pass what it was made with, or leave "
                "resume out and start over from the params it left"
            )
