"""Checks of whole data sets, once, before many calls walk over their pieces."""

import math

import numpy as np

from nbprop import arguments as arg
from nbprop.foreign import not_numpy
from nbprop.plan import Plan


def check_dataset(function, plan, x, target, weights=None):
    """x, target and weights as plain arrays, once they have been found to fit a plan; any number of samples.

    They must be as `value_and_grad` wants them, without NaN or infinity, classes in range, weights not negative and not
    all zero. No copies are made. Raises TypeError or ValueError, in the name of `function`.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"{function}: plan must be what nbprop.plan(...) returns, got {type(plan).__name__}")
    if plan.loss is None:
        raise ValueError(f"{function}: this plan has no loss; make one with nbprop.plan(net, loss=...)")
    x = check_data(function, "x", x, plan.x_code, plan.input_shape, plan.x_classes)
    target = check_data(function, "target", target, plan.target_code, plan.target_shape, plan.classes)
    if len(target) != len(x):
        raise ValueError(f"{function}: target must bring as many samples as x, got {len(target)} for {len(x)}")
    if weights is not None:
        weights = check_data(function, "weights", weights, plan.element_code, (), 0)
        if len(weights) != len(x):
            raise ValueError(f"{function}: weights must have shape ({len(x)},), got {weights.shape}")
        if weights.min() < 0 or not weights.any():
            raise ValueError(f"{function}: weights must not be negative, and not all zero")
    return x, target, weights


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


def check_data(function, name, array, code, shape, classes):
    """A data argument as a plain array, once it has been found to fit.

    code: its element code (arguments.py); shape: of one sample; classes: the number of valid integers, or 0.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{function}: {name} {not_numpy(array)}")
    array = array.view(np.ndarray)  # a memory map, seen as the array that it is
    found, integers = arg.element_code(array.dtype), code == arg.ANY_INTEGER
    if (integers and not 0 != found < arg.FLOAT) or (not integers and found != code):
        wanted = {arg.FLOAT32: "float32", arg.FLOAT64: "float64"}.get(code, "integers")
        raise TypeError(f"{function}: {name} must hold {wanted}, got {array.dtype}; convert it once with .astype")
    if array.ndim != len(shape) + 1 or array.shape[1:] != tuple(shape):
        wanted = "(" + ", ".join(["n", *map(str, shape)]) + ("," if not shape else "") + ")"
        raise ValueError(f"{function}: {name} must have shape {wanted}, got {array.shape}; reshape it")
    if len(array) == 0:
        raise ValueError(f"{function}: {name} has no samples (shape {array.shape}); pass at least one")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(f"{function}: {name} must be C-contiguous and aligned; copy it once with np.array(order='C')")
    low, high = array.min(), array.max()  # no copy; both are NaN when one element is
    if classes and (low < 0 or high >= classes):
        wrong = low if low < 0 else high
        raise ValueError(f"{function}: {name} must hold classes in 0..{classes - 1}, got {wrong}")
    if not integers and not (math.isfinite(low) and math.isfinite(high)):
        first = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
        where = ", ".join(map(str, first))
        raise ValueError(f"{function}: {name}[{where}] is {array[first]}; leave such samples out or fill them in")
    return array


def check_matrix(function, name, array, shape, dtype):
    """A C-contiguous array of this shape and dtype."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{function}: {name} {not_numpy(array)}")
    if array.dtype != dtype:
        raise TypeError(f"{function}: {name} must hold {dtype.name}, got {array.dtype}; convert it once with .astype")
    if array.shape != shape:
        raise ValueError(f"{function}: {name} must have shape {shape}, got {array.shape}")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(f"{function}: {name} must be C-contiguous and aligned; copy it once with np.array(order='C')")


def check_vector(function, name, array, size, dtype, *, written=False):
    """A (size,) array of a dtype, contiguous; writable when it is to be written."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{function}: {name} {not_numpy(array)}")
    if array.dtype != dtype:
        raise TypeError(f"{function}: {name} must hold {dtype.name}, got {array.dtype}; convert it once with .astype")
    if array.shape != (size,):
        raise ValueError(f"{function}: {name} must have shape ({size},), got {array.shape}")
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise ValueError(f"{function}: {name} must be contiguous and aligned; copy it once with np.ascontiguousarray")
    if written and not array.flags.writeable:
        raise ValueError(f"{function}: {name} is written and must not be read-only; pass a copy")


# Sizes and counts are below this wherever nothing else is said: C code of SciPy's takes them as 32 bits.
MOST = 2**31 - 1


def check_integer(function, name, value, least=1, most=MOST):
    """A whole number in least..most, as an int; a bool is none."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ValueError(f"{function}: {name} must be an integer in {least}..{most}, got {_shortened(value)}")
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
        raise ValueError(f"{function}: {name} must be {wanted}, got {_shortened(value)}")
    return number


def check_flag(function, name, value):
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{function}: {name} must be True or False, got {_shortened(value)}")
    return bool(value)


def check_callable(function, name, value, or_none=False):
    """A function, or None where that is allowed."""
    if not callable(value) and not (or_none and value is None):
        raise TypeError(f"{function}: {name} must be a function, got {type(value).__name__}")
    return value


def _shortened(value):
    """A value's repr, cut where it would fill the screen; an integer of more digits than Python prints by its size."""
    try:
        text = repr(value)
    except ValueError:
        text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= 80 else text[:77] + "..."
