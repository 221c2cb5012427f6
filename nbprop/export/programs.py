"""What an exported function does: the ops of a plan's program, each as a call of a C function.

The only file of this package that knows how networks are lowered. Ops are those of a plan without the CPU's own ways
(one sample at a time, few rows, products with a pool in them), since C has one plain function for each kernel.
"""

from dataclasses import dataclass, replace

import numpy as np

from nbprop.lowering.memory import place_buffers
from nbprop.lowering.programs import lower, lower_along, lower_input_hessian
from nbprop.numerics.activations import ACTIVATIONS
from nbprop.program import frame

FUNCTIONS = ("forward", "vjp", "jvp", "hvp", "value_and_grad")
MORE = ("hvp_x",)  # written where it is asked for
_MODE = "inference"

_PARTS = {
    "forward": ("forward", "copy_y"),
    "vjp": ("forward", "copy_dy", "backward_input"),
    "value_and_grad": ("forward", "loss", "backward"),
}
# What a function's caller gets: the arrays that it writes, by their space; the loss is what the last op returns.
_OUTPUTS = {
    "forward": {frame.Y: "y"},
    "vjp": {frame.DX: "dx", frame.GRADS: "grads"},
    "jvp": {frame.OUT: "dy"},
    "hvp": {frame.OUT: "hv"},
    "hvp_x": {frame.Y: "hv"},
    "value_and_grad": {frame.GRADS: "grads"},
}
_ARRAYS = {
    frame.PARAMS: "params",
    frame.X: "x",
    frame.TARGET: "target",
    frame.WORK: "scratch",
    frame.DY: "dy",
    frame.STATE: "state",
}
# What a caller gives no array for: sample weights, and directions that the function's own signature lacks.
_INPUTS = {"jvp": {frame.DX: "dx"}, "hvp": {frame.TANGENT: "v"}, "hvp_x": {frame.DX: "v"}}
# Where gradients by parameters go that kernels write beside what is wanted.
_SPARE = {"hvp_x": {frame.GRADS: "spare", frame.OUT: "spare"}}
# Sums of pieces, which only serve threads (C sums all rows in order), and what only `lengths` ask for.
_LEFT_OUT = frozenset({"dense_sum_of_pieces", "count_positions"})
_CODES = {code: name for name, code in ACTIVATIONS.items()}


@dataclass(frozen=True)
class Call:
    """One call of a C function. serves: the outputs that depend on it."""

    function: str
    arguments: tuple[str, ...]
    label: str
    serves: frozenset[str]
    returns: bool


@dataclass(frozen=True)
class Program:
    """An exported function: its calls in order, and elements of scratch that they use."""

    name: str
    calls: tuple[Call, ...]
    scratch: int
    grads_always: bool  # whether calls that dx needs write gradients, too: then a caller's NULL stands for scratch


def integer_input(net):
    """Whether x holds integers, which have no derivative."""
    return bool(net.layers[0].index_limit)


def not_possible(function, net, loss):
    """Why a network and a loss have no such function; "" where they have."""
    without = next((path for path, layer in net.nodes if not layer.tangents), None)
    if function in ("hvp", "value_and_grad") and loss is None:
        return "needs a loss"
    if function == "hvp" and net.n_params == 0:
        return "needs parameters"
    if function in ("jvp", "hvp_x") and integer_input(net):
        return f"takes a derivative by x, which holds integers for layer {net.nodes[0][0]}"
    if function in ("jvp", "hvp", "hvp_x") and without:
        return f"needs the second derivatives of layer {without}, which has none"
    return ""


def programs(net, loss, batch, dtype, functions, known, literal):
    """([Program] of the functions named, the pieces of layer state).

    known: {name: library.Function}; literal: a number as C text of the element type.

    Raises ValueError for a layer that has no C function.
    """
    base = lower(net, loss, batch, dtype, 1, _MODE, target="c")
    carrying = next((label for label, buffer, _ in base.state if not buffer.name), None)
    if carrying:
        raise ValueError(
            f"export_c: layer {carrying} carries state from call to call, for which the functions have no argument; "
            "make it with carry=False"
        )
    found = []
    for function in functions:
        if function in _PARTS:
            ops = [op for part in _PARTS[function] for op in base.parts[part]]
        elif function == "hvp_x":
            ops = lower_input_hessian(net, batch, dtype, _MODE).parts[function]
        else:
            ops = lower_along(function, net, loss, batch, dtype, 1, _MODE).parts[function]
        found.append(_program(function, ops, dtype, known, literal))
    return found, base.state


