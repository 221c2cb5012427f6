"""What a target is: classes or numbers, and how a loss needs it."""

from typing import Any

import numpy as np

import nbprop
from nbprop.io.data_files import Source, are_classes
from nbprop.io.table_source import TableSource
from nbprop.losses import loss_named

# Losses whose outputs are estimates of the target itself, and those whose first half of outputs is.
_ESTIMATES, _FIRST_HALF = ("mse", "mae", "huber", "log_cosh"), ("gaussian_nll", "beta_nll", "student_t_nll")

# Whole numbers with so few different values, each of which comes so often, are classes where no network says otherwise.
_FEW, _OFTEN = 10, 5


class Task:
    """A network with a loss and the samples of a file: what train and its reports need to know of them."""

    def __init__(self, net, loss, source, data, dtype):
        self.net, self.loss, self.source, self.data = net, loss, source, data
        self.embedded: list[Any] = []  # columns of categories that the network embeds
        dtype = dtype if dtype.kind == "f" else np.dtype(np.float32)
        self.plan = plan = nbprop.plan(net, loss, 1, dtype)
        self.y = _target_for(plan, loss, source, data)
        self.kind = loss_named(loss)
        self.of_classes = self.kind.has_classes
        self.scored = self.of_classes or self.kind.kind in (*_ESTIMATES, *_FIRST_HALF)
        self.labels = None
        if self.of_classes and plan.target_shape in ((), (1,)):
            self.labels = data.labels or [str(k) for k in range(plan.classes or 2)]

    def described(self):
        """The target in a line of the report."""
        if self.data.labels is not None:
            return f"{len(self.data.labels)} classes: {', '.join(self.data.labels)}"
        if self.plan.classes:
            return f"classes of 0..{self.plan.classes - 1}, {len(np.unique(self.y))} of them present"
        return f"numbers from {self.y.min():g} to {self.y.max():g}"

    def samples(self, rows, means=None):
        """(x of some rows without missing values, the means that were filled in: of these rows, unless given)."""
        x = self.data.x[rows]
        if not isinstance(self.source, TableSource) or x.dtype.kind != "f":
            return x, None
        absent = np.isnan(x)
        if means is None:
            count = (~absent).sum(0)
            if not count.all():
                place = self.source.place(self.data, 0, int(np.argmin(count))).partition(", ")[2]
                raise ValueError(f"{self.source.path}: {place} has no value in any sample to learn from; see --drop")
            means = np.where(absent, 0, x).sum(0, dtype=np.float64) / count
        return (np.where(absent, means.astype(x.dtype), x) if absent.any() else x), means

    def truth(self, y):
        """The target as metrics take it."""
        if not self.of_classes:
            return y.reshape(len(y), -1).astype(np.float64)
        if not self.plan.classes:  # labels, or a distribution over classes
            labels = self.kind.classes_of(y[:0]).shape == y[:0].shape
            y = y > 0.5 if labels else self.kind.classes_of(y)
        return y.reshape(-1).astype(np.int64)

    def guess(self, out):
        """Outputs as metrics take them."""
        if self.of_classes:
            return self.kind.classes_of(out).reshape(-1)
        return out.reshape(len(out), -1)[:, : int(np.prod(self.plan.target_shape))].astype(np.float64)


def usual_loss(net, data, task):
    """The default loss for a target; what is taken as classes gets labels."""
    shape: Any = None if net is None else net.output_shape
    if task == "classes" or (task is None and net is None and _look_like_classes(data)):
        _take_as_classes(data)
    if data.labels is not None:
        return "binary_cross_entropy" if shape == (1,) and len(data.labels) == 2 else "softmax_cross_entropy"
    fits = bool(shape) and shape[-1] > 1 and data.y.shape[1:] == shape[:-1] and task is None
    return "softmax_cross_entropy" if fits and are_classes(data.y) else "mse"


def _look_like_classes(data):
    """Whether a target of numbers is rather one of classes."""
    if data.labels is not None or data.y.ndim != 1 or not are_classes(data.y):
        return False
    values, counts = np.unique(data.y, return_counts=True)
    return 1 < len(values) <= _FEW and counts.min() >= _OFTEN


def _take_as_classes(data):
    """Give labels to a target of numbers."""
    if data.labels is None:
        if data.y.ndim != 1 or not are_classes(data.y):
            raise ValueError("--task classes needs one target of whole numbers or text")
        values, data.y = np.unique(data.y, return_inverse=True)
        data.labels = [str(int(value)) for value in values]


def _target_for(plan, loss, source, data):
    """The target as the loss needs it: class numbers, or numbers in the plan's dtype."""
    y, path, shape = data.y, source.path, plan.target_shape
    if data.labels is not None:
        outputs = plan.classes or (2 if loss == "binary_cross_entropy" and plan.output_shape == (1,) else 0)
        if outputs == 0:
            text = source.text_target or f"{path}: the target is text"
            raise ValueError(f"{text}; loss {loss} needs numbers, and softmax_cross_entropy takes text as classes")
        if outputs != len(data.labels):
            raise ValueError(
                f"{path}: the target is text of {len(data.labels)} classes ({', '.join(data.labels[:8])}), and the "
                f"network's outputs are for {outputs}; end it with dense:{len(data.labels)}"
            )
    if plan.classes:
        if y.shape[1:] != shape and y.ndim == len(shape) + 2 and y.shape[-1] == plan.classes:
            raise ValueError(
                f"{path}: {loss} needs class numbers, and the target has rows of {plan.classes} numbers; where "
                "these are one-hot, np.argmax(y, axis=-1) gives class numbers"
            )
        _check_target_shape(path, loss, y, shape)
        wrong = (y != np.rint(y)) | (y < 0) | (y >= plan.classes)
        if wrong.any():
            i = int(np.argmax(wrong.reshape(len(y), -1).any(1)))
            value = y[i][wrong[i]].reshape(-1)[0] if y.ndim > 1 else y[i]
            place = source.target_place(Source.piece(data.rows), i)
            raise ValueError(
                f"{path}: {place} must hold classes in 0..{plan.classes - 1}, got {value:g}; {loss} takes whole "
                "numbers as class numbers: end the network with more outputs, or number the classes from 0"
            )
        return np.ascontiguousarray(y, np.int64)
    if y.ndim == 1 and shape == (1,):
        y = y[:, None]
    _check_target_shape(path, loss, y, shape)
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(y, plan.dtype)
    wrong = ~np.isfinite(out)
    if wrong.any():
        i = int(np.argmax(wrong.reshape(len(y), -1).any(1)))
        place = source.target_place(Source.piece(data.rows), i)
        raise ValueError(f"{path}: {place}: {plan.dtype} cannot represent it; say --dtype float64, or scale the target")
    return out


def _check_target_shape(path, loss, y, shape):
    if y.shape[1:] != shape:
        raise ValueError(
            f"{path}: {loss} needs a target of shape {shape} for each sample of this network, got {y.shape[1:]}; see "
            "--target and --targets, or change the last layer of the network"
        )
