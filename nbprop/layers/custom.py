"""Layers of a user's own: @njit forward and backward, named so that JSON and pickles can bring them back.

The functions follow the kernel contract of `nbprop.jit.Kernel`: arrays first, then n (the samples of this call), then
sizes; all arrays are flat.
"""

import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbprop.compiler.fingerprint import python_function
from nbprop.compiler.jit import njit
from nbprop.networks.layer import INITIALIZERS, REGISTRY, Layer, Parameter
from nbprop.numerics.partition import share_blocks
from nbprop.numerics.scalars import like
from nbprop.program.kernel import Kernel, kernel
from nbprop.validation import choose, shown, text


@kernel
def gradient_from(grad, own, n, size, grad_accumulate, accumulate, part, parts):
    """grad = own, or grad += own when `grad_accumulate` or `accumulate`. grad OUT (size,), own IN (size,)."""
    start, stop = share_blocks(size, part, parts)
    grad, own = grad[start:stop], own[start:stop]
    if grad_accumulate + accumulate == 0:
        for i in range(grad.size):
            grad[i] = like(own[i], 0.0)
    for i in range(grad.size):
        grad[i] += own[i]


@dataclass(frozen=True)
class Recipe:
    """What `custom` was given."""

    forward: Kernel
    backward: Kernel
    parameters: Callable[..., Any]
    sizes: Callable[..., Any]
    output_shape: Callable[..., Any]
    module: str


class CustomLayer(Layer):
    """One use of a user's layer; `recipe` belongs to the class, `options` to the use."""

    recipe: Recipe

    def __init__(self, **options):
        self.options = {
            name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()
        }

    def __repr__(self):
        return f"{self.kind}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"

    def __eq__(self, other):
        return type(self) is type(other) and self.options == other.options

    def __hash__(self):
        return hash((self.kind, repr(self.options)))

    def __reduce__(self):
        return _restore, (self.recipe.module, self.kind, self.options)

    def to_config(self):
        return {"kind": self.kind, **self.options}

    def output_shape(self, input_shape):
        return tuple(self.recipe.output_shape(input_shape, **self.options))

    def parameters(self, input_shape):
        found = self.recipe.parameters(input_shape, **self.options)
        for name, (_, init) in found.items():
            choose(f"initializer of {name}", init, INITIALIZERS)
        return tuple(Parameter(name, tuple(shape), init) for name, (shape, init) in found.items())

    def lower(self, build, x, path, names):
        recipe, sizes = self.recipe, self.recipe.sizes(x.shape, **self.options)
        own = [build.parameter(name) for name in names]
        y = build.value(self.output_shape(x.shape))
        build.emit(recipe.forward, (y.buffer,), (x.buffer, *own), _given(recipe.forward, sizes))

        def rule(dy):
            dx = build.buffer(build.batch * x.size)
            gradients = [build.buffer(operand.size) for operand in own]
            build.emit(
                recipe.backward, (dx, *gradients), (dy, x.buffer, y.buffer, *own), _given(recipe.backward, sizes)
            )
            for name, gradient in zip(names, gradients, strict=True):
                target, grad_accumulate = build.parameter_gradient(name)
                build.emit(gradient_from, (target,), (gradient,), (gradient.size, grad_accumulate))
            build.accumulate_gradient(x, dx)

        build.on_backward(y, rule)
        return y


def _given(kernel, sizes):
    """What `sizes` returned, as a kernel takes it: whole, where it declares a NamedTuple, else number by number."""
    return sizes if kernel.contract.tuples else tuple(sizes)


def _restore(module, kind, options):
    if kind not in REGISTRY:
        importlib.import_module(module)
    return choose("layer kind", kind, REGISTRY)(**options)


def _one_size(shape, **options):
    return (math.prod(shape),)


def _same_shape(shape, **options):
    return shape


def _none(shape, **options):
    return {}


