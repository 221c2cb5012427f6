/* The controller in a loop of C: a pendulum released at 0.5 rad, for five seconds. */

#include <math.h>
#include <stdio.h>

#include "controller.h"

int main(void)
{
    const double dt = 0.05, gravity = 9.81;
    double state[CONTROLLER_INPUT] = {0.5, 0.0}, torque[CONTROLLER_OUTPUT];
    double scratch[CONTROLLER_SELFTEST_SCRATCH];
    if (controller_selftest(scratch) != 0) {
        return 1;
    }
    for (int t = 0; t < 100; t++) {
        controller_forward(controller_params, 1, state, torque, scratch);
        state[1] += dt * (gravity * sin(state[0]) + torque[0]);
        state[0] += dt * state[1];
    }
    printf("after 5 s the angle is %+.6f rad\n", state[0]);
    return 0;
}
