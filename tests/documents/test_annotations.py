"""Public functions are annotated: every parameter and the result, with names that resolve."""

import inspect
import typing

from scipy.optimize import OptimizeResult
from scipy.sparse.linalg import LinearOperator

import nbprop

# Names of SciPy's, which is imported when it is used, and of nbprop's own modules.
NAMES = {"OptimizeResult": OptimizeResult, "LinearOperator": LinearOperator}


def test_public_functions_are_annotated():
    missing = set()
    for name in nbprop.__all__:
        function = getattr(nbprop, name)
        if not inspect.isclass(function) and callable(function):
            wanted = {*inspect.signature(function).parameters, "return"}
            if set(typing.get_type_hints(function, localns=NAMES)) != wanted:
                missing.add(name)
    assert not missing
