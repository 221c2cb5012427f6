"""A minimum-fuel soft landing on the Moon with bounded thrust and falling mass (Bryson and Ho 1975; Meditch 1964).

First as open-loop optimal control (landing/open_loop.py): SLSQP with exact gradients from `rollout_adjoint`. For a
vertical descent the solution is known: coast, then full thrust, with one switch. In two dimensions the costates must
agree with the controls: full thrust where the switching function is negative, along the primer vector -lambda_v. Then
with a feedback network (landing/feedback.py), trained through the rollout on random starts and tested on 1,000 others.

--picture PATH draws the trajectories.
"""

import numpy as np
from landing.dynamics import STEPS
from landing.feedback import judge, random_starts, train
from landing.open_loop import coast_then_burn, least_fuel

from nbprop.io.pictures import picture_option, save_picture


def draw(path, controls, states, step, tracks):
    from nbprop import plot

    figure, (left, right) = plot.panels(1, 2, size=(9, 4))
    left.step(step * np.arange(STEPS), controls[:, 0], where="post")
    left.set(xlabel="time (s)", ylabel="throttle", title="open loop: full thrust, coast, full thrust")
    right.plot(tracks[:, :60, 0], tracks[:, :60, 1], "0.7", linewidth=0.5)
    right.plot(states[:, 0], states[:, 1], linewidth=2)
    right.set(xlabel="x (m)", ylabel="height (m)", title="open loop (blue), feedback (grey)")
    save_picture(figure, path)


def main():
    picture = picture_option(__doc__, "the landings")
    start = np.array([0.0, 1500.0, 0.0, -30.0, 1000.0])
    controls, states, step, _, _ = least_fuel(start, [1, 3], 0.0)
    coast, fuel = coast_then_burn(start)
    print(f"vertical: coasts {step * (1 - controls[:, 0]).sum():.2f} s, burns {1000 - states[-1, 4]:.3f} kg")
    print(f"analytic: coasts {coast:.2f} s, burns {fuel:.3f} kg")
    print(f"switches: {(np.diff(controls[:, 0].round()) != 0).sum()}")

    controls, states, step, switching, primer = least_fuel(
        np.array([-400.0, 1500.0, 30.0, -30.0, 1000.0]), [0, 1, 2, 3], 1.5
    )
    on, off = controls[:, 0] > 0.999, controls[:, 0] < 0.001
    agree = (switching[on] < 0).sum() + (switching[off] > 0).sum()
    print(
        f"plane: burns {1000 - states[-1, 4]:.2f} kg; switching function right at {agree} of {(on | off).sum()} steps"
    )
    print(f"thrust along the primer vector within {np.degrees(np.abs(controls[:, 1] - primer)[on].max()):.2f} degrees")

    params = train(np.random.default_rng(0), 300)
    starts = random_starts(np.random.default_rng(1), 1000, 1.0)
    tracks, end = judge(params, starts)
    speed, distance = np.hypot(end[:, 2], end[:, 3]), np.hypot(end[:, 0], end[:, 1])
    print(f"feedback: median touchdown speed {np.median(speed):.2f} m/s, mean fuel {1000 - end[:, 4].mean():.1f} kg")
    landed = ((speed < 2) & (distance < 10)).mean()
    print(f"success rate: {100 * landed:.1f} % of 1,000 starts (slower than 2 m/s, within 10 m of the pad)")
    if picture:
        draw(picture, controls, states, step, tracks)


if __name__ == "__main__":
    main()