def _program(function, ops, dtype, known, literal):
    ops = [op for op in ops if op.kernel.function.__name__ not in _LEFT_OUT]
    names = [_c_name(op) for op in ops]
    for op, name in zip(ops, names, strict=True):
        if name not in known:
            of = "the loss" if op.label == "loss" else f"layer {op.label}"
            raise ValueError(
                f"export_c: {of} cannot be exported: there is no C function {name} for its kernel {op.kernel.name}; "
                "give one (docs/export.md), or export a network without it"
            )
    # Only what the C function takes: a plan's scratch for packed matrices is none of it.
    taken = [_only_taken(op, known[name].parameters) for op, name in zip(ops, names, strict=True)]
    serves = _served(taken, function, {id(op): known[name].returns for op, name in zip(taken, names, strict=True)})
    kept = [index for index, served in enumerate(serves) if served]
    scratch, _ = place_buffers([taken[index] for index in kept], dtype.itemsize)
    arrays = _ARRAYS | _SPARE.get(function, {}) | _INPUTS.get(function, {}) | _OUTPUTS[function]
    calls = []
    for index in kept:
        c_function = known[names[index]]
        arguments = tuple(_argument(name, ops[index], arrays, literal) for name in c_function.parameters)
        calls.append(Call(c_function.name, arguments, ops[index].label, serves[index], c_function.returns))
    writers = [index for index in kept if any(buffer.space == frame.GRADS for buffer in taken[index].writes)]
    spares = any("spare" in argument for call in calls for argument in call.arguments)
    return Program(function, tuple(calls), scratch, spares or any("dx" in serves[index] for index in writers))


def _c_name(op):
    """The name of the C function for an op's kernel: activations, and products with a transpose, have several."""
    function, sizes = op.kernel.function, op.numbers
    if op.kernel.name.startswith("nbprop.losses."):  # one function makes those of several losses
        return op.kernel.name.rpartition(".")[2]
    if op.kernel.name != f"{function.__module__}.{function.__qualname__}":  # "kind.forward" of `custom`
        return op.kernel.name.replace(".", "_")
    name = function.__name__
    if "code" in sizes:
        return f"{_CODES[sizes['code']]}_{name.removeprefix('activation_')}"
    if name == "dense_backward_input" and op.operands[op.kernel.arrays.index("w")] is None:
        return "tied_backward_input"
    return name


def _only_taken(op, parameters):
    operands = tuple(
        buffer if name in parameters or f"{name}_size" in parameters else None
        for name, buffer in zip(op.kernel.arrays, op.operands, strict=True)
    )
    present = {id(buffer) for buffer in operands if buffer is not None}
    writes = tuple(buffer for buffer in op.writes if id(buffer) in present)
    return replace(op, operands=operands, writes=writes, barrier=True)


def _served(ops, function, returns):
    """The outputs that depend on each op."""
    wanted: dict[int, set] = {}  # a buffer: the outputs that what it holds by now serves
    found = []
    for op in reversed(ops):
        served = {"loss"} if function == "value_and_grad" and returns[id(op)] else set()
        for buffer in op.writes:
            output = _OUTPUTS[function].get(buffer.space)
            served |= {output} if output else wanted.get(id(buffer), set())
        for buffer in op.operands if served else ():
            if buffer is not None:
                wanted.setdefault(id(buffer), set()).update(served)
        found.append(frozenset(served))
    return found[::-1]


def _argument(name, op, arrays, literal):
    """The C text of the argument for a parameter of this name."""
    kernel, sizes = op.kernel, op.numbers
    if f"{name}_address" in kernel.scalars:
        return name
    if name == "n":
        return "n"
    if name in kernel.arrays:
        buffer = op.operands[kernel.arrays.index(name)]
        if buffer is None or buffer.space not in arrays:
            return "NULL"
        return arrays[buffer.space] + (f" + {buffer.offset}" if buffer.offset else "")
    if name in sizes:
        return str(sizes[name])
    if f"{name}_bits" in sizes:
        return literal(np.int64(sizes[f"{name}_bits"]).view(np.float64))
    if name.endswith("_size"):
        return str(op.operands[kernel.arrays.index(name.removesuffix("_size"))].size)
    raise ValueError(
        f"export_c: layer {op.label}: the C function for kernel {kernel.name} has a parameter {name}, which the kernel "
        f"has not; it may take {', '.join(kernel.arrays)}, n and {', '.join(sizes) or 'no sizes'}"
    )
