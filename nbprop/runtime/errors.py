"""What to say when a call is refused: which argument, what it got, what was needed, what to do.

Compiled checks (arguments.py) give a status; only then does Python look at the arguments again.
"""

import numpy as np

from nbprop.arrays import not_numpy
from nbprop.lowering.plan import no_lengths
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


def _kind(code):
    if code == elements.ANY_INTEGER:
        return "integers"
    return {elements.FLOAT32: "float32", elements.FLOAT64: "float64"}[code]


def _wanted(plan, signature, argument, values):
    """(element code, shape as text) that a function of `plan` wants of an argument."""
    flat, by_sample = flat_sizes(plan), sample_shapes(plan)
    if argument == arg.OUT:
        return plan.element_code, f"{OUTPUTS[signature.out][0](plan, len(values[arg.X]))}"
    if argument in flat:
        return plan.element_code, f"({flat[argument]},)" + (" or longer" if argument == arg.WORK else "")
    shape, code = by_sample[argument]
    if argument in (arg.LENGTHS, arg.WEIGHTS):
        return code, f"(n,), one {arg.NAMES[argument].removesuffix('s')} a sample of x"
    return code, "(" + ", ".join([f"1..{plan.batch}", *map(str, shape)]) + ("," if not shape else "") + ")"


def _got(value):
    if type(value) is np.ndarray or hasattr(value, "to_host"):  # the latter: nbprop.cuda.Array
        return f"{value.dtype} array of shape {value.shape}"
    return type(value).__name__


def refusal(function, plan, values, status):
    """The exception for a status other than 0. `values` are the call's arguments in the order of arguments.py."""
    if status >= arg.FAILED:
        return describe_failure(function, plan, status - arg.FAILED)
    argument, problem = divmod(status, 64)
    if problem == arg.NO_LOSS or (argument == arg.TARGET and plan.loss is None):
        return ValueError(f"{function}: this plan has no loss; make one with nbprop.plan(net, loss=...)")
    if problem == arg.NO_TANGENT:
        return ValueError(
            f"{function}: layer {plan.without_tangents} has no tangent kernels, which second derivatives need; "
            "use value_and_grad, vjp or jacobian, or a network without it"
        )
    if problem == arg.NO_LIKELIHOOD:
        return ValueError(
            f"{function}: loss {plan.loss.kind} is no negative log-likelihood, so it has no Fisher matrix; "
            "use gauss_newton_product"
        )
    if problem == arg.FORWARD_ONLY:
        return ValueError(f"{function}: a decoding plan only runs forward; make one with another mode")
    if problem == arg.COUPLED:
        return ValueError(
            f"{function}: layer {plan.coupling} takes statistics over the batch, so that no sample has derivatives of "
            'its own; make the plan with mode="inference"'
        )
    if argument == arg.CALL_STEP:
        return ValueError(f"{function}: step must be a position in 0..{plan.positions - 1}, which the caches hold")
    if argument == arg.PLAN:
        return RuntimeError(f"{function}: the plan was made by another version of nbprop; make it again")
    if problem == arg.NO_LENGTHS:
        return ValueError(f"{function}: lengths {no_lengths(plan)}")
    name, value = arg.NAMES[argument], values[argument]
    if problem == arg.NOT_AN_ARRAY and value is not None:
        return TypeError(f"{function}: {name} {not_numpy(value)}")
    if argument == arg.OUT and problem in (arg.LENGTH, arg.SAMPLES_DIFFER, arg.CAPACITY, arg.EMPTY):
        problem = arg.SHAPE_DIFFERS
    problem = arg.MISSING if value is None else problem
    code, shape = _wanted(plan, SIGNATURES[function], argument, values)
    detail = ""
    if problem == arg.CLASS_RANGE:
        detail = _wrong_class(plan, argument, value)
    elif problem == arg.TARGET_RANGE:
        return ValueError(f"{function}: {_wrong_target(plan, value)}")
    elif problem in (arg.DTYPE, arg.SHAPE_DIFFERS) and _is_one_hot(plan, argument, value):
        detail = "; where it is one-hot, pass target.argmax(-1)"
        return _SENTENCES[problem][0](f"{function}: {name} must hold integers {shape}, got {_got(value)}{detail}")
    elif problem == arg.ALIASED:
        detail = _partner(values, argument)
    elif problem == arg.LENGTH_RANGE:
        detail = f"1..{plan.longest}{_first('lengths', value, (value < 1) | (value > plan.longest))}"
    elif problem == arg.TOO_FEW:
        detail = plan.coupling
    kind, text = _SENTENCES[problem]
    words = {"got": _got(value), "shape": shape, "kind": _kind(code), "batch": plan.batch, "detail": detail}
    return kind(f"{function}: {name} " + text.format(remedy=_REMEDY.get(argument, "see the plan"), **words))


