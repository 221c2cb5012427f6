"""A trace of one training step: forward, error, backward, update, with what every op read and wrote.

The ops are those of the plan's own program (`value_and_grad`), walked one at a time by the compiled walker, and what
their operands hold is copied in between. Nothing is computed a second way.
"""

import html
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbprop.arrays import check_vector
from nbprop.io.atomic import write_atomically
from nbprop.lowering.plan import Plan, layer_state, workspace
from nbprop.messages import FORWARD_ONLY, failure
from nbprop.networks.network import trainable_mask, views
from nbprop.program import elements, frame, table
from nbprop.runtime.arguments import STEPS
from nbprop.runtime.datasets import check_data, check_dataset, check_layer_state
from nbprop.runtime.errors import describe_failure
from nbprop.runtime.walker import walk_alone
from nbprop.validation import check_integer, check_number

PHASES = ("forward", "error", "backward")
# What the page shows of an array, of a layer's units and of a batch; the trace itself holds everything.
_SHOWN, _UNITS, _SAMPLES = 64, 16, 8


@dataclass(frozen=True)
class Step:
    """One op of the program: a kernel with what it read and wrote, copied before and after it ran.

    number : int, its place in the program
    phase : "forward", "error" (the loss and its derivative) or "backward"
    layer : str, the path of the layer that emitted it
    kernel : str, the name of its function
    sizes : {name: int}, the sizes that the kernel was given
    inputs : {name: array}, what it read; an array that it changed in place is here as it was before
    outputs : {name: array}, what it wrote
    """

    number: int
    phase: str
    layer: str
    kernel: str
    sizes: dict
    inputs: dict
    outputs: dict


@dataclass(frozen=True)
class Units:
    """A layer's units in a trace, (n, *shape) arrays: outputs, dL/d outputs, and the outputs after the update."""

    output: np.ndarray
    gradient: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class Trace:
    """What `trace` returns.

    plan : the plan that was walked: the caller's, for one thread and as many samples as x has
    loss, loss_after : float, of the batch, before and after the update
    x, target : the batch
    params, grads, updated : (n_params,) arrays; updated = params - lr * grads
    lr : float
    steps : list of Step, in the order in which they ran
    units : {layer's path: Units}, layers within layers included
    dx : (n, *input_shape) array, dL/dx; None for a network over integers

    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params = nbprop.plan(net, loss="mse", batch=2), np.array([2.0, 1.0])  # y = 2 x + 1
    >>> x, target = np.array([[1.0], [3.0]]), np.array([[3.0], [6.0]])
    >>> found = nbprop.trace(plan, params, x, target, lr=0.1)
    >>> found.loss, found.grads
    (0.5, array([3., 1.]))
    >>> [step.kernel for step in found.steps if step.phase == "error"]
    ['mse_kernel', 'loss_mean']
    """

    plan: Plan
    loss: float
    loss_after: float
    x: np.ndarray
    target: np.ndarray
    params: np.ndarray
    grads: np.ndarray
    updated: np.ndarray
    lr: float
    steps: list
    units: dict
    dx: np.ndarray | None

    def html(self) -> str:
        """The trace as an interactive page, a text: one file without any other, for a browser.

        It steps through the ops with buttons or arrow keys. Of large layers and arrays it shows the first numbers.
        """
        page = files("nbprop.analysis").joinpath("trace.html").read_text(encoding="utf-8")
        data = json.dumps(_for_page(self), allow_nan=False).replace("</", "<\\/")
        title = html.escape(f"One training step: {self.plan.net!r}")
        return page.replace("{{title}}", title).replace("{{data}}", data)

    def save(self, path: str | Path) -> None:
        """Write the page to a file."""
        text = self.html()
        write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def trace(
    plan: Plan,
    params: NDArray[Any],
    x: NDArray[Any],
    target: NDArray[Any],
    lr: float = 0.1,
    state: NDArray[Any] | None = None,
    step: int = 0,
    lengths: NDArray[Any] | None = None,
) -> Trace:
    """Walk one training step op by op and keep what each op read and wrote: for teaching, and to find a fault.

    Parameters
    ----------
    plan : Plan made with a loss; its batch does not matter
    params : (n_params,) array of the plan's dtype; not changed
    x : (n, *input_shape) array, any n; all its intermediate values are copied, so keep it small
    target : as `value_and_grad` takes it
    lr : float, the rate of the update, a step of gradient descent: updated = params - lr * grads
    state : 1-D array from `layer_state(plan)`, if the network has one; not changed
    step : int, keys the random numbers of dropout
    lengths : (n,) integers or None, as `forward` takes them

    Returns
    -------
    Trace
        `steps` has the ops; `html()` and `save(path)` make an interactive page of it, `nbprop.plot.trace` a picture.
        Loss and gradient have the bits of `value_and_grad` with the same batch.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((2,), nbprop.dense(3, activation="tanh"), nbprop.dense(1))
    >>> plan, params = nbprop.plan(net, loss="mse"), nbprop.init(net, seed=0)
    >>> found = nbprop.trace(plan, params, np.array([[0.0, 1.0]]), np.array([[1.0]]))
    >>> for step in found.steps[:2]:
    ...     print(step.phase, step.layer, step.kernel, {name: a.shape for name, a in step.inputs.items()})
    forward 0.dense dense_single {'x': (1, 2), 'w': (2, 3), 'b': (3,)}
    forward 1.dense dense_single {'x': (1, 3), 'w': (3, 1), 'b': (1,)}
    >>> found.loss > found.loss_after
    True
    """
    x, target, _ = check_dataset("trace", plan, x, target)
    if plan.target != "cpu":
        raise ValueError("trace: plan must be for the CPU; make one without target=...")
    if plan.mode == "decoding":
        raise failure(FORWARD_ONLY, "trace:")
    lengths = check_data("trace", plan, x, target, None, lengths)[3]
    params = check_vector("trace: params", params, plan.n_params, plan.dtype)
    lr = float(check_number("trace: lr", lr))
    step = check_integer("trace: step", step, 0, STEPS - 1)
    state = check_layer_state("trace", plan, state)
    # The caller's plan for exactly this batch: buffers then hold its samples and nothing else.
    own = Plan(plan.net, plan.loss, len(x), plan.dtype, 1, plan.mode)
    watched = Plan(plan.net, plan.loss, len(x), plan.dtype, 1, plan.mode, watch="layers")

    def walk(walked, theta):
        return _Walk(walked, theta, x, target, _state_for(walked, plan, state), step, lengths)

    main, aside = walk(own, params), walk(watched, params)
    loss, steps = main.trace()
    aside.run()
    updated = params - params.dtype.type(lr) * main.arrays["grads"] * trainable_mask(plan.net)
    after = walk(watched, updated)
    loss_after = after.run()
    units = {
        path: Units(
            aside.values(one.output, one.shape),
            aside.values(one.gradient, one.shape),
            after.values(one.output, one.shape),
        )
        for path, one in watched.watched.items()
    }
    dx = None if plan.x_classes else aside.arrays["dx"]
    grads = main.arrays["grads"]
    return Trace(own, loss, loss_after, x.copy(), target.copy(), params.copy(), grads, updated, lr, steps, units, dx)


