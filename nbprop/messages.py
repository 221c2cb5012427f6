"""What can be wrong with a call, as small integers that compiled code returns, and the one table of what is said then.

A status is argument * 64 + problem. Everything that checks arrays words it here: the calls of a plan from Python, from
@njit and on a device, optimizers, solvers, and functions over whole data sets.
"""

from typing import NamedTuple

NOT_AN_ARRAY, MISSING, DTYPE, ORDER, MISALIGNED, READ_ONLY, LENGTH, SHAPE_DIFFERS = range(1, 9)
EMPTY, CAPACITY, SAMPLES_DIFFER, CLASS_RANGE, ALIASED, NO_TANGENT, OUTDATED, NO_LOSS = range(9, 17)
NO_LENGTHS, LENGTH_RANGE, NO_DERIVATIVE, FORWARD_ONLY, POSITION_RANGE, NO_LIKELIHOOD = range(17, 23)
TOO_FEW, COUPLED, STEP_RANGE, TARGET_RANGE, NO_KERNEL, NEGATIVE, NOT_POSITIVE = range(23, 30)
# Optimizers: arrays of either float type, and masks.
REAL_DTYPE, MASK_DTYPE = 30, 31
HYPERPARAMETER = 50  # + its kind, a number of update_rules.py


class Message(NamedTuple):
    """What a problem is said to be."""

    error: type[Exception]
    brief: str  # what follows the argument's name in compiled code, which cannot write out values
    text: str  # the same from Python, with what the argument got, and what to do


_HOLDS = "must hold {kind}, got {got}; convert it once with .astype"
_SHAPE = "must have shape {shape}, got {got}{remedy}"

MESSAGES = {
    NOT_AN_ARRAY: Message(TypeError, "must be a NumPy array", "{detail}"),
    MISSING: Message(TypeError, "is needed", "is needed and got None; pass an array {shape} of {kind}"),
    DTYPE: Message(TypeError, "has a dtype that does not fit", _HOLDS),
    REAL_DTYPE: Message(TypeError, "must hold float32 or float64", _HOLDS),
    MASK_DTYPE: Message(TypeError, "must hold bool or uint8", _HOLDS),
    ORDER: Message(
        ValueError,
        "must be C-contiguous",
        "must be C-contiguous, got a strided {got}; copy it once with np.ascontiguousarray",
    ),
    MISALIGNED: Message(
        ValueError,
        "must be aligned to its element",
        "must be aligned to its element, got a misaligned {got}; copy it once",
    ),
    READ_ONLY: Message(
        ValueError,
        "is written and must not be read-only",
        "is written and must not be read-only, got a read-only {got}; pass a copy",
    ),
    LENGTH: Message(ValueError, "has a length that does not fit", _SHAPE),
    SHAPE_DIFFERS: Message(ValueError, "has a shape that does not fit the plan", _SHAPE),
    EMPTY: Message(ValueError, "has no samples", "has no samples (got {got}); pass at least one"),
    TOO_FEW: Message(
        ValueError,
        "brings too few samples for the statistics of a batch",
        "must bring at least 2 samples, whose statistics layer {detail} takes, got {got}; make a plan with "
        'mode="inference" for single samples',
    ),
    CAPACITY: Message(
        ValueError,
        "brings more samples than the plan's batch",
        "brings more samples than the plan's batch of {batch}, got {got}; make a plan with a larger batch or pass it "
        "in chunks",
    ),
    SAMPLES_DIFFER: Message(
        ValueError, "must bring as many samples as x", "must bring as many samples as x, got {got}"
    ),
    CLASS_RANGE: Message(ValueError, "must hold classes that the network has", "must hold classes in {detail}"),
    LENGTH_RANGE: Message(
        ValueError, "must hold lengths from 1 to the network's longest", "must hold lengths in {detail}"
    ),
    TARGET_RANGE: Message(ValueError, "must lie in the range of the loss's targets", "must lie in {detail}"),
    NO_LENGTHS: Message(
        ValueError, "is for networks with a layer that takes lengths, which this one has not", "{detail}"
    ),
    NO_DERIVATIVE: Message(
        ValueError,
        "does not exist where x holds integers; pass None",
        "does not exist where x holds integers; pass None",
    ),
    ALIASED: Message(
        ValueError,
        "is written and shares memory with another argument",
        "is written and shares memory with {detail}; pass separate buffers",
    ),
    STEP_RANGE: Message(ValueError, "must be in 0..2**40 - 1", "must be in 0..2**40 - 1, got {got}"),
    POSITION_RANGE: Message(
        ValueError,
        "must be a position that the decoding plan's network has",
        "must be a position in {detail}, which the caches hold",
    ),
    NEGATIVE: Message(
        ValueError, "counts from 0 and must not be negative", "counts from 0 and must not be negative, got {got}"
    ),
    NOT_POSITIVE: Message(ValueError, "must be above 0", "must be above 0, got {got}"),
    # Of a plan or of code, which no argument's name precedes.
    NO_LOSS: Message(
        ValueError,
        "this plan has no loss; make one with nbprop.plan(net, loss=...)",
        "this plan has no loss; make one with nbprop.plan(net, loss=...)",
    ),
    NO_TANGENT: Message(
        ValueError,
        "a layer of this plan has no tangent kernels, which second derivatives need",
        "{detail} has no tangent kernels, which second derivatives need; use value_and_grad, vjp or jacobian, "
        "or a network without it",
    ),
    NO_LIKELIHOOD: Message(
        ValueError,
        "this plan's loss is no negative log-likelihood and has no Fisher matrix",
        "loss {detail} is no negative log-likelihood, so it has no Fisher matrix; use gauss_newton_product",
    ),
    FORWARD_ONLY: Message(
        ValueError,
        "a decoding plan only runs forward",
        "a decoding plan only runs forward; make one with another mode",
    ),
    COUPLED: Message(
        ValueError,
        "the samples of this plan change each other's outputs; make one with mode='inference'",
        "layer {detail} takes statistics over the batch, so that no sample has derivatives of its own; make the plan "
        'with mode="inference"',
    ),
    OUTDATED: Message(
        RuntimeError,
        "the plan was made by another version of nbprop; make it again",
        "the plan was made by another version of nbprop; make it again",
    ),
    NO_KERNEL: Message(
        RuntimeError,
        "this function was cached with another version of nbprop; clear the cache of your own @njit functions",
        "its compiled code is not known to this process; clear the cache",
    ),
}
NAMELESS = frozenset({NO_LOSS, NO_TANGENT, NO_LIKELIHOOD, FORWARD_ONLY, COUPLED, OUTDATED, NO_KERNEL})
CACHED_ELSEWHERE = MESSAGES[NO_KERNEL].brief

# For compiled code: a problem's words by its number.
BRIEF = tuple(MESSAGES[problem].brief if problem in MESSAGES else "is wrong" for problem in range(HYPERPARAMETER))


def failure(problem, argument, **words):
    """The exception for a problem.

    argument: "fit: x", or "fit:" where the message names none; words: what the message's text asks for.
    """
    message = MESSAGES[problem]
    return message.error(f"{argument} {message.text.format(**words)}")
