"""`bind`: a gradient's call with its lasting arguments in place, so that Python passes x and target alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from nbprop.arrays import check_vector, without_memmap
from nbprop.autodiff.faces import Caller, describe_items, fill_scalars, finish_call, run_call, words_of
from nbprop.autodiff.gradients import value_and_grad
from nbprop.compiler.intrinsics import indirect_call, load, load_double, stack_words
from nbprop.compiler.jit import njit
from nbprop.compiler.python_call import OBJECT, PythonCall, object_address
from nbprop.lowering.plan import Plan
from nbprop.messages import ALIASED, NO_LOSS, failure
from nbprop.runtime import arguments as arg
from nbprop.runtime.derivative_entries import ENTRIES
from nbprop.runtime.signatures import SIGNATURES

_call_entry = indirect_call(types.int64(types.int64, types.int64))
_BLOCK, _STEPS = arg.BLOCK, arg.STEPS
_SIGNATURE = replace(SIGNATURES["value_and_grad"], name="bind")
_ENTRY = ENTRIES["value_and_grad"]
_CALLER = Caller(_SIGNATURE, _ENTRY)
_LASTING = (arg.PARAMS, arg.GRADS, arg.WORK, arg.STATE)
# Behind the words of `words_of`: the plan, and the tuple of the lasting arrays.
_PLAN = 4 + len(_LASTING)
_TUPLE = _PLAN + 1


@njit
def _call(words, x, target, step):
    """Describe the lasting arrays, as they are now, and those of the call; (status, result)."""
    block, ndarray = stack_words(_BLOCK), load(words, 1)
    status = describe_items(block, words, load(words, _TUPLE))
    if status == 0:
        status = arg.describe_object(block, arg.X, object_address(x), ndarray)
    if status == 0:
        status = arg.describe_object(block, arg.TARGET, object_address(target), ndarray)
    if status != 0:
        return status, 0.0
    fill_scalars(block, 0, step, 0, 0.0)
    failed, status = _call_entry(load(words, 0), (load(words, _PLAN), block))
    return status if failed == 0 else failed, load_double(block, arg.RESULT)


_CALL = PythonCall(_call, types.int64, OBJECT, OBJECT, types.int64)


def bind(
    plan: Plan,
    params: NDArray[Any],
    grads: NDArray[Any],
    work: NDArray[Any],
    state: NDArray[Any] | None = None,
) -> Callable[..., float]:
    """A function gradient(x, target, step=0) that does what `value_and_grad` does, with fewer arguments to pass.

    The arrays given here are kept, not copied: the function sees every change of `params`, writes `grads`, and keeps
    all of them alive. They are checked here, and as part of each call, since an array may be made read-only or be
    resized in between; what a call saves is the passing of arguments, which from Python takes longer than the checks.
    In @njit call `value_and_grad` itself.

    Parameters
    ----------
    plan : Plan with a loss
    params : (n_params,) array of the plan's dtype
    grads : (n_params,) array, overwritten by each call
    work : 1-D array from `workspace(plan)`, overwritten by each call
    state : 1-D array from `layer_state(plan)`, changed by each call, where the network has one

    Returns
    -------
    function (x, target, step=0)
        Returns the loss, as `value_and_grad(plan, params, x, target, grads, work, state=state, step=step)`.

    Raises
    ------
    TypeError, ValueError
        For an argument that does not fit, here and in each call; nothing has been written then.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> net = nbprop.network((1,), nbprop.dense(1))
    >>> plan, params, grads = nbprop.plan(net, loss="mse", batch=2), np.array([2.0, 1.0]), np.empty(2)
    >>> gradient = nbprop.bind(plan, params, grads, nbprop.workspace(plan))
    >>> gradient(np.array([[1.0], [3.0]]), np.array([[3.0], [6.0]])), grads
    (0.5, array([3., 1.]))
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"bind: plan must be what nbprop.plan(...) returns, got {type(plan).__name__}")
    if plan.loss is None:
        raise failure(NO_LOSS, "bind:")
    if plan.target == "cpu":
        params, grads, work, state = _checked(plan, params, grads, work, state)
        return _Bound(plan, params, grads, work, state).gradient
    return lambda x, target, step=0: value_and_grad(plan, params, x, target, grads, work, None, False, state, step)


class _Bound:
    """What the calls of one function share; its arrays live as long as it does."""

    __slots__ = ("_address", "_call", "_lasting", "_plan", "_words")

    def __init__(self, plan, *lasting):
        self._plan, self._lasting, self._call = plan, lasting, _CALL.load()
        self._words = np.array([*words_of(_ENTRY, _LASTING), plan.address, id(lasting)], np.int64)
        self._address = self._words.ctypes.data

    def gradient(self, x, target, step=0):
        """The loss of a batch; overwrites the gradients that this was made with."""
        if type(step) is int and -1 < step < _STEPS:
            status, result = self._call(self._address, x, target, step)
            if status == 0:
                return result
            return finish_call(_CALLER, self._plan, self._objects(x, target), False, step, status, result)
        return run_call(_CALLER, self._plan, self._objects(x, target), False, step)

    def _objects(self, x, target):
        """All arrays of a call, as value_and_grad takes them."""
        params, grads, work, state = self._lasting
        return params, x, target, grads, work, None, state, None


def _checked(plan, params, grads, work, state):
    """The lasting arrays as plain ones, which fit the plan and lie apart."""
    params = check_vector("bind: params", params, plan.n_params, plan.dtype)
    grads = check_vector("bind: grads", grads, plan.n_params, plan.dtype, written=True)
    size = max(plan.work_size, without_memmap(work).size if isinstance(work, np.ndarray) else 0)
    work = check_vector("bind: work", work, size, plan.dtype, written=True)
    if state is not None or plan.state_size:
        state = check_vector("bind: state", state, plan.state_size, plan.dtype, written=True)
    names = {"params": params, "grads": grads, "work": work} | ({} if state is None else {"state": state})
    for name, array in names.items():
        for other, partner in names.items():
            if name != "params" and name != other and np.may_share_memory(array, partner):
                raise failure(ALIASED, f"bind: {name}", detail=other)
    return params, grads, work, state