# -- the walk ------------------------------------------------------------------------------------------------


def _state_for(walked, plan, state):
    """The caller's layer state, as a copy for a plan of another batch: the same statistics, samples' states anew."""
    if not walked.state_size:
        return None
    found = layer_state(walked)
    for (_, buffer, _), (_, source, _) in zip(walked.state_parts, plan.state_parts, strict=True):
        if state is not None and buffer.size == source.size and buffer.offset == source.offset:
            found[buffer.offset : buffer.offset + buffer.size] = state[source.offset : source.offset + source.size]
    return found


class _Walk:
    """The arrays of one call of `value_and_grad`, and the walk over its program."""

    def __init__(self, plan, params, x, target, state, step, lengths):
        self.plan, self.n = plan, len(x)
        self.arrays = {
            "params": params,
            "x": x,
            "target": target,
            "grads": np.zeros_like(params),
            "work": workspace(plan),
            "state": state,
            "lengths": lengths,
        }
        if plan.watch and not plan.x_classes:
            self.arrays["dx"] = np.zeros_like(x)
        self.arrays = {name: array for name, array in self.arrays.items() if array is not None}
        words = self.words = np.zeros(frame.WORDS, np.int64)
        for name, array in self.arrays.items():
            words[frame.SPACES[name]] = array.ctypes.data
        words[frame.N], words[frame.STEP] = self.n, step
        for name, word in (("x", frame.X_CODE), ("target", frame.TARGET_CODE), ("lengths", frame.LENGTHS_CODE)):
            if name in self.arrays:
                words[word] = elements.element_code(self.arrays[name].dtype)
        self.spaces = {frame.SPACES[name]: array.reshape(-1) for name, array in self.arrays.items()}

    def _rows(self):
        """(op, address of its row, address of the next) of the program."""
        row = int(self.plan.table[table.PROGRAMS + 2 * table.VALUE_AND_GRAD])
        for op in self.plan.ops(table.VALUE_AND_GRAD):
            behind = row + int(self.plan.table[row + table.LENGTH])
            yield op, self.plan.address + 8 * row, self.plan.address + 8 * behind
            row = behind

    def _call(self, begin, end):
        failed = walk_alone(self.words.ctypes.data, begin, end, 0)
        if failed:
            raise describe_failure("trace", self.plan, (failed - self.plan.address) // 8)

    def run(self):
        """Walk without looking; the loss."""
        for _, begin, end in self._rows():
            self._call(begin, end)
        return self._loss()

    def _loss(self):
        return float(self.words[frame.RESULT : frame.RESULT + 1].view(np.float64)[0])

    def trace(self):
        """Walk and look: (loss, the steps)."""
        phases = {
            id(op): phase
            for phase, part in zip(PHASES, ("forward", "loss", "backward"), strict=True)
            for op in self.plan.parts[part]
        }
        steps: list[Any] = []
        written: set[Any] = set()
        for op, begin, end in self._rows():
            operands = {
                name: buffer
                for name, buffer in zip(op.kernel.arrays, op.operands, strict=True)
                if buffer is not None and buffer.space in self.spaces
            }
            changed = {name for name, buffer in operands.items() if any(buffer is one for one in op.writes)}
            # What an op before has written, and this one writes again, is changed in place.
            before = {n: self.look(b) for n, b in operands.items() if n not in changed or id(b) in written}
            # Kernels over integers read these by their address.
            before |= {
                name: self.arrays[name].copy()
                for name in ("x", "target", "lengths")
                if f"{name}_address" in op.kernel.scalars and name in self.arrays
            }
            self._call(begin, end)
            written.update(id(buffer) for buffer in op.writes)
            after = {name: self.look(operands[name]) for name in operands if name in changed}
            name, sizes = op.kernel.name.rpartition(".")[2], op.numbers
            steps.append(Step(len(steps), phases[id(op)], op.label, name, sizes, before, after))
        return self._loss(), steps

    def look(self, buffer):
        """A copy of what a buffer holds, in the shape of its parameter, else a row for each sample."""
        flat = self.spaces[buffer.space][buffer.offset : buffer.offset + buffer.size].copy()
        slot = self.plan.net.slots.get(buffer.name)
        if slot is not None and slot.size == flat.size:
            return flat.reshape(slot.parameter.shape)
        apart = buffer.space not in (frame.PARAMS, frame.GRADS, frame.STATE) and flat.size % self.n == 0
        return flat.reshape(self.n, -1) if apart else flat

    def values(self, buffer, shape):
        """A copy of a watched value, (n, *shape)."""
        flat = self.spaces[buffer.space][buffer.offset : buffer.offset + self.n * int(np.prod(shape))]
        return flat.reshape(self.n, *shape).copy()


# -- for the page --------------------------------------------------------------------------------------------


def _numbers(array, most=None):
    """A flat list of an array's first numbers, as JSON can hold them; NaN and infinity become None."""
    flat = np.asarray(array).reshape(-1)[:most]
    if flat.dtype.kind in "iu":
        return flat.tolist()
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in flat.astype(np.float64)]


