"""Levenberg-Marquardt in compiled code, for any residuals: the caller evaluates, `lm_step` says what it wants next.

Each step solves (J^T J + damping D) d = -J^T r, D the largest diagonal of J^T J seen (Moré 1978, section 3); the
damping follows Nielsen 1999 (IMM-REP-1999-05, section 2.1). As in solvers.py the solver calls nobody and remembers all
in one flat vector.
"""

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

from nbprop.checks import check_vector
from nbprop.jit import FLAGS, Untyped, find, njit
from nbprop.network import positive
from nbprop.numerics.gemm import ZERO
from nbprop.numerics.intrinsics import address_of, array_at, as_frame, indirect_call
from nbprop.numerics.product import GEMM, product
from nbprop.numerics.tile import pointer

# What lm_step returns: what to evaluate at theta, or why it ended.
RESIDUALS, JACOBIAN = 1, 2
GRADIENT, SMALL_STEP, SLOW, NO_STEP, NOT_FINITE = range(3, 8)
REASONS = {
    GRADIENT: "the largest component of J^T r is at most gtol",
    SMALL_STEP: "the step is at most xtol of theta",
    SLOW: "the cost falls by at most ftol of itself",
    NO_STEP: "no damping gives a lower cost",
    NOT_FINITE: "the residuals at the start are not finite",
}

# The state's head; behind it theta, gradient, step, scale (n each), J^T J and its factor (n x n each).
_N, _PHASE, _DAMPING, _GROWTH, COST, ITERATIONS, EVALUATIONS, _PREDICTED, _GTOL, _XTOL, _FTOL = range(11)
_HEAD = 11
_STARTING, _TRYING, _ACCEPTED = 0, 1, 2
_FIRST_DAMPING, _LARGEST_DAMPING = 1e-3, 1e32


def _words(n):
    return _HEAD + 4 * n + 2 * n * n


def lm_state(n_params, gtol=1e-8, xtol=1e-8, ftol=1e-8):
    """A new state for `lm_step`: a float64 vector of 2 n_params^2 + 4 n_params numbers and a head.

    n_params : int
    gtol : stop when no component of J^T r is larger
    xtol : stop when a step is at most this fraction of theta
    ftol : stop when a step lowers the cost by at most this fraction of it, as predicted

    >>> import nbprop
    >>> state = nbprop.lm_state(61)
    """
    n = positive("n_params", n_params)
    state = np.zeros(_words(n))
    for name, place, value in (("gtol", _GTOL, gtol), ("xtol", _XTOL, xtol), ("ftol", _FTOL, ftol)):
        if not 0 <= value < np.inf:
            raise ValueError(f"lm_state: {name} must be at least 0 and finite, got {value!r}")
        state[place] = value
    state[_N] = n
    return state


@njit
def _factor(lower, matrix, scale, damping, n):
    """lower = the Cholesky factor of matrix + damping diag(scale), (n, n) row-major; False if that is not positive."""
    for i in range(n):
        row_i = lower[i * n : (i + 1) * n]
        for j in range(i + 1):
            row_j = lower[j * n : (j + 1) * n]
            total = matrix[i * n + j]
            if i == j:
                total += damping * scale[i]
            for k in range(j):
                total -= row_i[k] * row_j[k]
            if i == j:
                if not total > 0:
                    return False
                row_i[i] = np.sqrt(total)
            else:
                row_i[j] = total / row_j[j]
    return True


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
def _propose(state, theta, x0, g, d, scale, matrix, lower, n):
    """Move theta to the next trial point; RESIDUALS, or why there is none."""
    while True:
        if state[_DAMPING] > _LARGEST_DAMPING:
            for i in range(n):
                theta[i] = x0[i]
            return NO_STEP
        if _factor(lower, matrix, scale, state[_DAMPING], n):
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
    if state[_PHASE] == _ACCEPTED:
        a, r, j = pointer(matrix, 0), pointer(residuals, 0), pointer(jacobian, 0)
        product((a, n, j, 1, n, j, n, n, n, m, ZERO, a, a, 0, 1))
        product((pointer(g, 0), 1, j, 1, n, r, 1, n, 1, m, ZERO, a, a, 0, 1))
        top = 0.0
        for i in range(n):
            top = max(top, abs(g[i]))
            scale[i] = max(scale[i], matrix[i * n + i])
            # A parameter that nothing depends on yet is held by the damping alone.
            scale[i] = scale[i] if scale[i] > 0 else 1.0
            x0[i] = theta[i]
        if top <= state[_GTOL]:
            return GRADIENT
        return _propose(state, theta, x0, g, d, scale, matrix, lower, n)
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
            return _propose(state, theta, x0, g, d, scale, matrix, lower, n)
        state[ITERATIONS] += 1
        state[_DAMPING] *= max(1.0 / 3.0, 1.0 - (2.0 * ratio - 1.0) ** 3)
        state[_GROWTH] = 2.0
        slow = state[_PREDICTED] <= state[_FTOL] * state[COST] and state[COST] - cost <= state[_FTOL] * state[COST]
        if slow:
            state[COST] = cost
            return SLOW
    state[COST], state[_PHASE] = cost, _ACCEPTED
    return JACOBIAN


