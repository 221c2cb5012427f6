"""Checks of whole data sets against a plan, once before many calls walk over their pieces; and of the plan itself."""

import math

import numpy as np

from nbprop import messages as said
from nbprop.arrays import as_array, check_memory, check_vector, described
from nbprop.lowering.plan import Plan, no_lengths
from nbprop.messages import failure

# Data is checked in pieces of this many bytes, so that a memory map need not fit into memory.
PIECE = 1 << 23


# -- data sets -----------------------------------------------------------------------------------------------


def check_plan(function, plan):
    """What `nbprop.plan` returns."""
    if not isinstance(plan, Plan):
        raise TypeError(f"{function}: plan must be what nbprop.plan(...) returns, got {type(plan).__name__}")
    return plan


def check_dataset(function, plan, x, target, weights=None, lengths=None):
    """x, target and weights as plain arrays, once they have been found to fit a plan; any number of samples.

    As `check_data`, which says what is refused, for functions that get their plan from the caller.
    """
    if check_plan(function, plan).loss is None:
        raise failure(said.NO_LOSS, f"{function}:")
    return check_data(function, plan, x, target, weights, lengths)[:3]


def check_data(function, plan, x, target, weights=None, lengths=None, prefix=""):
    """(x, target, weights, lengths) as plain arrays that fit the plan and each other. No copies are made.

    NaN and infinity are refused, classes and targets outside the loss's range, weights that are negative or all zero.
    Where the network heeds lengths, x and a target over positions may hold anything beyond them but wrong classes:
    no call looks at it.
    """
    names = [f"{prefix}{name}" for name in ("x", "target", "weights", "lengths")]
    x = check_form(function, names[0], x, None, plan.input_shape, plan.dtype, _classes(plan.x_classes))
    target = check_form(function, names[1], target, len(x), plan.target_shape, plan.dtype, _classes(plan.classes))
    if lengths is not None:
        lengths = check_lengths(function, names[3], plan, lengths, len(x))
    check_values(function, names[0], x, plan.x_classes, None, lengths)
    within = lengths if plan.positions_of_loss > 1 else None
    check_values(function, names[1], target, plan.classes, plan.loss, within)
    if weights is not None:
        weights = check_column(function, names[2], weights, len(x), (), plan.dtype)
        check_weights(f"{function}: {names[2]}", weights)
    return x, target, weights, lengths


def check_weights(argument, weights):
    """Refuse sample weights, in host memory, that give no mean."""
    if weights.min() < 0 or not 0 < weights.sum(dtype=np.float64) < np.inf:
        raise ValueError(f"{argument} must not be negative, and their sum positive and finite")


def check_lengths(function, name, plan, lengths, n):
    """(n,) integers in 1..T, for a network with a layer that takes them; as a plain array."""
    takes_lengths(f"{function}: {name}", plan)
    lengths = check_form(function, name, lengths, n, (), plan.dtype, ("lengths", 1, plan.max_length))
    wrong = np.flatnonzero((lengths < 1) | (lengths > plan.max_length))
    if wrong.size:
        detail = f"1..{plan.max_length}, got {lengths[wrong[0]]} at {name}[{wrong[0]}]"
        raise failure(said.LENGTH_RANGE, f"{function}: {name}", detail=detail)
    return lengths


def takes_lengths(argument, plan):
    """Refuse lengths for a network that has no use for them."""
    if plan.max_length == 0:
        raise failure(said.NO_LENGTHS, argument, detail=no_lengths(plan))


def check_layers(function, plan, *, takes_state=False):
    """The loss is one function of the parameters: no layer does in training what it does not do in use."""
    modal = next((path for path, layer in plan.net.nodes if layer.modal), None)
    if plan.mode == "training" and modal is not None:
        raise ValueError(
            f"{function}: layer {modal} differs between training and use, and the loss must be one function of the "
            'parameters here; make the plan with mode="inference", or train with nbprop.fit'
        )
    if plan.state_size > 0 and not takes_state:
        label = plan.state_parts[0][0]
        raise ValueError(
            f"{function}: layer {label} has layer state, which {function} does not take; use nbprop.minimize"
        )


