"""What `fit` measures beside the loss at the ends of epochs: metrics of the outputs, by name or a user's function."""

import numpy as np

from nbprop.autodiff import gradients as calls
from nbprop.training.measuring import inference_plan
from nbprop.validation import choose, shown


def accuracy(y, target, weights):
    """The share of right answers: the class with the largest output, or of binary targets the outputs' sign."""
    right = y.argmax(axis=-1) == target if target.dtype.kind in "iu" else (y > 0) == (target > 0.5)
    return np.average(right.reshape(len(right), -1).mean(axis=1), weights=weights)


def r2(y, target, weights):
    """1 - the squared errors over the squared distances from the mean, averaged over the outputs."""
    y, target = y.reshape(len(y), -1).astype(np.float64), target.reshape(len(target), -1).astype(np.float64)
    center = np.average(target, axis=0, weights=weights)
    errors, spread = (np.average((target - of) ** 2, axis=0, weights=weights) for of in (y, center))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.mean(1 - errors / spread)


def auc(y, target, weights):
    """The area under the ROC curve, ties as halves; of several classes the mean, each against the rest."""
    weights = np.ones(len(y)) if weights is None else weights
    if target.dtype.kind in "iu":
        if y.shape[-1] == 2:
            return _area(y[:, 1].astype(np.float64) - y[:, 0], target == 1, weights)
        e = np.exp(y.astype(np.float64) - y.max(axis=-1, keepdims=True))
        chances = e / e.sum(axis=-1, keepdims=True)
        return np.mean([_area(chances[:, k], target == k, weights) for k in range(y.shape[-1])])
    y, target = y.reshape(len(y), -1), target.reshape(len(y), -1)
    return np.mean([_area(y[:, k], target[:, k] > 0.5, weights) for k in range(y.shape[1])])


def _area(score, positive, weights):
    """The chance that a positive sample scores above a negative one; NaN without both."""
    _, place = np.unique(score, return_inverse=True)
    up, down = (np.bincount(place, weights * chosen) for chosen in (positive, ~positive))
    total = up.sum() * down.sum()
    below = np.cumsum(down) - down
    return float((up * (below + down / 2)).sum() / total) if total > 0 else np.nan


METRICS = {"accuracy": accuracy, "r2": r2, "auc": auc}


def check_metrics(metrics, loss):
    """{name: function(y, target, weights)} of fit's argument."""
    if metrics is None:
        return {}
    if isinstance(metrics, str) or not isinstance(metrics, (list, tuple)):
        raise TypeError(f"fit: metrics must be a list of names or functions, got {shown(metrics)}")
    found = {}
    for metric in metrics:
        if callable(metric):
            name = getattr(metric, "__name__", type(metric).__name__)
            found[name] = lambda y, target, weights, metric=metric: metric(y, target)
            continue
        function = choose("fit: metrics", metric, METRICS)
        answers = loss.kind in ("softmax_cross_entropy", "binary_cross_entropy")
        if (metric == "r2") == answers:
            raise ValueError(f"fit: metrics: {metric!r} does not go with {loss.kind}; pass a function of (y, target)")
        found[metric] = function
    return found


class Metrics:
    """The metrics of a data set at fixed parameters, from the outputs of all of its samples, in inference mode."""

    def __init__(self, job, data, metrics):
        self.job, self.data, self.metrics = job, data, metrics
        self.plan, self.work = inference_plan(job)
        kept = {"target": data[1], "weights": data[2], "lengths": data[3]}
        self.kept = job.host_arrays({name: array for name, array in kept.items() if array is not None})

    def __call__(self, params, layers):
        """{name: float}."""
        y, target = self._outputs(params, layers), self.kept["target"]
        weights = self.kept.get("weights")
        weights = None if weights is None else weights.astype(np.float64)
        lengths = self.kept.get("lengths")
        if lengths is not None and self.plan.positions_of_loss > 1:
            within = np.arange(self.plan.positions_of_loss) < lengths[:, None]
            weights = None if weights is None else np.repeat(weights, lengths)
            y, target = y[within], target[within]
        return {name: float(metric(y, target, weights)) for name, metric in self.metrics.items()}

    def _outputs(self, params, layers):
        x, _, _, lengths = self.data
        layers = None if layers is None else layers.copy()  # measuring must not change it
        plan, found = self.plan, []
        for start in range(0, len(x), plan.batch):
            here = slice(start, min(start + plan.batch, len(x)))
            y = self.job.empty((here.stop - start, *plan.output_shape))
            part = None if lengths is None else lengths[here]
            calls.forward(plan, params, x[here], y, self.work, layers, lengths=part)
            found.append(self.job.host_arrays({"y": y})["y"])
        return np.concatenate(found)


def class_weights(plan, classes_of, given):
    """(n,) factors of the samples' weights, by their classes, of the plan's dtype; classes_of: integers (n,).

    given: (classes,) array, or "balanced": n / (classes times the count of each).
    """
    if plan.classes == 0 or plan.target_shape:
        raise ValueError("fit: class_weight is for one integer class a sample, as softmax_cross_entropy has it")
    if isinstance(given, str) and given == "balanced":
        counts = np.bincount(classes_of, minlength=plan.classes)
        given = len(classes_of) / (plan.classes * np.maximum(counts, 1))
    if not isinstance(given, np.ndarray) or given.shape != (plan.classes,) or given.dtype.kind != "f":
        got = f"{given.dtype} array of shape {given.shape}" if isinstance(given, np.ndarray) else shown(given)
        raise TypeError(f"fit: class_weight must be 'balanced' or a float array ({plan.classes},), got {got}")
    if not (np.isfinite(given).all() and (given >= 0).all() and given[classes_of].sum() > 0):
        raise ValueError("fit: class_weight must be finite and not negative, and some sample's be above 0")
    return given.astype(plan.dtype)[classes_of]
