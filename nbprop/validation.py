"""Checks of arguments in Python: arrays, whole data sets once before many calls walk over their pieces, numbers."""

import math

import numpy as np

from nbprop.arrays import as_array
from nbprop.lowering.plan import Plan, no_lengths
from nbprop.networks.fields import shown

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
        raise ValueError(f"{function}: this plan has no loss; make one with nbprop.plan(net, loss=...)")
    return check_data(function, plan, x, target, weights, lengths)[:3]


def check_data(function, plan, x, target, weights=None, lengths=None, prefix=""):
    """(x, target, weights, lengths) as plain arrays that fit the plan and each other. No copies are made.

    NaN and infinity are refused, classes and targets outside the loss's range, weights that are negative or all zero.
    Where the network heeds lengths, x and a target over positions may hold anything beyond them but wrong classes:
    no call looks at it.
    """
    names = [f"{prefix}{name}" for name in ("x", "target", "weights", "lengths")]
    x = _check_form(function, names[0], x, None, plan.input_shape, plan.dtype, plan.x_classes)
    target = _check_form(function, names[1], target, len(x), plan.target_shape, plan.dtype, plan.classes)
    if lengths is not None:
        lengths = check_lengths(function, names[3], plan, lengths, len(x))
    check_values(function, names[0], x, plan.x_classes, None, lengths)
    within = lengths if plan.positions_of_loss > 1 else None
    check_values(function, names[1], target, plan.classes, plan.loss, within)
    if weights is not None:
        weights = check_column(function, names[2], weights, len(x), (), plan.dtype)
        if weights.min() < 0 or not 0 < weights.sum(dtype=np.float64) < np.inf:
            raise ValueError(f"{function}: {names[2]} must not be negative, and their sum positive and finite")
    return x, target, weights, lengths


def check_lengths(function, name, plan, lengths, n):
    """(n,) integers in 1..T, for a network with a layer that takes them; as a plain array."""
    if plan.longest == 0:
        raise ValueError(f"{function}: {name} {no_lengths(plan)}")
    lengths = _check_form(function, name, lengths, n, (), plan.dtype, plan.longest + 1)
    wrong = np.flatnonzero((lengths < 1) | (lengths > plan.longest))
    if wrong.size:
        raise ValueError(
            f"{function}: {name} must hold 1..{plan.longest}, got {lengths[wrong[0]]} at {name}[{wrong[0]}]"
        )
    return lengths


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
    return None if state is None else check_vector(function, "state", state, plan.state_size, plan.dtype)


def check_column(function, name, array, n, shape, dtype, classes=0, loss=None):
    """Samples (n, *shape): finite numbers of `dtype`, or integers in 0..classes - 1 when classes > 0; any n for None.

    loss: the one whose target they are. As a plain array, once all of it has been read.
    """
    array = _check_form(function, name, array, n, shape, dtype, classes)
    check_values(function, name, array, classes, loss, None)
    return array


def _check_form(function, name, array, n, shape, dtype, classes):
    """All of `check_column` that needs no look at the values."""
    wanted = f"integers (classes 0..{classes - 1})" if classes else np.dtype(dtype).name
    array = as_array(f"{function}: {name}", array)
    got = f"{array.dtype} array of shape {array.shape}"
    fits = array.dtype.kind in "iu" and array.dtype.isnative if classes else array.dtype == dtype
    if classes and array.shape[1:] == (*shape, classes):
        raise (ValueError if fits else TypeError)(
            f"{function}: {name} must hold {wanted}, got {got}; where it is one-hot, pass {name}.argmax(-1)"
        )
    if not fits:
        raise TypeError(f"{function}: {name} must hold {wanted}, got {got}; convert it once with .astype")
    if array.shape[1:] != tuple(shape) or array.ndim != len(shape) + 1:
        text = ", ".join(map(str, ("n", *shape))) + ("" if shape else ",")
        raise ValueError(f"{function}: {name} must have shape ({text}), got {array.shape}")
    if n is not None and len(array) != n:
        raise ValueError(f"{function}: {name} must bring as many samples as x, got {len(array)} for {n}")
    if len(array) == 0:
        raise ValueError(f"{function}: {name} has no samples (shape {array.shape}); pass at least one")
    _check_flags(function, name, array, False)
    return array


