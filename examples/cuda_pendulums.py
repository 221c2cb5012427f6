"""A million pendulums on a GPU, each with a controller network of its own, trained through the simulation.

One thread steps one pendulum (length 1 m, so that its acceleration is 9.81 sin(angle) + torque from the upright) in
steps of 0.02 s, with the torque that its 4-16-1 network chooses. The thread then goes backwards through the steps, with
the adjoint of the dynamics and the network's vjp, and accumulates the gradient of the cost: the mean over the steps of
angle^2 + 0.1 velocity^2 + 0.01 torque^2. One Adam step then updates all networks, a million times 97 parameters.

Needs an NVIDIA GPU or, for a few pendulums, Numba's simulator:
NUMBA_ENABLE_CUDASIM=1 python examples/cuda_pendulums.py --pendulums 4 --horizon 3 --steps 2
"""

import argparse
import math
import time

import numpy as np
from numba import cuda, float32

import nbprop
import nbprop.cuda

NET = nbprop.network((4,), nbprop.dense(16, activation="tanh"), nbprop.dense(1))
THREADS = 128
DT, GRAVITY = np.float32(0.02), np.float32(9.81)
ANGLE, VELOCITY, TORQUE = np.float32(1.0), np.float32(0.1), np.float32(0.01)  # weights in the cost


def make_kernel():
    """The kernel: cost and gradient of each pendulum."""
    forward, vjp = nbprop.cuda.forward_thread(NET), nbprop.cuda.vjp_thread(NET)
    trace_size = nbprop.cuda.trace_size(NET)

    @cuda.jit
    def rollout(costs, grads, states, params, start, n, horizon):
        """costs OUT (n,); grads INOUT, params IN (97, n); states OUT (2 (horizon + 1), n); start IN (2, n)."""
        i = cuda.grid(1)
        if i >= n:
            return
        trace, x, dx = cuda.local.array(trace_size, float32), cuda.local.array(4, float32), cuda.local.array(4, float32)
        u, du = cuda.local.array(1, float32), cuda.local.array(1, float32)
        share, cost = float32(1.0) / float32(horizon), float32(0.0)
        states[i], states[n + i] = start[i], start[n + i]
        for t in range(horizon):
            angle, velocity = states[2 * t * n + i], states[(2 * t + 1) * n + i]
            x[0], x[1], x[2], x[3] = math.sin(angle), math.cos(angle), velocity, float32(t) * share
            forward(u, x, params, i, n, trace)
            cost += share * (ANGLE * angle * angle + VELOCITY * velocity * velocity + TORQUE * u[0] * u[0])
            velocity = velocity + DT * (GRAVITY * math.sin(angle) + u[0])
            states[(2 * t + 3) * n + i] = velocity
            states[(2 * t + 2) * n + i] = angle + DT * velocity
        costs[i] = cost
        d_angle, d_velocity = float32(0.0), float32(0.0)  # dcost/dstate after step t
        for back in range(horizon):
            t = horizon - 1 - back
            angle, velocity = states[2 * t * n + i], states[(2 * t + 1) * n + i]
            x[0], x[1], x[2], x[3] = math.sin(angle), math.cos(angle), velocity, float32(t) * share
            forward(u, x, params, i, n, trace)
            d_velocity += DT * d_angle
            du[0] = DT * d_velocity + float32(2.0) * share * TORQUE * u[0]
            vjp(grads, i, n, dx, du, params, i, n, trace)
            d_angle += (
                DT * d_velocity * GRAVITY * x[1] + dx[0] * x[1] - dx[1] * x[0] + float32(2.0) * share * ANGLE * angle
            )
            d_velocity += dx[2] + float32(2.0) * share * VELOCITY * velocity

    return rollout


def train(pendulums, horizon, steps, seed=0, lr=0.05):
    """The mean cost before each step, and seconds a step."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(-0.5, 0.5, 2 * pendulums).astype(np.float32)
    one = nbprop.init(NET, seed=seed, dtype=np.float32)
    params = nbprop.cuda.to_device(np.repeat(one, pendulums))  # parameter k of pendulum i at k * pendulums + i
    state = nbprop.cuda.optimizer_state("adam", params.size)
    start, costs = nbprop.cuda.to_device(start), nbprop.cuda.empty(pendulums)
    grads, states = nbprop.cuda.empty(params.size), nbprop.cuda.empty(2 * (horizon + 1) * pendulums)
    zeros, rollout, history = nbprop.cuda.zeros(params.size), make_kernel(), []
    for step in range(steps):
        began = time.perf_counter()
        grads[:] = zeros
        arrays = [nbprop.cuda.as_numba(array) for array in (costs, grads, states, params, start)]
        rollout[-(-pendulums // THREADS), min(THREADS, pendulums)](*arrays, pendulums, horizon)
        nbprop.adam(params, grads, state, step, lr=lr)
        history.append((float(costs.to_host().mean(dtype=np.float64)), time.perf_counter() - began))
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pendulums", type=int, default=1_000_000)
    parser.add_argument("--horizon", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    if nbprop.cuda.available():
        for number, (cost, seconds) in enumerate(train(**vars(arguments))):
            print(f"step {number:3}   mean cost {cost:.4f}   {seconds * 1e3:.1f} ms")
    else:
        print(nbprop.cuda.missing())
