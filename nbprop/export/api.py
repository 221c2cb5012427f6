"""`export_c`: a network as C source."""

import importlib.metadata
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nbprop.analysis.bounds import bounds
from nbprop.arrays import as_array, check_kinds
from nbprop.export.casadi_file import FUNCTIONS as casadi_functions
from nbprop.export.casadi_file import casadi_file
from nbprop.export.fortran_file import check_fortran_names, fortran_file
from nbprop.export.header_file import header_file
from nbprop.export.library import functions_for
from nbprop.export.literals import literal
from nbprop.export.programs import FUNCTIONS, MORE, integer_input, not_possible, programs
from nbprop.export.selftest import Vector
from nbprop.export.source_file import source_file
from nbprop.export.steps import STEPS
from nbprop.io.atomic import as_path, write_atomically
from nbprop.losses import loss_named
from nbprop.losses.base import Loss
from nbprop.networks.network import Network, check_flat
from nbprop.validation import as_dtype, choose, positive, shown

_BINDINGS = {"fortran": (".f90", fortran_file), "casadi": ("_casadi.c", casadi_file)}
_MOST = 2**31 - 1  # what an int counts
_MOST_SHOWN = 32  # numbers of a box in the header
_KEYWORDS = """
auto break case char const continue default do double else enum extern float for goto if inline int long register
restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
"""


@dataclass(frozen=True)
class Export:
    """All that the two files are written from."""

    stem: str
    net: Network
    loss: Any
    params: np.ndarray
    state: np.ndarray
    dtype: np.dtype
    programs: tuple
    steps: tuple  # optimizers' names
    known: dict  # the C functions, by name
    vector: str
    weights_apart: bool  # whether they are in a file of their own
    bindings: tuple  # names of _BINDINGS
    certificate: tuple  # lines of what is proven of the outputs
    example: str
    selftest: str
    selftest_prototype: str
    sizes: tuple  # (name, value, what it is)
    version: str

    @property
    def real(self):
        return "float" if self.dtype == np.float32 else "double"

    @property
    def integer_input(self):
        return integer_input(self.net)


def export_c(
    stem: str | os.PathLike[str],
    net: Network,
    params: NDArray[Any],
    functions: Iterable[str] | None = None,
    dtype: DTypeLike = "float32",
    batch: int = 1,
    loss: str | Loss | None = None,
    state: NDArray[Any] | None = None,
    box: tuple[NDArray[Any], NDArray[Any]] | None = None,
    bindings: Iterable[str] = (),
    weights: Literal["source", "file"] = "source",
) -> None:
    """Write a network with its derivatives as C99: stem.c and stem.h, which need nothing but libm.

    Parameters
    ----------
    stem : str or path
        Where to: "control/pendulum" makes control/pendulum.c and control/pendulum.h, whose functions' names begin with
        `pendulum_`. Old files of these names are replaced.
    net : Network
        Layers of your own need their kernels in C (docs/export.md); without, they are refused by name.
    params : (net.n_params,) float32 or float64 array
        The weights, stored in the file as `pendulum_params`; functions take any others of this size.
    functions : sequence of names, or None
        What to write: "forward", "vjp", "jvp", "hvp", "value_and_grad", "hvp_x", "sgd", "adam"; None is all that the
        network and the loss have, without "hvp_x" and optimizers. "jvp" is along x, "hvp" by the parameters, "hvp_x"
        the derivative of vjp's dx along a direction of x; "sgd" and "adam" are steps of an optimizer, so that a device
        can go on learning.
    dtype : "float32" or "float64"
        The element type of all arrays, C's float or double.
    batch : int
        The most samples of a call; scratch grows with it.
    loss : str, loss or None
        As for `plan`; "hvp" and "value_and_grad" need one.
    state : array of `layer_state`'s layout, of the dtype of params, or None
        Running statistics, where layers have some.
    box : (low, high) of arrays (*net.input_shape), or None
        Within which inputs will lie: the header then says within which bounds the outputs do, with rounding, as
        `nbprop.bounds` proves them.
    bindings : sequence of "fortran", "casadi"
        "fortran" also writes stem.f90, a module with interfaces of all functions; "casadi" stem_casadi.c, with which
        `casadi.external` finds the network and its first and second derivatives by x (in float64).
    weights : "source" or "file"
        "file" writes them to stem.params, as little-endian numbers, instead of into the C file: it can then be changed
        without a compiler, and the functions and the self-test take the array that it has been read into.

    The functions do what a plan with mode="inference" does: dropout passes through, batch normalization takes running
    statistics. They take `params, n`, then their arrays and the caller's `scratch` (`PENDULUM_SCRATCH` elements); the
    header describes each, and `pendulum_selftest` checks a build against what nbprop computed. Nothing is allocated.
    Results differ from nbprop's by rounding: sums run in index order, without fused multiply-adds.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, a layer that has no C function, weights that are not finite; nothing has
        been written then.
    OSError
        When a file cannot be written; each file is whole or as it was.

    Examples
    --------
    >>> import nbprop, os, tempfile
    >>> net = nbprop.network((4,), nbprop.dense(8, activation="tanh"), nbprop.dense(1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     nbprop.export_c(os.path.join(folder, "pendulum"), net, nbprop.init(net), loss="mse")
    ...     sorted(os.listdir(folder))
    ['pendulum.c', 'pendulum.h']
    """
    path = as_path("export_c: stem", stem)
    folder, name = os.path.split(path)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in _KEYWORDS.split():
        raise ValueError(
            f"export_c: stem must end in a C identifier, which the functions' names begin with, got {shown(name)}; "
            "use letters, digits and _, a letter first"
        )
    if not os.path.isdir(folder or "."):
        raise FileNotFoundError(
            f"export_c: there is no folder {folder} to write {name}.c and {name}.h to; make it first"
        )
    if not isinstance(net, Network):
        raise TypeError(f"export_c: net must be what nbprop.network(...) returns, got {type(net).__name__}")
    export = _export(name, net, params, functions, as_dtype(dtype), batch, loss, state, box, bindings, weights)
    texts = {".c": source_file(export), ".h": header_file(export)}
    texts |= {_BINDINGS[name][0]: _BINDINGS[name][1](export) for name in export.bindings}
    for suffix in (*texts, ".params"):
        if os.path.isdir(path + suffix):
            raise IsADirectoryError(f"export_c: {path}{suffix} is a folder; remove it, or choose another stem")
    if export.weights_apart:
        content = export.params.astype(export.dtype.newbyteorder("<")).tobytes()
        write_atomically(path + ".params", lambda temporary: _write_bytes(temporary, content))
    for suffix, text in texts.items():
        write_atomically(path + suffix, lambda temporary, text=text: _write(temporary, text))


