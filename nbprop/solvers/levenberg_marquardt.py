"""Levenberg-Marquardt in compiled code, for any residuals: the caller evaluates, `lm_step` returns what it needs next.

Each step solves (J^T J + damping D) d = -J^T r, where D is the largest diagonal of J^T J so far (Moré 1978, section 3);
the damping follows Nielsen 1999 (IMM-REP-1999-05, section 2.1). As in lbfgs.py, the solver calls no user function, and
its whole state is one flat vector.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from nbprop.arrays import check_array, check_vector, without_memmap
from nbprop.compiler.intrinsics import address_of, array_at, as_frame, indirect_call
from nbprop.compiler.jit import FLAGS, njit
from nbprop.compiler.native import CompiledEntry
from nbprop.compiler.registry import find
from nbprop.numerics.cholesky import cholesky, cholesky_scratch
from nbprop.numerics.gemm.blocked import ZERO, gemm_scratch
from nbprop.numerics.gemm.entry import GEMM, product
from nbprop.numerics.gemm.microkernel import pointer
from nbprop.solvers import states as solver_states
from nbprop.solvers.states import overlap, whole
from nbprop.validation import check_callable, check_integer, check_number

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

# What lm_step returns: what to evaluate at theta, or why it ended.
RESIDUALS, JACOBIAN = 1, 2
GRADIENT, SMALL_STEP, SLOW, NO_STEP, NOT_FINITE, OVERFLOW = range(3, 9)
REASONS = {
    GRADIENT: "the largest component of J^T r is at most gtol",
    SMALL_STEP: "the step is at most a fraction xtol of theta",
    SLOW: "the cost decreases by at most a fraction ftol of itself",
    NO_STEP: "no damping gives a lower cost",
    NOT_FINITE: "the residuals at the start are not finite",
    OVERFLOW: "J^T J or J^T r is not finite: the Jacobian is not, or its squares overflow",
}

# The head of the state; after it theta, gradient, step, scale (n each), J^T J and its factor (n x n each), and scratch
# for the products.
_N, _PHASE, _DAMPING, _GROWTH, COST, ITERATIONS, EVALUATIONS, _PREDICTED, _GTOL, _XTOL, _FTOL = range(11)
_HEAD = 11
_STARTING, _TRYING, _ACCEPTED = 0, 1, 2
MANY = 1 << 40  # residuals, a bound for the size of scratch
_FIRST_DAMPING, _LARGEST_DAMPING = 1e-3, 1e32


@njit
def _scratch(n):
    """Elements of scratch for J^T J, for any number of residuals, and for its factor."""
    return max(gemm_scratch(n, n, MANY, 1), cholesky_scratch(n))


@njit
def _words(n):
    return _HEAD + 4 * n + 2 * n * n + _scratch(n)


def lm_state(n_params: int, gtol: float = 1e-08, xtol: float = 1e-08, ftol: float = 1e-08) -> NDArray[Any]:
    """A new state for `lm_step`: a float64 vector of 2 n_params^2 + 4 n_params numbers, a head, and scratch.

    n_params : int
    gtol : stop when no component of J^T r is larger
    xtol : stop when a step is at most this fraction of theta
    ftol : stop when a step lowers the cost by at most this fraction of it, as predicted

    >>> import nbprop
    >>> state = nbprop.lm_state(61)
    """
    n = check_integer("lm_state: n_params", n_params)
    state = np.zeros(_words(n))
    for name, place, value in (("gtol", _GTOL, gtol), ("xtol", _XTOL, xtol), ("ftol", _FTOL, ftol)):
        state[place] = check_number(f"lm_state: {name}", value)
    state[_N] = n
    return state


@njit
def _factor(lower, scratch, matrix, scale, damping, n):
    """lower = the Cholesky factor of matrix + damping diag(scale), both (n, n); False if not positive definite."""
    for i in range(n):
        lower[i * n : i * n + i] = matrix[i * n : i * n + i]
        lower[i * n + i] = matrix[i * n + i] + damping * scale[i]
    return cholesky(lower, scratch, n)


@njit
def _solve(d, lower, g, n):
    """Solve lower lower^T d = -g."""
    for i in range(n):
        total = -g[i]
        for k in range(i):
            total -= lower[i * n + k] * d[k]
        d[i] = total / lower[i * n + i]
    for i in range(n - 1, -1, -1):
        total = d[i]
        for k in range(i + 1, n):
            total -= lower[k * n + i] * d[k]
        d[i] = total / lower[i * n + i]


@njit
def _propose(state, theta, x0, g, d, scale, matrix, lower, scratch, n):
    """Move theta to the next trial point; returns RESIDUALS, or why there is none."""
    while True:
        if state[_DAMPING] > _LARGEST_DAMPING:
            for i in range(n):
                theta[i] = x0[i]
            return NO_STEP
        if _factor(lower, scratch, matrix, scale, state[_DAMPING], n):
            break
        state[_DAMPING] *= state[_GROWTH]
        state[_GROWTH] *= 2.0
    _solve(d, lower, g, n)
    predicted, step, length = 0.0, 0.0, 0.0
    for i in range(n):
        predicted += 0.5 * d[i] * (state[_DAMPING] * scale[i] * d[i] - g[i])
        step += d[i] * d[i]
        length += x0[i] * x0[i]
        theta[i] = x0[i] + d[i]
    state[_PREDICTED] = predicted
    state[_PHASE] = _TRYING
    if step <= (state[_XTOL] * (np.sqrt(length) + state[_XTOL])) ** 2:
        for i in range(n):
            theta[i] = x0[i]
        return SMALL_STEP
    return RESIDUALS


@njit
def _advance(state, theta, residuals, jacobian):
    """One call of `lm_step` on arrays."""
    n, m = int(state[_N]), residuals.size
    x0, g = state[_HEAD : _HEAD + n], state[_HEAD + n : _HEAD + 2 * n]
    d, scale = state[_HEAD + 2 * n : _HEAD + 3 * n], state[_HEAD + 3 * n : _HEAD + 4 * n]
    matrix = state[_HEAD + 4 * n : _HEAD + 4 * n + n * n]
    lower = state[_HEAD + 4 * n + n * n : _HEAD + 4 * n + 2 * n * n]
    scratch = state[_HEAD + 4 * n + 2 * n * n :]
    if state[_PHASE] == _ACCEPTED:
        j, room = pointer(jacobian, 0), (pointer(scratch, 0), scratch.size, 0, 1)
        product((pointer(matrix, 0), n, j, 1, n, j, n, n, n, m, ZERO, pointer(matrix, 0), *room))
        product((pointer(g, 0), 1, j, 1, n, pointer(residuals, 0), 1, n, 1, m, ZERO, pointer(g, 0), *room))
        largest = 0.0
        for i in range(n):
            # A finite diagonal bounds all of J^T J; comparisons below would not detect NaN or infinity.
            if not (np.isfinite(g[i]) and np.isfinite(matrix[i * n + i])):
                return OVERFLOW
            largest = max(largest, abs(g[i]))
            scale[i] = max(scale[i], matrix[i * n + i])
            # A parameter that nothing depends on yet is held by the damping alone.
            scale[i] = scale[i] if scale[i] > 0 else 1.0
            x0[i] = theta[i]
        if largest <= state[_GTOL]:
            return GRADIENT
        return _propose(state, theta, x0, g, d, scale, matrix, lower, scratch, n)
    state[EVALUATIONS] += 1
    cost = 0.0
    for i in range(m):
        cost += residuals[i] * residuals[i]
    cost *= 0.5
    if state[_PHASE] == _STARTING:
        if not np.isfinite(cost):
            return NOT_FINITE
        state[_DAMPING], state[_GROWTH] = _FIRST_DAMPING, 2.0
    else:
        ratio = (state[COST] - cost) / state[_PREDICTED]
        if not ratio > 1e-4:
            state[_DAMPING] *= state[_GROWTH]
            state[_GROWTH] *= 2.0
            return _propose(state, theta, x0, g, d, scale, matrix, lower, scratch, n)
        state[ITERATIONS] += 1
        state[_DAMPING] *= max(1.0 / 3.0, 1.0 - (2.0 * ratio - 1.0) ** 3)
        state[_GROWTH] = 2.0
        slow = state[_PREDICTED] <= state[_FTOL] * state[COST] and state[COST] - cost <= state[_FTOL] * state[COST]
        if slow:
            state[COST] = cost
            return SLOW
    state[COST], state[_PHASE] = cost, _ACCEPTED
    return JACOBIAN


@njit
def _check(state, words, theta, n, residuals, m, jacobian):
    """0, or what is wrong with the arguments of `lm_entry`."""
    if n < 1 or words != _words(n):
        return solver_states.LENGTH
    head = array_at(as_frame(0, np.float64), state, _HEAD)
    if not (whole(head[_N], n, n) and whole(head[_PHASE], _STARTING, _ACCEPTED)):
        return solver_states.DAMAGED
    if head[_PHASE] != _STARTING and not (head[_DAMPING] > 0 and head[_GROWTH] > 1):
        return solver_states.DAMAGED  # damping that does not grow would never end the loop
    for written, size in ((state, words), (theta, n)):
        if overlap(written, size, residuals, m) or overlap(written, size, jacobian, m * n):
            return solver_states.ALIASED
    return solver_states.ALIASED if overlap(state, words, theta, n) else 0


def lm_entry(state, words, theta, n, residuals, m, jacobian):
    """`_advance` on addresses, as compiled code calls it; a negative number when the arguments do not fit."""
    wrong = _check(state, words, theta, n, residuals, m, jacobian)
    if wrong != 0:
        return wrong
    numbers = as_frame(0, np.float64)
    r, j = array_at(numbers, residuals, m), array_at(numbers, jacobian, m * n)
    return _advance(array_at(numbers, state, words), array_at(numbers, theta, n), r, j)


_signature = types.int64(*(types.int64,) * 7)
_ENTRY = CompiledEntry(lm_entry, lambda dtype: _signature)
_FINGERPRINT = np.int64(_ENTRY.fingerprint())
_call = indirect_call(_signature)


@njit
def _on_arrays(entry, state, theta, residuals, jacobian):
    vectors = address_of(state), state.size, address_of(theta), theta.size, address_of(residuals), residuals.size
    return _call(entry, (*vectors, address_of(jacobian)))[1]


def lm_step(state: NDArray[Any], theta: NDArray[Any], residuals: NDArray[Any], jacobian: NDArray[Any]) -> int:
    """Take what was requested at theta; move theta, and return what to evaluate there next.

    Parameters
    ----------
    state : float64 vector from `lm_state`
    theta : (n_params,) float64 array, overwritten
    residuals : (m,) float64 array r(theta)
    jacobian : (m, n_params) float64 array dr/dtheta, read only if it was requested

    Returns
    -------
    int
        1: evaluate the residuals at theta and call again, as at the beginning; 2: evaluate the Jacobian at theta, whose
        residuals are unchanged. Otherwise theta is the result, and `nbprop.marquardt.REASONS[number]` is the reason.
        The cost is half the sum of squares.

    Raises
    ------
    TypeError, ValueError
        For an array that does not fit; in @njit a wrong dtype or order is a typing error, a wrong size a ValueError.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> theta, state, want = np.array([5.0]), nbprop.lm_state(1), 1
    >>> residuals, jacobian = np.empty(2), np.empty((2, 1))
    >>> while want in (1, 2):
    ...     if want == 1:
    ...         residuals[:] = theta[0] ** 2 - 2.0, 0.0
    ...     else:
    ...         jacobian[:, 0] = 2 * theta[0], 0.0
    ...     want = nbprop.lm_step(state, theta, residuals, jacobian)
    >>> theta.round(6)
    array([1.414214])
    """
    double = np.dtype(np.float64)
    check_vector("lm_step: theta", theta, getattr(theta, "size", 0), double, written=True)
    check_vector("lm_step: state", state, getattr(state, "size", 0), double, written=True)
    check_vector("lm_step: residuals", residuals, getattr(residuals, "size", 0), double)
    check_array("lm_step: jacobian", jacobian, (residuals.size, theta.size), double)
    if not _ENTRY.address:
        GEMM.load(types.float64)
    want = _on_arrays(_ENTRY.address or _ENTRY.load(), state, theta, residuals, jacobian)
    if want < 0:
        solver_states.refuse("lm_step", want)
    return want


@overload(lm_step, jit_options=FLAGS, strict=False)
def _lm_step(state, theta, residuals, jacobian):
    arrays = ("state", state, 1, True), ("theta", theta, 1, True), ("residuals", residuals, 1, False)
    solver_states.check_types("lm_step", (*arrays, ("jacobian", jacobian, 2, False)))

    def step(state, theta, residuals, jacobian):
        if jacobian.shape[0] != residuals.size or jacobian.shape[1] != theta.size:
            raise ValueError("lm_step: jacobian must have shape (residuals, parameters)")
        entry = find(_FINGERPRINT)
        want = _on_arrays(entry, state, theta, residuals, jacobian) if entry != 0 else solver_states.OUTDATED
        if want < 0:
            solver_states.check_outcome(want)
        return want

    return step


def check_tolerances(function, may_be_none=False, **tolerances):
    """Tolerances as floats of at least 0; None where that is allowed."""
    return {
        name: None if value is None and may_be_none else check_number(f"{function}: {name}", value)
        for name, value in tolerances.items()
    }


def levenberg_marquardt(
    residuals: Callable[[NDArray[Any]], NDArray[Any]],
    jacobian: Callable[[NDArray[Any]], NDArray[Any]],
    start: NDArray[Any],
    gtol: float = 1e-08,
    xtol: float = 1e-08,
    ftol: float = 1e-08,
    max_nfev: int | None = None,
) -> "OptimizeResult":
    """Minimise half the sum of squares of residuals of your own from Python with `lm_step`.

    `least_squares(..., method="marquardt")` does this with the residuals of a plan, and `lm_step` is for your own loop.

    Parameters
    ----------
    residuals : function of theta that returns r(theta), an (m,) float64 array; the search steps back from NaN and
        infinity
    jacobian : function of theta that returns dr/dtheta, an (m, n) float64 array
    start : (n,) float64 array, unchanged
    gtol, xtol, ftol : as `lm_state` takes them
    max_nfev : maximum number of evaluations of the residuals; None for 100 n

    Returns
    -------
    scipy.optimize.OptimizeResult
        x, the best point that was evaluated, with fun, cost, jac, grad and optimality there (the last three None if no
        Jacobian is finite), active_mask, nit, nfev, njev, success, status (0: max_nfev) and message. success is
        True only where a criterion was met at finite numbers.

    Raises
    ------
    TypeError, ValueError
        For an argument, or what a function returns, that does not fit; an exception of theirs propagates.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> def residuals(theta):
    ...     return np.array([10 * (theta[1] - theta[0] ** 2), 1 - theta[0]])
    >>> def jacobian(theta):
    ...     return np.array([[-20 * theta[0], 10.0], [-1.0, 0.0]])
    >>> result = nbprop.levenberg_marquardt(residuals, jacobian, np.array([-1.2, 1.0]))
    >>> result.success, result.x.round(6).tolist()
    (True, [1.0, 1.0])
    """
    from scipy.optimize import OptimizeResult

    function = "levenberg_marquardt"
    check_vector(f"{function}: start", start, getattr(start, "size", 0), np.dtype(np.float64))
    if start.size == 0 or not np.isfinite(start).all():
        raise ValueError(f"{function}: start {'holds NaN or infinity' if start.size else 'has no elements'}")
    check_callable(f"{function}: residuals", residuals)
    check_callable(f"{function}: jacobian", jacobian)
    tolerances = check_tolerances(function, gtol=gtol, xtol=xtol, ftol=ftol)
    most = 100 * start.size if max_nfev is None else check_integer(f"{function}: max_nfev", max_nfev)
    theta, state, want = start.copy(), lm_state(start.size, **tolerances), RESIDUALS
    best, lowest, cost, m = start.copy(), np.inf, np.inf, None
    at_best: Any = None  # the residuals at `best`
    r: Any = None
    matrix: Any = None
    evaluations, jacobians, place = 0, 0, start[:0]
    while want in (RESIDUALS, JACOBIAN):
        if want == RESIDUALS:
            if evaluations == most:
                break
            r = _returned("residuals", residuals(theta.copy()), (m,))
            m, evaluations = r.size, evaluations + 1
            cost = 0.5 * float(r @ r) if np.isfinite(theta).all() else np.inf
            if cost < lowest:
                best, at_best, lowest = theta.copy(), r.copy(), cost
            if matrix is None:
                matrix = np.empty((m, theta.size))
        else:
            matrix = np.ascontiguousarray(_returned("jacobian", jacobian(theta.copy()), (m, theta.size)))
            jacobians, place = jacobians + 1, theta.copy()
        want = lm_step(state, theta, r, matrix)
    ended = want not in (RESIDUALS, JACOBIAN)
    if want == SMALL_STEP and not np.isfinite(cost):
        want = NO_STEP  # the step is small because no point farther away is finite
    if at_best is not None and want not in (NOT_FINITE, OVERFLOW) and not np.array_equal(place, best):
        matrix, place = _returned("jacobian", jacobian(best.copy()), (m, theta.size)), best
        jacobians += 1
    result = OptimizeResult(x=best, fun=r if at_best is None else at_best, cost=lowest, jac=None, grad=None)
    result.update(optimality=None, active_mask=np.zeros(start.size, np.int64))
    if at_best is not None and np.array_equal(place, best) and np.isfinite(matrix).all():
        result.update(jac=matrix, grad=matrix.T @ at_best)
        result.optimality = float(np.abs(result.grad).max())
    result.update(nit=int(state[ITERATIONS]), nfev=evaluations, njev=jacobians)
    result.update(success=ended and want in (GRADIENT, SMALL_STEP, SLOW), status=int(want) if ended else 0)
    result.message = REASONS[want] if ended else f"maximum number of evaluations reached ({most})"
    return result


def _returned(what, array, shape):
    """What a function of the user's returned: a float64 array of this shape, None for any size."""
    if type(without_memmap(array)) is not np.ndarray:
        raise TypeError(f"levenberg_marquardt: {what} must return a float64 array, got {type(array).__name__}")
    wrong = len(array.shape) != len(shape) or any(
        wanted not in (None, size) for size, wanted in zip(array.shape, shape, strict=True)
    )
    if array.dtype != np.float64 or wrong:
        wanted = (
            "(" + ", ".join("m" if size is None else str(size) for size in shape) + ("," if len(shape) == 1 else "")
        )
        raise (ValueError if array.dtype == np.float64 else TypeError)(
            f"levenberg_marquardt: {what} must return a float64 array of shape {wanted}), got {array.dtype} of shape "
            f"{array.shape}"
        )
    return array if array.ndim > 1 else np.ascontiguousarray(array)
