"""Gradients through a simulation: the forward and the adjoint sweep of a user's own compiled dynamics.

A system steps x[t+1] = f(x[t], t). Its adjoint goes back: lam[t] = dL/dx[t] + (df/dx)^T lam[t+1] (Bryson and Ho
1975, section 2.2; Werbos 1990). Only every k-th state is kept; the states between are computed again, a segment at a
time, when the adjoint comes by: with k near sqrt(steps) the memory is about 2 sqrt(steps) states, for one more forward
sweep.

The functions are the user's, so each new set of them is compiled anew, in every process.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from nbprop.arrays import as_array, check_kinds, check_memory, without_memmap
from nbprop.compiler.argument_types import check_array_type
from nbprop.compiler.intrinsics import address_of, borrowed
from nbprop.compiler.jit import FLAGS
from nbprop.messages import ALIASED, failure
from nbprop.solvers.states import overlap
from nbprop.validation import check_integer

# (name, rank, whether it is written) of the arrays of `rollout` and `rollout_adjoint`.
_ARRAYS = ("start", 1, False), ("kept", 2, True), ("segment", 2, True), ("lam", 2, True)


def rollout_buffers(steps: int, n_states: int, every: int = 1) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(kept, segment, lam): the arrays that `rollout` and `rollout_adjoint` take, float64, uninitialised.

    steps : int, time steps
    n_states : int, numbers in a state
    every : int, keep each every-th state; 1 keeps all

    >>> [a.shape for a in rollout_buffers(200, 4, every=14)]
    [(15, 4), (15, 4), (2, 4)]
    """
    function = "rollout_buffers"
    steps, n_states = check_integer(f"{function}: steps", steps), check_integer(f"{function}: n_states", n_states)
    every = check_integer(f"{function}: every", every)
    return np.empty((-(-steps // every), n_states)), np.empty((every + 1, n_states)), np.empty((2, n_states))


_LAM_ALIASED = str(failure(ALIASED, "rollout_adjoint: lam", detail="kept or segment"))

# -- checks --------------------------------------------------------------------------------------------------


@numba.njit(**FLAGS)
def _apart(a, b):
    return not overlap(address_of(a), a.size * a.itemsize // 8, address_of(b), b.size * b.itemsize // 8)


@numba.njit(**FLAGS)
def _check(steps, kept, segment):
    """How many steps a segment has, once the buffers have been found to fit each other."""
    every = segment.shape[0] - 1
    if steps < 1 or every < 1:
        raise ValueError("rollout: steps must be at least 1, and segment must have at least two rows")
    if kept.shape[0] != (steps + every - 1) // every or kept.shape[1] != segment.shape[1]:
        raise ValueError(
            "rollout: kept and segment do not fit; nbprop.rollout_buffers(steps, n_states, every) makes them"
        )
    if not _apart(kept, segment):
        raise ValueError("rollout: kept and segment are written and share memory; pass separate buffers")
    return every


def _check_from_python(function, functions, steps, arrays):
    """What a call from Python gives, before Numba sees it; shapes are looked at in compiled code."""
    for name, given in functions.items():
        if not hasattr(given, "py_func"):
            raise TypeError(f"{function}: {name} must be a function compiled with @numba.njit, got {given!r}"[:200])
    check_integer(f"{function}: steps", steps)
    for name, rank, written in _ARRAYS:
        if name not in arrays:
            continue
        argument = f"{function}: {name}"
        array = as_array(argument, arrays[name])
        check_kinds(argument, array, np.float64)
        if array.ndim != rank:
            raise ValueError(f"{argument} must have {rank} axes, got shape {array.shape}")
        check_memory(argument, array, written)


def _check_types(function, arrays):
    """Typing errors for the arrays of a call from @njit; {name: Numba type}."""
    for name, rank, written in _ARRAYS:
        if name in arrays:
            argument = f"nbprop.{function}: {name}"
            check_array_type(argument, arrays[name], (types.float64,), "float64", rank=rank, written=written)


# -- sweeps --------------------------------------------------------------------------------------------------


# Inlined before types are inferred, so that the rows they pass on are known to count no references. With Numba's option
# _nrt=False there would be no counting either; but the user's functions inherit it, and may then not allocate.
_inline = numba.njit(inline="always")


@_inline
def _copy(y, x):
    """y = x: a loop, since Numba may take 90 ns for an assignment of slices."""
    for i in range(y.size):
        y[i] = x[i]


@_inline
def _sweep(step, first, steps, segment, data):
    """Fill segment[1:] from segment[0], the state at time `first`; how many steps were taken."""
    count = min(segment.shape[0] - 1, steps - first)
    for i in range(count):
        step(segment[i + 1], segment[i], first + i, data)
    return count


@numba.njit(**FLAGS)
def _rollout(step, start, steps, kept, segment, data):
    every = _check(steps, kept, segment)
    if start.size != segment.shape[1]:
        raise ValueError("rollout: start must have as many numbers as a row of segment")
    if not (_apart(start, kept) and _apart(start, segment)):
        raise ValueError("rollout: kept and segment are written and share memory with start; pass separate buffers")
    rows, states, given = borrowed((kept, segment, data))
    _copy(states[0], start)
    count = 0
    for k in range(rows.shape[0]):
        if k > 0:
            _copy(states[0], states[every])
        _copy(rows[k], states[0])
        count = _sweep(step, k * every, steps, states, given)
    return segment[count]


def rollout(
    step: Callable[..., Any], start: NDArray[Any], steps: int, kept: NDArray[Any], segment: NDArray[Any], data: Any
) -> NDArray[Any]:
    """Simulate: x[0] = start, x[t + 1] = f(x[t], t), keeping every k-th state.

    Parameters
    ----------
    step : @njit function (x_next, x, t, data), writes x_next (n_states,). Copy a few numbers in a loop: for an
        assignment of slices, data.x[0] = x, Numba may take 90 ns
    start : (n_states,) array
    steps : int
    kept, segment : from `rollout_buffers(steps, n_states, every)`, overwritten
    data : anything that Numba takes, handed to step: a tuple of arrays, a plan, numbers

    Returns
    -------
    (n_states,) view into segment
        The last state.

    Raises
    ------
    ValueError
        When the buffers do not fit.

    Examples
    --------
    >>> import nbprop, numba, numpy as np
    >>> @numba.njit
    ... def step(x_next, x, t, data):
    ...     x_next[0] = 0.5 * x[0] + data
    >>> kept, segment, lam = nbprop.rollout_buffers(steps=3, n_states=1)
    >>> nbprop.rollout(step, np.array([8.0]), 3, kept, segment, 1.0), kept.ravel()
    (array([2.75]), array([8. , 5. , 3.5]))
    """
    _check_from_python("rollout", {"step": step}, steps, {"start": start, "kept": kept, "segment": segment})
    return _rollout(step, without_memmap(start), steps, without_memmap(kept), without_memmap(segment), data)


@overload(rollout, jit_options=FLAGS, strict=False)
def _rollout_in_njit(step, start, steps, kept, segment, data):
    _check_types("rollout", {"start": start, "kept": kept, "segment": segment})
    return lambda step, start, steps, kept, segment, data: _rollout(step, start, steps, kept, segment, data)


@numba.njit(**FLAGS)
def _rollout_adjoint(step, adjoint, loss_gradient, steps, kept, segment, lam, data):
    every = _check(steps, kept, segment)
    if lam.shape[0] != 2 or lam.shape[1] != segment.shape[1]:
        raise ValueError("rollout_adjoint: lam must have shape (2, n_states); nbprop.rollout_buffers makes it")
    if not (_apart(lam, kept) and _apart(lam, segment)):
        raise ValueError(_LAM_ALIASED)
    rows, states, lams, given = borrowed((kept, segment, lam, data))
    now, other = lams[0], lams[1]
    now[:] = 0
    last = rows.shape[0] - 1
    for k in range(last, -1, -1):
        _copy(states[0], rows[k])
        if k == last:
            count = _sweep(step, k * every, steps, states, given)
            loss_gradient(now, states[count], steps, given)
        else:
            # The state behind the segment is the next one's first: the last step needs not be taken again.
            count = _sweep(step, k * every, (k + 1) * every - 1, states, given) + 1
        for i in range(count - 1, -1, -1):
            adjoint(other, now, states[i], k * every + i, given)
            now, other = other, now
            loss_gradient(now, states[i], k * every + i, given)
    return lam[steps % 2]


def rollout_adjoint(
    step: Callable[..., Any],
    adjoint: Callable[..., Any],
    loss_gradient: Callable[..., Any],
    steps: int,
    kept: NDArray[Any],
    segment: NDArray[Any],
    lam: NDArray[Any],
    data: Any,
) -> NDArray[Any]:
    """Go back after `rollout` with the same arguments: a loss's gradient by the start, and by what adjoint sums up.

    Parameters
    ----------
    step, steps, kept, segment, data : as `rollout` had them
    adjoint : @njit function (lam_x, lam_next, x, t, data)
        Writes lam_x = (df/dx)^T lam_next at x[t], and adds (df/dp)^T lam_next to gradients of its own, in data.
    loss_gradient : @njit function (lam, x, t, data), adds dL/dx[t] to lam, for t = 0 ... steps
    lam : (2, n_states) from `rollout_buffers`, overwritten

    Returns
    -------
    (n_states,) view into lam
        dL/dx[0].

    Examples
    --------
    >>> import nbprop, numba, numpy as np
    >>> @numba.njit
    ... def step(x_next, x, t, data):
    ...     x_next[0] = x[0] ** 2
    >>> @numba.njit
    ... def adjoint(lam_x, lam_next, x, t, data):
    ...     lam_x[0] = 2 * x[0] * lam_next[0]
    >>> @numba.njit
    ... def loss_gradient(lam, x, t, data):
    ...     lam[0] += 1.0 if t == 2 else 0.0  # the loss is the last state
    >>> kept, segment, lam = nbprop.rollout_buffers(steps=2, n_states=1)
    >>> end = nbprop.rollout(step, np.array([3.0]), 2, kept, segment, 0)
    >>> nbprop.rollout_adjoint(step, adjoint, loss_gradient, 2, kept, segment, lam, 0)  # d(x^4)/dx at 3
    array([108.])
    """
    functions = {"step": step, "adjoint": adjoint, "loss_gradient": loss_gradient}
    _check_from_python("rollout_adjoint", functions, steps, {"kept": kept, "segment": segment, "lam": lam})
    kept, segment, lam = without_memmap(kept), without_memmap(segment), without_memmap(lam)
    return _rollout_adjoint(step, adjoint, loss_gradient, steps, kept, segment, lam, data)


@overload(rollout_adjoint, jit_options=FLAGS, strict=False)
def _rollout_adjoint_in_njit(step, adjoint, loss_gradient, steps, kept, segment, lam, data):
    _check_types("rollout_adjoint", {"kept": kept, "segment": segment, "lam": lam})

    def run(step, adjoint, loss_gradient, steps, kept, segment, lam, data):
        return _rollout_adjoint(step, adjoint, loss_gradient, steps, kept, segment, lam, data)

    return run
