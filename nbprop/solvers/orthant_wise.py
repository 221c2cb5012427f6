"""OWL-QN (Andrew and Gao 2007): L-BFGS on a smooth function f plus sum(c |x|), one trial per call, as in lbfgs.py.

In an orthant the sum is linear, so a step is one of L-BFGS that stays in an orthant: what would change its sign becomes
0. The direction is -H times the pseudo-gradient, without components that point the other way, where H approximates the
inverse Hessian of f alone; which orthant a 0 belongs to follows from its pseudo-gradient. Steps are halved until

    F(x) <= F(x0) + 1e-4 pseudo-gradient . (x - x0).
"""

import numpy as np

from nbprop.compiler.jit import njit
from nbprop.numerics.reductions import row_dot, row_largest, row_sum
from nbprop.solvers import line_search
from nbprop.solvers.lbfgs_parts import (
    EVALUATIONS,
    FTOL,
    GO_ON,
    GRADIENT,
    GTOL,
    ITERATIONS,
    LOSS,
    MEMORY,
    NEWEST,
    NO_STEP,
    NOT_FINITE,
    SLOW,
    STARTED,
    STORED,
    N,
    direction,
    parts_of,
    remember,
    words_of,
)

_STEP, _BACKED = line_search.STEP, line_search.BACKED
_SUFFICIENT, _MOST_HALVINGS = 1e-4, 60


@njit
def _pseudo_gradient(x, g, c):
    """The element of the subdifferential g + c d|x| that is nearest to 0 (equation 4)."""
    if x > 0.0:
        return g + c
    if x < 0.0:
        return g - c
    return g + c if g < -c else (g - c if g > c else 0.0)


@njit
def _move(theta, x0, g0, c, d, step):
    """theta = x0 + step d; 0 where that leaves the orthant of x0 (equation 6), where c > 0. theta OUT (n,)."""
    for i in range(theta.size):
        side = x0[i] if x0[i] != 0.0 else -_pseudo_gradient(x0[i], g0[i], c[i])
        moved = x0[i] + step * d[i]
        theta[i] = 0.0 if c[i] > 0.0 and not moved * side > 0.0 else moved


@njit
def orthant_wise(state, theta, loss, grad):
    """One call of `lbfgs_step` on arrays: state and theta INOUT, grad INOUT (n,), a subgradient where sign(0) = 0."""
    n = int(state[N])
    search, x0, g0, d, steps, changes, rho, alpha = parts_of(state)
    c = state[words_of(n, int(state[MEMORY])) :]
    state[EVALUATIONS] += 1
    for i in range(n):  # the gradient of f
        grad[i] -= c[i] if theta[i] > 0.0 else (-c[i] if theta[i] < 0.0 else 0.0)
    if state[STARTED] == 0:
        if not (np.isfinite(loss) and np.isfinite(row_sum(grad))):
            return NOT_FINITE
        state[STARTED] = 1.0
    else:
        slope = 0.0
        for i in range(n):
            slope += _pseudo_gradient(x0[i], g0[i], c[i]) * (theta[i] - x0[i])
        if loss <= state[LOSS] + _SUFFICIENT * slope and slope < 0.0 and np.isfinite(row_sum(grad)):
            state[ITERATIONS] += 1
            remember(state, theta, grad)
            if state[LOSS] - loss <= state[FTOL] * max(abs(state[LOSS]), abs(loss)) and state[FTOL] > 0:
                return SLOW
        elif search[_BACKED] < _MOST_HALVINGS and slope < 0.0:
            search[_BACKED] += 1.0
            search[_STEP] *= 0.5
            _move(theta, x0, g0, c, d, search[_STEP])
            return GO_ON
        else:
            for i in range(n):
                theta[i], grad[i] = x0[i], g0[i]
            if state[STORED] == 0:
                return NO_STEP
            state[STORED] = 0.0
            loss = state[LOSS]
    state[LOSS] = loss
    for i in range(n):
        x0[i], g0[i] = theta[i], grad[i]
        grad[i] = _pseudo_gradient(theta[i], grad[i], c[i])
    if row_largest(grad) <= state[GTOL]:
        return GRADIENT
    direction(d, grad, steps, changes, rho, alpha, int(state[MEMORY]), int(state[STORED]), int(state[NEWEST]))
    for i in range(n):
        if c[i] > 0.0 and d[i] * grad[i] >= 0.0:
            d[i] = 0.0
    slope = row_dot(grad, d)
    if not slope < 0:
        state[STORED] = 0.0
        for i in range(n):
            d[i] = -grad[i]
        slope = -row_dot(grad, grad)
    search[_BACKED] = 0.0
    search[_STEP] = min(1.0, 1.0 / np.sqrt(-slope)) if state[STORED] == 0 else 1.0
    _move(theta, x0, g0, c, d, search[_STEP])
    return GO_ON
