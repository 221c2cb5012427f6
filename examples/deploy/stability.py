"""The controller in CasADi's expressions: the closed loop, and whether it is stable, by its exact Jacobian."""

import casadi
import numpy as np

DT, GRAVITY = 0.05, 9.81
controller = casadi.external("controller", "./controller.so")
state = casadi.MX.sym("state", 2)
speed = state[1] + DT * (GRAVITY * casadi.sin(state[0]) + controller(state))
after = casadi.Function("after", [state], [casadi.vertcat(state[0] + DT * speed, speed)])

angle = after.fold(100)(casadi.DM([0.5, 0.0]))[0]
# The rest: upright but for what the controller's bias holds it at.
rest = casadi.rootfinder("rest", "newton", {"x": state, "g": after(state) - state})(x0=[0, 0])["x"]
jacobian = casadi.Function("jacobian", [state], [casadi.jacobian(after(state), state)])
largest = np.abs(np.linalg.eigvals(np.array(jacobian(rest)))).max()
print(f"after 5 s the angle is {float(angle):+.6f} rad; the closed loop shrinks errors by {largest:.3f} a step")
