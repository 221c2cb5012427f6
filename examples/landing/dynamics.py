"""A spacecraft over the Moon: one time step of its motion, and the adjoint of that step."""

import numba
import numpy as np

GRAVITY, THRUST, EXHAUST = 1.62, 4500.0, 2000.0  # m/s^2, N, m/s; state: x, y (m), their speeds (m/s), mass (kg)
STEPS = 40


@numba.njit
def fly(after, s, throttle, angle, dt):
    """One step at constant thrust, `angle` from the vertical, with the mass in the middle of the step."""
    thrust = THRUST * throttle
    mass = s[4] - 0.5 * dt * thrust / EXHAUST
    ax, ay = thrust * np.sin(angle) / mass, thrust * np.cos(angle) / mass - GRAVITY
    after[0], after[1] = s[0] + dt * (s[2] + 0.5 * dt * ax), s[1] + dt * (s[3] + 0.5 * dt * ay)
    after[2], after[3], after[4] = s[2] + dt * ax, s[3] + dt * ay, s[4] - dt * thrust / EXHAUST


@numba.njit
def fly_back(lam, lam_after, s, throttle, angle, dt):
    """The adjoint of `fly`: writes lam, the costate at s; returns the derivatives w.r.t. throttle, angle and dt."""
    thrust, sine, cosine = THRUST * throttle, np.sin(angle), np.cos(angle)
    mass = s[4] - 0.5 * dt * thrust / EXHAUST
    ax, ay = thrust * sine / mass, thrust * cosine / mass
    d_ax, d_ay = dt * (lam_after[2] + 0.5 * dt * lam_after[0]), dt * (lam_after[3] + 0.5 * dt * lam_after[1])
    d_mass = -(d_ax * ax + d_ay * ay) / mass
    flow = (lam_after[4] + 0.5 * d_mass) / EXHAUST
    lam[:] = lam_after
    lam[2], lam[3], lam[4] = lam[2] + dt * lam_after[0], lam[3] + dt * lam_after[1], lam[4] + d_mass
    d_dt = lam_after[0] * (s[2] + dt * ax) + lam_after[1] * (s[3] + dt * (ay - GRAVITY)) - thrust * flow
    d_dt += lam_after[2] * ax + lam_after[3] * (ay - GRAVITY)
    return THRUST * ((d_ax * sine + d_ay * cosine) / mass - dt * flow), d_ax * cosine * thrust / mass - d_ay * ax, d_dt
