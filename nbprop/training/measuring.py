"""The loss of a whole data set at fixed parameters: how `fit` determines the best ones."""

import math

import numpy as np

from nbprop.autodiff import gradients as calls
from nbprop.lowering.plan import plan_like, workspace
from nbprop.networks.network import positions_that_count


def inference_plan(job, penalized=True):
    """(a plan of the job's network in inference mode, a workspace): the job's own if its modes are equal.

    penalized: with the plan's penalties.
    """
    modal = any(layer.modal for _, layer in job.plan.net.nodes)
    changes = {"mode": "inference"} if modal else {}
    plan = plan_like(job.plan, **changes, **({} if penalized else {"penalty": None}))
    return plan, job.work if plan is job.plan else workspace(plan)


class Measure:
    """The mean loss over a data set, in batches, in inference mode; with the training plan if modes are equal.

    penalized: with the plan's penalties, which the loss of training data has and that of other data has not.
    """

    def __init__(self, job, data, *, penalized):
        self.job, self.data = job, data
        counted = {"weights": data[2], "lengths": data[3]}
        self.counted = job.host_arrays({name: array for name, array in counted.items() if array is not None})
        self.plan, self.work = inference_plan(job, penalized)

    def __call__(self, params, layers, interrupted):
        """The loss; NaN for parameters or layer state that are not finite, None once interrupted() is true."""
        if not (self.job.finite(params) and (layers is None or self.job.finite(layers))):
            return math.nan
        layers = None if layers is None else layers.copy()  # measuring must not change it
        total = total_weight = 0.0
        for start in range(0, len(self.data[0]), self.plan.batch):
            if interrupted():
                return None
            loss, weight = self.of(params, layers, slice(start, start + self.plan.batch))
            total, total_weight = total + loss, total_weight + weight
        return total / total_weight

    def of(self, params, layers, here):
        """(weight times mean loss, weight) of some samples."""
        (x, target), others = (array[here] for array in self.data[:2]), self.data[2:]
        weights, lengths = (None if array is None else array[here] for array in others)
        own = {name: array[here] for name, array in self.counted.items()}
        weight = weight_in_mean(self.plan, len(x), target, own.get("weights"), own.get("lengths"))
        if weight == 0:
            return 0.0, 0.0
        return weight * calls.value(self.plan, params, x, target, self.work, weights, layers, lengths=lengths), weight


def counts_apart(plan, lengths):
    """Whether the weight of some samples in a mean over more of them is not the sum of their weights."""
    return plan.loss.couples_samples or (lengths is not None and _over_positions(plan))


def weight_in_mean(plan, n, target, weights, lengths):
    """The weight of n samples in a mean loss: the sum of their weights, times lengths for a mean over positions.

    For a loss that leaves some targets out, it is that of the others. Arrays on the host, or None; the target is only
    looked at for such a loss.
    """
    lengths = lengths if _over_positions(plan) else None
    if plan.loss.couples_samples:
        return plan.loss.counted(target, weights, lengths)
    counted = np.ones(n) if weights is None else weights.astype(np.float64)
    return float((counted if lengths is None else counted * lengths).sum())


def _over_positions(plan):
    return positions_that_count(plan.max_length, plan.output_shape) > 1
