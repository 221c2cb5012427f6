! The controller in a loop of Fortran: a pendulum released at 0.5 rad, for five seconds.
program loop
    use, intrinsic :: iso_c_binding, only: c_double, c_int
    use controller
    implicit none
    real(c_double), parameter :: dt = 0.05_c_double, gravity = 9.81_c_double
    real(c_double) :: state(controller_input), torque(controller_output), scratch(controller_scratch)
    integer :: t
    state = [0.5_c_double, 0.0_c_double]
    do t = 1, 100
        call controller_forward(controller_params, 1_c_int, state, torque, scratch)
        state(2) = state(2) + dt * (gravity * sin(state(1)) + torque(1))
        state(1) = state(1) + dt * state(2)
    end do
    print '(a, sp, f9.6, a)', 'after 5 s the angle is ', state(1), ' rad'
end program loop
