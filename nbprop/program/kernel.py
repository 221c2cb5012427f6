"""Kernels: plain functions over arrays that a walker can call."""

import functools
import typing
from collections.abc import Callable
from typing import Any

from numba import types
from numba.core.dispatcher import Dispatcher
from numba.extending import overload

from nbprop.compiler.fingerprint import hashed, is_ours, python_function, renewed
from nbprop.compiler.intrinsics import FrameType, store_double
from nbprop.compiler.jit import FLAGS, _dispatcher, njit
from nbprop.compiler.native import Native
from nbprop.program import frame
from nbprop.program.binding import kernel_arguments
from nbprop.program.contract import Contract

OP_ARGUMENTS = (types.int64, types.int64, types.int64, types.int64)  # frame, row, part, parts

FRAME_WORDS = {
    "n": frame.N,
    "accumulate": frame.ACCUMULATE,
    "step": frame.STEP,
    "first_sample": frame.FIRST_SAMPLE,
    "x_code": frame.X_CODE,
    "target_code": frame.TARGET_CODE,
    "x_address": frame.X,
    "target_address": frame.TARGET,
    "lengths_address": frame.LENGTHS,
    "lengths_code": frame.LENGTHS_CODE,
    "result_bits": frame.RESULT,
}


def _finish(frame_address, result):
    """Handle the return value of a kernel: nothing, or a number that becomes the result of the walk."""
    raise TypeError("runs in compiled code only")


@overload(_finish, jit_options=FLAGS)
def _finish_compiled(frame_address, result):
    if isinstance(result, (types.Float, types.Integer)):

        def number(frame_address, result):
            store_double(frame_address, frame.RESULT, float(result))
            return 0

        return number
    if result is types.none:
        return lambda frame_address, result: 0
    return None


class Kernel(Native):
    """A plain function over arrays, made callable by the walker.

    The names of its parameters are the contract (contract.py): arrays come first, then `n` (samples in this call), then
    sizes in the order of the row. Reserved names are filled in by the walk: `accumulate`, `step`, `first_sample` (the
    index in the caller's batch of sample 0, when a function walks one sample at a time), `x_code`, `x_address`,
    `target_code`, `target_address`, `lengths_code`, `lengths_address`, `result_bits` (what the last kernel that
    returned a number returned, as the bits of a float64), and at the end `part` and `parts`. A kernel without `part`
    runs on one thread while the others wait.

    An array that the caller did not give has size 0. A direction of `jvp` or `hvp` can be such an array: `optional`
    names the arrays for which the kernel handles an empty one as zeros; for others, it gets zeros (Builder.emit).
    """

    def __init__(self, function, uses=(), name=None, optional=()):
        python = python_function(function)
        self.contract = Contract(python, FRAME_WORDS)
        self.arrays, self.scalars, self.words = self.contract.arrays, self.contract.scalars, self.contract.words
        self.split = "part" in self.scalars
        self.optional = frozenset(optional)
        if not self.optional <= set(self.arrays):
            raise TypeError(f"kernel {python.__qualname__}: optional must name its arrays {self.arrays}")
        super().__init__(function, self._op_signature, name, uses)

    @staticmethod
    def _op_signature(dtype):
        return types.int64(FrameType(dtype), *OP_ARGUMENTS[1:])

    def source_digest(self):
        if is_ours(self.function):
            return super().source_digest()
        fields = [(name, of.__name__, of._fields) for name, of in self.contract.tuples.items()]
        return hashed(super().source_digest(), repr(fields).encode())

    @functools.cached_property
    def _by_itself(self):
        """The compiled function alone; made at first use, so that importing a hundred kernels takes no time."""
        # Inlined; otherwise each array would be passed as seven words through memory, several ns per operand of an op.
        return self._given if self._given is not self.function else njit(self._given, forceinline=True)

    def compiled(self):
        bind = kernel_arguments(self.contract)
        split = self.split
        if is_ours(self.function):
            function = self._by_itself
        else:
            given = renewed(self._given)
            function = given if isinstance(given, Dispatcher) else _dispatcher(given, forceinline=True)

        def op(frame_address, row, part, parts):
            if part > 0 and not split:
                return 0
            return _finish(frame_address, function(*bind(frame_address, row, part, parts)))

        return op

    def __call__(self, *arguments):
        """Run the function itself, compiled for these argument types, as in tests and teaching."""
        return self._by_itself(*arguments)


@typing.overload
def kernel(function: Callable[..., Any]) -> Kernel: ...
@typing.overload
def kernel(*, uses: tuple = (), optional: tuple = ()) -> Callable[[Callable[..., Any]], Kernel]: ...
def kernel(function=None, *, uses=(), optional=()):
    """Decorate a plain function over arrays as a kernel of an op; see `Kernel` for the naming contract."""
    if function is None:
        return lambda decorated: Kernel(decorated, uses, optional=optional)
    return Kernel(function, uses, optional=optional)
