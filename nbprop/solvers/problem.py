"""What a search was about, in a few numbers: a state that is resumed must belong to the same problem.

A search's state holds losses and gradients of its own problem. Over other data they would be taken for this one's, and
a loss reported that no parameters have.
"""

import hashlib

import numpy as np

# What each word is a hash of.
FIELDS = ("network, loss or dtype", "batch", "x", "target", "weights", "layer state", "trainable or frozen parameters")
_PIECE = 1 << 24  # bytes hashed before Python may see a Ctrl-C


def problem_words(fun, free):
    """A float64 vector, a word for each of `FIELDS`, of an objective and of the parameters that are free."""
    plan = fun.plan
    described = f"{plan.net!r} {plan.loss!r} {plan.dtype} {plan.mode}"
    if free.indices is None:
        frozen = None
    else:
        frozen = free.start.copy()
        frozen[free.indices] = np.nan
    batch = min(plan.batch, fun.n_samples)  # chunks decide in which order the loss is summed
    things = described, str(batch), fun.x, fun.target, fun.weights, fun._first_state, frozen
    return np.array([_word(thing) for thing in things])


def _word(thing):
    """A hash as a number that float64 holds exactly."""
    digest = hashlib.blake2b(digest_size=8)
    if thing is not None and not isinstance(thing, str):
        array = thing if isinstance(thing, np.ndarray) else thing.to_host()
        digest.update(f"{array.dtype} {array.shape}".encode())
        data = memoryview(np.ascontiguousarray(array)).cast("B")
        for start in range(0, len(data), _PIECE):
            digest.update(data[start : start + _PIECE])
    else:
        digest.update(str(thing).encode())
    return float(int.from_bytes(digest.digest(), "little") >> 11)


def check_problem(found, wanted):
    """The words of a state that is resumed against those of this call."""
    for name, one, other in zip(FIELDS, found.tolist(), wanted.tolist(), strict=True):
        if one != other:
            raise ValueError(
                f"minimize: resume is the state of a search with another {name}; pass what it was made with, or leave "
                "resume out and start anew from the params it left"
            )
