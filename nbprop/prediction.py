"""`predict`: the outputs of a network for any number of samples, a chunk at a time."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nbprop.arrays import check_array, check_vector, without_memmap
from nbprop.autodiff.gradients import forward
from nbprop.losses import Loss, loss_named
from nbprop.lowering.plan import first_state, plan, workspace
from nbprop.lowering.programs import state_layout
from nbprop.networks.network import Network
from nbprop.runtime.datasets import check_form, check_lengths
from nbprop.validation import named, positive, shown

KINDS = ("output", "classes", "probabilities")


def predict(
    net: Network,
    params: NDArray[Any],
    x: NDArray[Any],
    batch: int = 1024,
    kind: Literal["output", "classes", "probabilities"] = "output",
    loss: str | Loss | None = None,
    state: NDArray[Any] | None = None,
    lengths: NDArray[Any] | None = None,
    threads: int = 1,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """The outputs of a network in inference mode, for any number of samples, a chunk at a time.

    Beside x and out it takes the workspace of a chunk. x and out may be memory maps, of data larger than memory.

    Parameters
    ----------
    net : Network
    params : (net.n_params,) float32 or float64 array
    x : (n, *net.input_shape) array of the same dtype, or integers for a network that begins with an embedding. NaN
        gives NaN
    batch : int
        Samples in a chunk. For a network without statistics over a batch the outputs do not depend on it, except for
        the last bits
    kind : "output", "classes" or "probabilities"
        What the network gives; or what its loss says of that: the likeliest class, or its and the others'
        probabilities
    loss : str or loss
        That the network was trained with; needed for classes and probabilities. "softmax_cross_entropy": the class of
        the largest logit along the last axis, and the softmax, also for losses of distributions over classes;
        "binary_cross_entropy" and "focal": 1 where a logit is positive, and the sigmoid. Other losses have no classes
    state : array or None
        Layer state as `fit` has left it, or `nbprop.load_state`, for a plan with any batch. Running statistics are
        taken from it, not changed; what samples carry from call to call begins as new in each chunk
    lengths : (n,) integers or None
        How many positions of each sample are valid; outputs beyond are 0
    threads : int
    out : array or None
        Where to write, C-contiguous; None makes a new one

    Returns
    -------
    out : (n, *net.output_shape) of params' dtype. Classes: int64, without the last axis where it is that of classes

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, a loss without classes. Nothing has been written then.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((2,), nbprop.dense(3))
    >>> params = nbprop.init(net, seed=1)
    >>> x = np.array([[1.0, 2.0], [-1.0, 0.5]])
    >>> nbprop.predict(net, params, x).shape
    (2, 3)
    >>> nbprop.predict(net, params, x, kind="probabilities", loss="softmax_cross_entropy").sum(axis=1).round(12)
    array([1., 1.])
    """
    predictor = Predictor("predict", net, params, batch, kind, loss, state, threads)
    used = predictor.plan
    x = check_form("predict", "x", x, None, used.input_shape, used.dtype, _integers(used))
    if lengths is not None:
        lengths = check_lengths("predict", "lengths", used, lengths, len(x))
    shape = (len(x), *predictor.shape)
    if out is None:
        out = np.empty(shape, predictor.dtype)
    written = check_array("predict: out", out, shape, predictor.dtype, written=True)
    for name, other in {"params": params, "x": x, "state": state, "lengths": lengths}.items():
        if other is not None and np.may_share_memory(written, other):
            raise ValueError(f"predict: out shares memory with {name}; pass separate arrays")
    predictor(x, written, lengths)
    return out


def _integers(used):
    """What x holds for a network over integers, as `check_form` takes it."""
    return ("classes", 0, used.x_classes - 1) if used.x_classes else None


class Predictor:
    """A network ready to run chunk by chunk. Its arguments are `predict`'s; `function` is what errors name.

    `shape` and `dtype` are those of what it gives for a sample.
    """

    def __init__(self, function, net, params, batch=1024, kind="output", loss=None, state=None, threads=1):
        if not isinstance(net, Network):
            raise TypeError(f"{function}: net must be what nbprop.network(...) returns, got {shown(net)}")
        self.params = check_vector(f"{function}: params", params, net.n_params, (np.float32, np.float64))
        self.convert = _conversion(function, net, named(KINDS)(f"{function}: kind", kind), loss)
        batch, threads = positive(f"{function}: batch", batch), positive(f"{function}: threads", threads)
        self.plan = plan(net, None, batch, self.params.dtype, threads, mode="inference")
        self.work, self.output = workspace(self.plan), None
        self.state = _state(function, self.plan, state)
        self.shape, self.dtype = net.output_shape, self.plan.dtype
        if self.convert is not None:
            self.output = np.empty((batch, *net.output_shape), self.dtype)
            if kind == "classes":
                self.shape, self.dtype = loss_named(loss).classes_of(self.output[:0]).shape[1:], np.dtype(np.int64)

    def __call__(self, x, out, lengths=None):
        """Write what it gives for x, arrays that fit the plan, to out."""
        for start in range(0, len(x), self.plan.batch):
            here = slice(start, start + self.plan.batch)
            state = None if self.state is None else self.state.copy()
            part = None if lengths is None else lengths[here]
            y = out[here] if self.output is None else self.output[: len(x[here])]
            forward(self.plan, self.params, x[here], y, self.work, state, lengths=part)
            if self.convert is not None:
                out[here] = self.convert(y)


def _conversion(function, net, kind, loss):
    """The function from outputs to what is asked for; None where that is the outputs."""
    if kind == "output":
        return None
    if loss is None:
        raise ValueError(f"{function}: kind {kind!r} depends on what the network was trained with; give its loss")
    found = loss_named(loss)
    if not found.has_classes:
        raise ValueError(f"{function}: kind {kind!r} needs a loss of classes; with {found.kind} outputs are numbers")
    found.target(net.output_shape)  # refuses a network that it does not fit
    return found.classes_of if kind == "classes" else found.probabilities_of


def _state(function, used, given):
    """Layer state for the first call: what does not depend on the batch from the given one, the rest new."""
    if used.state_size == 0 and given is None:
        return None
    layout, of_samples = state_layout(used.net)
    common = sum(size for _, size in layout.values())
    if given is None:
        if common:
            raise TypeError(f"{function}: state is needed for this network; pass what fit or load_state gave")
        return first_state(used)
    given = without_memmap(given)
    each = (used.state_size - common) // used.batch
    size = getattr(given, "size", 0)
    fits = size == common if not of_samples else size > common and (size - common) % each == 0
    given = check_vector(f"{function}: state", given, size if fits else used.state_size, used.dtype)
    state = first_state(used)
    state[:common] = given[:common]
    return state