def check_values(function, name, array, classes, loss, lengths):
    """The values of samples; loss: the one whose target they are; lengths: how many positions of each count."""
    low, high = (0, classes - 1) if classes else (-math.inf, math.inf) if loss is None else loss.target_range
    each = max(1, PIECE // max(1, array[0].nbytes))
    for start in range(0, len(array), each):
        piece = array[start : start + each]
        least, most = piece.min(), piece.max()  # no copy; NaN if one is
        if low <= least and most <= high and (classes or (math.isfinite(least) and math.isfinite(most))):
            continue
        wrong = (piece < low) | (piece > high) if classes else ~(np.isfinite(piece) & (piece >= low) & (piece <= high))
        if lengths is not None and not classes:
            within = np.arange(piece.shape[1]) < lengths[start : start + each, None]
            wrong &= within.reshape(within.shape + (1,) * (piece.ndim - 2))
        if wrong.any():
            first = tuple(np.argwhere(wrong)[0].tolist())
            where = f"{name}[{', '.join(map(str, (first[0] + start, *first[1:])))}]"
            raise ValueError(f"{function}: {_unfit(name, where, piece[first], classes, loss)}")


def _unfit(name, where, value, classes, loss):
    """What is wrong with a value."""
    if classes:
        return f"{name} must hold classes in 0..{classes - 1}, got {value} at {where}"
    if math.isfinite(value):
        return "{} must lie in {:g}..{:g} for {}, got {} at {}".format(
            name, *loss.target_range, loss.kind, value, where
        )
    return f"{where} is {value}; leave such samples out or fill them in"


# -- single arrays -------------------------------------------------------------------------------------------


def check_matrix(function, name, array, shape, dtype):
    """A C-contiguous array of this shape and dtype, as a plain array."""
    array = as_array(f"{function}: {name}", array)
    if array.dtype != dtype:
        raise TypeError(f"{function}: {name} must hold {dtype.name}, got {array.dtype}; convert it once with .astype")
    if array.shape != shape:
        raise ValueError(f"{function}: {name} must have shape {shape}, got {array.shape}")
    _check_flags(function, name, array, False)
    return array


def check_vector(function, name, array, size, kinds, written=False):
    """A (size,) array of a dtype, or one of a tuple of dtypes; contiguous, and writable when it is to be written.

    As a plain array.
    """
    kinds = [np.dtype(kind) for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
    wanted = " or ".join(kind.name for kind in kinds)
    array = as_array(f"{function}: {name}", array)
    got = f"{array.dtype} array of shape {array.shape}"
    if array.dtype not in kinds:
        raise TypeError(f"{function}: {name} must hold {wanted}, got {got}; convert it once with .astype")
    if array.shape != (size,):
        raise ValueError(f"{function}: {name} must have shape ({size},), got {array.shape}")
    _check_flags(function, name, array, written)
    return array


def _check_flags(function, name, array, written):
    if not array.flags.c_contiguous:
        raise ValueError(f"{function}: {name} must be C-contiguous; copy it once with np.ascontiguousarray")
    if not array.flags.aligned:
        raise ValueError(f"{function}: {name} must be aligned to its element; copy it once")
    if written and not array.flags.writeable:
        raise ValueError(f"{function}: {name} is written and must not be read-only; pass a copy")


# -- numbers -------------------------------------------------------------------------------------------------

# Sizes and counts are below this wherever nothing else is said: C code of SciPy's takes them as 32 bits.
MOST = 2**31 - 1


def check_integer(function, name, value, least=1, most=MOST):
    """A whole number in least..most, as an int; a bool is none."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ValueError(f"{function}: {name} must be an integer in {least}..{most}, got {shown(value)}")
    return int(value)


def check_number(function, name, value, least=0.0, most=math.inf, *, above=False):
    """A finite number in least..most, without `least` itself when `above`; as a float. A bool is none."""
    known = not isinstance(value, (bool, np.bool_)) and isinstance(value, (int, float, np.integer, np.floating))
    try:
        number = float(value) if known else math.nan
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and (least < number if above else least <= number) and number <= most):
        sides = f"above {least:g}" if above else f"of at least {least:g}"
        wanted = f"a finite number {sides}" + (f" and at most {most:g}" if most < math.inf else "")
        raise ValueError(f"{function}: {name} must be {wanted}, got {shown(value)}")
    return number


def check_seed(function, seed):
    """A key of random numbers, as an int."""
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise ValueError(f"{function}: seed must be an integer in 0..2**63 - 1, got {shown(seed)}")
    return int(seed)


def check_flag(function, name, value):
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{function}: {name} must be True or False, got {shown(value)}")
    return bool(value)


def check_callable(function, name, value, or_none=False):
    """A function, or None where that is allowed."""
    if not callable(value) and not (or_none and value is None):
        raise TypeError(f"{function}: {name} must be a function, got {type(value).__name__}")
    return value
