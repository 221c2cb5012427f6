"""The minimum-fuel landing as optimal control: throttle, angle and time by SLSQP, with exact gradients by adjoints."""

import collections

import numba
import numpy as np
import scipy.optimize
from landing.dynamics import EXHAUST, GRAVITY, STEPS, THRUST, fly, fly_back

import nbprop

SCALE = np.array([100.0, 100.0, 10.0, 10.0, 100.0])  # of the state, for SLSQP
OpenLoop = collections.namedtuple("OpenLoop", "controls dt gradient weight costates")


@numba.njit
def open_step(after, s, t, data):
    fly(after, s, data.controls[t, 0], data.controls[t, 1], data.dt[0])


@numba.njit
def open_adjoint(lam, lam_after, s, t, data):
    by = fly_back(lam, lam_after, s, data.controls[t, 0], data.controls[t, 1], data.dt[0])
    data.gradient[2 * t], data.gradient[2 * t + 1] = by[0], by[1]
    data.gradient[-1] += by[2]
    data.costates[t] = lam_after


@numba.njit
def terminal(lam, s, t, data):
    if t == data.controls.shape[0]:
        lam += data.weight


def least_fuel(start, landing, steepest):
    """(controls (STEPS, 2), states, step in s, switching function, primer's angle (STEPS,)) of a minimum-fuel landing.

    landing: which components of the state must end at 0; steepest: the largest angle of the thrust.
    """
    data = OpenLoop(np.zeros((STEPS, 2)), np.ones(1), np.zeros(2 * STEPS + 1), np.zeros(5), np.zeros((STEPS, 5)))
    kept, segment, lam = nbprop.rollout_buffers(STEPS, 5)

    def simulate(theta):
        data.controls[:], data.dt[0] = theta[:-1].reshape(-1, 2), theta[-1]
        return nbprop.rollout(open_step, start, STEPS, kept, segment, data) / SCALE

    def gradient(theta, weight):
        """Of weight . (final state / SCALE), by one adjoint sweep."""
        simulate(theta)
        data.gradient[:], data.weight[:] = 0, weight / SCALE
        nbprop.rollout_adjoint(open_step, open_adjoint, terminal, STEPS, kept, segment, lam, data)
        return data.gradient.copy()

    def rows(theta):
        return np.stack([gradient(theta, np.eye(5)[k]) for k in landing])

    fuel, low, high = np.array([0, 0, 0, 0, -1.0]), [0, -steepest] * STEPS + [0.3], [1, steepest] * STEPS + [3.0]
    found = scipy.optimize.minimize(
        lambda theta: fuel @ simulate(theta),
        np.append(np.tile([0.5, 0.0], STEPS), 1.0),
        jac=lambda theta: gradient(theta, fuel),
        method="SLSQP",
        bounds=scipy.optimize.Bounds(low, high),
        constraints={"type": "eq", "fun": lambda theta: simulate(theta)[landing], "jac": rows},
        options={"maxiter": 300, "ftol": 1e-10},
    )
    theta = found.x
    # The multipliers make the Lagrangian stationary in every control off its bounds; the adjoints are then costates.
    free = (theta > np.array(low) + 1e-3) & (theta < np.array(high) - 1e-3)
    multipliers = np.linalg.lstsq(rows(theta)[:, free].T, -gradient(theta, fuel)[free], rcond=None)[0]
    fuel[landing] = multipliers
    gradient(theta, fuel)
    pull, states = -data.costates[:, 2:4], np.vstack([kept, simulate(theta) * SCALE])
    switching = -np.hypot(*pull.T) / states[1:, 4] - data.costates[:, 4] / EXHAUST
    return theta[:-1].reshape(-1, 2), states, theta[-1], switching, np.arctan2(*pull.T)


def coast_then_burn(start):
    """(seconds of coasting, fuel) of the analytic vertical solution: free fall, then full thrust down to rest at 0."""
    _, height, _, speed, mass = start
    flow = THRUST / EXHAUST

    def end(times):
        coast, burn = times
        h, v, left = height + coast * (speed - GRAVITY * coast / 2), speed - GRAVITY * coast, mass - flow * burn
        h += burn * (v - GRAVITY * burn / 2) + EXHAUST / flow * (mass - left - left * np.log(mass / left))
        return h, v - GRAVITY * burn + EXHAUST * np.log(mass / left)

    coast, burn = scipy.optimize.fsolve(end, (15.0, 20.0))
    return coast, flow * burn