_SENTENCES = {
    arg.MISSING: (TypeError, "is needed and got None; pass an array {shape} of {kind}"),
    arg.DTYPE: (TypeError, "must hold {kind}, got {got}; convert it once with .astype"),
    arg.ORDER: (ValueError, "must be C-contiguous, got a strided {got}; copy it once with np.ascontiguousarray"),
    arg.MISALIGNED: (ValueError, "must be aligned to its element, got a misaligned {got}; copy it once"),
    arg.READ_ONLY: (ValueError, "is written and must not be read-only, got a read-only {got}; pass a copy"),
    arg.LENGTH: (ValueError, "must have shape {shape}, got {got}; {remedy}"),
    arg.SHAPE_DIFFERS: (ValueError, "must have shape {shape}, got {got}; reshape it or make another plan"),
    arg.EMPTY: (ValueError, "has no samples (got {got}); pass at least one"),
    arg.TOO_FEW: (
        ValueError,
        "must bring at least 2 samples, whose statistics layer {detail} takes, got {got}; make a plan with "
        'mode="inference" for single samples',
    ),
    arg.CAPACITY: (
        ValueError,
        "brings more samples than the plan's batch of {batch}, got {got}; make a plan with a larger batch or pass it "
        "in chunks",
    ),
    arg.SAMPLES_DIFFER: (ValueError, "must bring as many samples as x, got {got}"),
    arg.CLASS_RANGE: (ValueError, "must hold classes in {detail}"),
    arg.LENGTH_RANGE: (ValueError, "must hold lengths in {detail}"),
    arg.NO_DERIVATIVE: (ValueError, "does not exist where x holds integers; pass None"),
    arg.ALIASED: (ValueError, "is written and shares memory with {detail}; pass separate buffers"),
}


_REMEDY = {
    arg.PARAMS: "nbprop.init(net, seed) makes them",
    arg.GRADS: "np.empty_like(params) makes one",
    arg.WORK: "nbprop.workspace(plan) makes one",
    arg.STATE: "nbprop.layer_state(plan) makes one",
}


def _wrong_class(plan, argument, value):
    classes = plan.classes if argument == arg.TARGET else plan.x_classes
    return f"0..{classes - 1}{_first(arg.NAMES[argument], value, (value < 0) | (value >= classes))}"


def _first(name, value, wrong):
    """The first wrong element and its place; another thread may have put it right since."""
    if not wrong.any():
        return ""
    first = tuple(np.argwhere(wrong)[0].tolist())
    return f", got {value[first]} at {name}[{', '.join(map(str, first))}]"


def _wrong_target(plan, value):
    low, high = plan.target_range
    return f"target must lie in {low:g}..{high:g} for {plan.loss.kind}" + _first(
        "target", value, (value < low) | (value > high)
    )


def _is_one_hot(plan, argument, value):
    """Whether classes were asked for, and there is an axis of them."""
    return argument == arg.TARGET and plan.classes > 0 and value.shape[1:] == (*plan.target_shape, plan.classes)


def _partner(values, argument):
    for other, value in enumerate(values):
        if other != argument and isinstance(value, np.ndarray) and np.may_share_memory(value, values[argument]):
            return arg.NAMES[other]
    return "another argument"