def _write(path, text):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def _write_bytes(path, content):
    with open(path, "wb") as file:
        file.write(content)


def _export(stem, net, params, functions, dtype, batch, loss, state, box, bindings, weights):
    batch = positive("export_c: batch", batch)
    loss = None if loss is None else loss_named(loss)
    if loss is not None:
        loss.target(net.output_shape)
    params = _finite("params", check_flat("export_c: params", params, net.n_params), dtype)
    functions, steps = _functions(functions, net, loss)
    apart = choose("export_c: weights", weights, ("source", "file")) == "file"
    bindings, functions = _bound(stem, bindings, functions, steps, net, dtype)
    known = functions_for(net, dtype.name)
    taken = [f"{stem}_{name}" for name in (*functions, *steps, "params", "selftest") if f"{stem}_{name}" in known]
    if taken:
        raise ValueError(
            f"export_c: stem {stem!r} would name a function {taken[0]}, as a kernel is; choose another stem"
        )
    found, pieces = programs(net, loss, batch, dtype, functions, known, lambda value: literal(value, dtype))
    state = _state(state, pieces, dtype)
    certificate = () if box is None else _certificate(net, params, box, state)
    if apart and bindings:
        raise ValueError('export_c: weights: the bindings need weights="source"')
    tested = tuple(name for name in functions if name in FUNCTIONS)
    vector = Vector(net, loss, params, dtype, tested, state, apart)
    scratch = max([1, *(program.scratch + (net.n_params if program.grads_always else 0) for program in found)])
    sizes = [
        ("N_PARAMS", net.n_params, "weights"),
        ("BATCH", batch, "the most samples of a call"),
        ("INPUT", math.prod(net.input_shape), "elements of x, a sample"),
        ("OUTPUT", math.prod(net.output_shape), "elements of y, a sample"),
        ("SCRATCH", scratch, "elements of scratch"),
        ("SELFTEST_SCRATCH", scratch + vector.scratch(), "elements of the self-test's scratch"),
    ]
    if "adam" in steps:
        sizes.append(("ADAM_STATE", 2 * net.n_params, "elements of Adam's state"))
    if loss is not None:
        sizes.insert(4, ("TARGET", math.prod(loss.target(net.output_shape)[0]), "elements of target, a sample"))
    largest = max(*(value for _, value, _ in sizes), batch * max(map(math.prod, net.shapes)))
    if largest > _MOST:
        raise ValueError(f"export_c: an array of {largest:,} elements is more than C's int counts; make batch smaller")
    real = "float" if dtype == np.float32 else "double"
    return Export(
        stem=stem,
        net=net,
        loss=loss,
        params=params,
        state=state,
        dtype=dtype,
        programs=tuple(found),
        steps=steps,
        known=known,
        vector=vector.described(),
        bindings=bindings,
        weights_apart=apart,
        certificate=certificate,
        example=vector.example(),
        selftest=vector.function(stem, real),
        selftest_prototype=vector.prototype(stem, real),
        sizes=tuple(sizes),
        version=importlib.metadata.version("nbprop"),
    )