def custom(
    kind: str,
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    parameters: Callable[..., Any] = _none,
    sizes: Callable[..., Any] = _one_size,
    output_shape: Callable[..., Any] = _same_shape,
    c: str | None = None,
) -> Callable[..., Layer]:
    """Define a layer of your own.

    Parameters
    ----------
    kind : str
        Its name in views, JSON and pickles.
    forward : @njit function (y, x, *parameters, n, *sizes)
        Writes all of y. Arrays are flat: y is (n * outputs,), x is (n * inputs,).
    backward : @njit function (dx, *dparameters, dy, x, y, *parameters, n, *sizes)
        Writes all of dx and of each parameter's gradient (summed over the samples; accumulation is done outside).
    parameters : function (input_shape, **options) -> {name: (shape, initializer)}
    sizes : function (input_shape, **options) -> tuple of int, by default (elements of one sample,)
        Or a NamedTuple of int, which the functions take whole if their parameter after n is annotated with its class:
        ``forward(y, x, n, sizes: Sizes)``, with `sizes.rows` and so on inside.
    output_shape : function (input_shape, **options) -> tuple, by default the input's shape
    c : str or None
        The same two functions in C, for `export_c`: `{kind}_forward` and `{kind}_backward` (docs/export.md).

    A kind that is defined again (a notebook's cell runs twice) is another layer: networks that are described anew, or
    read back from JSON and pickles, have the new one. A plan keeps the code that its layers had when it was made: their
    functions, and whatever globals and helpers these name.

    A function whose last two parameters are `part` and `parts` is run by all threads and does its share of the samples
    (`nbprop.share(n, part, parts)`); others run on one thread.

    Returns
    -------
    function (**options) -> layer

    Raises
    ------
    TypeError
        When the functions' parameters do not follow that order.
    ValueError
        When the kind is taken by one of nbprop's layers, or by a layer of another module.

    Examples
    --------
    >>> import nbprop, numba
    >>> @numba.njit
    ... def forward(y, x, n, size):
    ...     for i in range(n * size):
    ...         y[i] = 2 * x[i]
    >>> @numba.njit
    ... def backward(dx, dy, x, y, n, size):
    ...     for i in range(n * size):
    ...         dx[i] = 2 * dy[i]
    >>> double = nbprop.custom("double", forward, backward)
    >>> errors = nbprop.gradcheck(nbprop.network((3,), nbprop.dense(4), double()), "mse")
    """
    if not text("custom: kind", kind):
        raise ValueError("custom: kind must be a name, got ''")
    if c is not None and not text("custom: c", c):
        raise ValueError("custom: c must hold C functions, got ''; leave it out where there are none")
    for name, function in (("forward", forward), ("backward", backward)):
        if not inspect.isfunction(python_function(function)):
            raise TypeError(f"custom: {name} must be an @njit function, got {shown(function)}")
    for name, function in (("parameters", parameters), ("sizes", sizes), ("output_shape", output_shape)):
        if not callable(function):
            raise TypeError(f"custom: {name} must be a function, got {shown(function)}")
    module = python_function(forward).__module__
    known = REGISTRY.get(kind)
    if known is not None and (not issubclass(known, CustomLayer) or known.recipe.module != module):
        raise ValueError(f"custom: the layer kind {kind!r} is taken; choose another name")
    recipe = Recipe(
        Kernel(forward, name=f"{kind}.forward"),
        Kernel(backward, name=f"{kind}.backward"),
        parameters,
        sizes,
        output_shape,
        module,
    )
    layer = type(kind, (CustomLayer,), {"kind": kind, "recipe": recipe, "c_source": c or "", "__module__": module})

    def make(**options):
        return layer(**options)

    make.__name__ = make.__qualname__ = kind
    return make


def elementwise(
    kind: str, function: Callable[..., Any], derivative: Callable[..., Any], c: str | None = None
) -> Callable[..., Layer]:
    """Define an activation of your own from two @njit scalar functions.

    Parameters
    ----------
    kind : str
        Its name in JSON and pickles.
    function : @njit function f(x) -> y
    derivative : @njit function (x, y) -> dy/dx at x, where y = f(x)
    c : str or None
        C functions `{kind}_forward(y, x, n, size)` and `{kind}_backward(dx, dy, x, y, n, size)`, as for `custom`.

    Returns
    -------
    function () -> layer

    With float32, an expression that mixes x with a Python float runs in float64 and is rounded when it is stored.

    Examples
    --------
    >>> import nbprop, numba
    >>> square = nbprop.elementwise("square", numba.njit(lambda x: x * x), numba.njit(lambda x, y: 2 * x))
    """
    for name, given in (("function", function), ("derivative", derivative)):
        if not inspect.isfunction(python_function(given)):
            raise TypeError(f"elementwise: {name} must be an @njit function, got {shown(given)}")
    f, df = _compiled(function), _compiled(derivative)

    def forward(y, x, n, size, part, parts):
        start, stop = share_blocks(n * size, part, parts)
        y, x = y[start:stop], x[start:stop]
        for i in range(y.size):
            y[i] = f(x[i])

    def backward(dx, dy, x, y, n, size, part, parts):
        start, stop = share_blocks(n * size, part, parts)
        dx, dy, x, y = dx[start:stop], dy[start:stop], x[start:stop], y[start:stop]
        for i in range(dx.size):
            dx[i] = dy[i] * df(x[i], y[i])

    forward.__module__ = backward.__module__ = python_function(function).__module__
    return custom(kind, forward, backward, c=c)


def _compiled(function):
    return njit(function) if function is python_function(function) else function