def check_layer_state(function, plan, state):
    """Layer state as `nbprop.layer_state` makes it, where the network has some or the caller gave one."""
    if state is None and plan.state_size > 0:
        raise TypeError(f"{function}: state is needed for this network; nbprop.layer_state(plan) makes one")
    return None if state is None else check_vector(f"{function}: state", state, plan.state_size, plan.dtype)


def check_column(function, name, array, n, shape, dtype, classes=0, loss=None):
    """Samples (n, *shape): finite numbers of `dtype`, or integers in 0..classes - 1 when classes > 0; any n for None.

    loss: the one whose target they are. As a plain array, once all of it has been read.
    """
    array = check_form(function, name, array, n, shape, dtype, _classes(classes))
    check_values(function, name, array, classes, loss, None)
    return array


def _classes(count):
    """Integers below a count, as `check_samples` takes them; None for 0."""
    return ("classes", 0, count - 1) if count else None


def check_form(function, name, array, n, shape, dtype, integers):
    """All of `check_column` that needs no look at the values, as a plain array."""
    argument = f"{function}: {name}"
    array = as_array(argument, array)
    check_samples(argument, array, n, shape, dtype, integers)
    check_memory(argument, array)
    return array


def check_samples(argument, array, n, shape, dtype, integers):
    """Refuse an array, of whichever memory, that is not (n, *shape) of `dtype`, or of integers.

    integers: None, or what they are called, the least and the most; their values are not looked at.
    """
    kind, got = np.dtype(dtype).name, described(array)
    fits = array.dtype == dtype
    if integers:
        kind, fits = "integers ({} {}..{})".format(*integers), array.dtype.kind in "iu" and array.dtype.isnative
        if integers[0] == "classes" and array.shape[1:] == (*shape, integers[2] + 1):
            name = argument.rpartition(" ")[2]
            raise (ValueError if fits else TypeError)(
                f"{argument} must hold {kind}, got {got}; where it is one-hot, pass {name}.argmax(-1)"
            )
    if not fits:
        raise failure(said.DTYPE, argument, kind=kind, got=got)
    if array.shape[1:] != tuple(shape) or array.ndim != len(shape) + 1:
        text = ", ".join(map(str, ("n", *shape))) + ("" if shape else ",")
        raise failure(said.SHAPE_DIFFERS, argument, shape=f"({text})", got=array.shape, remedy="")
    if n is not None and len(array) != n:
        raise failure(said.SAMPLES_DIFFER, argument, got=f"{len(array)} for {n}")
    if len(array) == 0:
        raise failure(said.EMPTY, argument, got=got)


def check_values(function, name, array, classes, loss, lengths):
    """The values of samples; loss: the one whose target they are; lengths: how many positions of each count."""
    low, high = (0, classes - 1) if classes else (-math.inf, math.inf) if loss is None else loss.target_range
    each = max(1, PIECE // max(1, array[0].nbytes))
    for start in range(0, len(array), each):
        piece = array[start : start + each]
        least, most = piece.min(), piece.max()  # no copy; NaN if one is
        if low <= least and most <= high and (classes or (math.isfinite(least) and math.isfinite(most))):
            continue
        if classes:
            wrong = ((piece < low) | (piece > high)) & (piece != (loss.ignored if loss is not None else 0))
        else:
            wrong = ~(np.isfinite(piece) & (piece >= low) & (piece <= high))
            if getattr(loss, "missing", None) is not None:
                wrong &= ~np.isnan(piece)
        if lengths is not None and not classes:
            within = np.arange(piece.shape[1]) < lengths[start : start + each, None]
            wrong &= within.reshape(within.shape + (1,) * (piece.ndim - 2))
        if wrong.any():
            first = tuple(np.argwhere(wrong)[0].tolist())
            where = f"{name}[{', '.join(map(str, (first[0] + start, *first[1:])))}]"
            raise _unfit(function, name, where, piece[first], classes, loss)


def _unfit(function, name, where, value, classes, loss):
    """The exception for a value."""
    argument, got = f"{function}: {name}", f"got {value} at {where}"
    if classes:
        return failure(said.CLASS_RANGE, argument, detail=f"0..{classes - 1}, {got}")
    if math.isfinite(value):
        low, high = loss.target_range
        return failure(said.TARGET_RANGE, argument, detail=f"{low:g}..{high:g} for {loss.kind}, {got}")
    return ValueError(f"{function}: {where} is {value}; leave such samples out or fill them in")
