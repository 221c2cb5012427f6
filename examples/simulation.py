"""A network inside your own compiled simulation, and the exact gradient of the whole simulation.

A motor holds a pendulum upright. The controller is a small network, called once per time step. Backwards in time, the
derivatives of the simulation itself (three lines of calculus) alternate with `nbprop.backward`, so that the weights
learn from the cost of the whole trajectory: backpropagation through time without a framework around it.
"""

import numba
import numpy as np

import nbprop

STEPS, DT = 100, 0.05
GRAVITY, EFFORT = 9.81, 0.01

net = nbprop.network((2,), nbprop.dense(16, activation="tanh"), nbprop.dense(1))
plan = nbprop.plan(net, batch=1)


@numba.njit
def cost_and_gradient(plan, params, start, states, torque, works, grads):
    """Mean of angle^2 + 0.1 speed^2 + effort torque^2 over a trajectory; writes its gradient to grads.

    states (STEPS + 1, 2): angle from upright and angular speed; torque (STEPS, 1); works: a workspace for each time
    step, because backward needs what the forward of the same step left there.
    """
    states[0] = start
    cost = 0.0
    for t in range(STEPS):
        nbprop.forward(plan, params, states[t : t + 1], torque[t : t + 1], works[t])
        angle, speed = states[t]
        speed += DT * (GRAVITY * np.sin(angle) + torque[t, 0])
        angle += DT * speed
        states[t + 1, 0], states[t + 1, 1] = angle, speed
        cost += (angle**2 + 0.1 * speed**2 + EFFORT * torque[t, 0] ** 2) / STEPS

    grads[:] = 0
    d_torque, d_state = np.empty((1, 1)), np.empty((1, 2))
    d_angle = d_speed = 0.0
    for t in range(STEPS - 1, -1, -1):
        d_angle += 2 * states[t + 1, 0] / STEPS
        d_speed += 0.2 * states[t + 1, 1] / STEPS + DT * d_angle
        d_torque[0, 0] = DT * d_speed + 2 * EFFORT * torque[t, 0] / STEPS
        nbprop.backward(plan, params, states[t : t + 1], d_torque, grads, d_state, works[t], True)  # adds to grads
        d_angle += DT * GRAVITY * np.cos(states[t, 0]) * d_speed + d_state[0, 0]
        d_speed += d_state[0, 1]
    return cost


def main():
    params = nbprop.init(net, seed=0)
    grads, direction = np.empty_like(params), np.random.default_rng(0).standard_normal(net.n_params)
    states, torque = np.empty((STEPS + 1, 2)), np.empty((STEPS, 1))
    works = np.empty((STEPS, nbprop.workspace(plan).size))
    start = np.array([0.5, 0.0])

    def simulate(params, start=start):
        return cost_and_gradient(plan, params, start, states, torque, works, grads)

    simulate(params)
    exact, step = grads @ direction, 1e-6
    tried = (simulate(params + step * direction) - simulate(params - step * direction)) / (2 * step)
    print(f"slope along a random direction: backward {exact:.8f}, central difference {tried:.8f}")

    rng, velocity = np.random.default_rng(1), np.zeros_like(params)
    for episode in range(1001):
        cost = simulate(params, rng.uniform(-0.6, 0.6, 2))
        velocity = 0.9 * velocity + grads * min(1.0, 1.0 / np.linalg.norm(grads))
        params -= 0.02 * velocity
        if episode % 250 == 0:
            print(f"episode {episode:5}: cost {cost:8.4f}")
    simulate(params)
    print(f"released at 0.5 rad, after {STEPS * DT:.0f} s the angle is {states[-1, 0]:+.4f} rad")


if __name__ == "__main__":
    main()