def _rows_of(array):
    """The first numbers of each of the first samples."""
    return [_numbers(row, _UNITS) for row in array[:_SAMPLES]]


def _shown(arrays):
    return [{"name": n, "shape": list(a.shape), "values": _numbers(a, _SHOWN)} for n, a in arrays.items()]


def _for_page(found):
    """What the page needs, as JSON can hold it."""
    net, n = found.plan.net, len(found.x)
    columns = [{"name": "input", "size": int(np.prod(net.input_shape)), "values": _rows_of(found.x)}]
    columns[0] |= {"after": columns[0]["values"]}
    if found.dx is not None:
        columns[0] |= {"forces": _rows_of(-n * found.dx.astype(np.float64))}
    named = {kind: views(net, getattr(found, kind)) for kind in ("params", "grads", "updated")}
    for index, layer in enumerate(net.layers):
        path = f"{index}.{layer.kind}"
        units = found.units[path]
        column = {
            "name": path,
            "op": repr(layer)[:80],
            "size": int(np.prod(units.output.shape[1:])),
            "values": _rows_of(units.output),
            # n times: of the sample's own loss, not of its share in the mean.
            "forces": _rows_of(-n * units.gradient.astype(np.float64)),
            "after": _rows_of(units.after),
        }
        weight = f"{path}.weight"
        if layer.kind == "dense" and weight in net.slots and columns[-1]["size"] == named["params"][weight].shape[0]:
            for kind, key in (("params", "weights"), ("updated", "weights_after"), ("grads", "weight_gradients")):
                column[key] = [_numbers(row, _UNITS) for row in named[kind][weight][:_UNITS]]
        columns.append(column)
    return {
        "loss": float(f"{found.loss:.6g}") if np.isfinite(found.loss) else None,
        "lossAfter": float(f"{found.loss_after:.6g}") if np.isfinite(found.loss_after) else None,
        "lossName": found.plan.loss.kind,
        "lr": found.lr,
        "network": repr(net),
        "parameters": net.n_params,
        "samples": n,
        "shownSamples": min(n, _SAMPLES),
        "classes": bool(found.plan.classes),
        "target": _rows_of(found.target.reshape(n, -1)),
        "columns": columns,
        "steps": [
            {
                "phase": step.phase,
                "layer": step.layer,
                "kernel": step.kernel,
                "sizes": step.sizes,
                "inputs": _shown(step.inputs),
                "outputs": _shown(step.outputs),
            }
            for step in found.steps
        ],
        "parameterArrays": [
            {
                "name": name,
                "shape": list(part.shape),
                **{kind: _numbers(named[kind][name], _SHOWN) for kind in ("params", "grads", "updated")},
            }
            for name, part in named["params"].items()
        ],
    }