def _bound(stem, bindings, functions, steps, net, dtype):
    """(bindings in order, the functions with those that the bindings call)."""
    if isinstance(bindings, str) or not isinstance(bindings, (list, tuple)):
        raise TypeError(f"export_c: bindings must be a list of names such as ['fortran'], got {shown(bindings)}")
    for name in bindings:
        choose("export_c: bindings", name, _BINDINGS)
    if "casadi" in bindings:
        if dtype != np.float64:
            raise ValueError('export_c: bindings: "casadi" computes in double; give dtype="float64"')
        for name in casadi_functions:
            why = not_possible(name, net, None)
            if why:
                raise ValueError(f'export_c: bindings: "casadi" needs "{name}", which {why}')
        functions = tuple(name for name in (*FUNCTIONS, *MORE) if name in (*functions, *casadi_functions))
    if "fortran" in bindings:
        check_fortran_names(stem, (*functions, *steps))
    return tuple(name for name in _BINDINGS if name in bindings), functions


def _certificate(net, params, box, state):
    """What the header says of outputs for inputs of a box."""
    if not isinstance(box, (tuple, list)) or len(box) != 2:
        raise TypeError(f"export_c: box must be (low, high), got {shown(box)}")
    try:
        found = bounds(net, params, box[0], box[1], state if state.size else None)
    except (TypeError, ValueError) as error:
        raise type(error)(f"export_c: box: {error}") from None
    ends = [" ".join(f"{value:.9g}" for value in np.ravel(end)[:_MOST_SHOWN]) for end in box]
    more = ", ..." if np.size(box[0]) > _MOST_SHOWN else ""
    lines = [f"Proven for every x with low <= x <= high, low = {ends[0]}{more}, high = {ends[1]}{more}:"]
    low, high = (found.low - found.rounding).ravel(), (found.high + found.rounding).ravel()
    for index, (least, most, wrong) in enumerate(zip(low, high, found.rounding.ravel(), strict=True)):
        if index == _MOST_SHOWN:
            lines.append("    ...")
            break
        least, most, wrong = _outward(least, -1), _outward(most, 1), _outward(wrong, 1)
        lines.append(f"    {least} <= y[{index}] <= {most}, of which rounding is at most {wrong}")
    return tuple(lines)


def _outward(value, direction):
    """A number in nine digits, rounded up or down."""
    text = f"{value:.8e}"
    if math.isfinite(value) and (float(text) - value) * direction < 0:
        text = f"{value + direction * abs(value) * 2e-8:.8e}"
    return text


def _functions(functions, net, loss):
    """The functions and the optimizer steps to write, in the order of the header."""
    if functions is None:
        return tuple(name for name in FUNCTIONS if not not_possible(name, net, loss)), ()
    if isinstance(functions, str) or not isinstance(functions, (list, tuple)) or not functions:
        raise TypeError(f"export_c: functions must be a list of names such as ['forward'], got {shown(functions)}")
    for name in functions:
        choose("export_c: functions", name, (*FUNCTIONS, *MORE, *STEPS))
        why = not_possible(name, net, loss)
        if why:
            raise ValueError(f'export_c: functions: "{name}" {why}; leave it out')
    return tuple(name for name in (*FUNCTIONS, *MORE) if name in functions), tuple(
        name for name in STEPS if name in functions
    )


def _state(state, pieces, dtype):
    """The layers' state as an array; empty where they have none."""
    size = sum(buffer.size for _, buffer, _ in pieces)
    if size == 0:
        if state is not None:
            raise ValueError(
                "export_c: state is for networks with running statistics, which this one has not; leave it out"
            )
        return np.empty(0, dtype)
    if state is None:
        label = pieces[0][0]
        raise ValueError(f"export_c: layer {label} has running statistics; give state, which training has updated")
    return _finite("state", check_flat("export_c: state", state, size), dtype)


def _finite(name, array, dtype):
    array = as_array(f"export_c: {name}", array)
    check_kinds(f"export_c: {name}", array, (np.float32, np.float64))
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    bad = np.flatnonzero(~np.isfinite(converted))
    if bad.size:
        raise ValueError(
            f"export_c: {name} must be finite in {dtype}, got {array[bad[0]]} at element {bad[0]}; "
            "these weights cannot be used"
        )
    return converted
