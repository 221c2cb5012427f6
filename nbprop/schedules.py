"""Learning-rate schedules: plain functions of the step, which counts from 0; the same from Python and from @njit.

``nbprop.adam(..., step, lr=nbprop.schedules.cosine(step, 1e-3, 1000))``; `fit` takes a schedule by name, or any
function of the step, or a `Plateau`, which follows the losses.
"""

import functools
import inspect
import math
from dataclasses import dataclass

from nbprop.numerics.scalars import specialise
from nbprop.validation import check_integer, check_number, choose

# Arguments that must be above 0; the others may be 0.
_ABOVE = ("steps", "every", "start_divisor", "final_divisor", "power")


def _schedule(function):
    """Make a schedule public: checked where Python calls it; compiled code takes it as it is written."""
    bind = inspect.signature(function).bind

    @functools.wraps(function)
    def public(*arguments, **named):
        for name, value in bind(*arguments, **named).arguments.items():
            check_number(f"{function.__name__}: {name}", value, ends="()" if name in _ABOVE else "[)")
        return function(*arguments, **named)

    specialise(public, lambda *types: function)
    return public


@_schedule
def constant(step, lr):
    """lr at every step."""
    return float(lr)


@_schedule
def step(step, lr, every, factor=0.1):
    """lr, multiplied by `factor` after every `every` steps."""
    return lr * float(factor) ** (step // every)


@_schedule
def cosine(step, lr, steps, lowest=0.0):
    """From lr at step 0 down half a cosine to `lowest` at step `steps`, and there it stays.

    Loshchilov and Hutter 2017, equation 5, without restarts.
    """
    return lowest + 0.5 * (lr - lowest) * (1.0 + math.cos(math.pi * min(float(step), float(steps)) / steps))


@_schedule
def one_cycle(step, highest, steps, rise=0.3, start_divisor=25.0, final_divisor=1e4):
    """Up half a cosine from highest / start_divisor to `highest`, then down to the start over final_divisor.

    The top is at step rise * steps - 1, the end at step steps - 1, where it stays. Smith and Topin 2018, in PyTorch's
    form.
    """
    start = highest / start_divisor
    top = rise * steps - 1.0
    place = min(float(step), steps - 1.0)
    if place <= top:
        return highest + 0.5 * (start - highest) * (1.0 + math.cos(math.pi * (place / top if top > 0.0 else 1.0)))
    end = start / final_divisor
    return end + 0.5 * (highest - end) * (1.0 + math.cos(math.pi * (place - top) / (steps - 1.0 - top)))


@_schedule
def warm_up(step, lr, steps, start=0.1):
    """In a straight line from start * lr at step 0 to lr at step `steps`, and there it stays."""
    return lr * (start + (1.0 - start) * min(float(step), float(steps)) / steps)


@_schedule
def polynomial(step, lr, steps, power=1.0, lowest=0.0):
    """From lr at step 0 down to `lowest` at step `steps`, and there it stays: what is left of the way, to a power."""
    left = 1.0 - min(float(step), float(steps)) / steps
    return lowest + (lr - lowest) * left ** float(power)


@_schedule
def warm_restarts(step, lr, steps, growth=1.0, lowest=0.0):
    """Half a cosine from lr down to `lowest` in `steps` steps, again from lr, in `growth` times as many, and so on.

    Loshchilov and Hutter 2017, equation 5. growth is at least 1.
    """
    place, length = float(step), float(steps)
    if growth <= 1.0:
        place = place % length
    while place >= length:
        place -= length
        length *= growth
    return lowest + 0.5 * (lr - lowest) * (1.0 + math.cos(math.pi * place / length))


@dataclass(frozen=True)
class Plateau:
    """Lower the rate whenever a loss has stopped falling, at the end of an epoch; `fit` takes it as its schedule.

    Parameters
    ----------
    factor : float
        What the rate is multiplied by, below 1.
    patience : int
        Epochs without a lower loss that are borne; one more, and the rate falls.
    threshold : float
        A loss is lower if it is so by this part of the lowest one.
    cooldown : int
        Epochs after a fall in which none is counted.
    lowest : float
        The rate falls no further.

    The loss is the validation loss; without validation data that of `patience`, or the mean of the epoch. As PyTorch's
    ReduceLROnPlateau with mode "min".

    Examples
    --------
    >>> Plateau(factor=0.5, patience=1).rate([1.0, 0.9, 0.9, 0.9], lr=0.1)
    0.05
    """

    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    cooldown: int = 0
    lowest: float = 0.0

    def __post_init__(self):
        for name, high in (("factor", 1.0), ("threshold", 1.0), ("lowest", math.inf)):
            object.__setattr__(self, name, check_number(f"Plateau: {name}", getattr(self, name), 0.0, high))
        for name in ("patience", "cooldown"):
            object.__setattr__(self, name, check_integer(f"Plateau: {name}", getattr(self, name), 0))

    def rate(self, losses, lr):
        """The rate after epochs with these losses, of which lr is the first rate."""
        best, bad, resting = math.inf, 0, 0
        for loss in losses:
            if loss < best - self.threshold * abs(best) or best == math.inf:
                best, bad = loss, 0
            else:
                bad += 1
            if resting > 0:
                resting, bad = resting - 1, 0
            if bad > self.patience:
                lr, resting, bad = max(lr * self.factor, self.lowest), self.cooldown, 0
        return lr


def named(schedule, lr, steps):
    """The schedule of a name, for a run of `steps` steps, as a function of the step alone, which it does not check.

    step: a tenth of lr after each third of the run. cosine: down to 0 at the end. one_cycle: lr is its top. warm_up:
    over the first tenth. polynomial: in a straight line to 0. warm_restarts: 1, 2 and 4 sevenths of the run.
    """
    lr, steps = check_number("named: lr", lr), check_integer("named: steps", steps, 1, 1 << 62)
    bound = {
        "constant": functools.partial(constant.__wrapped__, lr=lr),
        "step": functools.partial(step.__wrapped__, lr=lr, every=-(-steps // 3)),
        "cosine": functools.partial(cosine.__wrapped__, lr=lr, steps=steps),
        "one_cycle": functools.partial(one_cycle.__wrapped__, highest=lr, steps=steps),
        "warm_up": functools.partial(warm_up.__wrapped__, lr=lr, steps=max(1, steps // 10)),
        "polynomial": functools.partial(polynomial.__wrapped__, lr=lr, steps=steps),
        "warm_restarts": functools.partial(warm_restarts.__wrapped__, lr=lr, steps=-(-steps // 7), growth=2.0),
    }
    return choose("schedule", schedule, bound)
