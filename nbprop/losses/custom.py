"""Losses of a user's own: @njit functions of an output and its target, or of a row of each."""

import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nbprop.compiler.fingerprint import python_function
from nbprop.compiler.jit import njit
from nbprop.losses.base import LOSSES, Loss, row_scale, total_weight
from nbprop.losses.elementwise import ElementwiseLoss, kernels_of
from nbprop.numerics.partition import share
from nbprop.numerics.scalars import like
from nbprop.program.kernel import kernel
from nbprop.validation import choose, interval, shown, text


@dataclass(frozen=True)
class Recipe:
    """What `custom_loss` was given."""

    module: str
    target: Callable[..., Any]


class CustomLoss:
    """What the user's losses share: `recipe`, and how pickles find them again."""

    recipe: Recipe
    kind: str

    def target(self, output_shape):
        """The shape of one sample's target, as the user's function has it."""
        return tuple(self.recipe.target(output_shape)), 0

    def __reduce__(self):
        return _restore, (self.recipe.module, self.kind, tuple(vars(self).items()))


@dataclass(frozen=True, repr=False)
class CustomElementwiseLoss(CustomLoss, ElementwiseLoss):
    """A user's loss of one output and its target."""

    def target(self, output_shape):
        return output_shape, 0


@dataclass(frozen=True)
class CustomRowLoss(CustomLoss, Loss):
    """A user's loss of a row of outputs and a row of targets."""

    def target(self, output_shape):
        shape, _ = super().target(output_shape)
        if len(shape) != len(output_shape) or shape[:-1] != tuple(output_shape[:-1]):
            raise ValueError(
                f"{self.kind}: target must give a shape {(*output_shape[:-1], 'k')} for outputs of shape "
                f"{output_shape}, got {shape}"
            )
        return shape, 0

    def sizes(self, output_shape):
        return output_shape[-1], self.target(output_shape)[0][-1]


def _restore(module, kind, given):
    if kind not in LOSSES:
        importlib.import_module(module)
    return choose("loss", kind, LOSSES)(**dict(given))


def custom_loss(
    kind: str,
    loss: Callable[..., Any],
    derivative: Callable[..., Any],
    second: Callable[..., Any] | None = None,
    *,
    per: str = "output",
    residual: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
    target: Callable[..., Any] | None = None,
    target_range: tuple[float, float] = (-math.inf, math.inf),
    missing: str | None = None,
    output_weights: Any = None,
) -> Loss:
    """Define a loss of your own, of one output at a time or of a row of outputs.

    Parameters
    ----------
    kind : str
        Its name in messages, checkpoints and pickles.
    loss : @njit function
        per="output": l(y, t), of an output and its target; the loss of a sample is the mean over its outputs.
        per="row": l(y, t), of the outputs along the last axis and their targets, (size,) arrays.
    derivative : @njit function
        per="output": dl/dy at (y, t). per="row": (dy, y, t), which writes all of dl/dy into dy.
    second : @njit function or None
        per="output": the second derivative at (y, t). per="row": (out, v, y, t), which writes the product of the second
        derivatives by y with v into out. Without it, `hvp` and other products with second derivatives refuse the loss
        by name, as they do layers of `custom`.
    per : "output" or "row"
    residual : (r, dr/dy) or None
        Two @njit functions of (y, t) where l = r^2: `least_squares` then takes the loss. For per="output".
    target : function (output_shape) -> tuple, or None
        The shape of a sample's target, that of its outputs when None; per="row" may give the last axis another size.
    target_range : (low, high)
        Targets outside are refused.
    missing, output_weights
        As of `mse`, for per="output".

    A kind that is defined again (a notebook's cell runs twice) is another loss. With float32, expressions that mix y
    with Python floats run in float64 and are rounded when they are stored.

    Returns
    -------
    Loss
        What `plan`, `fit`, `gradcheck` and others take as loss.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, a kind that is one of nbprop's losses or another module's.

    Examples
    --------
    >>> import nbprop, numba
    >>> loss = nbprop.custom_loss(
    ...     "quartic", numba.njit(lambda y, t: (y - t) ** 4), numba.njit(lambda y, t: 4 * (y - t) ** 3)
    ... )
    >>> errors = nbprop.gradcheck(nbprop.network((3,), nbprop.dense(2)), loss)
    """
    if not text("custom_loss: kind", kind):
        raise ValueError("custom_loss: kind must be a name, got ''")
    given = {"loss": loss, "derivative": derivative} | ({} if second is None else {"second": second})
    if residual is not None and not (isinstance(residual, (tuple, list)) and len(residual) == 2):
        raise TypeError(f"custom_loss: residual must be two @njit functions, got {shown(residual)}")
    given |= dict(zip(("residual", "residual's derivative"), residual or (), strict=False))
    for name, function in given.items():
        if not inspect.isfunction(python_function(function)):
            raise TypeError(f"custom_loss: {name} must be an @njit function, got {shown(function)}")
    if target is not None and not callable(target):
        raise TypeError(f"custom_loss: target must be a function, got {shown(target)}")
    choose("custom_loss: per", per, ("output", "row"))
    wide = isinstance(target_range, (tuple, list)) and len(target_range) == 2
    if (
        not wide
        or not all(isinstance(end, (int, float)) for end in target_range)
        or not target_range[0] < target_range[1]
    ):
        raise ValueError(f"custom_loss: target_range must be (low, high), got {shown(target_range)}; {interval()}")
    if per == "row" and not (residual is None and missing is None and output_weights is None):
        raise ValueError('custom_loss: residual, missing and output_weights are for per="output"')
    if per == "output" and target is not None:
        raise ValueError('custom_loss: target is for per="row"')
    module = python_function(loss).__module__
    known = LOSSES.get(kind)
    if known is not None and not (issubclass(known, CustomLoss) and known.recipe.module == module):
        raise ValueError(f"custom_loss: the loss {kind!r} is taken; choose another name")
    compiled = {name: _compiled(function) for name, function in given.items()}
    fields = {"kind": kind, "recipe": Recipe(module, target or tuple), "__module__": module}
    fields["target_range"] = tuple(map(float, target_range))
    if per == "row":
        made, product = _row_kernels(kind, module, compiled["loss"], compiled["derivative"], compiled.get("second"))
        fields |= {"kernel": made, "curvature": product}
        return type(kind, (CustomRowLoss,), fields)()
    value, slope, bend = (_with_number(compiled.get(name), module) for name in ("loss", "derivative", "second"))
    kernels = kernels_of(kind, value, slope, bend, module)
    fields |= {"kernel": kernels[0], "observed": kernels[2:]}
    fields["curvature"] = None if second is None else kernels[1]
    if residual is not None:
        fields["residual"] = tuple(compiled[name] for name in ("residual", "residual's derivative"))
    return type(kind, (CustomElementwiseLoss,), fields)(missing=missing, output_weights=output_weights)


