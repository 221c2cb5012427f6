"""The state of L-BFGS as one flat float64 vector, and its two loops: what the smooth and the orthant-wise step share.

The vector: a head of sizes and progress with the block of the line search, then the last point, its gradient and the
direction (n each), the last steps and the changes of the gradient along them (memory x n each), two numbers for each of
these, and, where there are l1 penalties, their factors (n).
"""

from nbprop.compiler.jit import njit
from nbprop.numerics.reductions import row_dot
from nbprop.solvers import line_search

# What a step returns.
GO_ON, GRADIENT, SLOW, NO_STEP, NOT_FINITE = range(5)

# The head of the state: sizes and progress, then the block of the line search; the vectors follow it.
N, MEMORY, STORED, NEWEST, STARTED, ITERATIONS, EVALUATIONS, LOSS, GTOL, FTOL = range(10)
SEARCH = 10
HEAD = SEARCH + line_search.WORDS


@njit
def words_of(n, memory):
    """Elements of the state vector without l1's factors."""
    return HEAD + (2 * memory + 3) * n + 2 * memory


@njit
def parts_of(state):
    """(block of the line search, x0, g0, d, steps, changes, rho, alpha): views of the state; see `direction`."""
    n, memory = int(state[N]), int(state[MEMORY])
    vectors, pairs = HEAD + 3 * n, HEAD + (3 + 2 * memory) * n
    x0, g0, d = state[HEAD : HEAD + n], state[HEAD + n : HEAD + 2 * n], state[HEAD + 2 * n : vectors]
    steps, changes = state[vectors : vectors + memory * n], state[vectors + memory * n : pairs]
    return (
        state[SEARCH:HEAD],
        x0,
        g0,
        d,
        steps,
        changes,
        state[pairs : pairs + memory],
        state[pairs + memory :][:memory],
    )


@njit
def remember(state, theta, grad):
    """Keep the step from the last point to theta and the change of the gradient, where the curvature along it is.

    state INOUT, the whole vector (words,); theta, grad IN (n,).
    """
    n, memory = int(state[N]), int(state[MEMORY])
    _, x0, g0, _, steps, changes, rho, _ = parts_of(state)
    newest = (int(state[NEWEST]) + 1) % memory
    s, y = steps[newest * n : (newest + 1) * n], changes[newest * n : (newest + 1) * n]
    for i in range(n):
        s[i] = theta[i] - x0[i]
        y[i] = grad[i] - g0[i]
    curvature = row_dot(s, y)
    if curvature > 2.2e-16 * row_dot(y, y):
        rho[newest] = 1.0 / curvature
        state[NEWEST] = newest
        state[STORED] = min(state[STORED] + 1, memory)


@njit
def _add_scaled(y, scale, x):
    """y += scale x. y INOUT, x IN (n,)."""
    for i in range(y.size):
        y[i] += scale * x[i]


@njit
def direction(d, g, steps, changes, rho, alpha, memory, stored, newest):
    """d = -H g by the two-loop recursion (algorithm 7.4); H starts as s.y / y.y times the identity (equation 7.20).

    d OUT, g IN (n,); steps and changes IN (memory, n): the last s and y, of which `stored` are valid up to `newest`;
    rho IN (memory,): 1 / s.y; alpha OUT (memory,).
    """
    n = d.size
    for i in range(n):
        d[i] = -g[i]
    for back in range(stored):
        k = (newest - back) % memory
        alpha[k] = rho[k] * row_dot(steps[k * n : (k + 1) * n], d)
        _add_scaled(d, -alpha[k], changes[k * n : (k + 1) * n])
    if stored > 0:
        y = changes[newest * n : (newest + 1) * n]
        scale = 1.0 / (rho[newest] * row_dot(y, y))
        for i in range(n):
            d[i] *= scale
    for back in range(stored - 1, -1, -1):
        k = (newest - back) % memory
        beta = rho[k] * row_dot(changes[k * n : (k + 1) * n], d)
        _add_scaled(d, alpha[k] - beta, steps[k * n : (k + 1) * n])
