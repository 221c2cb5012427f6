"""The line search of Moré and Thuente (1994, ACM TOMS 20, 286-307), one trial step per call.

It finds a step at which the strong Wolfe conditions hold: f(a) <= f(0) + ftol a f'(0) and |f'(a)| <= gtol |f'(0)|. Its
whole state is a block of float64 numbers, so a search can stop between trials and continue in another call.
"""

import numpy as np

from nbprop.compiler.jit import njit

F0, G0, STAGE, BRACKETED, WIDTH, WIDTH1, STX, FX, GX, STY, FY, GY, STMIN, STMAX, STEP, BACKED = range(16)
WORDS = 16

GO_ON, FOUND, FAILED = 0, 1, 2

_FTOL, _GTOL, _XTOL = 1e-4, 0.9, 1e-16
_LARGEST = 1e20
_MOST_BACKINGS = 40


@njit
def begin(s, step, value, slope):
    """Start a search at `step`, from f(0) and f'(0) < 0. s OUT (WORDS,): the block."""
    s[:WORDS] = 0.0
    s[F0], s[G0], s[STAGE], s[STEP] = value, slope, 1.0, step
    s[WIDTH], s[WIDTH1] = _LARGEST, 2 * _LARGEST
    s[FX], s[GX], s[FY], s[GY] = value, slope, value, slope
    s[STMAX] = 5 * step


@njit
def _largest(a, b, c):
    """The largest magnitude of three numbers."""
    return max(abs(a), abs(b), abs(c))


@njit
def _cubic(stx, fx, gx, st, f, g, sign):
    """(theta, gamma) of the minimiser of the cubic through two points (section 4); `sign` selects the root."""
    theta = 3.0 * (fx - f) / (st - stx) + gx + g
    scale = _largest(theta, gx, g)
    root = scale * np.sqrt(max(0.0, (theta / scale) ** 2 - (gx / scale) * (g / scale)))
    return theta, root * sign


@njit
def _next_step(s, fx, gx, fy, gy, st, f, g):
    """Update the interval and the step (section 4 of the paper); returns the new (fx, gx, fy, gy). s INOUT (WORDS,)."""
    stx, sty = s[STX], s[STY]
    opposite = g * (gx / abs(gx)) < 0
    if f > fx:
        # Case 1: a higher value; the minimum is bracketed.
        theta, root = _cubic(stx, fx, gx, st, f, g, -1.0 if st < stx else 1.0)
        p, q = (root - gx) + theta, ((root - gx) + root) + g
        cubic = stx + p / q * (st - stx)
        square = stx + gx / ((fx - f) / (st - stx) + gx) / 2.0 * (st - stx)
        new = cubic if abs(cubic - stx) <= abs(square - stx) else cubic + (square - cubic) / 2.0
        s[BRACKETED] = 1.0
    elif opposite:
        # Case 2: a lower value, derivatives of opposite sign; bracketed.
        theta, root = _cubic(stx, fx, gx, st, f, g, -1.0 if st > stx else 1.0)
        p, q = (root - g) + theta, ((root - g) + root) + gx
        cubic = st + p / q * (stx - st)
        secant = st + g / (g - gx) * (stx - st)
        new = cubic if abs(cubic - st) > abs(secant - st) else secant
        s[BRACKETED] = 1.0
    elif abs(g) < abs(gx):
        # Case 3: a lower value, a derivative of the same sign that shrinks.
        theta, root = _cubic(stx, fx, gx, st, f, g, -1.0 if st > stx else 1.0)
        p, q = (root - g) + theta, (root + (gx - g)) + root
        ratio = p / q
        far = s[STMAX] if st > stx else s[STMIN]
        cubic = st + ratio * (stx - st) if ratio < 0 and root != 0 else far
        secant = st + g / (g - gx) * (stx - st)
        if s[BRACKETED] != 0:
            new = cubic if abs(cubic - st) < abs(secant - st) else secant
            limit = st + 0.66 * (sty - st)
            new = min(limit, new) if st > stx else max(limit, new)
        else:
            new = cubic if abs(cubic - st) > abs(secant - st) else secant
            new = min(max(new, s[STMIN]), s[STMAX])
    elif s[BRACKETED] != 0:
        # Case 4: a lower value, a derivative of the same sign that does not shrink.
        theta, root = _cubic(sty, fy, gy, st, f, g, -1.0 if st > sty else 1.0)
        p, q = (root - g) + theta, ((root - g) + root) + gy
        new = st + p / q * (sty - st)
    else:
        new = s[STMAX] if st > stx else s[STMIN]
    if f > fx:
        s[STY], fy, gy = st, f, g
    else:
        if opposite:
            s[STY], fy, gy = stx, fx, gx
        s[STX], fx, gx = st, f, g
    s[STEP] = new
    return fx, gx, fy, gy


@njit
def advance(s, value, slope):
    """Take value and slope at s[STEP]; returns FOUND, FAILED, or GO_ON with another s[STEP]. s INOUT (WORDS,)."""
    st = s[STEP]
    if not (np.isfinite(value) and np.isfinite(slope)):
        # f is not finite here: step back towards the best point, and never go as far again.
        s[BACKED] += 1.0
        s[STMAX] = st
        s[STY], s[FY], s[GY] = st, np.inf, 0.0
        s[STEP] = s[STX] + 0.1 * (st - s[STX])
        return FAILED if s[BACKED] > _MOST_BACKINGS else GO_ON
    test = s[F0] + st * _FTOL * s[G0]
    if s[STAGE] == 1.0 and value <= test and slope >= 0:
        s[STAGE] = 2.0
    if value <= test and abs(slope) <= _GTOL * -s[G0]:
        return FOUND
    stuck = s[BRACKETED] != 0 and (st <= s[STMIN] or st >= s[STMAX] or s[STMAX] - s[STMIN] <= _XTOL * s[STMAX])
    if stuck or st >= _LARGEST:
        return FAILED
    tilt = _FTOL * s[G0] if s[STAGE] == 1.0 and value <= s[FX] and value > test else 0.0
    fx, gx, fy, gy = _next_step(
        s,
        s[FX] - s[STX] * tilt,
        s[GX] - tilt,
        s[FY] - s[STY] * tilt,
        s[GY] - tilt,
        st,
        value - st * tilt,
        slope - tilt,
    )
    s[FX], s[GX] = fx + s[STX] * tilt, gx + tilt
    s[FY], s[GY] = fy + s[STY] * tilt, gy + tilt
    if s[BRACKETED] != 0:
        if abs(s[STY] - s[STX]) >= 0.66 * s[WIDTH1]:
            s[STEP] = s[STX] + 0.5 * (s[STY] - s[STX])
        s[WIDTH1], s[WIDTH] = s[WIDTH], abs(s[STY] - s[STX])
        s[STMIN], s[STMAX] = min(s[STX], s[STY]), max(s[STX], s[STY])
    else:
        s[STMIN] = s[STEP] + 1.1 * (s[STEP] - s[STX])
        s[STMAX] = s[STEP] + 4.0 * (s[STEP] - s[STX])
    s[STEP] = min(max(s[STEP], 0.0), _LARGEST)
    narrow = s[BRACKETED] != 0 and s[STMAX] - s[STMIN] <= _XTOL * s[STMAX]
    if narrow or (s[BRACKETED] != 0 and (s[STEP] <= s[STMIN] or s[STEP] >= s[STMAX])):
        s[STEP] = s[STX]
    return GO_ON