def _compiled(function):
    return njit(function) if function is python_function(function) else function


def _with_number(function, module):
    """A user's function (y, t) as one of (y, t, delta), which belongs to the user's module as it does; 0 for None."""

    def scalar(y, t, delta):
        return function(y, t)

    def zero(y, t, delta):
        return like(y, 0.0)

    found = zero if function is None else scalar
    found.__module__ = module
    return njit(found)


def _row_kernels(kind, module, value, gradient, product):
    """(the kernel, the product with the curvature or None) of a loss of rows."""

    @kernel
    def row_kernel(losses, dy, y, target, weights, n, rows, size, targets, part, parts):
        """l = value(y, t) of each row; dy = its gradient times w / (sum(w) rows).

        losses OUT (n * rows,), dy OUT (n * rows, size) or empty, y IN (n * rows, size), target IN (n * rows, targets),
        weights IN (n,) or empty.
        """
        first, last = share(n * rows, part, parts)
        weight_sum = total_weight(weights, n) * rows
        for i in range(first, last):
            y_row, t_row = y[i * size : (i + 1) * size], target[i * targets : (i + 1) * targets]
            losses[i] = value(y_row, t_row)
            if dy.size > 0:
                d_row, factor = dy[i * size : (i + 1) * size], like(y[0], row_scale(weights, weight_sum, rows, i))
                gradient(d_row, y_row, t_row)
                for j in range(size):
                    d_row[j] *= factor

    @kernel
    def row_curvature(dy_dot, y_dot, y, target, weights, n, rows, size, targets, part, parts):
        """dy_dot = the second derivatives of each row times y_dot w / (sum(w) rows).

        dy_dot OUT, y_dot and y IN (n * rows, size), target IN (n * rows, targets), weights IN (n,) or empty.
        """
        first, last = share(n * rows, part, parts)
        weight_sum = total_weight(weights, n) * rows
        for i in range(first, last):
            here = slice(i * size, (i + 1) * size)
            out, factor = dy_dot[here], like(y[0], row_scale(weights, weight_sum, rows, i))
            product(out, y_dot[here], y[here], target[i * targets : (i + 1) * targets])
            for j in range(size):
                out[j] *= factor

    for made, suffix in ((row_kernel, "kernel"), (row_curvature, "curvature")):
        made.name, made.function.__module__ = f"{module}.{kind}_{suffix}", module
    return row_kernel, None if product is None else row_curvature