def lm_entry(state, theta, residuals, jacobian, m):
    """`_advance` on addresses, as compiled code calls it."""
    numbers = as_frame(0, np.float64)
    n = int(array_at(numbers, state, _HEAD)[_N])
    whole = array_at(numbers, state, _HEAD + 4 * n + 2 * n * n)
    r, j = array_at(numbers, residuals, m), array_at(numbers, jacobian, m * n)
    return _advance(whole, array_at(numbers, theta, n), r, j)


_signature = types.int64(types.int64, types.int64, types.int64, types.int64, types.int64)
_ENTRY = Untyped(lm_entry, lambda dtype: _signature)
_FINGERPRINT = np.int64(_ENTRY.fingerprint())
_call = indirect_call(_signature)


@njit
def _from_python(entry, state, theta, residuals, jacobian):
    addresses = address_of(state), address_of(theta), address_of(residuals), address_of(jacobian)
    return _call(entry, (*addresses, residuals.size))[1]


def lm_step(state, theta, residuals, jacobian):
    """Take what was asked for at theta; move theta, and say what is wanted there next.

    Parameters
    ----------
    state : float64 vector from `lm_state`
    theta : (n_params,) float64 array, overwritten
    residuals : (m,) float64 array r(theta)
    jacobian : (m, n_params) float64 array dr/dtheta, read only when it was asked for

    Returns
    -------
    int
        1: evaluate the residuals at theta and call again (so it begins); 2: evaluate the Jacobian at theta, whose
        residuals stand. Else theta is the result, and `nbprop.marquardt.REASONS[number]` is the reason. The cost is
        half the sum of squares.

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
    check_vector("lm_step", "theta", theta, getattr(theta, "size", 0), double, written=True)
    check_vector("lm_step", "state", state, _words(theta.size), double, written=True)
    check_vector("lm_step", "residuals", residuals, getattr(residuals, "size", 0), double)
    shape = residuals.size, theta.size
    fits = isinstance(jacobian, np.ndarray) and jacobian.shape == shape and jacobian.dtype == double
    if not (fits and jacobian.flags.c_contiguous):
        got = f"{jacobian.dtype} {jacobian.shape}" if isinstance(jacobian, np.ndarray) else type(jacobian).__name__
        raise ValueError(f"lm_step: jacobian must be a contiguous float64 array of shape {shape}, got {got}")
    if not _ENTRY.address:
        GEMM.load(types.float64)
    return _from_python(_ENTRY.address or _ENTRY.load(), state, theta, residuals, jacobian)


@overload(lm_step, jit_options=FLAGS, strict=False)
def _lm_step(state, theta, residuals, jacobian):
    for name, found, rank in (
        ("state", state, 1),
        ("theta", theta, 1),
        ("residuals", residuals, 1),
        ("jacobian", jacobian, 2),
    ):
        if not (isinstance(found, types.Array) and found.ndim == rank and found.layout == "C"):
            raise TypingError(f"nbprop.lm_step: {name} must be a contiguous array of {rank} axes, got {found}")
        if found.dtype != types.float64:
            raise TypingError(f"nbprop.lm_step: {name} must hold float64, got {found.dtype}")

    def step(state, theta, residuals, jacobian):
        n, m = theta.size, residuals.size
        if state.size != _HEAD + 4 * n + 2 * n * n or jacobian.shape[0] != m or jacobian.shape[1] != n:
            raise ValueError("lm_step: state, theta, residuals and jacobian do not fit; nbprop.lm_state makes state")
        entry = find(_FINGERPRINT)
        if entry == 0:
            raise RuntimeError(
                "this function was cached with another version of nbprop; clear the cache of your own functions"
            )
        addresses = address_of(state), address_of(theta), address_of(residuals), address_of(jacobian)
        return _call(entry, (*addresses, m))[1]

    return step


def levenberg_marquardt(residuals, jacobian, start, gtol=1e-8, xtol=1e-8, ftol=1e-8, max_nfev=None):
    """Minimise half the sum of squares from Python with `lm_step`; a scipy OptimizeResult as least_squares gives it.

    residuals(theta) -> (m,), jacobian(theta) -> (m, n), both float64. `least_squares(..., method="marquardt")` runs it.
    """
    from scipy.optimize import OptimizeResult

    theta, state, want = start.copy(), lm_state(start.size, gtol, xtol, ftol), RESIDUALS
    most = 100 * start.size if max_nfev is None else max_nfev
    best, r, lowest = start.copy(), None, np.inf
    evaluations, jacobians, matrix = 0, 0, None
    while want in (RESIDUALS, JACOBIAN):
        if want == RESIDUALS:
            if evaluations == most:
                break
            r = residuals(theta)
            evaluations += 1
            cost = 0.5 * float(r @ r)
            if cost < lowest:
                best, lowest = theta.copy(), cost
            matrix = np.empty((r.size, theta.size)) if matrix is None else matrix
        else:
            matrix = np.ascontiguousarray(jacobian(theta))
            jacobians += 1
        want = lm_step(state, theta, r, matrix)
    ended = want not in (RESIDUALS, JACOBIAN)
    r = residuals(best)
    result = OptimizeResult(x=best, fun=r, cost=0.5 * float(r @ r), grad=matrix.T @ r, nfev=evaluations, njev=jacobians)
    message = REASONS[want] if ended else f"{most} evaluations, the most allowed"
    result.update(
        success=ended and want in (GRADIENT, SMALL_STEP, SLOW), status=int(want) if ended else 0, message=message
    )
    return result
