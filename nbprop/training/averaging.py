"""The mean of a training's parameters: along its steps (EMA), or of the ends of its epochs (SWA).

EMA: a = decay a + (1 - decay) p after each step (Polyak and Juditsky 1992; Ruppert 1988). SWA: the mean of p over the
ends of epochs (Izmailov et al. 2018, "Averaging weights leads to wider optima", algorithm 1). Both begin as p itself,
at the first step, or the end of the first epoch, that counts; until then a is p. Statistics in the layer state are
averaged as parameters are; what each sample carries is the last step's.

The mean of `schedule_free_adamw` is its own: p and a part of its state added up.
"""

import numpy as np

from nbprop.compiler.intrinsics import array_at, load, load_double
from nbprop.compiler.jit import njit
from nbprop.compiler.native import Native
from nbprop.numerics.partition import share_blocks
from nbprop.numerics.scalars import like
from nbprop.optimizers.update_rules import kernel_signature
from nbprop.validation import check_number, shown

# The row: addresses of the mean, of p, and of what is added to p (0: nothing); elements; the same of the layer state,
# of which the first STATISTICS elements are averaged; the rate (float64).
ROW_MEAN, ROW_PARAMS, ROW_SHIFT, ROW_N, ROW_LAYERS, ROW_STATISTICS, ROW_STATE, ROW_RATE = range(8)
ROW = 8

# How a run averages.
NONE, EACH_STEP, EACH_EPOCH, BY_OPTIMIZER = range(4)


@njit
def _toward(mean, p, rate):
    """mean += rate (p - mean), or mean = p for a rate of 1; 1-D arrays."""
    if rate == 1.0:
        for i in range(mean.size):
            mean[i] = p[i]
    elif mean.size > 0:
        r = like(mean[0], rate)
        for i in range(mean.size):
            mean[i] += r * (p[i] - mean[i])


def mean_kernel(frame, row, part, parts):
    """a += rate (p - a), a = p for a rate of 1, or a = p + shift; then the layer state.

    ROW_MEAN INOUT (ROW_N + ROW_STATE,), ROW_PARAMS and ROW_SHIFT IN (ROW_N,), ROW_LAYERS IN (ROW_STATE,).
    """
    n, statistics, state = load(row, ROW_N), load(row, ROW_STATISTICS), load(row, ROW_STATE)
    start, stop = share_blocks(n, part, parts)
    whole = array_at(frame, load(row, ROW_MEAN), n + state)
    mean, p = whole[:n][start:stop], array_at(frame, load(row, ROW_PARAMS), n)[start:stop]
    rate = load_double(row, ROW_RATE)
    if load(row, ROW_SHIFT) != 0:
        shift = array_at(frame, load(row, ROW_SHIFT), n)[start:stop]
        for i in range(mean.size):
            mean[i] = p[i] + shift[i]
        rate = 1.0
    else:
        _toward(mean, p, rate)
    if part == 0 and state > 0:
        layers = array_at(frame, load(row, ROW_LAYERS), state)
        _toward(whole[n : n + statistics], layers[:statistics], rate)
        _toward(whole[n + statistics :], layers[statistics:], 1.0)
    return 0


MEAN = Native(mean_kernel, kernel_signature, name="nbprop.training.mean")


def check_average(average, start, optimizer):
    """(how a run averages, the rate of a step), of fit's arguments."""
    own = optimizer == "schedule_free_adamw"
    if average is None:
        if start:
            raise ValueError(f"fit: average_start={start} needs average=, a decay or 'swa'")
        return (BY_OPTIMIZER if own else NONE), 0.0
    if own:
        raise ValueError("fit: average does not go with schedule_free_adamw, which averages its steps itself")
    if isinstance(average, str):
        if average != "swa":
            raise ValueError(f"fit: average must be 'swa' or a decay between 0 and 1, got {shown(average)}")
        return EACH_EPOCH, 0.0
    return EACH_STEP, 1.0 - check_number("fit: average", average, 0.0, 1.0, "()")


class Average:
    """What a job on the host averages into: (parameters, then layer state)."""

    def __init__(self, job, how):
        self.how, self.n = how, job.params.size
        layers = np.empty(0, job.params.dtype) if job.layers is None else job.layers
        self.job, self.mean = job, np.concatenate([job.params, layers])
        self.shift = job.state[2 * self.n :] if how == BY_OPTIMIZER else None

    def parts(self):
        """(parameters, layer state or None), as they are to be used now."""
        if self.shift is not None:  # compiled code adds up at the ends of epochs only
            np.add(self.job.params, self.shift, out=self.mean[: self.n])
            if self.job.layers is not None:
                self.mean[self.n :] = self.job.layers
        return self.mean[: self.n], None if self.job.layers is None else self.mean[self.n :]
