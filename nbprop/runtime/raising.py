"""How compiled code raises what a status means: with the argument's name; only Python can tell values."""

import numpy as np
from numba import types

from nbprop.compiler.intrinsics import propagating_call
from nbprop.compiler.jit import njit
from nbprop.compiler.native import CompiledEntry
from nbprop.compiler.registry import find
from nbprop.messages import BRIEF, CACHED_ELSEWHERE, HYPERPARAMETER, NAMELESS, NO_KERNEL, OUTDATED
from nbprop.runtime import arguments as arg

_signature = types.void(types.int64)
_call = propagating_call(_signature)
_NAMELESS = tuple(sorted(NAMELESS))


def raiser(names, kinds=("",)):
    """An @njit function (status) that raises what a status other than 0 means.

    names: of the arguments, by the number in a status; kinds: what a hyperparameter must be, in words. Its code is
    compiled once, when something is wrong, and not into each caller.
    """

    def raise_status(status):
        if status >= arg.FAILED:
            raise RuntimeError("a layer's kernel raised an exception and the walk was stopped")
        argument, problem = status // 64, status % 64
        if problem in (OUTDATED, NO_KERNEL):
            raise RuntimeError(BRIEF[problem])
        if problem in _NAMELESS:
            raise ValueError(BRIEF[problem])
        if problem >= HYPERPARAMETER:
            raise ValueError(names[argument] + " must be " + kinds[problem - HYPERPARAMETER])
        raise ValueError(names[argument] + " " + BRIEF[problem])

    entry = CompiledEntry(raise_status, lambda dtype: _signature, f"{__name__}.{'_'.join(names)}")
    fingerprint = np.int64(entry.fingerprint())

    @njit
    def check_status(status):
        if status != 0:
            address = find(fingerprint)
            if address == 0 or status == NO_KERNEL:
                raise RuntimeError(CACHED_ELSEWHERE)
            _call(address, (status,))

    return check_status
