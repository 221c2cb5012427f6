"""Compiled functions that Python calls without Numba's dispatch on the types of the arguments.

A dispatcher takes 40 ns for each argument from Python: it looks at the type, and unboxes a number that Python has just
boxed. A `PythonCall` has one signature and is called at its entry point; Python objects reach it as one tuple, whose
items compiled code reads where they lie. With eight arrays a call takes a quarter of the time.
"""

from llvmlite import ir
from numba import types
from numba.core.datamodel import models
from numba.extending import NativeValue, register_model, unbox

from nbprop.compiler.intrinsics import WORD, load_integer
from nbprop.compiler.jit import intrinsic, njit

# Where a tuple's items and a float's value begin, and where an object's type stands; free-threaded builds differ.
_HEADER = object.__basicsize__
_ITEMS = tuple.__basicsize__


class ObjectType(types.Type):
    """A Python object in compiled code: its address. The caller holds a reference for as long as the call lasts."""

    def __init__(self):
        super().__init__("nbprop.Object")


OBJECT = ObjectType()


@register_model(ObjectType)
class ObjectModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, WORD)


@unbox(ObjectType)
def _address_of_object(typ, obj, c):
    return NativeValue(c.builder.ptrtoint(obj, WORD))


@intrinsic
def object_address(typingctx, value):
    """The address of an object."""

    def codegen(context, builder, signature, arguments):
        return arguments[0]

    return types.int64(value), codegen


@njit
def item(address, index):
    """The address of item `index` of the tuple at `address`."""
    return load_integer(address, _ITEMS + 8 * index, 8)


@njit
def type_of(address):
    """The address of an object's type."""
    return load_integer(address, _HEADER - 8, 8)


@intrinsic
def float_of(typingctx, address):
    """The value of the Python float at `address`."""

    def codegen(context, builder, signature, arguments):
        place = builder.add(arguments[0], ir.Constant(WORD, _HEADER))
        return builder.load(builder.inttoptr(place, ir.DoubleType().as_pointer()))

    return types.float64(types.int64), codegen


class PythonCall:
    """An @njit function of int64, float64 and OBJECT arguments, compiled for this signature when it is asked for."""

    def __init__(self, function, *arguments):
        self._function, self._arguments, self._entry = function, arguments, None

    def load(self):
        """Compile, or load from the disk cache; returns what Python calls, with positional arguments only."""
        if self._entry is None:
            self._function.compile(self._arguments)
            self._entry = self._function.overloads[self._arguments].entry_point
        return self._entry
