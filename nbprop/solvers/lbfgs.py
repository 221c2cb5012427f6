"""L-BFGS in compiled code, for any objective: the caller evaluates, `lbfgs_step` returns where to evaluate next.

Nocedal and Wright 2006, algorithms 7.4 and 7.5, with the line search of Moré and Thuente (line_search.py). The solver
never calls the objective: it takes the loss and gradient at theta, and moves theta to the next point. So it needs no
function as an argument, works on any loss in any compiled loop, can stop and resume anywhere, and a thousand searches
can run side by side. Its whole state is one flat float64 vector.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from nbprop.arrays import check_vector, refuse_subclass
from nbprop.compiler.intrinsics import address_of, array_at, as_frame, indirect_call
from nbprop.compiler.jit import FLAGS, njit
from nbprop.compiler.native import CompiledEntry
from nbprop.compiler.registry import find
from nbprop.numerics.reductions import row_dot, row_largest, row_sum
from nbprop.solvers import line_search
from nbprop.solvers import states as solver_states
from nbprop.solvers.lbfgs_parts import (
    EVALUATIONS,
    FTOL,
    GO_ON,
    GRADIENT,
    GTOL,
    HEAD,
    ITERATIONS,
    LOSS,
    MEMORY,
    NEWEST,
    NO_STEP,
    NOT_FINITE,
    SEARCH,
    SLOW,
    STARTED,
    STORED,
    N,
    direction,
    parts_of,
    remember,
    words_of,
)
from nbprop.solvers.orthant_wise import orthant_wise
from nbprop.solvers.states import overlap, whole
from nbprop.validation import check_callable, check_integer, check_number, shown

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

REASONS = (
    "continues",
    "the largest component of the gradient is at most gtol",
    "the loss decreases by at most a fraction ftol of itself",
    "the line search finds no lower point",
    "the loss or its gradient at the start is not finite",
)


def lbfgs_state(
    n_params: int,
    memory: int = 10,
    gtol: float = 1e-08,
    ftol: float = 0.0,
    l1: float | NDArray[Any] | None = None,
) -> NDArray[Any]:
    """A new state for `lbfgs_step`: a float64 vector of (2 memory + 3) n_params + 2 memory numbers and a head.

    n_params : int
    memory : int, how many past steps the Hessian is approximated from
    gtol : stop when no component of the gradient is larger
    ftol : stop when an iteration lowers the loss by at most this fraction of it; 0: never
    l1 : None, or a number or (n_params,) float64 array of none below 0: the loss has the term sum(l1 |theta|), which is
        not smooth; steps are then those of OWL-QN (orthant_wise.py), which sets parameters to 0. The state has n_params
        numbers more.

    >>> import nbprop
    >>> state = nbprop.lbfgs_state(1249)
    """
    n, memory = check_integer("lbfgs_state: n_params", n_params), check_integer("lbfgs_state: memory", memory)
    gtol, ftol = check_number("lbfgs_state: gtol", gtol), check_number("lbfgs_state: ftol", ftol)
    state = np.zeros(words_of(n, memory))
    state[[N, MEMORY, GTOL, FTOL]] = n, memory, gtol, ftol
    return state if l1 is None else np.concatenate([state, _factors(l1, n)])


def _factors(l1, n):
    """The factors of l1, (n,) float64."""
    if not isinstance(l1, np.ndarray):
        return np.full(n, check_number("lbfgs_state: l1", l1))
    check_vector("lbfgs_state: l1", l1, n, np.dtype(np.float64))
    if not (np.isfinite(l1).all() and l1.min() >= 0):
        raise ValueError("lbfgs_state: l1 must hold finite numbers, none below 0")
    return l1


@njit
def _advance(state, theta, loss, grad):
    """One call of `lbfgs_step` on arrays: state and theta INOUT, grad INOUT (n,)."""
    n, memory = int(state[N]), int(state[MEMORY])
    if state.size > words_of(n, memory):
        return orthant_wise(state, theta, loss, grad)
    search, x0, g0, d, steps, changes, rho, alpha = parts_of(state)
    state[EVALUATIONS] += 1
    if state[STARTED] == 0:
        # Later, a gradient that is not finite has no finite slope either, and the line search steps back.
        if not (np.isfinite(loss) and np.isfinite(row_sum(grad))):
            return NOT_FINITE
        state[STARTED] = 1.0
    else:
        outcome = line_search.advance(search, loss, row_dot(grad, d))
        if outcome == line_search.GO_ON:
            for i in range(n):
                theta[i] = x0[i] + search[line_search.STEP] * d[i]
            return GO_ON
        if outcome == line_search.FAILED and not loss < state[LOSS]:
            # Restart with steepest descent, unless that is what has just failed.
            for i in range(n):
                theta[i], grad[i] = x0[i], g0[i]
            if state[STORED] == 0:
                return NO_STEP
            state[STORED] = 0.0
            loss = state[LOSS]
        else:
            state[ITERATIONS] += 1
            remember(state, theta, grad)
            if state[LOSS] - loss <= state[FTOL] * max(abs(state[LOSS]), abs(loss)) and state[FTOL] > 0:
                return SLOW
    if row_largest(grad) <= state[GTOL]:
        return GRADIENT
    state[LOSS] = loss
    for i in range(n):
        x0[i], g0[i] = theta[i], grad[i]
    direction(d, grad, steps, changes, rho, alpha, memory, int(state[STORED]), int(state[NEWEST]))
    slope = row_dot(grad, d)
    if not slope < 0:
        state[STORED] = 0.0
        for i in range(n):
            d[i] = -grad[i]
        slope = -row_dot(grad, grad)
    first = min(1.0, 1.0 / np.sqrt(-slope)) if state[STORED] == 0 else 1.0
    line_search.begin(search, first, loss, slope)
    for i in range(n):
        theta[i] = x0[i] + first * d[i]
    return GO_ON


@njit
def _check(state, words, theta, grad, n):
    """0, or what is wrong with the arguments of `lbfgs_entry`."""
    if n < 1 or words < HEAD:
        return solver_states.LENGTH
    head = array_at(as_frame(0, np.float64), state, HEAD)
    memory = head[MEMORY]
    if not (whole(memory, 1, words) and whole(head[N], 1, words)):
        return solver_states.DAMAGED
    if head[N] != n or (words != words_of(n, int(memory)) and words != words_of(n, int(memory)) + n):
        return solver_states.LENGTH
    if not (whole(head[STORED], 0, memory) and whole(head[NEWEST], 0, memory - 1)):
        return solver_states.DAMAGED
    apart = not (overlap(state, words, theta, n) or overlap(state, words, grad, n) or overlap(theta, n, grad, n))
    return 0 if apart else solver_states.ALIASED


def lbfgs_entry(state, words, theta, grad, n, loss):
    """`_advance` on addresses, as compiled code calls it; a negative number when the arguments do not fit."""
    wrong = _check(state, words, theta, grad, n)
    if wrong != 0:
        return wrong
    numbers = as_frame(0, np.float64)
    return _advance(array_at(numbers, state, words), array_at(numbers, theta, n), loss, array_at(numbers, grad, n))


_signature = types.int64(*(types.int64,) * 5, types.float64)
_ENTRY = CompiledEntry(lbfgs_entry, lambda dtype: _signature)
_FINGERPRINT = np.int64(_ENTRY.fingerprint())
_call = indirect_call(_signature)


@njit
def step_on_arrays(entry, state, theta, grad, loss):
    """Call the compiled step at an address on arrays."""
    vectors = address_of(state), state.size, address_of(theta), address_of(grad), theta.size
    return _call(entry, (*vectors, loss))[1]


def lbfgs_step(state: NDArray[Any], theta: NDArray[Any], loss: float, grad: NDArray[Any]) -> int:
    """Take the loss and the gradient at theta, and move theta to the next point to evaluate.

    Parameters
    ----------
    state : float64 vector from `lbfgs_state`
    theta : (n_params,) float64 array, overwritten
    loss : float, at theta; if it is not finite, the search steps back
    grad : (n_params,) float64 array, the gradient at theta; overwritten. For a state with l1, loss and grad are those
        of a plan with l1: the whole loss, and a subgradient with sign(0) = 0

    Returns
    -------
    int
        0 to continue: evaluate at the new theta and call again. Otherwise theta is the result, and this is the reason:
        `nbprop.solvers.REASONS[number]`. state[nbprop.solvers.ITERATIONS] counts iterations.

    Raises
    ------
    TypeError, ValueError
        For an array that does not fit; in @njit a wrong dtype or order is a typing error, a wrong length a ValueError.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> theta = np.array([3.0, -2.0])
    >>> state = nbprop.lbfgs_state(2)
    >>> while nbprop.lbfgs_step(state, theta, theta @ theta, 2 * theta) == 0:
    ...     pass
    >>> np.abs(theta).max() < 1e-8
    np.True_
    """
    double = np.dtype(np.float64)
    check_vector("lbfgs_step: theta", theta, getattr(theta, "size", 0), double, written=True)
    check_vector("lbfgs_step: grad", grad, theta.size, double, written=True)
    check_vector("lbfgs_step: state", state, getattr(state, "size", 0), double, written=True)
    if isinstance(loss, bool) or not isinstance(loss, (int, float, np.integer, np.floating)):
        raise TypeError(f"lbfgs_step: loss must be a number, got {type(loss).__name__}")
    outcome = step_on_arrays(load_step(), state, theta, grad, float(loss))
    if outcome < 0:
        solver_states.refuse("lbfgs_step", outcome)
    return outcome


def load_step():
    """The address of the compiled step."""
    return _ENTRY.address or _ENTRY.load()


@overload(lbfgs_step, jit_options=FLAGS, strict=False)
def _lbfgs_step(state, theta, loss, grad):
    arrays = (("state", state), ("theta", theta), ("grad", grad))
    solver_states.check_types("lbfgs_step", [(name, found, 1, True) for name, found in arrays])

    def step(state, theta, loss, grad):
        if grad.size != theta.size:
            raise ValueError("lbfgs_step: grad must have as many elements as theta")
        entry = find(_FINGERPRINT)
        outcome = step_on_arrays(entry, state, theta, grad, float(loss)) if entry != 0 else solver_states.OUTDATED
        if outcome < 0:
            solver_states.check_outcome(outcome)
        return outcome

    return step


# A whole search of `lbfgs` in one vector: the last outcome, the lowest loss, the vector of `lbfgs_state`, the next
# point, the best point and its gradient.
OUTCOME, LOWEST, _STATE = range(3)


@njit
def search_parts(search, n):
    """(state, next point, best point, its gradient): views of the vector of a search."""
    a, b, c = search.size - 3 * n, search.size - 2 * n, search.size - n
    return search[_STATE:a], search[a:b], search[b:c], search[c:]


def lbfgs_search(start, memory=10, gtol=1e-8, ftol=0.0, l1=None, resume=None):
    """A vector for `run_search` to work in: a new search, or the copy of an earlier one to resume.

    A search that had ended is resumed with its approximation of the curvature.
    """
    state = lbfgs_state(start.size, memory, gtol, ftol, l1)
    if resume is None:
        return np.concatenate([[GO_ON, np.inf], state, start, start, np.zeros(start.size)])
    check_search("lbfgs", resume, start.size)
    search = resume.copy()
    search[[_STATE + GTOL, _STATE + FTOL]] = gtol, ftol
    if search[OUTCOME] != GO_ON:
        search[OUTCOME], search[_STATE + STARTED] = GO_ON, 0.0
    return search


def check_search(function, search, n):
    """Check every number of a search over n parameters that becomes an index, a size or a result; ValueError."""
    refuse_subclass(f"{function}: resume", search)
    known = isinstance(search, np.ndarray)
    if not known or search.dtype != np.float64 or search.size <= _STATE + HEAD:
        got = f"{search.dtype} array of shape {search.shape}" if known else shown(search)
        raise ValueError(f"{function}: resume must be the state of an earlier search over {n} parameters, got {got}")
    head = search[_STATE : _STATE + HEAD]
    memory = int(head[MEMORY]) if 1 <= head[MEMORY] <= search.size else 0
    whole_size = _STATE + words_of(n, memory) + 3 * n
    if search.ndim != 1 or search.size not in (whole_size, whole_size + n):
        raise ValueError(
            f"{function}: resume must be the state of an earlier search over {n} parameters, got a state of shape "
            f"{search.shape} for {head[N]:g} parameters and a memory of {head[MEMORY]:g}"
        )
    far, block = float(1 << 53), head[SEARCH:]
    for name, value, least, most in (
        ("outcome", search[OUTCOME], GO_ON, NOT_FINITE),
        ("number of parameters", head[N], n, n),
        ("memory", head[MEMORY], memory, memory),
        ("number of steps kept", head[STORED], 0, memory),
        ("newest step", head[NEWEST], 0, memory - 1),
        ("start", head[STARTED], 0, 1),
        ("iterations", head[ITERATIONS], 0, far),
        ("evaluations", head[EVALUATIONS], 0, far),
        ("stage of the line search", block[line_search.STAGE], 0, 2),
        ("bracket of the line search", block[line_search.BRACKETED], 0, 1),
        ("steps back of the line search", block[line_search.BACKED], 0, far),
    ):
        if not (least <= value <= most and value == np.floor(value)):
            raise ValueError(f"{function}: resume holds {value:g} as its {name}, which must be in {least:g}..{most:g}")
    state, _, best, at_best = search_parts(search, n)
    parts = {"last point and its gradient": state[HEAD : HEAD + 2 * n]}
    parts["steps and their changes"] = state[HEAD + 3 * n : HEAD + (3 + 2 * memory) * n]
    parts["factors of l1"] = state[words_of(n, memory) :]
    parts |= {"loss": head[LOSS : LOSS + 1], "best point": best, "gradient at the best point": at_best}
    for name, part in parts.items():
        if not np.isfinite(part).all():
            raise ValueError(f"{function}: resume holds NaN or infinity in its {name}")
    if np.isnan(search[LOWEST]) or search[LOWEST] == -np.inf:
        raise ValueError(f"{function}: resume holds {search[LOWEST]} as its lowest loss")


def lbfgs(
    fun: Callable[[NDArray[Any]], tuple[float, NDArray[Any]]],
    start: NDArray[Any],
    memory: int = 10,
    gtol: float = 1e-08,
    ftol: float = 0.0,
    maxiter: int = 1000,
    callback: Callable[["OptimizeResult"], Any] | None = None,
) -> "OptimizeResult":
    """Minimise a function of your own from Python with `lbfgs_step`.

    `minimize(..., method="L-BFGS")` does this with the loss of a plan, and `lbfgs_step` is for your own loop.

    Parameters
    ----------
    fun : function of theta, an (n,) float64 array of its own, that returns (loss, gradient): a number and an (n,)
        float64 array; where they are not finite the search steps back
    start : (n,) float64 array, finite, unchanged
    memory, gtol, ftol : as `lbfgs_state` takes them
    maxiter : maximum number of iterations
    callback : called after each iteration with an OptimizeResult of x, the best point so far, fun and nit

    Returns
    -------
    scipy.optimize.OptimizeResult
        x, the point with the lowest loss that was evaluated, with fun and jac there; nit, nfev, njev, success, status
        and message.

    Raises
    ------
    TypeError, ValueError
        For an argument, or what `fun` returns, that does not fit; its own exceptions propagate.

    Examples
    --------
    >>> import nbprop, numpy as np
    >>> result = nbprop.lbfgs(lambda theta: (float(((theta - 1) ** 2).sum()), 2 * (theta - 1)), np.array([3.0, -4.0]))
    >>> result.success, result.x.round(6).tolist()
    (True, [1.0, 1.0])
    """
    check_vector("lbfgs: start", start, getattr(start, "size", 0), np.dtype(np.float64))
    if start.size == 0 or not np.isfinite(start).all():
        raise ValueError(f"lbfgs: start {'holds NaN or infinity' if start.size else 'has no elements'}")
    check_callable("lbfgs: fun", fun)
    check_callable("lbfgs: callback", callback, or_none=True)
    maxiter, memory = check_integer("lbfgs: maxiter", maxiter), check_integer("lbfgs: memory", memory)
    gtol, ftol = check_number("lbfgs: gtol", gtol), check_number("lbfgs: ftol", ftol)

    def checked(theta):
        found = fun(theta)
        if not isinstance(found, tuple) or len(found) != 2:
            raise TypeError(f"lbfgs: fun must return (loss, gradient), got {shown(found)}")
        loss, gradient = found
        if isinstance(loss, (bool, str)) or np.ndim(loss) != 0 or not np.isreal(loss):
            raise TypeError(f"lbfgs: the loss that fun returns must be a number, got {shown(loss)}")
        check_vector("lbfgs: the gradient that fun returns", gradient, start.size, np.dtype(np.float64))
        return float(loss), gradient.copy()  # which the step writes to

    return run_search(checked, lbfgs_search(start, memory, gtol, ftol), start.size, maxiter, callback)


def run_search(fun, search, n, maxiter, callback=None, bursts=None):
    """Minimise fun(theta) -> (loss, float64 gradient) over n parameters; a scipy OptimizeResult.

    search: a vector from `lbfgs_search` to work in; it holds the complete state at any time, so a stopped search can be
    resumed from it. callback(intermediate_result) is called after each iteration. bursts: after the first evaluation,
    bursts.run(...) replaces fun and callback (lbfgs_bursts.py).
    """
    from scipy.optimize import OptimizeResult

    state, theta, best, at_best = search_parts(search, n)
    begun, iterations, evaluations, outcome = int(state[ITERATIONS]), 0, 0, GO_ON
    while evaluations == 0 or (outcome == GO_ON and iterations < maxiter):
        if bursts is not None and evaluations > 0:
            evaluations += bursts.run(begun + maxiter)
            outcome, iterations = int(search[OUTCOME]), int(state[ITERATIONS]) - begun
            continue
        at = theta.copy()
        loss, gradient = fun(at)
        evaluations += 1
        if loss < search[LOWEST]:
            search[LOWEST], best[:], at_best[:] = loss, at, gradient
        outcome = search[OUTCOME] = lbfgs_step(state, theta, loss, gradient)
        if int(state[ITERATIONS]) - begun > iterations:
            iterations = int(state[ITERATIONS]) - begun
            if callback is not None:
                callback(OptimizeResult(x=best.copy(), fun=float(search[LOWEST]), nit=iterations))
    reached = outcome == GO_ON
    message = f"maximum number of iterations reached ({maxiter})" if reached else REASONS[outcome]
    success = not reached and outcome in (GRADIENT, SLOW)
    result = OptimizeResult(x=best.copy(), fun=float(search[LOWEST]), jac=at_best.copy(), nit=iterations)
    result.update(nfev=evaluations, njev=evaluations, status=int(outcome) if not reached else 1)
    result.update(success=success, message=message)
    return result
