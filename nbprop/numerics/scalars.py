"""How a scalar function becomes callable from compiled loops, for both targets and both precisions.

A plain `register_jitable` compiles a function once, with the flags of its first caller: a user's own `njit` without our
flags would leave a slow, differently rounded version for every kernel after it. Here the CPU's version always has the
flags of the package; another target (CUDA) compiles the same source in its own way. It is always inlined: a call that
LLVM considers too long to inline would keep the loop around it from being vectorised.
"""

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import overload

from nbprop.compiler.jit import FLAGS, intrinsic

CPU_FLAGS: Any = {**FLAGS, "forceinline": True}


def specialise(function, select):
    """Calls of `function` compile to the Python function that `select(*types)` returns; None is a typing error."""
    overload(function, jit_options=CPU_FLAGS, strict=False, target="cpu")(select)
    overload(function, strict=False)(select)


def scalar_function(function):
    """Make a scalar Python function callable from compiled code."""
    specialise(function, lambda *args: function)
    return function


def by_precision(float32, float64):
    """Decorate a stub f(x), whose docstring is kept: calls compile to `float32` or `float64` by the type of x.

    Any other type (an integer, a boolean) is a typing error: nothing is converted.
    """

    def decorate(description):
        @functools.wraps(description)
        def public(x):
            raise TypeError(f"{description.__name__} is for compiled code: call it from an @njit function")

        specialise(public, lambda x: {types.float32: float32, types.float64: float64}.get(x))
        return public

    return decorate


def _bit_cast(source, target):
    """The signature and the code of a bit cast: no instruction, and the vectoriser sees through it."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(signature.return_type))

    return target(source), codegen


@intrinsic
def bits(typingctx, x):
    """The bits of a float32 as uint32, of a float64 as uint64."""
    unsigned = {types.float32: types.uint32, types.float64: types.uint64}
    return _bit_cast(x, unsigned[x]) if x in unsigned else None


@intrinsic
def from_bits(typingctx, u):
    """The float32 with the bits of a uint32, the float64 with those of a uint64."""
    floating = {types.uint32: types.float32, types.uint64: types.float64}
    return _bit_cast(u, floating[u]) if u in floating else None


def like(x, value):
    """`value` in the type of x, so that an expression over float32 stays float32."""
    return type(x)(value)


def _like(x, value):
    convert = {types.float32: np.float32, types.float64: np.float64}.get(x)
    return None if convert is None else lambda x, value: convert(value)


overload(like, jit_options=CPU_FLAGS, strict=False, target="cpu")(_like)
overload(like, strict=False)(_like)


def in_register(x):
    """A float64 constant that a loop keeps in a register.

    LLVM turns a constant into a memory operand, read again for every vector, which costs a polynomial a cycle per
    coefficient. A fence hides the value of the constant, so that it is loaded before the loop.
    """
    raise TypeError("runs in compiled code only")


@intrinsic
def _fenced(typingctx, x):
    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(args[0].type, [args[0].type])
        fence = cgutils.get_or_insert_function(builder.module, kind, "llvm.arithmetic.fence.f64")
        return builder.call(fence, args)

    return x(x), codegen


def _in_register(x):
    def fenced(x):
        return _fenced(x)

    return fenced


overload(in_register, jit_options=CPU_FLAGS, strict=False, target="cpu")(_in_register)
overload(in_register, strict=False)(lambda x: lambda x: x)


def real_of_word(x, word):
    """The number of the type of x whose bits are the low ones of a word: how a row of a table holds a real number."""
    raise TypeError("runs in compiled code only")


def _real_of_word(x, word):
    return {
        types.float32: lambda x, word: from_bits(np.uint32(word & 0xFFFFFFFF)),
        types.float64: lambda x, word: from_bits(np.uint64(word)),
    }.get(x)


specialise(real_of_word, _real_of_word)
