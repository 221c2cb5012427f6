"""What to say when a call is refused: which argument, what it got, what was needed, what to do.

Compiled checks (arguments.py) give a status; only then does Python look at the arguments again.
"""

import numpy as np

from nbprop import messages as said
from nbprop.arrays import not_numpy
from nbprop.lowering.plan import no_lengths
from nbprop.messages import MESSAGES, failure
from nbprop.program import elements
from nbprop.runtime import arguments as arg
from nbprop.runtime.signatures import OUTPUTS, SIGNATURES, flat_sizes, sample_shapes


def describe_failure(function, plan, row):
    """The exception for a walk that a kernel stopped at a row of the table."""
    op = plan.op_at(row)
    layer, kernel = ("?", "?") if op is None else (op.label, op.kernel.name)
    return RuntimeError(
        f"{function}: layer {layer}: its kernel {kernel} raised an exception, or is not known to this process; "
        "call the kernel by itself to see its message"
    )


def refusal(function, plan, values, status):
    """The exception for a status other than 0. `values` are the call's arguments in the order of arguments.py."""
    if status >= arg.FAILED:
        return describe_failure(function, plan, status - arg.FAILED)
    argument, problem = divmod(status, 64)
    if argument == arg.TARGET and plan.loss is None:
        problem = said.NO_LOSS
    if problem in said.NAMELESS:
        return failure(problem, f"{function}:", detail=_of_plan(plan, problem))
    if argument == arg.CALL_STEP:
        return failure(problem, f"{function}: step", detail=f"0..{plan.positions - 1}", got="another")
    name, value = arg.NAMES[argument], values[argument]
    if value is None:
        problem = said.MISSING
    elif argument == arg.OUT and problem in (said.LENGTH, said.SAMPLES_DIFFER, said.CAPACITY, said.EMPTY):
        problem = said.SHAPE_DIFFERS
    code, shape = _wanted(plan, function, argument, values)
    remedy = "; reshape it or make another plan"
    if problem == said.LENGTH:
        remedy = "; " + _REMEDY.get(argument, "see the plan")
    elif problem in (said.DTYPE, said.SHAPE_DIFFERS) and _is_one_hot(plan, argument, value):
        remedy = f"; where it is one-hot, pass {name}.argmax(-1)"
        return MESSAGES[problem].error(f"{function}: {name} must hold integers {shape}, got {got(value)}{remedy}")
    words = {"got": got(value), "shape": shape, "kind": _kind(code), "batch": plan.batch, "remedy": remedy}
    detail = _DETAILS[problem](plan, argument, values) if problem in _DETAILS else ""
    return failure(problem, f"{function}: {name}", detail=detail, **words)


def got(value):
    """What an argument got, in a message."""
    if type(value) is np.ndarray or hasattr(value, "to_host"):  # the latter: nbprop.cuda.Array
        return f"{value.dtype} array of shape {value.shape}"
    return type(value).__name__


def _kind(code):
    if code == elements.ANY_INTEGER:
        return "integers"
    return {elements.FLOAT32: "float32", elements.FLOAT64: "float64"}.get(code, "")


def _wanted(plan, function, argument, values):
    """(element code, shape as text) that a function of `plan` wants of an argument."""
    flat, by_sample = flat_sizes(plan), sample_shapes(plan)
    if argument == arg.OUT:
        return plan.element_code, f"{OUTPUTS[SIGNATURES[function].out][0](plan, len(values[arg.X]))}"
    if argument in flat:
        return plan.element_code, f"({flat[argument]},)" + (" or longer" if argument == arg.WORK else "")
    shape, code = by_sample[argument]
    if argument in (arg.LENGTHS, arg.WEIGHTS):
        return code, f"(n,), one {arg.NAMES[argument].removesuffix('s')} a sample of x"
    return code, "(" + ", ".join([f"1..{plan.batch}", *map(str, shape)]) + ("," if not shape else "") + ")"


_REMEDY = {
    arg.PARAMS: "nbprop.init(net, seed) makes them",
    arg.GRADS: "np.empty_like(params) makes one",
    arg.WORK: "nbprop.workspace(plan) makes one",
    arg.STATE: "nbprop.layer_state(plan) makes one",
}


# -- details -------------------------------------------------------------------------------------------------


def _of_plan(plan, problem):
    """What of a plan a problem is about."""
    if problem == said.NO_LIKELIHOOD:
        return plan.loss.kind
    return {said.NO_TANGENT: plan.without_second, said.COUPLED: plan.coupling}.get(problem, "")


def _wrong_class(plan, argument, values):
    value, classes = values[argument], plan.classes if argument == arg.TARGET else plan.x_classes
    return f"0..{classes - 1}{_first(arg.NAMES[argument], value, (value < 0) | (value >= classes))}"


def _wrong_length(plan, argument, values):
    value = values[argument]
    return f"1..{plan.max_length}{_first('lengths', value, (value < 1) | (value > plan.max_length))}"


def _wrong_target(plan, argument, values):
    value, (low, high) = values[argument], plan.target_range
    return f"{low:g}..{high:g} for {plan.loss.kind}" + _first("target", value, (value < low) | (value > high))


def _first(name, value, wrong):
    """The first wrong element and its place; another thread may have put it right since."""
    if not wrong.any():
        return ""
    first = tuple(np.argwhere(wrong)[0].tolist())
    return f", got {value[first]} at {name}[{', '.join(map(str, first))}]"


def _partner(plan, argument, values):
    for other, value in enumerate(values):
        if other != argument and isinstance(value, np.ndarray) and np.may_share_memory(value, values[argument]):
            return arg.NAMES[other]
    return "another argument"


def _is_one_hot(plan, argument, value):
    """Whether classes were asked for, and there is an axis of them."""
    return argument == arg.TARGET and plan.classes > 0 and value.shape[1:] == (*plan.target_shape, plan.classes)


_DETAILS = {
    said.NOT_AN_ARRAY: lambda plan, argument, values: not_numpy(values[argument]),
    said.CLASS_RANGE: _wrong_class,
    said.LENGTH_RANGE: _wrong_length,
    said.TARGET_RANGE: _wrong_target,
    said.ALIASED: _partner,
    said.TOO_FEW: lambda plan, argument, values: plan.coupling,
    said.NO_LENGTHS: lambda plan, argument, values: no_lengths(plan),
}
